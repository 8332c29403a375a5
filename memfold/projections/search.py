"""How a view is searched: from a question to the memories that answer it best.

The fixed mix ranks first; those it likes best are ranked anew by the learned ranker, unless that is not wanted.
Every row that a filter leaves is ranked, so an answer about them is exact. In a view of up to EXACT_MAX rows the filter changes
no row's score; in a larger one none that the mix gives, but the learned ranker compares with the best of the rows that were
looked at, and those are then the filtered ones and what stands around them. Only where nothing is filtered and there are more
rows than EXACT_MAX, those are ranked that are nearest in meaning or in words, and their neighbours.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfold.model import Recollection
from memfold.projections import learned, ranking
from memfold.projections.caching import Rate
from memfold.projections.features import ECHOES_OF, NEAR_ROWS, Known, echo_weights, features, usual, window_of
from memfold.projections.filters import ALL, Condition
from memfold.projections.places import NOBODY, NOWHERE, Places, Rows, distinct
from memfold.projections.rows import micros, time
from memfold.projections.times import Span, fit, preferred
from memfold.projections.tokens import stemmer
from memfold.projections.view import View
from memfold.projections.words import Floats, LookedUp, Slots, Words, asked_for, plain_words

EXACT_MAX = 50_000
KEPT_MAX = 256  # answers a view
CANDIDATES = 100  # that the mix likes best are looked at by the learned ranker
MIX_REACH = 2  # rows to either side that count for what the mix makes of a row
SAMPLE = 2_000  # rows
NEAREST_WORDS, NEAREST_MEANING = 4_000, 400  # of very many rows
NEAREST = 500  # of those, in both together
WORDS_FOR_MEANING = 4  # for so many rows that are missing to NEAREST_WORDS, one more that is near in meaning
DAY_MICROS = 86_400e6


class Question(NamedTuple):
    """What is asked: a query, its vector by the model of that name (None: by words alone), and what else counts.

    `spans` are the times it speaks of, told from `now`; `weights` those of the learned ranker, None if the fixed mix ranks.
    """

    text: str
    model: str | None
    vector: Floats | None
    preferences: ranking.Preferences
    now: datetime
    spans: tuple[Span, ...]
    weights: learned.Weights | None


class Found(NamedTuple):
    """A row that answers, its score, and the parts of the score, if they were asked for."""

    row: int
    score: float
    parts: dict[str, float]


class Search:
    """Searches views, and keeps with each view what it answered, until the view changes."""

    def __init__(self, known_by: Callable[..., bytes]) -> None:
        self.rate = Rate()
        self._known_by = known_by

    def __call__(
        self, view: View, question: Question, where: Condition, *, limit: int, min_score: float, explain: bool
    ) -> list[Recollection]:
        """The memories that answer best, best first; of equals the older first.

        With a vector, no row of the view may lack one of that model.
        """
        how = (question.model, question.preferences, question.spans, question.weights is None, limit, min_score, explain)
        # The condition's parts, because its own repr does not show the values.
        key = self._known_by(question.text, repr((*how, *where)))
        found = None if question.preferences.recency else view.found_before.get(key)
        self.rate.count(hit=found is not None)
        if found is None:
            found = search(view, question, where, limit=limit, min_score=min_score, explain=explain)
            if len(view.found_before) >= KEPT_MAX:
                view.found_before.clear()
            view.found_before[key] = found
        memories = view.table.memories([hit.row for hit in found])
        return [
            Recollection(memory=memory, score=hit.score, parts=dict(hit.parts))
            for memory, hit in zip(memories, found, strict=True)
        ]


def search(
    view: View, question: Question, where: Condition, *, limit: int, min_score: float, explain: bool = False
) -> list[Found]:
    """The rows that answer best, best first."""
    if not view.places.count:
        return []
    question = question._replace(spans=times_of(view, question))
    words = view.words.look_up(asked_for(question.text))
    rows = _rows(view, question, words, where)
    if not len(rows.asked):
        return []
    known = evidence(view, question, rows, words)
    mix = ranking.score(known, question.preferences)
    if question.weights is None:
        return _told(view, rows, mix, ranking.best(mix.total, rows.asked, limit, min_score), explain=explain)
    candidates = ranking.best(mix.total, rows.asked, max(limit, CANDIDATES), 0.0)
    if not len(candidates):
        return []
    head, tail = candidates[:CANDIDATES], candidates[CANDIDATES:]
    found = _learned(view, question, words, Ranked(rows, known, mix, head), limit=limit, explain=explain)
    if len(tail):
        found += _behind(_told(view, rows, mix, tail, explain=explain), float(mix.total[head[-1]]), found[-1].score)
    return [hit for hit in found if hit.score >= min_score]


class Ranked(NamedTuple):
    """Rows that the mix has ranked, and the places of the best among them, best first."""

    rows: Rows
    known: ranking.Evidence
    mix: ranking.Scores
    best: Slots


def _behind(found: list[Found], last: float, score: float) -> list[Found]:
    """What only the mix ranked, put behind a row to which the mix gave `last` and the learned ranker `score`."""
    scale = score / last
    return [Found(hit.row, scale * hit.score, {name: scale * part for name, part in hit.parts.items()}) for hit in found]


def _told(view: View, rows: Rows, mix: ranking.Scores, places: Slots, *, explain: bool) -> list[Found]:
    of_rows = view.places.rows(rows.slots[places])
    if explain:
        return [Found(row, *mix.of(at)) for row, at in zip(of_rows, places.tolist(), strict=True)]
    return [Found(row, total, {}) for row, total in zip(of_rows, mix.total[places].tolist(), strict=True)]


def _learned(view: View, question: Question, words: LookedUp, ranked: Ranked, *, limit: int, explain: bool) -> list[Found]:
    """The best of the mix as the learned ranker orders them, `limit` at most; of equals what the mix likes better."""
    echoes = None if ranked.known.similarities is None else _echoes(view, question, ranked)
    if len(ranked.rows.slots) < view.places.count:
        ranked = _seen_closer(view, question, words, ranked)
    rows, _, mix, best = ranked
    known = looked_at(ranked, view.places, view.words, words, usual=_usual(view, question, ranked), echoes=echoes)
    found = features(question.text, known)
    liked = {name: part[best] for name, part in mix.parts.items() if name in ("importance", "recency")}
    assert question.weights is not None
    scores = learned.score(question.weights, found, liked)
    order = np.argsort(-scores.total, kind="stable")[:limit]
    of_rows = view.places.rows(rows.slots[best[order]])
    if explain:
        return [Found(row, *scores.of(at)) for at, row in zip(order.tolist(), of_rows, strict=True)]
    return [Found(row, total, {}) for row, total in zip(of_rows, scores.total[order].tolist(), strict=True)]


def looked_at(
    ranked: Ranked, places: Places, words: Words, looked_up: LookedUp, *, usual: tuple[float, float], echoes: Floats | None
) -> Known:
    """All that the learned ranker looks at of the best of ranked rows."""
    rows, known, mix, best = ranked
    window = window_of(best, known.before, known.after, places.occurred_at(rows.slots))
    around = np.where(window >= 0, rows.slots[window], NOWHERE)
    rarity, held = words.holding(looked_up, around.ravel())
    return Known(
        similarities=known.similarities,
        usual=usual,
        alone=known.matches.alone,
        paired=known.matches.paired,
        mixed=mix.mixed,
        named=known.named,
        before=known.before,
        after=known.after,
        window=window,
        held=held.reshape(len(rarity), *window.shape),
        facts=places.facts(around.ravel()).reshape(*window.shape, -1),
        speakers=places.speakers(around.ravel()).reshape(window.shape),
        rarity=rarity,
        echoes=echoes,
        fits=None if known.when is None else known.when[best],
    )


def _seen_closer(view: View, question: Question, words: LookedUp, ranked: Ranked) -> Ranked:
    """The same best, among all rows that stand near enough to count for what the learned ranker looks at."""
    slots = ranked.rows.slots[ranked.best]
    rows = view.places.around(np.sort(slots), NEAR_ROWS + MIX_REACH)
    known = evidence(view, question, rows, words)
    return Ranked(rows, known, ranking.score(known, question.preferences), np.searchsorted(rows.slots, slots))


def _usual(view: View, question: Question, ranked: Ranked) -> tuple[float, float]:
    """What is usual among the similarities of all rows, or of a sample where not all are ranked."""
    similarities = ranked.known.similarities
    if similarities is None:
        return 0.0, 1.0
    if len(similarities) < view.places.count and question.vector is not None:
        similarities = view.vectors[question.model or ""].similarities(question.vector, view.places.sample(SAMPLE))
    return usual(similarities)


def _echoes(view: View, question: Question, ranked: Ranked) -> Floats:
    """How like each of the best is to those rows that the mix likes best of all, asked for or not."""
    rows, _, mix, best = ranked
    likes = best if len(rows.asked) == len(rows.slots) else ranking.best(mix.total, np.arange(len(rows.slots)), ECHOES_OF, 0.0)
    vectors, weights = view.vectors[question.model or ""], echo_weights(mix.mixed[likes])
    return vectors.similarities(weights @ vectors.dump(rows.slots[likes[: len(weights)]]), rows.slots[best])


def _rows(view: View, question: Question, words: LookedUp, where: Condition) -> Rows:
    """The rows that are ranked, and what is looked at besides."""
    places = view.places
    if where != ALL:
        asked = places.slots_of(view.table.matching(view.shown(where)))
        return places.among_all(asked) if places.count <= EXACT_MAX else places.around(asked, MIX_REACH)
    if places.count <= EXACT_MAX:
        return places.all()
    return places.around(_with_neighbours(places, _nearest(view, question, words)), MIX_REACH)


def _nearest(view: View, question: Question, words: LookedUp) -> Slots:
    """Of those nearest in words and those nearest in meaning the ones that are best in both together, rising.

    The fewer rows hold any of the words, the more of those near in meaning are looked at.
    """
    near = [view.words.nearest(words, NEAREST_WORDS)]
    room = (NEAREST_WORDS - len(near[0])) // WORDS_FOR_MEANING
    if question.vector is not None and question.model in view.vectors:
        near.append(view.vectors[question.model].nearest(question.vector, NEAREST_MEANING + room))
    rows = view.places.around(distinct(np.concatenate(near)), 0)
    mix = ranking.score(evidence(view, question, rows, words), question.preferences)
    return np.sort(rows.slots[ranking.best(mix.total, rows.asked, NEAREST + room, 0.0)])


def _with_neighbours(places: Places, slots: Slots) -> Slots:
    """These slots and those beside them, each once, rising."""
    near = np.concatenate([slots, places.before(slots), places.after(slots)])
    return distinct(near[near != NOWHERE])


def evidence(view: View, question: Question, rows: Rows, words: LookedUp) -> ranking.Evidence:
    """What is known of some rows of a view. The question's times are as `times_of` tells them."""
    slots, places = rows.slots, view.places
    similarities = None
    if question.vector is not None and question.model in view.vectors:
        similarities = view.vectors[question.model].similarities(question.vector, slots)
    importance = age_days = np.zeros(0, np.float32)
    if question.preferences.importance:
        importance = places.importance(slots)
    if question.preferences.recency:
        age_days = ((micros(question.now) - places.occurred_at(slots)) / DAY_MICROS).astype(np.float32)
    return ranking.Evidence(
        before=rows.before,
        after=rows.after,
        similarities=similarities,
        matches=view.words.weigh(words, slots, places.before(slots)),
        named=named(places, view.words, question.text, slots),
        when=fit(question.spans, places.occurred_at(slots)) if question.spans else None,
        importance=importance,
        age_days=age_days,
    )


def named(places: Places, words: Words, query: str, slots: Slots) -> NDArray[np.bool_]:
    """Of each slot whether the query names who speaks there, or, where nobody does, somebody of whom it says the name.

    The second is for summaries, which begin what they quote with who said it.
    """
    asked = plain_words(query)
    found = places.named(asked, slots)
    names = stemmer().stemWords([word for word in asked if places.calls(word)])
    nobody = np.flatnonzero(places.speakers(slots) == NOBODY) if names else ()
    if len(nobody):
        _, held = words.holding(words.look_up(names), slots[nobody])
        found[nobody] = held.any(axis=0)
    return found


def times_of(view: View, question: Question) -> tuple[Span, ...]:
    """The times a question speaks of; one without its year is looked for among the times of the view."""
    if not question.spans:
        return ()
    occurred_at = view.places.occurred_at(view.places.live())
    return preferred(question.text, question.now, time(int(occurred_at.min())), time(int(occurred_at.max())))
