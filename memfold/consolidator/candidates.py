"""What the consolidator knows of a memory before it decides anything: counts, times and labels, no words."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from memfold.policies import Policies

NEVER = datetime.max.replace(tzinfo=UTC)


class Candidate(NamedTuple):
    """One memory of a session.

    `event_id` is its newest content event. `since` is when it was remembered, or restored. `level` is 0 of a memory, 1 of a
    summary of memories, 2 of a summary of those; `made_from` are its direct sources. `remembered_at` (if it differs
    from `since`) is what retention counts from, and `refreshed_at` (if it was) what fading counts from.
    """

    memory_id: bytes
    event_id: bytes
    since: datetime
    tokens: int
    size_bytes: int
    importance: float
    category: str | None
    tags: tuple[str, ...]
    level: int
    occurred_at: datetime
    remembered_at: datetime | None = None
    refreshed_at: datetime | None = None
    archived: bool = False
    made_from: tuple[bytes, ...] = ()

    @property
    def remembered(self) -> datetime:
        """When it was remembered, whatever happened since."""
        return self.remembered_at or self.since

    @property
    def used(self) -> datetime:
        """When it was of use last: remembered, restored or refreshed."""
        return max(self.since, self.refreshed_at or self.since)


def is_kept(candidate: Candidate, policies: Policies) -> bool:
    """Whether a policy protects a memory for what it is: its importance, category, tags or id."""
    keep = policies.of(candidate.category).keep
    return keep.protects(candidate.memory_id, candidate.importance, candidate.category, candidate.tags)


def newest(candidates: Sequence[Candidate], policies: Policies) -> set[bytes]:
    """The memories of a session, given in its order, that are protected because they came last. Summaries do not count."""
    found = set()
    last_first: Iterable[Candidate] = (each for each in reversed(candidates) if each.level == 0 and not each.archived)
    for rank, candidate in enumerate(last_first):
        if rank < policies.of(candidate.category).keep.newest:
            found.add(candidate.memory_id)
    return found


def later(at: datetime, by: timedelta) -> datetime:
    """A time after another, or NEVER where the calendar ends."""
    try:
        return at + by
    except OverflowError:
        return NEVER
