"""How a view is searched: from a question to the memories that answer it best.

The fixed mix ranks first; those it likes best are ranked anew by the learned ranker, unless that is not wanted.
Every row that a filter leaves is ranked, so an answer about them is exact, and the filter changes no row's score. Only where
nothing is filtered and there are more rows than EXACT_MAX, those are ranked that are nearest in meaning or in words, and their
neighbours.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import numpy as np

from memfold.model import Recollection
from memfold.projections import learned, ranking
from memfold.projections.caching import Rate
from memfold.projections.features import ECHOES_OF, Known, echo_weights, features, window_of
from memfold.projections.filters import ALL, Condition
from memfold.projections.places import NOWHERE, Places, Rows
from memfold.projections.rows import micros, time
from memfold.projections.times import Span, fit, preferred
from memfold.projections.view import View
from memfold.projections.words import Floats, Slots, asked_for, plain_words

EXACT_MAX = 50_000
KEPT_MAX = 256  # answers a view
CANDIDATES = 200  # that the mix likes best are looked at by the learned ranker
NEAREST = 400  # by meaning, and as many by words
DAY_MICROS = 86_400e6


class Question(NamedTuple):
    """What is asked: a query, its vector by the model of that name (None: by words alone), and what else counts.

    `weights` are those of the learned ranker; None: the fixed mix ranks.
    """

    text: str
    model: str | None
    vector: Floats | None
    preferences: ranking.Preferences
    now: datetime
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
        spans = preferred(question.text, question.now)
        how = (question.model, question.preferences, question.weights is None, limit, min_score, explain, spans)
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
    rows = _rows(view, question, where)
    if not len(rows.asked):
        return []
    known = evidence(view, question, rows)
    mix = ranking.score(known, question.preferences)
    if question.weights is None:
        return _told(view, rows, mix, ranking.best(mix.total, rows.asked, limit, min_score), explain=explain)
    candidates = ranking.best(mix.total, rows.asked, max(limit, CANDIDATES), 0.0)
    if not len(candidates):
        return []
    head, tail = candidates[:CANDIDATES], candidates[CANDIDATES:]
    found = _learned(view, question, rows, known, mix, head, explain=explain)
    found.sort(key=lambda hit: -hit.score)
    if len(tail):
        found += _behind(_told(view, rows, mix, tail, explain=explain), float(mix.total[head[-1]]), found[-1].score)
    return [hit for hit in found[:limit] if hit.score >= min_score]


def _behind(found: list[Found], last: float, score: float) -> list[Found]:
    """What only the mix ranked, put behind a row to which the mix gave `last` and the learned ranker `score`."""
    scale = score / last
    return [Found(hit.row, scale * hit.score, {name: scale * part for name, part in hit.parts.items()}) for hit in found]


def _told(view: View, rows: Rows, mix: ranking.Scores, places: Slots, *, explain: bool) -> list[Found]:
    of_rows = view.places.rows(rows.slots[places])
    if explain:
        return [Found(row, *mix.of(at)) for row, at in zip(of_rows, places.tolist(), strict=True)]
    return [Found(row, total, {}) for row, total in zip(of_rows, mix.total[places].tolist(), strict=True)]


def _learned(  # noqa: PLR0917
    view: View,
    question: Question,
    rows: Rows,
    known: ranking.Evidence,
    mix: ranking.Scores,
    places: Slots,
    *,
    explain: bool,
) -> list[Found]:
    """The candidates at `places` among `rows` with the scores of the learned ranker, in the order of the mix."""
    window = window_of(places, known.before, known.after, view.places.occurred_at(rows.slots))
    around = np.where(window >= 0, rows.slots[window], NOWHERE)
    rarity, held = view.words.holding(asked_for(question.text), around.ravel())
    mixed = mix.mixed
    found = features(
        question.text,
        Known(
            similarities=known.similarities,
            alone=known.matches.alone,
            paired=known.matches.paired,
            mixed=mixed,
            named=known.named,
            before=known.before,
            after=known.after,
            window=window,
            held=held.reshape(len(rarity), *window.shape),
            facts=view.places.facts(around.ravel()).reshape(*window.shape, -1),
            speakers=view.places.speakers(around.ravel()).reshape(window.shape),
            rarity=rarity,
            echoes=None if known.similarities is None else _echoes(view, question, rows, mix, places),
            fits=np.zeros(len(places), np.float32) if known.when is None else known.when[places],
        ),
    )
    liked = {name: part[places] for name, part in mix.parts.items() if name in ("importance", "recency")}
    assert question.weights is not None
    scores = learned.score(question.weights, found, liked)
    of_rows = view.places.rows(rows.slots[places])
    if explain:
        return [Found(row, *scores.of(at)) for at, row in enumerate(of_rows)]
    return [Found(row, total, {}) for row, total in zip(of_rows, scores.total.tolist(), strict=True)]


def _echoes(view: View, question: Question, rows: Rows, mix: ranking.Scores, places: Slots) -> Floats:
    """How like each candidate is to those rows that the mix likes best of all, asked for or not."""
    best = places if len(rows.asked) == len(rows.slots) else ranking.best(mix.total, np.arange(len(rows.slots)), ECHOES_OF, 0.0)
    vectors, weights = view.vectors[question.model or ""], echo_weights(mix.mixed[best])
    return vectors.similarities(weights @ vectors.dump(rows.slots[best[: len(weights)]]), rows.slots[places])


def _rows(view: View, question: Question, where: Condition) -> Rows:
    """The rows that are ranked, and what is looked at besides."""
    places = view.places
    if where != ALL:
        asked = places.slots_of(view.table.matching(where))
        return places.among_all(asked) if places.count <= EXACT_MAX else places.around(asked)
    if places.count <= EXACT_MAX:
        return places.all()
    near = [view.words.nearest(asked_for(question.text), NEAREST)]
    if question.vector is not None and question.model in view.vectors:
        near.append(view.vectors[question.model].nearest(question.vector, NEAREST))
    return places.around(_with_neighbours(places, np.concatenate(near)))


def _with_neighbours(places: Places, slots: Slots) -> Slots:
    """These slots and those beside them, each once, rising."""
    near = np.concatenate([slots, places.before(slots), places.after(slots)])
    return np.unique(near[near != NOWHERE])


def evidence(view: View, question: Question, rows: Rows) -> ranking.Evidence:
    """What is known of some rows of a view."""
    slots, places = rows.slots, view.places
    similarities = None
    if question.vector is not None and question.model in view.vectors:
        similarities = view.vectors[question.model].similarities(question.vector, slots)
    importance = age_days = np.zeros(0, np.float32)
    if question.preferences.importance:
        importance = places.importance(slots)
    if question.preferences.recency:
        age_days = ((micros(question.now) - places.occurred_at(slots)) / DAY_MICROS).astype(np.float32)
    spans = times_of(view, question)
    return ranking.Evidence(
        before=rows.before,
        after=rows.after,
        similarities=similarities,
        matches=view.words.weigh(asked_for(question.text), slots, places.before(slots)),
        named=places.named(plain_words(question.text), slots),
        when=fit(spans, places.occurred_at(slots)) if spans else None,
        importance=importance,
        age_days=age_days,
    )


def times_of(view: View, question: Question) -> tuple[Span, ...]:
    """The times a question speaks of; one without its year is looked for among the times of the view."""
    if not preferred(question.text, question.now):
        return ()
    occurred_at = view.places.occurred_at(view.places.live())
    return preferred(question.text, question.now, time(int(occurred_at.min())), time(int(occurred_at.max())))
