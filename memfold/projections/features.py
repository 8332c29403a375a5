"""What is known of each candidate for an answer, as numbers with names: one pure function, from which `learned` makes a score.

A recall first ranks all rows by the fixed mix (`ranking`); what comes out on top is looked at again here, with what would be
too dear for every row: which of the query's words stand in the rows around it, what kind of sentence it is, who said it, when,
and how much else that fits was said near by. Every feature is meant to hold for any chat, not for one collection of them.

What a text itself is like is read once, when it is folded, and kept as a few small numbers (`text_facts`).
"""

import math
import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfold.projections.words import Floats, Slots

HALF, MANY = 10.0, 30.0  # BM25 weights that count as a half: of one word or two, and of many
NEAR_ROWS, NEAR_FROM = 8, 0.3  # to either side; what a row must be worth to count there
PAUSE_MICROS = 3_600_000_000  # an hour: what is said after it does not answer what was said before
TIMES_MAX = 3  # how often something is in a text, as far as it matters
END = 500  # characters in which a last question is looked for
DEVIATIONS_MAX = 6.0
PRIOR_ROWS, PRIOR_MEAN, PRIOR_DEVIATION = 20, 0.1, 0.12  # similarities of a query with turns that have nothing to do with it
ECHOES_OF, ECHO_SHARPNESS = 10, 8.0

WITHOUT_MEANING = (
    "best", "mix", "words", "words_pair", "words_before", "covered", "covered_wide", "mix_beside", "near",
    "named", "own_words", "named_personal", "asks", "names", "answers", "no_time", "no_number", "other_time",
)  # fmt: skip
WITH_MEANING = (*WITHOUT_MEANING, "meaning", "echo")

_WORD = re.compile(r"[a-z0-9]+")
_DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_MONTHS = "january february march april june july august september october november december"
_TIMES = frozenset(re.findall(r"\w+", f"yesterday today tomorrow tonight ago {_MONTHS}")) | {
    name + ending for name in _DAYS for ending in ("", "s")
}
_TIME_IN_FIGURES = re.compile(r"\b(?:(?:19|20)\d\d|\d+(?:st|nd|rd|th))\b")
_CUES = frozenset(("last", "next", "this", "past"))
_TIME_WITH_CUE = re.compile(
    r"\b(?:last|next|this|past)\s(?:week|weekend|month|year|night|morning|evening|summer|winter|spring|fall|autumn)\b"
)
_DIGIT = re.compile("[0-9]")
_NUMBERS = frozenset(re.findall(r"\w+", "two three four five six seven eight nine ten dozen twice several couple"))
_FIRST_PERSON = frozenset(("i", "my", "me", "mine", "we", "our", "us", "myself"))
_ASKS = re.compile(r"\?['\"”)\s]*(?:\[[^\]]*\]\s*)?\Z")
_NAME = re.compile(r"(?<![.!?:\"'“])\s(?:[A-Z][a-z]+|[A-Z]{2,})")
_ASKS_WHEN = re.compile(r"\b(?:when|(?:what|which) (?:date|day|month|year|time))\b", re.IGNORECASE)
_ASKS_NUMBER = re.compile(r"\bhow (?:many|much|often|long|old)\b", re.IGNORECASE)

FACTS = ("asks", "time", "number", "first_person", "names")
ASKS, TIME, NUMBER, FIRST_PERSON, NAMES = range(len(FACTS))


def text_facts(content: str) -> tuple[int, int, int, int, int]:
    """What a memory's content is like, in the order of FACTS, each in 0 to 255.

    Whether it ends in a question, whether it says a time, whether it says a number, how often it says I or we (at most
    TIMES_MAX), how many names stand within its sentences (at most TIMES_MAX).
    """
    lower = content.lower()
    words = _WORD.findall(lower)
    said = set(words)
    digits = _DIGIT.search(lower) is not None
    return (
        int(_ASKS.search(content[-END:]) is not None),
        int(_says_time(lower, said, digits=digits)),
        int(not said.isdisjoint(_NUMBERS) or (digits and any(map(str.isdecimal, words)))),
        min(sum(map(_FIRST_PERSON.__contains__, words)), TIMES_MAX),
        min(len(_NAME.findall(content)), TIMES_MAX),
    )


def _says_time(lower: str, said: set[str], *, digits: bool) -> bool:
    """Whether a text in lower case, of these words, says a day, a month, a year, or a time that is told from today."""
    return (
        not said.isdisjoint(_TIMES)
        or (digits and _TIME_IN_FIGURES.search(lower) is not None)
        or (not said.isdisjoint(_CUES) and _TIME_WITH_CUE.search(lower) is not None)
    )


class Known(NamedTuple):
    """What is known of n ranked rows, and more of the candidates among them and of those around each candidate.

    Of all n: `similarities`, their cosines with the query (None if there is no vector to ask with), the BM25 weights `alone`
    and `paired`, `mixed`, the sum that the fixed mix came to, `named`, whether the query names their speaker, and `before`
    and `after`, the places of their neighbours in their session, -1 where there is none or it is not among the n.
    `usual` is that of the similarities of all rows there are, ranked or not.
    `window` (5, c) says where around each of c candidates is looked, as `window_of` finds it. Of the rows there: `held`
    (words, 5, c), which of the query's words stand in them, `facts` (5, c, len(FACTS)), their `text_facts`, and `speakers`
    (5, c), a number each, 0 for nobody; what stands at a -1 does not matter, but that nothing is held there. Of each word
    `rarity`, its idf. Of each candidate `echoes`, as `echo_weights` says (None without similarities), and `fits`, how well its
    time fits the times the query means, in [0, 1].
    """

    similarities: Floats | None
    usual: tuple[float, float]
    alone: Floats
    paired: Floats
    mixed: Floats
    named: NDArray[np.bool_]
    before: Slots
    after: Slots
    window: Slots
    held: NDArray[np.bool_]
    facts: NDArray[np.uint8]
    speakers: NDArray[np.int64]
    rarity: Floats
    echoes: Floats | None
    fits: Floats | None


def window_of(candidates: Slots, before: Slots, after: Slots, occurred_at: NDArray[np.int64]) -> Slots:
    """Of each candidate five places: its own, the ones before and after it, and those two before and two after; int64 (5, c).

    `before`, `after` and `occurred_at` (microseconds) are of all ranked rows. -1 stands where there is no row, or where a pause
    parts it from the candidate.
    """
    first, last = _next(candidates, before, occurred_at), _next(candidates, after, occurred_at)
    return np.stack([candidates, first, last, _next(first, before, occurred_at), _next(last, after, occurred_at)])


def _next(rows: Slots, links: Slots, occurred_at: NDArray[np.int64]) -> Slots:
    """Where the links of some rows lead; -1 from -1, and over a pause."""
    found = np.where(rows >= 0, links[rows], -1)
    together = np.abs(occurred_at[found] - occurred_at[rows]) <= PAUSE_MICROS
    reached: Slots = np.where((found >= 0) & together, found, -1)
    return reached


def usual(similarities: Floats) -> tuple[float, float]:
    """Mean and standard deviation of similarities, as if there were PRIOR_ROWS more: a few say little of what is usual."""
    rows = len(similarities) + PRIOR_ROWS
    mean = (float(similarities.sum(dtype=np.float64)) + PRIOR_ROWS * PRIOR_MEAN) / rows
    squares = float(np.square(similarities - np.float32(mean)).sum(dtype=np.float64))
    prior = PRIOR_ROWS * (PRIOR_DEVIATION**2 + (PRIOR_MEAN - mean) ** 2)
    return mean, math.sqrt((squares + prior) / rows)


def echo_weights(mixed: Floats) -> Floats:
    """How much each of the ECHOES_OF best candidates counts for what else is looked for, as answers are like each other.

    `mixed` is what the candidates came to, best first. The `echoes` of a row are the weighted mean of its cosines with those:
    the inner product with the sum of their vectors times these weights, which add up to 1.
    """
    best = mixed[:ECHOES_OF]
    weights = np.exp(np.float32(ECHO_SHARPNESS) * (best - best.max(initial=0)))
    shares: Floats = weights / weights.sum()
    return shares


def features(query: str, known: Known) -> dict[str, Floats]:
    """Of each candidate every feature, by name: float32, one value a candidate, about 0 to 1 each.

    They are those of `WITH_MEANING`, or without similarities those of `WITHOUT_MEANING`.
    """
    likeness = None if known.similarities is None else _likeness(known.similarities, known.usual)
    found = _surroundings(known, likeness) | _words(known) | _people(known) | _text(query, known)
    if likeness is not None and known.echoes is not None:
        found |= {"meaning": likeness[known.window[0]], "echo": known.echoes}
    return found


def _of(values: Floats, rows: Slots) -> Floats:
    """The values of some rows; 0 for row -1."""
    found: Floats = np.where(rows >= 0, values[rows], np.float32(0))
    return found


def _saturated(weights: Floats, half: float) -> Floats:
    return weights / (weights + np.float32(half))


def _likeness(similarities: Floats, usual: tuple[float, float]) -> Floats:
    """How far each row's similarity lies above the usual one, up to 1: the same for embedders of any habits."""
    mean, deviation = usual
    scale = np.float32(1 / max(DEVIATIONS_MAX * deviation, 1e-6))
    likeness: Floats = np.clip((similarities - np.float32(mean)) * scale, np.float32(-0.5), np.float32(1))
    return likeness


def _words(known: Known) -> dict[str, Floats]:
    """How much of the query the row says, alone and with the rows around it."""
    row, before = known.window[:2]
    share = known.rarity / np.float32(max(float(known.rarity.sum()), 1e-6))
    return {
        "words": _saturated(known.alone[row], MANY),
        "words_pair": _saturated(known.paired[row], MANY),
        "words_before": _saturated(_of(known.alone, before), HALF),
        "covered": share @ known.held[:, 0],
        "covered_wide": share @ known.held.any(axis=1),
    }


def _surroundings(known: Known, likeness: Floats | None) -> dict[str, Floats]:
    """What the fixed mix thinks of the neighbours, and how much else that fits stands near by."""
    row, before, after = known.window[:3]
    before_mixed, after_mixed = _of(known.mixed, before), _of(known.mixed, after)
    worth = _saturated(known.alone, HALF)
    if likeness is not None:
        worth = np.float32(0.5) * (worth + np.maximum(likeness, 0))
    worth = np.append(np.maximum(worth - np.float32(NEAR_FROM), 0), np.float32(0))
    return {
        "best": np.full(len(row), known.mixed.max(initial=0), np.float32),
        "mix": known.mixed[row],
        "mix_beside": np.maximum(before_mixed, after_mixed),
        "near": _summed(worth, row, known.before) + _summed(worth, row, known.after),
    }


def _summed(worth: Floats, rows: Slots, links: Slots) -> Floats:
    """The sum over the NEAR_ROWS rows that the links lead to, one from the other. `worth` ends with that of row -1."""
    links = np.append(links, -1)
    total = np.zeros(len(rows), np.float32)
    for _ in range(NEAR_ROWS):
        rows = links[rows]
        total += worth[rows]
    return total


def _people(known: Known) -> dict[str, Floats]:
    """Who says it, and whether that is whom the query names."""
    row, before = known.window[:2]
    named = known.named[row]
    goes_on = (before >= 0) & (known.speakers[1] == known.speakers[0])
    return {
        "named": named.astype(np.float32),
        "own_words": goes_on * _saturated(_of(known.alone, before), HALF),
        "named_personal": named * known.facts[0, :, FIRST_PERSON] / np.float32(TIMES_MAX),
    }


def _text(query: str, known: Known) -> dict[str, Floats]:
    """What kind of text it is, and whether that is what is asked for."""
    facts = known.facts[0].T.astype(np.float32)
    before = known.window[1]
    asked = (before >= 0) & (known.facts[1, :, ASKS] > 0)
    return {
        "asks": facts[ASKS],
        "names": facts[NAMES] / np.float32(TIMES_MAX),
        "answers": asked * _saturated(_of(known.alone, before), HALF),
        "no_time": (1 - facts[TIME]) * np.float32(_ASKS_WHEN.search(query) is not None),
        "no_number": (1 - facts[NUMBER]) * np.float32(_ASKS_NUMBER.search(query) is not None),
        "other_time": np.zeros(facts.shape[1], np.float32) if known.fits is None else 1 - known.fits,
    }
