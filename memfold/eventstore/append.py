"""The one door through which events enter the log, and the group commit behind it.

A caller that finds a committing connection free commits at once, alone. Callers that arrive while all are busy wait, and
the next to come free takes all of them in one round trip and one flush to disk: throughput grows with callers and no
timer delays anybody. There is no background thread: whoever leads a flush is one of the callers it serves.
"""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any

from memfold.errors import MemfoldError, StoreUnavailable
from memfold.eventstore import arrays
from memfold.eventstore.codec import SealedEvent
from memfold.eventstore.database import Connection, Database, Lease, Lost
from memfold.settings import Settings

NO_DECISION = -1
RACES_MAX = 8  # PostgreSQL picks one victim of a deadlock a round
RACES = ("40001", "40P01")  # serialization failure, deadlock: the same call may succeed now
STREAM_CLOSED = "MF001"  # raised by forget_streams, so that the facts it wrote for other streams are undone


class Verdict(IntEnum):
    """What the log said to a request."""

    ACCEPTED = 0
    CONFLICT = 1
    KEY_GONE = 2
    STREAM_GONE = 3
    DUPLICATE = 4


@dataclass(slots=True)
class Request:
    """Events for one stream, all or nothing.

    `user` and `key_version` name the key the events were sealed under (NOBODY: the tenant's). `expected` is the stream
    version a decision about the events' memories was read at; NO_DECISION for new memories. A decision `of_all` was about
    the whole stream: whatever was appended since stands against it.
    """

    stream: bytes
    user: bytes
    key_version: int
    at: datetime
    events: Sequence[SealedEvent]
    expected: int = NO_DECISION
    idempotency: bytes = b""
    commitment: bytes = b""
    of_all: bool = False


@dataclass(slots=True)
class Answer:
    """The verdict on a request; for an accepted one where it stands: its first stream version, its time, its positions."""

    verdict: Verdict
    version: int = 0
    recorded_at: datetime = datetime.min
    positions: Sequence[int] = ()


@dataclass(slots=True)
class _Waiting:
    request: Request
    answer: Answer | None = None
    error: MemfoldError | None = None
    lease: Lease | None = None
    wake: threading.Lock = field(default_factory=threading.Lock)


class Committer:
    """Appends requests, many callers to a commit. Safe to call from any thread."""

    def __init__(self, database: Database, tenant: int, settings: Settings) -> None:
        self._database = database
        self._tenant = tenant
        self._idle = [Lease(database) for _ in range(settings.append_connections)]
        self._events_max = settings.append_events_max
        self._queue: deque[_Waiting] = deque()
        self._lock = threading.Lock()

    def append(self, request: Request) -> Answer:
        """Append one request; durable when this returns an accepted answer.

        Raises:
            StoreUnavailable: with outcome "not_written", or "unknown" if the connection was lost and nobody can say.
        """
        waiting = _Waiting(request)
        with self._lock:
            if self._idle:
                waiting.lease = self._idle.pop()
            else:
                waiting.wake.acquire()
                self._queue.append(waiting)
        if not waiting.lease:
            self._wait(waiting)
        if waiting.lease:
            self._lead(waiting, waiting.lease)
        if waiting.error:
            raise waiting.error
        assert waiting.answer is not None
        return waiting.answer

    def close(self) -> None:
        """Give the connections back."""
        with self._lock:
            for lease in self._idle:
                lease.close()

    def _wait(self, waiting: _Waiting) -> None:
        """Sleep until somebody has flushed our request, or hands us a connection to lead with."""
        try:
            waiting.wake.acquire()
        except BaseException:
            # Interrupted, by Ctrl-C for one: a connection that was handed to us meanwhile must not be lost to the others.
            with self._lock:
                if waiting in self._queue:
                    self._queue.remove(waiting)
            if waiting.lease:
                self._hand_on(waiting.lease)
            raise

    def _lead(self, own: _Waiting, lease: Lease) -> None:
        """Flush our own request and what else is waiting, then hand the connection on."""
        try:
            self._flush(self._take(own), lease)
        finally:
            self._hand_on(lease)

    def _take(self, own: _Waiting) -> list[_Waiting]:
        """Our own request and as many of those waiting as fit a commit. Only sleepers are in the queue; a leader never is."""
        with self._lock:
            batch, events = [own], len(own.request.events)
            while self._queue and events + len(self._queue[0].request.events) <= self._events_max:
                batch.append(self._queue.popleft())
                events += len(batch[-1].request.events)
            return batch

    def _hand_on(self, lease: Lease) -> None:
        with self._lock:
            if not self._queue:
                self._idle.append(lease)
                return
            leader = self._queue.popleft()
            leader.lease = lease
            leader.wake.release()

    def _flush(self, batch: list[_Waiting], lease: Lease) -> None:
        requests = [waiting.request for waiting in batch]
        outcomes: Sequence[Answer | MemfoldError]
        try:
            outcomes = self._commit(requests, lease)
        except BaseException as error:
            # A KeyboardInterrupt in the leader must not leave the others waiting for ever.
            if not isinstance(error, MemfoldError):
                lost = StoreUnavailable("the thread that was committing was interrupted", outcome="unknown")
                self._settle(batch, [lost] * len(batch))
                raise
            outcomes = [error] * len(batch)
        self._settle(batch, outcomes)

    def _settle(self, batch: list[_Waiting], outcomes: Sequence[Answer | MemfoldError]) -> None:
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, Answer):
                waiting.answer = outcome
            else:
                waiting.error = outcome
            if not waiting.lease:
                waiting.wake.release()

    def _commit(self, requests: list[Request], lease: Lease) -> Sequence[Answer | MemfoldError]:
        """Append together; if that fails, each alone, so that one bad request harms no other."""
        try:
            with lease.connection() as connection:
                return call(connection, self._tenant, requests)
        except Lost:
            return [recover(self._database, self._tenant, request, _append_alone) for request in requests]
        except StoreUnavailable as error:
            if error.sqlstate is None or (len(requests) == 1 and error.sqlstate not in RACES):
                return [error] * len(requests)
            return [self._alone(request) for request in requests]

    def _alone(self, request: Request) -> Answer | MemfoldError:
        try:
            return durably(self._database, self._tenant, request, _append_alone)
        except MemfoldError as error:
            return error


Write = Callable[[Connection, int, Request], Answer]


def durably(database: Database, tenant: int, request: Request, write: Write) -> Answer:
    """Run one write in a transaction of its own: again after a lost race, and with certainty after a lost connection.

    Raises:
        StoreUnavailable: with outcome "not_written", or "unknown" if nobody can say.
    """
    for remaining in reversed(range(RACES_MAX)):
        try:
            with database.connection() as connection:
                return write(connection, tenant, request)
        except Lost:
            outcome = recover(database, tenant, request, write)
            if isinstance(outcome, Answer):
                return outcome
            raise outcome from None
        except StoreUnavailable as error:
            if not (remaining and error.sqlstate in RACES):
                raise
    raise AssertionError("unreachable")


def recover(database: Database, tenant: int, request: Request, write: Write) -> Answer | StoreUnavailable:
    """After a lost connection: look whether the events are there, else write once more, else say that nobody knows.

    The old transaction may go on while we look, and commit while the second write waits for its locks. Then the second
    is refused for what the first has done: the event ids are taken, the memory was touched, the stream is closed. So
    whatever but an acceptance comes of it, we look again before we believe it.
    """
    unknown = StoreUnavailable("the database connection was lost during an append", outcome="unknown")
    try:
        found = look_up(database, tenant, request)
        if found:
            return found
        with database.connection() as connection:
            answer = write(connection, tenant, request)
        return answer if answer.verdict is Verdict.ACCEPTED else look_up(database, tenant, request) or answer
    except Lost:
        return _look_again(database, tenant, request) or unknown
    except StoreUnavailable as error:
        refused = error if error.sqlstate == STREAM_CLOSED else unknown
        return _look_again(database, tenant, request) or refused


def _look_again(database: Database, tenant: int, request: Request) -> Answer | None:
    try:
        return look_up(database, tenant, request)
    except StoreUnavailable:
        return None


def look_up(database: Database, tenant: int, request: Request) -> Answer | None:
    """Where the events of a request stand in the log; None if they do not."""
    ids = arrays.uuid_array([event.event_id for event in request.events])
    rows = database.rows(
        """SELECT version, recorded_at, position FROM memfold.events
           WHERE tenant_id = %s AND event_id = ANY(%s) ORDER BY version""",
        (tenant, ids),
    )
    if not rows:
        return None
    return Answer(Verdict.ACCEPTED, rows[0].version, rows[0].recorded_at.astimezone(UTC), [row.position for row in rows])


def _append_alone(connection: Connection, tenant: int, request: Request) -> Answer:
    return call(connection, tenant, [request])[0]


def call(connection: Connection, tenant: int, requests: Sequence[Request]) -> list[Answer]:
    """Append requests in one round trip and one transaction."""
    if len(requests) == 1 and is_plain(requests[0]):
        return [_call_one(connection, tenant, requests[0])]
    row = fetch(connection, APPEND, (tenant, *columns(requests)))
    return answers(requests, row)


def is_plain(request: Request) -> bool:
    """Whether `append_one` can take it."""
    return len(request.events) == 1 and request.expected == NO_DECISION and not request.idempotency


def _call_one(connection: Connection, tenant: int, request: Request) -> Answer:
    event = request.events[0]
    uuid = arrays.uuid
    parameters = (
        *(tenant, uuid(request.stream), uuid(request.user), request.key_version, request.at),
        *(uuid(event.event_id), uuid(event.memory_id) if event.memory_id else None, event.type_number, event.schema_version),
        *(event.digest, event.payload, event.wrapped_key),
    )
    verdict, version, recorded_at, position = fetch(connection, APPEND_ONE, parameters)
    if verdict:
        return Answer(Verdict(verdict))
    return Answer(Verdict.ACCEPTED, version, recorded_at.astimezone(UTC), (position,))


def columns(requests: Sequence[Request]) -> tuple[arrays.Raw, ...]:
    """The array arguments of `memfold.append`, request columns then event columns."""
    events = [event for request in requests for event in request.events]
    numbers = [number for number, request in enumerate(requests, 1) for _ in request.events]
    places = [place for request in requests for place in range(1, len(request.events) + 1)]
    ints, uuids, blobs = arrays.int_array, arrays.uuid_array, arrays.bytea_array
    return (
        uuids([request.stream for request in requests]),
        uuids([request.user for request in requests]),
        ints([request.key_version for request in requests]),
        arrays.timestamp_array([request.at for request in requests]),
        blobs([request.idempotency for request in requests]),
        blobs([request.commitment for request in requests]),
        ints([-2 - request.expected if request.of_all else request.expected for request in requests]),
        ints([len(request.events) for request in requests]),
        ints(numbers),
        ints(places),
        uuids([event.event_id for event in events]),
        uuids([event.memory_id for event in events]),
        ints([event.type_number for event in events], arrays.INT2),
        ints([event.schema_version for event in events], arrays.INT2),
        blobs([event.digest for event in events]),
        blobs([event.payload for event in events]),
        blobs([event.wrapped_key for event in events]),
    )


def answers(requests: Sequence[Request], row: Sequence[Any]) -> list[Answer]:
    """Take the log's arrays apart, request by request."""
    verdicts, versions, times, positions = row
    result, start = [], 0
    for request, verdict, version, at in zip(requests, verdicts, versions, times, strict=True):
        if verdict:
            result.append(Answer(Verdict(verdict), version))
            continue
        end = start + len(request.events)
        result.append(Answer(Verdict.ACCEPTED, version, at.astimezone(UTC), positions[start:end]))
        start = end
    return result


def fetch(connection: Connection, query: str, parameters: Sequence[Any]) -> Any:
    """The one row of a call, in binary, prepared."""
    with connection.cursor(binary=True) as cursor:
        return cursor.execute(query, parameters, prepare=True).fetchone()


_ARRAYS = ", ".join(["%b"] * 17)
APPEND = f"SELECT verdict, version, recorded, positions FROM memfold.append(%s, {_ARRAYS})"
APPEND_ONE = """
SELECT verdict, version, recorded, position
FROM memfold.append_one(%s, %b, %b, %s::int, %b::timestamptz, %b, %b::uuid, %s::smallint, %s::smallint,
                        %b::bytea, %b::bytea, %b::bytea)"""
