"""What does a memory of 100 characters take: on disk, in RAM, and to import?

Disk: 100,000 memories in sessions of 500, after a CHECKPOINT, tables with their indexes; WAL apart. RAM: a folded view of so
many rows, as it counts itself and as a fresh process that has folded it has grown. Import: fresh processes that find their
bytecode, in turn with the bare interpreter, whose time is taken off.
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

from common import MASTER_KEY, Report, Server, fill, options, scratch, server
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
    """Bytes a memory, table by table, beyond what an empty store takes."""
    query = """SELECT relname, pg_relation_size(c.oid), pg_indexes_size(c.oid), pg_total_relation_size(c.oid)
               FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE nspname IN ('memfold', 'memfold_keys') AND relkind = 'r' ORDER BY 4 DESC LIMIT 4"""
    with at.store("memfold") as store:
        empty, wal, count = database_bytes(at), wal_bytes(at), sessions * 500
        fill(store, sessions=sessions, memories=500)
        written, size = wal_bytes(at) - wal, database_bytes(at) - empty
    with at.connect("memfold") as connection:
        tables = connection.execute(query).fetchall()
    rows = [
        (f"disk: {name}", f"{total / count:.0f} B a memory (rows {heap / count:.0f}, indexes {indexes / count:.0f})")
        for name, heap, indexes, total in tables
    ]
    rows.append(
        (
            "disk: the database grew by",
            f"{size / count:.0f} B a memory (from {empty / MIB:.0f} to {(empty + size) / MIB:.0f} MiB)",
        )
    )
    kept = number(at, "SELECT sum(size) FROM pg_ls_waldir()")
    rows.append(("WAL", f"{written / count:.0f} B a memory written; {kept / MIB:.0f} MiB kept after the CHECKPOINT"))
    folder = subprocess.run(["du", "-s", "--block-size=1", str(at.folder)], capture_output=True, text=True, check=True).stdout
    rows.append(("the whole folder, WAL and the server's own databases included", f"{int(folder.split()[0]) / MIB:.0f} MiB"))
    return rows


# -- RAM -------------------------------------------------------------------------------------------------------------------


def rss_bytes() -> int:
    """Resident memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def fold(url: str, session: str, answer: Pipe) -> None:
    """A process of its own: folds a small session to be warm, then the one that counts; rows, counted and resident bytes."""
    with MemoryStore(url, master_key=MASTER_KEY) as store:
        store.count("session-0")
        counted, resident = store.stats().view_bytes, rss_bytes()
        rows = store.count(session)
        answer.send((rows, store.stats().view_bytes - counted, rss_bytes() - resident))


def ram(at: Server, rows: int) -> tuple[str, str]:
    """Bytes a row of a view."""
    session = f"view {rows}"
    with MemoryStore(at.url("memfold"), master_key=MASTER_KEY) as store:
        contents = texts()
        for _ in range(0, rows, 1000):
            store.remember_many(list(islice(contents, 1000)), session_id=session)
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=fold, args=(at.url("memfold"), session, sender))
    process.start()
    sender.close()
    found, counted, resident = receiver.recv()
    process.join()
    return f"RAM: a view of {found:,} rows", f"{counted / found:.0f} B a row counted, {resident / found:.0f} B resident"


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
        rows = [*disk(at, sessions), *(ram(at, count) for count in views)]
        for statement, took in zip(IMPORTS, imports_ms(runs), strict=True):
            rows.append((f"`{statement}`", f"{took:.0f} ms (bar ≤ {BAR_MS}: {'met' if took <= BAR_MS else '**missed**'})"))
        report.table(("what", "takes"), rows)
        report.machine(at)


if __name__ == "__main__":
    main()
