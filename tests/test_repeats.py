"""What is asked twice costs less and answers the same; what is remembered in bulk is found at once."""

import gc
import threading
import time
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from memfold import EmbedderFailed, InvalidMemory, Settings
from memfold.minilm import static_embedder
from memfold.projections.caching import QueryVectors

STATIC = static_embedder().name
PATIENCE_S = 20


class Counting:
    """The static model under a name of its own; knows what it was asked, and can be slow or broken."""

    def __init__(self, slow_s=0.0):
        self.name, self.slow_s, self.seen, self.broken = "counting", slow_s, [], False

    def encode(self, texts):
        if self.broken:
            raise RuntimeError("out of order")
        self.seen += texts
        time.sleep(self.slow_s * len(texts))
        return static_embedder().encode(texts)


def told(found):
    return [(hit.memory, hit.score, hit.parts) for hit in found]


@pytest.fixture
def counting():
    return Counting()


@pytest.fixture
def full(make_store, counting):
    store = make_store(embedder=counting)
    turns = [{"content": f"tea number {number}", "speaker": "Ann"} for number in range(40)]
    store.remember_many(turns, session_id="s", user_id="u")
    store.flush(PATIENCE_S)
    return store


# -- queries ---------------------------------------------------------------------------------------------------------------


def test_a_query_is_embedded_once_whatever_it_is_asked_of(full, counting):
    for scope in ({"session_id": "s"}, {"user_id": "u"}, {}, {"session_id": "none"}, {"session_id": "s", "limit": 3}):
        full.recall("which tea?", **scope)
    assert counting.seen.count("which tea?") == 1
    assert full.stats().query_hit_rate == 0.8


def test_a_query_that_could_not_be_embedded_is_embedded_when_it_can_be(full, counting):
    counting.broken = True
    with pytest.raises(EmbedderFailed):
        full.recall("which tea?", session_id="s")
    counting.broken = False
    assert full.recall("which tea?", session_id="s")
    assert counting.seen.count("which tea?") == 1


def test_only_so_many_queries_are_kept_and_only_for_a_while(make_store, counting):
    store = make_store(embedder=counting, settings=Settings(pool_connections_max=8, query_vectors_max=2, view_idle_s=0.4))
    store.remember("tea", session_id="s")
    for query in ("one", "two", "three", "one", "three"):
        store.recall(query, session_id="s")
    assert [counting.seen.count(query) for query in ("one", "two", "three")] == [2, 1, 1]
    time.sleep(0.6)
    store.recall("three", session_id="s")
    assert counting.seen.count("three") == 2


def test_no_word_of_a_query_is_kept(full):
    secret = "xylophone-" + "quince"
    full.recall(secret, session_id="s")
    full.recall(secret, session_id="s")
    kept = full._recaller._queries
    with full._views.session("s") as view:
        assert view.found_before
        held = [*view.found_before.items(), *kept._kept.items()]
    words = [text for thing in reachable(held) if isinstance(text := thing, str | bytes)]
    assert words
    assert not any("xylophone" in repr(text) for text in words)


def reachable(start):
    found, todo = [], list(start)
    while todo:
        thing = todo.pop()
        if not any(thing is each for each in found):
            found.append(thing)
            todo += [each for each in gc.get_referents(thing) if not isinstance(each, type)]
    return found


def test_two_stores_know_the_same_query_by_different_hashes():
    one, other = (QueryVectors(count_max=10, ttl_s=10) for _ in range(2))
    assert one.known_by("tea") != other.known_by("tea")
    assert one.known_by("tea", "x") != one.known_by("te", "ax")
    assert one.known_by("\ud800") == one.known_by("\ud800")


def test_many_threads_ask_the_same(full, counting):
    answers, errors = [], []

    def ask():
        try:
            for number in range(20):
                answers.append((number % 4, told(full.recall(f"tea number {number % 4}", session_id="s"))))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(answers) == 120
    assert all(answer == next(other for at, other in answers if at == number) for number, answer in answers)


# -- answers ---------------------------------------------------------------------------------------------------------------


def test_an_answer_is_searched_once_until_something_changes(full):
    first = full.recall("tea number 7", session_id="s")
    again = full.recall("tea number 7", session_id="s")
    assert told(first) == told(again)
    assert full.stats().recall_hit_rate == 0.5
    for change in (
        lambda: full.remember("tea number 7 again", session_id="s"),
        lambda: full.update(first[0].memory.id, content="coffee"),
        lambda: full.forget(first[1].memory.id),
    ):
        change()
        fresh = full.recall("tea number 7", session_id="s")
        assert told(fresh) != told(again)
        again = fresh
    assert full.stats().recall_hit_rate == 0.2
    assert first[1].memory.id not in {hit.memory.id for hit in again}


def test_whatever_is_asked_differently_is_another_question(full):
    base = {"session_id": "s", "limit": 5}
    others = [
        {"limit": 6},
        {"min_score": 0.99},
        {"where": {"importance": {"$gt": 0.9}}},
        {"where": {"importance": {"$gt": 0.1}}},
        {"before": datetime(2020, 1, 1, tzinfo=UTC)},
        {"after": datetime(2020, 1, 1, tzinfo=UTC)},
        {"ranking": "fixed"},
        {"explain": True},
    ]
    for other in others:
        full.recall("tea number 7", **base)
        full.recall("tea number 7", **base | other)
    assert full.stats().recall_hit_rate == (len(others) - 1) / (2 * len(others))
    assert full.recall("tea number 7", **base | others[2]) == []
    assert len(full.recall("tea number 7", **base | others[3])) == 5


def test_nobody_can_spoil_the_answer_of_the_next(make_store):
    store = make_store()
    store.remember("tea", session_id="s", metadata={"cups": [1]})
    first = store.recall("tea", session_id="s", explain=True)
    first[0].memory.metadata["cups"].append(2)
    first[0].parts.clear()
    first.clear()
    (again,) = store.recall("tea", session_id="s", explain=True)
    assert again.memory.metadata == {"cups": [1]}
    assert again.parts


def test_an_answer_that_depends_on_the_time_of_day_is_not_kept(make_store):
    now = [datetime(2026, 3, 10, 12, tzinfo=UTC)]
    store = make_store(clock=lambda: now[0], settings=Settings(pool_connections_max=8, recency_weight=0.5))
    store.remember_many([{"content": f"tea {n}", "occurred_at": now[0] - timedelta(days=n)} for n in range(5)], session_id="s")
    before = store.recall("tea", session_id="s")
    now[0] += timedelta(days=60)
    after = store.recall("tea", session_id="s")
    assert [hit.score for hit in before] != [hit.score for hit in after]


def test_last_week_is_another_week_a_week_later(make_store):
    now = [datetime(2026, 3, 18, 12, tzinfo=UTC)]
    store = make_store(clock=lambda: now[0])
    first, second, _ = (
        store.remember("we had tea", session_id=f"{days} days ago", user_id="u", occurred_at=now[0] - timedelta(days=days))
        for days in (9, 2, 30)
    )
    for expected in (first, second):
        for ranking in ("fixed", "learned"):
            found = store.recall("what did we have last week?", user_id="u", ranking=ranking)
            assert found[0].memory.id == expected.id
        now[0] += timedelta(days=7)


# -- bulk ------------------------------------------------------------------------------------------------------------------


def test_what_is_embedded_later_is_found_at_once_and_nobody_waits(make_store):
    slow = Counting(slow_s=0.05)
    store = make_store(embedder=slow)
    store.remember_many([f"tea number {number}" for number in range(200)], session_id="s", embedding="deferred")
    store.recall("warm up", session_id="t")

    begun = time.monotonic()
    found = store.recall("tea number 7", session_id="s", wait_s=60)
    assert found.model == STATIC
    assert found[0].memory.content == "tea number 7"
    assert time.monotonic() - begun < 8  # embedding all of it takes ten

    store.flush(60)
    assert store.recall("tea number 7", session_id="s").model == "counting"


def test_another_process_does_not_wait_either(make_store):
    writer = make_store(embedder=Counting(slow_s=0.2))
    writer.remember_many([f"tea number {number}" for number in range(100)], session_id="s", user_id="u", embedding="deferred")
    reader = make_store(embedder=Counting(slow_s=0.2))
    for scope in ({"session_id": "s"}, {"user_id": "u"}, {}):
        assert reader.recall("tea number 7", wait_s=60, **scope).model == STATIC


def test_what_is_deferred_is_stored_with_vectors_that_die_with_it(make_store):
    store = make_store(embedder=Counting(slow_s=1.0))
    first, second = store.remember_many(["green tea", "black tea"], session_id="s", embedding="deferred")
    static = store._static
    with store._views.session("s") as view:
        positions = [want.position for want in view.lacks(STATIC)]
    assert len(static.sealed(positions)) == 2
    store.forget(first.id)
    assert len(static.sealed(positions)) == 1
    assert [hit.memory.id for hit in store.recall("tea", session_id="s", wait_s=0)] == [second.id]


def test_a_batch_that_was_deferred_and_is_repeated_adds_nothing(make_store):
    store = make_store(embedder=Counting())
    batch = {"session_id": "s", "embedding": "deferred", "idempotency_key": "k"}
    assert store.remember_many(["tea", "coffee"], **batch) == store.remember_many(["tea", "coffee"], **batch)
    again = store.remember_many(["tea", "milk"], session_id="s", embedding="deferred", duplicates="skip")
    assert len({memory.id for memory in again}) == 2
    assert store.count("s") == 3


def test_a_static_store_has_nothing_to_defer(make_store):
    store = make_store()
    store.remember_many(["tea"], session_id="s", embedding="deferred")
    assert store.recall("tea", session_id="s").model == STATIC
    assert store.stats().embedding_lag == 0


def test_a_word_that_is_none_is_refused_and_nothing_is_stored(store):
    with pytest.raises(InvalidMemory, match="embedding"):
        store.remember_many(["tea"], session_id="s", embedding="never")
    with pytest.raises(InvalidMemory, match="duplicates"):
        store.remember("tea", session_id="s", duplicates="maybe")
    for similarity in (0, 1.1, "high", True, float("nan")):
        with pytest.raises(InvalidMemory, match="duplicate_similarity"):
            store.remember("tea", session_id="s", duplicates="skip", duplicate_similarity=similarity)
    assert store.count() == 0


def test_vectors_that_are_kept_are_those_that_were_made(full, counting):
    encoder = full._recaller._embeddings.encoder
    kept = full._recaller._queries.vector(encoder.name, "which tea?", encoder.encode_query)
    again = full._recaller._queries.vector(encoder.name, "which tea?", encoder.encode_query)
    assert kept is again
    assert np.array_equal(kept, encoder.encode_query("which tea?"))
