"""LangGraph's SqliteStore as it ships: a file on disk, its own connection settings.

Without a vector index, which would embed before `put` returns; memfold embeds behind the log.
"""

import json
import sqlite3
import sys
import uuid
from importlib.metadata import version
from typing import Any

from langgraph.store.base import PutOp
from langgraph.store.sqlite import SqliteStore
from timing import Sample, repeat, texts

STORES: dict[str, SqliteStore] = {}
TEXTS = texts()


def main() -> None:
    """Answer a JSON line for each that comes in."""
    commands = {"about": about, "open": open_store, "fill": fill, "put": put, "batch": batch}
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = commands[arguments.pop("do")](**arguments)
        print(json.dumps(answer._asdict() if isinstance(answer, Sample) else answer), flush=True)


def about() -> dict[str, Any]:
    """The versions."""
    return {"about": f"langgraph-checkpoint-sqlite {version('langgraph-checkpoint-sqlite')}, SQLite {sqlite3.sqlite_version}"}


def open_store(path: str, wal: bool) -> dict[str, Any]:
    """Open a store as `from_conn_string` does; with `wal`, as a careful user could tune it (still synced at every commit)."""
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
    if wal:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    STORES[path] = SqliteStore(connection)
    STORES[path].setup()
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    synchronous = connection.execute("PRAGMA synchronous").fetchone()[0]
    return {"settings": f"journal_mode={mode}, synchronous={synchronous}"}


def fill(path: str, sessions: int, memories: int) -> dict[str, Any]:
    """Put `memories` into each of `sessions` namespaces."""
    for number in range(sessions):
        STORES[path].batch(puts(f"session-{number}", memories))
    return {}


def puts(session: str, count: int) -> list[PutOp]:
    """`count` operations that put something new."""
    return [PutOp(("memories", session), str(uuid.uuid4()), {"content": next(TEXTS)}) for _ in range(count)]


def put(path: str, session: str, seconds: float) -> Sample:
    """Put one at a time."""
    store, namespace = STORES[path], ("memories", session)
    return repeat(lambda: store.put(namespace, str(uuid.uuid4()), {"content": next(TEXTS)}), seconds)


def batch(path: str, session: str, size: int, seconds: float) -> Sample:
    """Put `size` at a time."""
    store = STORES[path]
    return repeat(lambda: store.batch(puts(session, size)), seconds, amount=size)


main()
