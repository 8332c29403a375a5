"""A run of the consolidator: over the sessions that are due, or one, with a memory of what failed.

The directory says what is due and remembers what was found, so that a run that never comes only delays. A window that fails is
tried again after a pause that doubles, at last set aside with its reason; the others go on.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import NamedTuple

from memfold.consolidator import fading
from memfold.consolidator.consolidator import Consolidator
from memfold.consolidator.limits import UserLimits
from memfold.consolidator.looking import Seen
from memfold.consolidator.policybook import PolicyBook, Set
from memfold.consolidator.spending import Caps, Spending
from memfold.errors import Contended, CorruptEvent, MemfoldError, ScopeTooLarge
from memfold.eventstore import derived
from memfold.eventstore.database import Database, Lease, Lost
from memfold.eventstore.keyring import Keyring
from memfold.eventstore.parking import Parked
from memfold.model import Consolidation, SessionConsolidation
from memfold.policies import Effective, resolved
from memfold.projections.directory import Directory
from memfold.projections.fold import memory_id_text
from memfold.projections.projector import Projector

LEASE = "consolidate"
WHOLE = b""  # the key of a session that was set aside as a whole
DUE_AT_ONCE = 100
DUE_DRY = 10_000  # sessions that a dry run looks at
RETRY_FIRST, RETRY_LAST = timedelta(minutes=1), timedelta(hours=1)
ATTEMPTS_MAX = 6
LATER = timedelta(minutes=5)  # for a session in which something was due and nothing came of it
CATCH_UP_S = 60.0
PASSES_MAX = 50  # of `until_idle`: more than there are levels of summaries

logger = logging.getLogger("memfold")

Progress = Callable[[SessionConsolidation], None]


class Ask(NamedTuple):
    """How a run is to be done."""

    dry_run: bool = False
    with_summaries: bool = False
    until_idle: bool = False
    go_on: Callable[[], bool] = lambda: True
    progress: Progress = lambda _: None


class Runner:
    """Runs the consolidator of one tenant."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        consolidator: Consolidator,
        directory: Directory,
        projector: Projector,
        *,
        limits: UserLimits,
        book: PolicyBook,
        caps: Caps,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._consolidator = consolidator
        self._directory = directory
        self._projector = projector
        self._limits = limits
        self._book = book
        self._caps = caps
        self._clock = clock

    def session(self, session_id: str, ask: Ask) -> Consolidation:
        """Do what is due in one session, whether the directory knows of it or not; nothing in an unknown one."""
        spending = Spending(self._database, self._keyring.tenant, self._caps, self._clock, ask.go_on)
        found: list[SessionConsolidation] = []
        for _ in range(PASSES_MAX):
            done = self._examine(session_id, spending, ask)
            found += [done] if done else []
            if done is None or not (ask.until_idle and ask.go_on() and done.did_something) or ask.dry_run:
                break
        return _told(found, spending, ask, None)

    def due(self, ask: Ask) -> Consolidation:
        """Do what is due anywhere; nothing, and it says so, while another worker is at it."""
        spending = Spending(self._database, self._keyring.tenant, self._caps, self._clock, ask.go_on)
        found: list[SessionConsolidation] = []
        with self._turn() as is_ours:
            stopped = None if is_ours() else "another worker is consolidating"
            if not stopped:
                self._projector.catch_up(time.monotonic() + CATCH_UP_S)
                found += [_beyond(seen, gone) for seen, gone in self._limits.keep(dry_run=ask.dry_run)]
            for _ in range(PASSES_MAX):
                if stopped or not ask.go_on():
                    break
                before = len(found)
                for session_id in self._sessions_due(ask):
                    done = self._examined_alone(session_id, spending, ask)
                    found += [done] if done else []
                    stopped = self._stopped(done, is_ours)
                    if stopped or not ask.go_on():
                        break
                if ask.dry_run or not ask.until_idle or not any(done.did_something for done in found[before:]):
                    break
        return _told(found, spending, ask, stopped)

    def _examined_alone(self, session_id: str, spending: Spending, ask: Ask) -> SessionConsolidation | None:
        """Examine a session that holds up no other: what is wrong with it is noted, and it is tried again later."""
        try:
            return self._examine(session_id, spending, ask)
        except Contended:
            return None  # others are at it; it stays due
        except (CorruptEvent, ScopeTooLarge) as error:
            logger.warning("a session was not consolidated: %s", error)
            ref = self._keyring.find_session(session_id)
            if ref and not ask.dry_run:
                self._set_aside(ref.stream, error)
            return None

    def _set_aside(self, stream: bytes, error: MemfoldError) -> None:
        noted = [each for each in self._directory.parked(stream=stream) if each.key == WHOLE]
        now, book = self._clock(), self._book.read()
        next_at = now + pause(noted[0].attempts if noted else 0)
        self._directory.park(stream, WHOLE, reason=str(error), at=now, next_at=next_at)
        seen = self._directory.session(stream)
        if seen:
            self._directory.examined(stream, seen.version, book.version, next_at, None, at=now)

    def _stopped(self, done: SessionConsolidation | None, is_ours: Callable[[], bool]) -> str | None:
        if done and done.stopped:
            return done.stopped
        return None if is_ours() else "another worker took over"

    @contextmanager
    def _turn(self) -> Iterator[Callable[[], bool]]:
        """Our turn, as long as the lease is ours: it dies with its connection."""
        lease = Lease(self._database)

        def is_ours() -> bool:
            with lease.connection() as connection:
                return derived.try_lock(connection, self._keyring.tenant, LEASE)

        try:
            yield is_ours
        finally:
            with suppress(MemfoldError, Lost), lease.connection() as connection:
                derived.unlock(connection)
            lease.close()

    def _sessions_due(self, ask: Ask) -> Iterator[str]:
        """The names of sessions that are due, each once, the one that waits longest first."""
        self._projector.catch_up(time.monotonic() + CATCH_UP_S)
        seen: set[bytes] = set()
        while True:
            book = self._book.read()
            limit = DUE_DRY if ask.dry_run else DUE_AT_ONCE + len(seen)
            streams = self._directory.due(self._clock(), book.version, soonest(book), limit)
            new = [stream for stream in streams if stream not in seen]
            if not new:
                return
            for stream in new:
                seen.add(stream)
                ref = self._keyring.session_of_stream(stream)
                if ref:
                    yield ref.session_id

    # -- one session ---------------------------------------------------------------------------------------------------

    def _examine(self, session_id: str, spending: Spending, ask: Ask) -> SessionConsolidation | None:
        ref = self._keyring.find_session(session_id)
        if ref is None:
            return None
        now = self._clock()
        noted = {each.key: each for each in self._directory.parked(stream=ref.stream)}
        # A time that lies further ahead than any pause was set by a clock that has been put right since.
        waiting = {
            key for key, each in noted.items() if each.parked or (each.next_at and now < each.next_at <= now + RETRY_LAST)
        }
        standing: set[bytes] = set()

        def passed_over(key: str) -> bool:
            standing.add(bytes.fromhex(key))
            return bytes.fromhex(key) in waiting

        done = self._consolidator.session(
            session_id,
            spending,
            passed_over=passed_over,
            dry_run=ask.dry_run,
            with_summaries=ask.with_summaries,
        )
        if done and not ask.dry_run:
            self._note(ref.stream, done, noted, waiting & standing)
        if done:
            ask.progress(done)
        return done

    def _note(self, stream: bytes, done: SessionConsolidation, noted: dict[bytes, Parked], waiting: set[bytes]) -> None:
        """Remember what failed, forget what no longer does, and say when the session is due again."""
        now, failed = self._clock(), {bytes.fromhex(each.key): each for each in done.failed}
        for key, each in failed.items():
            attempts = noted[key].attempts if key in noted else 0
            next_at = now + pause(attempts) if each.retry and attempts + 1 < ATTEMPTS_MAX else None
            self._directory.park(stream, key, reason=each.problem, at=now, next_at=next_at)
        if done.stopped is None:
            for key in noted.keys() - waiting - failed.keys():
                self._directory.unpark(stream, key)
        book = self._book.read()
        due_at, due_memories = next_time(done, book.of(stream).of(None), now)
        # What is remembered after this is due by its age at the soonest, or by its number.
        times = [at for at in (due_at, *(now + age for age in _ages(book) if age)) if at is not None]
        self._directory.examined(stream, done.version, done.policy_version, min(times, default=None), due_memories, at=now)


def _beyond(seen: Seen, gone: Sequence[bytes]) -> SessionConsolidation:
    """What a user's limits took from a session."""
    return SessionConsolidation(
        session_id=seen.session_id,
        stream_id=memory_id_text(seen.stream),
        version=seen.version,
        policy_version=0,
        memories=len(seen.candidates) - len(gone),
        windows=(),
        failed=(),
        faded=(),
        expired=tuple(map(memory_id_text, gone)),
        near_limits=(),
        due_at=None,
        stopped=None,
    )


def soonest(book: Set) -> timedelta:
    """How old a memory is at least before anything is done about it, under any of the policies; zero if a number may do it."""
    limits = [
        limit for policy in _all(book) for limit in (policy.retention.session_memories_max, policy.retention.session_bytes_max)
    ]
    return timedelta(0) if any(limits) else min(_ages(book), default=timedelta(days=1))


def _ages(book: Set) -> list[timedelta]:
    ages: list[timedelta | None] = []
    for policy in _all(book):
        ages += [policy.retention.max_age, *policy.retention.ttl.values()]
        ages += [policy.windows.older_than] if policy.windows.enabled else []
        ages += [fading.lifetime(0.0, policy.fading)] if policy.fading.enabled else []
    return [age for age in ages if age is not None]


def _all(book: Set) -> list[Effective]:
    return [resolved(policy, book.tenant) for policy in (None, *book.categories.values(), *book.sessions.values())]


def next_time(done: SessionConsolidation, policy: Effective, now: datetime) -> tuple[datetime | None, int | None]:
    """When a session is due again: at a time, and with so many memories, if nothing else happens to it."""
    due_at = done.due_at
    if due_at is not None and due_at <= now and not done.did_something:
        due_at = now + LATER  # what is due is parked, or somebody else is at it
    limits = [policy.retention.session_memories_max]
    if policy.retention.session_bytes_max is not None:
        # The directory does not weigh: a fifth more memories may come, and none unseen where the limit is near.
        limits.append(done.memories + (0 if "session_bytes_max" in done.near_limits else done.memories // 5))
    if policy.windows.enabled and not policy.windows.older_than:
        limits.append(done.memories + policy.windows.memories_min - 1)
    return due_at, min((limit + 1 for limit in limits if limit is not None), default=None)


def pause(attempts: int) -> timedelta:
    """How long after a failure a window is tried again."""
    return min(RETRY_FIRST * (1 << min(attempts, 10)), RETRY_LAST)


def _told(found: Sequence[SessionConsolidation], spending: Spending, ask: Ask, stopped: str | None) -> Consolidation:
    return Consolidation(
        sessions=tuple(found),
        dry_run=ask.dry_run,
        prompt_tokens=spending.run.prompt_tokens,
        completion_tokens=spending.run.completion_tokens,
        cost=spending.run.cost,
        stopped=stopped or next((done.stopped for done in found if done.stopped), None),
    )
