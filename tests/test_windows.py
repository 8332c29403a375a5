"""Windows: what may become a summary together, and when. Every property holds of any session under any policies."""

import hashlib
from datetime import UTC, datetime, timedelta
from itertools import count

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from memfold.consolidator import windows as subject
from memfold.consolidator.candidates import Candidate, is_kept, newest
from memfold.consolidator.windows import TALK_MEMORIES_MIN, WORTH_TOKENS, choose, due_at, key
from memfold.policies import DAY, Keep, Policies, Policy, Windows

T0 = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SOON = timedelta(microseconds=1)
FAR = T0 + timedelta(days=20_000)
NOTHING_KEPT = Keep(importance_min=None, tags=(), newest=0)


def memory(number, at=T0, *, since=None, **fields):
    known = {"tokens": 50, "size_bytes": 200, "importance": 0.5, "category": None, "tags": (), "level": 0}
    known |= {"occurred_at": at, "remembered_at": since or at} | fields
    return Candidate(number.to_bytes(16), number.to_bytes(16, "little"), since=since or at, **known)


def talk(size, start=T0, *, first=0, apart=timedelta(minutes=1), **fields):
    return [memory(first + place, start + place * apart, **fields) for place in range(size)]


def policies(keep=NOTHING_KEPT, categories=None, **windows):
    return Policies(Policy(windows=Windows(**({"memories_max": 12} | windows)), keep=keep), categories)


def sizes(candidates, held, now=FAR):
    return [len(window.sources) for window in choose(candidates, held, now)]


# --- by example --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "expected"),
    [(1, []), (2, [2]), (4, [4]), (12, [12]), (13, [7, 6]), (15, [8, 7]), (16, [12, 4]), (24, [12, 12]), (30, [12, 12, 6])],
)
def test_a_finished_talk_is_cut_evenly(size, expected):
    assert sizes(talk(size), policies()) == expected


def test_a_talk_that_goes_on_waits_for_a_full_window_and_enough_beside_it():
    going_on = talk(40, apart=HOUR)
    hours = {
        hour: sizes([each for each in going_on if each.since <= T0 + hour * HOUR], policies(), T0 + hour * HOUR)
        for hour in range(40)
    }
    assert {hour: hours[hour] for hour in (38, 39)} == {38: [], 39: [12]}


def test_memories_are_old_enough_at_the_very_moment():
    session = talk(4)
    due = session[-1].since + DAY
    assert choose(session, policies(), due - SOON) == []
    assert sizes(session, policies(), due) == [4]


def test_a_talk_is_not_cut_before_a_pause_has_passed():
    session, held = talk(5), policies(older_than=HOUR)
    assert due_at(session, held) == session[-1].since + 4 * HOUR
    assert sizes([*session, memory(5, T0 + 7 * HOUR)], held, T0 + 7 * HOUR) == [5]


def test_a_pause_ends_a_window_but_not_one_of_a_single_memory():
    session = [*talk(3), *talk(1, T0 + DAY, first=3), *talk(5, T0 + 2 * DAY, first=4)]
    assert sizes(session, policies()) == [3, 6]


def test_what_is_said_once_a_day_is_summarized_too():
    assert sizes(talk(8, apart=DAY), policies()) == [2, 2, 2, 2]


def test_a_silence_after_the_last_memory_is_a_pause_though_more_is_imported_later():
    session = talk(5)
    now = T0 + 2 * DAY
    imported = memory(5, session[-1].occurred_at, since=now)
    assert choose(session, policies(), now) == choose([*session, imported], policies(), now) != []


def test_a_pinned_turn_is_stepped_over():
    session = talk(9)
    session[4] = session[4]._replace(tags=("pinned",))
    (window,) = choose(session, policies(Keep(newest=0)), FAR)
    assert window.sources == (*session[:4], *session[5:])


@pytest.mark.parametrize(
    ("keep", "fields"),
    [
        (Keep(importance_min=0.7, newest=0), {"importance": 0.7}),
        (Keep(categories=("fact",), newest=0), {"category": "fact"}),
        (Keep(tags=("a", "b"), newest=0), {"tags": ("x", "b")}),
        (Keep(memory_ids=("00000000-0000-0000-0000-000000000002",), newest=0), {}),
    ],
)
def test_what_is_kept_is_in_no_window(keep, fields):
    session = talk(6)
    session[2] = session[2]._replace(**fields)
    (window,) = choose(session, policies(keep), FAR)
    assert session[2] not in window.sources
    assert len(window.sources) == 5


def test_the_newest_are_left_and_the_rest_before_them_goes_when_nobody_goes_on():
    session = talk(50)
    held = policies(Keep(newest=20))
    assert sizes(session, held) == [12, 12, 6]
    assert [source for window in choose(session, held, FAR) for source in window.sources] == session[:30]


def test_a_restored_memory_is_waited_for():
    session = talk(6)
    session[2] = session[2]._replace(since=T0 + 10 * DAY)
    assert choose(session, policies(), T0 + 10 * DAY) == []
    assert sizes(session, policies(), T0 + 11 * DAY) == [6]


def test_memories_under_another_policy_have_windows_of_their_own():
    fact = Policy(windows=Windows(older_than=30 * DAY))
    session = [each._replace(category="fact") if place % 3 == 0 else each for place, each in enumerate(talk(12))]
    held = policies(categories={"fact": fact})
    assert sizes(session, held, T0 + 2 * DAY) == [8]
    assert sorted(sizes(session, held, T0 + 31 * DAY)) == [4, 8]


def test_where_windows_are_off_there_are_none():
    assert choose(talk(50), policies(enabled=False), FAR) == []
    assert due_at(talk(50), policies(enabled=False)) is None


def test_a_window_is_full_by_tokens_too():
    assert sizes(talk(8, tokens=900), policies()) == [2, 2, 2, 2]
    assert sizes(talk(3, tokens=1_500), policies()) == [1, 1, 1]
    assert sizes(talk(3, tokens=2_001), policies()) == []


def test_a_greeting_is_no_summary_by_itself():
    hello = talk(2, tokens=2)
    assert sizes(hello, policies()) == []
    assert sizes([*hello, *talk(4, T0 + DAY, first=2)], policies()) == [6]


def test_a_summary_is_always_to_be_shorter():
    for tokens in (16, 17, 50, 150):
        (window,) = choose(talk(2, tokens=tokens), policies(), FAR)
        assert 16 <= window.target_tokens <= max(16, window.tokens // 4) < window.tokens


def test_summaries_are_summarized_after_a_week_and_never_with_memories():
    days = [*talk(16, apart=DAY, level=1, tokens=100), *talk(4, T0 + 15 * DAY, first=16)]
    chosen = choose(days, policies(), T0 + 22 * DAY)
    assert [(window.level, len(window.sources)) for window in chosen] == [(1, 4), (2, 12), (2, 4)]
    assert sizes(days[:16], policies(older_than=timedelta(0)), T0 + 22 * DAY - SOON) == []
    assert sizes(days[:16], policies(depth_max=1), FAR) == []


def test_summaries_nobody_adds_to_wait_for_the_least_number():
    assert sizes(talk(3, apart=30 * DAY, level=1), policies()) == []
    assert sizes(talk(5, apart=30 * DAY, level=1), policies()) == [4]


def test_archived_memories_are_in_no_window():
    assert sizes(talk(12, archived=True), policies()) == []


def test_a_time_beyond_the_calendar_is_never():
    assert due_at(talk(12), policies(older_than=timedelta(days=99_999_999))) is None


def test_a_key_is_of_the_events_in_any_order_and_of_both_versions():
    ids = [number.to_bytes(16) for number in (3, 1, 2)]
    assert key(ids, 1, 2) == key(sorted(ids), 1, 2)
    assert key(sorted(ids), 1, 2) == hashlib.sha256(b"1:2:" + b"".join(sorted(ids))).hexdigest()
    assert len({key(ids, 1, 2), key(ids, 2, 1), key(ids, 12, 0), key(ids[:2], 1, 2)}) == 4
    with pytest.raises(ValueError, match="sources"):
        key([], 1, 1)


# --- of any session ----------------------------------------------------------------------------------------------------------

KEEPS = st.builds(
    Keep,
    importance_min=st.sampled_from([None, 0.9]),
    categories=st.sampled_from([(), ("fact",)]),
    newest=st.integers(0, 4),
)


@st.composite
def any_windows(draw):
    least = draw(st.integers(2, 4))
    return Windows(
        enabled=draw(st.integers(0, 9)) > 0,
        older_than=draw(st.sampled_from([timedelta(0), HOUR, DAY, 3 * DAY])),
        memories_min=least,
        memories_max=draw(st.integers(least, 8)),
        pause=draw(st.sampled_from([HOUR, 4 * HOUR, DAY])),
        tokens_max=draw(st.sampled_from([150, 400, 10_000])),
        depth_max=draw(st.integers(1, 3)),
    )


@st.composite
def any_policies(draw):
    category = st.none() | st.builds(Policy, windows=any_windows(), keep=st.none() | KEEPS)
    categories = {name: policy for name in ("chat", "summary") if (policy := draw(category))}
    return Policies(Policy(windows=draw(any_windows()), keep=draw(KEEPS)), categories)


@st.composite
def sessions(draw, size_max=40):
    """Memories and summaries as a live session has them: remembered in order, some imported, some restored."""
    numbers, at, found = count(), T0, []
    for _ in range(draw(st.integers(0, size_max))):
        at += draw(st.sampled_from([timedelta(0), timedelta(minutes=5), timedelta(minutes=5), 2 * HOUR, 5 * HOUR, 2 * DAY]))
        found.append(draw(memories_at(next(numbers), at)))
    return found


@st.composite
def memories_at(draw, number, at):
    level = draw(st.sampled_from([0, 0, 0, 0, 1, 2]))
    restored = draw(st.sampled_from([None] * 9 + [10 * DAY]))
    return memory(
        number,
        at,
        since=at,
        tokens=draw(st.sampled_from([2, 20, 60, 140, 500])),
        importance=draw(st.sampled_from([0.5, 0.5, 0.5, 0.95])),
        category="summary" if level else draw(st.sampled_from([None, None, "chat", "fact"])),
        tags=draw(st.sampled_from([(), (), (), ("pinned",)])),
        level=level,
        occurred_at=at - draw(st.sampled_from([timedelta(0)] * 4 + [HOUR, 30 * DAY])),
        archived=draw(st.integers(0, 9)) == 0,
    )._replace(since=at + restored if restored else at)


NOWS = st.integers(-50, 3_000).map(lambda hours: T0 + hours * HOUR)


def given_by(session, held, now):
    return {window.sources for window in choose(session, held, now)}


def age(candidate, held):
    windows = held.of(candidate.category).windows
    return windows.older_than if candidate.level == 0 else max(windows.older_than, DAY) * 7**candidate.level


def usable(session, held):
    """What windows are made of, by level and settings, in order; whatever its age."""
    found = {}
    for each in session:
        windows = held.of(each.category).windows
        if each.archived or is_kept(each, held) or not windows.enabled:
            continue
        if each.tokens <= windows.tokens_max and each.level < windows.depth_max:
            found.setdefault((each.level, windows), []).append(each)
    return found


@given(sessions(), any_policies(), NOWS)
def test_windows_are_what_they_promise(session, held, now):
    last = newest(session, held)
    chosen = choose(session, held, now)
    taken = [source.memory_id for window in chosen for source in window.sources]
    assert len(taken) == len(set(taken))
    for window in chosen:
        limits = held.of(window.sources[0].category).windows
        assert len(window.sources) <= limits.memories_max
        assert window.tokens <= limits.tokens_max
        assert 1 <= window.target_tokens < max(window.tokens, 2)
        for source in window.sources:
            assert now - source.since >= age(source, held)
            assert source.memory_id not in last
        # Nothing that could be in the window is left out of its middle.
        sequence = usable(session, held)[window.level - 1, limits]
        start = sequence.index(window.sources[0])
        assert tuple(sequence[start : start + len(window.sources)]) == window.sources


@given(sessions(), any_policies(), NOWS, NOWS)
def test_time_only_adds_windows(session, held, one, other):
    assert given_by(session, held, min(one, other)) <= given_by(session, held, max(one, other))


@given(sessions(), any_windows(), NOWS, sessions(10))
def test_what_is_remembered_later_changes_no_window(session, windows, now, more):
    held = Policies(Policy(windows=windows, keep=Keep(newest=0)))
    now = max([now, *(each.remembered for each in session)])
    shift = now - T0
    added = [
        each._replace(
            memory_id=bytes([1]) + each.memory_id[1:],
            since=each.since + shift,
            remembered_at=each.remembered + shift,
            occurred_at=each.occurred_at + shift,
        )
        for each in more
    ]
    assert given_by(session, held, now) <= given_by([*session, *added], held, now)


@given(st.lists(st.sampled_from([1, 5, 90, 300]), min_size=1, max_size=60), st.integers(0, 30), st.integers(1, 30))
def test_protecting_the_newest_changes_at_most_the_end_before_them(gaps, newest_count, more):
    """The same talk under more and less protection, as when it goes on: all windows stay but one or two at the end."""
    session = [memory(place, T0 + timedelta(minutes=sum(gaps[:place]))) for place in range(len(gaps))]
    firm = sources_of(session, policies(Keep(newest=newest_count + more)))[:-2]
    assert sources_of(session, policies(Keep(newest=newest_count)))[: len(firm)] == firm


def sources_of(session, held):
    return [window.sources for window in choose(session, held, FAR)]


@given(sessions(), any_policies())
def test_it_is_due_exactly_when_there_is_a_window(session, held):
    due = due_at(session, held)
    if due is None:
        assert choose(session, held, FAR) == []
    else:
        assert choose(session, held, due - SOON) == []
        assert choose(session, held, due) != []


@given(sessions(), any_policies())
@example(talk(45), policies())
def test_a_finished_session_is_summarized_but_for_what_is_kept_and_too_little(session, held):
    while chosen := choose(session, held, FAR):
        gone = {source.memory_id for window in chosen for source in window.sources}
        session = [each._replace(archived=True) if each.memory_id in gone else each for each in session]
    last = newest(session, held)
    for (level, windows), sequence in usable(session, held).items():
        left = [each for each in sequence if each.memory_id not in last]
        if any(each.memory_id in last for each in sequence[: len(left)]):
            continue  # where categories protect different numbers of the newest, a run may stand behind a newest one
        least = TALK_MEMORIES_MIN if level == 0 else windows.memories_min
        assert len(left) < least or sum(each.tokens for each in left) < WORTH_TOKENS


@given(st.lists(st.sampled_from([1, 5, 90, 300]), min_size=1, max_size=60), st.data())
def test_a_window_stays_when_another_was_summarized_before_it(gaps, data):
    session = [memory(place, T0 + timedelta(minutes=sum(gaps[:place]))) for place in range(len(gaps))]
    chosen = sources_of(session, policies())
    assume(chosen)
    done = data.draw(st.sampled_from(chosen))
    left = [each for each in session if each not in done]
    assert sources_of(left, policies()) == [window for window in chosen if window != done]


@given(st.integers(1, 200), st.integers(2, 6), st.integers(0, 20))
def test_no_cut_leaves_a_rest_alone(size, least, more):
    most = 2 * least + more
    cut = sizes(talk(size), policies(memories_min=least, memories_max=most))
    assert sum(cut) == (size if size >= 2 else 0)
    assert all(least <= each <= most for each in cut) or size < least
    assert sorted(cut, reverse=True) == cut


def test_a_session_of_very_many_is_planned_in_one_pass():
    long = talk(20_000, apart=timedelta(minutes=7))
    looked_at = []
    counting = Policies(Policy(windows=Windows(), keep=NOTHING_KEPT))
    of = counting.of
    counting.of = lambda category: looked_at.append(category) or of(category)
    assert len(subject.planned(long, counting)) > 1_600
    assert len(looked_at) < 5 * len(long)
