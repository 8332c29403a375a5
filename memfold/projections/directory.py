"""The durable directory of sessions: counts, ids and times of each, kept by a projector, and what is due because of them.

Beside it stand the agenda (what a consolidator found when it last examined a session) and what it set aside. All of it
vanishes with its session. Nothing here opens a key or holds a word of anybody.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import groupby
from typing import Any, NamedTuple

from memfold.eventstore import arrays, parking, spine
from memfold.eventstore.append import fetch
from memfold.eventstore.database import Connection, Database
from memfold.eventstore.parking import Parked
from memfold.projections.tally import ARCHIVED, COMPRESSED, OF_WINDOWS, RESTORED, Fact, Tally, Window, Windows, named_in

CONSOLIDATE = "consolidate"
"""The job that sets windows aside."""

NEVER = datetime(1970, 1, 1, tzinfo=UTC)  # where a batch holds no time: not looked at
APPLY = f"SELECT memfold.apply_directory(%s, {', '.join(['%b'] * 22)})"
WINDOWS = """
SELECT uuid_send(stream_id), position, uuid_send(summary_id), sources, archived, tokens_before, tokens_after
FROM memfold.windows WHERE tenant_id = %s AND stream_id = ANY(%s) ORDER BY stream_id, position"""

# Each way to be due reads its own index in order and stops after `limit`: it costs by what is due, not by what there is.
DUE = """
WITH soonest AS (
    (SELECT stream_id, first_at + %(older)s AS at FROM memfold.directory
     WHERE tenant_id = %(tenant)s AND NOT examined AND first_at <= %(now)s - %(older)s ORDER BY first_at LIMIT %(limit)s)
    UNION ALL
    (SELECT stream_id, due_at FROM memfold.agenda
     WHERE tenant_id = %(tenant)s AND due_at <= %(now)s ORDER BY due_at LIMIT %(limit)s)
    UNION ALL
    (SELECT stream_id, examined_at FROM memfold.agenda
     WHERE tenant_id = %(tenant)s AND woken ORDER BY examined_at LIMIT %(limit)s)
    UNION ALL
    (SELECT stream_id, examined_at FROM memfold.agenda
     WHERE tenant_id = %(tenant)s AND policy_version < %(policy)s ORDER BY policy_version, examined_at LIMIT %(limit)s)
    UNION ALL
    (SELECT stream_id, examined_at FROM memfold.agenda
     WHERE tenant_id = %(tenant)s AND policy_version > %(policy)s ORDER BY policy_version, examined_at LIMIT %(limit)s)
    UNION ALL
    (SELECT stream_id, examined_at FROM memfold.agenda
     WHERE tenant_id = %(tenant)s AND policy_version = %(policy)s AND examined_at > %(now)s + interval '1 hour'
     ORDER BY examined_at LIMIT %(limit)s)
    UNION ALL
    (SELECT p.stream_id, p.next_at FROM memfold.parked p
     WHERE p.tenant_id = %(tenant)s AND p.job = %(job)s AND p.next_at <= %(now)s
     AND EXISTS (SELECT FROM memfold.directory d WHERE d.tenant_id = p.tenant_id AND d.stream_id = p.stream_id)
     ORDER BY p.next_at LIMIT %(limit)s)
)
SELECT uuid_send(stream_id) FROM soonest GROUP BY stream_id ORDER BY min(at), stream_id LIMIT %(limit)s"""

SUMMED = ("memories", "summaries", "archived", "tokens_before", "tokens_after")
SUMS = ", ".join(["count(*) AS sessions", *(f"coalesce(sum({name}), 0)::bigint AS {name}" for name in SUMMED)])
SESSION = """
SELECT user_id, version, memories, summaries, archived, first_at, last_at, changed_version, tokens_before, tokens_after
FROM memfold.directory WHERE tenant_id = %s AND stream_id = %s"""
DIGEST = """
SELECT (SELECT coalesce(sum(hashtextextended((stream_id, user_id, version, memories, summaries, archived, first_at,
            last_at, changed_version, tokens_before, tokens_after)::text, 0)), 0)
        FROM memfold.directory WHERE tenant_id = %s)::text || ' ' ||
       (SELECT coalesce(sum(hashtextextended((position, stream_id, summary_id, sources,
            ARRAY(SELECT unnest(archived) ORDER BY 1), tokens_before, tokens_after)::text, 0)), 0)
        FROM memfold.windows WHERE tenant_id = %s)::text AS digest"""


class Totals(NamedTuple):
    """Sums over sessions. `tokens_before` are those of what living summaries stand for, `tokens_after` their own."""

    sessions: int
    memories: int
    summaries: int
    archived: int
    tokens_before: int
    tokens_after: int


class SessionCounts(NamedTuple):
    """What the directory says of one session.

    `memories` are those that live, archived or not, without summaries; `archived` counts whatever is out of default recall.
    `changed_version` is that of the last event that is more than one more memory.
    """

    user: bytes
    version: int
    memories: int
    summaries: int
    archived: int
    first_at: datetime | None
    last_at: datetime | None
    changed_version: int
    tokens_before: int
    tokens_after: int


class Directory:
    """The directory of one tenant: a `Projection`, and the questions it answers."""

    name = "directory"
    version = 1
    opens = frozenset({COMPRESSED, ARCHIVED, RESTORED})

    def __init__(self, database: Database, tenant: int) -> None:
        self._database = database
        self._tenant = tenant

    # -- what is due ---------------------------------------------------------------------------------------------------

    def due(self, now: datetime, policy_version: int, older_than_least: timedelta, limit: int) -> list[bytes]:
        """The streams of sessions that should be examined now, the one that waits longest first, at most `limit`.

        Those are: never examined, and their first memory at least `older_than_least` old; whose time has come, or whose
        number of memories; changed since by more than new memories; examined under other policies, or by a clock that
        was more than an hour ahead; and those with something that was set aside until now.
        """
        parameters = {"tenant": self._tenant, "now": now, "older": older_than_least, "policy": policy_version}
        query = parameters | {"limit": limit, "job": CONSOLIDATE}

        def read(connection: Connection) -> list[bytes]:
            with connection.cursor(binary=True) as cursor:
                return [stream for (stream,) in cursor.execute(DUE, query).fetchall()]

        return self._database.read(read)

    def examined(
        self,
        stream: bytes,
        version: int,
        policy_version: int,
        due_at: datetime | None,
        due_memories: int | None,
        *,
        at: datetime,
    ) -> bool:
        """Note that a session was examined as of `version`, and when it is due again: at a time, or with so many memories.

        False, and nothing is noted, if it is gone or was examined at a later version.
        """
        query = "SELECT memfold.examined(%s, %s, %s::int, %s::int, %s::timestamptz, %s::int, %s)"
        parameters = (self._tenant, arrays.uuid(stream), version, policy_version, due_at, due_memories, at)
        return bool(self._database.read(lambda connection: fetch(connection, query, parameters)[0]))

    def park(
        self, stream: bytes, key: bytes, *, reason: str, at: datetime, next_at: datetime | None, job: str = CONSOLIDATE
    ) -> bool:
        """Set a window aside until `next_at`, or with None until somebody asks; False if the session is gone.

        `reason` must hold no word of anybody.
        """

        def write(connection: Connection) -> bool:
            return parking.park(
                connection, self._tenant, job, stream, key=key, reason=reason, at=at, next_at=next_at, parked=next_at is None
            )

        return self._database.read(write)

    def unpark(self, stream: bytes | None = None, key: bytes | None = None, *, job: str = CONSOLIDATE) -> int:
        """Drop the notes about one window, a session's, or all of a job; return how many there were."""
        return self._database.read(lambda connection: parking.unpark(connection, self._tenant, job, stream, key))

    def parked(self, job: str | None = CONSOLIDATE, *, stream: bytes | None = None) -> list[Parked]:
        """What a job set aside, or with None every job, of one session or of all, oldest first."""
        return parking.parked(self._database, self._tenant, job, stream)

    # -- counts --------------------------------------------------------------------------------------------------------

    def session(self, stream: bytes) -> SessionCounts | None:
        """What is known of one session; None if it is gone, or was not projected yet."""
        row = self._database.row(SESSION, (self._tenant, arrays.uuid(stream)))
        if row is None:
            return None
        first, last = (each.astimezone(UTC) if each else None for each in (row.first_at, row.last_at))
        return SessionCounts(
            *(row.user_id.bytes, row.version, row.memories, row.summaries, row.archived),
            *(first, last, row.changed_version, row.tokens_before, row.tokens_after),
        )

    def windows(self, stream: bytes) -> list[Window]:
        """The living windows of a session, in the order they came to be."""
        return self._database.read(lambda connection: self._windows(connection, [stream])).get(stream, [])

    def largest(self, memories_min: int, limit: int) -> list[tuple[bytes, int]]:
        """The streams with at least so many memories, and how many, the largest first; at most `limit`."""
        query = """SELECT stream_id, memories FROM memfold.directory WHERE tenant_id = %s AND memories >= %s
            ORDER BY memories DESC, stream_id LIMIT %s"""
        return [(row.stream_id.bytes, row.memories) for row in self._database.rows(query, (self._tenant, memories_min, limit))]

    def totals(self, user: bytes | None = None) -> Totals:
        """Sums over all sessions, or those of one user."""
        query = f"SELECT {SUMS} FROM memfold.directory WHERE tenant_id = %s"
        if user is None:
            return Totals(*self._database.row(query, (self._tenant,)))
        return Totals(*self._database.row(query + " AND user_id = %s", (self._tenant, arrays.uuid(user))))

    def totals_by_user(self) -> dict[bytes, Totals]:
        """The same for each user."""
        query = f"SELECT user_id, {SUMS} FROM memfold.directory WHERE tenant_id = %s GROUP BY user_id"
        return {row.user_id.bytes: Totals(*row[1:]) for row in self._database.rows(query, (self._tenant,))}

    def digest(self) -> str:
        """A hash of all that is projected: the same for the same, however it came to be."""
        return str(self._database.row(DIGEST, (self._tenant, self._tenant)).digest)

    # -- the projection ------------------------------------------------------------------------------------------------

    def apply(self, connection: Connection, facts: Sequence[Fact]) -> None:
        """Fold facts of any sessions, in order."""
        by_stream: dict[bytes, list[Fact]] = {}
        for fact in facts:
            by_stream.setdefault(fact.header.stream, []).append(fact)
        touched = sorted({fact.header.stream for fact in facts if fact.header.type_number in OF_WINDOWS})
        before = self._windows(connection, touched)
        fates = spine.fates(connection, self._tenant, sorted(set(named_in(facts))))
        tallies = {stream: Tally() for stream in by_stream}
        windows = {stream: Windows(before.get(stream, ())) for stream in touched}
        for stream, some in by_stream.items():
            held = windows.get(stream)
            for fact in some:
                tallies[stream].add(fact.header, fates)
                if held:
                    held.add(fact, fates)
        self._write(connection, tallies, windows)

    def drop(self, connection: Connection, stream: bytes) -> None:
        """Take a session's row and windows away."""
        query = "SELECT memfold.drop_directory(%s, %b)"
        fetch(connection, query, (self._tenant, arrays.uuid_array([stream])))

    def clear(self, connection: Connection, limit: int) -> bool:
        """Take the rows and windows of up to `limit` sessions away; whether there may be more."""
        return bool(fetch(connection, "SELECT memfold.clear_directory(%s, %s::int)", (self._tenant, limit))[0] == limit)

    def _windows(self, connection: Connection, streams: Sequence[bytes]) -> dict[bytes, list[Window]]:
        if not streams:
            return {}
        with connection.cursor(binary=True) as cursor:
            rows = cursor.execute(WINDOWS, (self._tenant, arrays.uuid_array(streams))).fetchall()
        return {stream: [_window(row) for row in some] for stream, some in groupby(rows, key=lambda row: row[0])}

    def _write(self, connection: Connection, tallies: Mapping[bytes, Tally], windows: Mapping[bytes, Windows]) -> None:
        living = {stream: tally for stream, tally in tallies.items() if not tally.is_closed}
        closed = [stream for stream, tally in tallies.items() if tally.is_closed]
        held = {stream: windows[stream] for stream in windows if stream in living}
        gone = [position for some in held.values() for position in some.gone()]
        columns = (*_tallied(living), *_summed(held), *_cut(held))
        parameters = (self._tenant, *columns, arrays.int_array(gone, arrays.INT8), arrays.uuid_array(closed))
        fetch(connection, APPLY, parameters)


def _tallied(tallies: Mapping[bytes, Tally]) -> Iterable[arrays.Raw]:
    ints, times, some = arrays.int_array, arrays.timestamp_array, list(tallies.values())
    return (
        arrays.uuid_array(list(tallies)),
        ints([tally.version for tally in some]),
        ints([tally.remembered for tally in some]),
        ints([tally.forgotten for tally in some]),
        times([tally.first_at or NEVER for tally in some]),
        times([tally.last_at or NEVER for tally in some]),
        ints([tally.changed_version for tally in some]),
    )


def _summed(windows: Mapping[bytes, Windows]) -> Iterable[arrays.Raw]:
    ints, living = arrays.int_array, [some.living for some in windows.values()]
    return (
        arrays.uuid_array(list(windows)),
        ints([sum(window.summary is not None for window in some) for some in living]),
        ints([len(some.archived()) for some in windows.values()]),
        ints([sum(window.tokens_before for window in some) for some in living], arrays.INT8),
        ints([sum(window.tokens_after for window in some) for some in living], arrays.INT8),
    )


def _cut(windows: Mapping[bytes, Windows]) -> Iterable[arrays.Raw]:
    """The windows to be written, with all their ids in one row, and where each ends."""
    ints, found = arrays.int_array, [(stream, window) for stream, some in windows.items() for window in some.changed()]
    ids: list[bytes] = []
    ends: list[tuple[int, int]] = []
    for _, window in found:
        ids += window.sources
        sources = len(ids)
        ids += sorted(window.archived)
        ends.append((sources, len(ids)))
    return (
        arrays.uuid_array([stream for stream, _ in found]),
        ints([window.position for _, window in found], arrays.INT8),
        arrays.uuid_array([window.summary for _, window in found]),
        ints([window.tokens_before for _, window in found]),
        ints([window.tokens_after for _, window in found]),
        arrays.uuid_array(ids),
        ints([sources for sources, _ in ends]),
        ints([archived for _, archived in ends]),
    )


def _window(row: tuple[Any, ...]) -> Window:
    _, position, summary, sources, archived, before, after = row
    archived_ids = frozenset(each.bytes for each in archived)
    return Window(position, summary, tuple(each.bytes for each in sources), archived_ids, before, after)
