"""How fast are batches of 1,000, sealing included?

`remember_many` of 1,000 texts, against a bare INSERT of 1,000 rows of the same bytes into one table with a primary key, in one
statement and one commit on the same server: with 1,000 VALUES, and with unnest of one array. The faster of them is the measure.
"""

import itertools
from collections.abc import Callable

import psycopg
from common import (
    Bar,
    Report,
    best,
    body_bytes,
    committer,
    options,
    rates,
    ratio,
    raw_database,
    sealed_requests,
    server,
    take_turns,
)
from timing import Sample, repeat, texts

from memfold import MemoryStore
from memfold.eventstore.append import Request
from memfold.eventstore.arrays import Raw, bytea_array

BATCH = 1000
OURS, APPEND = "memfold, remember_many", "memfold, append alone (sealed before the clock starts)"
VALUES, UNNEST, LIST = "bare INSERT … VALUES × 1,000", "bare INSERT … unnest", "bare INSERT … unnest, psycopg's own list"


def remember(store: MemoryStore, seconds: float) -> Callable[[], Sample]:
    """Rounds of batches, each round into another session."""
    contents, rounds = texts(), itertools.count()

    def run() -> Sample:
        session = f"session-{next(rounds)}"
        batch = list(itertools.islice(contents, BATCH))
        return repeat(lambda: store.remember_many(batch, session_id=session), seconds, amount=BATCH)

    return run


def append(store: MemoryStore, batches: int) -> Callable[[], Sample]:
    """Rounds of batches that are sealed already."""
    commit, rounds = committer(store).append, itertools.count()

    def run() -> Sample:
        session = f"append-{next(rounds)}"
        requests = iter([batch_request(store, session) for _ in range(batches)])
        samples = [repeat(lambda: commit(next(requests)), 0.0001, amount=BATCH) for _ in range(batches)]
        latencies = [latency for sample in samples for latency in sample.latencies_ms]
        return Sample(1000 * BATCH * len(latencies) / sum(latencies), latencies)

    return run


def batch_request(store: MemoryStore, session: str) -> Request:
    """A request of 1,000 sealed events."""
    requests = list(sealed_requests(store, session, itertools.islice(texts(), BATCH)))
    requests[0].events = [event for request in requests for event in request.events]
    return requests[0]


def values_insert(connection: psycopg.Connection, bodies: list[bytes]) -> Callable[[], object]:
    """One statement with a parameter for each row."""
    query = "INSERT INTO raw (body) VALUES " + ", ".join(["(%b)"] * len(bodies))
    parameters = [Raw(body, 17) for body in bodies]
    return lambda: connection.execute(query, parameters, prepare=True)


def unnest_insert(connection: psycopg.Connection, bodies: list[bytes]) -> Callable[[], object]:
    """One statement with one array, put together the quickest way we know."""
    query = "INSERT INTO raw (body) SELECT unnest(%b::bytea[])"
    return lambda: connection.execute(query, (bytea_array(bodies),), prepare=True)


def list_insert(connection: psycopg.Connection, bodies: list[bytes]) -> Callable[[], object]:
    """One statement with one array, put together by psycopg."""
    query = "INSERT INTO raw (body) SELECT unnest(%b::bytea[])"
    return lambda: connection.execute(query, (bodies,), prepare=True)


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    seconds, rounds = (0.1, 2) if args.quick else (1, 12)
    report = Report(__doc__, args)
    with server() as at, at.store("memfold") as store:
        size = body_bytes(store)
        bodies = [number.to_bytes(size, "big") for number in range(BATCH)]
        with at.connect(raw_database(at)) as connection:
            values, unnest = values_insert(connection, bodies), unnest_insert(connection, bodies)
            lists = list_insert(connection, bodies)
            contenders = {
                OURS: remember(store, seconds),
                UNNEST: lambda: repeat(unnest, seconds, amount=BATCH),
                VALUES: lambda: repeat(values, seconds, amount=BATCH),
                LIST: lambda: repeat(lists, seconds, amount=BATCH),
                APPEND: append(store, 3 if args.quick else 10),
            }
            samples = take_turns(contenders, rounds)
        report.samples(samples, "events/s")
        raw = best(samples, (VALUES, UNNEST, LIST))
        report.bars(
            [
                Bar(f"{OURS} / {raw}", ratio(samples, OURS, raw), 0.5),
                Bar(f"{APPEND} / {raw}", ratio(samples, APPEND, raw)),
            ]
        )
        microseconds = 1e6 / rates(samples, OURS).median - 1e6 / rates(samples, APPEND).median
        report.note(
            f"The bare INSERT writes {size} bytes a row. All that is not appending takes {microseconds:.1f} µs an event."
        )
        report.machine(at)


if __name__ == "__main__":
    main()
