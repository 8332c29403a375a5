"""What does a memory of 100 characters take: on disk, in RAM, and to import?

Disk: 100,000 memories in sessions of 500, after a CHECKPOINT, tables with their indexes; WAL apart; then what it grows by when
each has its vector of 384 dimensions. RAM: a folded view of so many rows, as it counts itself and as a fresh process that has
folded it has grown, without vectors and with them. Import: fresh processes that find their bytecode, in turn with the bare
interpreter, whose time is taken off.
"""

import gc
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from itertools import islice
from multiprocessing.connection import Connection as Pipe
from pathlib import Path

from common import MASTER_KEY, RandomVectors, Report, Server, fill, options, scratch, server, without_embedding
from timing import texts

from memfold import MemoryStore

BAR_MS = 150
IMPORTS = ("import memfold", "from memfold import MemoryStore")
MIB = 2**20


# -- disk ------------------------------------------------------------------------------------------------------------------


def number(at: Server, query: str) -> int:
    """What a query for one number says."""
    with at.connect("memfold") as connection:
        return int(connection.execute(query).fetchone()[0])  # type: ignore[index]


def database_bytes(at: Server) -> int:
    """The database without WAL."""
    with at.connect("memfold") as connection:
        connection.execute("CHECKPOINT")
    return number(at, "SELECT pg_database_size(current_database())")


def wal_bytes(at: Server) -> int:
    """How much WAL was ever written."""
    return number(at, "SELECT pg_current_wal_insert_lsn() - '0/0'")


def disk(at: Server, sessions: int) -> list[tuple[str, str]]:
    """Bytes a memory, table by table, beyond what an empty store takes; then what the vectors add."""
    query = """SELECT relname, pg_relation_size(c.oid), pg_indexes_size(c.oid), pg_total_relation_size(c.oid)
               FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE nspname IN ('memfold', 'memfold_keys') AND relkind = 'r' ORDER BY 4 DESC LIMIT 5"""
    count = sessions * 500
    with without_embedding(at.store("memfold")) as store:
        empty, wal = database_bytes(at), wal_bytes(at)
        fill(store, sessions=sessions, memories=500)
    written, size = wal_bytes(at) - wal, database_bytes(at) - empty
    kept = number(at, "SELECT sum(size) FROM pg_ls_waldir()")
    folder = folder_bytes(at)
    with at.reopened("memfold", embedder=RandomVectors()) as store:
        store.flush()
    written_more, more = wal_bytes(at) - wal - written, database_bytes(at) - empty - size
    with at.connect("memfold") as connection:
        tables = connection.execute(query).fetchall()
    rows = [
        (f"disk: {name}", f"{total / count:.0f} B a memory (rows {heap / count:.0f}, indexes {indexes / count:.0f})")
        for name, heap, indexes, total in tables
    ]
    mib = f"(from {empty / MIB:.0f} to {(empty + size) / MIB:.0f} MiB)"
    rows += [
        ("disk: the database grew without vectors by", f"{size / count:.0f} B a memory {mib}"),
        ("WAL without vectors", f"{written / count:.0f} B a memory written; {kept / MIB:.0f} MiB kept after the CHECKPOINT"),
        ("the whole folder without vectors, WAL and the server's own databases included", f"{folder / MIB:.0f} MiB"),
        (
            "disk: the database grew with the vectors by another",
            f"{more / count:.0f} B a memory (to {(empty + size + more) / MIB:.0f} MiB)",
        ),
        ("WAL of the vectors", f"{written_more / count:.0f} B a memory written"),
    ]
    return rows


def folder_bytes(at: Server) -> int:
    """What the server's folder takes."""
    command = ["du", "-s", "--block-size=1", str(at.folder)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0])


# -- RAM -------------------------------------------------------------------------------------------------------------------


def rss_bytes() -> int:
    """Resident memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fold(url: str, session: str, answer: Pipe) -> None:
    """A process of its own: folds a small session to be warm, then the one that counts; rows, counted and resident bytes.

    The view first without vectors, then with those it takes from the database.
    """
    with MemoryStore(url, master_key=MASTER_KEY, embedder=RandomVectors()) as store:
        store.recall("warm", session_id="session-0")
        counted, resident = store.stats().view_bytes, rss_bytes()
        rows = store.count(session)
        found = [rows]
        for ask in (store.count, lambda session: store.recall("warm", session_id=session)):
            ask(session)
            found += [store.stats().view_bytes - counted, rss_bytes() - resident]
        answer.send(found)


def ram(at: Server, rows: int) -> list[tuple[str, str]]:
    """Bytes a row of a view."""
    session = f"view {rows}"
    with at.reopened("memfold", embedder=RandomVectors()) as store:
        contents = texts()
        for _ in range(0, rows, 1000):
            store.remember_many(list(islice(contents, 1000)), session_id=session)
        store.flush()
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=fold, args=(at.url("memfold"), session, sender))
    process.start()
    sender.close()
    count, *found = receiver.recv()
    process.join()
    counted, resident, counted_with, resident_with = (value / count for value in found)
    return [
        (f"RAM: a view of {count:,} rows", f"{counted:.0f} B a row counted, {resident:.0f} B resident"),
        ("RAM: the same with vectors of 384 dimensions", f"{counted_with:.0f} B a row counted, {resident_with:.0f} B resident"),
    ]


# -- import ----------------------------------------------------------------------------------------------------------------


def imports_ms(runs: int) -> list[float]:
    """Median wall time of each import, less that of a bare interpreter."""
    statements = ("pass", *IMPORTS)
    times: dict[str, list[float]] = {statement: [] for statement in statements}
    with scratch() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder)}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        for run in range(runs + 1):
            for statement in statements:
                begun = time.perf_counter()
                subprocess.run([sys.executable, "-c", statement], check=True, env=environment)
                if run:  # the first one compiles
                    times[statement].append((time.perf_counter() - begun) * 1000)
    bare, *others = (statistics.median(times[statement]) for statement in statements)
    return [other - bare for other in others]


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    sessions, views, runs = (4, (10_000,), 2) if args.quick else (200, (10_000, 50_000), 10)
    report = Report(__doc__, args)
    with server() as at:
        rows = [*disk(at, sessions), *(row for count in views for row in ram(at, count))]
        for statement, took in zip(IMPORTS, imports_ms(runs), strict=True):
            rows.append((f"`{statement}`", f"{took:.0f} ms (bar ≤ {BAR_MS}: {'met' if took <= BAR_MS else '**missed**'})"))
        report.table(("what", "takes"), rows)
        report.machine(at)


if __name__ == "__main__":
    main()
