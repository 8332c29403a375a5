"""The vectors of a view are found, whatever came, changed and went before; what was forgotten is in none of their arrays."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from memfold.projections import blocks
from memfold.projections.vectors import EXACT_MAX, VectorIndex

DIMENSION = 24
SLOTS_MAX = 600  # of a history: some of the blocks of 128 rows that the tests below make

Vectors = NDArray[np.float32]


def unit_vectors(count: int, *, seed: int, dimension: int = DIMENSION) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def topics(count: int, *, seed: int, dimension: int = 64) -> Vectors:
    """Vectors that gather about some hundreds of others, as those of texts do."""
    rand = np.random.default_rng(seed)
    middles = unit_vectors(300, seed=7, dimension=dimension)
    vectors = middles[rand.integers(0, 300, count)] + unit_vectors(count, seed=seed, dimension=dimension)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def best(vectors: Vectors, query: Vectors, among: list[int]) -> list[int]:
    """Brute force."""
    products = vectors.astype(np.float64) @ query.astype(np.float64)
    return sorted(among, key=lambda slot: (-products[slot], slot))


def arrays(index: VectorIndex) -> Iterator[NDArray[np.generic]]:
    """Every array that an index holds."""
    yield from index._vectors._blocks
    if index._sketches:
        yield index._sketches._codes


def counts(held: dict[int, NDArray[np.generic]], rows: NDArray[np.generic]) -> list[int]:
    """How often the bytes of each of some rows stand in arrays."""
    everything = b"".join(array.tobytes() for array in held.values())
    return [everything.count(row.tobytes()) for row in rows]


@pytest.fixture
def query() -> Vectors:
    return unit_vectors(1, seed=99)[0]


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_ROWS", 128)


def test_the_nearest_are_the_best_of_all_in_order(query):
    vectors, index = unit_vectors(500, seed=1), VectorIndex(DIMENSION)
    index.put(np.arange(500), vectors)

    assert index.nearest(query, 30).tolist() == best(vectors, query, list(range(500)))[:30]


def test_the_nearest_are_among_the_allowed_and_only_those_with_a_vector(query):
    vectors, index = unit_vectors(500, seed=2), VectorIndex(DIMENSION)
    index.put(np.arange(0, 500, 2), vectors[::2])
    index.clear(8)

    expected = best(vectors, query, [slot for slot in range(4, 500, 2) if slot != 8])

    assert index.nearest(query, 30, np.arange(4, 900)).tolist() == expected[:30]
    assert index.nearest(query, 1_000, np.arange(4, 900)).tolist() == expected
    assert index.nearest(query, 30, np.arange(0)).tolist() == []


def test_of_equals_the_lower_slots_are_nearest():
    vectors, index = unit_vectors(2, seed=3), VectorIndex(DIMENSION)
    index.put(np.arange(40), vectors[[1, 0] * 20])

    assert index.nearest(vectors[0], 5).tolist() == [1, 3, 5, 7, 9]


def test_an_index_without_vectors_finds_nothing(query):
    index = VectorIndex(DIMENSION)

    assert index.nearest(query, 10).tolist() == []
    assert index.nearest(query, 10, np.arange(10)).tolist() == []
    assert index.similarities(query, np.arange(0)).tolist() == []
    assert index.missing(np.arange(3)).tolist() == [0, 1, 2]
    assert index.dump(np.arange(2)).tolist() == [[0.0] * DIMENSION] * 2


@pytest.mark.usefixtures("small_blocks")
def test_a_similarity_is_the_same_to_the_bit_whatever_else_is_asked_for_and_wherever_it_stands(query):
    vectors, index, other = unit_vectors(500, seed=4), VectorIndex(DIMENSION), VectorIndex(DIMENSION)
    index.put(np.arange(500), vectors)
    other.put(np.arange(100), vectors[300:400])

    every = index.similarities(query, np.arange(500))
    some = np.random.default_rng(5).permutation(500)[:77]

    assert index.similarities(query, some).tobytes() == every[some].tobytes()
    assert other.similarities(query, np.arange(100)).tobytes() == every[300:400].tobytes()
    assert np.allclose(every, vectors @ query, atol=1e-6)


class History:
    """An index beside a plain array of the vectors it should hold."""

    def __init__(self, exact_max: int) -> None:
        self.index = VectorIndex(DIMENSION, exact_max=exact_max)
        self.vectors = np.zeros((SLOTS_MAX, DIMENSION), np.float32)
        self.present = np.zeros(SLOTS_MAX, np.bool_)

    def put(self, rand: np.random.Generator) -> None:
        slots = rand.permutation(rand.integers(1, SLOTS_MAX))[: rand.choice([1, 5, 200])]
        self.vectors[slots] = unit_vectors(len(slots), seed=int(rand.integers(1 << 30)))
        self.present[slots] = True
        self.index.put(slots, self.vectors[slots])

    def clear(self, rand: np.random.Generator) -> None:
        for slot in rand.permutation(SLOTS_MAX)[: rand.choice([1, 20, 300])]:
            self.vectors[slot], self.present[slot] = 0, False
            self.index.clear(int(slot))

    def renumber(self, rand: np.random.Generator) -> None:
        emptied = (rand.permutation(SLOTS_MAX) < 100) & ~self.present  # a view also keeps rows that have no vector
        kept = np.flatnonzero(self.present | emptied)
        vectors, present = self.vectors[kept], self.present[kept]
        self.vectors[:], self.present[:] = 0, False
        self.vectors[: len(kept)], self.present[: len(kept)] = vectors, present
        self.index.renumber(kept)

    def check(self, query: Vectors) -> None:
        slots = np.arange(SLOTS_MAX)
        live = np.flatnonzero(self.present)
        assert self.index.missing(slots).tolist() == np.flatnonzero(~self.present).tolist()
        assert self.index.dump(slots).tobytes() == self.vectors.tobytes()
        assert np.allclose(self.index.similarities(query, live), self.vectors[live] @ query, atol=1e-6)
        for count in (1, 10, SLOTS_MAX):
            expected = self.vectors[best(self.vectors, query, live.tolist())[:count]] @ query
            for found in (self.index.nearest(query, count), self.index.nearest(query, count, slots)):
                assert np.allclose(self.vectors[found] @ query, expected, atol=1e-6)
                assert len(found) == len(set(found.tolist())) == len(expected)
                assert self.present[found].all()


# 600 vectors are all candidates, so whatever their sketches say, the answer is exact if the bookkeeping is right.
@pytest.mark.parametrize("exact_max", [40, 250, EXACT_MAX])
@given(seed=st.integers(0, 1 << 30), steps=st.lists(st.sampled_from(["put", "put", "clear", "renumber"]), max_size=12))
@settings(max_examples=40, deadline=None)
def test_after_any_history_an_index_is_what_it_was_told(exact_max, seed, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "BLOCK_ROWS", 128)
        rand, history = np.random.default_rng(seed), History(exact_max)
        for step in steps:
            getattr(history, step)(rand)
            history.check(unit_vectors(1, seed=int(rand.integers(1 << 30)))[0])


@pytest.fixture(scope="module")
def large() -> tuple[VectorIndex, Vectors]:
    vectors = topics(30_000, seed=11)
    index = VectorIndex(64, exact_max=1_000)
    for begin in range(0, len(vectors), 1_000):
        index.put(np.arange(begin, begin + 1_000), vectors[begin : begin + 1_000])
    return index, vectors


def test_many_vectors_are_found_by_their_sketches_nearly_all(large, monkeypatch):
    monkeypatch.setattr("memfold.projections.vectors.CANDIDATES", 1_000)
    monkeypatch.setattr("memfold.projections.vectors.CANDIDATES_EACH", 5)
    index, vectors = large
    asked = topics(100, seed=12)

    found = [set(index.nearest(query, 200).tolist()) for query in asked]
    true = [np.argsort(-(vectors @ query)) for query in asked]

    assert index._sketches
    assert np.mean([len(found[at] & set(true[at][:10].tolist())) / 10 for at in range(100)]) >= 0.98
    assert np.mean([len(found[at] & set(true[at][:100].tolist())) / 100 for at in range(100)]) >= 0.9


def test_among_allowed_ones_many_vectors_are_compared_exactly(large):
    index, _ = large
    query = topics(1, seed=13)[0]
    allowed = np.arange(0, 30_000, 3)

    assert (
        index.nearest(query, 300, allowed).tolist() == allowed[np.argsort(-index.similarities(query, allowed))[:300]].tolist()
    )


def test_what_was_just_put_or_changed_is_found_at_once_and_what_was_cleared_is_not():
    vectors = topics(5_000, seed=14)
    index = VectorIndex(64, exact_max=1_000)
    index.put(np.arange(5_000), vectors)
    new = unit_vectors(2, seed=15, dimension=64)

    index.put(np.array([5_000]), new[:1])
    index.put(np.array([17]), new[1:])
    assert [index.nearest(vector, 1).tolist() for vector in new] == [[5_000], [17]]

    index.clear(5_000)
    index.clear(17)
    assert index._sketches
    assert all({17, 5_000}.isdisjoint(index.nearest(vector, 300).tolist()) for vector in new)


def test_the_nearest_are_found_where_nearly_every_slot_is_empty(query):
    index = VectorIndex(DIMENSION, exact_max=10)
    index.put(np.array([70_000]), query[None])
    vectors = unit_vectors(20, seed=16)
    index.put(np.arange(20), -np.abs(vectors) * np.sign(query))

    assert index._sketches
    assert index.nearest(query, 3)[0] == 70_000
    assert len(index.nearest(query, 21)) == 21


def test_an_index_that_shrinks_is_exact_again():
    index = VectorIndex(DIMENSION, exact_max=100)
    index.put(np.arange(101), unit_vectors(101, seed=17))
    assert index._sketches
    for slot in range(51):
        index.clear(slot)

    assert index._sketches is None


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("exact_max", [50, EXACT_MAX])
def test_nothing_of_a_cleared_vector_is_left_in_any_array(exact_max):
    index = VectorIndex(DIMENSION, exact_max=exact_max)
    vectors = unit_vectors(600, seed=18)
    held: dict[int, NDArray[np.generic]] = {}  # also those that were grown out of
    for begin in range(0, 600, 20):
        index.put(np.arange(begin, begin + 20), vectors[begin : begin + 20])
        held |= {id(array): array for array in arrays(index)}
    sketches = index._sketches._codes[:600].copy() if index._sketches else np.zeros((0, 64), np.uint8)
    assert len(held) > 5

    for slot in range(0, 600, 2):
        index.clear(slot)
    assert counts(held, vectors) == [slot % 2 for slot in range(600)]
    assert counts(held, sketches) == [slot % 2 for slot in range(len(sketches))]

    index.renumber(np.arange(1, 600, 2))
    held |= {id(array): array for array in arrays(index)}
    assert counts(held, vectors) == [slot % 2 for slot in range(600)]
    assert counts(held, sketches) == [slot % 2 for slot in range(len(sketches))]
