"""How much longer do remember and recall take while the consolidator runs?

One process remembers and recalls in turn, on one thread, so many of each a second, in sessions of 1,000 memories. Another has
the same tenant open and consolidates sessions that are due: `consolidate(until_idle=True)`, over and over. In pairs of rounds,
in changing order, both do and only the first does; a ratio is taken within each pair. What is due is filled in beforehand.
Vectors are random, so that no encoder's time is in the figures; the extractive summarizer uses the static model, as always.
*At work*: the share of its rounds in which the consolidator had something to do.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import cycle
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from common import (
    MASTER_KEY,
    Bar,
    RandomVectors,
    Report,
    Spread,
    fill,
    options,
    percentile,
    prose,
    queries,
    server,
    spread,
    without_embedding,
)

from memfold import MemoryStore
from memfold.model import SessionConsolidation
from memfold.policies import Keep, Policy, Windows

SESSIONS, MEMORIES = 10, 1_000
DUE_MEMORIES = 40  # of each session that is due
POLICY = Policy(keep=Keep(newest=8))
NEVER = Policy(windows=Windows(enabled=False))
SETTLE_S = 0.5  # between the start of the consolidator and that of a round
BAR, P50, P99 = 1.3, 0.5, 0.99
REMEMBER, RECALL = "remember", "recall"

Latencies = dict[str, list[float]]  # in ms, of each verb


class Clock:
    """The time that the consolidator's store is told: now, or some days ahead."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        """Now."""
        return datetime.now(UTC) + self.ahead


class Stopped(Exception):
    """The round is over."""


class Done(NamedTuple):
    """What the consolidator did in a round: windows, and for how many seconds it had something to do."""

    windows: int
    seconds: float


def other_process(url: str, pipe: Connection) -> None:
    """Fill so many sessions, or consolidate until the next message; answer each message."""
    clock, filled = Clock(), 0
    contents = prose(DUE_MEMORIES * 50, seed=3)
    with without_embedding(MemoryStore(url, master_key=MASTER_KEY, embedder=RandomVectors(), clock=clock)) as store:
        for asked in iter(pipe.recv, None):
            clock.ahead = timedelta(0)
            for number in range(filled, filled + asked):
                at = number % 50 * DUE_MEMORIES
                store.remember_many(contents[at : at + DUE_MEMORIES], session_id=f"due-{number}")
            filled += asked
            pipe.send(None)
            clock.ahead = timedelta(days=2)
            if not asked:
                pipe.send(consolidated(store, pipe))


def consolidated(store: MemoryStore, pipe: Connection) -> Done:
    """Consolidate until there is a message, which is taken."""
    windows, busy_s = 0, 0.0

    def progress(done: SessionConsolidation) -> None:
        nonlocal windows
        windows += len(done.windows)
        if pipe.poll():
            raise Stopped

    while not pipe.poll():
        begun, before = time.perf_counter(), windows
        with suppress(Stopped):
            store.consolidate(until_idle=True, progress=progress)
        busy_s += time.perf_counter() - begun if windows > before else 0.0
    pipe.recv()
    return Done(windows, busy_s)


class Consolidator:
    """The other process, as this one sees it."""

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe

    def fill(self, sessions: int) -> None:
        """Let so many sessions more be due."""
        self._ask(sessions)

    @contextmanager
    def at_work(self, told: list[Done]) -> Iterator[None]:
        """It consolidates for as long as this lasts; what it did is told."""
        self._ask(0)
        time.sleep(SETTLE_S)
        try:
            yield
        finally:
            self._pipe.send("stop")
            told.append(self._pipe.recv())

    def _ask(self, message: int) -> None:
        self._pipe.send(message)
        self._pipe.recv()


@contextmanager
def consolidator(url: str) -> Iterator[Consolidator]:
    """The other process."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=other_process, args=(url, there))
    process.start()
    there.close()
    try:
        yield Consolidator(here)
    finally:
        here.send(None)
        process.join()


def foreground(calls: dict[str, Callable[[], object]], each_s: int, seconds: float) -> Latencies:
    """Make the calls in turn, each so often a second; a call that comes late is followed at once by the next."""
    latencies: Latencies = {name: [] for name in calls}
    begun = time.perf_counter()
    for number in range(int(each_s * seconds)):
        time.sleep(max(0.0, begun + number / each_s - time.perf_counter()))
        for name, call in calls.items():
            before = time.perf_counter()
            call()
            latencies[name].append((time.perf_counter() - before) * 1000)
    return latencies


def calls_of(store: MemoryStore) -> dict[str, Callable[[], object]]:
    """Remember the next text, and ask the next question, in each session in turn."""
    names = [f"session-{number}" for number in range(SESSIONS)]
    contents, asked = cycle(prose(5_000, seed=4)), cycle(queries(500))
    there, asked_in = cycle(names), cycle(names)
    return {
        REMEMBER: lambda: store.remember(next(contents), session_id=next(there)),
        RECALL: lambda: store.recall(next(asked), session_id=next(asked_in)),
    }


def ratios(pairs: list[tuple[Latencies, Latencies]], verb: str, share: float) -> Spread:
    """How many times as long a verb takes with the consolidator at work, within each pair of rounds."""
    return spread([percentile(busy[verb], share) / percentile(quiet[verb], share) for busy, quiet in pairs])


def rows(pairs: list[tuple[Latencies, Latencies]]) -> Iterator[tuple[Any, ...]]:
    """What each verb took in which rounds."""
    for at, name in enumerate(("consolidator at work", "consolidator at rest")):
        for verb in (REMEMBER, RECALL):
            found = [pair[at][verb] for pair in pairs]
            yield (verb, name, *(spread([percentile(each, share) for each in found]) for share in (P50, P99)))


def main() -> None:
    """Measure and print."""
    args = options(__doc__, pairs=7, seconds=8.0, each_s=20, due=400)
    count, seconds, due = (2, 1.0, 20) if args.quick else (args.pairs, args.seconds, args.due)
    report = Report(__doc__, args)
    pairs: list[tuple[Latencies, Latencies]] = []
    told: list[Done] = []
    with server() as at, without_embedding(at.store("foreground", embedder=RandomVectors())) as store:
        fill(store, sessions=SESSIONS, memories=MEMORIES, contents=iter(prose(SESSIONS * MEMORIES)))
        store.set_policy(POLICY)
        for number in range(SESSIONS):
            store.set_policy(NEVER, session_id=f"session-{number}")
        at.analyze("foreground")
        calls = calls_of(store)
        with consolidator(at.url("foreground")) as other:
            other.fill(due)
            with other.at_work([]):
                foreground(calls, args.each_s, seconds)  # the directory catches up, and what is loaded late is loaded
            for number in range(count):
                other.fill(due)
                for is_busy in (number % 2 == 0, number % 2 == 1):
                    if is_busy:
                        with other.at_work(told):
                            busy = foreground(calls, args.each_s, seconds)
                    else:
                        quiet = foreground(calls, args.each_s, seconds)
                pairs.append((busy, quiet))
        report.table((f"{count} pairs of rounds", "", "p50 ms", "p99 ms"), rows(pairs))
        bars = [Bar(f"{verb}, p50", ratios(pairs, verb, P50), BAR, at_most=True) for verb in (REMEMBER, RECALL)]
        bars += [Bar(f"{verb}, p99", ratios(pairs, verb, P99)) for verb in (REMEMBER, RECALL)]
        report.bars(bars, "at work / at rest, within a pair")
        rounds_s = seconds + SETTLE_S
        report.note(
            f"Load: {args.each_s} remembers and {args.each_s} recalls a second on one thread. The consolidator made "
            f"{spread([done.windows / rounds_s for done in told])} windows a second, and was at work "
            f"{spread([min(1.0, done.seconds / rounds_s) for done in told])} of the time."
        )
        report.machine(at)


if __name__ == "__main__":
    main()
