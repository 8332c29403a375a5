"""Following the whole log for what is kept durably beside it, each event exactly once.

A batch is applied and the checkpoint moved in one transaction, by comparison: whoever finds it moved drops the batch and
reads again. So any number of processes may project, be killed anywhere, and none loses or doubles an event; a lease only
spares them the same work. An event that cannot be folded parks its stream, and that stream's later events, for this
projection; the others go on. What the database or the key service refuses parks nothing: it stops everything, for now.

There is no thread: whoever needs what is projected calls `catch_up` first.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from typing import NamedTuple, Protocol

from memfold.errors import CorruptEvent, MemfoldError, StoreUnavailable
from memfold.events import NUMBERS, TYPES, SessionForgotten
from memfold.eventstore import derived, parking, reader, spine
from memfold.eventstore.append import RACES, RACES_MAX
from memfold.eventstore.binding import opening_keys
from memfold.eventstore.codec import Row
from memfold.eventstore.database import Connection, Database, Lease, Lost, blames_values
from memfold.eventstore.keyring import Keyring
from memfold.eventstore.spine import Header
from memfold.eventstore.tail import Tail
from memfold.projections.loading import open_rows
from memfold.projections.tally import Fact

logger = logging.getLogger("memfold")

BATCH_EVENTS = 2_000
CLEAR_STREAMS = 5_000  # emptied in one transaction before a rebuild
POISONED_MAX = 32  # streams in one batch: then it is not the events' fault, and nothing is passed over
SETTLE_S = 0.1  # transactions under way get this long to end, also where nobody wants to wait
PAUSE_S = 0.02  # between two looks at what another process projects
CLOSED = NUMBERS[SessionForgotten]
Lend = Callable[[], AbstractContextManager[Connection]]


class Projection(Protocol):
    """Something that is kept durably, folded from the log.

    `version` changes with the meaning of the fold: the next projector then begins anew. `opens` are the types of events
    whose content it needs; others come by what the spine says of them.
    """

    name: str
    version: int
    opens: frozenset[int]

    def apply(self, connection: Connection, facts: Sequence[Fact]) -> None:
        """Fold facts in order, within the transaction that `connection` is in. What it raises is the fault of a fact."""

    def drop(self, connection: Connection, stream: bytes) -> None:
        """Take away what was folded of a stream."""

    def clear(self, connection: Connection, limit: int) -> bool:
        """Take away what was folded of up to `limit` streams; whether there may be more."""


class Lag(NamedTuple):
    """How far a projection is behind the log: in events, the position it is at, and that of the newest event."""

    events: int
    position: int
    newest: int


class Poison(NamedTuple):
    """An event that cannot be folded, and why."""

    header: Header
    error: Exception


class Projector:
    """Keeps one projection of one tenant. Not for use by several threads at once; several projectors are harmless."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        projection: Projection,
        *,
        batch_events: int = BATCH_EVENTS,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._projection = projection
        self._batch_events = batch_events
        self._clock = clock
        self._name = f"{projection.name} {projection.version}"

    @property
    def position(self) -> int:
        """Everything up to here is projected, but what is parked."""
        return derived.checkpoint(self._database, self._keyring.tenant, self._name)

    def lag(self) -> Lag:
        """How far it is behind."""
        position, tenant = self.position, self._keyring.tenant
        return Lag(spine.waiting(self._database, tenant, position), position, reader.newest_position(self._database, tenant))

    def parked(self) -> list[parking.Parked]:
        """The streams that are passed over, and why."""
        return parking.parked(self._database, self._keyring.tenant, self._projection.name)

    def catch_up(self, deadline: float) -> bool:
        """Project everything acknowledged before this call; False if that took longer than until `deadline`.

        `deadline` is a moment of `time.monotonic`. What was projected by then stays. While another process is at it, wait
        for what it does.

        Raises:
            StoreUnavailable: the database cannot be reached, or refuses. Nothing is passed over.
            KeyUnavailable: the key service does.
        """
        lease = Lease(self._database)
        try:
            with Tail(self._database, lease) as tail:
                goal = tail.newest_event(self._keyring.tenant, max(deadline - time.monotonic(), SETTLE_S))
            return self._reach(lease, goal, deadline)
        finally:
            with suppress(MemfoldError, Lost), lease.connection() as connection:
                derived.unlock(connection)
            lease.close()

    def rebuild(self, deadline: float) -> bool:
        """Begin anew, with what is parked too, and catch up. It is incomplete until then, here and in every process."""
        tenant = self._keyring.tenant
        while position := self.position:
            with _told(), self._holding(self._database.connection, position, 0) as connection:
                if connection:
                    parking.unpark(connection, tenant, self._projection.name)
        return self.catch_up(deadline)

    def retry_parked(self) -> int:
        """Fold each parked stream anew from its first event; return how many are followed again. The others stay parked."""
        return sum(self._retry(stream) for stream in {each.stream for each in self.parked()})

    # -- following -----------------------------------------------------------------------------------------------------

    def _reach(self, lease: Lease, goal: int, deadline: float) -> bool:
        failures = 0
        while (position := self.position) < goal:
            if time.monotonic() > deadline:
                return False
            try:
                moved = self._is_our_turn(lease) and self._step(lease, position, goal)
            except Lost as error:
                failures += 1
                if failures > 1:
                    raise StoreUnavailable("the database connection was lost twice", outcome="not_written") from error.__cause__
                continue
            except StoreUnavailable as error:
                failures += 1
                if error.sqlstate not in RACES or failures > RACES_MAX:
                    raise
                continue
            failures = 0
            if not moved:
                time.sleep(PAUSE_S)
        return True

    def _is_our_turn(self, lease: Lease) -> bool:
        """Whether we hold the lease. It dies with its connection, so it is asked for each time; asking twice is harmless."""
        with lease.connection() as connection:
            return derived.try_lock(connection, self._keyring.tenant, self._name)

    def _step(self, lease: Lease, position: int, goal: int) -> bool:
        """Project one batch; False if another did."""
        if position == 0 and not self._clear(lease):
            return False
        page = spine.read_page(self._database, self._keyring.tenant, after=position, upto=goal, limit=self._batch_events)
        facts, poisoned = self._opened(page)
        with self._holding(lease.connection, position, page[-1].position) as connection:
            if connection:
                self._project(connection, facts, poisoned)
        return connection is not None

    def _clear(self, lease: Lease) -> bool:
        """Make sure that a fold from the first event begins with nothing; False if another began already."""
        while True:
            with self._holding(lease.connection, 0, 0) as connection:
                if connection is None or not self._projection.clear(connection, CLEAR_STREAMS):
                    return connection is not None

    @contextmanager
    def _holding(self, lend: Lend, before: int, after: int) -> Iterator[Connection | None]:
        """A transaction that moves the checkpoint from `before` to `after`, and lets nobody else; None if it is not there."""
        with lend() as connection, connection.transaction():
            # The checkpoint moves first: if another was here before us, we learn it before writing a row.
            moved = derived.move_checkpoint_on(connection, self._keyring.tenant, self._name, before=before, after=after)
            yield connection if moved else None

    def _project(self, connection: Connection, facts: Sequence[Fact], poisoned: Sequence[Poison]) -> None:
        tenant, job = self._keyring.tenant, self._projection.name
        streams = {fact.header.stream for fact in facts} | {poison.header.stream for poison in poisoned}
        passed = parking.parked_streams(connection, tenant, job, streams)
        # That a session was forgotten needs no other event to be understood.
        followed = [fact for fact in facts if fact.header.stream not in passed or fact.header.type_number == CLOSED]
        found = [poison for poison in poisoned if poison.header.stream not in passed]
        found += self._apply(connection, followed)
        if len(found) > POISONED_MAX:
            raise found[0].error
        for poison in found:
            self._park(connection, poison)

    def _apply(self, connection: Connection, facts: Sequence[Fact]) -> list[Poison]:
        """Apply facts together; if that fails, stream by stream, and of one that fails what comes before the fault."""
        if not facts or self._applied(connection, facts) is None:
            return []
        by_stream: dict[bytes, list[Fact]] = {}
        for fact in facts:
            by_stream.setdefault(fact.header.stream, []).append(fact)
        found = []
        for some in by_stream.values():
            if self._applied(connection, some):
                found += self._apply_singly(connection, some)
        return found

    def _apply_singly(self, connection: Connection, facts: Iterable[Fact]) -> list[Poison]:
        for fact in facts:
            if error := self._applied(connection, [fact]):
                return [Poison(fact.header, error)]
        return []

    def _applied(self, connection: Connection, facts: Sequence[Fact]) -> Exception | None:
        """Apply facts, all or none; return why not, if it is the fault of a fact."""
        try:
            with connection.transaction():
                self._projection.apply(connection, facts)
        except Exception as error:  # whatever a fold raises must not hold up other streams
            if not is_poison(error):
                raise
            return error
        return None

    def _park(self, connection: Connection, poison: Poison) -> None:
        header, reason = poison.header, reason_of(poison)
        logger.warning("%s: the stream of the event at position %d is passed over: %s", self._name, header.position, reason)
        parking.park(
            connection,
            self._keyring.tenant,
            self._projection.name,
            header.stream,
            reason=reason,
            at=self._clock(),
            position=header.position,
        )

    # -- content -------------------------------------------------------------------------------------------------------

    def _opened(self, headers: Sequence[Header]) -> tuple[list[Fact], list[Poison]]:
        """Events with the content that is needed, in order; of a stream, none from the first that does not open."""
        rows = self._rows([header for header in headers if header.type_number in self._projection.opens])
        keys = opening_keys(self._database, self._keyring, rows.values())
        facts: list[Fact] = []
        poisoned: dict[bytes, Poison] = {}
        for header in headers:
            if header.stream in poisoned and header.type_number != CLOSED:
                continue
            try:
                if header.type_number not in TYPES:
                    raise CorruptEvent(header.position, "is of a type this memfold does not know")
                row = rows.get(header.position)
                opened = list(open_rows([row], self._keyring.tenant, keys, gone_is_erased=True)) if row else []
                facts.append(Fact(header, opened[0].data if opened else None))
            except CorruptEvent as error:
                poisoned[header.stream] = Poison(header, error)
        return facts, list(poisoned.values())

    def _rows(self, headers: Sequence[Header]) -> dict[int, Row]:
        """Events with their content, by position."""
        if not headers:
            return {}
        wanted = {header.position for header in headers}
        pages = reader.read_streams(
            self._database,
            self._keyring.tenant,
            sorted({header.stream for header in headers}),
            after=min(wanted) - 1,
            upto=max(wanted),
        )
        return {row.position: row for page in pages for row in page if row.position in wanted}

    # -- parked streams ------------------------------------------------------------------------------------------------

    def _retry(self, stream: bytes) -> bool:
        """Fold a stream anew from its first event up to the checkpoint, in one transaction."""
        position, tenant = self.position, self._keyring.tenant
        headers = self._database.read(lambda connection: spine.read_stream(connection, tenant, stream, upto=position))
        facts, poisoned = self._opened(headers)
        with _told(), self._holding(self._database.connection, position, position) as connection:
            if connection is None:
                return False  # somebody projected meanwhile: ask again
            if not poisoned:
                poisoned = self._anew(connection, stream, facts)
            for poison in poisoned:
                self._park(connection, poison)
        return not poisoned

    def _anew(self, connection: Connection, stream: bytes, facts: Sequence[Fact]) -> list[Poison]:
        """Fold a stream from its first event, and follow it again; leave all as it was if an event still cannot be folded."""
        found: list[Poison] = []
        with suppress(_Undone), connection.transaction():
            self._projection.drop(connection, stream)
            found = self._apply(connection, facts)
            if found:
                raise _Undone
            parking.unpark(connection, self._keyring.tenant, self._projection.name, stream)
        return found


class _Undone(Exception):
    """Takes a part of a transaction back."""


@contextmanager
def _told() -> Iterator[None]:
    """A lost connection as callers know it: whether it took effect, the checkpoint says."""
    try:
        yield
    except Lost as error:
        raise StoreUnavailable("the database connection was lost", outcome="unknown") from error.__cause__


def is_poison(error: Exception) -> bool:
    """Whether an error is the fault of an event, which will not fold better the next time, and not of the service."""
    if isinstance(error, CorruptEvent):
        return True
    return not isinstance(error, MemfoldError | Lost | MemoryError) and blames_values(error)


def reason_of(poison: Poison) -> str:
    """Why an event could not be folded, without a word of what it says."""
    error = poison.error
    return (
        str(error) if isinstance(error, CorruptEvent) else f"event at position {poison.header.position}: {type(error).__name__}"
    )
