"""What was set aside, so that it holds up nothing else: by which job, of which stream, why, and when it is tried again.

A reason holds no word of anybody: it outlives what it is about. Rows of a session vanish with it.
"""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from memfold.eventstore import arrays
from memfold.eventstore.append import fetch
from memfold.eventstore.database import Connection, Database

PARK = "SELECT memfold.park(%s, %s, %s, %b::bytea, %s::bigint, %s, %s::timestamptz, %s, %s)"
UNPARK = "SELECT memfold.unpark(%s, %s, %s::uuid, %b::bytea)"
LIST = """
SELECT job, stream_id, key, position, reason, attempts, first_at, next_at, parked FROM memfold.parked
WHERE tenant_id = %s AND (%s::text IS NULL OR job = %s) AND (%s::uuid IS NULL OR stream_id = %s)
ORDER BY first_at, stream_id, key"""
STREAMS = "SELECT uuid_send(stream_id) FROM memfold.parked WHERE tenant_id = %s AND job = %s AND stream_id = ANY(%s)"


class Parked(NamedTuple):
    """Something that was set aside. `next_at` is when it is tried again by itself; `parked`: not before somebody asks."""

    job: str
    stream: bytes
    key: bytes
    position: int | None
    reason: str
    attempts: int
    first_at: datetime
    next_at: datetime | None
    parked: bool


def park(
    connection: Connection,
    tenant: int,
    job: str,
    stream: bytes,
    *,
    reason: str,
    at: datetime,
    key: bytes = b"",
    position: int | None = None,
    next_at: datetime | None = None,
    parked: bool = True,
) -> bool:
    """Set something of a stream aside, once more if it was before; False if the stream is closed."""
    parameters = (tenant, job, arrays.uuid(stream), key, position, reason, next_at, parked, at)
    return bool(fetch(connection, PARK, parameters)[0])


def unpark(connection: Connection, tenant: int, job: str, stream: bytes | None = None, key: bytes | None = None) -> int:
    """Drop the notes of a job, or those of one stream of it, or one thing of that; return how many there were."""
    return int(fetch(connection, UNPARK, (tenant, job, arrays.uuid(stream) if stream else None, key))[0])


def parked(database: Database, tenant: int, job: str | None = None, stream: bytes | None = None) -> list[Parked]:
    """What is set aside, of one job or of all, of one stream or of all, oldest first."""
    of = arrays.uuid(stream) if stream else None
    return [_parked(row) for row in database.rows(LIST, (tenant, job, job, of, of))]


def parked_streams(connection: Connection, tenant: int, job: str, streams: Iterable[bytes]) -> set[bytes]:
    """Those of the streams that this job has set aside."""
    asked: Sequence[bytes] = sorted(streams)
    with connection.cursor(binary=True) as cursor:
        return {stream for (stream,) in cursor.execute(STREAMS, (tenant, job, arrays.uuid_array(asked))).fetchall()}


def _parked(row: Any) -> Parked:
    next_at = row.next_at.astimezone(UTC) if row.next_at else None
    return Parked(
        *(row.job, row.stream_id.bytes, row.key, row.position, row.reason, row.attempts),
        *(row.first_at.astimezone(UTC), next_at, row.parked),
    )
