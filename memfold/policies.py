"""What the consolidator may do, as data: which old memories become a summary, which fade, which are not kept, which are
never touched.

A policy is of a tenant, of a category or of a session, and a section that it leaves out is inherited: a session's from its
category's, from the tenant's, from `DEFAULT`. Every time is a `timedelta`; in JSON an ISO 8601 duration such as "P7D".
"""

from datetime import timedelta
from typing import Any

import msgspec

DAY = timedelta(days=1)


class Section(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A part of a policy."""


class Windows(Section, frozen=True, kw_only=True, omit_defaults=True):
    """Which old memories become a summary together: a contiguous run of a session.

    - `older_than`: since a memory was remembered, or restored.
    - `memories_min`, `memories_max`: of a window. A run that is shorter waits for more, unless `pause` ended it.
    - `pause`: of this length between two memories ends a window.
    - `tokens_max`: of a window, counted as `context` counts.
    - `target`: the summary's share of the window's tokens.
    """

    enabled: bool = True
    older_than: timedelta = DAY
    memories_min: int = 4
    memories_max: int = 12
    pause: timedelta = timedelta(hours=4)
    tokens_max: int = 2_000
    target: float = 0.25


class Keep(Section, frozen=True, kw_only=True, omit_defaults=True):
    """Which memories are never summarized, faded or expired.

    - `importance_min`: those at least so important; None: no memory for its importance.
    - `categories`, `tags`: those of one of these; `tags` of themselves pin a memory.
    - `memory_ids`: these.
    - `newest`: so many of each session that were remembered last.
    """

    importance_min: float | None = 0.9
    categories: tuple[str, ...] = ()
    tags: tuple[str, ...] = ("pinned",)
    memory_ids: tuple[str, ...] = ()
    newest: int = 20


class Retention(Section, frozen=True, kw_only=True, omit_defaults=True):
    """What is not kept: it is forgotten for good, as by `forget`. None is no limit.

    - `max_age`: of every memory, since it was remembered; `ttl`: of those of a category, in place of `max_age`.
    - `session_memories_max`, `session_bytes_max`, `user_memories_max`, `user_bytes_max`: beyond these the oldest go. Bytes are
      those of the content in UTF-8.
    """

    max_age: timedelta | None = None
    ttl: dict[str, timedelta] = {}
    session_memories_max: int | None = None
    session_bytes_max: int | None = None
    user_memories_max: int | None = None
    user_bytes_max: int | None = None


class Fading(Section, frozen=True, kw_only=True, omit_defaults=True):
    """How memories that nobody needs leave default recall; one event brings them back.

    A memory's strength halves every `half_life` x (importance / (1 - importance))^2, the odds of its importance squared: with
    30 days, importance 0.5 takes 30 days, 0.2 takes 2, and 0.95 takes 30 years. Below `strength_min` it is archived.
    """

    enabled: bool = False
    half_life: timedelta = timedelta(days=30)
    strength_min: float = 0.1


class Policy(Section, frozen=True, kw_only=True, omit_defaults=True):
    """What the consolidator may do with some memories; a section that is None is inherited."""

    windows: Windows | None = None
    keep: Keep | None = None
    retention: Retention | None = None
    fading: Fading | None = None


DEFAULT = Policy(windows=Windows(), keep=Keep(), retention=Retention(), fading=Fading())
"""What holds where nothing was set."""


def resolved(*layers: Policy | None) -> Policy:
    """One policy from several, the most specific first; what none of them says is as in `DEFAULT`."""
    sections: dict[str, Any] = {}
    for layer in (*layers, DEFAULT):
        for name in Policy.__struct_fields__:
            section = getattr(layer, name) if layer else None
            if section is not None:
                sections.setdefault(name, section)
    return Policy(**sections)
