"""How long after its acknowledgement does a reader of the whole log see an event?

Sixteen threads of another process remember, each in a session of its own, and note when each call returned. A reader here looks
for the settled position every 10 ms, or every 5, and reads up to it. Then the same beside transactions of others that stay open
all the time: one wrote a table in another database of the server, one a table in ours, and one SELECT of the log keeps running.
A delay of nothing means that the reader was there before the writer's thread had noted the acknowledgement.
"""

import multiprocessing
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.connection import Connection as Pipe

import psycopg
from common import MASTER_KEY, Report, Server, options, parts, percentile, server

from memfold import MemoryStore
from memfold.eventstore.tail import Tail

WRITERS, TICKS_MS, BAR_MS = 16, (10, 5), 50
GRACE_S = 2  # for what the reader does not have yet when the last writer is done


def write(url: str, seconds: float, answer: Pipe) -> None:
    """The writers' process: remembers for so long, and hands over when each memory was acknowledged."""
    acknowledged: dict[str, float] = {}
    store = MemoryStore(url, master_key=MASTER_KEY)
    end = time.monotonic() + seconds

    def run(number: int) -> None:
        while time.monotonic() < end:
            memory = store.remember("x" * 100, session_id=f"writer {number}")
            acknowledged[memory.id] = time.monotonic()

    threads = [threading.Thread(target=run, args=(number,)) for number in range(WRITERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    store.close()
    answer.send(acknowledged)


def follow(store: MemoryStore, tick_s: float, writers: Pipe) -> dict[str, float]:
    """When the reader had each memory, until the writers are done."""
    seen, (database, keyring), cursor = {}, parts(store), store.stats().position
    query = """SELECT position, memory_id FROM memfold.events
               WHERE tenant_id = %s AND position > %s AND position <= %s ORDER BY position"""
    end = None
    with Tail(database) as tail:
        while end is None or time.monotonic() < end:
            if end is None and writers.poll():
                end = time.monotonic() + GRACE_S
            rows = database.rows(query, (keyring.tenant, cursor, tail.advance()))
            now = time.monotonic()
            seen |= {str(row.memory_id): now for row in rows}
            cursor = rows[-1].position if rows else cursor
            time.sleep(tick_s)
    return seen


def measure(at: Server, store: MemoryStore, tick_ms: int, seconds: float) -> tuple[int, int, list[float]]:
    """Events acknowledged, events never seen, and the delays in ms."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    writer = context.Process(target=write, args=(at.url("memfold"), seconds, sender))
    writer.start()
    sender.close()
    seen = follow(store, tick_ms / 1000, receiver)
    acknowledged = receiver.recv()
    writer.join()
    delays = [max(0.0, (seen[name] - at_s) * 1000) for name, at_s in acknowledged.items() if name in seen]
    return len(acknowledged), len(acknowledged) - len(delays), delays


@contextmanager
def others(at: Server) -> Iterator[None]:
    """Three transactions of others, open until the end; it is an error if one of them is not."""
    with at.connect("other") as elsewhere, at.connect("memfold") as beside, at.connect("memfold") as reading:
        for connection, name in ((elsewhere, "elsewhere"), (beside, "beside")):
            connection.execute(f"CREATE TABLE IF NOT EXISTS {name} (x int)")
            connection.autocommit = False
            connection.execute(f"INSERT INTO {name} VALUES (1)")

        def select() -> None:
            with suppress(psycopg.errors.QueryCanceled):
                reading.execute("SELECT count(*), pg_sleep(3600) FROM memfold.events")

        thread = threading.Thread(target=select)
        thread.start()
        yield
        for connection in (elsewhere, beside):
            connection.execute("SELECT 1")
            assert connection.info.transaction_status == psycopg.pq.TransactionStatus.INTRANS
        assert thread.is_alive()
        reading.cancel_safe()
        thread.join()


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    alone_s, beside_s = (2, 2) if args.quick else (20, 30)
    report = Report(__doc__, args)
    with server() as at, at.store("memfold") as store:
        store.remember("x", session_id="first")
        at.database("other")
        rows = []
        for tick_ms in TICKS_MS:
            rows.append(("nobody else", tick_ms, alone_s, *measure(at, store, tick_ms, alone_s)))
            with others(at):
                rows.append(
                    (f"three transactions of others, {beside_s} s", tick_ms, beside_s, *measure(at, store, tick_ms, beside_s))
                )
        table = []
        for name, tick_ms, seconds, count, missed, delays in rows:
            times = [percentile(delays, share) for share in (0.5, 0.99, 1.0)]
            met = "met" if times[1] <= BAR_MS and not missed else "**missed**"
            speed = f"{count / seconds:,.0f}"
            told = (f"{time_ms:.1f}" for time_ms in times)
            table.append((name, f"{tick_ms} ms", f"{count:,}", speed, missed, *told, f"≤ {BAR_MS}", met))
        header = (
            "beside the writers",
            "looks every",
            "events",
            "events/s",
            "never seen",
            "p50 ms",
            "p99 ms",
            "max ms",
            "bar p99",
            "",
        )
        report.table(header, table)
        report.machine(at)


if __name__ == "__main__":
    main()
