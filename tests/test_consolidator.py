"""The consolidator against the real log: whatever happens while it thinks, a summary is appended whole and once, or not."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
from consolidating import DAY, HOUR, POLICY, Brief, Clock, Saying, ids, sentence, talk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from summarizing import summarize

from memfold import MemoryForgotten, MemoryNotFound, Settings
from memfold.audit.verify import verify
from memfold.consolidator.running import ATTEMPTS_MAX
from memfold.consolidator.summarizer import Summary, Usage
from memfold.errors import SummarizerFailed
from memfold.policies import Fading, Keep, Policy, Retention, Windows


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def open_store(make_store, clock):
    """Stores with a summarizer, of one tenant, under the test's policy and clock."""

    def make(summarizer, policy=POLICY, **options):
        store = make_store(summarizer=summarizer, clock=clock, **options)
        if policy and not store.policies()["tenant"]:
            store.set_policy(policy)
        return store

    return make


def newest(store):
    return max(event.position for event in store.events())


def levels(store, session_id="s"):
    """The sources of every living summary that is not archived."""
    return [
        ids(store.sources(memory.id))
        for memory in store.find(session_id, limit=10_000).memories
        if memory.category == "summary"
    ]


def assert_sound(store, session_id="s"):
    """No memory stands under two living summaries, none is lost, every event opens."""
    everything = store.find(session_id, limit=10_000, include_archived=True).memories
    below = [source for memory in everything if memory.category == "summary" for source in ids(store.sources(memory.id))]
    assert len(below) == len(set(below))
    assert {memory.id for memory in everything if memory.status == "archived"} >= set(below)
    assert verify(store._database, store._keyring, 2**62).findings == []


# --- what a summary is made from --------------------------------------------------------------------------------------------


def test_the_sources_of_a_summary_are_what_its_summarizer_saw(open_store, clock):
    brief = Brief()
    store = open_store(brief)
    turns = talk(store, 14)
    assert store.consolidate("s").windows == ()
    clock.on(2 * DAY)
    done = store.consolidate("s")
    assert brief.calls == len(done.windows) > 1
    for window, told in zip(brief.seen, done.windows, strict=True):
        assert tuple(source.memory_id for source in window.sources) == told.memory_ids
        assert ids(store.sources(told.summary_id)) == list(told.memory_ids)
        assert [source.content for source in window.sources] == [store.get(each).content for each in told.memory_ids]
        assert store.get(told.summary_id).content == told.text
    assert [each for told in done.windows for each in told.memory_ids] == turns[:12]
    assert (done.prompt_tokens, done.completion_tokens, done.cost) == (10 * brief.calls, 5 * brief.calls, 0.25 * brief.calls)
    assert_sound(store)
    again = store.consolidate("s")
    assert (again.windows, brief.calls) == ((), len(done.windows))


def test_what_touches_no_source_costs_no_second_call(open_store, clock):
    def meanwhile(window):
        store.remember("something new to think of", session_id="s", user_id="u")
        store.update(turns[-1], content="the newest turn is another now")
        store.forget(turns[-2])

    brief = Brief(meanwhile)
    store = open_store(brief)
    turns = talk(store, 7)
    clock.on(2 * DAY)
    (window,) = store.consolidate("s").windows
    assert brief.calls == 1
    assert list(window.memory_ids) == turns[:5]
    assert set(ids(store.find("s"))) >= {window.summary_id, turns[-1]}
    assert_sound(store)


def restores(store, turns):
    summary = summarize(store, turns[:2])
    store.restore(summary)


TOUCHES = {
    "updated": lambda store, turns: store.update(turns[1], content="it says something else now"),
    "forgotten": lambda store, turns: store.forget(turns[1]),
    "archived": lambda store, turns: summarize(store, turns[1:3]),
    "session": lambda store, turns: store.forget_session("s"),
    "session again": lambda store, turns: (store.forget_session("s"), talk(store, 7)),
    "user": lambda store, turns: store.forget_user("u"),
}


@pytest.mark.parametrize("touch", TOUCHES.values(), ids=TOUCHES)
@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_summary_of_what_changed_meanwhile_is_dropped(open_store, clock, touch, elsewhere):
    brief = Brief(lambda window: touch(other if elsewhere else store, turns))
    store = open_store(brief)
    other = open_store(Brief())
    turns = talk(store, 7)
    clock.on(2 * DAY)
    done = store.consolidate("s")
    assert (done.windows, brief.calls) == ((), 1)
    made = [
        event for event in store.events() if event.type == "WindowCompressed" and event.data and event.data.summarizer != "test"
    ]
    assert made == []
    assert not any(
        event.type == "MemoriesArchived" and turns[0] in event.data.memory_ids for event in store.events() if event.data
    )
    assert_sound(store)
    store.consolidate("s", until_idle=True)
    assert_sound(store)


def test_a_source_restored_meanwhile_is_still_what_it_was(open_store, clock):
    brief = Brief(lambda window: restores(store, turns))
    store = open_store(brief)
    turns = talk(store, 7)
    clock.on(2 * DAY)
    (window,) = store.consolidate("s").windows
    assert list(window.memory_ids) == turns[:5]
    assert_sound(store)


def test_two_workers_summarize_a_session_once(open_store, clock):
    meet = threading.Barrier(2)
    summarizers = [Brief(lambda window: meet.wait(20)) for _ in range(2)]
    stores = [open_store(summarizer) for summarizer in summarizers]
    turns = talk(stores[0], 7)
    clock.on(2 * DAY)
    with ThreadPoolExecutor(2) as threads:
        done = list(threads.map(lambda store: store.consolidate("s"), stores))
    assert sum(len(each.windows) for each in done) == 1
    assert [list(map(set, levels(store))) for store in stores] == [[set(turns[:5])]] * 2
    assert_sound(stores[0])


def test_one_of_two_workers_over_all_sessions_says_that_another_is_at_it(open_store, clock):
    other = open_store(Brief())
    found = []
    store = open_store(Brief(lambda window: found.append(other.consolidate())))
    talk(store, 7)
    clock.on(2 * DAY)
    assert len(store.consolidate().windows) == 1
    assert found[0].stopped == "another worker is consolidating"
    assert found[0].sessions == ()


def test_a_window_that_was_withdrawn_is_summarized_anew(open_store, clock):
    """Its summary was forgotten: the same sources come back, and are no duplicate of what they were."""
    brief = Brief()
    store = open_store(brief)
    turns = talk(store, 7)
    clock.on(2 * DAY)
    (first,) = store.consolidate("s").windows
    store.forget(first.summary_id)
    assert set(ids(store.find("s"))) == set(turns)
    (second,) = open_store(brief).consolidate("s").windows
    assert second.memory_ids == first.memory_ids
    store.forget(second.summary_id)
    (third,) = store.consolidate("s").windows
    assert (third.memory_ids, brief.calls) == (first.memory_ids, 3)
    assert_sound(store)


def test_a_window_that_was_restored_is_summarized_anew_when_it_is_old_again(open_store, clock):
    store = open_store(Brief())
    talk(store, 7)
    clock.on(2 * DAY)
    (first,) = store.consolidate("s").windows
    store.restore(first.summary_id)
    assert store.consolidate("s").windows == ()
    clock.on(2 * DAY)
    (second,) = store.consolidate("s").windows
    assert second.memory_ids == first.memory_ids
    assert_sound(store)


def test_what_is_left_of_a_withdrawn_window_is_summarized_at_once(open_store, clock):
    brief = Brief()
    store = open_store(brief)
    turns = talk(store, 7)
    clock.on(2 * DAY)
    store.consolidate("s")
    store.forget(turns[2])
    (window,) = store.consolidate("s").windows
    assert list(window.memory_ids) == [*turns[:2], *turns[3:5]]
    assert "turn2" not in window.text
    assert_sound(store)


# --- summarizers that fail --------------------------------------------------------------------------------------------------

RUBBISH = {
    "raises": ValueError("the secret of a memory"),
    "fails": SummarizerFailed("saying", "is down", retry=True),
    "none": None,
    "text": "only a string",
    "bytes": Summary(b"bytes"),
    "empty": Summary(""),
    "spaces": Summary(" \n\t \u200b\x00 "),
    "longer": lambda window: Summary("\n".join(source.content for source in window.sources) + " and more"),
    "10 MB": Summary("word " * 2_000_000),
    "10 MB of one word": Summary("w" * 10_000_000),
    "half a character": Summary("\ud800"),
    "no usage": Summary("short", None),
    "odd usage": Summary("short", Usage(-5, "many", float("nan"))),
    "vast usage": Summary("short", Usage(2**80, 2**80, float("inf"))),
}


@pytest.mark.parametrize("answer", RUBBISH.values(), ids=RUBBISH)
def test_a_failing_summarizer_leaves_memories_as_they_were_and_is_asked_again_later(open_store, clock, answer, caplog):
    saying = Saying(answer)
    store = open_store(saying)
    turns, others = talk(store, 7), talk(store, 7, "t", start=20)
    clock.on(2 * DAY)
    before = store.find("s"), store.recall("tea", session_id="s"), newest(store)
    done = store.consolidate(until_idle=True)
    assert (done.windows, saying.calls) == ((), 2)
    assert (store.find("s"), store.recall("tea", session_id="s"), newest(store)) == before
    assert len(store.parked()) == 2
    assert not any("secret" in work.reason for work in store.parked())
    assert "secret" not in caplog.text
    assert store.consolidate("s").windows == ()
    assert saying.calls == 2
    clock.on(2 * HOUR)
    waits = store.parked()[0].next_at is not None
    store.consolidate()
    assert saying.calls == (4 if waits else 2)
    saying.answer = Summary("short")
    store.retry_parked()
    assert sorted(len(window.memory_ids) for window in store.consolidate().windows) == [5, 5]
    assert store.parked() == []
    assert set(turns[:5]) | set(others[:5]) == {memory for window in levels(store) + levels(store, "t") for memory in window}
    assert_sound(store)


def test_control_characters_do_not_reach_the_log(open_store, clock):
    store = open_store(Saying(Summary("tea\x00 \x1b[31mand\u202e  Oslo\x7f\r\n\n\x85 bo\ud800ats")))
    talk(store, 7)
    clock.on(2 * DAY)
    (window,) = store.consolidate("s").windows
    assert window.text == store.get(window.summary_id).content == "tea [31mand Oslo\nboats"


def test_a_window_that_keeps_failing_is_set_aside_and_the_others_go_on(open_store, clock):
    def answer(window):
        if any(source.content.startswith("turn0 ") for source in window.sources):
            raise TimeoutError
        return Summary("short")

    saying = Saying(answer)
    store = open_store(saying)
    turns = talk(store, 12)
    talk(store, 7, "t", start=20)
    clock.on(2 * DAY)
    done = store.consolidate()
    assert len(done.windows) == 2
    pauses = []
    for attempt in range(1, 100):
        (work,) = store.parked()
        assert (work.attempts, work.session_id, work.reason) == (attempt, "s", "raised TimeoutError")
        if work.next_at is None:
            break
        pauses.append(work.next_at - clock.now)
        clock.now = work.next_at - timedelta(seconds=10)
        assert store.consolidate().windows == ()
        assert store.parked() == [work]
        clock.now = work.next_at
        store.consolidate()
    assert attempt == ATTEMPTS_MAX
    assert pauses == sorted(pauses)
    calls = saying.calls
    clock.on(30 * DAY)
    store.consolidate(until_idle=True)
    assert saying.calls == calls
    assert store.retry_parked() == 1
    saying.answer = Summary("short")
    (window,) = store.consolidate().windows
    assert list(window.memory_ids) == turns[:5]
    assert store.parked() == []


def test_what_was_set_aside_and_is_no_more_is_not_shown_for_ever(open_store, clock):
    store = open_store(Saying(SummarizerFailed("saying", "refuses", retry=False)))
    turns = talk(store, 7)
    clock.on(2 * DAY)
    store.consolidate()
    assert len(store.parked()) == 1
    store.forget(turns[1])
    for each in turns[:5]:
        store.forget(each)
    store.consolidate()
    assert store.parked() == []


def test_a_session_that_cannot_be_read_holds_up_no_other(open_store, clock, own_server):
    store = open_store(Brief(), target=own_server.url)
    talk(store, 7)
    talk(store, 7, "t", start=20)
    position = next(event.position for event in store.events(session_id="s"))
    clock.on(2 * DAY)
    query = "UPDATE memfold.payloads SET sealed = set_byte(sealed, 20, get_byte(sealed, 20) # 1) WHERE position = %s"
    with psycopg.connect(own_server.url, autocommit=True) as owner:
        owner.execute(query, (position,))
        other = open_store(Brief(), target=own_server.url)
        done = other.consolidate(until_idle=True)
        assert [session.session_id for session in done.sessions if session.windows] == ["t"]
        (work,) = other.parked()
        assert work.session_id == "s"
        assert work.next_at is not None
        assert other.consolidate(until_idle=True).sessions == ()
        owner.execute(query, (position,))
    clock.on(HOUR)
    assert len(other.consolidate(until_idle=True).windows) == 1
    assert other.parked() == []
    assert_sound(other)


def test_many_memories_expire_at_once(open_store, clock):
    policy = Policy(windows=POLICY.windows, keep=Keep(newest=0), retention=Retention(max_age=30 * DAY))
    store = open_store(Brief(), policy)
    turns = talk(store, 1_500)
    clock.on(40 * DAY)
    last = talk(store, 2, start=5_000)
    assert set(store.consolidate("s", until_idle=True).sessions[0].expired) == set(turns)
    assert set(ids(store.find("s", include_archived=True))) == set(last)
    assert_sound(store)


def test_a_cap_stops_politely(open_store, clock):
    brief = Brief()
    store = open_store(brief, settings=Settings(pool_connections_max=8, llm_tokens_a_run_max=20))
    talk(store, 27)
    clock.on(2 * DAY)
    done = store.consolidate("s", until_idle=True)
    assert brief.calls == len(done.windows) == 2
    assert "20" in done.stopped
    assert_sound(store)
    rest = store.consolidate(until_idle=True)
    assert len(rest.windows) == 2
    assert rest.stopped
    while store.consolidate().windows:
        pass
    assert sum(len(window) for window in levels(store)) == 25
    assert_sound(store)


# --- policies, dry runs, clocks ---------------------------------------------------------------------------------------------


def test_policies_change_what_is_chosen(open_store, clock):
    brief = Brief()
    store = open_store(brief, None)
    turns = talk(store, 12)
    clock.on(2 * DAY)
    assert store.consolidate("s").windows == ()  # the twenty newest are kept
    store.set_policy(POLICY)
    store.set_policy(Policy(windows=Windows(enabled=False)), session_id="s")
    assert store.consolidate().windows == ()
    store.set_policy({"windows": {"memories_min": 2, "memories_max": 4}}, session_id="s")
    first = store.consolidate().windows
    assert [len(window.memory_ids) for window in first] == [4, 4]
    store.restore([window.summary_id for window in first])
    clock.on(2 * DAY)
    store.set_policy(
        {"windows": {"memories_min": 2, "memories_max": 4}, "keep": {"newest": 8, "importance_min": None}}, session_id="s"
    )
    (window,) = store.consolidate().windows
    assert list(window.memory_ids) == turns[:4]
    keys = [event.data.policy for event in store.events() if event.type == "WindowCompressed"]
    assert keys[-1] > keys[0]


def test_a_window_that_failed_under_one_policy_is_tried_under_the_next(open_store, clock):
    saying = Saying(SummarizerFailed("saying", "refuses", retry=False))
    store = open_store(saying)
    talk(store, 7)
    clock.on(2 * DAY)
    store.consolidate()
    store.consolidate()
    assert saying.calls == 1
    store.set_policy(POLICY)
    store.consolidate()
    assert saying.calls == 2
    assert len(store.parked()) == 1


def test_a_window_larger_than_the_session_waits(open_store, clock):
    policy = Policy(windows=Windows(memories_min=500, memories_max=1_000, pause=timedelta(days=300)), keep=Keep(newest=0))
    store = open_store(Brief(), policy)
    turns = talk(store, 7)
    clock.on(10 * DAY)
    done = store.consolidate("s")
    assert done.windows == ()
    assert done.sessions[0].due_at > clock.now
    clock.on(300 * DAY)
    (window,) = store.consolidate("s").windows
    assert list(window.memory_ids) == turns


EVERYTHING = """SELECT table_schema || '.' || table_name FROM information_schema.tables
                WHERE table_schema IN ('memfold', 'memfold_keys') AND table_type = 'BASE TABLE' ORDER BY 1"""


def contents(url, derived):
    with psycopg.connect(url) as connection:
        names = [name for (name,) in connection.execute(EVERYTHING).fetchall()]
        skipped = () if derived else ("memfold.directory", "memfold.windows", "memfold.checkpoints")
        query = "SELECT coalesce(sum(hashtextextended(t::text, 0)), 0) FROM {} t"
        return {name: connection.execute(query.format(name)).fetchone() for name in names if name not in skipped}


@pytest.mark.parametrize("session_id", ["s", None], ids=["one session", "all"])
def test_a_dry_run_writes_nothing(open_store, clock, own_server, session_id):
    policy = Policy(
        windows=POLICY.windows,
        keep=Keep(newest=2),
        fading=Fading(enabled=True),
        retention=Retention(max_age=timedelta(days=90)),
    )
    store = open_store(Saying(lambda window: Summary("short")), policy, target=own_server.url)
    talk(store, 14)
    store.remember("of little importance is this", session_id="s", importance=0.01, user_id="u")
    clock.on(80 * DAY)
    talk(store, 4)
    store.flush()
    for by in (0, 11):
        clock.on(by * DAY)
        store.consolidate(dry_run=True)  # the directory has followed the log
        before = contents(own_server.url, session_id is not None)
        told = store.consolidate(session_id, dry_run=True, summaries=True)
        assert contents(own_server.url, session_id is not None) == before
        assert {window.text for window in told.windows} <= {"short"}
        assert {window.summary_id for window in told.windows} <= {None}
        assert bool(told.sessions[0].faded) != bool(told.sessions[0].expired) or by
    done = store.consolidate(session_id)
    assert [window.memory_ids for window in done.windows] == [window.memory_ids for window in told.windows]
    assert done.sessions[0].expired == told.sessions[0].expired != ()


def test_fading_archives_and_restoring_brings_back(open_store, clock):
    policy = Policy(windows=Windows(enabled=False), keep=Keep(newest=0), fading=Fading(enabled=True))
    store = open_store(Brief(), policy)
    dull = store.remember("small talk about the rain", session_id="s", importance=0.1).id
    lasting = store.remember("the code of the safe is known to Bob", session_id="s", importance=0.95).id
    clock.on(60 * DAY)
    assert store.consolidate().sessions[0].faded == (dull,)
    assert ids(store.find("s")) == [lasting]
    assert dull not in [hit.memory.id for hit in store.recall("rain", session_id="s")]
    assert store.get(dull).status == "archived"
    assert store.consolidate("s").sessions[0].faded == ()
    assert ids(store.restore(dull)) == [dull]
    assert set(ids(store.find("s"))) == {dull, lasting}
    assert store.consolidate("s").sessions[0].faded == ()
    clock.on(60 * DAY)
    assert store.consolidate("s").sessions[0].faded == (dull,)
    assert_sound(store)


def test_retention_forgets_and_what_it_leaves_of_a_summary_comes_back(open_store, clock):
    brief = Brief()
    policy = Policy(windows=Windows(older_than=HOUR, memories_min=3, memories_max=5, depth_max=1), keep=Keep(newest=2))
    store = open_store(brief, policy)
    old = talk(store, 2)
    clock.on(12 * HOUR)
    young = talk(store, 5, start=2)
    clock.on(5 * HOUR)
    (window,) = store.consolidate("s").windows
    assert list(window.memory_ids) == [*old, *young[:3]]
    store.set_policy(Policy(windows=policy.windows, keep=policy.keep, retention=Retention(max_age=2 * DAY)))
    clock.on(32 * HOUR)
    done = store.consolidate("s", until_idle=True)
    assert set(done.sessions[0].expired) == set(old)
    for gone in (*old, window.summary_id):
        with pytest.raises(MemoryForgotten):
            store.get(gone)
    assert set(young) <= set(ids(store.find("s", include_archived=True)))
    assert_sound(store)


@pytest.mark.parametrize("years", [-5, 5])
def test_a_clock_that_jumps_delays_and_loses_nothing(open_store, clock, years):
    saying = Saying(lambda window: Summary("short") if "turn0 " in window.sources[0].content else ValueError("down"))
    store = open_store(saying)
    turns = talk(store, 12)
    talk(store, 7, "t", start=20)
    clock.on(2 * DAY)
    clock.on(years * 365 * DAY)
    store.consolidate(until_idle=True)
    clock.on(-years * 365 * DAY)
    saying.answer = Summary("short")
    clock.on(DAY)
    store.consolidate(until_idle=True)
    assert [len(window) for window in levels(store)] == [5, 5]
    assert [len(window) for window in levels(store, "t")] == [5]
    assert {memory for window in levels(store) for memory in window} == set(turns[:10])
    assert store.parked() == []
    assert_sound(store)
    assert_sound(store, "t")


# --- restoring, updating, forgetting ----------------------------------------------------------------------------------------

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("remember"), st.integers(1, 9)),
        st.tuples(st.just("update"), st.integers(0, 60)),
        st.tuples(st.just("forget"), st.integers(0, 60)),
        st.tuples(st.just("wait"), st.integers(1, 40)),
        st.tuples(st.just("consolidate"), st.just(0)),
    ),
    min_size=3,
    max_size=14,
)


def answers(store, session_id):
    """What a session says, with everything that ids and times make different left out."""
    found = store.find(session_id, order="oldest", limit=1_000).memories
    place = {memory.id: number for number, memory in enumerate(found)}
    hits = store.recall("tea and Oslo, trains?", session_id=session_id, limit=50)
    text = store.context("boats and rain", session_id=session_id, max_tokens=300).text
    return (
        [(memory.content, memory.status, memory.importance, memory.version) for memory in found],
        [(place[hit.memory.id], round(hit.score, 9)) for hit in hits],
        text,
        store.count(session_id),
        [store.get(memory.id) == memory for memory in found],
    )


@pytest.fixture
def pair(make_store, tenant):
    """Two stores that nothing connects, with a clock each."""
    policy = Policy(windows=Windows(memories_min=2, memories_max=4, older_than=HOUR), keep=Keep(newest=1))
    clocks = Clock(), Clock()
    stores = [make_store(tenant=f"{tenant}-{n}", summarizer=Brief(), clock=clock) for n, clock in enumerate(clocks)]
    for store in stores:
        store.set_policy(policy)
    return list(zip(stores, clocks, ([], []), strict=True))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS)
def test_consolidated_and_restored_a_session_is_as_if_it_never_was(pair, steps):
    (store, *_), (never, *_) = pair
    session_id = f"s{newest(store)}"
    for _, _, made in pair:
        made.clear()
    for number, (step, size) in enumerate([("remember", 3), *steps, ("wait", 40), ("consolidate", 0)]):
        at = max(clock.now for _, clock, _ in pair)
        for each, clock, made in pair:
            clock.now = at
            if step == "remember":
                made.extend(talk(each, size, session_id, start=100 * number))
            elif step == "update" and made:
                each.update(made[size % len(made)], content=sentence(100 * number))
            elif step == "forget" and made:
                each.forget(made.pop(size % len(made)))
            elif step == "wait":
                clock.on(size * DAY)
            elif step == "consolidate" and each is store:
                store.consolidate(session_id, until_idle=True)
    assert_sound(store, session_id)
    while summaries := [each.id for each in store.find(session_id, limit=1_000).memories if each.category == "summary"]:
        store.restore(summaries)
    assert answers(store, session_id) == answers(never, session_id)
    assert store.count(session_id, include_archived=True) == never.count(session_id)


def test_an_archived_memory_can_be_updated_and_stays_archived(open_store, clock):
    store = open_store(Brief())
    turns = talk(store, 7)
    clock.on(2 * DAY)
    (window,) = store.consolidate("s").windows
    updated = store.update(turns[1], content="turn1 is about whales now")
    assert (updated.status, updated.version) == ("archived", 2)
    assert turns[1] not in ids(store.find("s"))
    assert store.recall("whales", session_id="s", include_archived=True)[0].memory.content == "turn1 is about whales now"
    assert ids(store.sources(window.summary_id)) == turns[:5]
    assert store.consolidate("s", until_idle=True).windows == ()
    other = open_store(Brief())
    assert other.get(turns[1]) == store.get(turns[1])
    assert_sound(other)
    store.forget(turns[1])
    with pytest.raises(MemoryForgotten):
        other.get(window.summary_id)
    assert set(ids(other.find("s"))) == set(turns) - {turns[1]}


SECRETS = ["xylophone", "marzipan", "quagmire"]


def assert_nothing_is_left(store, url, gone, sources, copies, session_id, after):
    """Of the summaries `gone` nothing is read, found or recalled, and their keys open to nobody, also if they are put back."""
    told = [repr(event.data) for event in store.events(after)]
    views = ({"session_id": session_id}, {"session_ids": [session_id, "other"]}, {"user_id": "u"}, {})
    for scope in views:
        for include_archived in (False, True):
            hits = store.recall("xylophone marzipan", limit=50, include_archived=include_archived, **scope)
            told += [repr(hit) + hit.memory.content for hit in hits]
            assert not gone & {hit.memory.id for hit in hits}
            told.append(store.context("quagmire", max_tokens=2_000, include_archived=include_archived, **scope).text)
    found = store.find(session_id, limit=10_000, include_archived=True).memories
    told += [memory.content for memory in found]
    assert not gone & set(ids(found))
    for memory_id in gone:
        with pytest.raises((MemoryForgotten, MemoryNotFound)):  # not found, if it was undone before
            store.get(memory_id)
        with pytest.raises((MemoryForgotten, MemoryNotFound)):
            store.sources(memory_id)
        assert {change.memory for change in store.history(memory_id)} == {None}
    for memory_id in sources:
        assert not gone & set(ids(store.derived_from(memory_id)))
    assert not any(secret in text for text in told for secret in SECRETS)
    with psycopg.connect(url, autocommit=True) as owner:
        left = owner.execute(LEFT, (list(gone),)).fetchone()
        assert left == (0, 0, 0)
        for position, wrapped, sealed, tenant in copies:
            owner.execute(
                "UPDATE memfold_keys.keys SET wrapped = %s WHERE (tenant_id, position) = (%s, %s)", (wrapped, tenant, position)
            )
            owner.execute("INSERT INTO memfold.payloads VALUES (%s, %s, %s)", (tenant, position, sealed))
    assert not any(secret in repr(event.data) for event in store.events(after) for secret in SECRETS)


LEFT = """
SELECT count(p.sealed), count(v.sealed), coalesce(max(length(k.wrapped)), 0) FROM memfold.events e
LEFT JOIN memfold.payloads p USING (tenant_id, position) LEFT JOIN memfold.embeddings v USING (tenant_id, position)
LEFT JOIN memfold_keys.keys k USING (tenant_id, position) WHERE e.memory_id = ANY(%s::uuid[])"""
COPIES = """
SELECT position, wrapped, sealed, tenant_id FROM memfold.events JOIN memfold_keys.keys USING (tenant_id, position)
JOIN memfold.payloads USING (tenant_id, position) WHERE memory_id = ANY(%s::uuid[])"""


def tree(store, rand, session_id, start, fan_in, depth):
    """Turns, and the summaries above them, each of the one below and perhaps of more; the topmost undone now and then."""
    turns = talk(store, fan_in, session_id, start=start)
    made = [summarize(store, turns, " ".join(SECRETS))]
    for height in range(1, depth):
        more = talk(store, rand.randrange(3), session_id, start=start + 100 * height)
        made.append(summarize(store, [made[-1], *more], f"{SECRETS[height % 3]} {height}"))
    if rand.random() < 0.3:
        store.restore(made[-1])
    return turns, made


def forget_at_the_bottom(open_store, url, rand, *, rounds, trees=1, fan_in=50, depth=3):
    """Under each of some trees of summaries one source is forgotten; return how many that were."""
    writer, warm = open_store(Brief()), open_store(Brief())
    for number in range(rounds):
        session_id, after = f"s{number}", writer.stats().position
        made = [tree(writer, rand, session_id, 1_000 * place, fan_in, depth) for place in range(trees)]
        gone = {summary for _, summaries in made for summary in summaries}
        turns = {turn for some, _ in made for turn in some}
        for store in (writer, warm):
            known = store.recall("xylophone marzipan", session_id=session_id, include_archived=True, limit=100)
            assert known[0].memory.id in gone or depth == 1
            store.recall("marzipan", wait_s=5)
            store.recall("marzipan", user_id="u", wait_s=5, include_archived=True)
        with psycopg.connect(url) as owner:
            copies = owner.execute(COPIES, (list(gone),)).fetchall()
        assert len(copies) == depth * trees
        for some, _ in made:
            victim = rand.choice(some)
            rand.choice((writer, warm)).forget(victim)
            turns.remove(victim)
        stores = [writer, warm, open_store(Brief())] if number % 25 == 0 else [writer, warm]
        some_left = rand.sample(sorted(turns), 20)
        for store in stores:
            assert_nothing_is_left(store, url, gone, some_left, [], session_id, after)
        assert_nothing_is_left(writer, url, gone, some_left, copies, session_id, after)
        assert set(ids(writer.find(session_id, limit=1_000))) >= turns
        with psycopg.connect(url, autocommit=True) as owner:  # as it was, for `verify`
            for position, _, _, tenant in copies:
                owner.execute("DELETE FROM memfold.payloads WHERE (tenant_id, position) = (%s, %s)", (tenant, position))
                query = "UPDATE memfold_keys.keys SET wrapped = '' WHERE (tenant_id, position) = (%s, %s)"
                owner.execute(query, (tenant, position))
        writer.forget_session(session_id)
        print((number + 1) * trees, flush=True)
    assert verify(writer._database, writer._keyring, 2**62).findings == []
    return rounds * trees


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_forgetting_a_source_at_the_bottom_leaves_nothing_of_any_summary(open_store, server_url, rand, depth):
    forget_at_the_bottom(open_store, server_url, rand, rounds=2, depth=depth)


@pytest.mark.soak
def test_forgetting_a_source_a_thousand_times_leaves_nothing(open_store, server_url, rand, capsys):
    with capsys.disabled():
        done = forget_at_the_bottom(open_store, server_url, rand, rounds=100, trees=10)
        print(f"\n{done} of {done}: nothing is left")


def test_what_others_hold_in_ram_is_gone_too(open_store, clock):
    """Views that were warm in another store, wide ones too, and views of the past."""
    store, other = open_store(Saying(Summary("xylophone"))), open_store(Brief())
    turns = talk(store, 7)
    clock.on(2 * DAY)
    (window,) = store.consolidate("s").windows
    position = newest(store)
    scopes = ({"session_id": "s"}, {"user_id": "u"}, {}, {"session_id": "s", "as_of": position}, {"as_of": position})

    def found(**more):
        hits = [other.recall("xylophone", wait_s=5, **scope, **more) for scope in scopes]
        return [[hit.memory.id for hit in some if hit.memory.id == window.summary_id] for some in hits]

    assert found() == found(include_archived=True) == [[window.summary_id]] * len(scopes)
    store.forget(turns[0])
    assert found() == found(include_archived=True) == [[]] * len(scopes)
    assert other.count("s", as_of=position) == 6


# --- what it costs at the edge of an age ------------------------------------------------------------------------------------


def summaries_made(make_store, tenant, retention, days):
    """Of ten messages a day, consolidated each night."""
    clock, brief = Clock(), Brief()
    store = make_store(tenant=f"{tenant}-{retention.max_age}-{retention.session_memories_max}", summarizer=brief, clock=clock)
    store.set_policy(Policy(windows=Windows(), keep=Keep(newest=5), retention=retention))
    for day in range(days):
        for number in range(10):
            talk(store, 1, start=10 * day + number)
            clock.on(DAY / 10)
        store.consolidate("s", until_idle=True)
    store.close()
    return brief.calls


def at_the_edge(make_store, tenant, days, retentions):
    """How many more summaries are made because of each limit, as a share of those that are made without any."""
    without = summaries_made(make_store, tenant, Retention(), days)
    return {name: summaries_made(make_store, tenant, each, days) / without for name, each in retentions.items()}


def test_at_the_edge_of_a_limit_nothing_is_summarized_again_and_again(make_store, tenant):
    limits = {"age": Retention(max_age=8 * DAY), "number": Retention(session_memories_max=80)}
    found = at_the_edge(make_store, tenant, 18, limits)
    assert all(share <= 1.1 for share in found.values()), found


@pytest.mark.soak
def test_a_year_at_the_edge_of_a_limit(make_store, tenant, capsys):
    limits = {"30 days": Retention(max_age=30 * DAY), "90 days": Retention(max_age=90 * DAY)}
    limits |= {"300 memories": Retention(session_memories_max=300)}
    found = at_the_edge(make_store, tenant, 365, limits)
    with capsys.disabled():
        print(f"\n{found}")
    assert all(share <= 1.1 for share in found.values()), found


@pytest.mark.parametrize("limit", ["session_memories_max", "session_bytes_max"])
def test_a_session_with_a_limit_is_looked_at_again_for_what_was_remembered_since(make_store, limit):
    clock = Clock()
    store = make_store(clock=clock, summarizer=Brief())
    store.set_policy({"keep": {"newest": 2}, "retention": {limit: 100_000}})
    talk(store, 2)
    assert store.consolidate().windows == ()
    talk(store, 20, start=2)
    clock.on(3 * DAY)
    assert store.consolidate().windows != ()


def test_a_session_is_looked_at_in_time_when_its_bytes_may_be_too_many(make_store):
    clock = Clock()
    store = make_store(clock=clock, summarizer=Brief())
    store.set_policy({"keep": {"newest": 2}, "retention": {"session_bytes_max": 1_000}, "windows": {"enabled": False}})
    store.remember_many(["tea " * 20] * 5, session_id="s")
    assert store.consolidate().sessions[0].expired == ()
    store.remember_many(["tea " * 20] * 20, session_id="s")
    store.consolidate()
    assert sum(len(memory.content) for memory in store.find("s", include_archived=True, limit=100).memories) <= 1_000


def test_restoring_in_a_session_that_is_forgotten_meanwhile_makes_no_new_one(make_store, monkeypatch):
    clock = Clock()
    store, other = make_store(clock=clock, summarizer=Brief()), make_store(clock=clock)
    store.set_policy(POLICY)
    talk(store, 12)
    clock.on(3 * DAY)
    summary = store.consolidate("s").windows[0].summary_id
    restore = store._restorer._restore

    def late(session_id, memory_ids):
        look = store._lookup.view_of

        @contextmanager
        def forgotten_behind(memory_id):
            with look(memory_id) as view:
                yield view
            monkeypatch.setattr(store._lookup, "view_of", look)
            other.forget_session("s")
            store._keyring.drop("s")

        monkeypatch.setattr(store._lookup, "view_of", forgotten_behind)
        return restore(session_id, memory_ids)

    monkeypatch.setattr(store._restorer, "_restore", late)
    with pytest.raises(MemoryForgotten):
        store.restore(summary)
    assert store.sessions().sessions == []
    assert store._keyring.find_session("s") is None
