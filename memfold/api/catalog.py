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
from sqlalchemy import Select, and_, case, func, literal, select, tuple_

from memfold.errors import InvalidQuery
from memfold.eventstore import reader
from memfold.eventstore.codec import LoggedEvent, Row, type_name
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring
from memfold.eventstore.schema import events, sessions
from memfold.eventstore.sealing import wrapping_key_id
from memfold.eventstore.tail import Tail
from memfold.model import Session, SessionPage, Stats, StoredEvent
from memfold.projections.fold import memory_id_text
from memfold.projections.follower import Follower
from memfold.projections.loading import open_rows
from memfold.projections.recall import Recaller
from memfold.projections.view import FORGOTTEN, REMEMBERED
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
        rows = self._database.select(session_query(self._keyring.tenant, user, limit + 1, session_place(cursor)))
        refs = self._keyring.sessions_of_streams({row["stream_id"].bytes for row in rows[:limit]})
        found = [
            Session(
                session_id=ref.session_id,
                user_id=ref.user_id,
                memories=row["remembered"] - row["forgotten"],
                events=row["events"],
                created_at=row["first_at"].astimezone(UTC),
                updated_at=row["last_at"].astimezone(UTC),
            )
            for row in rows[:limit]
            if (ref := refs.get(row["stream_id"].bytes))
        ]
        more = len(rows) > limit
        place = (rows[limit - 1]["created_at"], rows[limit - 1]["stream_id"]) if more else None
        return SessionPage(sessions=found, cursor=to_cursor("sessions", place) if place else None)

    def stats(self, session_id: str | None) -> Stats:
        """Counts of one session, or of everything."""
        views, view_bytes = self._views.size()
        queries, recalls = self._recaller.rates
        stream = None
        if session_id is not None:
            ref = self._keyring.find_session(session_id)
            stream = UUID(bytes=ref.stream if ref else bytes(16))
        counts = self._database.select(count_query(self._keyring.tenant, stream))[0]
        # An event's position, not the mark itself: a crash can take a mark back, and never an event.
        position = counts["position"] if stream else self._newest_event()
        return Stats(
            sessions=counts["sessions"],
            users=counts["users"],
            memories=counts["remembered"] - counts["forgotten"],
            forgotten=counts["forgotten"],
            events=counts["events"],
            position=position or 0,
            database_bytes=None if stream else self._database.row("SELECT pg_database_size(current_database()) AS size").size,
            embedder=self._follower.model,
            embedding_lag=self._follower.lag(stream.bytes if stream else None),
            views=views,
            view_bytes=view_bytes,
            query_hit_rate=queries.share,
            recall_hit_rate=recalls.share,
        )

    def events(self, after: int, session_id: str | None) -> Iterator[StoredEvent]:
        """The events behind position `after` up to what is settled at this call, in order."""
        return self._events(after, self._newest_event(), session_id)

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
        keys = self._keyring.wrapping_keys({wrapping_key_id(row.wrapped_key) for row in rows if row.wrapped_key})
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


def _counts() -> tuple[Any, ...]:
    return (
        func.count().label("events"),
        func.count(case((events.c.type == REMEMBERED, 1))).label("remembered"),
        func.count(case((events.c.type == FORGOTTEN, 1))).label("forgotten"),
        func.max(events.c.position).label("position"),
    )


def session_query(tenant: int, user: bytes | None, limit: int, place: tuple[datetime, UUID] | None) -> Select[Any]:
    """A page of sessions that have events, with their counts, newest first."""
    condition = sessions.c.tenant_id == tenant
    if user is not None:
        condition = and_(condition, sessions.c.user_id == UUID(bytes=user))
    if place is not None:
        condition = and_(
            condition, tuple_(sessions.c.created_at, sessions.c.stream_id) < tuple_(literal(place[0]), literal(place[1]))
        )
    own = and_(events.c.tenant_id == sessions.c.tenant_id, events.c.stream_id == sessions.c.stream_id)
    times = (func.min(events.c.recorded_at).label("first_at"), func.max(events.c.recorded_at).label("last_at"))
    counts = select(*_counts(), *times).where(own).lateral()
    newest = (sessions.c.created_at.desc(), sessions.c.stream_id.desc())
    columns = (sessions.c.stream_id, sessions.c.created_at, counts)
    return select(*columns).join(counts, counts.c.events > 0).where(condition).order_by(*newest).limit(limit)


def count_query(tenant: int, stream: UUID | None) -> Select[Any]:
    """Counts of what was not forgotten with its session, of a tenant or one of its streams."""
    own = and_(events.c.tenant_id == sessions.c.tenant_id, events.c.stream_id == sessions.c.stream_id)
    people = (
        func.count(sessions.c.stream_id.distinct()).label("sessions"),
        func.count(sessions.c.user_id.distinct()).label("users"),
    )
    query = select(*_counts(), *people).select_from(sessions.join(events, own)).where(sessions.c.tenant_id == tenant)
    return query if stream is None else query.where(sessions.c.stream_id == stream)


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
