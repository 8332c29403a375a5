"""Who has the last word about the best of recall, and what it may do wrong."""

import pytest

from memfold import CrossEncoderReranker, RerankerFailed, SettingsError
from memfold.projections.recall import RERANKED


class Longest:
    """The longer a text, the better it answers."""

    def __init__(self):
        self.asked = []

    def rerank(self, query, texts):
        self.asked.append((query, list(texts)))
        return [min(1.0, len(text) / 100) for text in texts]


class Says:
    """Whatever it is told to."""

    def __init__(self, answer):
        self.answer = answer

    def rerank(self, query, texts):
        return self.answer(texts)


def fill(store, count):
    store.remember_many(
        [{"content": "tea " + "x" * number, "speaker": "Ann"} for number in range(count)], session_id="s", user_id="u"
    )


@pytest.mark.parametrize("scope", [{"session_id": "s"}, {"user_id": "u"}, {}])
def test_it_orders_the_best_and_sees_what_is_searched(make_store, scope):
    reranker = Longest()
    store = make_store(reranker=reranker)
    fill(store, 20)
    found = store.recall("tea", limit=5, explain=True, **scope)
    assert [len(hit.memory.content) for hit in found] == [23, 22, 21, 20, 19]
    assert [hit.parts for hit in found] == [{"reranker": hit.score} for hit in found]
    assert found[0].score == pytest.approx(0.28)
    ((query, texts),) = reranker.asked
    assert query == "tea"
    assert sorted(texts, key=len)[0] == "Ann: tea "
    assert len(texts) == 20


def test_only_the_best_are_shown_to_it_and_the_others_stay_behind(make_store):
    reranker = Longest()
    store = make_store(reranker=reranker)
    fill(store, 3 * RERANKED)
    found = store.recall("tea", session_id="s", limit=2 * RERANKED)
    assert len(reranker.asked[0][1]) == RERANKED
    assert len(found) == 2 * RERANKED
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True)
    plain = make_store().recall("tea", session_id="s", limit=2 * RERANKED)
    assert [hit.memory.id for hit in found[RERANKED:]] == [hit.memory.id for hit in plain[RERANKED:]]
    assert {hit.memory.id for hit in found[:RERANKED]} == {hit.memory.id for hit in plain[:RERANKED]}


def test_the_least_score_is_about_its_scores(make_store):
    store = make_store(reranker=Longest())
    fill(store, 20)
    assert {len(hit.memory.content) for hit in store.recall("tea", session_id="s", limit=20, min_score=0.26)} == {21, 22, 23}


def test_it_is_not_asked_about_nothing_nor_by_the_fixed_mix(make_store):
    reranker = Longest()
    store = make_store(reranker=reranker)
    assert store.recall("tea", session_id="nobody's") == []
    fill(store, 3)
    assert len(store.recall("tea", session_id="s", ranking="fixed")) == 3
    assert not reranker.asked


def test_a_context_is_chosen_by_it(make_store):
    store = make_store(reranker=Longest())
    fill(store, 40)
    assert "x" * 39 in str(store.context("tea", session_id="s", max_tokens=120))


@pytest.mark.parametrize(
    "answer",
    [
        lambda texts: [0.5] * (len(texts) + 1),
        lambda texts: [1.5] * len(texts),
        lambda texts: [float("nan")] * len(texts),
        lambda texts: [[0.5]] * len(texts),
        lambda texts: "best",
        lambda texts: None,
        lambda texts: 1 / 0,
    ],
)
def test_what_it_must_not_do_is_a_typed_error(make_store, answer):
    store = make_store(reranker=Says(answer))
    fill(store, 3)
    with pytest.raises(RerankerFailed, match="reranker"):
        store.recall("tea", session_id="s")
    assert len(store.recall("tea", session_id="s", ranking="fixed")) == 3


@pytest.mark.parametrize("reranker", [Longest, object(), "cross-encoder", lambda query, texts: []])
def test_what_is_no_reranker_is_refused_when_the_store_opens(make_store, reranker):
    with pytest.raises(SettingsError, match="reranker"):
        make_store(reranker=reranker)


def test_a_cross_encoder_needs_sentence_transformers(make_store):
    try:
        import sentence_transformers  # noqa: F401
    except ImportError:
        store = make_store(reranker=CrossEncoderReranker("no/model"))
        fill(store, 3)
        with pytest.raises(SettingsError, match=r"memfold\[sentence-transformers\]"):
            store.recall("tea", session_id="s")
        return
    store = make_store(reranker=CrossEncoderReranker("/no/such/folder"))
    fill(store, 3)
    with pytest.raises(RerankerFailed, match="could not be loaded"):
        store.recall("tea", session_id="s")
