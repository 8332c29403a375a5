"""Questions about the past: the answer is that of a store that had stopped there, less what has been forgotten since.

Random histories are played, and played again up to some moment into a store of their own, which then forgets what the first
one forgot later. Both must say the same in every scope: the same memories, the same scores, in the same order.
"""

import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import psycopg
import pytest

from memfold import InvalidQuery, MemoryForgotten, MemoryNotFound, MemoryStore, Settings
from memfold.projections.recall import Recaller

PATIENCE_S = 20
T0 = datetime(2026, 1, 1, tzinfo=UTC)
DAY, SECOND, MICROSECOND = timedelta(days=1), timedelta(seconds=1), timedelta(microseconds=1)
ELSEWHERE = timezone(timedelta(hours=5, minutes=30))
VOCABULARY = ["tea", "milk", "lemon", "kettle", "cat", "parrot", "door", "key", "code", "garden", "train", "hotel"]
SESSIONS, PEOPLE = ("s", "t", "u"), ("ann", "bob")
SCOPES: list[dict[str, Any]] = [
    {},
    *({"session_id": session} for session in SESSIONS),
    {"session_ids": ["t", "s"]},
    *({"user_id": user} for user in PEOPLE),
]
BAD: list[Any] = [True, False, -1, 1.0, 2**63, "1", b"1", datetime(2026, 1, 1), T0.date(), [], datetime.max.replace(tzinfo=UTC)]

Step = tuple[str, dict[str, Any]]


class Clock:
    """Stands still until it is set."""

    def __init__(self, at: datetime = T0) -> None:
        self.at = at

    def __call__(self) -> datetime:
        return self.at


def contents(found: Any) -> list[str]:
    return [memory.content for memory in found]


def recalled(found: Any) -> set[str]:
    return {hit.memory.content for hit in found}


# -- histories -------------------------------------------------------------------------------------------------------------


class History:
    """What happened, step by step: at what time, and up to which position of the log."""

    def __init__(self, rand: random.Random, steps: int) -> None:
        self.steps: list[Step] = []
        self.times: list[datetime] = []
        self.count = 0
        owners: dict[str, str] = {}
        at = T0
        for _ in range(steps):
            at += rand.choice([timedelta(0), MICROSECOND, SECOND, DAY])
            self.times.append(at)
            self.steps.append(self._step(rand, owners))

    def _step(self, rand: random.Random, owners: dict[str, str]) -> Step:
        kind = rand.random()
        if kind < 0.6 or not self.count:
            session = rand.choice(SESSIONS)
            user = owners.setdefault(session, rand.choice(PEOPLE))
            first, many = self.count, 1 if kind < 0.4 else rand.randint(2, 4)
            self.count += many
            duplicates = rand.choice(["keep", "keep", "skip", "merge"])
            items = [self._memory(rand) for _ in range(many)]
            return "remember", {"session": session, "user": user, "items": items, "first": first, "duplicates": duplicates}
        if kind < 0.75:
            return "update", {
                "number": rand.randrange(self.count),
                "content": sentence(rand),
                "speaker": rand.choice([None, "Ann"]),
            }
        if kind < 0.85:
            return "forget", {"number": rand.randrange(self.count)}
        if kind < 0.92:
            return "forget_where", {"session": rand.choice(SESSIONS), "tag": rand.choice("ab")}
        if kind < 0.97:
            session = rand.choice(SESSIONS)
            owners.pop(session, None)
            return "forget_session", {"session": session}
        user = rand.choice(PEOPLE)
        for session in [session for session, other in owners.items() if other == user]:
            del owners[session]
        return "forget_user", {"user": user}

    def _memory(self, rand: random.Random) -> dict[str, Any]:
        return {
            "content": sentence(rand),
            "speaker": rand.choice([None, None, "Ann", "Bob"]),
            "importance": rand.choice([0.2, 0.5, 1.0]),
            "tags": rand.choice([[], ["a"], ["b"], ["a", "b"]]),
            "occurred_at": rand.choice([None, T0 - 3 * DAY, T0 + DAY]),
        }


def sentence(rand: random.Random) -> str:
    return " ".join(rand.choices(VOCABULARY, k=rand.randint(1, 4)))


class Play:
    """A history as one store saw it: the id that each number got, who was live after each step, and where the log stood."""

    def __init__(self, store: MemoryStore, clock: Clock) -> None:
        self.store, self.clock = store, clock
        self.ids: dict[int, str] = {}
        self.positions: list[int] = []
        self.written_at: list[datetime] = []  # when the newest event was recorded
        self.live: list[dict[str, str]] = []  # after each step, the ids that live, and in which session
        self.made: dict[str, int] = {}  # of each id, which making of its session it belongs to
        self.open: dict[str, tuple[int, str]] = {}  # of each session there is, which making it is, and whose
        self._makings = 0

    def step(self, step: Step, at: datetime, *, only: int | None = None) -> None:
        self.clock.at = at
        verb, what = step
        live = dict(self.live[-1]) if self.live else {}
        if verb == "remember":
            items = what["items"][:only]
            if what["session"] not in self.open:
                self._makings += 1
                self.open[what["session"]] = self._makings, what["user"]
            names = {"session_id": what["session"], "user_id": what["user"], "duplicates": what["duplicates"]}
            for number, memory in enumerate(self.store.remember_many(items, **names), what["first"]):
                self.ids[number] = memory.id
                live[memory.id] = what["session"]
                self.made.setdefault(memory.id, self.open[what["session"]][0])
        elif verb == "update":
            with suppress(MemoryForgotten):
                self.store.update(self.ids[what["number"]], content=what["content"], speaker=what["speaker"])
        else:
            for id in self._forgotten_by(verb, what):
                live.pop(id, None)
        self.live.append(live)
        # The fact that a user was forgotten has the server's time: the tenant's own stream began with that.
        written = list(self.store.events(self.positions[-1] if self.positions else 0))
        self.written_at.append(written[-1].recorded_at if written else self.written_at[-1])
        self.positions.append(self.store.stats().position)

    def _forgotten_by(self, verb: str, what: dict[str, Any]) -> tuple[str, ...]:
        if verb == "forget":
            return self.store.forget(self.ids[what["number"]]).memory_ids
        if verb == "forget_where":
            return self.store.forget_where(what["session"], {"tags": what["tag"]}).memory_ids
        if verb == "forget_session":
            self.open.pop(what["session"], None)
            return self.store.forget_session(what["session"]).memory_ids
        self.open = {session: made for session, made in self.open.items() if made[1] != what["user"]}
        return self.store.forget_user(what["user"]).memory_ids

    def numbers(self) -> dict[str, int]:
        """The first number of each id: what was said again has that of the first time."""
        return {id: number for number, id in sorted(self.ids.items(), reverse=True)}


def told(play: Play, store: MemoryStore, scope: dict[str, Any], questions: list[dict[str, Any]], **moment: Any) -> Any:
    """What a store says of a scope, without ids and positions."""
    numbers = play.numbers()

    def plain(memory: Any) -> Any:
        fields = {name: getattr(memory, name) for name in memory.__struct_fields__}
        return numbers[fields.pop("id")], fields

    said: list[Any] = [[plain(memory) for memory in store.find(order="oldest", limit=10_000, **scope, **moment).memories]]
    said.append([store.count(where={"tags": tag}, **scope, **moment) for tag in "ab"])
    for question in questions:
        found = store.recall(**question, limit=100, explain=True, **scope, **moment)
        said.append([(plain(hit.memory), hit.score, hit.parts) for hit in found])
    return said


def got(store: MemoryStore, id: str, moment: Any) -> Any:
    try:
        memory = store.get(id, as_of=moment)
    except (MemoryForgotten, MemoryNotFound) as error:
        return type(error)
    return memory.content, memory.version, memory.speaker, memory.tags


def withheld(play: Play, at: int, scope: dict[str, Any]) -> int:
    """How many memories of a scope lived after step `at` and do not any more, as far as their session is still known."""
    gone = [id for id in play.live[at] if id not in play.live[-1]]
    if not scope:
        return len(gone)
    whose = {making: (session, user) for session, (making, user) in play.open.items()}
    known = [whose[play.made[id]] for id in gone if play.made[id] in whose]
    if "user_id" in scope:
        return sum(user == scope["user_id"] for _, user in known)
    return sum(session in scope.get("session_ids", [scope.get("session_id")]) for session, _ in known)


def compare(make_store: Any, rand: random.Random, *, steps: int, cuts: int) -> None:
    """Play a history with questions about the past in between; then compare its moments with stores that had stopped there."""
    options: dict[str, Any] = {"settings": Settings(pool_connections_max=6, importance_weight=0.1, recency_weight=0.3)}
    history, clock, tenant = History(rand, steps), Clock(), f"tenant-{uuid.uuid4()}"
    store = make_store(tenant=tenant, clock=clock, **options)
    play = Play(store, clock)
    for step, at in zip(history.steps, history.times, strict=True):
        play.step(step, at)
        if rand.random() < 0.6:  # so that what is asked at the end was folded at some time before
            moment = rand.choice([rand.choice(play.positions), rand.choice(history.times[: len(play.positions)])])
            store.recall(sentence(rand), as_of=moment, **rand.choice(SCOPES))
    late = make_store(tenant=tenant, clock=clock, **options)
    clock.at = history.times[-1] + DAY
    for _ in range(cuts):
        at = rand.randrange(steps)
        same_time = [other for other, time in enumerate(history.times) if time <= history.times[at]]
        for moment, last in ((play.positions[at], at), (history.times[at].astimezone(ELSEWHERE), same_time[-1])):
            check(make_store, rand, history, play, late, moment, last, options)


def check(
    make_store: Any,
    rand: random.Random,
    history: History,
    play: Play,
    late: MemoryStore,
    moment: Any,
    last: int,
    options: dict[str, Any],
) -> None:
    clock = Clock()
    with make_store(tenant=f"tenant-{uuid.uuid4()}", clock=clock, **options) as stopped:
        past = Play(stopped, clock)
        for step, at in zip(history.steps[: last + 1], history.times, strict=False):
            past.step(step, at)
        clock.at = play.written_at[last] if isinstance(moment, int) else history.times[last]
        then = {number: got(stopped, id, None) for number, id in past.ids.items()}
        forget_the_same(past, play)
        questions = [{"query": sentence(rand)} for _ in range(3)] + [
            {"query": "what did Ann say of tea?", "where": {"tags": "a"}}
        ]
        questions.append({"query": "tea", "before": T0, "min_score": 0.2})
        for scope in SCOPES:
            expected = told(past, stopped, scope, questions)
            for store in (play.store, late):
                assert told(play, store, scope, questions, as_of=moment) == expected, (moment, scope)
                for answer in (store.find(as_of=moment, **scope), store.recall("tea", as_of=moment, **scope)):
                    assert answer.withheld == withheld(play, last, scope), (moment, scope)
                    assert answer.position <= play.positions[last]
        gone = past_and_gone(play)
        for id, number in play.numbers().items():
            known, lost = number in past.ids, MemoryForgotten if id in gone else None
            assert got(play.store, id, moment) == ((lost or then[number]) if known else MemoryNotFound)


def past_and_gone(play: Play) -> set[str]:
    return set(play.ids.values()) - play.live[-1].keys()


def forget_the_same(past: Play, play: Play) -> None:
    """What the whole history forgot after the moment is forgotten here too, session by session and memory by memory."""
    still = {made for made, _ in play.open.values()}
    for session, (made, _) in list(past.open.items()):
        if made not in still:
            past.store.forget_session(session)
    for number, id in past.ids.items():
        if id in past.live[-1] and play.ids[number] not in play.live[-1]:
            past.store.forget(id)


def test_the_past_is_what_a_store_that_had_stopped_there_says(make_store, rand):
    for _ in range(3):
        compare(make_store, rand, steps=16, cuts=3)


def test_it_is_so_when_slots_are_renumbered_all_the_time(make_store, rand, monkeypatch):
    monkeypatch.setattr("memfold.projections.places.EMPTY_MAX", 0)
    compare(make_store, rand, steps=24, cuts=3)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_the_past_of_sixty_longer_histories_is_so_too(make_store, rand):
    for _ in range(60):
        compare(make_store, rand, steps=40, cuts=6)


# -- one moment after another ----------------------------------------------------------------------------------------------


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(make_store, clock):
    return make_store(clock=clock)


ALL_SCOPES: list[dict[str, Any]] = [{"session_id": "s"}, {"session_ids": ["s", "t"]}, {"user_id": "ann"}, {}]


@pytest.mark.parametrize("scope", ALL_SCOPES, ids=str)
def test_every_position_and_every_time_shows_what_had_happened_by_then(store, clock, scope):
    memory = store.remember("tea", session_id="s", user_id="ann")
    clock.at += DAY
    store.update(memory.id, content="milk")
    clock.at += DAY
    other = store.remember("lemon", session_id="s")
    clock.at += DAY
    store.update(memory.id, content="garden")
    events = list(store.events())
    expected = [[], ["tea"], ["milk"], ["milk", "lemon"], ["garden", "lemon"]]
    for _ in range(2):
        for shown, begin, end in zip(expected, [None, *events], [*events, None], strict=True):
            moments: list[Any] = (
                [0] if begin is None else [begin.position, begin.recorded_at, begin.recorded_at.astimezone(ELSEWHERE)]
            )
            moments.append(clock() if end is None else end.recorded_at - MICROSECOND)
            if end is not None:
                moments.append(end.position - 1)
            for moment in moments:
                assert contents(store.find(as_of=moment, order="oldest", **scope).memories) == shown, moment
                assert store.count(as_of=moment, **scope) == len(shown)
                assert recalled(store.recall(" ".join(["tea milk lemon garden"]), as_of=moment, **scope)) == set(shown)
                for each, words in ((memory, shown[:1]), (other, shown[1:])):
                    if words:
                        assert store.get(each.id, as_of=moment).content == words[0]
                    else:
                        with pytest.raises(MemoryNotFound):
                            store.get(each.id, as_of=moment)


def test_events_of_one_time_are_all_there_at_that_time_and_none_just_before(store, clock):
    clock.at += DAY
    memories = store.remember_many(["tea", "milk", "lemon"], session_id="s")
    store.update(memories[0].id, content="garden")
    events = list(store.events())
    gone = store.remember("door", session_id="t")
    store.forget(gone.id)
    for _ in range(2):
        for scope in ({"session_id": "s"}, {}):
            page = store.find(as_of=clock.at, order="oldest", **scope)
            assert contents(page.memories) == ["garden", "milk", "lemon"]
            assert page.withheld == 0
            assert store.count(as_of=clock.at - MICROSECOND, **scope) == 0
        assert [store.count(as_of=event.position) for event in events] == [1, 2, 3, 3]
        # What comes later at the very same time belongs to that time too, also where it was looked at before.
        store.remember("hotel", session_id="s")
        assert store.count("s", as_of=clock.at) == store.count(as_of=clock.at) == 4
        store.forget(store.find("s").memories[0].id)


@pytest.mark.parametrize("scope", ALL_SCOPES, ids=str)
def test_what_was_remembered_and_forgotten_later_is_not_withheld_from_before(make_store, scope):
    store, late = make_store(), make_store()
    kept = store.remember("tea", session_id="s", user_id="ann")
    gone = store.remember("milk", session_id="s", user_id="ann")
    then = store.stats().position
    for reader in (store, late):
        assert reader.find(as_of=then, **scope).withheld == 0
    store.forget(store.remember("later", session_id="s", user_id="ann").id)
    store.remember("later", session_id="other", user_id="ann")
    for reader in (store, late):
        page = reader.find(as_of=then, order="oldest", **scope)
        assert (contents(page.memories), page.withheld) == (["tea", "milk"], 0)
    store.forget(gone.id)
    for reader in (store, late, make_store()):
        page = reader.find(as_of=then, **scope)
        assert (contents(page.memories), page.withheld) == (["tea"], 1)
        assert reader.recall("tea", as_of=then, **scope).withheld == 1
        assert reader.find(**scope).withheld == 0
    assert kept.id == store.find(as_of=then, **scope).memories[0].id


@pytest.mark.parametrize("verb", ["forget_session", "forget_user"])
def test_of_what_was_forgotten_as_a_whole_only_the_tenant_still_counts(make_store, verb):
    store, late = make_store(), make_store()
    for number in range(3):
        memory = store.remember(f"tea {number}", session_id="s", user_id="ann")
    kept = store.remember("milk", session_id="t", user_id="bob")
    store.forget(memory.id)
    then = store.stats().position
    scopes = [{"session_id": "s"}, {"session_ids": ["s", "t"]}, {"user_id": "ann"}, {}]
    counts = [2, 3, 2, 3]
    assert [store.count(as_of=then, **scope) for scope in scopes] == counts
    getattr(store, verb)("s" if verb == "forget_session" else "ann")
    store.remember("anew", session_id="s", user_id="ann")
    for reader in (store, late, make_store()):
        for _ in range(2):
            pages = [reader.find(as_of=then, **scope) for scope in scopes]
            assert [contents(page.memories) for page in pages] == [[], ["milk"], [], ["milk"]]
            assert [page.withheld for page in pages] == [0, 0, 0, 2]
        with pytest.raises(MemoryForgotten):
            reader.get(memory.id, as_of=then)
        with pytest.raises(MemoryNotFound):
            reader.get(kept.id, as_of=0)


def test_a_past_view_that_was_dropped_comes_back_the_same(make_store):
    store = make_store(settings=Settings(pool_connections_max=8, views_bytes_max=500_000))
    positions = []
    for number in range(12):
        store.remember(f"tea {number}", session_id=f"s{number % 2}", user_id="ann")
        positions.append(store.stats().position)
    for _ in range(2):
        for number, position in enumerate(positions, 1):
            assert store.count(as_of=position) == store.count(user_id="ann", as_of=position) == number
    assert store.stats().view_bytes <= 500_000


def test_pages_of_the_past_go_on_although_the_present_changes(store, clock):
    memories = store.remember_many([f"tea {number}" for number in range(10)], session_id="s")
    then = store.stats().position
    seen = []
    cursor = None
    for turn in range(10):
        page = store.find(as_of=then, order="oldest", limit=2, cursor=cursor)
        seen += contents(page.memories)
        cursor = page.cursor
        if cursor is None:
            break
        store.update(memories[turn].id, content=f"changed {turn}")
        store.remember("new", session_id="t")
        if turn == 1:
            store.forget(memories[9].id)
    assert seen == [f"tea {number}" for number in range(9)]


def test_without_time_the_past_of_a_large_scope_comes_in_parts_that_say_how_far_they_go(make_store):
    writer, store = make_store(), make_store()
    for number in range(5):
        writer.remember_many([f"tea {number} {at}" for at in range(1_000)], session_id=f"s{number}")
    then = writer.stats().position
    writer.remember_many(["later"] * 1_000, session_id="s0")
    where = {event.memory_id: event.position for event in writer.events()}
    counts = []
    for _ in range(10):
        page = store.find(as_of=then, limit=10_000, wait_s=0)
        assert {memory.id for memory in page.memories} == {id for id, at in where.items() if at <= page.position}
        counts.append(len(page.memories))
        if counts[-1] == 5_000:
            break
    assert len(counts) > 2
    assert counts == sorted(counts)
    assert counts[-1] == 5_000
    assert store.count(as_of=then) == 5_000


def test_a_position_below_which_a_transaction_is_still_open_is_looked_at_again(make_store, server_url):
    """A smaller position may be committed later: the past is not kept as final before it has settled."""
    store = make_store()
    store.remember("tea", session_id="s")
    with psycopg.connect(server_url) as owner:
        owner.execute("LOCK TABLE memfold.events IN ROW EXCLUSIVE MODE")
        store.remember("later", session_id="s")
        then = store.find("s").position
        assert store.count(as_of=then, wait_s=0.1) <= 2
        assert store.count("s", as_of=then) == 2
    assert store.count(as_of=then) == 2


@pytest.mark.parametrize("moment", BAD, ids=repr)
def test_what_is_no_moment_of_the_past_is_refused_by_every_verb(store, moment):
    memory = store.remember("tea", session_id="s")
    for ask in (
        store.find,
        store.count,
        lambda **options: store.recall("tea", **options),
        lambda **options: store.get(memory.id, **options),
    ):
        with pytest.raises(InvalidQuery) as caught:
            ask(as_of=moment)
        assert caught.value.argument == "as_of"


def test_the_future_is_refused_and_now_is_not(store, clock):
    memory = store.remember("tea", session_id="s")
    then = store.stats().position
    for moment in (clock.at, clock.at.astimezone(ELSEWHERE), then):
        assert store.count(as_of=moment) == store.count("s", as_of=moment) == 1
        assert store.get(memory.id, as_of=moment) == memory
    for moment in (clock.at + MICROSECOND, (clock.at + MICROSECOND).astimezone(ELSEWHERE), then + 1):
        for ask in (store.find, store.count, lambda **options: store.recall("tea", **options)):
            with pytest.raises(InvalidQuery):
                ask(as_of=moment)
        with pytest.raises(InvalidQuery):
            store.get(memory.id, as_of=moment)
    for moment in (0, clock.at - MICROSECOND, datetime(2, 1, 1, tzinfo=UTC)):
        page = store.find(as_of=moment)
        assert (page.memories, page.withheld, page.position) == ([], 0, 0)
        assert store.recall("tea", as_of=moment) == []
    assert store.recall("tea", session_id="unknown", as_of=then) == []


def test_a_tenant_s_position_is_that_of_its_own_log(make_store):
    store, stranger = make_store(), make_store(tenant=f"tenant-{uuid.uuid4()}")
    store.remember("tea", session_id="s")
    stranger.remember("milk", session_id="s")
    with pytest.raises(InvalidQuery):
        store.count(as_of=stranger.stats().position)
    assert stranger.count(as_of=store.stats().position) == 0


def test_how_old_a_memory_was_at_a_position_depends_on_the_moment_alone(make_store, clock):
    """Not on when the scope that is asked last changed: a week passed for all sessions alike."""
    store = make_store(clock=clock, settings=Settings(pool_connections_max=6, recency_weight=0.5))
    store.remember("tea in the garden", session_id="s", user_id="ann")
    clock.at += 60 * DAY
    store.remember("the train is late", session_id="t", user_id="bob")
    then = store.stats().position
    ranked: dict[str, Any] = {"ranking": "fixed", "explain": True}
    before = {str(scope): store.recall("tea", **ranked, **scope)[0].parts["recency"] for scope in ALL_SCOPES}
    clock.at += 60 * DAY
    for scope in ALL_SCOPES:
        for moment in (clock.at - 60 * DAY, then):
            found = store.recall("tea", as_of=moment, **ranked, **scope)
            assert found[0].parts["recency"] == pytest.approx(before[str(scope)]), moment


@pytest.mark.parametrize("scope", ALL_SCOPES, ids=str)
@pytest.mark.parametrize("verb", ["forget", "forget_session"])
def test_what_is_forgotten_while_a_context_of_the_past_is_put_together_is_not_in_it(make_store, monkeypatch, scope, verb):
    store = make_store()
    memory = store.remember("tea in the garden", session_id="s", user_id="ann")
    store.remember("milk", session_id="t", user_id="ann")
    then = store.stats().position
    reached, go = threading.Event(), threading.Event()
    recall = Recaller.recall

    def held(*args: Any) -> Any:
        found = recall(*args)
        reached.set()
        assert go.wait(PATIENCE_S)
        return found

    monkeypatch.setattr(Recaller, "recall", held)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(lambda: store.context("tea garden", as_of=then, max_tokens=1_000, **scope))
        assert reached.wait(PATIENCE_S)
        getattr(store, verb)("s" if verb == "forget_session" else memory.id)
        go.set()
        context = asking.result(PATIENCE_S)
    assert "garden" not in context.text
    assert memory.id not in context.memory_ids
