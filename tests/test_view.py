"""Whatever is done to a store, its live view, a view rebuilt from the log, and a plain dict agree."""

import random
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule, run_state_machine_as_test

from memfold import MemoryForgotten, Settings
from memfold.projections.words import Words, asked_for, words_of

T0 = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = st.lists(st.sampled_from(["tea", "milk", "lemon", "cat", "door", "code"]), min_size=1, max_size=5).map(" ".join)
TAGS = st.lists(st.sampled_from(["a", "b", "c"]), unique=True, max_size=3)
SESSIONS = st.sampled_from(["s", "t"])
WHEN = st.integers(0, 20).map(lambda hours: T0 + timedelta(hours=hours))


def rebuilt(store, session_id):
    view = store._views.rebuild(session_id)
    if view is None:
        return None
    try:
        return view.dump()
    finally:
        view.close()


def live(store, session_id):
    with store._views.session(session_id) as view:
        return view.dump() if view else None


class Model(RuleBasedStateMachine):
    """Any sequence of verbs. The model is one dict of live memories and one set of forgotten ids."""

    store = None
    memories = Bundle("memories")

    def __init__(self):
        super().__init__()
        self.live = {}
        self.forgotten = set()
        self.prefix = f"{random.SystemRandom().getrandbits(64)}-"

    @rule(target=memories, session=SESSIONS, content=WORDS, tags=TAGS, when=WHEN)
    def remember(self, session, content, tags, when):
        memory = self.store.remember(content, session_id=self.prefix + session, tags=tags, occurred_at=when)
        self.live[memory.id] = memory
        return memory.id

    @rule(session=SESSIONS, contents=st.lists(WORDS, max_size=4))
    def remember_many(self, session, contents):
        for memory in self.store.remember_many(contents, session_id=self.prefix + session):
            self.live[memory.id] = memory

    @rule(id=memories, content=WORDS, tags=TAGS)
    def update(self, id, content, tags):
        if id in self.live:
            self.live[id] = self.store.update(id, content=content, tags=tags, expected_version=self.live[id].version)
            return
        with pytest.raises(MemoryForgotten):
            self.store.update(id, content=content)

    @rule(id=consumes(memories))
    def forget(self, id):
        first = self.store.forget(id)
        assert self.store.forget(id) == first
        self.drop([id])

    @rule(session=SESSIONS, tag=st.sampled_from(["a", "b", "c"]))
    def forget_where(self, session, tag):
        doomed = {id for id, memory in self.of(session).items() if tag in memory.tags}
        assert set(self.store.forget_where(self.prefix + session, {"tags": tag}).memory_ids) == doomed
        self.drop(doomed)

    @rule(session=SESSIONS)
    def forget_session(self, session):
        doomed = self.of(session)
        assert doomed.keys() <= set(self.store.forget_session(self.prefix + session).memory_ids)
        self.drop(doomed)

    @invariant()
    def everything_agrees(self):
        for session in ("s", "t"):
            name = self.prefix + session
            assert live(self.store, name) == rebuilt(self.store, name)
            expected = sorted(self.of(session).values(), key=lambda memory: (memory.occurred_at, memory.id))
            found = self.store.find(name, order="oldest", limit=10_000).memories
            assert sorted(found, key=lambda memory: (memory.occurred_at, memory.id)) == expected
            assert [memory.occurred_at for memory in found] == sorted(memory.occurred_at for memory in found)
            hits = self.store.recall("tea", session_id=name, limit=10_000)
            assert {hit.memory.id for hit in hits} <= {memory.id for memory in expected}
            assert {hit.memory.id for hit in hits} >= {m.id for m in expected if "tea" in m.content.split()}
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        for id in self.forgotten:
            with pytest.raises(MemoryForgotten):
                self.store.get(id)
            assert all(change.memory is None for change in self.store.history(id))

    def of(self, session):
        return {id: memory for id, memory in self.live.items() if memory.session_id == self.prefix + session}

    def drop(self, ids):
        for id in list(ids):
            if self.live.pop(id, None):
                self.forgotten.add(id)


def test_any_sequence_of_verbs_leaves_live_view_rebuilt_view_and_dict_equal(store):
    class Bound(Model):
        pass

    Bound.store = store
    run_state_machine_as_test(
        Bound,
        settings=settings(max_examples=25, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)),
    )


def test_folding_event_by_event_and_all_at_once_gives_the_same_view(make_store):
    writer, follower = make_store(), make_store()
    memories = []
    for number in range(30):
        memories.append(writer.remember(f"tea {number}", session_id="s"))
        follower.count("s")
        if number % 3 == 1:
            writer.update(memories[number - 1].id, content=f"green tea {number}")
            follower.count("s")
        if number % 7 == 6:
            writer.forget(memories[number - 6].id)
            follower.count("s")
    assert live(follower, "s") == rebuilt(writer, "s")


def test_views_beyond_the_bound_are_dropped_and_come_back(make_store):
    store = make_store(settings=Settings(views_bytes_max=400_000, pool_connections_max=8))
    for number in range(20):
        store.remember(f"tea {number}", session_id=f"s{number}")
        assert store.count(f"s{number}") == 1
    stats = store.stats()
    assert 1 <= stats.views <= 4
    assert stats.view_bytes <= 400_000
    assert [hit.memory.content for hit in store.recall("tea", session_id="s0")] == ["tea 0"]


def test_an_idle_view_is_dropped(make_store):
    import time

    store = make_store(settings=Settings(view_idle_s=0.2, pool_connections_max=8))
    store.remember("tea", session_id="s")
    assert store.count("s") == 1
    assert store.stats().views == 1
    deadline = time.monotonic() + 10
    while store.stats().views and time.monotonic() < deadline:
        time.sleep(0.05)
    assert store.stats().views == 0
    assert store.count("s") == 1


def test_a_view_is_not_written_to_disk_when_it_sorts(store):
    store.remember_many([{"content": f"tea {number}"} for number in range(100)], session_id="s")
    with store._views.session("s") as view:
        assert view.table._db.execute("PRAGMA temp_store").fetchone()[0] == 2
        assert view.table._db.execute("PRAGMA database_list").fetchall() == [(0, "main", "")]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What's the door-code?", ["door", "code"]),
        ("What is it about?", []),
        ("tea TEA Tea", ["tea", "tea", "tea"]),
        ("running runs ran", ["run", "run", "ran"]),
        ('NEAR/3 "', ["near", "3"]),
        ("x_b", ["x", "b"]),
        ("naïve Ärger", ["naiv", "arger"]),
        ("東京ガ", ["東", "京", "ガ"]),
        ("한국 말", ["한", "국", "말"]),
        ("\0\ud800", []),
        ("", []),
    ],
)
def test_words_are_stemmed_without_accents_and_stop_words(text, expected):
    assert words_of(text) == expected


def test_a_query_asks_for_each_word_once_and_for_at_most_64():
    assert asked_for("tea, teas and more tea") == ["tea", "more"]
    assert len(asked_for(" ".join(f"w{number}" for number in range(100_000)))) == 64


def test_words_of_any_order_of_additions_and_removals_weigh_what_those_left_weigh(rand):
    texts = [" ".join(rand.choices(["tea", "milk", "cat", "door", "code"], k=rand.randrange(6))) for _ in range(60)]
    left = sorted(rand.sample(range(60), 40))
    words, fresh = Words(), Words()
    for slot in rand.sample(range(60), 60):
        words.add(slot, texts[slot])
    for slot in rand.sample(sorted(set(range(60)) - set(left)), 20):
        words.remove(slot, texts[slot])
    for place, slot in enumerate(left):
        fresh.add(place, texts[slot])

    slots = np.array(left)
    for query in (["tea"], ["cat", "door", "nothing"], []):
        assert weighed(words, query, slots) == weighed(fresh, query, np.arange(40))
    assert words.dump(slots) == fresh.dump(np.arange(40))
    words.renumber(slots)
    assert words.dump(np.arange(40)) == fresh.dump(np.arange(40))
    assert weighed(words, ["tea"], np.arange(40)) == weighed(fresh, ["tea"], np.arange(40))


def weighed(words, query, slots):
    return [weights.tolist() for weights in words.weigh(words.look_up(query), slots, np.concatenate([[-1], slots[:-1]]))]
