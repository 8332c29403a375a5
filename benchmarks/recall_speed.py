"""How fast is a recall, in 20,000 memories and in 100,000, encoding apart?

Against `search` of LangGraph's SqliteStore with its vector index (a file on disk, opened as `from_conn_string` does), which
compares vectors only; a recall weighs words, neighbours and speakers too. The same texts of 40 words and the same vectors of
384 dimensions in both, handed over by a look into a dict, so that no encoder is measured; sessions of 500, one asked after the
other, each folded before the clock starts and each vector stored before.
"""

from collections.abc import Callable
from pathlib import Path

from common import (
    Bar,
    RandomVectors,
    Report,
    Server,
    fill,
    latency_ratio,
    options,
    prose,
    queries,
    ratio,
    scratch,
    server,
    take_turns,
)
from peers import LANGGRAPH_VECTORS, Worker
from timing import Sample, on_threads, questions, repeat

from memfold import MemoryStore

MEMORIES, THREADS = 500, 4


def recall(store: MemoryStore, sessions: int, asked: list[str], seconds: float, threads: int = 1) -> Callable[[], Sample]:
    """Rounds of recalls, one session after the other, on one thread or several."""

    def recaller(number: int) -> Callable[[], object]:
        pairs = questions(sessions, asked[number:] + asked[:number])

        def call() -> object:
            session, query = next(pairs)
            return store.recall(query, session_id=session, limit=10)

        return call

    calls = [recaller(number) for number in range(threads)]
    return (lambda: repeat(calls[0], seconds)) if threads == 1 else (lambda: on_threads(calls, seconds))


def filled(at: Server, name: str, sessions: int, contents: list[str], embedder: RandomVectors) -> MemoryStore:
    """A store of so many sessions whose vectors are stored and whose views are folded."""
    store = at.store(name, embedder=embedder)
    fill(store, sessions=sessions, memories=MEMORIES, contents=iter(contents))
    at.analyze(name)
    store.flush()
    at.analyze(name)
    for number in range(sessions):
        store.recall("warm", session_id=f"session-{number}")
    return store


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    sizes, seconds, rounds = ({"1 k": 2, "2 k": 4}, 0.2, 2) if args.quick else ({"20 k": 40, "100 k": 200}, 2.0, 9)
    report = Report(__doc__, args)
    contents, asked, embedder = prose(max(sizes.values()) * MEMORIES), queries(997), RandomVectors()
    stores: list[MemoryStore] = []
    contenders: dict[str, Callable[[], Sample]] = {}
    with server() as at, scratch() as folder, Worker(LANGGRAPH_VECTORS) as peer:
        peer.ask("learn", **embedder.write(folder, contents + asked))
        for size, sessions in sizes.items():
            path = str(Path(folder) / f"{size}.sqlite")
            settings = peer.ask("open", path=path)["settings"]
            peer.ask("fill", path=path, sessions=sessions, memories=MEMORIES)
            store = filled(at, f"sessions_{sessions}", sessions, contents, embedder)
            stores.append(store)
            for threads, on in ((1, ""), (THREADS, f", {THREADS} threads")):
                ask = {"path": path, "sessions": sessions, "queries": asked, "seconds": seconds, "threads": threads}
                contenders[f"memfold, {size}{on}"] = recall(store, sessions, asked, seconds, threads)
                contenders[f"LangGraph, {size}{on}"] = lambda ask=ask: peer.sample("search", **ask)
        samples = take_turns(contenders, rounds)
        for store in stores:
            store.close()
        report.samples(samples, "recalls/s")
        small, large = (f"memfold, {size}" for size in sizes)
        bars = [
            Bar(
                f"{share:.0%} of latencies: memfold / LangGraph, {size}", latency_ratio(samples, ours, theirs, share), 0.5, True
            )
            for size in sizes
            for ours, theirs in [(f"memfold, {size}", f"LangGraph, {size}")]
            for share in (0.5, 0.99)
        ]
        bars.append(Bar(f"p50: {large} / {small}", latency_ratio(samples, large, small, 0.5), 1.2, True))
        bars += [
            Bar(
                f"recalls/s: memfold / LangGraph, {size}, {THREADS} threads",
                ratio(samples, *(f"{name}, {size}, {THREADS} threads" for name in ("memfold", "LangGraph"))),
                2,
            )
            for size in sizes
        ]
        report.bars(bars)
        report.machine(at, [peer.about, settings])


if __name__ == "__main__":
    main()
