"""Cold reads of the whole tenant: the list of sessions, counts, and the change feed.

Sessions are sealed rows, so their names are opened page by page; counts come from the spine, which needs no key.
"""

import base64
import binascii
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from memfold.errors import InvalidQuery
from memfold.eventstore import arrays, reader
from memfold.eventstore.binding import opening_keys
from memfold.eventstore.codec import LoggedEvent, Row, type_name
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring
from memfold.eventstore.tail import Tail
from memfold.model import Session, SessionPage, Stats, StoredEvent
from memfold.projections.fold import memory_id_text
from memfold.projections.follower import Follower
from memfold.projections.loading import open_rows
from memfold.projections.recall import Recaller
from memfold.projections.view import COMPRESSED, FORGOTTEN, REMEMBERED
from memfold.projections.views import Views


class Catalog:
    """What a tenant holds, seen from outside."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        views: Views,
        follower: Follower,
        recaller: Recaller,
        *,
        settle_timeout_s: float,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._views = views
        self._follower = follower
        self._recaller = recaller
        self._settle_timeout_s = settle_timeout_s

    def sessions(self, user_id: str | None, limit: int, cursor: str | None) -> SessionPage:
        """A page of sessions with at least one event, newest first."""
        user = None if user_id is None else self._keyring.find_user(user_id)
        if user_id is not None and user is None:
            return SessionPage(sessions=[], cursor=None)
        query, parameters = session_query(self._keyring.tenant, user, limit + 1, session_place(cursor))
        rows = self._database.rows(query, parameters)
        refs = self._keyring.sessions_of_streams({row.stream_id.bytes for row in rows[:limit]})
        found = [
            Session(
                session_id=ref.session_id,
                user_id=ref.user_id,
                memories=row.remembered - row.forgotten,
                events=row.events,
                created_at=row.first_at.astimezone(UTC),
                updated_at=row.last_at.astimezone(UTC),
            )
            for row in rows[:limit]
            if (ref := refs.get(row.stream_id.bytes))
        ]
        more = len(rows) > limit
        place = (rows[limit - 1].created_at, rows[limit - 1].stream_id) if more else None
        return SessionPage(sessions=found, cursor=to_cursor("sessions", place) if place else None)

    def stats(self, session_id: str | None) -> Stats:
        """Counts of one session, or of everything."""
        views, view_bytes = self._views.size()
        queries, recalls = self._recaller.rates
        stream = None
        if session_id is not None:
            ref = self._keyring.find_session(session_id)
            stream = ref.stream if ref else bytes(16)
        counts = self._counts(stream)
        # An event's position, not the mark itself: a crash can take a mark back, and never an event.
        position = counts.position if stream else self._newest_event()
        return Stats(
            sessions=counts.sessions,
            users=counts.users,
            memories=counts.remembered - counts.forgotten,
            forgotten=counts.forgotten,
            events=counts.events,
            position=position or 0,
            database_bytes=None if stream else self._database.row("SELECT pg_database_size(current_database()) AS size").size,
            embedder=self._follower.model,
            embedding_lag=self._follower.lag(stream),
            views=views,
            view_bytes=view_bytes,
            query_hit_rate=queries.share,
            recall_hit_rate=recalls.share,
        )

    def events(self, after: int, session_id: str | None) -> Iterator[StoredEvent]:
        """The events behind position `after` up to what is settled at this call, in order."""
        return self._events(after, self._newest_event(), session_id)

    def _counts(self, stream: bytes | None) -> Any:
        if stream is None:
            return self._database.row(COUNT, (self._keyring.tenant,))
        return self._database.row(COUNT + " AND s.stream_id = %s", (self._keyring.tenant, arrays.uuid(stream)))

    def _events(self, after: int, upto: int, session_id: str | None) -> Iterator[StoredEvent]:
        if session_id is None:
            pages: Iterator[list[Row]] = reader.read_log(self._database, self._keyring.tenant, after, upto)
        else:
            pages = self._session_pages(session_id, after)
        for page in pages:
            yield from self._open_page([row for row in page if after < row.position <= upto])

    def _newest_event(self) -> int:
        with Tail(self._database) as tail:
            return tail.newest_event(self._keyring.tenant, self._settle_timeout_s)

    def _session_pages(self, session_id: str, after: int) -> Iterator[list[Row]]:
        ref = self._keyring.find_session(session_id)
        version = reader.version_at(self._database, self._keyring.tenant, ref.stream, after) if ref else 0
        while ref:
            rows = reader.read_stream(self._database, self._keyring.tenant, ref.stream, version, version + reader.PAGE_EVENTS)
            if not rows:
                return
            version = rows[-1].version
            yield rows

    def _open_page(self, rows: Sequence[Row]) -> Iterator[StoredEvent]:
        keys = opening_keys(self._database, self._keyring, rows)
        names = self._keyring.sessions_of_streams({row.stream for row in rows})
        for event in open_rows(rows, self._keyring.tenant, keys, gone_is_erased=True):
            ref = names.get(event.row.stream)
            yield as_stored(event, ref.session_id if ref else None)


def as_stored(event: LoggedEvent, session_id: str | None) -> StoredEvent:
    """An event as callers see it."""
    row = event.row
    return StoredEvent(
        position=row.position,
        event_id=memory_id_text(row.event_id),
        stream_id=memory_id_text(row.stream),
        session_id=session_id,
        version=row.version,
        type=type_name(row.type_number),
        schema_version=row.schema_version,
        memory_id=memory_id_text(row.memory_id) if row.memory_id else None,
        recorded_at=row.recorded_at.astimezone(UTC),
        digest=row.digest,
        data=event.data,
    )


COUNTS = f"""count(*) AS events, count(*) FILTER (WHERE e.type = {REMEMBERED}) AS remembered,
    count(*) FILTER (WHERE e.type = {FORGOTTEN} AND NOT EXISTS (
        SELECT FROM memfold.events s WHERE s.tenant_id = e.tenant_id AND s.memory_id = e.memory_id AND s.type = {COMPRESSED}
    )) AS forgotten"""

# What was not forgotten with its session, of a tenant.
COUNT = f"""
SELECT {COUNTS}, max(e.position) AS position, count(DISTINCT s.stream_id) AS sessions, count(DISTINCT s.user_id) AS users
FROM memfold.sessions s JOIN memfold.events e ON e.tenant_id = s.tenant_id AND e.stream_id = s.stream_id
WHERE s.tenant_id = %s"""

SESSIONS = f"""
SELECT s.stream_id, s.created_at, c.*
FROM memfold.sessions s JOIN LATERAL (
    SELECT {COUNTS}, min(e.recorded_at) AS first_at, max(e.recorded_at) AS last_at
    FROM memfold.events e WHERE e.tenant_id = s.tenant_id AND e.stream_id = s.stream_id
) c ON c.events > 0
WHERE s.tenant_id = %(tenant)s"""


def session_query(
    tenant: int, user: bytes | None, limit: int, place: tuple[datetime, UUID] | None
) -> tuple[str, dict[str, object]]:
    """A page of sessions that have events, with their counts, newest first: the query and its parameters."""
    query, parameters = SESSIONS, dict[str, object](tenant=tenant, limit=limit)
    if user is not None:
        query += " AND s.user_id = %(user)s"
        parameters["user"] = arrays.uuid(user)
    if place is not None:
        query += " AND (s.created_at, s.stream_id) < (%(at)s, %(stream)s)"
        parameters["at"], parameters["stream"] = place
    return query + " ORDER BY s.created_at DESC, s.stream_id DESC LIMIT %(limit)s", parameters


def session_place(cursor: str | None) -> tuple[datetime, UUID] | None:
    """Where a page of sessions goes on."""
    return None if cursor is None else from_cursor("sessions", cursor, tuple[datetime, UUID])


def to_cursor(kind: str, place: Any) -> str:
    """A place as an opaque text."""
    return base64.urlsafe_b64encode(msgspec.msgpack.encode((kind, place))).decode().rstrip("=")


def from_cursor(kind: str, cursor: object, type_: Any) -> Any:
    """The place a cursor stands for.

    Raises:
        InvalidQuery: it was not made by the same verb with the same order.
    """
    try:
        raw = base64.b64decode(str(cursor) + "=" * (-len(str(cursor)) % 4), altchars=b"-_", validate=True)
        found, place = msgspec.msgpack.decode(raw, type=tuple[str, type_])
    except (binascii.Error, ValueError, msgspec.DecodeError):
        found, place = "", None
    if found != kind:
        raise InvalidQuery(
            "cursor", "is not one that this call gave: pass the cursor of the last page, with the same arguments"
        )
    return place
