"""Questions about several sessions, a user or the whole tenant: against a dict, against brute force, and under attack.

A wide scope is one fold of many streams. So it must agree, at every step, with what its sessions say one by one; neighbours
stay within their sessions; and what is forgotten leaves every scope that held it, and the RAM of every view.
"""

import math
import random
import subprocess
import sys
import textwrap
import threading
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import psycopg
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from memfold import MemoryForgotten, MemoryStore, SessionOwnerConflict, Settings
from memfold.errors import InvalidQuery, ScopeTooLarge
from memfold.minilm import static_embedder
from memfold.projections.filters import ALL
from memfold.projections.loading import Loader
from memfold.projections.scope import Scope
from memfold.projections.tokens import asked_for, plain_words, words_of
from memfold.projections.views import Views

MASTER_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
PATIENCE_S = 20
T0 = datetime(2026, 1, 1, tzinfo=UTC)
VOCABULARY = [
    "tea",
    "milk",
    "coffee",
    "lemon",
    "kettle",
    "cat",
    "dog",
    "parrot",
    "door",
    "key",
    "code",
    "garden",
    "train",
    "hotel",
]
NAMES = ("Anna", "Béla Tóth", "Chiara", None)


def sentence(rand: random.Random, most: int = 9) -> str:
    return " ".join(rand.choices(VOCABULARY, k=rand.randint(1, most)))


def ids(found: Any) -> set[str]:
    return {memory.id for memory in found}


def everything(store: MemoryStore, **scope: Any) -> list[Any]:
    return store.find(order="oldest", limit=10_000, **scope).memories


@pytest.fixture
def owner(server_url):
    """A login that may do what no program of memfold may."""
    with psycopg.connect(server_url) as connection:
        yield connection


class Pause:
    """Stops the next caller of a method after it did its work, until told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, of: type, name: str) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        work, armed = getattr(of, name), threading.Lock()

        def call(*args: Any, **options: Any) -> Any:
            result = work(*args, **options)
            if armed.acquire(blocking=False):
                self.reached.set()
                assert self.go.wait(PATIENCE_S)
            return result

        monkeypatch.setattr(of, name, call)


# -- against a dict --------------------------------------------------------------------------------------------------------

SESSIONS = ("s", "t", "u")
PEOPLE = ("ann", "bob")
SCOPES: list[dict[str, Any]] = [
    {},
    *({"session_id": session} for session in SESSIONS),
    {"session_ids": ["s", "t"]},
    {"session_ids": ["u", "nobody's", "u"]},
    {"session_ids": []},
    *({"user_id": user} for user in (*PEOPLE, "nobody")),
]


class Model(RuleBasedStateMachine):
    """Any sequence of verbs over sessions of two users, read through two stores. The model is a dict of live memories."""

    target: tuple[str, str] = ("", "")
    memories = Bundle("memories")

    def __init__(self) -> None:
        super().__init__()
        options: dict[str, Any] = {"tenant": f"tenant-{uuid.uuid4()}", "master_key": MASTER_KEY, "embedder": static_embedder()}
        self.stores = [MemoryStore(self.target[0], settings=Settings(pool_connections_max=5), **options) for _ in range(2)]
        self.live: dict[str, Any] = {}
        self.owners: dict[str, str] = {}
        self.row: list[str] = []  # ids in the order they were remembered

    def teardown(self) -> None:
        for store in self.stores:
            store.close()

    @rule(
        target=memories,
        by=st.integers(0, 1),
        session=st.sampled_from(SESSIONS),
        user=st.sampled_from(PEOPLE),
        words=st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=4),
        at=st.integers(0, 3),
        tag=st.sampled_from(["a", "b"]),
    )
    def remember(self, by, session, user, words, at, tag):
        fields = {"tags": [tag], "occurred_at": T0 + timedelta(days=at), "speaker": "Ann" if at == 1 else None}
        if self.owners.setdefault(session, user) != user:
            with pytest.raises(SessionOwnerConflict):
                self.stores[by].remember(" ".join(words), session_id=session, user_id=user, **fields)
        memory = self.stores[by].remember(" ".join(words), session_id=session, user_id=self.owners[session], **fields)
        self.live[memory.id] = memory
        self.row.append(memory.id)
        return memory.id

    @rule(by=st.integers(0, 1), id=memories, word=st.sampled_from(VOCABULARY))
    def update(self, by, id, word):
        if id in self.live:
            self.live[id] = self.stores[by].update(id, content=word)
        else:
            with pytest.raises(MemoryForgotten):
                self.stores[by].update(id, content=word)

    @rule(by=st.integers(0, 1), id=memories)
    def forget(self, by, id):
        self.stores[by].forget(id)
        self.live.pop(id, None)

    @rule(by=st.integers(0, 1), session=st.sampled_from(SESSIONS), tag=st.sampled_from(["a", "b"]))
    def forget_where(self, by, session, tag):
        self.stores[by].forget_where(session, {"tags": tag})
        self.keep(lambda memory: memory.session_id != session or tag not in memory.tags)

    @rule(by=st.integers(0, 1), session=st.sampled_from(SESSIONS))
    def forget_session(self, by, session):
        self.stores[by].forget_session(session)
        self.owners.pop(session, None)
        self.keep(lambda memory: memory.session_id != session)

    @rule(by=st.integers(0, 1), user=st.sampled_from(PEOPLE))
    def forget_user(self, by, user):
        self.stores[by].forget_user(user)
        self.owners = {session: other for session, other in self.owners.items() if other != user}
        self.keep(lambda memory: memory.user_id != user)

    def keep(self, stays):
        self.live = {id: memory for id, memory in self.live.items() if stays(memory)}

    @invariant()
    def every_scope_equals_the_dict(self):
        newest = self.stores[0].stats().position
        for scope in SCOPES:
            wanted = [memory for id in self.row if (memory := self.live.get(id)) and in_scope(memory, scope)]
            wanted.sort(key=lambda memory: memory.occurred_at)  # stable: of equal times, the first remembered first
            for store in self.stores:
                self.compare(store, scope, wanted, newest)

    def compare(self, store, scope, wanted, newest):
        page = store.find(order="oldest", limit=10_000, **scope)
        assert page.memories == wanted
        assert (page.cursor, page.withheld) == (None, 0)
        assert "session_id" in scope or page.position == newest
        assert store.count(**scope) == len(wanted)
        assert store.count(**scope, where={"tags": "a"}) == sum("a" in memory.tags for memory in wanted)
        found = store.recall("tea", limit=10_000, **scope)
        assert ids(hit.memory for hit in found) >= {memory.id for memory in wanted if "tea" in memory.content.split()}
        assert ids(hit.memory for hit in found) <= ids(wanted)
        assert found.withheld == 0
        with store._views.lend(Scope(*asked(scope)), time.monotonic() + 10) as view:
            if view:
                assert view.table.count(ALL) == len(view.places.live()) == len(wanted)
                for id in ids(wanted):
                    assert view.neighbours(uuid.UUID(id).bytes, ALL) == self.neighbours(id)

    def neighbours(self, id):
        near = [other for other in self.row if other in self.live and self.live[other].session_id == self.live[id].session_id]
        at = near.index(id)
        before, after = near[at - 1] if at else None, near[at + 1] if at + 1 < len(near) else None
        return self.live.get(before), self.live.get(after)


def asked(scope: dict[str, Any]) -> tuple[tuple[str, ...] | None, str | None]:
    if "session_id" in scope:
        return (scope["session_id"],), None
    names = scope.get("session_ids")
    return (None if names is None else tuple(dict.fromkeys(names))), scope.get("user_id")


def in_scope(memory: Any, scope: dict[str, Any]) -> bool:
    if "user_id" in scope:
        return memory.user_id == scope["user_id"]
    names = [scope["session_id"]] if "session_id" in scope else scope.get("session_ids")
    return names is None or memory.session_id in names


def model_of(server_url):
    class Bound(Model):
        pass

    Bound.target = (server_url, "")
    return Bound


def test_after_any_sequence_of_verbs_every_scope_of_every_store_equals_a_dict(server_url):
    run_state_machine_as_test(
        model_of(server_url),
        settings=settings(max_examples=12, stateful_step_count=12, deadline=None, suppress_health_check=list(HealthCheck)),
    )


def test_it_does_so_when_slots_are_renumbered_all_the_time(server_url, monkeypatch):
    monkeypatch.setattr("memfold.projections.places.EMPTY_MAX", 0)
    run_state_machine_as_test(
        model_of(server_url),
        settings=settings(max_examples=8, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck)),
    )


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_three_hundred_longer_sequences_do_so_too(server_url):
    run_state_machine_as_test(
        model_of(server_url),
        settings=settings(max_examples=300, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)),
    )


# -- against brute force ---------------------------------------------------------------------------------------------------


class Rows:
    """The rows of a scope in the order of the log, and the documented mix over them in plain double precision."""

    def __init__(self, memories: list[Any]) -> None:
        self.memories = memories
        texts = [f"{memory.speaker}: {memory.content}" if memory.speaker else memory.content for memory in memories]
        self._counts = [Counter(words_of(text)) for text in texts]
        self._lengths = np.array([counts.total() for counts in self._counts], float)
        stored = static_embedder().encode(texts).astype(np.float16).astype(float)  # vectors are kept in half precision
        self._vectors = stored / np.linalg.norm(stored, axis=1, keepdims=True)
        self._before, self._after = np.full(len(memories), -1), np.full(len(memories), -1)
        last: dict[str, int] = {}
        for at, memory in enumerate(memories):
            if memory.session_id in last:
                self._before[at], self._after[last[memory.session_id]] = last[memory.session_id], at
            last[memory.session_id] = at

    def scores(self, query: str) -> dict[str, float]:
        cosines = self._vectors @ static_embedder().encode([query])[0]
        meaning = 0.5 * np.clip(0.75 * cosines + 0.25 * self.before(cosines), 0, 1)
        counts = [np.array([row[word] for row in self._counts], float) for word in asked_for(query)]
        rows, lengths = len(self.memories) + 100, self._lengths
        average = (lengths.sum() + 1300) / rows
        holding = [np.count_nonzero(each) for each in counts]
        rarities = [math.log(1 + (rows - each + 0.5) / (each + 0.5)) for each in holding]
        alone = bm25(counts, rarities, lengths / average)
        both = [each + self.before(each) for each in counts]
        paired = bm25(both, rarities, (lengths + self.before(lengths)) / (2 * average))
        weight = 0.6 * alone + 0.4 * paired
        own = meaning + 0.5 * weight / (weight + 10)
        words = set(plain_words(query))
        named = np.array([bool(words & set(plain_words(memory.speaker or ""))) for memory in self.memories], float)
        mixed = own + 0.2 * self.before(own) + 0.25 * np.append(own, 0.0)[self._after] + 0.2 * named
        return dict(zip((memory.id for memory in self.memories), (1 - np.exp(-mixed)).tolist(), strict=True))

    def before(self, values: Any) -> Any:
        return np.append(values, 0.0)[self._before]


def bm25(counts: list[Any], rarities: list[float], lengths: Any) -> Any:
    """Okapi BM25 (k1 1.2, b 0.75); `lengths` in average rows."""
    sums = np.zeros(len(lengths))
    for each, rarity in zip(counts, rarities, strict=True):
        sums += rarity * each * 2.2 / (each + 1.2 * (0.25 + 0.75 * lengths))
    return sums


def filters(size: int) -> list[tuple[dict[str, Any], Any]]:
    """What recall is given, and the same said in Python."""
    early, late = T0 + timedelta(minutes=size // 5), T0 + timedelta(minutes=size // 2)
    return [
        ({}, lambda memory: True),
        ({"where": {"category": "plan"}}, lambda memory: memory.category == "plan"),
        ({"where": {"category": "fact"}}, lambda memory: memory.category == "fact"),
        ({"where": {"importance": {"$gte": 0.8}}}, lambda memory: memory.importance >= 0.8),
        ({"where": {"importance": {"$gte": 0.9}}}, lambda memory: memory.importance >= 0.9),
        ({"where": {"number": size // 3}}, lambda memory: memory.metadata["number"] == size // 3),
        (
            {"before": late, "after": early, "where": {"speaker": {"$ne": "Anna"}}},
            lambda memory: early <= memory.occurred_at < late and memory.speaker != "Anna",
        ),
    ]


def fill(store: MemoryStore, size: int, sessions: int, rand: random.Random) -> dict[str, Any]:
    """Remember for two users, in turns, in several sessions each; the memories by id, in the order of the log."""
    kept: dict[str, Any] = {}
    number = 0
    while number < size:
        count = min(size - number, rand.randint(1, max(1, size // 20)))
        session = rand.randrange(2 * sessions)
        items = [
            {
                "content": sentence(rand),
                "speaker": rand.choice(NAMES),
                "category": rand.choice(["fact", "plan", None]),
                "importance": round(rand.random(), 2),
                "metadata": {"number": at},
                "occurred_at": T0 + timedelta(minutes=at),
            }
            for at in range(number, number + count)
        ]
        remembered = store.remember_many(items, session_id=f"s{session}", user_id=f"u{session % 2}")
        kept |= {memory.id: memory for memory in remembered}
        number += count
    return kept


def change(store: MemoryStore, kept: dict[str, Any], rand: random.Random) -> None:
    """Update some, forget some."""
    chosen = rand.sample(sorted(kept), 2 * min(100, len(kept) // 4))
    for id in chosen[::2]:
        kept[id] = store.update(id, content=sentence(rand), speaker=rand.choice(NAMES), category="plan")
    for id in chosen[1::2]:
        store.forget(id)
        del kept[id]


def check_recall(store: MemoryStore, kept: dict[str, Any], scope: dict[str, Any], size: int, rand: random.Random) -> None:
    rows = Rows([memory for memory in kept.values() if in_scope(memory, scope)])
    assert rows.memories, "a test of nothing"
    for query in (sentence(rand, 5), f"what did Anna say of {sentence(rand, 2)}?", "béla"):
        scores = rows.scores(query)
        for arguments, holds in filters(size):
            allowed = {memory.id: scores[memory.id] for memory in rows.memories if holds(memory)}
            due = sorted((score for score in allowed.values() if score > 0), reverse=True)[:10]
            found = store.recall(query, limit=10, wait_s=60, ranking="fixed", **scope, **arguments)
            assert found.model == static_embedder().name
            assert len(found) == len(ids(hit.memory for hit in found)) == len(due)
            assert [allowed[hit.memory.id] for hit in found] == pytest.approx(due, abs=1e-5)
            assert [hit.score for hit in found] == pytest.approx(due, abs=1e-5)


@pytest.mark.parametrize(("size", "sessions"), [(5, 1), (5, 5), (50, 3), (500, 20), (5_000, 10)])
def test_recall_over_users_and_tenants_is_right_of_ten(make_store, rand, size, sessions):
    store, late = make_store(), make_store()
    kept = fill(store, size, sessions, rand)
    some = [f"s{at}" for at in range(sessions)]
    scopes = [{"user_id": kept[next(iter(kept))].user_id}, {"session_ids": [*some, "unknown"]}, {}]
    scopes = [scope for scope in scopes if any(in_scope(memory, scope) for memory in kept.values())]
    for scope in scopes:
        check_recall(store, kept, scope, size, rand)
    change(store, kept, rand)
    for scope in scopes:
        for each in (store, late):
            if any(in_scope(memory, scope) for memory in kept.values()):
                check_recall(each, kept, scope, size, rand)


def test_the_same_question_with_another_value_in_its_filter_is_another_question(store):
    """The values of a filter are kept out of its repr, and so were out of what an answer was known by."""
    for number, category in enumerate(["plan", "fact"]):
        at = T0 + timedelta(days=number)
        store.remember(f"tea {category}", session_id="s", category=category, occurred_at=at)
    for scope in ({"session_id": "s"}, {"user_id": "s"}, {}):
        for category in ("plan", "fact", "plan"):
            found = store.recall("tea", where={"category": category}, **scope)
            assert [hit.memory.category for hit in found] == [category]
        for day, expected in ((1, ["plan"]), (2, ["fact", "plan"])):
            found = store.recall("tea", before=T0 + timedelta(days=day), **scope)
            assert sorted(hit.memory.category for hit in found) == expected


def test_a_session_of_one_memory_has_no_neighbours_in_a_wide_scope(store):
    for number in range(6):
        store.remember("the kettle is on for tea", session_id=f"s{number}", user_id="ann")
    for scope in ({"user_id": "ann"}, {}, {"session_ids": ["s1", "s2", "s3"]}):
        found = store.recall("kettle tea", ranking="fixed", explain=True, **scope)
        assert {hit.parts["neighbours"] for hit in found} == {0.0}
        assert len({hit.score for hit in found}) == 1
        assert [hit.memory.session_id for hit in found] == sorted(hit.memory.session_id for hit in found)  # equals: older first


def test_a_memory_between_those_of_another_session_changes_no_neighbour(make_store):
    store = make_store()
    for word in ("tea", "milk", "lemon"):
        store.remember(f"we talked about {word}", session_id="a", user_id="ann")
        store.remember("the parrot sleeps at the door", session_id="b", user_id="ann")
    with store._views.lend(Scope(None, "ann"), time.monotonic() + 10) as view:
        for memory in view.table.memories(view.places.rows(view.places.live())):
            near = [each for each in view.neighbours(uuid.UUID(memory.id).bytes, ALL) if each]
            assert {each.session_id for each in near} == {memory.session_id}


# -- pages -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 3, 7, 40])
@pytest.mark.parametrize("order", ["newest", "oldest"])
def test_pages_of_a_wide_scope_hold_every_memory_once_also_where_times_are_equal(make_store, rand, order, limit):
    store, late = make_store(), make_store()
    for number in range(40):
        at = T0 + timedelta(days=rand.randrange(4))
        store.remember(f"tea {number}", session_id=f"s{number % 5}", user_id=f"u{number % 5 % 2}", occurred_at=at)
    for scope in ({}, {"user_id": "u0"}, {"session_ids": ["s1", "s2", "s4"]}):
        for reader in (store, late):
            whole = reader.find(order=order, limit=10_000, **scope).memories
            seen: list[Any] = []
            cursor = None
            while True:
                page = reader.find(order=order, limit=limit, cursor=cursor, **scope)
                assert len(page.memories) <= limit
                seen += page.memories
                cursor = page.cursor
                if cursor is None:
                    break
            assert seen == whole
            assert len(whole) == reader.count(**scope)


def test_a_cursor_goes_on_although_memories_come_and_go_meanwhile(make_store):
    store = make_store()
    memories = [store.remember(f"tea {at}", session_id=f"s{at % 3}", occurred_at=T0 + timedelta(days=at)) for at in range(20)]
    page = store.find(order="oldest", limit=10)
    store.forget(page.memories[-1].id)  # the very one that the cursor names
    store.forget(memories[15].id)
    store.forget_session("s2")
    store.remember("between", session_id="new", occurred_at=T0 + timedelta(days=12, hours=1))
    store.remember("behind the reader", session_id="new", occurred_at=T0)
    rest = store.find(order="oldest", limit=100, cursor=page.cursor).memories
    expected = [f"tea {at}" for at in range(10, 20) if at % 3 != 2 and at != 15]
    assert [memory.content for memory in rest] == [*expected[:2], "between", *expected[2:]]


# -- freshness -------------------------------------------------------------------------------------------------------------


def test_a_wide_scope_holds_everything_that_any_thread_was_acknowledged(make_store):
    stores = [make_store(settings=Settings(pool_connections_max=6)) for _ in range(2)]
    missed: list[str] = []

    def work(number: int) -> None:
        rand = random.Random(number)
        for turn in range(12):
            memory = stores[number % 2].remember(f"tea {number} {turn}", session_id=f"s{rand.randrange(6)}", user_id="ann")
            reader = stores[rand.randrange(2)]
            scope: dict[str, Any] = rand.choice([{}, {"user_id": "ann"}, {"session_ids": [f"s{at}" for at in range(6)]}])
            if rand.random() < 0.5:
                found = ids(everything(reader, wait_s=60, **scope))
            else:
                found = ids(hit.memory for hit in reader.recall(f"tea {number} {turn}", limit=10_000, wait_s=60, **scope))
            if memory.id not in found:
                missed.append(f"{number} {turn} {scope}")
            if rand.random() < 0.2:
                reader.forget(memory.id)
                if memory.id in ids(everything(stores[number % 2], wait_s=60, **scope)):
                    missed.append(f"{number} {turn} {scope} was forgotten")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    assert missed == []
    for store in stores:
        views = [everything(store), sorted(everything(store, user_id="ann"), key=lambda memory: memory.occurred_at)]
        assert ids(views[0]) == ids(views[1])


WRITER = """
    import sys
    from memfold import MemoryStore
    from memfold.minilm import static_embedder
    with MemoryStore(sys.argv[1], tenant=sys.argv[2], master_key=sys.argv[3], embedder=static_embedder()) as store:
        for line in sys.stdin:
            for memory in store.remember_many([f"tea {line}"] * 3, session_id=f"p{int(line) % 4}", user_id="ann"):
                print(memory.id, flush=True)
"""


def test_a_wide_scope_holds_what_another_process_was_acknowledged(make_store, server_url, tenant):
    store = make_store()
    command = [sys.executable, "-c", textwrap.dedent(WRITER), server_url, tenant, MASTER_KEY]
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():
            store.remember("milk", session_id="here", user_id="bob")

    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin
        assert writer.stdout
        thread = threading.Thread(target=disturb)
        thread.start()
        try:
            for turn in range(15):
                writer.stdin.write(f"{turn}\n")
                writer.stdin.flush()
                told = {writer.stdout.readline().strip() for _ in range(3)}
                scope: dict[str, Any] = [{}, {"user_id": "ann"}, {"session_ids": ["p0", "p1", "p2", "p3"]}][turn % 3]
                assert told <= ids(everything(store, wait_s=60, **scope))
        finally:
            stop.set()
            thread.join()
            writer.stdin.close()
    assert writer.returncode == 0


def held(owner: psycopg.Connection) -> None:
    """A transaction that has written to the log somewhere, and does not end."""
    owner.execute("LOCK TABLE memfold.events IN ROW EXCLUSIVE MODE")


def test_a_transaction_that_stays_open_holds_a_wide_scope_back_no_longer_than_wait_s(make_store, owner):
    store = make_store()
    before = [store.remember(f"tea {number}", session_id=f"s{number}", user_id="ann") for number in range(5)]
    assert store.count() == store.count(user_id="ann") == 5
    position = store.stats().position
    held(owner)
    after = store.remember("later", session_id="s1", user_id="ann")
    for scope in ({}, {"user_id": "ann"}):
        page = store.find(wait_s=0.2, **scope)
        assert page.position == position, "what was looked at is said as it is"
        assert ids(page.memories) == ids(before)
        assert store.recall("later", wait_s=0, **scope).position == position
    assert after.id in ids(everything(store, session_id="s1")), "a session waits for nobody"
    owner.rollback()
    for scope in ({}, {"user_id": "ann"}):
        page = store.find(**scope)
        assert page.position > position
        assert ids(page.memories) == ids([*before, after])


def test_what_was_settled_before_a_transaction_stayed_open_is_seen_in_a_scope_asked_for_anew(make_store, owner):
    store = make_store()
    for number in range(5):
        store.remember(f"tea {number}", session_id=f"s{number}", user_id="ann")
    assert store.count() == 5
    held(owner)
    try:
        assert store.count(user_id="ann", wait_s=0.2) == 5
    finally:
        owner.rollback()


def test_who_waits_for_a_transaction_holds_nobody_up_who_does_not_want_to(make_store, owner):
    store = make_store()
    store.remember("tea", session_id="s")
    assert store.count() == 1
    held(owner)
    store.remember("later", session_id="s")
    answered = threading.Event()
    patient = threading.Thread(target=lambda: (store.count(wait_s=6), answered.set()))
    patient.start()
    try:
        time.sleep(0.5)  # the patient one has begun to wait
        assert store.count(wait_s=0) in (1, 2)
        assert not answered.is_set(), "whoever does not wait was held up by whoever does"
    finally:
        owner.rollback()
        patient.join()


def test_without_time_a_large_scope_is_answered_in_parts_that_say_how_far_they_go(make_store):
    writer = make_store()
    for number in range(7):
        writer.remember_many([f"tea {number} {at}" for at in range(1_000)], session_id=f"s{number % 3}", user_id="ann")
    where = {event.memory_id: event.position for event in writer.events()}
    newest = writer.stats().position
    for scope in ({}, {"user_id": "ann"}, {"session_ids": ["s0", "s1", "s2"]}):
        store = make_store()
        positions = []
        for _ in range(10):
            page = store.find(limit=10_000, wait_s=0, **scope)
            assert ids(page.memories) == {id for id, position in where.items() if position <= page.position}
            positions.append(page.position)
            if page.position == newest:
                break
        assert len(positions) > 2, "never in parts"
        assert positions == sorted(set(positions))
        assert positions[-1] == newest
        assert store.count(wait_s=0, **scope) == 7_000


def test_a_part_of_a_scope_is_changed_by_what_comes_after_it(make_store):
    """What is updated and forgotten behind the part that was folded, between two calls."""
    writer, store = make_store(), make_store()
    memories = [each for _ in range(5) for each in writer.remember_many(["tea"] * 1_000, session_id="s", user_id="ann")]
    begun = store.find(limit=10_000, wait_s=0)
    assert 0 < len(begun.memories) < 5_000
    writer.forget(memories[0].id)
    writer.forget(memories[4_999].id)
    writer.update(memories[1].id, content="milk")
    writer.update(memories[4_998].id, content="milk")
    found = {memory.id: memory for memory in everything(store, wait_s=60)}
    assert found.keys() == ids(memories[1:-1])
    assert {id for id, memory in found.items() if memory.content == "milk"} == {memories[1].id, memories[4_998].id}


def test_many_threads_ask_the_same_scope(make_store):
    store = make_store(settings=Settings(pool_connections_max=4, append_connections=1))
    store.remember_many([f"tea {number}" for number in range(300)], session_id="s", user_id="ann")
    with ThreadPoolExecutor(16) as pool:
        work = [pool.submit(store.recall, "tea 7", user_id="ann", wait_s=60) for _ in range(40)]
        work += [pool.submit(store.recall, "tea 7", wait_s=60) for _ in range(40)]
        answers = {tuple((hit.memory.id, hit.score) for hit in each.result()) for each in work}
    assert len(answers) == 1


def test_the_smallest_pool_of_connections_serves_wide_scopes_too(make_store):
    store = make_store(settings=Settings(pool_connections_max=3, append_connections=1, connect_timeout_s=10))

    def work(number: int) -> None:
        memory = store.remember(f"tea {number}", session_id=f"s{number % 3}", user_id="ann", duplicates="skip")
        for scope in ({}, {"user_id": "ann"}, {"as_of": store.find(f"s{number % 3}").position}):
            assert memory.id in ids(everything(store, wait_s=60, **scope))
        if number % 5 == 0:
            store.forget(memory.id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert store.count() == 19


# -- the RAM of views ------------------------------------------------------------------------------------------------------


def test_views_that_do_not_fit_together_are_dropped_and_answer_all_the_same(make_store):
    store = make_store(settings=Settings(pool_connections_max=8, views_bytes_max=600_000))
    kept = [store.remember(f"tea {at}", session_id=f"s{at % 4}", user_id=f"u{at % 2}") for at in range(40)]
    rand = random.Random(1)
    scopes: list[dict[str, Any]] = [
        {},
        *({"user_id": f"u{at}"} for at in range(2)),
        *({"session_id": f"s{at}"} for at in range(4)),
    ]
    scopes += [{"session_ids": ["s0", "s1"]}, {"session_ids": ["s2", "s1"]}, {"as_of": store.stats().position}]

    def ask(_: int) -> None:
        scope = rand.choice(scopes)
        wanted = {memory.id for memory in kept if in_scope(memory, scope)}
        assert ids(everything(store, **scope)) == wanted
        assert ids(hit.memory for hit in store.recall("tea", limit=100, **scope)) == wanted

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(ask, range(60)))
    ask(0)
    assert store.stats().view_bytes <= 600_000
    assert store.stats().views < len(scopes)


def test_a_scope_that_is_too_large_says_so_and_smaller_ones_go_on(make_store):
    store = make_store(settings=Settings(pool_connections_max=8, views_bytes_max=1_000_000))
    store.remember("small", session_id="small", user_id="bob")
    store.remember_many(["tea " * 1_000] * 500, session_id="large", user_id="ann")
    for _ in range(2):
        for scope in ({}, {"user_id": "ann"}, {"session_ids": ["large", "small"]}):
            with pytest.raises(ScopeTooLarge) as caught:
                store.find(wait_s=60, **scope)
            assert caught.value.size_bytes > caught.value.bytes_max == 1_000_000
            assert caught.value.memories == 500 + (scope != {"user_id": "ann"})
        assert store.count(user_id="bob") == store.count(session_ids=["small", "unknown"]) == 1
    assert store.count("large") == 500, "a session always fits"
    store.forget_user("ann")
    assert store.count() == 1


def test_what_was_forgotten_is_answered_although_a_scope_grew_too_large_meanwhile(make_store):
    store = make_store(settings=Settings(pool_connections_max=8, views_bytes_max=1_000_000))
    other = make_store()
    memory = store.remember("tea", session_id="s")
    assert store.count() == 1  # a view of the whole tenant
    other.remember_many(["tea " * 1_000] * 500, session_id="large")
    erasure = store.forget(memory.id)
    assert erasure.memory_ids == (memory.id,)
    assert store.forget_session("s").position
    with pytest.raises(ScopeTooLarge):
        store.count()


# -- forgetting ------------------------------------------------------------------------------------------------------------


def held_in_ram(views: Views) -> bytes:
    """Everything the views of a store hold, free pages of their tables included."""
    parts = []
    for slot in list(views._slots.values()):
        view = slot.view
        if view is None:
            continue
        parts.append(view.table._db.serialize())
        slots = view.places.live()
        parts.append(
            repr([view.words.dump(slots), view.found_before, vars(view), vars(view.places), vars(view.table)]).encode()
        )
        parts.append(repr([vars(each) for each in (view.words, view.words._fresh, *view.words._segments)]).encode())
        parts.append(repr([vars(segment.vocabulary) for segment in view.words._segments]).encode())
        parts += [blob for pair in view._unembedded.values() for blob in pair]
        parts += [key.id for key in view.keys.values()]
    return b"\n".join(parts)


SECRET = "xylophone"
HOLDERS: list[dict[str, Any]] = [{"session_id": "s"}, {"session_ids": ["s", "t"]}, {"user_id": "aurelia"}, {}]


@pytest.mark.parametrize("verb", ["forget", "forget_where", "forget_session", "forget_user", "update then forget"])
def test_what_was_forgotten_is_in_no_scope_and_in_no_ram(make_store, verb):
    store, other = make_store(), make_store()
    kept = store.remember("tea for two", session_id="t", user_id="bob")
    store.remember("a cup of tea", session_id="s", user_id="aurelia")
    memory = store.remember(f"the {SECRET} is out of tune", session_id="s", user_id="aurelia", speaker="Vandersteen")
    store.remember("another cup of tea", session_id="s", user_id="aurelia")
    then = store.stats().position
    if verb == "update then forget":
        store.update(memory.id, content="the piano is out of tune", speaker="Bob")
    moments = [{}, {"as_of": then}, {"as_of": memory.created_at}]
    for scope in HOLDERS:
        for moment in moments:
            for reader in (store, other):
                reader.recall(f"{SECRET} tea", **scope, **moment)
                reader.recall(SECRET, where={"speaker": "Vandersteen"}, **scope, **moment)
    assert SECRET.encode() in held_in_ram(store._views)
    assert SECRET[:5].encode() in held_in_ram(store._views)

    if verb == "forget_where":
        store.forget_where("s", {"speaker": "Vandersteen"})
    elif verb == "forget_session":
        store.forget_session("s")
    elif verb == "forget_user":
        store.forget_user("aurelia")
    else:
        store.forget(memory.id)

    for word in (SECRET, "xylophon", "Vandersteen", "vandersteen"):
        assert word.encode() not in held_in_ram(store._views), word
    if verb in ("forget_session", "forget_user"):
        assert b"aurelia" not in held_in_ram(store._views)
    assert store.stats().views > 4, "dropping all views would do that too"
    gone = ids([memory])
    for scope in HOLDERS:
        for moment in moments:
            for reader in (store, other):
                assert not gone & ids(everything(reader, **scope, **moment))
                assert not gone & ids(hit.memory for hit in reader.recall(f"{SECRET} tea", limit=100, **scope, **moment))
    assert SECRET.encode() not in held_in_ram(other._views)
    assert kept.id in ids(everything(store))


@pytest.mark.parametrize("scope", [{"session_id": "s"}, {"user_id": "ann"}, {}], ids=str)
def test_what_is_forgotten_while_a_view_is_folded_for_the_first_time_does_not_stay_in_its_ram(make_store, monkeypatch, scope):
    store = make_store()
    memory = store.remember(f"the {SECRET}", session_id="s", user_id="ann")
    store.remember("tea", session_id="t", user_id="ann")
    pause = Pause(monkeypatch, Loader, "_fold")
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(store.find, wait_s=60, **scope)
        assert pause.reached.wait(PATIENCE_S)
        forgetting = pool.submit(store.forget_session, "s")
        time.sleep(0.5)  # it may be done by now, or wait for the view
        pause.go.set()
        reading.result(PATIENCE_S)
        assert forgetting.result(PATIENCE_S).memory_ids == (memory.id,)
    assert SECRET.encode() not in held_in_ram(store._views)
    assert memory.id not in ids(everything(store, **scope))


@pytest.mark.parametrize("scope", [{"user_id": "ann"}, {"session_ids": ["s", "t"]}], ids=str)
def test_nothing_is_withheld_for_ever_of_a_session_forgotten_while_it_was_folded(make_store, monkeypatch, scope):
    store, other = make_store(), make_store()
    store.remember("tea", session_id="s", user_id="ann")
    kept = store.remember("milk", session_id="t", user_id="ann")
    pause = Pause(monkeypatch, Loader, "_streams")
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(store.find, wait_s=60, **scope)
        assert pause.reached.wait(PATIENCE_S)
        other.forget_session("s")
        pause.go.set()
        assert ids(reading.result(PATIENCE_S).memories) == {kept.id}
    page = store.find(**scope)
    assert ids(page.memories) == {kept.id}
    assert page.withheld == 0


def test_a_name_that_means_another_session_by_now_brings_nothing_of_the_first(make_store):
    stores = [make_store() for _ in range(2)]
    for turn in range(4):
        user = f"u{turn % 2}"
        memory = stores[turn % 2].remember(f"tea {turn}", session_id="s", user_id=user)
        stores[turn % 2].remember("milk", session_id="t", user_id="keeper")
        for store in stores:
            for scope in ({"session_ids": ["s", "none"]}, {"user_id": user}, {"session_id": "s"}):
                assert ids(everything(store, **scope)) == {memory.id}
                assert [hit.memory.user_id for hit in store.recall("tea", **scope)] == [user]
            assert store.count(user_id=f"u{1 - turn % 2}") == 0
            assert store.count() == turn + 2
        (stores[1].forget_session if turn % 2 else stores[0].forget_user)("s" if turn % 2 else user)


# -- what makes no sense ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "scope",
    [
        {"session_id": "s", "user_id": "u"},
        {"session_id": "s", "session_ids": []},
        {"session_ids": ["s"], "user_id": "u"},
        {"session_ids": "s"},
        {"session_ids": b"s"},
        {"session_ids": 7},
        {"session_ids": [None]},
        {"session_ids": [""]},
        {"session_ids": ["a\0b"]},
        {"session_ids": [f"s{at}" for at in range(10_001)]},
        {"user_id": ""},
        {"user_id": 7},
        {"user_id": "x" * 513},
        {"session_id": False},
    ],
    ids=lambda scope: ", ".join(f"{name}={str(value)[:20]!a}" for name, value in scope.items()),
)
def test_a_scope_that_makes_no_sense_is_refused_by_every_verb(store, scope):
    for ask in (store.find, store.count, lambda **options: store.recall("tea", **options)):
        with pytest.raises(InvalidQuery):
            ask(**scope)


def test_ten_thousand_names_are_asked_at_once(store):
    store.remember("tea", session_id="s9999")
    names = [f"s{at}" for at in range(10_000)]
    assert store.count(session_ids=iter(names)) == 1
    assert [hit.memory.content for hit in store.recall("tea", session_ids=names)] == ["tea"]
