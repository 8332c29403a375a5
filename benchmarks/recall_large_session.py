"""How fast is a recall in a session of 1,000 and of 10,000 memories, among 1,000,000 in the store, encoding apart?

Against the two libraries that could do half of it each, alone and one after the other on the same rows: SQLite's FTS5 (in
memory, Porter, BM25, any of the query's words, the best 10) and FAISS' flat index (inner product, the best 10). Texts of 40
words, vectors of 384 dimensions, the session's view folded and its vectors in it before the clock starts; the million stand in
sessions of 1,000.
"""

import sqlite3
from collections.abc import Callable
from itertools import cycle

import faiss
from common import (
    MASTER_KEY,
    Bar,
    RandomVectors,
    Report,
    fill_up,
    latencies,
    latency_ratio,
    options,
    prose,
    queries,
    server,
    take_turns,
    without_embedding,
)
from timing import Sample, repeat

from memfold import MemoryStore
from memfold.projections.words import asked_for

NAME = "memfold"
BATCH = 1_000
BARS_MS = {1_000: 2.0, 10_000: 15.0}


def remember_others(url: str, worker: int, sessions: int) -> None:
    """A process of its own: remembers so many sessions of 1,000, of which no vector is made."""
    contents = cycle(prose(10_000, seed=10 + worker))
    with without_embedding(MemoryStore(url, master_key=MASTER_KEY)) as store:
        for number in range(sessions):
            store.remember_many([next(contents) for _ in range(BATCH)], session_id=f"other-{worker}-{number}")


def libraries(contents: list[str], asked: list[str], embedder: RandomVectors) -> Callable[[], object]:
    """One search by words and one by vectors, of the next query each time."""
    database = sqlite3.connect(":memory:")
    database.execute("CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='porter unicode61')")
    database.executemany("INSERT INTO words (rowid, text) VALUES (?, ?)", enumerate(contents))
    database.execute("INSERT INTO words (words) VALUES ('optimize')")
    index = faiss.IndexFlatIP(len(embedder.encode(asked[:1])[0]))
    index.add(embedder.encode(contents))
    faiss.omp_set_num_threads(1)
    prepared = cycle([(" OR ".join(f'"{word}"' for word in asked_for(query)), embedder.encode([query])) for query in asked])

    def call() -> object:
        words, vector = next(prepared)
        found = database.execute(
            "SELECT rowid, rank FROM words WHERE words MATCH ? ORDER BY rank LIMIT 10", (words,)
        ).fetchall()
        return found, index.search(vector, 10)

    return call


def recalls(store: MemoryStore, session: str, asked: list[str]) -> Callable[[], object]:
    """A recall of the next query each time."""
    texts = cycle(asked)
    return lambda: store.recall(next(texts), session_id=session, limit=10)


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    total, seconds, rounds = (20_000, 0.2, 2) if args.quick else (1_000_000, 1.5, 11)
    report = Report(__doc__, args)
    asked, embedder = queries(499), RandomVectors()
    contents = prose(max(BARS_MS))
    with server() as at:
        with at.store(NAME, embedder=embedder) as store:
            for size in BARS_MS:
                store.remember_many(contents[:size], session_id=f"session-{size}")
            store.flush()
        fill_up(at.url(NAME), remember_others, (total - sum(BARS_MS)) // BATCH)
        contenders: dict[str, Callable[[], Sample]] = {}
        with at.reopened(NAME, embedder=embedder) as store:
            for size in BARS_MS:
                ours, theirs = recalls(store, f"session-{size}", asked), libraries(contents[:size], asked, embedder)
                ours()
                contenders[f"memfold, {size:,}"] = lambda call=ours: repeat(call, seconds)
                contenders[f"FTS5 and FAISS, {size:,}"] = lambda call=theirs: repeat(call, seconds)
            samples = take_turns(contenders, rounds)
            count = store.stats().memories
        report.samples(samples, "recalls/s")
        report.bars(
            [
                Bar(f"memfold, {size:,}", latencies(samples, f"memfold, {size:,}", 0.5), bar, True)
                for size, bar in BARS_MS.items()
            ],
            "p50 ms of a round",
        )
        pairs = {size: (f"memfold, {size:,}", f"FTS5 and FAISS, {size:,}") for size in BARS_MS}
        report.bars(
            Bar(f"p50: memfold / FTS5 and FAISS, {size:,}", latency_ratio(samples, *pair, 0.5)) for size, pair in pairs.items()
        )
        report.note(f"{count:,} memories in the store. SQLite {sqlite3.sqlite_version}, faiss {faiss.__version__}.")
        report.machine(at)


if __name__ == "__main__":
    main()
