"""Are words over arrays good enough in the place of SQLite's FTS5?

`projections/words.py` against an FTS5 table without contents, in memory, with the Porter tokenizer: adding rows, asking for the
ten best by BM25, and RAM. Ours answers with two weights of every row, alone and together with the row before it, FTS5 with one
of ten rows; asking it for the weight of every row, as a mix with meaning needs, is a line of its own. Texts of 40 words, half
of them stop words, which ours drops; since FTS5 has no such list, it is also given the texts without them.
"""

import sqlite3
import sys
from collections.abc import Callable
from itertools import cycle
from time import perf_counter
from typing import NamedTuple

import numpy as np
from common import (
    Bar,
    Report,
    latency_ratio,
    options,
    prose,
    queries,
    ratio,
    take_turns,
)
from timing import Sample, repeat

from memfold.projections import ranking
from memfold.projections.words import Words, asked_for, plain_words

OURS, FTS, FTS_LEAN, FTS_ALL = "memfold's words", "FTS5", "FTS5 without stop words", "FTS5, every row's weight"
SIZES = (1_000, 10_000, 100_000)
Query = Callable[[str], object]


class Built(NamedTuple):
    """An index over some rows: what it takes in RAM, and how to ask it."""

    size_bytes: int
    ask: Query


def ours(contents: list[str]) -> Built:
    """The words of a view."""
    words = Words()
    for slot, text in enumerate(contents):
        words.add(slot, text)
    words.settle()
    slots = np.arange(len(contents))

    def ask(query: str) -> object:
        found = words.weigh(asked_for(query), slots, slots - 1)
        return ranking.best(found.alone + found.paired, slots, 10, 0.0)

    return Built(held_bytes(vars(words), set()), ask)


def held_bytes(thing: object, seen: set[int]) -> int:
    """What an object and all it holds say they take, each counted once."""
    if id(thing) in seen:
        return 0
    seen.add(id(thing))
    parts: list[object] = []
    if isinstance(thing, dict):
        parts = [*thing, *thing.values()]
    elif isinstance(thing, list | tuple):
        parts = list(thing)
    return sys.getsizeof(thing) + sum(held_bytes(part, seen) for part in parts)


def fts5(contents: list[str], limit: int = 10) -> Built:
    """An FTS5 table, filled row by row in one transaction, as a fold would."""
    database = sqlite3.connect(":memory:", isolation_level=None)
    database.execute("CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='porter unicode61')")
    database.execute("BEGIN")
    insert = "INSERT INTO words (rowid, text) VALUES (?, ?)"
    for row, text in enumerate(contents):
        database.execute(insert, (row, text))
    database.execute("COMMIT")
    order = f"ORDER BY rank LIMIT {limit}" if limit else ""

    def ask(query: str) -> object:
        words = " OR ".join(f'"{word}"' for word in dict.fromkeys(plain_words(query)))
        return database.execute(f"SELECT rowid, rank FROM words WHERE words MATCH ? {order}", (words,)).fetchall()

    pages, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return Built(pages * size, ask)


def building(build: Callable[[list[str]], Built], contents: list[str]) -> Callable[[], Sample]:
    """Rows a second of building an index."""

    def run() -> Sample:
        begun = perf_counter()
        build(contents)
        return Sample(len(contents) / (perf_counter() - begun), [])

    return run


def asking(built: Built, asked: list[str], seconds: float) -> Callable[[], Sample]:
    """Queries, one after the other."""
    texts = cycle(asked)
    return lambda: repeat(lambda: built.ask(next(texts)), seconds)


def measure(size: int, asked: list[str], seconds: float, rounds: int, report: Report) -> None:
    """Build and ask at one size, and print."""
    full = prose(size)
    lean = [" ".join(plain_words(text)) for text in full]
    builders: dict[str, tuple[Callable[[list[str]], Built], list[str]]] = {
        OURS: (ours, full),
        FTS: (fts5, full),
        FTS_LEAN: (fts5, lean),
    }
    adding = take_turns({name: building(*how) for name, how in builders.items()}, rounds)
    built = {name: build(contents) for name, (build, contents) in builders.items()}
    built[FTS_ALL] = fts5(lean, limit=0)
    searching = take_turns({name: asking(each, asked, seconds) for name, each in built.items()}, rounds)
    report.note(f"### {size:,} rows")
    report.samples(adding, "rows added/s")
    report.samples(searching, "queries/s")
    report.bars(
        [
            *(Bar(f"rows added/s: {OURS} / {name}", ratio(adding, OURS, name)) for name in (FTS, FTS_LEAN)),
            *(
                Bar(f"p50 of a query: {OURS} / {name}", latency_ratio(searching, OURS, name, 0.5))
                for name in (FTS, FTS_LEAN, FTS_ALL)
            ),
        ]
    )
    sizes = (f"{name} {each.size_bytes / size:.0f}" for name, each in built.items() if name != FTS_ALL)
    report.note(f"Bytes a row: {', '.join(sizes)}.")


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    seconds, rounds = (0.1, 2) if args.quick else (1.0, 7)
    report = Report(__doc__, args)
    for size in SIZES[: 2 if args.quick else None]:
        measure(size, queries(499), seconds, rounds if size < max(SIZES) else min(rounds, 5), report)
    report.note(f"SQLite {sqlite3.sqlite_version}.")
    report.machine()


if __name__ == "__main__":
    main()
