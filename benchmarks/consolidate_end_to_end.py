"""How many windows does a run of the consolidator get through in a second, and where does the time go?

Sessions of 24 texts of 40 words, two days old, all of them due; the newest eight of each stay, so that each has two windows of
eight. One run over all sessions: catching up with the log, asking the directory what is due, looking at each session, choosing,
summarizing extractively, appending. Then a run that finds nothing due but catches up with what the first wrote, and one that
does not even have that. The parts are timed on one thread within the first run; what the server does meanwhile is in them.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from common import MASTER_KEY, RandomVectors, Report, Server, options, prose, server, without_embedding

from memfold import MemoryStore
from memfold.consolidator.extractive import ExtractiveSummarizer
from memfold.embedding import Encoder
from memfold.minilm import default_count_tokens, static_embedder
from memfold.model import Consolidation
from memfold.policies import Keep, Policy, Windows

MEMORIES, NEWEST = 24, 8
POLICY = Policy(windows=Windows(memories_max=8, tokens_max=4_000), keep=Keep(newest=NEWEST))


class Clock:
    """The time that the store is told."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        """Now."""
        return self.now


class Timers:
    """How long some methods took, by what they do; one that is called by another counts for both."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def on(self, owner: Any, method: str, what: str) -> None:
        """Time a method of an object from now on. Only benchmarks may."""
        call: Callable[..., Any] = getattr(owner, method)

        def timed(*args: Any, **named: Any) -> Any:
            begun = time.perf_counter()
            try:
                return call(*args, **named)
            finally:
                self.seconds[what] += time.perf_counter() - begun
                self.calls[what] += 1

        setattr(owner, method, timed)


def filled(at: Server, sessions: int, clock: Clock) -> MemoryStore:
    """A store with so many sessions that are due."""
    count = default_count_tokens()
    summarizer = ExtractiveSummarizer(Encoder(static_embedder()), count)
    store = MemoryStore(
        at.database("consolidated"), master_key=MASTER_KEY, embedder=RandomVectors(), clock=clock, summarizer=summarizer
    )
    without_embedding(store)
    contents = prose(MEMORIES * 50)
    for number in range(sessions):
        begin = number % 50 * MEMORIES
        store.remember_many(contents[begin : begin + MEMORIES], session_id=f"session-{number}")
    store.set_policy(POLICY)
    clock.now += timedelta(days=2)
    return store


def timers(store: MemoryStore) -> Timers:
    """Timers on the parts of a run."""
    found, parts = Timers(), store._consolidating
    consolidator = parts.runner._consolidator
    found.on(parts.projector, "catch_up", "the directory catches up with the log")
    found.on(parts.directory, "due", "the directory says what is due")
    found.on(parts.directory, "parked", "the directory says what failed before")
    found.on(parts.directory, "examined", "the directory is told when a session is due again")
    found.on(parts.book, "read", "policies are read")
    found.on(consolidator, "look", "looks at a session")
    found.on(consolidator, "_sources", "words of a window's sources")
    found.on(parts.summarizer, "summarize", "summarizing")
    found.on(consolidator, "_append", "sealing and appending")
    return found


def timed(store: MemoryStore) -> tuple[Consolidation, float]:
    """A run, and how many seconds it took."""
    begun = time.perf_counter()
    done = store.consolidate()
    return done, time.perf_counter() - begun


def main() -> None:
    """Measure and print."""
    args = options(__doc__, sessions=1_000)
    sessions = 20 if args.quick else args.sessions
    report, clock = Report(__doc__, args), Clock()
    with server() as at, filled(at, sessions, clock) as store:
        at.analyze("consolidated")
        parts = timers(store)
        done, seconds = timed(store)
        windows = [window for session in done.sessions for window in session.windows]
        tokens = sum(window.tokens_before for window in windows)
        spent = dict(parts.seconds)
        (_, catching_up_s), (empty, idle_s) = timed(store), timed(store)
        report.table(
            ("sessions due", "windows", "tokens read", "seconds", "windows/s", "tokens/s", "the next run, ms", "one more, ms"),
            [
                (
                    f"{len(done.sessions):,}",
                    f"{len(windows):,}",
                    f"{tokens:,}",
                    f"{seconds:.1f}",
                    f"{len(windows) / seconds:,.0f}",
                    f"{tokens / seconds:,.0f}",
                    f"{catching_up_s * 1000:,.0f}",
                    f"{idle_s * 1000:.0f} ({len(empty.sessions)} sessions)",
                )
            ],
        )
        rows = [
            (what, f"{parts.calls[what]:,}", f"{took / seconds:.0%}", f"{took / parts.calls[what] * 1000:.2f}")
            for what, took in sorted(spent.items(), key=lambda each: -each[1])
        ]
        rest = seconds - sum(spent.values())
        report.table(("part of the run", "calls", "share", "ms a call"), [*rows, ("the rest", "", f"{rest / seconds:.0%}", "")])
        report.machine(at)


if __name__ == "__main__":
    main()
