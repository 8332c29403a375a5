"""How good an answer each row is: one pure function of what is known about the rows and the query.

The fixed mix: half the meaning (cosine; of the row, and a quarter of the row before it), half the words (BM25; of the row,
and of the row together with the one before it), then a share of the neighbours' own scores, and a bonus for the rows of a
speaker whom the query names, and for those that occurred when it says. A turn of a conversation is often understood only by
the turns around it: an answer does not repeat the words of its question.

Nothing here depends on the other answers to the same query, so a score means the same for every query. A BM25 weight has no
upper end, so it counts as w / (w + HALF); the sum of all, m, becomes 1 - exp(-m), in [0, 1): the more is known already, the
less one more sign adds. Weights were set beforehand (convex combination: Bruch et al. 2023), checked on LoCoMo dev, and
found flat around here; see docs/decisions.md.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfold.projections.words import Floats, Matches, Slots

MEANING, MEANING_BEFORE = 0.5, 0.25
WORDS, WORDS_PAIRED, HALF = 0.5, 0.4, 10.0
BEFORE, AFTER = 0.2, 0.25
NAMED = 0.2
WHEN = 0.2


@dataclass(frozen=True)
class Preferences:
    """What besides the query makes a memory worth recalling: weights from 0 (off), against 1 for the answer itself.

    `recency` halves every `recency_half_life_days`.
    """

    importance: float = 0.0
    recency: float = 0.0
    recency_half_life_days: float = 30.0


class Evidence(NamedTuple):
    """What is known of some rows: one value a row.

    `before` and `after` are the places of each row's neighbours in its session, -1 where there is none. `similarities` are
    cosines with the query; None if there is no vector to ask with. `named` says whose speaker the query names. `when` is how
    well it fits the times that the query speaks of, in [0, 1]; None if it speaks of none. `importance` is in [0, 1], `age_days`
    is how long ago it occurred.
    """

    before: Slots
    after: Slots
    similarities: Floats | None
    matches: Matches
    named: NDArray[np.bool_]
    when: Floats | None
    importance: Floats
    age_days: Floats


class Scores(NamedTuple):
    """The score of every row, in [0, 1); the sum it comes from, and the parts of that sum, by name."""

    total: Floats
    mixed: Floats
    parts: dict[str, Floats]

    def of(self, row: int) -> tuple[float, dict[str, float]]:
        """The score of a row, and the parts that add up to it."""
        score = float(self.total[row])
        share = score / float(self.mixed[row])
        return score, {name: float(part[row]) * share for name, part in self.parts.items()}


def score(evidence: Evidence, preferences: Preferences) -> Scores:
    """How good an answer each row is."""
    before, after = evidence.before, evidence.after
    words = _words(evidence.matches)
    meaning = np.zeros_like(words) if evidence.similarities is None else _meaning(evidence.similarities, before)
    own = meaning + words
    parts = {
        "meaning": meaning,
        "words": words,
        "neighbours": np.float32(BEFORE) * at(own, before) + np.float32(AFTER) * at(own, after),
        "speaker": np.float32(NAMED) * evidence.named,
    }
    if evidence.when is not None:
        parts["time"] = np.float32(WHEN) * evidence.when
    if preferences.importance:
        parts["importance"] = np.float32(preferences.importance) * evidence.importance
    if preferences.recency:
        age = np.maximum(evidence.age_days, 0) / np.float32(preferences.recency_half_life_days)
        parts["recency"] = np.float32(preferences.recency) * np.exp2(-age)
    mixed = meaning + words
    for name in list(parts)[2:]:
        mixed += parts[name]
    return Scores(-np.expm1(-mixed), mixed, parts)


def _meaning(similarities: Floats, before: Slots) -> Floats:
    mixed = np.float32(1 - MEANING_BEFORE) * similarities + np.float32(MEANING_BEFORE) * at(similarities, before)
    return np.asarray(np.float32(MEANING) * np.clip(mixed, 0, 1), np.float32)


def _words(matches: Matches) -> Floats:
    weight = np.float32(1 - WORDS_PAIRED) * matches.alone + np.float32(WORDS_PAIRED) * matches.paired
    return np.asarray(np.float32(WORDS) * weight / (weight + np.float32(HALF)), np.float32)


def at(values: Floats, places: Slots) -> Floats:
    """The values at these places; 0 at place -1, which is nowhere."""
    padded = np.zeros(len(values) + 1, values.dtype)
    padded[:-1] = values
    return padded[places]


def best(scores: Floats, allowed: NDArray[np.int64], limit: int, min_score: float) -> NDArray[np.int64]:
    """The `limit` best of the rows `allowed`, best first, of equals the older first, none below `min_score`.

    A row of score 0 has nothing in common with the query and is no answer.
    """
    allowed = allowed[scores[allowed] > 0]
    given = scores[allowed]
    if len(given) > limit:
        threshold = np.partition(given, len(given) - limit)[len(given) - limit]
        allowed = allowed[given >= threshold]
        given = scores[allowed]
    order = np.argsort(-given, kind="stable")[:limit]
    return allowed[order[given[order] >= np.float32(min_score)]]
