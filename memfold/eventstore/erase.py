"""Forgetting in the log: facts are appended and keys, payloads and vectors destroyed, in one transaction.

What was erased is always read from the spine, which keeps every id and position: the first answer and a later one agree.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

from memfold.errors import StoreUnavailable
from memfold.events import NUMBERS, MemoryForgotten, MemoryRemembered, SessionForgotten
from memfold.eventstore import arrays
from memfold.eventstore.append import STREAM_CLOSED, Answer, Request, Verdict, answers, columns, durably, fetch
from memfold.eventstore.database import Connection, Database

FORGOTTEN, REMEMBERED, CLOSED = NUMBERS[MemoryForgotten], NUMBERS[MemoryRemembered], NUMBERS[SessionForgotten]

_ARRAYS = ", ".join(["%b"] * 17)
FORGET_MEMORIES = f"SELECT verdict, version, recorded, positions FROM memfold.forget_memories(%s, {_ARRAYS})"
FORGET_STREAMS = (
    f"SELECT verdict, version, recorded, positions FROM memfold.forget_streams(%s, %b::uuid, %b::bytea, {_ARRAYS}, %b)"
)


class Erased(NamedTuple):
    """What the spine says of an erasure: its last fact, the memories, and the events whose keys were deleted."""

    position: int
    recorded_at: datetime
    memory_ids: list[bytes]
    positions: list[int]


def forget_memories(database: Database, tenant: int, request: Request) -> Answer:
    """Append the facts of `request`, one a memory, and destroy everything those memories ever held."""

    def write(connection: Connection, tenant: int, request: Request) -> Answer:
        return answers([request], fetch(connection, FORGET_MEMORIES, (tenant, *columns([request]))))[0]

    return durably(database, tenant, request, write)


def forget_streams(
    database: Database,
    tenant: int,
    requests: Sequence[Request],
    *,
    closing: Sequence[bytes],
    name_hmac: bytes,
    user: bytes | None,
) -> Answer:
    """Close streams and destroy what they hold; with `user`, destroy that user's key. Each request brings a closing fact.

    The answer is that of the last request. CONFLICT: the user has other sessions by now, or one was closed by another.
    """

    def write(connection: Connection, tenant: int, _: Request) -> Answer:
        subject = (arrays.uuid(user) if user else None, name_hmac)
        row = fetch(connection, FORGET_STREAMS, (tenant, *subject, *columns(requests), arrays.uuid_array(closing)))
        return _last(requests, row)

    try:
        return durably(database, tenant, requests[-1], write)
    except StoreUnavailable as error:
        if error.sqlstate == STREAM_CLOSED:
            return Answer(Verdict.CONFLICT)
        raise


def _last(requests: Sequence[Request], row: Sequence[Any]) -> Answer:
    if row[1] is None:
        return Answer(Verdict(row[0][0]))
    return answers(requests, row)[-1]


def erased_memories(database: Database, tenant: int, stream: bytes, memory_ids: Sequence[bytes]) -> Erased | None:
    """What forgetting these memories of a stream destroyed; None if none of them was forgotten."""
    rows = database.rows(
        """SELECT position, memory_id, type, recorded_at FROM memfold.events
           WHERE tenant_id = %s AND memory_id = ANY(%s) AND stream_id = %s ORDER BY position""",
        (tenant, arrays.uuid_array(memory_ids), arrays.uuid(stream)),
    )
    facts = [row for row in rows if row.type == FORGOTTEN]
    if not facts:
        return None
    forgotten = {row.memory_id for row in facts}
    positions = [row.position for row in rows if row.type != FORGOTTEN and row.memory_id in forgotten]
    return _erased(facts[-1], [row.memory_id.bytes for row in facts], positions)


def erased_stream(database: Database, tenant: int, stream: bytes) -> Erased | None:
    """What forgetting this stream destroyed, beyond what had been forgotten before; None if it was not closed."""
    found = database.row(
        "SELECT position FROM memfold.events WHERE tenant_id = %s AND stream_id = %s AND type = %s",
        (tenant, arrays.uuid(stream), CLOSED),
    )
    return _erased_streams(database, tenant, found.position, [stream]) if found else None


def erased_as(database: Database, tenant: int, name_hmac: bytes) -> Erased | None:
    """What was destroyed when the session or user of this name was last forgotten; None if it never was."""
    query = "SELECT position, streams FROM memfold.erasures WHERE tenant_id = %s AND name_hmac = %s"
    found = database.row(query, (tenant, name_hmac))
    return _erased_streams(database, tenant, found.position, [stream.bytes for stream in found.streams]) if found else None


def _erased_streams(database: Database, tenant: int, position: int, streams: Sequence[bytes]) -> Erased:
    rows = database.rows(
        """SELECT position, memory_id, type, recorded_at FROM memfold.events
           WHERE tenant_id = %s AND (stream_id = ANY(%s) OR position = %s) ORDER BY position""",
        (tenant, arrays.uuid_array(streams), position),
    )
    fact = next(row for row in rows if row.position == position)
    before = {row.memory_id for row in rows if row.type == FORGOTTEN}
    held = [row for row in rows if row.memory_id is not None]
    positions = [row.position for row in held if row.type == FORGOTTEN or row.memory_id not in before]
    ids = [row.memory_id.bytes for row in held if row.type == REMEMBERED and row.memory_id not in before]
    return _erased(fact, ids, positions)


def _erased(fact: Any, memory_ids: list[bytes], positions: list[int]) -> Erased:
    return Erased(fact.position, fact.recorded_at.astimezone(UTC), memory_ids, positions)
