"""Postings: of each word the slots that hold it, rising, and how often, in a few flat arrays.

A `Segment` is made at once and takes about 5 bytes for a word of a row, and 20 beside the letters for a word that is new to
it. Rows can be taken out of it one by one; nothing can be put in. Several segments become one by `merged`.
"""

from collections.abc import Sequence
from itertools import chain, compress

import numpy as np
from numpy.typing import NDArray

Slots = NDArray[np.int64]
Numbers = NDArray[np.uint32]
Postings = tuple[Numbers, NDArray[np.unsignedinteger]]  # the slots that hold a word, rising, and how often each does

_HASH = 0xFFFFFFFF


class Vocabulary:
    """Distinct words, numbered 0, 1, 2 … in the order of their hashes: a hash and an end a word, and all letters in one run."""

    def __init__(self, words: Sequence[str], hashes: Numbers) -> None:
        """Of words in the order of their hashes."""
        self._hashes = hashes
        self._letters = bytearray("".join([word + "\n" for word in words]).encode())
        self._ends = np.flatnonzero(np.frombuffer(self._letters, np.uint8) == ord("\n")).astype(np.uint32)

    def __len__(self) -> int:
        return len(self._hashes)

    def words(self) -> list[str]:
        """Every word, by number; something else in the place of one that was erased."""
        return self._letters.decode().split("\n")[:-1]

    def find(self, words: Sequence[str]) -> list[int]:
        """The number of each word; -1 of one that is not here."""
        hashes = np.fromiter((hash(word) & _HASH for word in words), np.uint32, len(words))
        first = self._hashes.searchsorted(hashes).tolist()
        return [self._same(word, number) for word, number in zip(words, first, strict=True)]

    def _same(self, word: str, number: int) -> int:
        """The number of a word, the first of its hash being `number`."""
        letters = (word + "\n").encode()
        while number < len(self._hashes):
            begin = int(self._ends[number - 1]) + 1 if number else 0
            if self._letters.startswith(letters, begin):
                return number
            if int(self._hashes[number]) != hash(word) & _HASH:
                break
            number += 1
        return -1

    def erase(self, number: int) -> None:
        """Overwrite a word; its hash becomes that of the word before it, which keeps them in order."""
        begin = int(self._ends[number - 1]) + 1 if number else 0
        end = int(self._ends[number])
        self._letters[begin:end] = bytes(end - begin)
        hash_before = self._hashes[number - 1] if number else np.uint32(0)
        while number < len(self._hashes) and not self._letters[begin]:  # those behind it may repeat its hash
            self._hashes[number] = hash_before
            begin, number = int(self._ends[number]) + 1, number + 1

    def size_bytes(self) -> int:
        """How much RAM it takes."""
        return 8 * len(self._hashes) + len(self._letters)


class Segment:
    """The postings of some rows. Where a row was taken out, its place in a word's postings repeats its neighbour's."""

    def __init__(self, vocabulary: Vocabulary, numbers: NDArray[np.integer], slots: Slots, counts: Slots) -> None:
        """Of the words `numbers`, rising, what slots hold each, rising, and how often."""
        self.vocabulary = vocabulary
        bounds = np.flatnonzero(np.diff(numbers, prepend=-1, append=len(vocabulary)))
        self.begins = bounds.astype(np.uint32)
        self.holding = np.diff(bounds).astype(np.uint32)  # how many slots hold each word
        self.slots = slots.astype(np.uint32)
        self.counts = counts.astype(np.min_scalar_type(int(counts.max(initial=1))))
        self.gone = 0  # postings that repeat a neighbour's
        self.first, self.last = (int(slots.min()), int(slots.max())) if len(slots) else (0, -1)

    def __len__(self) -> int:
        return len(self.slots)

    def postings(self, number: int) -> Postings:
        """The slots that hold a word and how often; a posting may be there more than once."""
        begin, end = self.begins[number : number + 2].tolist()
        return self.slots[begin:end], self.counts[begin:end]

    def remove(self, slot: int, words: Sequence[str]) -> bool:
        """Take a slot out, which holds these distinct words; False if it is not in this segment."""
        if not self.first <= slot <= self.last:
            return False
        removed = False
        for number in self.vocabulary.find(words):
            if number < 0 or not self._take_out(number, slot):
                return removed
            removed = True
        return removed

    def _take_out(self, number: int, slot: int) -> bool:
        slots, counts = self.postings(number)
        begin, end = (int(slots.searchsorted(np.uint32(slot), side)) for side in ("left", "right"))
        if begin == end:
            return False
        self.gone += 1
        self.holding[number] -= 1
        if not self.holding[number]:
            slots[:], counts[:] = 0, 0
            self.vocabulary.erase(number)
            return True
        other = end if end < len(slots) else begin - 1
        slots[begin:end], counts[begin:end] = slots[other], counts[other]
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
    keys = new[numbers] << bits | slots
    keys.sort()
    at = np.flatnonzero(np.diff(keys, prepend=-1))
    counts = np.diff(at, append=len(keys))
    keys = keys[at]
    return Segment(vocabulary, keys >> bits, keys & ((1 << bits) - 1), counts)


def merged(segments: Sequence[Segment]) -> Segment:
    """One segment of what several hold, none of them the same slot.

    Each is in order already, so a stable sort of all their postings, each one number, does little more than copy them.
    """
    living = [list(compress(segment.vocabulary.words(), segment.holding.tolist())) for segment in segments]
    positions = {word: at for at, word in enumerate(dict.fromkeys(chain.from_iterable(living)))}
    vocabulary, ranks = vocabulary_of(list(positions))
    count_bits = max(int(segment.counts.max(initial=0)).bit_length() for segment in segments)
    slot_bits = max(max(segment.last, 0).bit_length() for segment in segments)
    keys = np.concatenate(
        [
            _keys(segment, ranks[np.fromiter(map(positions.__getitem__, words), np.int64, len(words))], slot_bits, count_bits)
            for segment, words in zip(segments, living, strict=True)
        ]
    )
    keys.sort(kind="stable")
    if any(segment.gone for segment in segments):
        keys = keys[np.flatnonzero(np.diff(keys, prepend=-1))]
    counts = keys & ((1 << count_bits) - 1)
    keys >>= count_bits
    return Segment(vocabulary, keys >> slot_bits, keys & ((1 << slot_bits) - 1), counts)


def _keys(segment: Segment, numbers: Slots, slot_bits: int, count_bits: int) -> Slots:
    """The postings of a segment's living words as one number each: the word's new number, the slot, how often."""
    alive = segment.holding > 0
    sizes = np.diff(segment.begins)
    keys = np.repeat(numbers << (slot_bits + count_bits), sizes[alive])
    kept = np.repeat(alive, sizes) if segment.gone else slice(None)
    keys |= segment.slots[kept].astype(np.int64) << count_bits
    keys |= segment.counts[kept]
    return keys
