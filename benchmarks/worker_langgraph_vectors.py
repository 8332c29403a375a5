"""LangGraph's SqliteStore with its vector index: a file on disk, its own connection settings, vectors made beforehand.

Opened as its `from_conn_string` does, but through pysqlite3 where that is installed, whose SQLite can load the index.
"""

import json
import sys
from array import array
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from langgraph.store.base import PutOp
from langgraph.store.sqlite import SqliteStore
from timing import Sample, on_threads, questions, repeat

try:
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3  # type: ignore[no-redef]

DIMENSION = 384
STORES: dict[str, SqliteStore] = {}
TEXTS: list[str] = []
VECTORS: dict[str, list[float]] = {}


def main() -> None:
    """Answer a JSON line for each that comes in."""
    commands = {"about": about, "learn": learn, "open": open_store, "fill": fill, "search": search}
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = commands[arguments.pop("do")](**arguments)
        print(json.dumps(answer._asdict() if isinstance(answer, Sample) else answer), flush=True)


def about() -> dict[str, Any]:
    """The versions."""
    names = ("langgraph-checkpoint-sqlite", "sqlite-vec")
    return {"about": ", ".join([*(f"{name} {version(name)}" for name in names), f"SQLite {sqlite3.sqlite_version}"])}


def learn(texts: str, vectors: str) -> dict[str, Any]:
    """The texts to put and to ask for, and the vector of each, from files."""
    TEXTS[:] = json.loads(Path(texts).read_text())
    with open(vectors, "rb") as file:
        for text in TEXTS:
            VECTORS[text] = array("f")  # type: ignore[assignment]
            VECTORS[text].fromfile(file, DIMENSION)  # type: ignore[attr-defined]
    return {}


def embed(texts: list[str]) -> list[list[float]]:
    """What the store calls for a vector."""
    return [VECTORS[text] for text in texts]


def open_store(path: str) -> dict[str, Any]:
    """Open a store with an index over the content."""
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    index = {"dims": DIMENSION, "embed": embed, "fields": ["content"], "text_fields": ["content"]}
    STORES[path] = SqliteStore(connection, index=index)  # type: ignore[arg-type]
    STORES[path].setup()
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    return {"settings": f"journal_mode={mode}"}


def fill(path: str, sessions: int, memories: int) -> dict[str, Any]:
    """Put so many texts, in their order, into each of `sessions` namespaces."""
    contents = iter(TEXTS)
    for number in range(sessions):
        namespace = ("memories", f"session-{number}")
        STORES[path].batch([PutOp(namespace, str(key), {"content": next(contents)}) for key in range(memories)])
    return {}


def search(path: str, sessions: int, queries: list[str], seconds: float, threads: int = 1) -> Sample:
    """Search one namespace after the other, on one thread or several."""
    store = STORES[path]

    def searcher(number: int) -> Callable[[], object]:
        asked = questions(sessions, queries[number:] + queries[:number])

        def call() -> object:
            session, query = next(asked)
            return store.search(("memories", session), query=query, limit=10)

        return call

    calls = [searcher(number) for number in range(threads)]
    return repeat(calls[0], seconds) if threads == 1 else on_threads(calls, seconds)


main()
