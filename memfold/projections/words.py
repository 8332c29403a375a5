"""Full text in RAM: which rows hold how many of a query's words, for 5 rows as for 1,000,000.

`Words` weighs with Okapi BM25 (Robertson and Zaragoza 2009) over arrays. The weight of a turn read together with the turn
before it needs no index of its own: its counts are the sums of theirs. So nothing has to be indexed anew when a turn
between two others is changed or forgotten.

What was added lately is kept as it came (`fresh.Fresh`), the rest sorted by words in a few segments (`postings.Segment`),
each larger than all behind it, which is kept up by merging the last of them (log-structured merge: O'Neil et al.
1996). So a new row costs the same in a view of any size. What a word weighs depends on the texts that are here alone, to the
last bit: not on how they came, nor on what else is asked for.
"""

import math
from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfold.projections.fresh import Fresh
from memfold.projections.postings import Postings, Segment, Slots, distinct, merged
from memfold.projections.tokens import STOP_WORDS, TERMS_MAX, asked_for, plain, plain_words, stemmer, words_of

__all__ = [
    "STOP_WORDS", "TERMS_MAX", "Floats", "Matches", "Slots", "Words", "asked_for", "plain", "plain_words", "stemmer", "words_of"
]  # fmt: skip

Floats = NDArray[np.float32]

K1, B = 1.2, 0.75
COUNTS_AT_ONCE = 2_000_000  # of words times slots, 4 bytes each
FRESH_WORDS, FRESH_WORDS_MAX = 256, 16_384  # that may be looked up as they came, at least and at most; between, a share:
FRESH_SHARE = 1 / 16
FOLDED_AT_ONCE = 1_000_000  # words, 8 bytes each, before they are sorted in any case
SMALL = 100_000  # postings, which are merged in milliseconds
GROUPS = 8  # for each of the best that are wanted, of which the largest values are looked at first
MANY = 1_000  # slots asked for: then those without any of the words are left out first
FEW = 64  # times as many slots as are asked for: then each of these is looked up

# BM25 calls a word worthless that stands in more than half of the rows, which in a session of three is nearly every word.
# So every session counts as if it went on from a hundred earlier turns of ordinary length that say nothing anybody asks for.
PRIOR_ROWS, PRIOR_WORDS = 100, 13


class Matches(NamedTuple):
    """What a query's words weigh in every row: alone, and in the row together with the one before it."""

    alone: Floats
    paired: Floats


class _Found(NamedTuple):
    """A word that rows hold: where, in parts that share no slot, and what it is worth."""

    parts: list[Postings]
    rarity: np.float32


LookedUp = list[_Found | None]
"""Where some words stand, in their order; None for a word that no row holds."""


class Words:
    """The words of a view's rows, by slot. A slot is a place in the order of the stream; slots are given out rising."""

    def __init__(self) -> None:
        self._fresh = Fresh()
        self._segments: list[Segment] = []  # largest first
        self._lengths = array("I", [0])  # of each slot, in words; the last is nobody's, for -1
        self._rows = 0
        self._total = 0

    # -- folding -------------------------------------------------------------------------------------------------------

    def add(self, slot: int, text: str) -> None:
        """Index a text at a slot that holds none."""
        length = self._fresh.add(slot, text)
        missing = slot + 2 - len(self._lengths)
        if missing > 0:
            self._lengths.frombytes(bytes(4 * missing))
        self._lengths[slot] = length
        self._rows += 1
        self._total += length
        if len(self._fresh) > FOLDED_AT_ONCE:
            self._sort_fresh()

    def remove(self, slot: int, text: str) -> None:
        """Take a text out again, as it was added. After `settle`, nothing tells that it ever stood here."""
        if not self._fresh.remove(slot):
            words = list(dict.fromkeys(words_of(text)))
            for segment in reversed(self._segments):
                if segment.remove(slot, words):
                    break
        self._rows -= 1
        self._total -= self._lengths[slot]
        self._lengths[slot] = 0

    def settle(self) -> None:
        """After a fold: keep nothing that tells of rows that are gone, nor more than is needed until the next fold."""
        if not self._unsorted():
            self._fresh.settle()
        elif self._fresh.removed:
            self._sort_fresh()
        if any(2 * segment.gone > len(segment) for segment in self._segments):
            self._segments = [merged([each]) if each.gone else each for each in self._segments if each.gone < len(each)]

    def _unsorted(self) -> bool:
        """Whether so much came that it is to be sorted before anything is looked up; not earlier, for still more may come."""
        return len(self._fresh) > max(FRESH_WORDS, min(FRESH_WORDS_MAX, int(FRESH_SHARE * self._total)))

    def _sort_fresh(self) -> None:
        self._segments.append(self._fresh.segment())
        self._fresh = Fresh()
        begin = merge_from([len(segment) for segment in self._segments])
        if begin < len(self._segments) - 1:
            self._segments[begin:] = [merged(self._segments[begin:])]

    def renumber(self, slots: Slots) -> None:
        """Keep these slots only (no other holds a text), numbered 0, 1, 2 … in their order."""
        kept = np.zeros(len(self._lengths), np.uint32)
        kept[slots] = 1
        new = (np.cumsum(kept) - kept).astype(np.uint32)
        self._sort_fresh()
        for segment in self._segments:
            segment.renumber(new)
        self._segments = [merged(self._segments)]
        self._lengths = array("I", np.frombuffer(self._lengths, np.uint32)[slots].tobytes())
        self._lengths.append(0)

    # -- asking --------------------------------------------------------------------------------------------------------

    def look_up(self, words: Sequence[str]) -> LookedUp:
        """Where each of distinct words stands, for asking about it until the next change."""
        if self._unsorted():
            self._sort_fresh()
        segments = [[segment.postings(word) for word in words] for segment in self._segments]
        found: LookedUp = []
        for each in zip(*segments, self._fresh.postings(words), strict=True):
            parts = [part for part in each if part]
            found.append(_Found(parts, self._rarity(sum(part.holding for part in parts))) if parts else None)
        return found

    def weigh(self, looked_up: LookedUp, slots: Slots, before: Slots) -> Matches:
        """The BM25 weights of words at distinct `slots`; `before` are those of the rows before them, -1 for none.

        Costs about 50 us; then, if many slots are asked for, 7 ns for each; if few of many, about 50 ns a word for each.
        """
        matches = Matches(np.zeros(len(slots), np.float32), np.zeros(len(slots), np.float32))
        found = [word for word in looked_up if word]
        if len(slots) > MANY and not self._few(slots):
            at = self._holding(found, slots, before)
            matches.alone[at], matches.paired[at] = self._weigh(found, slots[at], before[at])
            return matches
        return self._weigh(found, slots, before)

    def _weigh(self, found: list[_Found], slots: Slots, before: Slots) -> Matches:
        asked, count = np.concatenate([slots, before]), len(slots)
        lengths = np.frombuffer(self._lengths, np.uint32)[asked].astype(np.float32)
        norms = np.concatenate([self._norm(lengths[:count], 1), self._norm(lengths[:count] + lengths[count:], 2)])
        sums = np.zeros(2 * count, np.float32)
        at_once = 1 + COUNTS_AT_ONCE // (1 + len(asked) if self._few(asked) else len(self._lengths))
        for begin in range(0, len(found), at_once):
            some = found[begin : begin + at_once]
            counts = self._counts(some, asked)
            counts[:, count:] += counts[:, :count]
            for row, word in zip(counts / (counts + norms), some, strict=True):
                sums += row * word.rarity  # one by one: the sum must not depend on how many there are at once
        return Matches(sums[:count], sums[count:])

    def _holding(self, found: list[_Found], slots: Slots, before: Slots) -> Slots:
        """At which places of `slots` a word stands, there or in the row before."""
        holding = np.zeros(len(self._lengths), np.bool_)
        for word in found:
            for part in word.parts:
                holding[part.slots] = True
        return np.flatnonzero(holding[slots] | holding[before])

    def holding(self, looked_up: LookedUp, slots: Slots) -> tuple[Floats, NDArray[np.bool_]]:
        """What each word is worth (its idf), and which of them stand in each of `slots`: a row a word.

        Slot -1 holds none; a slot may be asked for more than once.
        """
        nowhere = self._rarity(0)
        worth = np.array([found.rarity if found else nowhere for found in looked_up], np.float32)
        held = np.zeros((len(looked_up), len(slots)), np.bool_)
        somewhere = [at for at, found in enumerate(looked_up) if found]
        held[somewhere] = self._counts([found for found in looked_up if found], slots) > 0
        return worth / np.float32(K1 + 1), held

    def nearest(self, looked_up: LookedUp, count: int) -> Slots:
        """The `count` slots in which words weigh most, alone; best first, of equals the lower first.

        Fewer if fewer hold any. Costs about 3 ns for each row that holds one of the words, and 0.3 ns a row of the view.
        """
        lengths = np.frombuffer(self._lengths, np.uint32)
        sums = np.zeros(len(lengths), np.float32)
        for word in filter(None, looked_up):
            for slots, counts, _ in word.parts:
                at, often = slots.astype(np.intp), counts.astype(np.float32)
                sums[at] += often / (often + self._norm(lengths[at].astype(np.float32), 1)) * word.rarity
        return largest(sums, count)

    def _rarity(self, holding: int) -> np.float32:
        rows = self._rows + PRIOR_ROWS
        return np.float32(math.log(1 + (rows - holding + 0.5) / (holding + 0.5)) * (K1 + 1))

    def _norm(self, lengths: Floats, turns: int) -> Floats:
        """What a count is compared with, in texts of these lengths, each of so many turns."""
        average = turns * (self._total + PRIOR_WORDS * PRIOR_ROWS) / (self._rows + PRIOR_ROWS)
        return np.float32(K1 * (1 - B)) + np.float32(K1 * B / average) * lengths

    def _few(self, asked: Slots) -> bool:
        """Whether looking up each slot asked for is quicker than going through all."""
        return len(self._lengths) > FEW * len(asked)

    def _counts(self, found: Sequence[_Found], asked: Slots) -> Floats:
        """How often each of some words stands in each of the slots asked for, -1 holding none: a row a word."""
        if self._few(asked):
            return _counts_of_few(found, asked)
        counts = np.zeros((len(found), len(self._lengths)), np.float32)
        for row, word in zip(counts, found, strict=True):
            for part in word.parts:
                row[part.slots] = part.counts
        return counts.take(asked, axis=1)

    # -- the whole -----------------------------------------------------------------------------------------------------

    def dump(self, slots: Slots) -> list[list[tuple[str, int]]]:
        """The words of every slot with their counts, for comparing two views."""
        found: dict[int, dict[str, int]] = {int(slot): {} for slot in slots}
        for word, postings in self._postings():
            for slot, count in zip(postings.slots.tolist(), postings.counts.tolist(), strict=True):
                found[slot][word] = count
        return [sorted(words.items()) for words in found.values()]

    def _postings(self) -> Iterator[tuple[str, Postings]]:
        for segment in self._segments:
            each = ((word, segment.at(number)) for number, word in enumerate(segment.vocabulary.words()))
            yield from ((word, postings) for word, postings in each if postings.holding)
        for word, found in zip(words := self._fresh.words(), self._fresh.postings(words), strict=True):
            if found:
                yield word, found

    def size_bytes(self) -> int:
        """About how much RAM the index takes."""
        return 4 * len(self._lengths) + self._fresh.size_bytes() + sum(segment.size_bytes() for segment in self._segments)


def merge_from(sizes: Sequence[int]) -> int:
    """From which segment on to merge, so that each stays larger than all behind it, and the small ones are one."""
    behind = sum(sizes)
    for at, size in enumerate(sizes):
        behind -= size
        if behind >= size or behind + size <= SMALL:
            return at
    return len(sizes)


def _counts_of_few(found: Sequence[_Found], asked: Slots) -> Floats:
    """Each slot is sought once, in order, and only between the first and the last of a part: many are asked for twice."""
    every = asked.astype(np.uint32)
    sought = np.sort(every)
    sought = sought[distinct(sought)]
    counts = np.zeros((len(found), len(sought)), np.float32)
    for row, word in zip(counts, found, strict=True):
        for slots, often, _ in word.parts:
            begin, end = sought.searchsorted(slots[0]), sought.searchsorted(slots[-1], "right")
            at = slots.searchsorted(sought[begin:end])
            hit = np.flatnonzero(slots[at] == sought[begin:end])
            row[begin + hit] = often[at[hit]]
    return counts.take(sought.searchsorted(every), axis=1)


def largest(values: Floats, count: int) -> Slots:
    """Where the `count` largest values are that are above 0, largest first, of equals the lower place first."""
    least = _exceeded_by(values, count)
    at = np.flatnonzero(values >= least if least > 0 else values)
    given = values[at]
    if len(at) > count:
        at = at[given >= np.partition(given, len(given) - count)[len(given) - count]]
        given = values[at]
    return at[np.argsort(-given, kind="stable")[:count]]


def _exceeded_by(values: Floats, count: int) -> np.float32:
    """A value that `count` others reach, as the largest of each of many groups tell quickly; 0 if they do not."""
    height = len(values) // (GROUPS * max(1, count))
    if height < 2:
        return np.float32(0)
    greatest = values[: len(values) // height * height].reshape(height, -1).max(axis=0)
    return np.float32(np.partition(greatest, len(greatest) - count)[len(greatest) - count])
