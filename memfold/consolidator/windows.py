"""Which old memories of a session become a summary together, and from when on: pure, and the same whenever it is asked.

The memories of one level (0 what was remembered, 1 summaries of it, and so on) that live under the same `Windows` are a
sequence. What lies between two of them is stepped over: a memory that `Keep` protects, one that is longer than a window may
be, one of another level or under another policy. A pinned turn stays word for word beside the summary of the talk around it;
were it to end the window, one pin in ten would cut a talk into windows too short to be worth a summary.

A pause ends a run of the sequence, if the run has enough for a window; else it goes on, so that what is said once a day is
summarized too. A memory that is too young, or among the newest, is not stepped over: the run waits for it. Only a restored
memory is younger than what follows it, and it is to be summarized where it stands, not to be left alone in a gap.

A run is cut from its oldest memory on. A window is full at `memories_max` or `tokens_max`, and is cut off once `memories_min`
more memories of its run are old enough too: these can stand alone. The end of a run becomes one window, or two of nearly the
same length; so 13 with at most 12 are 7 and 6, not 12 and 1. An end is known by the pause after it. So a window that was
given once is given again, whatever is remembered later, until it is archived or a source of it is gone.

A summary dies with the first of what it was made from. So a window that would lose one soon is not summarized any more: its
summary is to live as long as its level waits to be summarized, and as long as its sources take to go. Else, at the edge of
`max_age` or `session_memories_max`, the oldest of every level would be made anew each day, to die the next.

One thing is less firm: where nobody goes on with a session, its newest memories stay protected for ever, and the run before
them ends when a pause has passed. Should it go on after all, that end may be cut anew.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from itertools import accumulate, pairwise
from typing import NamedTuple

from memfold.consolidator import fading
from memfold.consolidator.candidates import NEVER, Candidate, is_kept, later, newest
from memfold.consolidator.fading import Leaving
from memfold.policies import DAY, Policies, Windows

TALK_MEMORIES_MIN = 2  # a talk that a pause ended becomes a summary from so many memories on
WORTH_TOKENS = 32  # what has fewer is not worth a summary by itself
TARGET_TOKENS_MIN = 16  # nothing can be said in fewer
LEVEL_FACTOR = 7  # a summary is to be so much older than what it was made from: days into weeks into months

ALREADY = datetime.min.replace(tzinfo=UTC)


class Chosen(NamedTuple):
    """A window: its memories in order, from when on it may be summarized, and in how many tokens at most."""

    sources: tuple[Candidate, ...]
    ready_at: datetime
    target_tokens: int

    @property
    def tokens(self) -> int:
        """How many tokens its memories have."""
        return sum(source.tokens for source in self.sources)

    @property
    def level(self) -> int:
        """The level of the summary to be."""
        return self.sources[0].level + 1


class Run(NamedTuple):
    """Memories between two pauses, when each is old enough, and when it is known that no more will follow."""

    memories: list[Candidate]
    ready: list[datetime]
    ends_at: datetime
    silent_at: datetime


def choose(candidates: Sequence[Candidate], policies: Policies, now: datetime) -> list[Chosen]:
    """The windows of a session, given in its order, that may be summarized now: of memories first, the oldest first."""
    leaving, found = fading.leaving(candidates, policies), planned(candidates, policies)
    return [window for window in found if window.ready_at <= now and _pays(window, leaving, policies, now)]


def due_at(candidates: Sequence[Candidate], policies: Policies, now: datetime = ALREADY) -> datetime | None:
    """When `choose` gives a window first, if it is `now` and nothing more is remembered; None: never. It may be in the past."""
    leaving, found = fading.leaving(candidates, policies), planned(candidates, policies)
    return min((each.ready_at for each in found if _pays(each, leaving, policies, max(now, each.ready_at))), default=None)


def key(sources: Sequence[bytes], policy_version: int, undone_version: int) -> str:
    """What a window is known by, so that it is summarized once: its content events in any order, the version of the policies,
    and that of the last restoring or withdrawal among them."""
    if not sources:
        raise ValueError("a window has sources")
    return sha256(b"%d:%d:" % (policy_version, undone_version) + b"".join(sorted(sources))).hexdigest()


def planned(candidates: Sequence[Candidate], policies: Policies) -> list[Chosen]:
    """Every window that will come of these memories, each with its time, if nothing more is remembered."""
    active = [candidate for candidate in candidates if not candidate.archived]
    last = newest(active, policies)
    return [
        window
        for level in sorted({candidate.level for candidate in active})
        for window in _of_level([candidate for candidate in active if candidate.level == level], last, policies)
    ]


def _pays(window: Chosen, leaving: Leaving, policies: Policies, now: datetime) -> bool:
    """Whether a window's summary would live long enough to be worth it."""
    source = window.sources[0]
    times = [leaving.at[each.memory_id] for each in window.sources if each.memory_id in leaving.at]
    places = [leaving.after[each.memory_id] for each in window.sources if each.memory_id in leaving.after]
    least = _age(policies.of(source.category).windows, source.level)
    return (not times or min(times) - now >= max(least, max(times) - min(times))) and (
        not places or min(places) >= max(places) - min(places)
    )


def _of_level(rows: list[Candidate], last: set[bytes], policies: Policies) -> list[Chosen]:
    sequences: dict[Windows, list[int]] = {}
    for place, row in enumerate(rows):
        windows = policies.of(row.category).windows
        if (
            windows.enabled
            and row.level < windows.depth_max
            and row.tokens <= windows.tokens_max
            and not is_kept(row, policies)
        ):
            sequences.setdefault(windows, []).append(place)
    found = [
        window
        for windows, places in sequences.items()
        for run in _runs(rows, places, windows, last)
        for window in _cut(run, windows)
    ]
    order = {row.memory_id: place for place, row in enumerate(rows)}
    return sorted(found, key=lambda window: order[window.sources[0].memory_id])


def _runs(rows: list[Candidate], places: list[int], windows: Windows, last: set[bytes]) -> Iterator[Run]:
    """The sequence at `places` of `rows`, split at its pauses."""
    level = rows[0].level
    pause = windows.pause if level == 0 else _age(windows, level)
    pauses = [place for place, (before, row) in enumerate(pairwise(rows), 1) if _gap(before, row) >= pause]
    silent_at = later(rows[-1].remembered, pause)
    runs: list[list[int]] = [[]]
    tokens = 0
    for place in places:
        if _enough(len(runs[-1]), tokens, level, windows) and _pause_between(pauses, runs[-1][-1], place):
            runs.append([])
            tokens = 0
        runs[-1].append(place)
        tokens += rows[place].tokens
    for run in runs:
        memories = [rows[place] for place in run]
        yield Run(
            memories,
            [NEVER if row.memory_id in last else later(row.since, _age(windows, level)) for row in memories],
            ALREADY if _pause_between(pauses, run[-1], len(rows)) else silent_at,
            silent_at,
        )


def _age(windows: Windows, level: int) -> timedelta:
    """How old memories of a level are to be. Summaries are to be a week old at least, even where memories need not be old."""
    return max(windows.older_than, DAY) * LEVEL_FACTOR**level if level else windows.older_than


def _gap(before: Candidate, row: Candidate) -> timedelta:
    """The time between two memories, as they happened or as they were remembered: what is imported was remembered at once, and
    what comes after a silence may be said to have happened before it."""
    return max(row.occurred_at - before.occurred_at, row.remembered - before.remembered)


def _pause_between(pauses: list[int], before: int, place: int) -> bool:
    """Whether one of the sorted `pauses`, each lying just before a place, comes after `before` and not after `place`."""
    return bisect_right(pauses, place) > bisect_right(pauses, before)


def _enough(memories: int, tokens: int, level: int, windows: Windows) -> bool:
    """Whether what a pause ended may be a window. Nobody waits for the next summary as for the next turn of a talk, so
    summaries are always to be `memories_min`."""
    least = TALK_MEMORIES_MIN if level == 0 else windows.memories_min
    return memories >= least and tokens >= WORTH_TOKENS


def _cut(run: Run, windows: Windows) -> Iterator[Chosen]:
    """The windows of a run, from its oldest memory on."""
    count = next((place for place, ready in enumerate(run.ready) if ready == NEVER), len(run.ready))
    level = run.memories[0].level
    memories, ready = run.memories[:count], list(accumulate(run.ready[:count], max))
    ends_at = max([run.ends_at if count == len(run.memories) else run.silent_at, *ready[-1:]])
    start = 0
    while count - (full := start + _fitting(memories, start, windows)) >= windows.memories_min:
        yield _window(memories[start:full], ready[full + windows.memories_min - 1], windows)
        start = full
    rest = memories[start:]
    if ends_at < NEVER and _enough(len(rest), sum(memory.tokens for memory in rest), level, windows):
        yield from (_window(part, ends_at, windows) for part in _parts(rest, windows))


def _parts(memories: list[Candidate], windows: Windows) -> Iterator[list[Candidate]]:
    """The end of a run as one window, or as two of nearly the same length; as more where tokens force it."""
    while len(memories) > (full := _fitting(memories, 0, windows)):
        cut = _middle(memories, windows) or full
        yield memories[:cut]
        memories = memories[cut:]
    yield memories


def _middle(memories: list[Candidate], windows: Windows) -> int | None:
    """Where to cut memories into two windows that both fit, as near to the middle as can be; None: nowhere."""
    size = len(memories)
    for cut in sorted(range(1, size), key=lambda cut: (abs(2 * cut - size), -cut)):
        if _fitting(memories[:cut], 0, windows) == cut and _fitting(memories, cut, windows) == size - cut:
            return cut
    return None


def _fitting(memories: list[Candidate], start: int, windows: Windows) -> int:
    """How many memories, from `start` on, fit one window: at least one, as none is longer than a window."""
    tokens = 0
    for count, memory in enumerate(memories[start : start + windows.memories_max]):
        tokens += memory.tokens
        if tokens > windows.tokens_max:
            return count
    return min(windows.memories_max, len(memories) - start)


def _window(memories: list[Candidate], ready_at: datetime, windows: Windows) -> Chosen:
    tokens = sum(memory.tokens for memory in memories)
    target = min(tokens // 2, max(int(tokens * windows.target), TARGET_TOKENS_MIN))
    return Chosen(tuple(memories), ready_at, max(target, 1))
