"""Where each row of a view stands in the arrays that words and vectors are searched by: its slot.

Slots are given out in the order of the stream and never change hands, so their order is that of the rows. A forgotten row
leaves an empty slot, until there are so many that the view is renumbered.
"""

from array import array
from bisect import bisect_left
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from memfold.projections.words import Slots, plain_words

EMPTY_MAX = 1_000  # empty slots before they are closed up, if they are also half of all


class Places:
    """The slots of one view: of each its row, the position of the row's newest event, and who speaks there."""

    def __init__(self) -> None:
        self._rows = array("q")
        self._live = bytearray()
        self._positions = array("q")
        self._speakers = array("I")
        self._numbers: dict[str, int] = {}  # of the speakers; 0 is nobody
        self._spoken: dict[str, int] = {}  # in how many live rows
        self._next_number = 1

    def take(self, row: int, *, position: int, speaker: str | None) -> int:
        """The slot of a row that comes to be, or comes back changed. A new row is later in the stream than all others."""
        slot = bisect_left(self._rows, row)
        if slot == len(self._rows):
            self._rows.append(row)
            self._live.append(0)
            self._positions.append(0)
            self._speakers.append(0)
        self._live[slot] = 1
        self._positions[slot] = position
        self._speakers[slot] = self._number(speaker)
        return slot

    def leave(self, row: int, *, speaker: str | None) -> int:
        """The slot of a row that is taken out."""
        slot = bisect_left(self._rows, row)
        self._live[slot] = 0
        if speaker is not None:
            self._spoken[speaker] -= 1
            if not self._spoken[speaker]:
                del self._spoken[speaker], self._numbers[speaker]  # the name of whoever was forgotten does not stay
        return slot

    def slot(self, row: int, position: int) -> int | None:
        """The slot of a live row, if the event at `position` is still its newest."""
        slot = bisect_left(self._rows, row)
        known = slot < len(self._rows) and self._rows[slot] == row
        return slot if known and self._live[slot] and self._positions[slot] == position else None

    def live(self) -> Slots:
        """The slots of all live rows, in order of the stream."""
        return np.flatnonzero(np.frombuffer(self._live, np.uint8))

    def rows(self, slots: Slots) -> list[int]:
        """The rows in these slots."""
        found: list[int] = np.asarray(self._rows)[slots].tolist()
        return found

    def position(self, slot: int) -> int:
        """The position of the newest event of the row in a slot."""
        return self._positions[slot]

    def among(self, slots: Slots, rows: Sequence[int]) -> Slots:
        """At which places among `slots` these rows stand; both in order of the stream."""
        return np.searchsorted(np.asarray(self._rows)[slots], np.array(rows, np.int64))

    def named(self, words: Collection[str], slots: Slots) -> NDArray[np.bool_]:
        """Of each slot whether a word of its speaker's name is among `words`."""
        if not self._numbers:
            return np.zeros(len(slots), np.bool_)
        named = np.zeros(self._next_number, np.bool_)
        for speaker, number in self._numbers.items():
            named[number] = not set(words).isdisjoint(plain_words(speaker))
        return named[np.frombuffer(self._speakers, np.uint32)[slots]] if len(slots) else np.zeros(0, np.bool_)

    def mostly_empty(self) -> bool:
        """Whether it is worth closing the gaps."""
        empty = len(self._live) - sum(self._live)
        return empty > EMPTY_MAX and 2 * empty > len(self._live)

    def renumber(self) -> Slots:
        """Close the gaps; return the slots that were kept, in their order, which are 0, 1, 2 … from now on."""
        kept = self.live()
        for name in ("_rows", "_positions", "_speakers"):
            old = getattr(self, name)
            setattr(self, name, array(old.typecode, np.asarray(old)[kept].tobytes()))
        self._live = bytearray(b"\1" * len(kept))
        return kept

    def size_bytes(self) -> int:
        """About how much RAM this takes."""
        return 21 * len(self._rows)

    def _number(self, speaker: str | None) -> int:
        if speaker is None:
            return 0
        self._spoken[speaker] = self._spoken.get(speaker, 0) + 1
        if speaker not in self._numbers:
            self._numbers[speaker] = self._next_number
            self._next_number += 1
        return self._numbers[speaker]
