"""What is said twice: kept, skipped or merged; within a batch, by many processes at once, retried, changed and forgotten."""

import random
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from zlib import crc32

import numpy as np
import pytest

from memfold import (
    EmbedderFailed,
    IdempotencyConflict,
    InvalidMemory,
    MemoryForgotten,
    SessionOwnerConflict,
)
from memfold.api import operations
from memfold.events import MemoryMerged, MemoryRemembered
from memfold.projections.duplicates import Duplicates

PATIENCE_S = 20
T0 = datetime(2026, 1, 1, tzinfo=UTC)


class Words:
    """A small model: each word points somewhere; the vector of a text is the sum of its words. It may be told to fail."""

    def __init__(self, name="words-64"):
        self.name = name
        self.poison = ""

    def encode(self, texts):
        if self.poison and any(self.poison in text for text in texts):
            raise RuntimeError("cannot digest this")
        return np.array([self.vector(text) for text in texts], np.float32)

    def vector(self, text):
        total = np.zeros(64)
        for word in text.lower().split():
            total += np.random.default_rng(crc32(word.encode())).normal(size=64)
        return total / (np.linalg.norm(total) or 1)


def contents(store, session_id="s"):
    return [memory.content for memory in store.find(session_id, order="oldest", limit=10_000).memories]


def types(store, memory_id):
    return [change.type for change in store.history(memory_id)]


def types_logged(store):
    return [event.type for event in store.events()]


class Pause:
    """Stops the next caller of a method after it did its work, until told to go on."""

    def __init__(self, monkeypatch, of, name):
        self.reached, self.go = threading.Event(), threading.Event()
        work, armed = getattr(of, name), threading.Lock()

        def call(*args, **options):
            result = work(*args, **options)
            if armed.acquire(blocking=False):
                self.reached.set()
                assert self.go.wait(PATIENCE_S)
            return result

        monkeypatch.setattr(of, name, call)


# -- what each choice does -------------------------------------------------------------------------------------------------


def test_the_same_text_is_kept_skipped_or_merged(store):
    first = store.remember("tea", session_id="s", tags=["a"], metadata={"x": 1, "y": 1}, importance=0.3, category="fact")
    kept = store.remember("tea", session_id="s")
    assert kept.id != first.id
    store.forget(kept.id)
    skipped = store.remember("tea", session_id="s", tags=["b"], importance=1.0, duplicates="skip")
    assert skipped == first
    said = {"tags": ["b", "a"], "metadata": {"y": 2, "z": 2}, "importance": 0.9, "role": "user", "category": "plan"}
    merged = store.remember("tea", session_id="s", duplicates="merge", **said)
    assert merged == store.get(first.id)
    assert (merged.id, merged.version, merged.importance) == (first.id, 2, 0.9)
    assert (merged.tags, merged.metadata) == (("a", "b"), {"x": 1, "y": 1, "z": 2})
    assert (merged.content, merged.role, merged.category, merged.created_at) == ("tea", None, "fact", first.created_at)
    assert store.remember("tea", session_id="s", importance=0.1, duplicates="merge").importance == 0.9
    assert types(store, first.id) == ["remembered", "merged", "merged"]
    assert store.stats("s").memories == store.count("s") == 1
    assert types_logged(store).count("MemoryMerged") == 2


def test_another_speaker_and_another_session_said_something_else(store):
    store.remember("tea", session_id="s")
    speakers = [None, "Ann", "Bob", "ann"]
    ids = {store.remember("tea", session_id="s", speaker=speaker, duplicates="skip").id for speaker in speakers}
    assert len(ids) == 4
    again = {store.remember("tea", session_id="s", speaker=speaker, duplicates="merge").id for speaker in speakers}
    assert again == ids
    assert store.remember("tea", session_id="t", duplicates="skip").id not in ids
    assert [memory.version for memory in store.find("s", order="oldest").memories] == [2, 2, 2, 2]


@pytest.mark.parametrize("said", ["tea", " tea", "tea  ", "\ttea", "tea\n", "\u3000tea\u00a0", "\r\n tea \u2028"], ids=ascii)
@pytest.mark.parametrize("stored", ["tea", " tea ", "tea\n", "\u00a0tea"], ids=ascii)
def test_space_around_a_text_makes_no_difference_alone_or_in_a_batch(store, stored, said):
    first = store.remember(stored, session_id="s")
    assert store.remember(said, session_id="s", duplicates="skip").id == first.id
    assert store.get(first.id).content == stored
    one, other = store.remember_many([stored, said], session_id="t", duplicates="skip")
    assert one.id == other.id
    assert contents(store, "t") == [stored]


@pytest.mark.parametrize("other", ["Tea", "te a", "tea.", "tea tea", "téa", "ｔea", "tea\u200b", "%", "te_", "t*"])
def test_whatever_else_differs_is_another_text(store, other):
    store.remember("tea", session_id="s")
    assert store.remember(other, session_id="s", duplicates="skip").content == other
    assert store.count("s") == 2


def test_a_batch_names_a_memory_for_each_item(store):
    known = store.remember("milk", session_id="s")
    items = ["tea", "milk", "tea", {"content": "tea", "speaker": "Ann"}, "lemon", {"content": "tea", "name": "Ann"}]
    found = store.remember_many(items, session_id="s", duplicates="skip")
    assert [memory.content for memory in found] == ["tea", "milk", "tea", "tea", "lemon", "tea"]
    assert found[0] == found[2] != found[3] == found[5]
    assert found[1] == known
    assert contents(store) == ["milk", "tea", "tea", "lemon"]
    assert [store.get(memory.id) for memory in found] == found
    assert store.remember_many(items, session_id="s", duplicates="skip") == found
    merged = store.remember_many(items, session_id="s", duplicates="merge")
    assert [store.get(memory.id) for memory in merged] == merged
    assert [memory.id for memory in merged] == [memory.id for memory in found]
    assert [memory.version for memory in merged] == [3, 2, 3, 3, 2, 3]
    assert store.count("s") == 4


def test_a_batch_of_nothing_new_says_the_same_thing_many_times(store):
    memories = store.remember_many(
        [{"content": "tea", "tags": [f"t{at}"]} for at in range(20)], session_id="s", duplicates="merge"
    )
    assert len({memory.id for memory in memories}) == store.count("s") == 1
    assert memories[0] == memories[-1] == store.get(memories[0].id)
    assert memories[0].version == 20
    assert memories[0].tags == tuple(f"t{at}" for at in range(20))
    assert types(store, memories[0].id) == ["remembered"] + 19 * ["merged"]


def test_a_duplicate_in_a_session_of_somebody_else_is_refused_like_anything(store):
    store.remember("tea", session_id="s", user_id="ann")
    for duplicates in ("skip", "merge"):
        with pytest.raises(SessionOwnerConflict):
            store.remember("tea", session_id="s", user_id="bob", duplicates=duplicates)
    assert len(types_logged(store)) == 1


@pytest.mark.parametrize(
    "options",
    [
        *({"duplicates": value} for value in ("Skip", "", None, True, ["skip"], b"skip")),
        *(
            {"duplicates": way, "duplicate_similarity": value}
            for way in ("keep", "skip")
            for value in (0, -1, 1.01, True, "1", None)
        ),
        {"duplicates": "merge", "duplicate_similarity": float("nan")},
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused_and_nothing_is_stored(store, options):
    with pytest.raises(InvalidMemory):
        store.remember("tea", session_id="s", **options)
    with pytest.raises(InvalidMemory):
        store.remember_many(["tea", "tea"], session_id="s", **options)
    assert types_logged(store) == []


# -- changed and forgotten -------------------------------------------------------------------------------------------------


def test_a_text_that_was_changed_is_no_duplicate_any_more_and_may_become_one(store):
    first = store.remember("tea", session_id="s")
    store.update(first.id, content="milk")
    anew = store.remember("tea", session_id="s", duplicates="skip")
    assert anew.id != first.id
    assert store.remember("milk", session_id="s", duplicates="skip").id == first.id
    store.update(first.id, speaker="Ann")
    assert store.remember("milk", session_id="s", duplicates="skip").id != first.id
    assert store.remember("milk", session_id="s", speaker="Ann", duplicates="merge").id == first.id


def test_of_equal_memories_the_oldest_is_the_one(store):
    memories = [store.remember("tea", session_id="s") for _ in range(3)]
    assert store.remember("tea", session_id="s", duplicates="skip").id == memories[0].id
    store.forget(memories[0].id)
    assert store.remember("tea", session_id="s", duplicates="merge").id == memories[1].id


@pytest.mark.parametrize("verb", ["forget", "forget_where", "forget_session", "forget_user"])
@pytest.mark.parametrize("duplicates", ["skip", "merge"])
def test_what_was_forgotten_is_remembered_anew_and_nothing_of_it_comes_back(make_store, verb, duplicates):
    store, other = make_store(), make_store()
    first = store.remember("tea", session_id="s", user_id="ann", tags=["old"], importance=0.9, metadata={"old": 1})
    store.remember("tea", session_id="s", tags=["older"], duplicates="merge")
    other.remember("tea", session_id="s", duplicates="skip")
    argument = {"forget": first.id, "forget_session": "s", "forget_user": "ann"}
    if verb == "forget_where":
        store.forget_where("s", {"tags": "older"})
    else:
        getattr(store, verb)(argument[verb])
    for writer in (other, store):
        anew = writer.remember("tea", session_id="s", tags=["new"], importance=0.1, duplicates=duplicates)
        assert anew.id != first.id
        assert (anew.tags, anew.metadata, anew.importance) == (("new",), {}, 0.1)
        store.forget(anew.id)
    with pytest.raises(MemoryForgotten):
        store.get(first.id)
    assert all(change.memory is None for change in store.history(first.id))


@pytest.mark.parametrize("verb", ["forget", "forget_session", "forget_user", "update"])
@pytest.mark.parametrize("duplicates", ["skip", "merge"])
def test_what_is_gone_while_a_duplicate_is_looked_for_is_not_counted_on(make_store, monkeypatch, verb, duplicates):
    store, other = make_store(), make_store()
    first = store.remember("tea", session_id="s", user_id="ann", tags=["old"])
    pause = Pause(monkeypatch, Duplicates, "known")
    with ThreadPoolExecutor(1) as pool:
        # The second is new, so that something is appended in any case.
        saying = pool.submit(store.remember_many, ["tea", "milk"], session_id="s", user_id="ann", duplicates=duplicates)
        assert pause.reached.wait(PATIENCE_S)
        if verb == "update":
            other.update(first.id, content="lemon")
        else:
            getattr(other, verb)({"forget": first.id, "forget_session": "s", "forget_user": "ann"}[verb])
        pause.go.set()
        tea, milk = saying.result(PATIENCE_S)
    assert tea.id != first.id
    assert (tea.tags, tea.version) == ((), 1)
    assert store.get(tea.id) == other.get(tea.id) == tea
    assert store.get(milk.id) == milk


# -- many at once ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicates", ["skip", "merge"])
def test_many_threads_of_two_processes_that_say_the_same_at_once_remember_it_once(make_store, duplicates):
    stores = [make_store(), make_store()]
    for turn in range(3):
        start = threading.Barrier(12)

        def say(number, turn=turn, start=start):
            start.wait()
            return stores[number % 2].remember(f"tea {turn}", session_id="s", tags=[f"t{number}"], duplicates=duplicates)

        with ThreadPoolExecutor(12) as pool:
            said = list(pool.map(say, range(12)))
        assert len({memory.id for memory in said}) == 1
        memory = stores[0].get(said[0].id)
        assert stores[1].count("s") == turn + 1
        if duplicates == "merge":
            assert sorted(each.version for each in said) == list(range(1, 13))
            assert set(memory.tags) == {f"t{number}" for number in range(12)}
            assert memory in said
        else:
            assert said == 12 * [memory]
    assert len(types_logged(stores[0])) == (36 if duplicates == "merge" else 3)


def test_many_that_say_different_things_in_one_session_all_get_their_turn(make_store):
    stores = [make_store(), make_store()]
    start = threading.Barrier(12)

    def say(number):
        start.wait()
        return [stores[number % 2].remember(f"tea {number} {turn}", session_id="s", duplicates="skip").id for turn in range(4)]

    with ThreadPoolExecutor(12) as pool:
        said = [id for each in pool.map(say, range(12)) for id in each]
    assert len(set(said)) == stores[0].count("s") == 48


def test_batches_that_overlap_remember_each_text_once(make_store, rand):
    stores = [make_store(), make_store()]
    texts = [f"tea {at}" for at in range(20)]
    batches = [rand.sample(texts, 8) + rand.choices(texts, k=4) for _ in range(10)]

    def say(number):
        return stores[number % 2].remember_many(batches[number], session_id="s", duplicates="skip")

    with ThreadPoolExecutor(10) as pool:
        said = list(pool.map(say, range(10)))
    for batch, memories in zip(batches, said, strict=True):
        assert [memory.content for memory in memories] == batch
    assert len({(memory.id, memory.content) for each in said for memory in each}) == len(
        {text for each in batches for text in each}
    )
    assert sorted(contents(stores[0])) == sorted({text for each in batches for text in each})


# -- idempotency keys ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("duplicates", ["skip", "merge"])
def test_a_retry_gives_the_first_answer_and_adds_nothing(make_store, duplicates):
    store, other = make_store(), make_store()
    store.remember("milk", session_id="s")
    options = {"session_id": "s", "duplicates": duplicates, "idempotency_key": "k"}
    first = store.remember_many(["tea", "milk", "tea"], **options)
    count = len(types_logged(store))
    for each in (store, other):
        assert [memory.id for memory in each.remember_many(["tea", "milk", "tea"], **options)] == [
            memory.id for memory in first
        ]
    assert len(types_logged(store)) == count


@pytest.mark.parametrize("duplicates", ["skip", "merge"])
def test_a_key_that_was_used_for_something_else_is_refused(make_store, duplicates):
    store, other = make_store(), make_store()
    options = {"session_id": "s", "idempotency_key": "k"}
    store.remember("milk", session_id="s")
    store.remember("tea", duplicates=duplicates, **options)
    for each in (store, other):
        for said in ("milk", "lemon"):
            for again in ("keep", "skip", "merge"):
                with pytest.raises(IdempotencyConflict):
                    each.remember(said, duplicates=again, **options)
        with pytest.raises(IdempotencyConflict):
            each.remember_many(["tea", "tea"], duplicates=duplicates, **options)
    assert len(types_logged(store)) == 2


@pytest.mark.parametrize("duplicates", ["skip", "merge"])
def test_a_retry_of_what_was_forgotten_since_says_so(make_store, duplicates):
    store = make_store()
    options = {"session_id": "s", "idempotency_key": "k", "duplicates": duplicates}
    memory = store.remember("tea", **options)
    store.forget(memory.id)
    for each in (store, make_store()):
        with pytest.raises(MemoryForgotten):
            each.remember("tea", **options)
    assert store.count("s") == 0


@pytest.mark.parametrize("duplicates", ["skip", "merge"])
def test_a_retry_after_the_text_was_changed_names_the_memory_that_was_made(make_store, duplicates):
    store = make_store()
    options = {"session_id": "s", "idempotency_key": "k", "duplicates": duplicates}
    first = store.remember("tea", **options)
    store.update(first.id, content="milk")
    count = len(types_logged(store))
    again = store.remember("tea", **options)
    assert len(types_logged(store)) == count
    assert again.id == first.id
    assert store.get(again.id).content == "milk"


def test_a_key_of_a_merge_is_no_key_of_something_kept(make_store):
    store = make_store()
    store.remember("tea", session_id="s")
    store.remember("tea", session_id="s", duplicates="merge", idempotency_key="k")
    store.remember_many(["tea", "milk"], session_id="s", duplicates="skip", idempotency_key="l")
    count = len(types_logged(store))
    with pytest.raises(IdempotencyConflict):
        store.remember("tea", session_id="s", idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        store.remember_many(["tea", "milk"], session_id="s", idempotency_key="l")
    assert len(types_logged(store)) == count


@pytest.mark.xfail(strict=True, reason="a key is kept with the events of a call, and there are none")
def test_a_retry_of_a_call_that_added_nothing_adds_nothing(make_store):
    store = make_store()
    first = store.remember("tea", session_id="s")
    options = {"session_id": "s", "idempotency_key": "k", "duplicates": "skip"}
    assert store.remember("tea", **options).id == first.id
    store.update(first.id, content="milk")
    assert store.remember("tea", **options).id == first.id
    assert store.count("s") == 1


def test_many_retries_at_once_make_one_memory(make_store):
    stores = [make_store(), make_store()]
    start = threading.Barrier(10)

    def say(number):
        start.wait()
        return stores[number % 2].remember("tea", session_id="s", duplicates="merge", idempotency_key="k")

    with ThreadPoolExecutor(10) as pool:
        said = list(pool.map(say, range(10)))
    assert len({memory.id for memory in said}) == 1
    assert types_logged(stores[0]) == ["MemoryRemembered"]


# -- nearly the same -------------------------------------------------------------------------------------------------------

LONG = "please remember that we always drink green tea with lemon in the garden"


def test_nearly_the_same_is_the_same_from_the_similarity_asked_for(make_store):
    embedder = Words()
    store = make_store(embedder=embedder)
    first = store.remember(LONG, session_id="s")
    near = LONG.replace("always", "often")
    cosine = float(embedder.vector(LONG) @ embedder.vector(near))
    assert 0.5 < cosine < 0.99
    options = {"session_id": "s", "duplicates": "skip"}
    assert store.remember(near, duplicate_similarity=cosine - 0.01, **options).id == first.id
    assert store.remember(LONG.upper(), duplicate_similarity=0.999, **options).id == first.id
    assert store.remember(near, duplicate_similarity=cosine + 0.01, **options).id != first.id
    assert store.count("s") == 2


def test_the_nearest_is_the_one_and_equal_text_before_all(make_store):
    store = make_store(embedder=Words())
    texts = ["tea with milk and lemon", "tea with milk and sugar", "tea with milk and honey"]
    memories = [store.remember(text, session_id="s") for text in texts]
    options = {"session_id": "s", "duplicates": "skip", "duplicate_similarity": 0.3}
    assert [store.remember(text, **options).id for text in texts] == [memory.id for memory in memories]
    assert store.remember("milk with sugar and tea", **options).id == memories[1].id
    assert [each.id for each in store.remember_many(texts, **options)] == [memory.id for memory in memories]
    assert store.count("s") == 3


def test_within_a_batch_what_is_nearly_the_same_is_remembered_once(make_store):
    store = make_store(embedder=Words())
    items = [LONG, "the train is late", LONG.replace("always", "often"), LONG.upper(), {"content": LONG, "speaker": "Ann"}]
    found = store.remember_many(items, session_id="s", duplicates="merge", duplicate_similarity=0.8)
    assert [memory.id == found[0].id for memory in found] == [True, False, True, True, False]
    assert found[0].version == 3
    assert [store.get(memory.id) for memory in found] == found
    assert store.count("s") == 3


def test_another_speaker_never_says_nearly_the_same(make_store):
    store = make_store(embedder=Words())
    store.remember(LONG, session_id="s", speaker="Ann")
    options = {"session_id": "s", "duplicates": "skip", "duplicate_similarity": 0.1}
    for speaker in (None, "Bob"):
        assert store.remember(LONG + " today", speaker=speaker, **options).speaker == speaker
    assert store.remember(LONG + " today", speaker="Ann", **options).content == LONG


def test_rows_that_nobody_has_embedded_are_compared_too(make_store):
    first = make_store(embedder=Words("one"))
    memory = first.remember(LONG, session_id="s")
    first.remember_many([f"something else {at}" for at in range(50)], session_id="s")
    first.close()
    store = make_store(embedder=Words("another"))
    options = {"session_id": "s", "duplicates": "skip", "duplicate_similarity": 0.8}
    assert store.remember(LONG.replace("always", "often"), **options).id == memory.id
    store.update(memory.id, content="nothing of it")
    assert store.remember(LONG.replace("always", "often"), **options).id != memory.id
    store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == 0


def test_an_embedder_that_fails_stores_nothing(make_store):
    embedder = Words()
    store = make_store(embedder=embedder)
    store.remember("the poison of the past", session_id="s")
    embedder.poison = "poison"
    options = {"duplicates": "merge", "duplicate_similarity": 0.9}
    with pytest.raises(EmbedderFailed):
        store.remember("more poison", session_id="new", **options)
    with pytest.raises(EmbedderFailed):
        store.remember_many(["tea", "more poison", "milk"], session_id="s", **options)
    assert len(types_logged(store)) == 1
    other = Words("words-other")
    other.poison = "poison"
    failing = make_store(embedder=other)
    with pytest.raises(EmbedderFailed):
        failing.remember("tea", session_id="s", **options)  # what is there already cannot be compared with
    assert len(types_logged(store)) == 1
    embedder.poison = other.poison = ""
    assert failing.remember("the poison of the past", session_id="s", **options).version == 2


def test_equal_text_needs_no_embedder(make_store):
    embedder = Words()
    store = make_store(embedder=embedder)
    store.remember("tea", session_id="s")
    embedder.poison = "e"
    assert store.remember("tea", session_id="s", duplicates="skip").version == 1
    assert store.remember("tea", session_id="s", duplicates="merge").version == 2


@pytest.mark.parametrize("duplicates", ["skip", "merge"])
def test_two_processes_that_say_nearly_the_same_at_once_remember_it_once(make_store, duplicates):
    stores = [make_store(embedder=Words()) for _ in range(2)]
    start = threading.Barrier(8)

    def say(number):
        start.wait()
        text = " ".join(random.Random(number).sample(LONG.split(), len(LONG.split())))  # a sum minds no order
        return stores[number % 2].remember(text, session_id="s", duplicates=duplicates, duplicate_similarity=0.99)

    with ThreadPoolExecutor(8) as pool:
        said = list(pool.map(say, range(8)))
    assert len({memory.id for memory in said}) == stores[0].count("s") == 1


# -- a merge is an event like any other ------------------------------------------------------------------------------------


def played(store, session_id, rand):
    """A history with merges in it; the ids of its memories."""
    ids = []
    for turn in range(25):
        word = rand.choice(["tea", "milk", "lemon", "green tea"])
        fields = {
            "tags": rand.sample(["a", "b", "c"], 1),
            "metadata": {f"k{rand.randrange(3)}": turn},
            "importance": rand.random(),
        }
        kind = rand.random()
        if kind < 0.7 or not ids:
            duplicates = rand.choice(["merge", "merge", "skip", "keep"])
            ids.append(store.remember(word, session_id=session_id, duplicates=duplicates, **fields).id)
        elif kind < 0.85:
            try:
                store.update(rand.choice(ids), content=word, tags=fields["tags"])
            except MemoryForgotten:
                continue
        else:
            store.forget(rand.choice(ids))
    return ids


def test_merges_are_replayed_rebuilt_audited_and_embedded_like_anything(make_store, rand):
    store = make_store()
    ids = played(store, "s", rand)
    store.remember("tea", session_id="s")
    store.remember("tea", session_id="s", tags=["z"], duplicates="merge")
    store.recall("tea", session_id="s")
    store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == store.stats("s").embedding_lag == 0

    memories = store.find("s", order="oldest").memories
    late = make_store()
    assert late.find("s", order="oldest").memories == memories
    assert [(hit.memory, hit.score) for hit in late.recall("tea", session_id="s")] == [
        (hit.memory, hit.score) for hit in store.recall("tea", session_id="s")
    ]
    folded = sorted(operations.fold(store, "s", 0, None), key=lambda memory: memory.id)
    assert folded == sorted(memories, key=lambda memory: memory.id)
    for vectors in (False, True):
        assert all(rebuilt.same for rebuilt in operations.rebuild(store, "s", vectors=vectors))
    audit = operations.audit(store, [], None)
    assert audit.ok
    assert audit.log.findings == []
    merged = [event for event in store.events() if event.type == "MemoryMerged"]
    assert merged
    assert all(event.data is None or isinstance(event.data, MemoryMerged) for event in merged)
    for id in set(ids):
        changes = store.history(id)
        assert [change.version for change in changes] == list(range(1, len(changes) + 1))
        assert changes[0].type == "remembered"
        assert {change.type for change in changes} <= {"remembered", "updated", "merged", "forgotten"}


def answer(store, question):
    found = store.recall(question, session_id="s")
    return [(hit.memory.content, hit.memory.tags, hit.memory.version, hit.score, hit.parts) for hit in found]


def test_forgetting_what_was_merged_leaves_nothing_of_it(make_store):
    known, unknown = make_store(), make_store(tenant=f"tenant-{uuid.uuid4()}")
    secret = "the xylophone is out of tune"
    fields = {"occurred_at": T0 - timedelta(days=1)}
    ids = {}
    for turn in range(12):
        for store in (known, unknown):
            store.remember("tea", session_id="s", tags=[f"t{turn % 3}"], duplicates="merge", **fields)
        fresh = {"tags": [f"secret{turn}"], "metadata": {f"secret{turn}": 1}, **fields}
        said = known.remember(secret, session_id="s", duplicates="merge", **fresh)
        ids[said.id] = said
        known.recall("xylophone tea", session_id="s")
    assert len(ids) == 1
    memory = next(iter(ids.values()))
    assert memory.version == 12
    erasure = known.forget(memory.id)
    assert erasure.keys_deleted == 12
    with known._views.session("s") as view:
        held = view.table._db.serialize() + repr(view.words.dump(view.places.live())).encode()
        assert b"secret" not in held
        assert b"xylophon" not in held
    assert all(change.memory is None for change in known.history(memory.id))
    left = [event for event in known.events() if event.memory_id == memory.id]
    assert [event.data for event in left if event.type != "MemoryForgotten"] == 12 * [None]
    for question in ("xylophone", "tea", "out of tune"):
        answers = [answer(store, question) for store in (known, make_store(), unknown)]
        assert answers[0] == answers[1] == answers[2]
    assert operations.audit(known, [], None).ok


def test_a_merge_tells_what_was_said_this_time(make_store):
    store = make_store(embedder=Words())
    store.remember(LONG, session_id="s")
    store.remember(LONG.upper(), session_id="s", role="user", duplicates="merge", duplicate_similarity=0.9)
    first, again = [event.data for event in store.events()]
    assert isinstance(first, MemoryRemembered)
    assert isinstance(again, MemoryMerged)
    assert (again.content, again.role) == (LONG.upper(), "user")
    assert contents(store) == [LONG]


def test_a_memory_that_was_merged_into_keeps_within_what_a_memory_may_hold(make_store):
    store = make_store()
    memory = store.remember("tea", session_id="s", tags=[f"a{at}" for at in range(50)], metadata={"a": "x" * 40_000})
    for field, more in (("tags", {"tags": [f"b{at}" for at in range(50)]}), ("metadata", {"metadata": {"b": "x" * 40_000}})):
        with pytest.raises(InvalidMemory, match="after merging") as refused:
            store.remember("tea", session_id="s", duplicates="merge", **more)
        assert refused.value.field == field
    assert store.get(memory.id) == memory
    store.update(memory.id, tags=memory.tags, metadata=memory.metadata)  # what was read can be written


def test_a_deferred_batch_knows_duplicates_as_well(make_store):
    store = make_store(embedder=Words())
    memories = store.remember_many([LONG, "milk", LONG], session_id="s", duplicates="merge", embedding="deferred")
    options = {"duplicates": "skip", "duplicate_similarity": 0.9, "embedding": "deferred"}
    again = store.remember_many([LONG.upper(), "lemon"], session_id="s", **options)
    assert memories[0].id == memories[2].id == again[0].id
    assert store.count("s") == 3
    store.flush(PATIENCE_S)
    assert store.recall("lemon", session_id="s", limit=1, ranking="fixed")[0].memory.id == again[1].id
