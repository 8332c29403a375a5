"""Postings: of each word the slots that hold it, rising, and how often, in a few flat arrays.

A `Segment` is made at once and takes about 5 bytes for a word of a row, and 20 beside the letters for a word that is new to
it. Rows can be taken out of it one by one; nothing can be put in. Several segments become one by `merged`.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import chain, compress
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
Numbers = NDArray[np.uint32]


class Postings(NamedTuple):
    """The slots that hold a word, rising; how often each does; and how many they are: some may be there more than once."""

    slots: Numbers
    counts: NDArray[np.integer]
    holding: int


_HASH = 0xFFFFFFFF


class Vocabulary:
    """Distinct words, numbered 0, 1, 2 … in the order of their hashes: a hash and an end a word, and all letters in one run."""

    def __init__(self, words: Sequence[str], hashes: Numbers) -> None:
        """Of words in the order of their hashes."""
        self._letters = bytearray("".join([word + "\n" for word in words]).encode())
        ends = np.flatnonzero(np.frombuffer(self._letters, np.uint8) == ord("\n"))
        self._hashes, self._ends = hashes.data, ends.astype(np.uint32).data  # a view is read three times as fast, one by one

    def __len__(self) -> int:
        return len(self._hashes)

    def words(self) -> list[str]:
        """Every word, by number; something else in the place of one that was erased."""
        return self._letters.decode().split("\n")[:-1]

    def find(self, word: str) -> int:
        """The number of a word; -1 if it is not here."""
        sought, letters = hash(word) & _HASH, (word + "\n").encode()
        number = bisect_left(self._hashes, sought)
        while number < len(self._hashes) and self._hashes[number] == sought:
            if self._letters.startswith(letters, self._begin(number)):
                return number
            number += 1
        return -1

    def _begin(self, number: int) -> int:
        """Where in the letters a word begins."""
        return self._ends[number - 1] + 1 if number else 0

    def erase(self, number: int) -> None:
        """Overwrite a word; its hash becomes that of the word before it, which keeps them in order."""
        begin, end = self._begin(number), self._ends[number]
        self._letters[begin:end] = bytes(end - begin)
        hash_before = self._hashes[number - 1] if number else 0
        while number < len(self._hashes) and not self._letters[self._begin(number)]:  # those behind it may repeat its hash
            self._hashes[number] = hash_before
            number += 1

    def size_bytes(self) -> int:
        """How much RAM it takes."""
        return 8 * len(self._hashes) + len(self._letters)


class Segment:
    """The postings of some rows. Where a row was taken out, its place in a word's postings repeats its neighbour's."""

    def __init__(self, vocabulary: Vocabulary, holding: Slots, slots: Slots, counts: Slots) -> None:
        """Of each word how many slots hold it; then word for word the slots, rising, and how often."""
        self.vocabulary = vocabulary
        self.holding = holding.astype(np.uint32)
        self.begins = np.concatenate([[0], np.cumsum(holding)]).astype(np.uint32)
        self.slots = slots.astype(np.uint32)
        self.counts = counts.astype(np.min_scalar_type(int(counts.max(initial=1))))
        self.gone = 0  # postings that repeat a neighbour's
        self.first, self.last = (int(slots.min()), int(slots.max())) if len(slots) else (0, -1)

    def __len__(self) -> int:
        return len(self.slots)

    def postings(self, word: str) -> Postings | None:
        """The slots that hold a word and how often, a posting perhaps more than once; None if none does."""
        number = self.vocabulary.find(word)
        return None if number < 0 else self.at(number)

    def at(self, number: int) -> Postings:
        """The same, of the word of this number."""
        begin, end = self.begins[number : number + 2].tolist()
        return Postings(self.slots[begin:end], self.counts[begin:end], int(self.holding[number]))

    def remove(self, slot: int, words: Sequence[str]) -> bool:
        """Take a slot out, which holds these distinct words; False if it is not in this segment."""
        if not self.first <= slot <= self.last:
            return False
        for at, word in enumerate(words):
            number = self.vocabulary.find(word)
            if number < 0 or not self._take_out(slot, number):
                return at > 0
        return len(words) > 0

    def _take_out(self, slot: int, number: int) -> bool:
        begin, end = self.begins[number : number + 2].tolist()
        slots, counts = self.slots.data, self.counts.data
        at = bisect_left(slots, slot, begin, end)
        if at == end or slots[at] != slot:
            return False
        self.gone += 1
        self.holding[number] -= 1
        if not self.holding[number]:
            self.slots[begin:end], self.counts[begin:end] = 0, 0
            self.vocabulary.erase(number)
            return True
        behind = bisect_right(slots, slot, at, end)
        other = behind if behind < end else at - 1
        self.slots[at:behind], self.counts[at:behind] = slots[other], counts[other]
        return True

    def renumber(self, new: Numbers) -> None:
        """Let every slot be another, in the same order."""
        self.slots = new[self.slots]
        self.first, self.last = int(new[self.first]), int(new[self.last])

    def size_bytes(self) -> int:
        """How much RAM it takes."""
        return self.vocabulary.size_bytes() + sum(each.nbytes for each in (self.begins, self.holding, self.slots, self.counts))


def vocabulary_of(words: Sequence[str]) -> tuple[Vocabulary, Slots]:
    """A vocabulary of distinct words, and the number of each of them there."""
    hashes = (np.fromiter(map(hash, words), np.int64, len(words)) & _HASH).astype(np.uint32)
    order = np.argsort(hashes, kind="stable")
    numbers = np.empty(len(words), np.int64)
    numbers[order] = np.arange(len(words))
    return Vocabulary([words[at] for at in order.tolist()], hashes[order]), numbers


def segment_of(words: Sequence[str], numbers: Numbers, slots: Numbers) -> Segment:
    """The postings of texts: of each word of theirs, in any order, its number among `words` and the slot of its text."""
    used = np.flatnonzero(np.bincount(numbers, minlength=len(words)))
    vocabulary, ranks = vocabulary_of([words[number] for number in used.tolist()])
    new = np.zeros(len(words), np.int64)
    new[used] = ranks
    bits = int(slots.max(initial=0)).bit_length()
    keys = new[numbers]
    keys <<= bits
    keys |= slots
    keys, counts = counted(keys)
    return Segment(vocabulary, np.bincount(keys >> bits), keys & ((1 << bits) - 1), counts)


def counted(keys: Slots) -> tuple[Slots, Slots]:
    """The distinct ones of some numbers, rising, and how often each is there. Sorts `keys`."""
    keys.sort()
    first = distinct(keys)
    return keys[first], np.diff(np.flatnonzero(first), append=len(keys))


def distinct(keys: Slots | Numbers) -> NDArray[np.bool_]:
    """Which of some rising numbers are not the same as the one before."""
    first = np.ones(len(keys), np.bool_)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    return first


def merged(segments: Sequence[Segment]) -> Segment:
    """One segment of what several hold, none of them the same slot.

    Each is in order already, so a stable sort of all their postings, each one number, does little more than copy them.
    """
    living = [list(compress(segment.vocabulary.words(), segment.holding.tolist())) for segment in segments]
    positions = {word: at for at, word in enumerate(dict.fromkeys(chain.from_iterable(living)))}
    vocabulary, ranks = vocabulary_of(list(positions))
    numbers = [ranks[np.fromiter(map(positions.__getitem__, words), np.int64, len(words))] for words in living]
    holding = np.zeros(len(ranks), np.int64)
    for segment, new in zip(segments, numbers, strict=True):
        holding[new] += segment.holding[segment.holding > 0]
    count_bits = max(int(segment.counts.max(initial=0)).bit_length() for segment in segments)
    slot_bits = max(max(segment.last, 0).bit_length() for segment in segments)
    keys = np.concatenate([_keys(*each, slot_bits, count_bits) for each in zip(segments, numbers, strict=True)])
    keys.sort(kind="stable")
    if any(segment.gone for segment in segments):
        keys = keys[distinct(keys)]
    counts = keys & ((1 << count_bits) - 1)
    keys >>= count_bits
    keys &= (1 << slot_bits) - 1
    return Segment(vocabulary, holding, keys, counts)


def _keys(segment: Segment, numbers: Slots, slot_bits: int, count_bits: int) -> Slots:
    """The postings of a segment's living words as one number each: the word's new number, the slot, how often."""
    alive = segment.holding > 0
    sizes = np.diff(segment.begins)
    keys = np.repeat(numbers << (slot_bits + count_bits), sizes[alive])
    kept = np.repeat(alive, sizes) if segment.gone else slice(None)
    keys |= segment.slots[kept].astype(np.int64) << count_bits
    keys |= segment.counts[kept]
    return keys
