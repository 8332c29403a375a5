"""Rows of numbers in RAM that stay where they are: what is overwritten with zeros is nowhere else.

A growing array is copied again and again, and leaves its contents behind in memory that is free by then; a large one also
takes twice its size while it grows. Here only the first block grows, and what it leaves is overwritten; the others are
made whole, and take no RAM before they are written to.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memfold.embedding import Vectors
from memfold.projections.words import Slots

BLOCK_ROWS = 65_536
FIRST_ROWS = 8


class Blocks:
    """Rows of float32 of one width, by slot; zeros where nothing was set."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._blocks: list[Vectors] = []

    def reserve(self, count: int) -> None:
        """Make room for slots below `count`."""
        if count > 0 and (not self._blocks or len(self._blocks[0]) < min(count, BLOCK_ROWS)):
            old = self._blocks[0] if self._blocks else np.zeros((0, self._width), np.float32)
            self._blocks[:1] = [grown(old, min(count, BLOCK_ROWS), BLOCK_ROWS)]
        while len(self._blocks) * BLOCK_ROWS < count and len(self._blocks[0]) == BLOCK_ROWS:
            self._blocks.append(np.zeros((BLOCK_ROWS, self._width), np.float32))

    def put(self, slots: Slots, rows: Vectors) -> None:
        """Set rows, in the order of `slots`, for which there is room."""
        for block, which, places in self.parts(slots):
            block[places] = rows[which]

    def clear(self, slot: int) -> None:
        """Overwrite a row with zeros."""
        self._blocks[slot // BLOCK_ROWS][slot % BLOCK_ROWS] = 0

    def take(self, slots: Slots) -> Vectors:
        """A copy of rows, in the order of `slots`, for which there is room."""
        taken = np.empty((len(slots), self._width), np.float32)
        for block, which, places in self.parts(slots):
            taken[which] = block[places]
        return taken

    def parts(self, slots: Slots) -> Iterator[tuple[Vectors, slice | Slots, Slots]]:
        """Every block that holds some of `slots`; which of them those are, and their places in the block."""
        if len(self._blocks) == 1:
            yield self._blocks[0], slice(None), slots
            return
        numbers = (slots // BLOCK_ROWS).astype(np.uint16)
        order = np.argsort(numbers, kind="stable")
        ends = np.cumsum(np.bincount(numbers, minlength=len(self._blocks)))
        for number, (block, end) in enumerate(zip(self._blocks, ends, strict=True)):
            which = order[(ends[number - 1] if number else 0) : end]
            if len(which):
                yield block, which, slots[which] - number * BLOCK_ROWS

    def wipe(self) -> None:
        """Overwrite everything with zeros, and let go of it."""
        for block in self._blocks:
            block.fill(0)
        self._blocks.clear()

    def size_bytes(self, count: int) -> int:
        """About how much RAM slots below `count` take."""
        return 4 * self._width * count


def grown(array: NDArray[Any], count: int, most: int | None = None) -> NDArray[Any]:
    """A copy with room for `count` rows or twice as many as before, if `most` allows; the old one is overwritten with zeros."""
    room = max(count, 2 * len(array), FIRST_ROWS)
    larger = np.zeros((room if most is None else min(room, most), *array.shape[1:]), array.dtype)
    larger[: len(array)] = array
    array.fill(0)
    return larger
