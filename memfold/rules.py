"""Does a policy make sense? Pure checks of what callers hand in, each with an error that names the path to the fault.

A policy may come as a `Policy` or as JSON has it. What contradicts itself within one policy is refused; what contradicts only
together with another, which may have been set for other memories, holds all the same and is told by `contradictions`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec

from memfold import validation
from memfold.errors import InvalidMemory, PolicyError
from memfold.policies import DAY, Effective, Fading, Keep, Policies, Policy, Retention, Section, Windows, resolved

Owner = Literal["tenant", "category", "session"]

DURATION_MAX = 36_525 * DAY
MEMORY_IDS_MAX = 10_000
LABELS_MAX = 1_000
WINDOW_MEMORIES_MAX = 1_000
WINDOW_TOKENS_MAX = 1_000_000
SUMMARY_TOKENS_MIN = 16
DEPTH_MAX = 8
COUNT_MAX = 2**53  # what JSON keeps exactly

NEVER_GOES = "is of a category that keep.categories never lets go"

SECTIONS: dict[str, type[Section]] = {"windows": Windows, "keep": Keep, "retention": Retention, "fading": Fading}


class Contradiction(NamedTuple):
    """A rule that two policies together break, for memories of a category (None: for all others)."""

    category: str | None
    path: str
    problem: str


def policy(value: object, owner: Owner = "tenant") -> Policy:
    """The policy that `value` means: a `Policy`, or a dict as JSON has it, with durations such as "P7D" or as `timedelta`.

    Raises:
        PolicyError: it makes no sense, contradicts itself, or says what only another owner's policy can.
    """
    given = _fields("policy", value, Policy)
    sections: dict[str, Any] = {name: _section(name, section) for name, section in given.items() if section is not None}
    found = Policy(**sections)
    _check_owner(found, owner)
    for path, problem in _conflicts(resolved(found), {name for name in SECTIONS if getattr(found, name) is not None}):
        raise PolicyError(path, problem)
    return found


def contradictions(policies: Policies) -> list[Contradiction]:
    """What contradicts when the policies that meet in a session, and the defaults, are taken together.

    A category whose memories go before they could be summarized contradicts nothing: they are not worth a summary.
    """
    common = list(_conflicts(policies.of(None), set(SECTIONS)))
    found = [Contradiction(None, path, problem) for path, problem in common]
    for category, policy in sorted(policies.categories.items()):
        effective = policies.of(category)
        own = [each for each in _conflicts(effective, set(SECTIONS)) if each not in common and each[0] != "retention.max_age"]
        if policy.retention and policy.retention.max_age is not None and category in effective.keep.categories:
            own.append(("retention.max_age", NEVER_GOES))
        found += [Contradiction(category, path, problem) for path, problem in own]
    return found


def _section(name: str, value: object) -> Section:
    section = SECTIONS[name]
    given = _fields(name, value, section)
    return section(**{field: CHECKS[name][field](f"{name}.{field}", each) for field, each in given.items()})


def _fields(path: str, value: object, struct: type[Section]) -> dict[str, Any]:
    """What is said in a section: a struct's every value, or a dict's."""
    if isinstance(value, struct):
        return {name: getattr(value, name) for name in struct.__struct_fields__}
    if not isinstance(value, Mapping):
        raise PolicyError(path, f"is {_kind(value)}: give an object with {', '.join(struct.__struct_fields__)}")
    unknown = [name for name in value if name not in struct.__struct_fields__]
    if unknown:
        problem = f"has {len(unknown)} unknown field(s): the fields are {', '.join(struct.__struct_fields__)}"
        raise PolicyError(path, problem)
    return dict(value)


# --- what is said by two values ---------------------------------------------------------------------------------------------


def _check_owner(found: Policy, owner: Owner) -> None:
    retention = found.retention
    if owner == "tenant" or retention is None:
        return
    if retention.ttl:
        raise PolicyError("retention.ttl", f"is the tenant's to say: in the policy of a {owner} say max_age")
    for name in Retention.__struct_fields__:
        whose = name.partition("_")[0]
        if whose in ("user", "session") and whose != owner and getattr(retention, name) is not None:
            others = "the tenant's" if whose == "user" else "the tenant's or a session's"
            raise PolicyError(f"retention.{name}", f"is {others} to say, not a {owner}'s")


def _conflicts(effective: Effective, said: set[str]) -> Iterator[tuple[str, str]]:
    """The paths and problems of what the sections named in `said` break together."""
    windows, keep, retention = effective.windows, effective.keep, effective.retention
    if "windows" in said:
        yield from _of_windows(windows)
    if {"windows", "retention"} <= said and windows.enabled:
        yield from _of_windows_and_retention(windows, retention)
    if {"keep", "retention"} <= said:
        yield from _of_keep_and_retention(keep, retention)
    if "retention" in said:
        for unit in ("memories", "bytes"):
            session, user = getattr(retention, f"session_{unit}_max"), getattr(retention, f"user_{unit}_max")
            if session is not None and user is not None and user < session:
                yield f"retention.session_{unit}_max", f"is above user_{unit}_max: no session could come near it"


def _of_windows(windows: Windows) -> Iterator[tuple[str, str]]:
    if windows.memories_min > windows.memories_max:
        yield "windows.memories_min", "is above memories_max: no window could have as many"
    if windows.tokens_max * windows.target < SUMMARY_TOKENS_MIN:
        yield (
            "windows.target",
            f"leaves a summary fewer than {SUMMARY_TOKENS_MIN} tokens of tokens_max: nothing can be said in them",
        )


def _of_windows_and_retention(windows: Windows, retention: Retention) -> Iterator[tuple[str, str]]:
    if retention.max_age is not None and retention.max_age <= windows.older_than:
        yield (
            "retention.max_age",
            "is not longer than windows.older_than: no memory would live to be summarized; make it longer, or set "
            "windows.enabled to false",
        )
    for name in ("session_memories_max", "user_memories_max"):
        limit = getattr(retention, name)
        if limit is not None and limit < windows.memories_min:
            yield f"retention.{name}", "is below windows.memories_min: there would never be enough for a window"


def _of_keep_and_retention(keep: Keep, retention: Retention) -> Iterator[tuple[str, str]]:
    for category in sorted(set(retention.ttl) & set(keep.categories)):
        yield f"retention.ttl.{category}", NEVER_GOES
    for name in ("session_memories_max", "user_memories_max"):
        limit = getattr(retention, name)
        if limit is not None and keep.newest > limit:
            yield "keep.newest", f"protects more memories of a session than {name} allows: the limit could not be kept"


# --- what is said by one ----------------------------------------------------------------------------------------------------


def _flag(path: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise PolicyError(path, f"is {_kind(value)}: give true or false")
    return value


def _duration(path: str, value: object, least: timedelta = timedelta(microseconds=1)) -> timedelta:
    if isinstance(value, str):
        try:
            value = msgspec.convert(value, timedelta)
        except msgspec.ValidationError:
            raise PolicyError(path, 'is no duration: give days and times such as "P7D", "PT4H" or "P1DT12H"') from None
    if not isinstance(value, timedelta):
        raise PolicyError(path, f'is {_kind(value)}: give a timedelta, or a duration such as "P7D" or "PT4H"')
    if value < least:
        raise PolicyError(path, "is negative" if least == timedelta(0) else "must be longer than nothing")
    if value > DURATION_MAX:
        raise PolicyError(path, f"is longer than {DURATION_MAX.days:,} days")
    return value


def _duration_or_none(path: str, value: object) -> timedelta | None:
    return None if value is None else _duration(path, value)


def _duration_or_zero(path: str, value: object) -> timedelta:
    return _duration(path, value, timedelta(0))


def _whole(least: int, most: int) -> Callable[[str, object], int]:
    def check(path: str, value: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise PolicyError(path, f"must be a whole number from {least} to {most:,}")
        return int(value)

    return check


def _limit(path: str, value: object) -> int | None:
    return None if value is None else _whole(1, COUNT_MAX)(path, value)


def _number(path: str, value: object) -> float:
    """A number from 0 to 1."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PolicyError(path, f"is {_kind(value)}: give a number from 0 to 1")
    if not 0 <= value <= 1:  # nor is NaN
        raise PolicyError(path, "is outside 0 to 1")
    return float(value)


def _importance(path: str, value: object) -> float | None:
    return None if value is None else _number(path, value)


def _share(path: str, value: object) -> float:
    number = _number(path, value)
    if number in (0, 1):
        raise PolicyError(path, "must be above 0 and below 1")
    return number


def _list(path: str, value: object, most: int) -> list[Any]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise PolicyError(path, f"is {_kind(value)}: give a list of strings")
    found = sorted(value, key=str) if isinstance(value, set | frozenset) else list(value)
    if len(found) > most:
        raise PolicyError(path, f"has {len(found):,} items, at most {most:,} are kept")
    return found


def _label(path: str, value: object) -> str:
    try:
        found = validation.label(path, value)
    except InvalidMemory as error:
        raise PolicyError(path, error.problem) from None
    if found is None:
        raise PolicyError(path, "is null: give a string")
    return found


def _labels(path: str, value: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_label(path, each) for each in _list(path, value, LABELS_MAX)))


def _memory_ids(path: str, value: object) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_memory_id(path, each) for each in _list(path, value, MEMORY_IDS_MAX)))


def _memory_id(path: str, value: object) -> str:
    try:
        return str(UUID(value if isinstance(value, str) else ""))
    except ValueError:
        raise PolicyError(path, "holds something that is no memory id: ids are UUIDs") from None


def _lives(path: str, value: object) -> dict[str, timedelta]:
    if not isinstance(value, Mapping):
        raise PolicyError(path, f"is {_kind(value)}: give an object from category to duration")
    if len(value) > LABELS_MAX:
        raise PolicyError(path, f"names {len(value):,} categories, at most {LABELS_MAX:,} are kept")
    return {_label(path, category): _duration(f"{path}.{category}", life) for category, life in value.items()}


def _kind(value: object) -> str:
    return "null" if value is None else type(value).__name__


CHECKS: dict[str, dict[str, Callable[[str, object], Any]]] = {
    "windows": {
        "enabled": _flag,
        "older_than": _duration_or_zero,
        "memories_min": _whole(2, WINDOW_MEMORIES_MAX),
        "memories_max": _whole(2, WINDOW_MEMORIES_MAX),
        "pause": _duration,
        "tokens_max": _whole(1, WINDOW_TOKENS_MAX),
        "target": _share,
        "depth_max": _whole(1, DEPTH_MAX),
    },
    "keep": {
        "importance_min": _importance,
        "categories": _labels,
        "tags": _labels,
        "memory_ids": _memory_ids,
        "newest": _whole(0, COUNT_MAX),
    },
    "retention": {
        "max_age": _duration_or_none,
        "ttl": _lives,
        "session_memories_max": _limit,
        "session_bytes_max": _limit,
        "user_memories_max": _limit,
        "user_bytes_max": _limit,
    },
    "fading": {"enabled": _flag, "half_life": _duration, "strength_min": _share},
}
