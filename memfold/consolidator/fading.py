"""What of a session has faded, has lived its time, or is more than may be kept; and when. Pure.

A clock that was wrong harms nothing: what seems to come from the future is of age 0, and what has faded is archived and
fades no more.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from memfold.consolidator.candidates import NEVER, Candidate, is_kept, later, newest
from memfold.policies import Fading, Policies, Retention

ODDS_MIN = 0.001  # so much of its half-life even a memory of importance 0 is given: three quarters of an hour of 30 days


class Usage(NamedTuple):
    """What a session and its user hold: numbers of memories, and bytes of their content. Summaries do not count."""

    session_memories: int = 0
    session_bytes: int = 0
    user_memories: int = 0
    user_bytes: int = 0


class Near(NamedTuple):
    """A limit that is nearly used up, or is: its name in `Retention`, what is used, and what is allowed."""

    limit: str
    used: int
    allowed: int


class Leaving(NamedTuple):
    """When memories expire, and how many may still be remembered before they go because a session holds too many."""

    at: dict[bytes, datetime]
    after: dict[bytes, int]


def strength(importance: float, age: timedelta, fading: Fading) -> float:
    """How much is left of a memory, from 1 to 0: less with age, more with importance. One of importance 1 never fades."""
    half_life_s = _half_life_s(importance, fading)
    return math.pow(2.0, -max(age.total_seconds(), 0.0) / half_life_s)


def lifetime(importance: float, fading: Fading) -> timedelta | None:
    """How old a memory is when its strength comes down to `strength_min`; None: that old no memory gets."""
    seconds = _half_life_s(importance, fading) * -math.log2(fading.strength_min)
    return timedelta(seconds=seconds) if seconds < timedelta.max.total_seconds() / 2 else None


def _half_life_s(importance: float, fading: Fading) -> float:
    if importance >= 1:
        return math.inf
    odds = max(importance, 0.0) / (1 - importance)
    return fading.half_life.total_seconds() * max(odds * odds, ODDS_MIN)


def faded(candidates: Sequence[Candidate], policies: Policies, now: datetime) -> list[Candidate]:
    """The active memories of a session, summaries too, that are to leave default recall."""
    return [candidate for candidate, at in _fading(candidates, policies) if at <= now]


def expired(candidates: Sequence[Candidate], policies: Policies, now: datetime) -> list[Candidate]:
    """The memories of a session that have lived their time, archived ones too. Summaries go with what they were made from."""
    return [candidate for candidate, at in _expiring(candidates, policies) if at <= now]


def fades_at(candidates: Sequence[Candidate], policies: Policies) -> datetime | None:
    """When the next memory fades; None: none ever does. It may lie in the past."""
    return min((at for _, at in _fading(candidates, policies)), default=None)


def expires_at(candidates: Sequence[Candidate], policies: Policies) -> datetime | None:
    """When the next memory expires; None: none ever does. It may lie in the past."""
    return min((at for _, at in _expiring(candidates, policies)), default=None)


def leaving(candidates: Sequence[Candidate], policies: Policies) -> Leaving:
    """What of a session is known to go, for its age or for others that come; a summary with the first of its sources."""
    at = {candidate.memory_id: at for candidate, at in _expiring(candidates, policies)}
    after: dict[bytes, int] = {}
    most = policies.of(None).retention.session_memories_max
    if most is not None:
        room = max(most - usage(candidates).session_memories, 0)
        going = _in_order_of_going([(candidates, policies)])
        after = {candidate.memory_id: room + place for place, candidate in enumerate(going)}
    for summary in sorted((each for each in candidates if each.made_from), key=lambda each: each.level):
        if times := [at[source] for source in summary.made_from if source in at]:
            at[summary.memory_id] = min(times)
        if places := [after[source] for source in summary.made_from if source in after]:
            after[summary.memory_id] = min(places)
    return Leaving(at, after)


def without(candidates: Sequence[Candidate], gone: Collection[bytes], faded: Collection[bytes]) -> list[Candidate]:
    """A session as it is once some memories are forgotten, with every summary of them, and others have faded."""
    dead = set(gone)
    for summary in sorted((each for each in candidates if each.made_from), key=lambda each: each.level):
        if not dead.isdisjoint(summary.made_from):
            dead.add(summary.memory_id)
    back = {source for each in candidates if each.memory_id in dead for source in each.made_from}
    back -= {source for each in candidates if each.memory_id not in dead for source in each.made_from}
    return [
        each._replace(archived=each.memory_id in faded or (each.archived and each.memory_id not in back))
        for each in candidates
        if each.memory_id not in dead
    ]


def _fading(candidates: Sequence[Candidate], policies: Policies) -> Iterator[tuple[Candidate, datetime]]:
    last = newest(candidates, policies)
    for candidate in candidates:
        fading = policies.of(candidate.category).fading
        if candidate.archived or not fading.enabled or candidate.memory_id in last or is_kept(candidate, policies):
            continue
        life = lifetime(candidate.importance, fading)
        if life is not None and (at := later(candidate.used, life)) < NEVER:
            yield candidate, at


def _expiring(candidates: Sequence[Candidate], policies: Policies) -> Iterator[tuple[Candidate, datetime]]:
    for candidate in candidates:
        life = policies.of(candidate.category).retention.max_age
        if life is None or candidate.level > 0 or is_kept(candidate, policies):
            continue
        if (at := later(candidate.remembered, life)) < NEVER:
            yield candidate, at


def usage(candidates: Iterable[Candidate]) -> Usage:
    """What a session holds, archived memories too."""
    sizes = [candidate.size_bytes for candidate in candidates if candidate.level == 0]
    return Usage(session_memories=len(sizes), session_bytes=sum(sizes))


def beyond_limits(candidates: Sequence[Candidate], policies: Policies) -> list[Candidate]:
    """The oldest unprotected memories of a session, as many as are to go for its own limits to be kept, or all there are."""
    retention = policies.of(None).retention
    held = usage(candidates)
    return _beyond(
        _in_order_of_going([(candidates, policies)]),
        _excess(held.session_memories, retention.session_memories_max),
        _excess(held.session_bytes, retention.session_bytes_max),
    )


def beyond_user_limits(sessions: Sequence[tuple[Sequence[Candidate], Policies]], retention: Retention) -> list[Candidate]:
    """The same of all sessions of a user, for the limits of the user, which are the tenant's to set."""
    held = [usage(candidates) for candidates, _ in sessions]
    return _beyond(
        _in_order_of_going(sessions),
        _excess(sum(each.session_memories for each in held), retention.user_memories_max),
        _excess(sum(each.session_bytes for each in held), retention.user_bytes_max),
    )


def _in_order_of_going(sessions: Iterable[tuple[Sequence[Candidate], Policies]]) -> list[Candidate]:
    found = []
    for candidates, policies in sessions:
        last = newest(candidates, policies)
        found += [each for each in candidates if each.level == 0 and each.memory_id not in last and not is_kept(each, policies)]
    return sorted(found, key=lambda candidate: (candidate.remembered, candidate.memory_id))


def _beyond(candidates: list[Candidate], memories: int, size_bytes: int) -> list[Candidate]:
    going: list[Candidate] = []
    for candidate in candidates:
        if memories <= 0 and size_bytes <= 0:
            break
        going.append(candidate)
        memories -= 1
        size_bytes -= candidate.size_bytes
    return going


def _excess(held: int, allowed: int | None) -> int:
    return 0 if allowed is None else max(held - allowed, 0)


def near_limits(held: Usage, retention: Retention, share: float = 0.8) -> list[Near]:
    """The limits of which at least `share` is used."""
    limits = [(f"{name}_max", used) for name, used in held._asdict().items()]
    found = [
        Near(limit, used, getattr(retention, limit) or 0) for limit, used in limits if getattr(retention, limit) is not None
    ]
    return [near for near in found if near.used >= share * near.allowed]
