"""How fast are the 300 nearest of 1,000,000 vectors found, beside brute force, and how many of them?

`projections/vectors.py` against FAISS' flat index on the same rows, both on one thread. The vectors are the static model's, 256
dimensions: of texts of 12 words, two of them mixed and some noise added for each row; the queries are texts of their own.
"""

from collections.abc import Callable, Iterator
from itertools import cycle
from time import perf_counter

import faiss
import numpy as np
from common import Bar, Report, Spread, latencies, latency_ratio, options, percentile, prose, spread, take_turns
from numpy.typing import NDArray
from timing import Sample, repeat

from memfold.embedding import Vectors, normalized
from memfold.minilm import StaticEmbedder
from memfold.projections.vectors import VectorIndex
from memfold.projections.words import Slots

OURS, FLAT = "memfold", "FAISS, flat"
SIZES = (100_000, 1_000_000)
BATCH = 1_000
COUNT, QUERIES = 300, 200
WORDS, TEXTS = 12, 20_000
NOISE = 0.2

Nearest = Callable[[Vectors], Slots]


def rows(count: int, texts: Vectors) -> Iterator[Vectors]:
    """Unit vectors, so many at a time."""
    rand = np.random.default_rng(1)
    for _ in range(0, count, BATCH):
        one, other = texts[rand.integers(0, len(texts), (2, BATCH))]
        share = rand.beta(2, 1, (BATCH, 1))
        noise = rand.standard_normal(one.shape) * (NOISE / np.sqrt(one.shape[1]))
        yield normalized((share * one + (1 - share) * other + noise).astype(np.float32))


def filled(count: int, texts: Vectors) -> tuple[VectorIndex, float, float]:
    """An index, how many seconds it took to put everything into it, and the slowest batch of them in ms."""
    index, taken_s = VectorIndex(texts.shape[1]), []
    for number, vectors in enumerate(rows(count, texts)):
        slots = np.arange(number * BATCH, (number + 1) * BATCH)
        begun = perf_counter()
        index.put(slots, vectors)
        taken_s.append(perf_counter() - begun)
    return index, sum(taken_s), max(taken_s) * 1000


def flat(count: int, texts: Vectors) -> Nearest:
    """Brute force."""
    faiss.omp_set_num_threads(1)
    index = faiss.IndexFlatIP(texts.shape[1])
    for vectors in rows(count, texts):
        index.add(vectors)
    return lambda query: np.asarray(index.search(query[None], COUNT)[1][0])


def asking(nearest: Nearest, asked: Vectors, seconds: float) -> Callable[[], Sample]:
    """Queries, one after the other."""
    turn = cycle(asked)
    return lambda: repeat(lambda: nearest(next(turn)), seconds)


def contained(found: list[Slots], true: list[Slots], first: int) -> list[float]:
    """Of each query, the share of the truly nearest `first` that was found."""
    return [len(np.intersect1d(a, b[:first])) / first for a, b in zip(found, true, strict=True)]


def changing(index: VectorIndex, vectors: Vectors) -> NDArray[np.float64]:
    """How long it takes to put one vector, and to clear it, in ms: a row each."""
    times, slot = [], index.nearest(vectors[0], 1)
    for vector in vectors:
        begun = perf_counter()
        index.clear(int(slot[0]))
        cleared = perf_counter()
        index.put(slot, vector[None])
        times.append((perf_counter() - cleared, cleared - begun))
    return np.array(times).T * 1000


def measure(size: int, texts: Vectors, asked: Vectors, seconds: float, rounds: int, report: Report) -> None:
    """Fill and ask at one size, and print."""
    index, taken_s, slowest_ms = filled(size, texts)
    exact = flat(size, texts)
    contenders: dict[str, Nearest] = {OURS: lambda query: index.nearest(query, COUNT), FLAT: exact}
    found, true = ([nearest(query) for query in asked] for nearest in contenders.values())
    samples = take_turns({name: asking(nearest, asked, seconds) for name, nearest in contenders.items()}, rounds)
    report.note(f"### {size:,} rows")
    report.samples(samples, "queries/s")
    full = size == max(SIZES)
    ratio = latency_ratio(samples, OURS, FLAT, 0.5)
    report.bars([Bar(f"p50: {OURS} / {FLAT}", ratio, 0.2 if full else None, True)])
    report.bars([Bar(OURS, latencies(samples, OURS, 0.5), 6.0 if full else None, True)], "p50 ms of a round")
    kept = {first: spread_of_means(contained(found, true, first)) for first in (10, 100)}
    bars = [Bar(f"of the true {first} in the {COUNT} found", kept[first], goal) for first, goal in ((10, 0.98), (100, None))]
    report.bars(bars, "mean of a fourth of the queries")
    put_ms, clear_ms = (percentile(times.tolist(), 0.5) for times in changing(index, asked))
    filling = f"{taken_s:.1f} s to put all, {BATCH:,} at a time, the slowest of which took {slowest_ms:.0f} ms"
    change = f"one vector put in {put_ms * 1000:.0f} µs and cleared in {clear_ms * 1000:.0f} µs (p50)"
    report.note(f"{OURS}: {filling}; {change}; {index.size_bytes() / size:.0f} bytes a row.")


def spread_of_means(values: list[float], parts: int = 4) -> Spread:
    """The means of some parts of the queries, and how far they lie apart."""
    return spread([float(np.mean(part)) for part in np.array_split(values, parts)])


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    sizes, seconds, rounds = ((60_000,), 0.1, 2) if args.quick else (SIZES, 1.5, 9)
    report = Report(__doc__, args)
    encoder = StaticEmbedder()
    texts = encoder.encode(prose(TEXTS, words=WORDS))
    asked = encoder.encode(prose(QUERIES, words=WORDS, seed=3))
    for size in sizes:
        measure(size, texts, asked, seconds, rounds, report)
    report.note(f"faiss {faiss.__version__}.")
    report.machine()


if __name__ == "__main__":
    main()
