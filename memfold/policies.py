"""What the consolidator may do, as data: which old memories become a summary, which fade, which are not kept, and which are
never touched.

A policy is of a tenant, of a category or of a session, and a section that it leaves out is inherited: a session's from its
category's, from the tenant's, from `DEFAULT`. `Retention` is inherited value by value: whoever limits one session does not
lift the tenant's `max_age` by it. Every time is a `timedelta`; in JSON an ISO 8601 duration such as "P7D". `rules.py` says
what makes sense.
"""

from collections.abc import Collection, Mapping
from datetime import timedelta
from functools import cached_property
from typing import Any
from uuid import UUID

import msgspec

DAY = timedelta(days=1)


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a policy."""


class Windows(Section, frozen=True, kw_only=True):
    """Which old memories become a summary together: a contiguous run of a session.

    - `older_than`: since a memory was remembered, or restored.
    - `memories_min`, `memories_max`: of a window. A run that is shorter waits for more, unless `pause` ended it.
    - `pause`: of this length between two memories, or after the last, ends a window.
    - `tokens_max`: of a window, counted as `context` counts. A memory that is longer by itself stays as it is.
    - `target`: the summary's share of the window's tokens.
    - `depth_max`: summaries are summarized again, up to summaries of this depth: days into weeks into months. 1: they are not.
    """

    enabled: bool = True
    older_than: timedelta = DAY
    memories_min: int = 4
    memories_max: int = 8
    pause: timedelta = timedelta(hours=4)
    tokens_max: int = 2_000
    target: float = 0.25
    depth_max: int = 4


class Keep(Section, frozen=True, kw_only=True, dict=True):
    """Which memories are never summarized, faded or expired.

    - `importance_min`: those at least so important; None: no memory for its importance.
    - `categories`, `tags`: those of one of these; `tags` of themselves pin a memory.
    - `memory_ids`: these.
    - `newest`: so many of each session that were remembered last. They are not summarized, do not fade and count against no
      limit of number or bytes first; but `max_age` and `ttl` hold for them too, or a session that nobody goes on with would
      keep them for ever.
    """

    importance_min: float | None = 0.9
    categories: tuple[str, ...] = ()
    tags: tuple[str, ...] = ("pinned",)
    memory_ids: tuple[str, ...] = ()
    newest: int = 20

    @cached_property
    def _pins(self) -> frozenset[bytes]:
        return frozenset(UUID(memory_id).bytes for memory_id in self.memory_ids)

    def protects(self, memory_id: bytes, importance: float, category: str | None, tags: Collection[str]) -> bool:
        """Whether a memory is kept for what it is; whether it is among the newest, its session knows."""
        return (
            (self.importance_min is not None and importance >= self.importance_min)
            or category in self.categories
            or any(tag in self.tags for tag in tags)
            or memory_id in self._pins
        )


class Retention(Section, frozen=True, kw_only=True):
    """What is not kept: it is forgotten for good, as by `forget`. None is no limit.

    - `max_age`: of every memory, since it was remembered; `ttl`: of those of a category, in place of `max_age`.
    - `session_memories_max`, `session_bytes_max`, `user_memories_max`, `user_bytes_max`: beyond these the oldest go. Archived
      memories count, summaries do not: they go with what they were made from. Bytes are those of the content in UTF-8.
    """

    max_age: timedelta | None = None
    ttl: dict[str, timedelta] = {}
    session_memories_max: int | None = None
    session_bytes_max: int | None = None
    user_memories_max: int | None = None
    user_bytes_max: int | None = None


class Fading(Section, frozen=True, kw_only=True):
    """How memories that nobody needs leave default recall; one event brings them back.

    A memory's strength halves every `half_life` x (importance / (1 - importance))^2, the odds of its importance squared: with
    30 days, importance 0.5 takes 30 days, 0.2 takes 2, and 0.95 takes 30 years. Below `strength_min` it is archived.
    """

    enabled: bool = False
    half_life: timedelta = timedelta(days=30)
    strength_min: float = 0.1


class Policy(Section, frozen=True, kw_only=True):
    """What the consolidator may do with some memories; a section that is None is inherited."""

    windows: Windows | None = None
    keep: Keep | None = None
    retention: Retention | None = None
    fading: Fading | None = None


class Effective(Section, frozen=True, kw_only=True):
    """What holds for some memories, nothing left to inherit."""

    windows: Windows = Windows()
    keep: Keep = Keep()
    retention: Retention = Retention()
    fading: Fading = Fading()


DEFAULT = Policy(windows=Windows(), keep=Keep(), retention=Retention(), fading=Fading())
"""What holds where nothing was set."""


class Policies:
    """The policies that meet in a session: the tenant's, those of categories, and the session's own. Never changed."""

    def __init__(
        self,
        tenant: Policy | None = None,
        categories: Mapping[str, Policy] | None = None,
        session: Policy | None = None,
    ) -> None:
        self.tenant = tenant
        self.categories = dict(categories or {})
        self.session = session
        self._lives = dict(tenant.retention.ttl) if tenant and tenant.retention else {}
        self._known: dict[str | None, Effective] = {}

    def of(self, category: str | None) -> Effective:
        """What holds for memories of a category in this session.

        Its `retention.max_age` is theirs, be it from the session, from their category's policy, or from the tenant's `ttl`.
        """
        named = category if category in self.categories or category in self._lives else None
        if named not in self._known:
            self._known[named] = self._resolved(named)
        return self._known[named]

    def _resolved(self, category: str | None) -> Effective:
        tenant, own = self.tenant, None
        if category is not None:
            own = self.categories.get(category)
            life = self._lives.get(category)
            if life is not None and tenant is not None and tenant.retention is not None:
                tenant = msgspec.structs.replace(tenant, retention=msgspec.structs.replace(tenant.retention, max_age=life))
        return resolved(self.session, own, tenant)


def resolved(*layers: Policy | None) -> Effective:
    """One policy from several, the most specific first; what none of them says is as in `DEFAULT`."""
    said = [layer for layer in layers if layer is not None]
    sections: dict[str, Any] = {}
    for name in ("windows", "keep", "fading"):
        section = next((getattr(layer, name) for layer in said if getattr(layer, name) is not None), None)
        if section is not None:
            sections[name] = section
    retention = _retained([layer.retention for layer in said if layer.retention is not None])
    return Effective(retention=retention, **sections)


def _retained(layers: list[Retention]) -> Retention:
    values: dict[str, Any] = {}
    for layer in reversed(layers):
        said = {name: getattr(layer, name) for name in Retention.__struct_fields__ if getattr(layer, name) is not None}
        values |= said | {"ttl": {**values.get("ttl", {}), **layer.ttl}}
    return Retention(**values)


def dump(policy: Policy | Effective) -> dict[str, Any]:
    """A policy as JSON shows it: every value of the sections it has, defaults too; durations as in "P7D"."""
    sections = {name: getattr(policy, name) for name in policy.__struct_fields__}
    return {name: _shown(section) for name, section in sections.items() if section is not None}


def _shown(section: Section) -> dict[str, Any]:
    return {name: _plain(getattr(section, name)) for name in section.__struct_fields__}


def _plain(value: Any) -> Any:
    if isinstance(value, timedelta):
        return _duration(value)
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return msgspec.to_builtins(value)


def _duration(value: timedelta) -> str:
    """As people write it: "PT4H", where msgspec would say "PT14400S"."""
    minutes, seconds = divmod(value.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    second = f"{seconds}.{value.microseconds:06d}".rstrip("0").rstrip(".") if value.microseconds else str(seconds)
    time = "".join(f"{count}{unit}" for count, unit in ((hours, "H"), (minutes, "M"), (second, "S")) if count not in (0, "0"))
    days = f"{value.days}D" if value.days or not time else ""
    return f"P{days}{f'T{time}' if time else ''}"
