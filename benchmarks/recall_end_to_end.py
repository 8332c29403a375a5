"""Text in, answer out, with the encoder that comes along: how long does a recall take, and how much of it is the encoder?

Sessions of 1,000 and 10,000 texts of 40 words whose vectors are stored and whose views are folded; queries of ten words. Then
the two encoders alone, on one thread. Then recalls at once after a session was filled by `remember_many`, when next to nothing
is embedded yet: an answer must come within `wait_s=10`, and `.model` says by which model.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from time import perf_counter

from common import (
    Bar,
    RandomVectors,
    Report,
    Server,
    options,
    prose,
    queries,
    server,
    spread,
    take_turns,
)
from timing import Sample, repeat

from memfold import MemoryStore
from memfold.embedding import Embedder, Vectors
from memfold.minilm import MiniLMEmbedder, StaticEmbedder

NAME, WAIT_S, BATCH = "memfold", 10.0, 10_000


class Timed:
    """An embedder whose time is counted."""

    def __init__(self, embedder: Embedder) -> None:
        self.name = embedder.name
        self.seconds = 0.0
        self._embedder = embedder

    def encode(self, texts: Sequence[str]) -> Vectors:
        """What the embedder says."""
        begun = perf_counter()
        vectors = self._embedder.encode(texts)
        self.seconds += perf_counter() - begun
        return vectors


# -- with vectors stored ---------------------------------------------------------------------------------------------------


def recalls(
    store: MemoryStore, session: str, asked: Iterator[str], seconds: float, encoder: Timed, shares: list[float]
) -> Callable[[], Sample]:
    """Rounds of recalls; what share of each was the encoder's."""

    def run() -> Sample:
        before = encoder.seconds
        sample = repeat(lambda: store.recall(next(asked), session_id=session, limit=10), seconds)
        shares.append(1000 * (encoder.seconds - before) / sum(sample.latencies_ms))
        return sample

    return run


def stored(at: Server, sizes: Sequence[int], seconds: float, rounds: int, report: Report) -> None:
    """Recalls in sessions whose vectors are stored. Other vectors stand there under the encoder's name: they cost the same."""
    contents, asked = prose(max(sizes)), cycle(queries(1999))
    with at.store(NAME, embedder=RandomVectors(MiniLMEmbedder.name)) as store:
        for size in sizes:
            store.remember_many(contents[:size], session_id=f"session-{size}")
        store.flush()
    encoder = Timed(MiniLMEmbedder())
    shares: dict[str, list[float]] = {f"a session of {size:,}": [] for size in sizes}
    with at.reopened(NAME, embedder=encoder, query_vectors_max=1) as store:  # every query is to be embedded
        contenders = {
            name: recalls(store, f"session-{size}", asked, seconds, encoder, shares[name])
            for name, size in zip(shares, sizes, strict=True)
        }
        samples = take_turns(contenders, rounds)
    report.samples(samples, "recalls/s")
    report.bars([Bar(name, spread(each[1:])) for name, each in shares.items()], "share of the encoder, of a round")


def encoders(seconds: float, rounds: int, report: Report) -> None:
    """Texts a second, handed over eight at a time, as they are behind the log."""
    contents = prose(1000)
    chunks = cycle([contents[begin : begin + 8] for begin in range(0, len(contents), 8)])
    embedders: list[Embedder] = [MiniLMEmbedder(), StaticEmbedder()]
    contenders = {
        each.name: lambda each=each: repeat(lambda: each.encode(next(chunks)), seconds, amount=8)  # type: ignore[misc]
        for each in embedders
    }
    report.samples(take_turns(contenders, rounds), "texts/s")


# -- with next to none -----------------------------------------------------------------------------------------------------


def recalled(store: MemoryStore, session: str, query: str) -> tuple[float, str]:
    """How many ms a recall took, and which model answered."""
    begun = perf_counter()
    found = store.recall(query, session_id=session, wait_s=WAIT_S)
    assert len(found) == 10
    return (perf_counter() - begun) * 1000, found.model or "words alone"


def at_once(at: Server, size: int, flush: bool) -> Iterator[tuple[object, ...]]:
    """A session of its own, in a store of its own, recalled from while nothing is embedded yet; then again, then flushed."""
    contents, asked = prose(size), iter(queries(9))
    with at.store(f"at_once_{size}") as store:
        store.remember("Warm.", session_id="warm")
        store.recall("warm", session_id="warm")
        begun = perf_counter()
        for first in range(0, size, BATCH):
            store.remember_many(contents[first : first + BATCH], session_id="one")
        yield f"{size:,}", "remembered", f"{perf_counter() - begun:.1f} s", "–", "–"
        for when in ("recalled at once", "recalled again"):
            ms, model = recalled(store, "one", next(asked))
            yield f"{size:,}", when, f"{ms / 1000:.2f} s", model, "met" if ms <= 1000 * WAIT_S else "**missed**"
        if flush:
            begun = perf_counter()
            store.flush()
            yield f"{size:,}", "flushed", f"{perf_counter() - begun:.1f} s", "–", "–"
            for when in ("recalled after it", "and once more"):
                ms, model = recalled(store, "one", next(asked))
                yield f"{size:,}", when, f"{ms:.1f} ms", model, "–"


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    report = Report(__doc__, args)
    seconds, rounds, sizes = (0.2, 2, (100, 1_000)) if args.quick else (2.0, 9, (1_000, 10_000))
    with server() as at:
        stored(at, sizes, seconds, rounds, report)
        encoders(seconds / 2, rounds, report)
        rows = [
            row
            for size in ((300, 1_000) if args.quick else (2_000, 5_000, 20_000, 100_000))
            for row in at_once(at, size, size <= 5_000)
        ]
        report.table(("memories", "", "took", "answered by", f"bar ≤ {WAIT_S:.0f} s"), rows)
        report.machine(at)


if __name__ == "__main__":
    main()
