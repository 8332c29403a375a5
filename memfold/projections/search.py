"""How a view is searched: from a question to the memories that answer it best.

Every row that a filter leaves is ranked, so an answer about them is exact. Only where nothing is filtered and there are more
rows than EXACT_MAX, those are ranked that are nearest in meaning or in words, and their neighbours.
"""

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

import numpy as np

from memfold.model import Recollection
from memfold.projections import ranking
from memfold.projections.caching import Rate
from memfold.projections.filters import ALL, Condition
from memfold.projections.places import NOWHERE, Places, Rows
from memfold.projections.rows import micros, time
from memfold.projections.times import Span, fit, preferred
from memfold.projections.view import View
from memfold.projections.words import Floats, Slots, asked_for, plain_words

EXACT_MAX = 100_000
KEPT_MAX = 256  # answers a view
NEAREST = 400  # by meaning, and as many by words
DAY_MICROS = 86_400e6


class Question(NamedTuple):
    """What is asked: a query, its vector by the model of that name (None: by words alone), and what else counts."""

    text: str
    model: str | None
    vector: Floats | None
    preferences: ranking.Preferences
    now: datetime


class Found(NamedTuple):
    """A row that answers, its score, and the parts of the score."""

    row: int
    score: float
    parts: dict[str, float]


class Search:
    """Searches views, and keeps with each view what it answered, until the view changes."""

    def __init__(self, known_by: Callable[..., bytes]) -> None:
        self.rate = Rate()
        self._known_by = known_by

    def __call__(self, view: View, question: Question, where: Condition, *, limit: int, min_score: float) -> list[Recollection]:
        """The memories that answer best, best first; of equals the older first.

        With a vector, no row of the view may lack one of that model.
        """
        spans = preferred(question.text, question.now)
        # The condition's parts, because its own repr does not show the values.
        what = (question.model, question.preferences, *where, limit, min_score, spans)
        key = self._known_by(question.text, repr(what))
        found = None if question.preferences.recency else view.found_before.get(key)
        self.rate.count(hit=found is not None)
        if found is None:
            found = search(view, question, where, limit=limit, min_score=min_score)
            if len(view.found_before) >= KEPT_MAX:
                view.found_before.clear()
            view.found_before[key] = found
        memories = view.table.memories([hit.row for hit in found])
        return [
            Recollection(memory=memory, score=hit.score, parts=dict(hit.parts))
            for memory, hit in zip(memories, found, strict=True)
        ]


def search(view: View, question: Question, where: Condition, *, limit: int, min_score: float) -> list[Found]:
    """The rows that answer best, best first."""
    asked = _asked(view, question, where)
    if not len(asked):
        return []
    rows = view.places.around(asked)
    scores = ranking.score(evidence(view, question, rows), question.preferences)
    best = ranking.best(scores.total, rows.asked, limit, min_score)
    told = (scores.of(at) for at in best)
    return [Found(row, *told_) for row, told_ in zip(view.places.rows(rows.slots[best]), told, strict=True)]


def _asked(view: View, question: Question, where: Condition) -> Slots:
    """The slots that are ranked."""
    if where != ALL:
        return view.places.slots_of(view.table.matching(where))
    if view.places.count <= EXACT_MAX:
        return view.places.live()
    near = [view.words.nearest(asked_for(question.text), NEAREST)]
    if question.vector is not None and question.model in view.vectors:
        near.append(view.vectors[question.model].nearest(question.vector, NEAREST))
    return _with_neighbours(view.places, np.concatenate(near))


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
