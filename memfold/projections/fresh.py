"""The words of the newest rows, as they come: what a single remember pays, and what a fold of many is sorted from.

Every word of a text is a number and its slot, in two flat arrays. Looking a word up goes through all of them, so `words.Words`
lets only a few thousand stay when it is asked.
"""

from array import array
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from memfold.projections.postings import Postings, Segment, counted, segment_of
from memfold.projections.tokens import STOP_WORDS, stemmer, written_words

STOP = 0  # the number of every stop word, and of what was taken out


class _Numbers(dict[str, int]):
    """The number of the word that each way of writing it stands for; STOP for a stop word. Filled as it is asked."""

    def __init__(self, words: dict[str, int], last: int) -> None:
        super().__init__()
        self._words = words
        self.last = last

    def __missing__(self, written: str) -> int:
        number = STOP
        if written not in STOP_WORDS:
            number = self._words.setdefault(stemmer().stemWord(written), self.last + 1)
            self.last = max(self.last, number)
        self[written] = number
        return number


class Fresh:
    """The words of some rows, in the order they were added."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}  # each word's number, from 1
        self._numbers = _Numbers(self._words, 0)
        self._tokens = array("I")
        self._slots = array("I")
        self._texts: dict[int, tuple[int, int]] = {}  # of each slot, where in the arrays its words begin and end
        self.removed = False  # a row since the last `settle`

    def __len__(self) -> int:
        return len(self._tokens)

    def add(self, slot: int, text: str) -> int:
        """Add a text, and return how many words it has."""
        found = list(filter(None, map(self._numbers.__getitem__, written_words(text))))
        begin = len(self._tokens)
        self._tokens.fromlist(found)
        self._slots.extend(array("I", (slot,)) * len(found))
        self._texts[slot] = begin, begin + len(found)
        return len(found)

    def remove(self, slot: int) -> bool:
        """Take out the text of a slot; False if it is not here."""
        if slot not in self._texts:
            return False
        for at in range(*self._texts.pop(slot)):
            self._tokens[at] = STOP
        self.removed = True
        return True

    def settle(self) -> None:
        """Drop the ways of writing, which only quicken the next text of the same fold, and words that no row holds any more."""
        if self.removed:
            used = set(self._tokens)
            self._words = {word: number for word, number in self._words.items() if number in used}
            self.removed = False
        self._numbers = _Numbers(self._words, self._numbers.last)

    def postings(self, words: Sequence[str]) -> list[Postings | None]:
        """Of each of some distinct words the slots that hold it; None if none does."""
        numbers = [self._words.get(word, STOP) for word in words]
        if not any(numbers):
            return [None] * len(words)
        places = np.zeros(self._numbers.last + 1, np.int64)  # of each word, from 1, among those asked for
        places[numbers] = np.arange(1, len(words) + 1)
        places[STOP] = 0
        found = places[np.frombuffer(self._tokens, np.uint32)]
        at = np.flatnonzero(found)
        keys, counts = counted(found[at] << 32 | np.frombuffer(self._slots, np.uint32)[at])
        slots = keys.astype(np.uint32)
        bounds = pairwise(np.searchsorted(keys, np.arange(1, len(words) + 2) << 32).tolist())
        return [Postings(slots[begin:end], counts[begin:end], end - begin) if begin < end else None for begin, end in bounds]

    def words(self) -> list[str]:
        """The words that are here."""
        return list(self._words)

    def segment(self) -> Segment:
        """The same rows, sorted."""
        words = [""] * (self._numbers.last + 1)
        for word, number in self._words.items():
            words[number] = word
        tokens = np.frombuffer(self._tokens, np.uint32)
        kept = np.flatnonzero(tokens)
        return segment_of(words, tokens[kept], np.frombuffer(self._slots, np.uint32)[kept])

    def size_bytes(self) -> int:
        """About how much RAM it takes."""
        return 8 * len(self._tokens) + 200 * len(self._texts) + 170 * len(self._words) + 150 * len(self._numbers)
