"""What does a memory of 100 characters take: on disk, in RAM, and to import?

Disk: 100,000 memories in sessions of 500, after a CHECKPOINT, tables with their indexes; WAL apart. RAM: a folded view of so
many rows, as it counts itself and as the process grows. Import: fresh processes, less the bare interpreter.
"""

import statistics
import subprocess
import sys
import time
from pathlib import Path

from common import Report, Server, fill, options, server

from memfold import MemoryStore

BAR_MS = 150


def import_ms(statement: str, runs: int) -> float:
    """Median wall time of a fresh interpreter that runs `statement`."""
    times = []
    for _ in range(runs):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], check=True)
        times.append((time.perf_counter() - begun) * 1000)
    return statistics.median(times)


def rss_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def disk(at: Server, count: int) -> list[tuple[str, str]]:
    """Bytes a memory, table by table."""
    query = """SELECT relname, pg_total_relation_size(c.oid) FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
               WHERE nspname IN ('memfold', 'memfold_keys') AND relkind = 'r' ORDER BY 2 DESC LIMIT 4"""
    with at.connect("memfold") as connection:
        connection.execute("CHECKPOINT")
        tables = connection.execute(query).fetchall()
        size = connection.execute("SELECT pg_database_size(current_database())").fetchone()[0]  # type: ignore[index]
        wal = connection.execute("SELECT sum(size) FROM pg_ls_waldir()").fetchone()[0]  # type: ignore[index]
    rows = [(f"table {name} with its indexes", f"{total / count:.0f} B") for name, total in tables]
    rows.append(("the whole database, 8 MB of an empty one included", f"{size / count:.0f} B"))
    return [*rows, ("WAL kept for the next checkpoints, in all", f"{float(wal) / 2**20:.0f} MiB")]


def ram(store: MemoryStore, rows: int) -> tuple[str, str]:
    """Bytes a row of a view."""
    for _ in range(0, rows, 10_000):
        store.remember_many(["x" * 94 + f"{number:6d}" for number in range(10_000)], session_id=f"view {rows}")
    before, counted = rss_bytes(), store.stats(f"view {rows}").view_bytes
    store.count(f"view {rows}")
    grown = rss_bytes() - before
    counted = store.stats(f"view {rows}").view_bytes - counted
    return f"a row of a view of {rows:,}", f"{counted / rows:.0f} B counted, {grown / rows:.0f} B of resident memory"


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    sessions, views, runs = (4, (10_000,), 2) if args.quick else (200, (10_000, 50_000), 10)
    report = Report(__doc__, args)
    with server() as at, at.store("memfold") as store:
        fill(store, sessions=sessions, memories=500)
        rows = disk(at, sessions * 500)
        rows += [ram(store, count) for count in views]
        bare = import_ms("pass", runs)
        light, store_ms = import_ms("import memfold", runs) - bare, import_ms("from memfold import MemoryStore", runs) - bare
        rows.append(("import memfold", f"{light:.0f} ms (bar ≤ {BAR_MS}: {'met' if light <= BAR_MS else '**missed**'})"))
        rows.append(("from memfold import MemoryStore", f"{store_ms:.0f} ms"))
        report.table(("what", "takes"), rows)
        report.machine(at)


if __name__ == "__main__":
    main()
