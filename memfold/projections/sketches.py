"""Which of very many vectors may be nearest: a sketch of 512 bits a vector, compared by how many bits differ.

A bit says on which side of a plane through the origin a vector lies; the planes are random, and the same always (Charikar
2002). So a sketch depends on its vector alone: nothing is trained, nothing drifts, and one is set or cleared without a look
at the others. Comparing a query with all of a million reads 64 MB.
"""

import threading
from functools import cache
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from memfold.embedding import Vectors
from memfold.projections.blocks import grown
from memfold.projections.words import Floats, Slots

BITS = 512
BYTES = BITS // 8
SEED = 1
AT_ONCE = 4_096  # vectors, whose sides of the planes take 8 MB

_thread = threading.local()


class Sketches:
    """A sketch a slot; zeros where there is none."""

    def __init__(self, dimension: int) -> None:
        self._planes = planes(dimension)
        self._codes: NDArray[np.uint8] = np.zeros((0, BYTES), np.uint8)
        self._end = 0

    def put(self, slots: Slots, vectors: Vectors) -> None:
        """Set the sketches of vectors, in the order of `slots`."""
        self._reserve(int(slots.max()) + 1)
        for begin in range(0, len(slots), AT_ONCE):
            some = slice(begin, begin + AT_ONCE)
            self._codes[slots[some]] = self._sketched(vectors[some])

    def clear(self, slot: int) -> None:
        """Overwrite a sketch with zeros. It then differs from a query in about half of its bits."""
        self._codes[slot] = 0

    def nearest(self, query: Floats, count: int) -> Slots:
        """The slots whose sketches differ least from the query's, rising; some may have been cleared."""
        count = min(count, self._end)
        asked = self._sketched(query[None])
        differences, slots = np.empty(count, np.int32), np.empty(count, np.int64)
        sizes = (1, self._end, count, BYTES)
        found = (faiss.swig_ptr(differences), faiss.swig_ptr(slots))
        faiss.hammings_knn_mc(faiss.swig_ptr(asked), faiss.swig_ptr(self._codes), *sizes, *found)
        return np.sort(slots)

    def renumber(self, slots: Slots) -> None:
        """Keep these slots only, numbered 0, 1, 2 … in their order."""
        self._reserve(int(slots.max()) + 1 if len(slots) else 0)
        kept = self._codes[slots]
        self._codes.fill(0)
        self._codes, self._end = kept, len(kept)

    def size_bytes(self) -> int:
        """About how much RAM the sketches take."""
        return BYTES * self._end

    def _reserve(self, end: int) -> None:
        self._end = max(self._end, end)
        if self._end > len(self._codes):
            self._codes = grown(self._codes, self._end)

    def _sketched(self, vectors: Vectors) -> NDArray[np.uint8]:
        one_thread()
        return np.packbits(self._planes.apply_py(np.ascontiguousarray(vectors, np.float32)) > 0, axis=1)


@cache
def planes(dimension: int) -> Any:
    """The transform from a vector to its distances from BITS planes: a random rotation, the same always.

    Planes at independent angles would miss two to four times as many of the nearest.
    """
    one_thread()
    rotation = faiss.RandomRotationMatrix(dimension, BITS)
    rotation.init(SEED)
    return rotation


def one_thread() -> None:
    """Keep OpenMP from spinning on shared cores: 100 times slower there. The setting holds for the calling thread only."""
    if not getattr(_thread, "told", False):
        faiss.omp_set_num_threads(1)
        _thread.told = True
