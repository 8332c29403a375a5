"""Vectors in RAM: their exact inner products with a query, and which are nearest.

`similarities` is exact, and a row's result is the same to the bit whichever rows are asked for and in whichever view it
stands. `nearest` is exact too among rows that are given, so nothing is ever filtered after a search; among all of very many
rows it looks, exactly, only at those whose sketches are nearest.
"""

import faiss
import numpy as np
from numpy.typing import NDArray

from memfold.embedding import Vectors
from memfold.projections.blocks import BLOCK_ROWS, Blocks, grown
from memfold.projections.sketches import Sketches, one_thread
from memfold.projections.words import Floats, Slots

EXACT_MAX = 50_000  # vectors that are compared one and all, in about the time that a million of sketches take
CANDIDATES, CANDIDATES_EACH = 8_000, 20  # compared exactly at least, and for each one that is asked for


class VectorIndex:
    """One unit vector a slot, or none yet. Slots are those of the view."""

    def __init__(self, dimension: int, *, exact_max: int = EXACT_MAX) -> None:
        self.dimension = dimension
        self._exact_max = exact_max
        self._vectors = Blocks(dimension)
        self._present: NDArray[np.bool_] = np.zeros(0, np.bool_)
        self._count = self._end = 0  # how many vectors; the slot after the last that had one
        self._sketches: Sketches | None = None

    def __len__(self) -> int:
        """How many vectors there are."""
        return self._count

    def put(self, slots: Slots, vectors: Vectors) -> None:
        """Set the vectors of slots, in the order of `slots`, each once."""
        if len(slots) == 0:
            return
        self._reserve(int(slots.max()) + 1)
        self._vectors.put(slots, vectors)
        self._count += len(slots) - int(np.count_nonzero(self._present[slots]))
        self._present[slots] = True
        if self._sketches:
            self._sketches.put(slots, vectors)
        elif self._count > self._exact_max:
            self._sketches = self._sketched()

    def clear(self, slot: int) -> None:
        """Overwrite a slot's vector with zeros: the row is a tombstone until the view is renumbered."""
        if slot >= self._end or not self._present[slot]:
            return
        self._vectors.clear(slot)
        self._present[slot] = False
        self._count -= 1
        if self._sketches:
            self._sketches.clear(slot)
            self._sketches = self._sketches if self._is_large() else None

    def missing(self, slots: Slots) -> Slots:
        """Those of `slots` that have no vector."""
        return slots[~self._has(slots)]

    def similarities(self, query: Floats, slots: Slots) -> Floats:
        """The inner products of `query` with the vectors of `slots`, which all have one; float32, in their order."""
        found = np.empty(len(slots), np.float32)
        asked = np.ascontiguousarray(query, np.float32)
        for block, which, places in self._vectors.parts(np.asarray(slots, np.int64)):
            found[which] = _inner_products(asked, block, places)
        return found

    def nearest(self, query: Floats, count: int, allowed: Slots | None = None) -> Slots:
        """The `count` slots of largest inner product with `query` that have a vector; best first, of equals the lower slot.

        Exact among `allowed`, if given, and among no more than EXACT_MAX / 2 vectors. Among more than EXACT_MAX a few may be
        missed, rarely of the first ten of some hundreds. Whatever was put before the call is seen.
        """
        slots = self._candidates(query, count) if allowed is None else np.unique(allowed[self._has(allowed)])
        return slots[_largest(self.similarities(query, slots), count)]

    def renumber(self, slots: Slots) -> None:
        """Keep these slots only, numbered 0, 1, 2 … in their order; all others have been cleared."""
        self._reserve(int(slots.max()) + 1 if len(slots) else 0)
        old, self._vectors = self._vectors, Blocks(self.dimension)
        self._vectors.reserve(len(slots))
        for begin in range(0, len(slots), BLOCK_ROWS):
            moved = old.take(slots[begin : begin + BLOCK_ROWS])
            self._vectors.put(np.arange(begin, begin + len(moved)), moved)
            moved.fill(0)
        old.wipe()
        self._present, self._end = self._present[slots], len(slots)
        self._count = int(np.count_nonzero(self._present))
        if self._sketches:
            self._sketches.renumber(slots)
            self._sketches = self._sketches if self._is_large() else None

    def dump(self, slots: Slots) -> Vectors:
        """A copy of the vectors of `slots`; zeros where there is none."""
        self._reserve(int(slots.max()) + 1 if len(slots) else 0)
        return self._vectors.take(slots)

    def size_bytes(self) -> int:
        """About how much RAM the vectors take."""
        sketches = self._sketches.size_bytes() if self._sketches else 0
        return self._vectors.size_bytes(self._end) + len(self._present) + sketches

    def _candidates(self, query: Floats, count: int) -> Slots:
        """The slots that are compared exactly, rising."""
        if self._sketches:
            found = self._sketches.nearest(query, max(CANDIDATES, CANDIDATES_EACH * count))
            found = found[self._present[found]]
            if len(found) >= count:
                return found
        return np.flatnonzero(self._present)

    def _sketched(self) -> Sketches:
        """Sketches of all vectors there are."""
        sketches, slots = Sketches(self.dimension), np.flatnonzero(self._present)
        for begin in range(0, len(slots), BLOCK_ROWS):
            some = slots[begin : begin + BLOCK_ROWS]
            sketches.put(some, self._vectors.take(some))
        return sketches

    def _is_large(self) -> bool:
        """Whether sketches, once made, are worth keeping."""
        return 2 * self._count > self._exact_max

    def _has(self, slots: Slots) -> NDArray[np.bool_]:
        """Of each slot whether it has a vector."""
        has, known = np.zeros(len(slots), np.bool_), slots < len(self._present)
        has[known] = self._present[slots[known]]
        return has

    def _reserve(self, end: int) -> None:
        self._end = max(self._end, end)
        self._vectors.reserve(self._end)
        if self._end > len(self._present):
            self._present = grown(self._present, self._end)


def _inner_products(query: Floats, vectors: Vectors, places: Slots) -> Floats:
    """Those of some rows of a matrix, one by one: the result for a row does not depend on the others."""
    one_thread()
    found, places = np.empty(len(places), np.float32), np.ascontiguousarray(places)
    pointers = [faiss.swig_ptr(array) for array in (found, query, vectors, places)]
    faiss.fvec_inner_products_by_idx(*pointers, len(query), 1, len(places))  # type: ignore[attr-defined]
    return found


def _largest(values: Floats, count: int) -> Slots:
    """The places of the `count` largest values, largest first; of equals the first."""
    places = np.arange(len(values))
    if 0 < count < len(values):
        least = np.partition(values, len(values) - count)[len(values) - count]
        places = np.flatnonzero(values >= least)
    return places[np.argsort(-values[places], kind="stable")[:count]]
