"""The facts a log is made of.

An event is never changed once a release has stored it: a field may be added with a default; anything else is a new
schema version with an upcast in `eventstore/codec.py`, and one stored payload of every version stays in `tests/golden/`.

`TYPES` gives each event its number in the spine. Numbers are never used again.
"""

from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from memfold.policies import Policy


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The root of all events. Its `repr` shows the type alone: an event may hold somebody's words."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __rich_repr__(self) -> Any:
        return iter(())


class Said(Event, frozen=True, kw_only=True, omit_defaults=True):
    """What somebody wants remembered. `occurred_at` None means: when it was recorded."""

    content: str
    role: str | None = None
    speaker: str | None = None
    category: str | None = None
    importance: float = 0.5
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    occurred_at: datetime | None = None


class MemoryRemembered(Said, frozen=True, kw_only=True, omit_defaults=True):
    """A memory came to be."""


class MemoryUpdated(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Fields of a memory got new values; what is unset stayed as it was."""

    content: str | UnsetType = UNSET
    role: str | UnsetType | None = UNSET
    speaker: str | UnsetType | None = UNSET
    category: str | UnsetType | None = UNSET
    importance: float | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class MemoryMerged(Said, frozen=True, kw_only=True, omit_defaults=True):
    """Something was said again: it was taken for a duplicate of this memory, and merged into it.

    `content` and `speaker` are what was said this time; the memory keeps its own. Its tags and metadata gain those it did
    not have, and its importance rises to this one.
    """


class MemoryForgotten(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A memory was forgotten: the keys of everything it ever held were deleted in the same transaction."""

    reason: str | None = None


class SessionForgotten(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A session was forgotten; this is the last event of its stream."""


class UserForgotten(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A user was forgotten with every session; stands in the tenant's own stream."""

    streams: tuple[str, ...] = ()


class WindowCompressed(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A summary of some memories of its session came to be: a memory itself, sealed so that it dies with any of its sources.

    `sources` are the ids of the memories it was made from, in reading order; never empty. `occurred_at` is the time of the
    last of them, `started_at` that of the first. `tokens_before` counts theirs, `tokens_after` those of `content`.
    `summarizer` names who made it, `policy` is the version of the policies it was made under. `prompt_tokens`,
    `completion_tokens` and `cost` are what the summarizer charged.
    """

    content: str
    sources: tuple[str, ...]
    occurred_at: datetime
    started_at: datetime
    summarizer: str
    policy: int
    tokens_before: int
    tokens_after: int
    category: str | None = "summary"
    importance: float = 0.5
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0


class MemoriesArchived(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Memories left default recall: because the summary `summary_id` stands for them, or, without one, because they faded.

    Those that a summary stands for come back when it dies, of whatever.
    """

    memory_ids: tuple[str, ...]
    summary_id: str | None = None
    policy: int = 0


class MemoriesRestored(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Archived memories came back. The summaries `undone`, of which they were the sources, are gone."""

    memory_ids: tuple[str, ...] = ()
    undone: tuple[str, ...] = ()


class MemoriesRefreshed(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Memories were of use: their age, for fading, counts from here."""

    memory_ids: tuple[str, ...]


class PolicySet(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A policy was set, in the tenant's own stream: of the session whose stream is named, of a category, or of the tenant.

    `policy` None takes it away again.
    """

    policy: Policy | None = None
    stream: str | None = None
    category: str | None = None


TYPES: dict[int, type[Event]] = {
    1: MemoryRemembered,
    2: MemoryUpdated,
    3: MemoryForgotten,
    4: SessionForgotten,
    5: UserForgotten,
    6: MemoryMerged,
    7: WindowCompressed,
    8: MemoriesArchived,
    9: MemoriesRestored,
    10: MemoriesRefreshed,
    11: PolicySet,
}
NUMBERS: dict[type[Event], int] = {event: number for number, event in TYPES.items()}
