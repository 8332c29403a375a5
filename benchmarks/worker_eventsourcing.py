"""The recorders of the `eventsourcing` library on PostgreSQL. A pool connection for every thread; else as it ships."""

import json
import sys
import uuid
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import psycopg
from eventsourcing.persistence import StoredEvent
from eventsourcing.postgres import PostgresAggregateRecorder, PostgresApplicationRecorder, PostgresDatastore
from timing import Sample, on_threads

RECORDERS: dict[str, PostgresAggregateRecorder] = {}


def main() -> None:
    """Answer a JSON line for each that comes in."""
    commands = {"about": about, "open": open_recorders, "insert": insert}
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = commands[arguments.pop("do")](**arguments)
        print(json.dumps(answer._asdict() if isinstance(answer, Sample) else answer), flush=True)


def about() -> dict[str, Any]:
    """The versions."""
    return {"about": f"eventsourcing {version('eventsourcing')}, psycopg {psycopg.__version__} ({psycopg.pq.__impl__})"}


def open_recorders(database: str, host: str, port: str, threads: int) -> dict[str, Any]:
    """Make the tables of both recorders."""
    datastore = PostgresDatastore(
        database, host, port, "postgres", "none", pool_size=threads, max_overflow=0, originator_id_type="uuid"
    )
    RECORDERS["application"] = PostgresApplicationRecorder(datastore, events_table_name="application_events")
    RECORDERS["aggregate"] = PostgresAggregateRecorder(datastore, events_table_name="aggregate_events")
    for recorder in RECORDERS.values():
        recorder.create_table()
    return {}


def insert(recorder: str, threads: int, state_bytes: int, seconds: float) -> Sample:
    """Insert one event a call, every thread into an aggregate of its own."""
    return on_threads([inserter(RECORDERS[recorder], bytes(state_bytes)) for _ in range(threads)], seconds)


def inserter(recorder: PostgresAggregateRecorder, state: bytes) -> Callable[[], object]:
    """A call that inserts the next event of a new aggregate."""
    aggregate = uuid.uuid4()
    versions = iter(range(1, 2**31))
    return lambda: recorder.insert_events([StoredEvent(aggregate, next(versions), "memfold.events:MemoryRemembered", state)])


main()
