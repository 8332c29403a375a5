"""The log by its spine alone: who, what kind, when. No key is asked for, so what was erased reads as it always did.

For those who follow the whole log and need the content of few events. Called by the projector and its projections.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from memfold.events import NUMBERS, MemoryForgotten, WindowCompressed
from memfold.eventstore import arrays
from memfold.eventstore.database import Connection, Database

FIELDS = "position, uuid_send(stream_id), version, uuid_send(memory_id), type, recorded_at"
PAGE = f"""
SELECT {FIELDS} FROM memfold.events
WHERE tenant_id = %s AND position > %s AND position <= %s ORDER BY position LIMIT %s"""
STREAM = f"""
SELECT {FIELDS} FROM memfold.events
WHERE tenant_id = %s AND stream_id = %s AND position <= %s ORDER BY version"""
FATES = """
SELECT uuid_send(memory_id), uuid_send((array_agg(stream_id))[1]), bool_or(type = %s), min(version) FILTER (WHERE type = %s)
FROM memfold.events WHERE tenant_id = %s AND memory_id = ANY(%s) GROUP BY memory_id"""
WAITING = "SELECT count(*) FROM memfold.events WHERE tenant_id = %s AND position > %s"
COMPRESSED, FORGOTTEN = NUMBERS[WindowCompressed], NUMBERS[MemoryForgotten]


class Header(NamedTuple):
    """What the spine says of an event."""

    position: int
    stream: bytes
    version: int
    memory_id: bytes | None
    type_number: int
    recorded_at: datetime


class Fate(NamedTuple):
    """What the spine says of a memory: its stream, whether it is a summary, the version it was forgotten at (0: it was not)."""

    stream: bytes
    is_summary: bool
    forgotten: int


def read_page(database: Database, tenant: int, *, after: int, upto: int, limit: int) -> list[Header]:
    """The first events with `after` < position <= `upto`, in order. `upto` must not be beyond the settled position."""
    return database.read(lambda connection: _headers(connection, PAGE, (tenant, after, upto, limit)))


def read_stream(connection: Connection, tenant: int, stream: bytes, *, upto: int) -> list[Header]:
    """The events of a stream up to a position, in order."""
    return _headers(connection, STREAM, (tenant, arrays.uuid(stream), upto))


def fates(connection: Connection, tenant: int, memory_ids: Sequence[bytes]) -> Mapping[bytes, Fate]:
    """What became of memories, by id; those that nobody ever remembered are missing."""
    if not memory_ids:
        return {}
    parameters = (COMPRESSED, FORGOTTEN, tenant, arrays.uuid_array(memory_ids))
    with connection.cursor(binary=True) as cursor:
        rows = cursor.execute(FATES, parameters).fetchall()
    return {memory_id: Fate(stream, is_summary, forgotten or 0) for memory_id, stream, is_summary, forgotten in rows}


def waiting(database: Database, tenant: int, after: int) -> int:
    """How many events lie behind a position."""
    return int(database.row(WAITING, (tenant, after)).count)


def _headers(connection: Connection, query: str, parameters: tuple[object, ...]) -> list[Header]:
    with connection.cursor(binary=True) as cursor:
        return [Header(*row) for row in cursor.execute(query, parameters).fetchall()]
