"""Timing a call over and over, on one thread or many, and texts to remember.

Standard library only: the peers' workers use it too.
"""

import functools
import itertools
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

VOCABULARY = """
garden river morning coffee train letter window summer piano kitchen travel doctor ticket bridge yellow market
brother festival camera mountain birthday science painting winter library concert recipe harbor teacher blanket
"""
TEXT_CHARACTERS = 100


class Sample(NamedTuple):
    """What one contender did in one round: things a second, and how long each call took."""

    rate: float
    latencies_ms: list[float]


def texts() -> Iterator[str]:
    """Endless sentences of exactly 100 characters, the same for every contender, made before any clock starts."""
    return itertools.cycle(_lines())


@functools.cache
def _lines(count: int = 1000) -> list[str]:
    rand, words = random.Random(1), VOCABULARY.split()
    lines = (" ".join(rand.choices(words, k=20)) for _ in range(count))
    return [line[: TEXT_CHARACTERS - 1].ljust(TEXT_CHARACTERS - 1, "x") + "." for line in lines]


def questions(sessions: int, queries: list[str]) -> Iterator[tuple[str, str]]:
    """Endless (session, query): every session in turn, and every query."""
    return zip((f"session-{number}" for number in itertools.cycle(range(sessions))), itertools.cycle(queries), strict=False)


def repeat(call: Callable[[], object], seconds: float, *, amount: int = 1) -> Sample:
    """Make a call again and again for `seconds`; each does `amount` things."""
    clock = time.perf_counter
    latencies: list[float] = []
    begun = before = clock()
    while before - begun < seconds:
        call()
        after = clock()
        latencies.append((after - before) * 1000)
        before = after
    return Sample(amount * len(latencies) / (before - begun), latencies)


def on_threads(calls: list[Callable[[], object]], seconds: float) -> Sample:
    """Make each call again and again on a thread of its own, all at once, for `seconds`."""
    samples: list[Sample] = []
    errors: list[BaseException] = []
    barrier = threading.Barrier(len(calls) + 1)

    def work(call: Callable[[], object]) -> None:
        try:
            call()  # connections and plans are warm when the clock starts
            barrier.wait()
            samples.append(repeat(call, seconds))
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(call,)) for call in calls]
    for thread in threads:
        thread.start()
    begun = time.perf_counter()
    try:
        barrier.wait()
        begun = time.perf_counter()
    except threading.BrokenBarrierError:
        pass
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    latencies = [latency for sample in samples for latency in sample.latencies_ms]
    return Sample(len(latencies) / (time.perf_counter() - begun), latencies)
