"""The facts a log is made of.

An event is never changed once a release has stored it: a field may be added with a default; anything else is a new
schema version with an upcast in `eventstore/codec.py`, and one stored payload of every version stays in `tests/golden/`.

`TYPES` gives each event its number in the spine. Numbers are never used again.
"""

from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The root of all events. Its `repr` shows the type alone: an event may hold somebody's words."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __rich_repr__(self) -> Any:
        return iter(())


class MemoryRemembered(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A memory came to be. `occurred_at` None means: when it was recorded."""

    content: str
    role: str | None = None
    speaker: str | None = None
    category: str | None = None
    importance: float = 0.5
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    occurred_at: datetime | None = None


class MemoryUpdated(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Fields of a memory got new values; what is unset stayed as it was."""

    content: str | UnsetType = UNSET
    role: str | UnsetType | None = UNSET
    speaker: str | UnsetType | None = UNSET
    category: str | UnsetType | None = UNSET
    importance: float | UnsetType = UNSET
    tags: tuple[str, ...] | UnsetType = UNSET
    metadata: dict[str, Any] | UnsetType = UNSET


class MemoryMerged(Event, frozen=True, kw_only=True, omit_defaults=True):
    """Something was said again: it was taken for a duplicate of this memory, and merged into it.

    `content` and `speaker` are what was said this time; the memory keeps its own. Its tags and metadata gain those it did
    not have, and its importance rises to this one.
    """

    content: str
    role: str | None = None
    speaker: str | None = None
    category: str | None = None
    importance: float = 0.5
    tags: tuple[str, ...] = ()
    metadata: dict[str, Any] = {}
    occurred_at: datetime | None = None


class MemoryForgotten(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A memory was forgotten: the keys of everything it ever held were deleted in the same transaction."""

    reason: str | None = None


class SessionForgotten(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A session was forgotten; this is the last event of its stream."""


class UserForgotten(Event, frozen=True, kw_only=True, omit_defaults=True):
    """A user was forgotten with every session; stands in the tenant's own stream."""

    streams: tuple[str, ...] = ()


TYPES: dict[int, type[Event]] = {
    1: MemoryRemembered,
    2: MemoryUpdated,
    3: MemoryForgotten,
    4: SessionForgotten,
    5: UserForgotten,
    6: MemoryMerged,
}
NUMBERS: dict[type[Event], int] = {event: number for number, event in TYPES.items()}
