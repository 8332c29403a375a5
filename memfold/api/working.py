"""The work behind the log, put together: which jobs there are, the thread that runs them, and how they fare.

There are three jobs. "consolidate" does what the policies say is due until nothing is; to summarize, to let fade and to forget
what is not kept is one look at a session, so they do not tick apart. "embed" sees to it that what was remembered gets its
vector. "directory" keeps up with the log, so that neither of the others nor `stats` has far to go.
"""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, timedelta
from typing import Protocol

from memfold.api.consolidating import Consolidating, Parts
from memfold.consolidator import spending
from memfold.consolidator.running import Ask, soonest
from memfold.consolidator.scheduling import Schedule, parsed
from memfold.consolidator.summarizer import Usage
from memfold.consolidator.worker import Job, Outcome, Turn, Worker
from memfold.errors import SettingsError
from memfold.eventstore import jobnotes
from memfold.eventstore.jobnotes import JobNotes
from memfold.model import Consolidation, JobStatus, NearLimit, WorkStatus
from memfold.policies import resolved
from memfold.projections.follower import Follower

DEFAULTS: dict[str, Schedule] = {
    "consolidate": timedelta(seconds=60),
    "embed": timedelta(seconds=10),
    "directory": timedelta(seconds=30),
}
STEP_S = 1.0  # of the directory, between two looks whether to go on
EMBED_S = 30.0  # that the embed job waits for the follower: what it does not see done, the next tick does
DUE_MAX = 10_000
NEAR_MAX = 100
NEAR_SHARE = 0.8
EVER = date(1970, 1, 1), date(9999, 1, 1)


class Stop(Protocol):
    """Something that says when to stop, such as a `threading.Event`."""

    def is_set(self) -> bool:
        """Whether to stop."""


def schedules(given: object) -> dict[str, Schedule]:
    """When each job runs: as given, and as usual where nothing is.

    Raises:
        SettingsError: there is no such job, or what is given is no schedule.
    """
    if given is None:
        return dict(DEFAULTS)
    if not isinstance(given, Mapping):
        raise SettingsError("jobs", f"is {type(given).__name__}: give a dict such as {{'consolidate': '5m', 'embed': 10}}")
    if unknown := sorted(str(name) for name in given if name not in DEFAULTS):
        raise SettingsError("jobs", f"has no job {unknown[0]!r}: there are {', '.join(DEFAULTS)}")
    return DEFAULTS | {name: parsed(f"jobs.{name}", value) for name, value in given.items()}


class Working:
    """The jobs of one store. Holds nothing of the store itself, so that a store nobody uses any more can go."""

    def __init__(self, parts: Parts, follower: Follower) -> None:
        self._parts = parts
        self._follower = follower
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._runs: dict[int, threading.Event] = {}  # by thread: set when the run there is over
        self._thread: threading.Thread | None = None

    def run(self, given: object, stop: Stop | None) -> None:
        """Run the jobs in this thread until `stop` or `close` says so, and the step at hand is done.

        Raises:
            SettingsError: see `schedules`.
        """
        self._run(schedules(given), self._jobs(), stop)

    def start(self, given: object) -> None:
        """Run the jobs in a thread, until `close`; raises as `run`."""
        arguments = schedules(given), self._jobs(), None
        self._thread = threading.Thread(target=self._run, args=arguments, name="memfold-work", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End every run after the step at hand, and wait for that; not for one in this very thread."""
        self._ended.set()
        with self._lock:
            others = [over for thread, over in self._runs.items() if thread != threading.get_ident()]
        for over in others:
            over.wait()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def status(self, consolidating: Consolidating) -> WorkStatus:
        """How the work fares, here and in every process."""
        return status(self._parts, consolidating, self._follower)

    def _jobs(self) -> list[Job]:
        # A consolidator of their own: another thread may be using the store's.
        return Jobs(Consolidating(self._parts), self._follower).all()

    def _run(self, chosen: Mapping[str, Schedule], jobs: list[Job], stop: Stop | None) -> None:
        def go_on() -> bool:
            return not self._ended.is_set() and not (stop and stop.is_set())

        with self._counted():
            tenant = self._parts.keyring.tenant
            Worker(self._parts.database, tenant, jobs, chosen, clock=self._parts.clock, go_on=go_on).run(self._ended)

    @contextmanager
    def _counted(self) -> Iterator[None]:
        over = threading.Event()
        with self._lock:
            self._runs[threading.get_ident()] = over
        try:
            yield
        finally:
            with self._lock:
                del self._runs[threading.get_ident()]
            over.set()


class Jobs:
    """What each job does, in steps between which it can stop."""

    def __init__(self, consolidating: Consolidating, follower: Follower) -> None:
        self._consolidating = consolidating
        self._follower = follower

    def all(self) -> list[Job]:
        """The jobs, in the order they run in if all are due."""
        return [Job("directory", self.directory), Job("embed", self.embed), Job("consolidate", self.consolidate)]

    def directory(self, turn: Turn) -> Outcome:
        """Follow the log."""
        while not self._consolidating.projector.catch_up(time.monotonic() + STEP_S) and turn.go_on():
            turn.beat()
        return Outcome()

    def embed(self, turn: Turn) -> Outcome:
        """Let the follower embed what waits, if no other process does."""

        def go_on() -> bool:
            turn.beat()
            return turn.go_on()

        self._follower.catch_up(go_on, EMBED_S)
        return Outcome()

    def consolidate(self, turn: Turn) -> Outcome:
        """Do what is due, until nothing is."""
        done = self._consolidating.run(None, Ask(until_idle=True, go_on=turn.go_on, progress=lambda _: turn.beat()))
        return outcome_of(done)


def outcome_of(done: Consolidation) -> Outcome:
    """How a run fared. It failed if windows did and none was made."""
    failed = [window for session in done.sessions for window in session.failed]
    if failed:
        told = f"{len(failed):,} windows were not summarized; the last: the summarizer {failed[-1].problem}"
        return Outcome(failed=not done.windows, remark=told)
    return Outcome(remark=None if done.stopped == spending.STOPPED else done.stopped)


# -- how it fares --------------------------------------------------------------------------------------------------------------


def status(parts: Parts, consolidating: Consolidating, follower: Follower) -> WorkStatus:
    """How the work fares. Reads, and changes nothing."""
    database, tenant, now = parts.database, parts.keyring.tenant, parts.clock()
    book = consolidating.book.read()
    directory_lag, embedding_lag = consolidating.projector.lag().events, follower.lag()
    sessions_due = len(consolidating.directory.due(now, book.version, soonest(book), DUE_MAX))
    due = {"consolidate": sessions_due, "embed": embedding_lag, "directory": directory_lag}
    noted = jobnotes.noted(database, tenant)
    today = now.astimezone(UTC).date()
    spent_today = spending.spent(database, tenant, since=today, until=today)
    spent = spending.spent(database, tenant, since=EVER[0], until=EVER[1])
    parked = consolidating.parked()
    return WorkStatus(
        jobs=tuple(
            job_status(name, due[name], noted.get(name), jobnotes.has_worker(database, tenant, name)) for name in DEFAULTS
        ),
        directory_lag=directory_lag,
        embedding_lag=embedding_lag,
        summarizer=_summarizer(consolidating),
        tokens_today=spent_today.tokens,
        tokens=spent.tokens,
        cost_today=spent_today.cost,
        cost=spent.cost,
        parked={job: sum(each.job == job for each in parked) for job in sorted({each.job for each in parked})},
        near_limits=(*_near_caps(parts, spent_today), *_near_sizes(parts, consolidating)),
    )


def job_status(name: str, due: int, noted: JobNotes | None, has_worker: bool) -> JobStatus:
    """What is noted of a job, as far as it still holds: a worker that died has told nobody."""
    return JobStatus(
        name=name,
        due=due,
        has_worker=has_worker,
        running=bool(noted and noted.running and has_worker),
        last_started_at=noted.last_started_at if noted else None,
        last_finished_at=noted.last_finished_at if noted else None,
        next_at=noted.next_at if noted and has_worker else None,
        beat_at=noted.beat_at if noted else None,
        runs=noted.runs if noted else 0,
        failures=noted.failures if noted else 0,
        reason=noted.reason if noted else None,
    )


def _summarizer(consolidating: Consolidating) -> str | None:
    try:
        return consolidating.summarizer.name
    except SettingsError:  # whoever summarizes is told; whoever asks how things are wants to know the rest
        return None


def _near_caps(parts: Parts, today: Usage) -> list[NearLimit]:
    caps = spending.caps_of(parts.settings)
    found = [("llm_tokens_a_day_max", today.tokens, caps.tokens_a_day), ("llm_cost_a_day_max", today.cost, caps.cost_a_day)]
    return [
        NearLimit(limit=limit, used=used, allowed=allowed, session_id=None)
        for limit, used, allowed in found
        if allowed is not None and used >= NEAR_SHARE * allowed
    ]


def _near_sizes(parts: Parts, consolidating: Consolidating) -> list[NearLimit]:
    """The sessions that hold nearly as many memories as they may, the largest first, as far as the directory knows."""
    book = consolidating.book.read()
    policies = [resolved(None, book.tenant), *(resolved(policy, book.tenant) for policy in book.sessions.values())]
    limits = [limit for policy in policies if (limit := policy.retention.session_memories_max)]
    if not limits:
        return []
    largest = consolidating.directory.largest(int(NEAR_SHARE * min(limits)), NEAR_MAX)
    refs = parts.keyring.sessions_of_streams({stream for stream, _ in largest})
    found = []
    for stream, memories in largest:
        allowed = book.of(stream).of(None).retention.session_memories_max
        if stream in refs and allowed and memories >= NEAR_SHARE * allowed:
            name = refs[stream].session_id
            found.append(NearLimit(limit="session_memories_max", used=memories, allowed=allowed, session_id=name))
    return found


__all__ = ["DEFAULTS", "Jobs", "Parts", "Stop", "Working", "schedules", "status"]
