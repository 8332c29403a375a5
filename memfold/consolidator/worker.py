"""A worker: runs jobs by their schedules, each under a lease, and notes how they fared.

Any number of workers may run. Whoever is first at a job keeps its lease until it ends, however it ends; the others ask at
each tick. What is to be done is never written down here, it is derived from the log: so a tick that is lost, or done twice,
harms nothing. A job that raises is noted with its reason, and comes again at its next tick; the others go on.
"""

import logging
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from typing import NamedTuple

from memfold.consolidator.scheduling import Schedule, Ticker
from memfold.errors import MemfoldError
from memfold.eventstore import derived, jobnotes
from memfold.eventstore.database import Database, Lease, Lost

logger = logging.getLogger("memfold")

LOOK_S = 0.2  # between two looks whether we are to stop
BEAT_S = 5.0  # between two signs of life of a job under way


class Outcome(NamedTuple):
    """How a job fared, and what there is to say about it, without a word of anybody."""

    failed: bool = False
    remark: str | None = None


class Turn(NamedTuple):
    """What a job is told: whether to go on after the step at hand, and where to give a sign of life now and then."""

    go_on: Callable[[], bool]
    beat: Callable[[], None]


class Job(NamedTuple):
    """Something to be done again and again."""

    name: str
    run: Callable[[Turn], Outcome]


class Worker:
    """Runs the jobs of one tenant in the thread that calls `run`, one after the other."""

    def __init__(
        self,
        database: Database,
        tenant: int,
        jobs: Sequence[Job],
        schedules: Mapping[str, Schedule],
        *,
        clock: Callable[[], datetime],
        go_on: Callable[[], bool],
    ) -> None:
        self.name = secrets.token_hex(8)
        self._database = database
        self._tenant = tenant
        self._jobs = jobs
        self._schedules = schedules
        self._clock = clock
        self._go_on = go_on
        self._held: set[str] = set()
        self._planned: dict[str, datetime] = {}

    def run(self, ended: threading.Event) -> None:
        """Run the jobs until `go_on` says no or `ended` is set, and finish the step at hand."""
        self._lease = Lease(self._database)
        ticker = Ticker({job.name: self._tick(job) for job in self._jobs}, self._schedules)
        try:
            while self._go_on() and not ended.is_set():
                wait_s = ticker.run_due()
                self._plan(ticker.next_in())
                until_s = LOOK_S if wait_s is None else min(wait_s, LOOK_S)
                ended.wait(until_s)
        finally:
            ticker.close()
            self._let_go()

    def _tick(self, job: Job) -> Callable[[], None]:
        def tick() -> None:
            if self._go_on() and self._is_ours(job.name):
                self._act(job)

        return tick

    def _act(self, job: Job) -> None:
        self._note(lambda: jobnotes.started(self._database, self._tenant, job.name, self.name, at=self._clock()))
        try:
            outcome = job.run(Turn(self._go_on, self._beat_of(job.name)))
        except Exception as error:  # noqa: BLE001 (whatever a job raises must not hold up the others)
            outcome = Outcome(failed=True, remark=reason_of(error))
            logger.warning("the job %s failed, and is tried again at its next tick: %s", job.name, outcome.remark)
        self._note(
            lambda: jobnotes.finished(
                *(self._database, self._tenant, job.name, self.name),
                at=self._clock(),
                failed=outcome.failed,
                reason=outcome.remark,
            )
        )

    def _beat_of(self, name: str) -> Callable[[], None]:
        last = self._clock()

        def beat() -> None:
            nonlocal last
            now = self._clock()
            if abs(now - last) >= timedelta(seconds=BEAT_S):
                last = now
                self._note(lambda: jobnotes.beat(self._database, self._tenant, name, self.name, at=now))

        return beat

    def _plan(self, next_in: Mapping[str, timedelta]) -> None:
        """Note when the jobs that are ours run next, where that has changed."""
        now = self._clock()
        for name in self._held & next_in.keys():
            next_at = now + next_in[name]
            # The store's clock and the scheduler's need not be the same; what differs by less is the same moment.
            if name not in self._planned or abs(next_at - self._planned[name]) > timedelta(milliseconds=50):
                self._planned[name] = next_at
                self._note(
                    lambda name=name, at=next_at: jobnotes.beat(  # type: ignore[misc]
                        self._database, self._tenant, name, self.name, at=now, next_at=at
                    )
                )

    def _is_ours(self, name: str) -> bool:
        """Whether we hold the job's lease. It dies with its connection, so it is asked for each time."""
        try:
            with self._lease.connection() as connection:
                ours = jobnotes.try_lease(connection, self._tenant, name)
        except (MemfoldError, Lost) as error:
            self._held.clear()
            logger.warning("the job %s waits for its next tick: %s", name, error or "the database connection was lost")
            return False
        (self._held.add if ours else self._held.discard)(name)
        return ours

    def _let_go(self) -> None:
        if self._held:
            with suppress(MemfoldError, Lost), self._lease.connection() as connection:
                derived.unlock(connection)
        self._lease.close()

    def _note(self, note: Callable[[], None]) -> None:
        """Notes are for people: that one could not be made stops nothing."""
        try:
            note()
        except MemfoldError as error:
            logger.warning("how a job fared could not be noted: %s", error)


def reason_of(error: Exception) -> str:
    """Why a job failed, without a word of anybody: errors of ours hold none, and of others we take the name."""
    if isinstance(error, Lost):
        return "the database connection was lost"
    return f"{type(error).__name__}: {error}" if isinstance(error, MemfoldError) else type(error).__name__
