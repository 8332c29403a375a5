"""How fast is a recall over a whole tenant of 1,000,000 memories, and is it right?

Texts of 40 words in 1,000 sessions of 1,000, of 200 users; the static model, so that a million vectors can be made; nothing
repeated, so that no answer is kept from before. Right means: of the ten that are best when every row is ranked, how many are
among the ten that come. Beside it, in the same run: faiss' flat index over the same vectors, one thread, the best 10.
"""

import gc
import resource
import threading
import time
from collections.abc import Callable, Iterator
from itertools import count, cycle
from pathlib import Path

import faiss
import numpy as np
from common import (
    MASTER_KEY,
    WORKERS,
    Bar,
    Report,
    Spread,
    fill_up,
    latencies,
    latency_ratio,
    options,
    prose,
    queries,
    server,
    spread,
    take_turns,
    without_embedding,
)
from timing import Sample, repeat

from memfold import MemoryStore
from memfold.minilm import StaticEmbedder
from memfold.projections import search

NAME, BATCH, USERS = "memfold", 1_000, 200
SETTINGS = {"views_bytes_max": 16 * 1024**3, "statement_timeout_s": 600.0}
PATIENCE_S = 3_600.0
BAR_P50_MS, BAR_P99_MS, BAR_RIGHT = 20, 60, 9.8


def remember(url: str, worker: int, sessions: int) -> None:
    """A process of its own: remembers so many sessions, with their vectors."""
    with without_embedding(MemoryStore(url, master_key=MASTER_KEY, embedder=StaticEmbedder())) as store:
        for number in range(sessions):
            contents = prose(BATCH, seed=1_000 + worker + WORKERS * number)
            user = f"user-{number % USERS}-{worker}"
            store.remember_many(contents, session_id=f"session-{worker}-{number}", user_id=user, embedding="deferred")


def resident_bytes() -> int:
    """What of this process is in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def different(asked: list[str]) -> Iterator[str]:
    """Queries without end, none twice."""
    return (f"{query} {number}" for number, query in zip(count(), cycle(asked), strict=False))


def recalls(store: MemoryStore, asked: Iterator[str], **scope: str) -> Callable[[], object]:
    """A recall of the next query each time."""
    return lambda: store.recall(next(asked), limit=10, **scope)


def flat(store: MemoryStore, asked: Iterator[str]) -> Callable[[], object]:
    """One exact search of the vectors alone."""
    view = next(slot.view for scope, slot in store._views._slots.items() if not scope.sessions and not scope.user)
    vectors, embedder = view.vectors[StaticEmbedder.name], StaticEmbedder()
    index = faiss.IndexFlatIP(vectors.dimension)
    for begin in range(0, view.places.count, 50_000):
        index.add(vectors.dump(np.arange(begin, min(begin + 50_000, view.places.count))))
    faiss.omp_set_num_threads(1)
    return lambda: index.search(embedder.encode([next(asked)]), 10)


def right_of_ten(store: MemoryStore, asked: list[str]) -> Spread:
    """How many of the ten best of all rows recall returns, in the mean of a query, ten queries at a time."""
    shares = []
    for begin in range(0, len(asked), 10):
        right = 0
        for query in asked[begin : begin + 10]:
            found = [hit.memory.id for hit in store.recall(query + " ", limit=10)]
            exact_max, search.EXACT_MAX = search.EXACT_MAX, 10**9
            try:
                best = {hit.memory.id for hit in store.recall(query + "  ", limit=10)}
            finally:
                search.EXACT_MAX = exact_max
            right += len(best.intersection(found))
        shares.append(right / 10)
    return spread(shares)


def while_writing(store: MemoryStore, call: Callable[[], object], seconds: float) -> Sample:
    """Recalls while another thread remembers a hundred things a second."""
    over = threading.Event()

    def write() -> None:
        for content in cycle(prose(1_000, seed=3)):
            if over.wait(0.01):
                return
            store.remember(content, session_id="written meanwhile")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        return repeat(call, seconds)
    finally:
        over.set()
        writer.join()


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    total, seconds, rounds, judged = (20_000, 0.5, 2, 10) if args.quick else (1_000_000, 5.0, 7, 100)
    if args.quick:
        search.EXACT_MAX = 5_000
    report = Report(__doc__, args)
    asked = queries(400)
    with server() as at:
        at.store(NAME, embedder=StaticEmbedder()).close()
        rate = total / fill_up(at.url(NAME), remember, total // BATCH)
        before, begun = resident_bytes(), time.perf_counter()
        with at.reopened(NAME, embedder=StaticEmbedder(), **SETTINGS) as store:
            partial = store.recall(asked[0], limit=10, wait_s=1.0)
            first_s = time.perf_counter() - begun
            found = store.recall(asked[0] + " again", limit=10, wait_s=PATIENCE_S)
            whole_s = time.perf_counter() - begun
            gc.collect()
            bytes_a_memory = (resident_bytes() - before) / total
            said = store.stats()
            ours, theirs = different(asked), different(asked)
            call, raw = recalls(store, ours), flat(store, theirs)
            call()
            contenders: dict[str, Callable[[], Sample]] = {
                "memfold, whole tenant": lambda: repeat(call, seconds),
                "memfold, while 100 a second are remembered": lambda: while_writing(store, call, seconds),
                "faiss flat, vectors alone": lambda: repeat(raw, seconds),
            }
            samples = take_turns(contenders, rounds)
            right = right_of_ten(store, asked[:judged])
        report.samples(samples, "recalls/s")
        ours_, busy, alone = contenders
        report.bars(
            [
                Bar("p50 ms", latencies(samples, ours_, 0.5), BAR_P50_MS, True),
                Bar("p99 ms", latencies(samples, ours_, 0.99), BAR_P99_MS, True),
                Bar("p50 ms while writing", latencies(samples, busy, 0.5)),
                Bar("p99 ms while writing", latencies(samples, busy, 0.99)),
                Bar("right of 10", right, BAR_RIGHT),
                Bar("p50: memfold / faiss flat", latency_ratio(samples, ours_, alone, 0.5)),
            ],
            "of a round",
        )
        report.table(
            ("from a store that was just opened", ""),
            [
                ("remembered with vectors, 2 processes", f"{rate:,.0f}/s"),
                ("first answer with wait_s=1", f"{first_s:.1f} s, up to position {partial.position:,}, {partial.model}"),
                ("answer that includes everything", f"{whole_s:.1f} s, up to position {found.position:,}, {found.model}"),
                ("resident RAM a memory", f"{bytes_a_memory:,.0f} B"),
                ("counted RAM a memory", f"{said.view_bytes / total:,.0f} B"),
            ],
        )
        report.note(f"{said.memories:,} memories. faiss {faiss.__version__}.")
        report.machine(at)


if __name__ == "__main__":
    main()
