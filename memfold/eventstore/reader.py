"""Reading the log: one stream by version, or the whole log by position.

Rows come back with what is left of them; opening them is `codec`'s. A range is written on all three tables, because
PostgreSQL does not carry `position > x AND position <= y` across the join (twice as fast in pages, see docs/log.md).
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple

from memfold.eventstore import arrays
from memfold.eventstore.codec import Row
from memfold.eventstore.database import Connection, Database
from memfold.eventstore.question import Question

PAGE_EVENTS = 2_000

FIELDS = """e.position, uuid_send(e.stream_id), e.version, uuid_send(e.event_id), uuid_send(e.memory_id), e.type,
    e.schema_version, e.recorded_at, e.digest, p.sealed, k.wrapped, k.kek_version, k.sources"""

PAGE = f"""
SELECT {FIELDS}
FROM memfold.events e
LEFT JOIN memfold.payloads p ON p.tenant_id = %(tenant)s
    AND p.position > %(after)s AND p.position <= %(upto)s AND p.position = e.position
LEFT JOIN memfold_keys.keys k ON k.tenant_id = %(tenant)s
    AND k.position > %(after)s AND k.position <= %(upto)s AND k.position = e.position
WHERE e.tenant_id = %(tenant)s AND e.position > %(after)s AND e.position <= %(upto)s
ORDER BY e.position LIMIT %(limit)s"""

STREAM = f"""
SELECT {FIELDS}
FROM memfold.events e
LEFT JOIN memfold.payloads p ON p.tenant_id = e.tenant_id AND p.position = e.position
LEFT JOIN memfold_keys.keys k ON k.tenant_id = e.tenant_id AND k.position = e.position
WHERE e.tenant_id = %(tenant)s AND e.stream_id = %(stream)s AND e.version > %(after)s AND e.version <= %(upto)s
ORDER BY e.version"""

MEMORIES = f"""
SELECT {FIELDS}
FROM memfold.events e
LEFT JOIN memfold.payloads p ON p.tenant_id = e.tenant_id AND p.position = e.position
LEFT JOIN memfold_keys.keys k ON k.tenant_id = e.tenant_id AND k.position = e.position
WHERE e.tenant_id = %(tenant)s AND e.memory_id = ANY(%(memories)s)
ORDER BY e.position"""

AT = f"""
SELECT {FIELDS}
FROM memfold.events e
LEFT JOIN memfold.payloads p ON p.tenant_id = e.tenant_id AND p.position = e.position
LEFT JOIN memfold_keys.keys k ON k.tenant_id = e.tenant_id AND k.position = e.position
WHERE e.tenant_id = %(tenant)s AND e.position = ANY(%(positions)s)
ORDER BY e.position"""

BY_ID = f"""
SELECT {FIELDS}
FROM memfold.events e
LEFT JOIN memfold.payloads p ON p.tenant_id = e.tenant_id AND p.position = e.position
LEFT JOIN memfold_keys.keys k ON k.tenant_id = e.tenant_id AND k.position = e.position
WHERE e.tenant_id = %(tenant)s AND e.event_id = ANY(%(events)s)
ORDER BY e.position"""

# Two ways to the same: by the streams, or by the range where that is short. OFFSET 0 keeps PostgreSQL to the one asked for.
OF_STREAMS = """
SELECT position FROM (
    SELECT position FROM memfold.events WHERE tenant_id = %(tenant)s AND stream_id = ANY(%(streams)s) OFFSET 0
) e WHERE position > %(after)s AND position <= %(upto)s ORDER BY position"""
OF_RANGE = """
SELECT position FROM (
    SELECT position, stream_id FROM memfold.events
    WHERE tenant_id = %(tenant)s AND position > %(after)s AND position <= %(upto)s OFFSET 0
) e WHERE stream_id = ANY(%(streams)s) ORDER BY position"""
RANGE_MAX = 10_000  # positions

# The mapping from name to stream is read with the events, in one snapshot: no process serves a session that is gone.
# A stream or user that changed under the caller is read from its beginning.
SESSION = f"""
SELECT uuid_send(s.stream_id), uuid_send(s.user_id), u.key_version, {FIELDS}
FROM memfold.sessions s
JOIN memfold_keys.users u ON u.tenant_id = s.tenant_id AND u.user_id = s.user_id
LEFT JOIN memfold.events e ON e.tenant_id = s.tenant_id AND e.stream_id = s.stream_id
    AND e.version > CASE WHEN s.stream_id = %(known)s THEN %(after)s ELSE 0 END
LEFT JOIN memfold.payloads p ON p.tenant_id = e.tenant_id AND p.position = e.position
LEFT JOIN memfold_keys.keys k ON k.tenant_id = e.tenant_id AND k.position = e.position
WHERE s.tenant_id = %(tenant)s AND s.name_hmac = %(name)s
ORDER BY e.version"""

OPEN_AT = Question("open_at", "SELECT version FROM memfold.heads WHERE tenant_id = $1 AND stream_id = $2 AND NOT closed")


class SessionRows(NamedTuple):
    """What a session's name led to: its stream and user, the version of the user's key, and the events that are new."""

    stream: bytes
    user: bytes
    key_version: int
    rows: list[Row]


def open_at(database: Database, tenant: int, stream: bytes) -> int:
    """The version an open stream is at; 0 if it was closed, or never was. A third of the time of `read_session`."""
    result = database.read(lambda connection: OPEN_AT.ask(connection, arrays.int8(tenant), arrays.uuid(stream)))
    return int.from_bytes(result.get_value(0, 0) or b"", "big") if result.ntuples else 0


def read_session(database: Database, tenant: int, name_hmac: bytes, known: bytes, after: int) -> SessionRows | None:
    """The session of this name and its events after version `after`, if its stream is still `known`, else all of them.

    None if there is no such session.
    """
    parameters = {"tenant": tenant, "name": name_hmac, "known": arrays.uuid(known), "after": after}
    found = database.read(lambda connection: _fetch(connection, SESSION, parameters))
    if not found:
        return None
    stream, user, key_version = found[0][:3]
    return SessionRows(stream, user, key_version, [Row(*row[3:]) for row in found if row[3] is not None])


def read_stream(database: Database, tenant: int, stream: bytes, after: int = 0, upto: int = 2**31 - 1) -> list[Row]:
    """The events of a stream with `after` < version <= `upto`, in order."""
    parameters = {"tenant": tenant, "stream": arrays.uuid(stream), "after": after, "upto": upto}
    return [Row(*row) for row in database.read(lambda connection: _fetch(connection, STREAM, parameters))]


def read_memories(database: Database, tenant: int, memory_ids: Sequence[bytes]) -> list[Row]:
    """All events of these memories, in order."""
    parameters = {"tenant": tenant, "memories": arrays.uuid_array(memory_ids)}
    return [Row(*row) for row in database.read(lambda connection: _fetch(connection, MEMORIES, parameters))]


def read_events(database: Database, tenant: int, event_ids: Sequence[bytes]) -> list[Row]:
    """The events of these ids, in order."""
    parameters = {"tenant": tenant, "events": arrays.uuid_array(event_ids)}
    return [Row(*row) for row in database.read(lambda connection: _fetch(connection, BY_ID, parameters))] if event_ids else []


def standing(database: Database, tenant: int, event_ids: Sequence[bytes]) -> set[bytes]:
    """Those of these events whose keys stand."""
    query = """SELECT e.event_id FROM memfold.events e JOIN memfold_keys.keys k USING (tenant_id, position)
               WHERE e.tenant_id = %s AND e.event_id = ANY(%s) AND k.wrapped <> ''"""
    return {row.event_id.bytes for row in database.rows(query, (tenant, arrays.uuid_array(event_ids)))}


def read_log(database: Database, tenant: int, after: int, upto: int, page: int = PAGE_EVENTS) -> Iterator[list[Row]]:
    """The events of the whole tenant with `after` < position <= `upto`, page by page, in order.

    `upto` must not be beyond the settled position, or events are lost.
    """
    while after < upto:
        parameters = {"tenant": tenant, "after": after, "upto": upto, "limit": page}
        rows = [Row(*row) for row in database.read(partial(_fetch_page, parameters=parameters))]
        if rows:
            yield rows
        after = rows[-1].position if len(rows) == page else upto


def read_streams(
    database: Database, tenant: int, streams: Sequence[bytes], *, after: int, upto: int, page: int = PAGE_EVENTS
) -> Iterator[list[Row]]:
    """As `read_log`, of these streams only."""
    parameters = {"tenant": tenant, "streams": arrays.uuid_array(streams), "after": after, "upto": upto}
    query = OF_RANGE if upto - after <= RANGE_MAX else OF_STREAMS
    found = database.read(lambda connection: _fetch(connection, query, parameters)) if streams and after < upto else []
    positions = [position for (position,) in found]
    for begin in range(0, len(positions), page):
        some = arrays.int_array(positions[begin : begin + page], arrays.INT8)
        yield [Row(*row) for row in database.read(partial(_fetch, query=AT, parameters={"tenant": tenant, "positions": some}))]


def version_at(database: Database, tenant: int, stream: bytes, position: int) -> int:
    """The version of a stream at a position of the log: that of its last event at or before it, 0 if there is none."""
    query = "SELECT max(version) AS found FROM memfold.events WHERE tenant_id = %s AND stream_id = %s AND position <= %s"
    return int(database.row(query, (tenant, arrays.uuid(stream), position)).found or 0)


def newest_position(database: Database, tenant: int) -> int:
    """The position of the tenant's newest committed event, settled or not; 0 if there is none."""
    return int(database.row("SELECT max(position) AS found FROM memfold.events WHERE tenant_id = %s", (tenant,)).found or 0)


def time_at(database: Database, tenant: int, position: int) -> datetime | None:
    """When the tenant's newest event at or before a position was recorded; None if there is none."""
    query = "SELECT recorded_at FROM memfold.events WHERE tenant_id = %s AND position <= %s ORDER BY position DESC LIMIT 1"
    row = database.row(query, (tenant, position))
    return row.recorded_at.astimezone(UTC) if row else None


def stream_of_memory(database: Database, tenant: int, memory_id: bytes) -> bytes | None:
    """The stream a memory lives in; None if nobody ever remembered it."""
    query = "SELECT stream_id FROM memfold.events WHERE tenant_id = %s AND memory_id = %s LIMIT 1"
    row = database.row(query, (tenant, arrays.uuid(memory_id)))
    return row.stream_id.bytes if row else None


def _fetch_page(connection: Connection, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    """One page. Before the first ANALYZE, and on the tail that came after the last, PostgreSQL takes the ranges for a few
    rows and nests loops over them: 220 ms a page instead of 3.5. Merging is right in every state, so nesting is ruled out.
    """
    with connection.transaction():
        connection.execute("SET LOCAL enable_nestloop = off")
        return _fetch(connection, PAGE, parameters)


def _fetch(connection: Connection, query: str, parameters: dict[str, Any]) -> list[tuple[Any, ...]]:
    with connection.cursor(binary=True) as cursor:
        return cursor.execute(query, parameters).fetchall()
