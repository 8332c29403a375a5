"""How fast is a replay of the whole log?

`store.events(0)` over 200,000 events (read, opened, decoded, in order), against fetching the same rows with the same query and
doing nothing with them. In between: the log's own reader with its rows opened, as a projection uses it. And the same before the
planner has seen any statistics of the log, as in the first minutes after a bulk load.
"""

import itertools
import time
from collections.abc import Callable, Iterable

from common import Bar, Report, fill, options, parts, ratio, server, spread, take_turns
from timing import Sample

from memfold import MemoryStore
from memfold.eventstore import reader
from memfold.eventstore.sealing import wrapping_key_id
from memfold.eventstore.tail import Tail
from memfold.projections.views import open_rows

OURS, OPENED, ROWS, RAW = (
    "memfold, events(0)",
    "memfold, read_log and open_rows",
    "memfold, read_log",
    "same SQL, rows fetched raw",
)


def consumed(make: Callable[[], Iterable[object]]) -> Sample:
    """Take everything, keep nothing."""
    begun = time.perf_counter()
    count = sum(1 for _ in make())
    return Sample(count / (time.perf_counter() - begun), [])


def pages(store: MemoryStore) -> Iterable[list]:
    """The log's rows."""
    database, keyring = parts(store)
    return reader.read_log(database, keyring.tenant, 0, Tail(database).settle(10))


def opened(store: MemoryStore) -> Iterable[object]:
    """The log's events."""
    keyring = parts(store).keyring
    for rows in pages(store):
        keys = keyring.wrapping_keys({wrapping_key_id(row.wrapped_key) for row in rows})
        yield from open_rows(rows, keyring.tenant, keys, gone_is_erased=True)


def raw(store: MemoryStore) -> Iterable[object]:
    """The rows as psycopg makes them, page by page."""
    database, keyring = parts(store)
    upto, after = Tail(database).settle(10), 0
    with database.connection() as connection, connection.cursor(binary=True) as cursor:
        while after < upto:
            parameters = {"tenant": keyring.tenant, "after": after, "upto": upto, "limit": reader.PAGE_EVENTS}
            rows = cursor.execute(reader.PAGE, parameters).fetchall()
            yield from rows
            after = rows[-1][0] if len(rows) == reader.PAGE_EVENTS else upto


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    few, sessions, rounds = (4, 8, 2) if args.quick else (20, 400, 7)
    report = Report(__doc__, args)
    with server() as at, at.store("memfold") as store:
        fill(store, sessions=few, memories=500)
        fresh = spread([consumed(lambda: store.events(0)).rate for _ in range(rounds)])
        fill(store, sessions=sessions, memories=500)
        at.analyze("memfold")
        contenders = {
            OURS: lambda: consumed(lambda: store.events(0)),
            RAW: lambda: consumed(lambda: raw(store)),
            OPENED: lambda: consumed(lambda: opened(store)),
            ROWS: lambda: consumed(lambda: itertools.chain.from_iterable(pages(store))),
        }
        samples = take_turns(contenders, rounds)
        report.samples(samples, "events/s")
        report.bars(
            [
                Bar(f"{OURS} / {RAW}", ratio(samples, OURS, RAW), 0.4),
                Bar(f"{OPENED} / {RAW}", ratio(samples, OPENED, RAW)),
                Bar(f"{ROWS} / {RAW}", ratio(samples, ROWS, RAW)),
            ]
        )
        count = 500 * (few + sessions)
        report.note(f"Before the first ANALYZE, over {500 * few:,} events: {fresh} events/s.")
        report.note(f"{count:,} events of 100 characters in {sessions} sessions, read in pages of {reader.PAGE_EVENTS:,}.")
        report.machine(at)


if __name__ == "__main__":
    main()
