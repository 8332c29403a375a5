"""How long after its acknowledgement does a reader of the whole log see an event?

Sixteen threads of another process remember, each in a session of its own, and note when each call returned. A reader here looks
for the settled position every 10 ms and reads up to it. Then the same beside transactions of others that stay open all the
time: one wrote a table in another database of the server, one a table in ours, one reads the log.
"""

import multiprocessing
import threading
import time
from multiprocessing.connection import Connection as Pipe
from typing import Any

from common import MASTER_KEY, Report, Server, options, parts, percentile, server

from memfold import MemoryStore
from memfold.eventstore.tail import Tail

WRITERS, TICK_S, BAR_MS = 16, 0.01, 50


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


def follow(store: MemoryStore, seconds: float) -> dict[str, float]:
    """When the reader had each memory."""
    seen, (database, keyring), cursor = {}, parts(store), store.stats().position
    query = """SELECT position, memory_id FROM memfold.events
               WHERE tenant_id = %s AND position > %s AND position <= %s ORDER BY position"""
    end = time.monotonic() + seconds
    with Tail(database) as tail:
        while time.monotonic() < end:
            rows = database.rows(query, (keyring.tenant, cursor, tail.advance()))
            now = time.monotonic()
            seen |= {str(row.memory_id): now for row in rows}
            cursor = rows[-1].position if rows else cursor
            time.sleep(TICK_S)
    return seen


def measure(at: Server, store: MemoryStore, seconds: float) -> tuple[int, int, list[float]]:
    """Events acknowledged, events never seen, and the delays in ms."""
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    writer = context.Process(target=write, args=(at.url("memfold"), seconds, sender))
    writer.start()
    box: dict[str, Any] = {}
    collector = threading.Thread(target=lambda: box.update(found=receiver.recv()))
    collector.start()
    seen = follow(store, seconds + 6)
    collector.join()
    writer.join()
    acknowledged = box["found"]
    delays = [max(0.0, (seen[name] - at_s) * 1000) for name, at_s in acknowledged.items() if name in seen]
    return len(acknowledged), len(acknowledged) - len(delays), delays


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    seconds = 3 if args.quick else 30
    report = Report(__doc__, args)
    with server() as at, at.store("memfold") as store:
        store.remember("x", session_id="first")
        at.database("other")
        rows = [("nobody else", *measure(at, store, seconds))]
        with at.connect("other") as elsewhere, at.connect("memfold") as beside, at.connect("memfold") as reading:
            for connection, statement in (
                (elsewhere, "CREATE TABLE elsewhere (x int)"),
                (beside, "CREATE TABLE beside (x int)"),
                (reading, "SELECT count(*) FROM memfold.events"),
            ):
                connection.autocommit = False
                connection.execute(statement)
            rows.append((f"three transactions open for {seconds} s", *measure(at, store, seconds)))
        table = []
        for name, count, missed, delays in rows:
            times = [percentile(delays, share) for share in (0.5, 0.99, 1.0)]
            met = "met" if times[1] <= BAR_MS and not missed else "**missed**"
            table.append((name, f"{count:,}", missed, *(f"{time_ms:.1f}" for time_ms in times), f"≤ {BAR_MS}", met))
        report.table(("beside the writers", "events", "never seen", "p50 ms", "p99 ms", "max ms", "bar p99", ""), table)
        report.machine(at)


if __name__ == "__main__":
    main()
