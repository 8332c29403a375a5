"""The vectors of a view are found exactly, whatever came, changed and went before."""

import numpy as np
import pytest
from numpy.typing import NDArray

from memfold.projections.vectors import VectorIndex

DIMENSION = 24


def unit_vectors(count: int, *, seed: int, dimension: int = DIMENSION) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def query() -> NDArray[np.float32]:
    return unit_vectors(1, seed=99)[0]


def test_the_nearest_are_the_best_of_all_in_order(query):
    vectors, index = unit_vectors(500, seed=1), VectorIndex(DIMENSION)
    index.put(np.arange(500), vectors)

    best = np.argsort(-(vectors @ query), kind="stable")

    assert index.nearest(query, 30).tolist() == best[:30].tolist()


def test_the_nearest_are_among_the_allowed_and_only_those_with_a_vector(query):
    vectors, index = unit_vectors(500, seed=2), VectorIndex(DIMENSION)
    index.put(np.arange(0, 500, 2), vectors[::2])
    index.clear(8)
    allowed = np.arange(4, 900)

    best = [slot for slot in np.argsort(-(vectors @ query), kind="stable") if slot % 2 == 0 and slot >= 4 and slot != 8]

    assert index.nearest(query, 30, allowed).tolist() == best[:30]
    assert index.nearest(query, 1_000, allowed).tolist() == best
