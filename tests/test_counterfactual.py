"""What was forgotten moves nothing: a session that forgot x equals, in every view and every score, one that never knew x.

Each history is drawn at random and played twice: with x in it, which is forgotten sooner or later, and without x in a session
beside it. Each is read through a view that was folded step by step, with recalls in between, and through one folded at the end.
"""

import random
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec
import pytest

from memfold import MemoryForgotten, MemoryStore, NewMemory, Settings
from memfold.embedding import Embedder
from memfold.minilm import MiniLMEmbedder, static_embedder
from memfold.model import Memory
from memfold.projections import fold, places
from memfold.projections.vectors import VectorIndex

T0 = datetime(2026, 1, 1, tzinfo=UTC)
NOW = T0 + timedelta(days=30)
QUERIES = 20
X = 0  # the number of the memory that is to be forgotten
WORDS = re.findall(
    r"\w+",
    """tea coffee milk lemon kettle cat dog parrot door window key code garden tulip train flight passport hotel Paris Oslo
    doctor allergy peanut insulin violin piano marathon bicycle mortgage salary birthday sister brother Anna Bob 茶 кофе
    naïve drinks drank likes hates forgot lost found booked cancelled moved yesterday tomorrow never always green black""",
)
SPEAKERS = [None, None, "Anna", "Bob", "Carla Diaz"]
TAGS = ["a", "b", "c"]

Step = tuple[str, dict[str, Any]]


class Play(NamedTuple):
    """A history as it was played: which session, and which id each of its memories got."""

    session_id: str
    ids: dict[int, str]


def sentence(rand: random.Random) -> str:
    return " ".join(rand.choices(WORDS, k=rand.randint(1, 12)))


def new_memory(rand: random.Random, number: int) -> dict[str, Any]:
    return {
        "content": sentence(rand),
        "speaker": rand.choice(SPEAKERS),
        "importance": rand.choice([0.0, 0.5, 1.0]),
        "tags": rand.sample(TAGS, rand.randint(0, 2)),
        "metadata": {"number": number} if rand.random() < 0.3 else None,
        "occurred_at": T0 + timedelta(minutes=rand.randrange(500)),
    }


def draw(rand: random.Random, steps: int, forgetful: float) -> list[Step]:
    """A history in which memory X is remembered, perhaps changed, and forgotten; and some of the others too."""
    history: list[Step] = []
    known: list[int] = []
    count, x_at = 1, rand.randrange(steps)
    for step in range(steps):
        kind = 0.8 + 0.12 * rand.random() if rand.random() < forgetful else rand.random()
        if step == x_at or kind < 0.45 or not known:
            number, count = (X, count) if step == x_at else (count, count + 1)
            history.append(("remember", {number: new_memory(rand, number)}))
            known.append(number)
        elif kind < 0.6:
            numbers = list(range(count, count := count + rand.randint(1, 6)))
            history.append(("remember_many", {number: new_memory(rand, number) for number in numbers}))
            known += numbers
        elif kind < 0.8:
            fields = new_memory(rand, step)
            del fields["occurred_at"], fields["metadata"]
            kept = rand.sample(sorted(fields), rand.randint(1, 3))
            history.append(
                ("update", {rand.choice([*known, X] if X in known else known): {name: fields[name] for name in kept}})
            )
        elif kind < 0.92:
            history.append(("forget", {rand.choice(known): None}))
        else:
            history.append(("forget_where", {"tags": rand.choice(TAGS), "importance": {"$gt": rand.choice([0.2, 0.7])}}))
    if rand.random() < 0.3:
        # In the middle of a batch as well as alone.
        found = next((at for at, (verb, _) in enumerate(history) if verb == "remember_many"), None)
        if found is not None and found > x_at:
            items = list(history[found][1].items())
            items.insert(rand.randint(0, len(items)), (X, history[x_at][1][X]))
            history[found] = ("remember_many", dict(items))
            history[x_at] = ("remember", {count: new_memory(rand, count)})
            history = (
                history[: x_at + 1]
                + [step for step in history[x_at + 1 : found] if step[0] not in ("update", "forget") or X not in step[1]]
                + history[found:]
            )
            x_at = next(at for at, (_, what) in enumerate(history) if X in what)
    at = rand.randint(x_at + 1, min(len(history), x_at + 3)) if rand.random() < 0.5 else rand.randint(x_at + 1, len(history))
    return [*history[:at], ("forget", {X: None}), *history[at:]]


def without_x(history: list[Step]) -> Iterator[Step]:
    for verb, what in history:
        if verb == "forget_where":
            yield verb, what
        elif rest := {number: value for number, value in what.items() if number != X}:
            yield verb, rest


def play(store: MemoryStore, session_id: str, history: list[Step], recall: Callable[[], None]) -> Play:
    ids: dict[int, str] = {}
    for verb, what in history:
        if verb == "remember":
            for number, fields in what.items():
                ids[number] = store.remember(session_id=session_id, user_id="u", **fields).id
        elif verb == "remember_many":
            memories = store.remember_many(
                [NewMemory(**fields) for fields in what.values()], session_id=session_id, user_id="u"
            )
            ids |= {number: memory.id for number, memory in zip(what, memories, strict=True)}
        elif verb == "update":
            for number, fields in what.items():
                try:
                    store.update(ids[number], **fields)
                except MemoryForgotten:
                    pass
        elif verb == "forget":
            for number in what:
                store.forget(ids[number])
        else:
            store.forget_where(session_id, what)
        recall()
    return Play(session_id, ids)


def state(store: MemoryStore, played: Play) -> Any:
    """Everything the view holds of the memories other than X, without what is numbered or timed by the log."""
    numbers = {memory_id: number for number, memory_id in played.ids.items()}
    embedder = store.stats(played.session_id).embedder
    with store._views.session(played.session_id) as view:
        if view is None:
            return None
        assert view.lacks(embedder) == []
        rows, past, words, vectors = view.dump(embedder)
        order = [numbers[view.table._memory(row).id] for row in rows]
    plain_rows = [(number, row[1:9], row[11:13]) for number, row in zip(order, rows, strict=True)]
    plain_past = [
        (numbers[fold.memory_id_text(memory_id)], version, kind, blob and plain(blob))
        for memory_id, version, kind, _, _, blob in past
    ]
    return plain_rows, sorted((entry for entry in plain_past if entry[0] != X), key=repr), words, vectors


def plain(blob: bytes) -> Any:
    memory = msgspec.msgpack.decode(blob, type=Memory)
    return memory.content, memory.speaker, memory.importance, memory.tags, memory.metadata, memory.version


def answers(store: MemoryStore, played: Play, questions: list[dict[str, Any]]) -> Any:
    numbers = {memory_id: number for number, memory_id in played.ids.items()}
    found = [store.recall(session_id=played.session_id, explain=True, **question) for question in questions]
    # An empty session has no vectors and no model, except that it has been asked.
    return [[(numbers[hit.memory.id], hit.memory.content, hit.score, hit.parts) for hit in one] for one in found]


def questions(rand: random.Random, history: list[Step]) -> list[dict[str, Any]]:
    """Queries of every kind, among them the words of X itself."""
    x = next(what[X] for verb, what in history if X in what and verb.startswith("remember"))
    asked: list[dict[str, Any]] = [{"query": x["content"]}, {"query": f"what did {x['speaker']} say?"}]
    while len(asked) < QUERIES:
        question: dict[str, Any] = {"query": sentence(rand), "limit": rand.choice([1, 3, 10, 10_000])}
        if rand.random() < 0.3:
            question["where"] = {"tags": rand.choice(TAGS)}
        if rand.random() < 0.2:
            question["before"] = T0 + timedelta(minutes=rand.randrange(500))
        if rand.random() < 0.3:
            question["ranking"] = "fixed"
        asked.append(question)
    return asked


def compare(
    make_store: Callable[..., MemoryStore],
    embedder: Embedder,
    seeds: list[int],
    *,
    steps: tuple[int, int],
    forgetful: float = 0.0,
) -> None:
    options: dict[str, Any] = {"embedder": embedder, "clock": lambda: NOW}
    weighed = Settings(pool_connections_max=8, importance_weight=0.1, recency_weight=0.2)
    live, late = make_store(settings=weighed, **options), make_store(settings=weighed, **options)
    for seed in seeds:
        rand = random.Random(seed)
        history = draw(rand, rand.randint(*steps), forgetful)
        pauses = rand.choice([0.0, 0.2, 1.0])

        def recall_at_times(name: str, rand: random.Random = rand, pauses: float = pauses) -> Callable[[], None]:
            def recall() -> None:
                if rand.random() < pauses:
                    live.recall(sentence(rand), session_id=name)

            return recall

        names = f"with {seed}", f"without {seed}"
        known = play(live, names[0], history, recall_at_times(names[0]))
        unknown = play(live, names[1], list(without_x(history)), recall_at_times(names[1]))
        asked = questions(rand, history)

        expected = answers(late, unknown, asked)
        for store, played in ((live, known), (late, known), (live, unknown)):
            assert answers(store, played, asked) == expected, f"seed {seed}: answers differ"
        wanted = state(late, unknown)
        if wanted is None:  # without X nothing was ever remembered
            assert live.count(names[0]) == 0
            continue
        for store, played in ((live, known), (late, known), (live, unknown)):
            assert state(store, played) == wanted, f"seed {seed}: views differ"


@pytest.fixture
def renumbered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Views are renumbered after a few forgets instead of a thousand; how many rows each renumbering of vectors left."""
    left: list[int] = []
    real = VectorIndex.renumber

    def renumber(index: VectorIndex, kept: Any) -> None:
        real(index, kept)
        left.append(len(kept))

    monkeypatch.setattr(places, "EMPTY_MAX", 1)
    monkeypatch.setattr(VectorIndex, "renumber", renumber)
    return left


def seeds(rand: random.Random, count: int) -> list[int]:
    return [rand.randrange(2**32) for _ in range(count)]


def test_a_session_that_forgot_something_equals_one_that_never_knew_it(make_store, rand):
    compare(make_store, static_embedder(), seeds(rand, 28), steps=(3, 20))


def test_it_does_so_after_its_slots_were_renumbered(make_store, rand, renumbered):
    compare(make_store, static_embedder(), seeds(rand, 12), steps=(10, 40), forgetful=0.35)
    assert renumbered


def test_it_does_so_with_the_embedder_of_a_store_that_was_given_none(make_store, rand):
    compare(make_store, MiniLMEmbedder(), seeds(rand, 2), steps=(3, 10))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_five_hundred_sessions_that_forgot_something_equal_those_that_never_knew_it(make_store, rand):
    compare(make_store, static_embedder(), seeds(rand, 500), steps=(3, 40))


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_two_hundred_do_so_after_their_slots_were_renumbered(make_store, rand, renumbered):
    compare(make_store, static_embedder(), seeds(rand, 200), steps=(10, 120), forgetful=0.4)
    assert len(renumbered) > 50


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fifty_do_so_with_the_embedder_of_a_store_that_was_given_none(make_store, rand):
    compare(make_store, MiniLMEmbedder(), seeds(rand, 50), steps=(3, 25))
