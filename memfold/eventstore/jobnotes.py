"""What workers note about their jobs, so that everybody can see how they fare: when they ran, and why they failed.

Whoever has a job's lease writes its row. A reason holds no word of anybody: it may be read by whoever looks after the store.
"""

from datetime import UTC, datetime
from typing import Any, NamedTuple

from memfold.eventstore import derived
from memfold.eventstore.append import fetch
from memfold.eventstore.database import Connection, Database

STARTED = "SELECT memfold.job_started(%s, %s, %s, %s)"
BEAT = "SELECT memfold.job_beat(%s, %s, %s, %s, %s::timestamptz)"
FINISHED = "SELECT memfold.job_finished(%s, %s, %s, %s, %s, %s::text)"
LIST = """
SELECT name, worker, last_started_at, last_finished_at, next_at, beat_at, running, runs, failures, reason
FROM memfold.jobs WHERE tenant_id = %s"""


class JobNotes(NamedTuple):
    """What is known of a job. `failures` are those in a row, `reason` what is to be said of the last run, if anything."""

    name: str
    worker: str
    last_started_at: datetime
    last_finished_at: datetime | None
    next_at: datetime | None
    beat_at: datetime
    running: bool
    runs: int
    failures: int
    reason: str | None


def started(database: Database, tenant: int, name: str, worker: str, *, at: datetime) -> None:
    """A job begins."""
    _note(database, STARTED, tenant, name, worker, at)


def beat(database: Database, tenant: int, name: str, worker: str, *, at: datetime, next_at: datetime | None = None) -> None:
    """A job is at it still; or it will run again at `next_at`. Not heard if another worker has begun the job since."""
    _note(database, BEAT, tenant, name, worker, at, next_at)


def finished(
    database: Database, tenant: int, name: str, worker: str, *, at: datetime, failed: bool, reason: str | None
) -> None:
    """A job has ended. Not heard if another worker has begun it since."""
    _note(database, FINISHED, tenant, name, worker, at, failed, reason)


def noted(database: Database, tenant: int) -> dict[str, JobNotes]:
    """What is known of each job that ever ran."""
    return {row.name: _noted(row) for row in database.rows(LIST, (tenant,))}


def lease_of(name: str) -> str:
    """The name of a job's lease."""
    return f"job {name}"


def try_lease(connection: Connection, tenant: int, name: str) -> bool:
    """Take a job's lease, for as long as this connection lives; False if another worker has it. Asking twice is harmless."""
    return derived.try_lock(connection, tenant, lease_of(name))


def has_worker(database: Database, tenant: int, name: str) -> bool:
    """Whether a living worker has the job's lease."""
    return derived.is_locked(database, tenant, lease_of(name))


def _note(database: Database, query: str, *parameters: Any) -> None:
    # Noted again if the connection is lost: at worst a run is counted twice.
    database.read(lambda connection: fetch(connection, query, parameters))


def _noted(row: Any) -> JobNotes:
    started_at, finished_at, next_at, beat_at = map(_utc, row[2:6])
    return JobNotes(row.name, row.worker, started_at, finished_at, next_at, beat_at, *row[6:])


def _utc(moment: datetime | None) -> Any:
    return moment.astimezone(UTC) if moment else None
