"""Fading, expiry and limits: what goes, in which order, and when."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfold.consolidator.candidates import Candidate
from memfold.consolidator.fading import (
    Near,
    Usage,
    beyond_limits,
    beyond_user_limits,
    expired,
    expires_at,
    faded,
    fades_at,
    lifetime,
    near_limits,
    strength,
    usage,
)
from memfold.policies import DAY, Fading, Keep, Policies, Policy, Retention

T0 = datetime(2026, 1, 1, tzinfo=UTC)
SOON = timedelta(microseconds=1)
FAR = T0 + timedelta(days=100_000)
ON = Fading(enabled=True)
UNKEPT = Keep(importance_min=None, tags=(), newest=0)

IMPORTANCE = st.floats(0, 1)
AGES = st.timedeltas(timedelta(0), timedelta(days=36_500))
FADINGS = st.builds(
    Fading,
    enabled=st.just(True),
    half_life=st.timedeltas(timedelta(seconds=1), timedelta(days=3_650)),
    strength_min=st.floats(0.001, 0.999),
)


def memory(number, **fields):
    known = {"tokens": 50, "size_bytes": 100, "importance": 0.5, "category": None, "tags": (), "level": 0}
    known |= {"since": T0 + number * timedelta(hours=1)} | fields
    return Candidate(number.to_bytes(16), number.to_bytes(16), occurred_at=known["since"], **known)


def policies(**sections):
    return Policies(Policy(**{"keep": UNKEPT, **sections}))


# --- fading ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("importance", "days"), [(0.5, 30), (0.2, 1.875), (0.95, 361 * 30)])
def test_a_half_life_is_what_the_odds_make_it(importance, days):
    assert strength(importance, timedelta(days=days), ON) == pytest.approx(0.5)


@given(AGES, FADINGS)
def test_what_is_all_important_never_fades_and_what_is_of_no_importance_fades_at_once(age, fading):
    assert strength(1.0, age, fading) == 1.0
    assert lifetime(1.0, fading) is None
    assert strength(0.0, fading.half_life / 1_000, fading) == pytest.approx(0.5, abs=1e-3)


@given(IMPORTANCE, IMPORTANCE, AGES, AGES, FADINGS)
def test_strength_falls_with_age_and_rises_with_importance(one, other, young, old, fading):
    low, high = sorted((one, other))
    young, old = sorted((young, old))
    assert 0 <= strength(low, old, fading) <= strength(low, young, fading) <= 1
    assert strength(low, old, fading) <= strength(high, old, fading)
    assert (lifetime(low, fading) or timedelta.max) <= (lifetime(high, fading) or timedelta.max)


@given(IMPORTANCE, FADINGS)
def test_a_lifetime_ends_where_strength_reaches_its_least(importance, fading):
    life = lifetime(importance, fading)
    if life is not None:
        assert strength(importance, life, fading) == pytest.approx(fading.strength_min, rel=0.01)


@given(IMPORTANCE, AGES, FADINGS)
def test_a_clock_that_jumped_back_leaves_memories_as_new(importance, age, fading):
    assert strength(importance, -age, fading) == 1.0
    held = policies(fading=fading, retention=Retention(max_age=DAY))
    assert faded([memory(1, since=T0 + age + DAY, importance=importance)], held, T0) == []
    assert expired([memory(1, since=T0 + age)], held, T0) == []


@given(st.lists(IMPORTANCE, max_size=8), FADINGS)
def test_fading_is_due_exactly_when_something_fades(importances, fading):
    session = [memory(number, importance=importance) for number, importance in enumerate(importances)]
    held = policies(fading=fading)
    due = fades_at(session, held)
    if due is None:
        assert faded(session, held, datetime.max.replace(tzinfo=UTC)) == []
    else:
        assert faded(session, held, due - SOON) == []
        assert faded(session, held, due) != []


def test_what_has_faded_fades_no_more_until_it_came_back():
    session = [memory(1, importance=0.1), memory(2, importance=0.8)]
    held = policies(fading=ON)
    now = T0 + 60 * DAY
    assert faded(session, held, now) == session[:1]
    assert faded([session[0]._replace(archived=True), session[1]], held, now) == []
    assert faded([session[0]._replace(since=now), session[1]], held, now) == []


def test_a_memory_that_was_refreshed_fades_from_then_on():
    one = memory(1, importance=0.2)
    refreshed = one._replace(refreshed_at=T0 + 5 * DAY)
    held = policies(fading=ON)
    assert fades_at([refreshed], held) - fades_at([one], held) == refreshed.refreshed_at - one.since


def test_nothing_fades_that_is_kept_or_where_fading_is_off():
    session = [memory(1, importance=0.91), memory(2, tags=("pinned",)), memory(3), memory(4)]
    assert faded(session, Policies(Policy(fading=ON, keep=Keep(newest=1))), FAR) == [session[2]]
    assert faded(session, policies(), FAR) == []
    assert fades_at(session, policies()) is None


# --- expiry ------------------------------------------------------------------------------------------------------------------


def test_memories_expire_at_their_age_archived_ones_and_the_newest_too():
    session = [memory(0), memory(1, archived=True), memory(2)]
    held = Policies(Policy(retention=Retention(max_age=DAY)))
    assert expires_at(session, held) == T0 + DAY
    assert expired(session, held, T0 + DAY - SOON) == []
    assert expired(session, held, T0 + DAY) == session[:1]
    assert expired(session, held, T0 + 2 * DAY) == session


def test_restoring_a_memory_does_not_lengthen_its_life():
    restored = memory(0, since=T0 + DAY, remembered_at=T0, refreshed_at=T0 + DAY)
    assert expires_at([restored], policies(retention=Retention(max_age=DAY))) == T0 + DAY


def test_a_category_lives_its_own_time():
    session = [memory(0, category="note"), memory(0, category="chat"), memory(0)]
    tenant = Policy(keep=UNKEPT, retention=Retention(max_age=30 * DAY, ttl={"note": DAY}))
    assert expired(session, Policies(tenant), T0 + DAY) == session[:1]
    chat = Policy(retention=Retention(max_age=2 * DAY))
    assert expired(session, Policies(tenant, {"chat": chat}), T0 + 2 * DAY) == session[:2]
    assert expired(session, Policies(tenant, {"chat": chat}, Policy(retention=Retention(max_age=DAY))), T0 + DAY) == session


def test_summaries_and_what_is_kept_do_not_expire():
    session = [memory(0, level=1), memory(1, importance=0.9), memory(2, tags=("pinned",))]
    held = Policies(Policy(retention=Retention(max_age=DAY)))
    assert expired(session, held, FAR) == []
    assert expires_at(session, held) is None


# --- limits ------------------------------------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 300), st.booleans(), st.booleans(), st.integers(0, 1)), max_size=30),
    st.none() | st.integers(1, 30),
    st.none() | st.integers(1, 3_000),
    st.integers(0, 5),
)
def test_so_many_of_the_oldest_go_that_the_limits_are_kept(rows, memories_max, bytes_max, newest):
    session = [
        memory(number, size_bytes=size, tags=("pinned",) if pinned else (), archived=archived, level=level)
        for number, (size, pinned, archived, level) in enumerate(rows)
    ]
    retention = Retention(session_memories_max=memories_max, session_bytes_max=bytes_max)
    going = beyond_limits(session, Policies(Policy(keep=Keep(newest=newest), retention=retention)))

    def kept_without(gone):
        held = usage([each for each in session if each not in gone])
        return held.session_memories <= (memories_max or 99) and held.session_bytes <= (bytes_max or 99_999)

    talk = [each for each in session if each.level == 0]
    last = [each for each in talk if not each.archived][-newest:] if newest else []
    may_go = [each for each in talk if "pinned" not in each.tags and each not in last]
    assert going == may_go[: len(going)]
    assert kept_without(going) or going == may_go
    assert not going or not kept_without(going[:-1])


def test_the_oldest_of_all_sessions_of_a_user_go():
    one, other = [memory(number) for number in (1, 3, 5)], [memory(number) for number in (2, 4, 6)]
    held = policies()
    going = beyond_user_limits([(one, held), (other, held)], Retention(user_memories_max=3))
    assert going == [one[0], other[0], one[1]]
    assert beyond_user_limits([(one, held), (other, held)], Retention(user_bytes_max=550)) == [one[0]]
    assert beyond_user_limits([(one, held), (other, held)], Retention(session_memories_max=1)) == []


def test_limits_are_near_from_a_share_on():
    retention = Retention(session_memories_max=10, user_bytes_max=1_000)
    assert near_limits(Usage(7, 9_999, 9_999, 799), retention) == []
    assert near_limits(Usage(8, 0, 0, 1_200), retention) == [
        Near("session_memories_max", 8, 10),
        Near("user_bytes_max", 1_200, 1_000),
    ]
    assert near_limits(Usage(5), retention, share=0.5) == [Near("session_memories_max", 5, 10)]
