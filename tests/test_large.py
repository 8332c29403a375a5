"""A view so large that not every row is ranked answers nearly as if it were."""

import random

import pytest

from memfold.projections import search

WORDS = [
    f"{first}{second}" for first in "bcdfghjklmnprstvw" for second in ("ane", "ilo", "ute", "ova", "erm", "ist", "ond", "ack")
]


@pytest.fixture
def large(make_store, monkeypatch):
    """A tenant of many sessions, of which more than a few rows are many."""
    rand = random.Random(7)
    store = make_store()
    for number in range(20):
        turns = [
            {"content": " ".join(rand.choices(WORDS, k=rand.randint(3, 12))), "speaker": rand.choice(["Ann", "Bob", None])}
            for _ in range(150)
        ]
        store.remember_many(turns, session_id=f"s{number}", user_id=f"u{number % 4}")
    store.flush(30)
    monkeypatch.setattr(search, "EXACT_MAX", 500)
    monkeypatch.setattr(search, "NEAREST_WORDS", 250)
    monkeypatch.setattr(search, "NEAREST_MEANING", 100)
    monkeypatch.setattr(search, "NEAREST", 150)
    return store, rand


@pytest.mark.parametrize("ranking", ["fixed", "learned"])
@pytest.mark.parametrize("scope", [{}, {"user_id": "u1"}])
def test_of_the_ten_best_of_all_nearly_all_come(large, monkeypatch, ranking, scope):
    store, rand = large
    right = due = 0
    for number in range(20):
        query = " ".join(rand.sample(WORDS, 4))
        with monkeypatch.context() as patched:
            patched.setattr(search, "EXACT_MAX", 10**9)
            best = store.recall(f"{query} {number}", ranking=ranking, **scope)
        found = store.recall(f"{query}  {number}", ranking=ranking, **scope)
        right += len({hit.memory.id for hit in best} & {hit.memory.id for hit in found})
        due += len(best)
    assert due == 200
    assert right / due >= 0.95


def test_what_is_asked_in_words_that_nobody_said_is_found_by_meaning(large, monkeypatch):
    store, rand = large
    monkeypatch.setattr(search, "NEAREST_MEANING", 10)
    monkeypatch.setattr(search, "NEAREST", 10)
    right = 0
    for number in range(20):
        query = " ".join(f"{word}{word}" for word in rand.sample(WORDS, 4))
        with monkeypatch.context() as patched:
            patched.setattr(search, "EXACT_MAX", 10**9)
            best = store.recall(f"{query} x{number}", ranking="fixed")
        found = store.recall(f"{query}  x{number}", ranking="fixed")
        right += len({hit.memory.id for hit in best} & {hit.memory.id for hit in found})
    assert right >= 180


def test_what_was_just_remembered_or_forgotten_counts_at_once(large):
    store, _ = large
    memory = store.remember("quixotic zebras", session_id="s3", speaker="Ann")
    assert store.recall("quixotic zebras")[0].memory.id == memory.id
    store.update(memory.id, content="plain horses")
    assert memory.id not in {hit.memory.id for hit in store.recall("quixotic", min_score=0.3, ranking="fixed")}
    assert store.recall("plain horses")[0].memory.id == memory.id
    store.forget(memory.id)
    assert memory.id not in {hit.memory.id for hit in store.recall("plain horses", limit=10_000)}


def test_a_filter_over_a_large_view_is_exact(large, monkeypatch):
    store, rand = large
    for number in range(10):
        query = " ".join(rand.sample(WORDS, 4))
        where = {"speaker": "Bob"}
        with monkeypatch.context() as patched:
            patched.setattr(search, "EXACT_MAX", 10**9)
            best = store.recall(f"{query} {number}", where=where, ranking="fixed")
        found = store.recall(f"{query}  {number}", where=where, ranking="fixed")
        assert [hit.memory.id for hit in found] == [hit.memory.id for hit in best]
        assert [hit.score for hit in found] == [hit.score for hit in best]


def test_answers_beyond_the_candidates_do_not_fail(large):
    store, _ = large
    found = store.recall("bane cilo", limit=10_000)
    assert 100 < len(found) <= 3_000
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True)
    assert all(memory.speaker for memory in (hit.memory for hit in store.recall("bane", where={"speaker": "Ann"}, limit=5)))
