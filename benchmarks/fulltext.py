"""Are words over arrays good enough in the place of SQLite's FTS5, and of tantivy where rows are many?

`projections/words.py` against an FTS5 table without contents, in memory, with the Porter tokenizer: adding rows, asking for the
ten best by BM25, and RAM. Ours answers with two weights of every row, alone and together with the row before it, FTS5 with one
of ten rows; asking it for the weight of every row, as a mix with meaning needs, is a line of its own. Texts of 40 words, half
of them stop words, which ours drops; since FTS5 has no such list, it is also given the texts without them.

Then the best 300 of 100,000 and of 1,000,000 rows, as recall of a whole tenant needs them, and one changed row until it is
found. There FTS5 gets the texts without stop words, and tantivy, in RAM, words stemmed already, which costs it nothing.
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
    scratch,
    take_turns,
)
from peers import TANTIVY, Worker
from timing import Sample, repeat

from memfold.projections import ranking
from memfold.projections.words import Words, asked_for, plain_words, words_of

OURS, FTS, FTS_LEAN, FTS_ALL = "memfold's words", "FTS5", "FTS5 without stop words", "FTS5, every row's weight"
PEER = "tantivy"
SIZES, LARGE = (1_000, 10_000, 100_000), (100_000, 1_000_000)
NEAR = 300
FOLDED = 1_000  # rows at a time
Query = Callable[[str], object]


class Built(NamedTuple):
    """An index over some rows: what it takes in RAM, how to ask it, and how to take a row out, add it again and find it."""

    size_bytes: int
    ask: Query
    nearest: Query
    change: Callable[[int], object]


def ours(contents: list[str]) -> Built:
    """The words of a view."""
    words = folded(contents)
    slots = np.arange(len(contents))

    def ask(query: str) -> object:
        found = words.weigh(words.look_up(asked_for(query)), slots, slots - 1)
        return ranking.best(found.alone + found.paired, slots, 10, 0.0)

    def change(slot: int) -> object:
        words.remove(slot, contents[slot])
        words.add(slot, contents[slot])
        words.settle()
        return words.weigh(words.look_up(asked_for(contents[slot])[:1]), slots[slot : slot + 1], slots[:1] - 1)

    def nearest(query: str) -> object:
        return words.nearest(words.look_up(asked_for(query)), NEAR)

    return Built(held_bytes(vars(words), set()), ask, nearest, change)


def folded(contents: list[str]) -> Words:
    """The words of texts, folded some at a time."""
    words = Words()
    for slot, text in enumerate(contents, 1):
        words.add(slot - 1, text)
        if slot % FOLDED == 0:
            words.settle()
    words.settle()
    return words


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
    elif isinstance(thing, memoryview):
        parts = [thing.obj]
    elif hasattr(thing, "__dict__"):
        parts = [vars(thing)]
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

    def change(row: int) -> object:
        database.execute("INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", (row, contents[row]))
        database.execute(insert, (row, contents[row]))
        word = f'"{plain_words(contents[row])[0]}"'
        return database.execute("SELECT rowid FROM words WHERE words MATCH ? AND rowid = ?", (word, row)).fetchone()

    pages, size = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    return Built(pages * size, ask, ask, change)


def building(build: Callable[[list[str]], object], contents: list[str]) -> Callable[[], Sample]:
    """Rows a second of building an index."""

    def run() -> Sample:
        begun = perf_counter()
        build(contents)
        return Sample(len(contents) / (perf_counter() - begun), [])

    return run


def asking(ask: Query, asked: list[str], seconds: float) -> Callable[[], Sample]:
    """Queries, one after the other."""
    texts = cycle(asked)
    return lambda: repeat(lambda: ask(next(texts)), seconds)


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
    searching = take_turns({name: asking(each.ask, asked, seconds) for name, each in built.items()}, rounds)
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


def measure_large(size: int, asked: list[str], seconds: float, rounds: int, report: Report) -> str:
    """Build, ask for the best 300 and change a row at one size, and print; returns tantivy's version."""
    full = prose(size)
    lean = [" ".join(plain_words(text)) for text in full]
    with scratch() as folder, Worker(TANTIVY) as tantivy:
        at = str(folder / "words.txt")
        (folder / "words.txt").write_text("\n".join(" ".join(words_of(text)) for text in full), "utf-8")
        adding = take_turns(
            {
                OURS: building(folded, full),
                FTS_LEAN: building(lambda texts: fts5(texts, limit=NEAR), lean),
                PEER: lambda: tantivy.sample("build", path=at),
            },
            rounds,
            warm_up=False,
        )
        built = {OURS: ours(full), FTS_LEAN: fts5(lean, limit=NEAR)}
        words = [asked_for(query) for query in asked]
        searching = take_turns(
            {
                **{name: asking(each.nearest, asked, seconds) for name, each in built.items()},
                PEER: lambda: tantivy.sample("ask", path=at, queries=words, count=NEAR, seconds=seconds),
            },
            7,
        )
        found = tantivy.ask("found", path=at, query=words[0], count=NEAR)
        changing = take_turns(
            {
                **{name: changes(each, size, seconds) for name, each in built.items()},
                PEER: lambda: tantivy.sample("change", path=at, seconds=seconds),
            },
            7,
        )
    report.note(f"### {size:,} rows, the best {NEAR}")
    report.samples(adding, "rows added/s")
    report.samples(searching, "queries/s")
    report.samples(changing, "rows changed/s")
    others = (FTS_LEAN, PEER)
    report.bars(
        [
            *(Bar(f"rows added/s: {OURS} / {name}", ratio(adding, OURS, name)) for name in others),
            *(
                Bar(f"p{share * 100:.0f} of a query: {OURS} / {name}", latency_ratio(searching, OURS, name, share))
                for name in others
                for share in (0.5, 0.99)
            ),
            *(Bar(f"p50 of a change: {OURS} / {name}", latency_ratio(changing, OURS, name, 0.5)) for name in others),
        ]
    )
    sizes = {**{name: each.size_bytes for name, each in built.items()}, f"{PEER} (its process)": found["bytes"]}
    report.note(f"Bytes a row: {', '.join(f'{name} {each / size:.0f}' for name, each in sizes.items())}.")
    return tantivy.about


def changes(built: Built, size: int, seconds: float) -> Callable[[], Sample]:
    """Rows taken out, added again and found, one at a time."""
    slots = cycle(range(0, size, 7))
    return lambda: repeat(lambda: built.change(next(slots)), seconds)


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    seconds, rounds = (0.1, 2) if args.quick else (1.0, 7)
    report = Report(__doc__, args)
    for size in SIZES[: 2 if args.quick else None]:
        measure(size, queries(499), seconds, rounds if size < max(SIZES) else min(rounds, 5), report)
    about = {
        measure_large(size, queries(499), seconds, min(rounds, 7 if size < max(LARGE) else 3), report)
        for size in LARGE[: 1 if args.quick else None]
    }
    report.note(f"SQLite {sqlite3.sqlite_version}.")
    report.machine(about=about)


if __name__ == "__main__":
    main()
