"""The work behind the log: who does it when, what becomes of it when somebody dies, and what `status` says of it."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta

import psycopg
import pytest
from conftest import MASTER_KEY
from typer.testing import CliRunner

from memfold import MemoryStore, Settings, SettingsError
from memfold.api import cli, working
from memfold.consolidator import scheduling
from memfold.consolidator.scheduling import Ticker, parsed
from memfold.consolidator.summarizer import Summary
from memfold.consolidator.worker import Job, Outcome, Worker
from memfold.errors import SummarizerFailed
from memfold.eventstore import jobnotes

EVERY = {"consolidate": 0.1, "embed": 0.1, "directory": 0.1}
AT_ONCE = {"windows": {"older_than": "P0D", "memories_max": 8}, "keep": {"newest": 0}}
BEGINNING = datetime(2024, 1, 1, tzinfo=UTC)


def wait_for(condition, seconds=20.0):
    """Wait until something is so, and return what it is."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, "it never came to that"
        time.sleep(0.02)
    return found


def talk(store, session_id="s", count=12):
    """Enough to be summarized."""
    return store.remember_many(
        [
            {
                "content": f"On day {number} Anna walked {number} km to Birchwood, met {number} people and had a soup.",
                "occurred_at": BEGINNING + timedelta(minutes=number),
            }
            for number in range(count)
        ],
        session_id=session_id,
    )


def summaries(store):
    return store.find(where={"category": "summary"}).memories


def job(store, name):
    return {each.name: each for each in store.status().jobs}[name]


@pytest.fixture
def working_store(make_store):
    """Stores that work in the background, at short intervals."""

    def make(**options):
        return make_store(background=EVERY, **options)

    return make


# -- in a library process ------------------------------------------------------------------------------------------------------


def test_a_store_with_a_background_consolidates_by_itself_and_says_so(store, working_store):
    store.set_policy(AT_ONCE)
    before = talk(store)
    assert {each.has_worker for each in store.status().jobs} == {False}

    working_store()

    assert wait_for(lambda: summaries(store))
    assert wait_for(lambda: all(each.runs for each in store.status().jobs))
    found = store.status()
    assert all(each.has_worker and each.next_at and each.failures == 0 and each.reason is None for each in found.jobs)
    assert [each.name for each in found.jobs] == ["consolidate", "embed", "directory"]
    assert wait_for(lambda: store.status().directory_lag == store.status().embedding_lag == 0)
    archived = {memory.id for memory in store.find(include_archived=True).memories if memory.status == "archived"}
    assert archived
    assert archived <= {memory.id for memory in before}


def test_nothing_runs_without_being_asked(store):
    talk(store)
    store.consolidate(dry_run=True)

    assert not [thread.name for thread in threading.enumerate() if thread.name == "memfold-work"]
    assert [(each.runs, each.last_started_at, each.next_at) for each in store.status().jobs] == [(0, None, None)] * 3
    assert store.status().summarizer.startswith("extractive")


class Slow:
    """A summarizer that waits until it is told to go on."""

    name = "slow"

    def __init__(self):
        self.entered, self.may_leave, self.calls = threading.Event(), threading.Event(), 0

    def summarize(self, window):
        self.calls += 1
        self.entered.set()
        assert self.may_leave.wait(20)
        return Summary(text="Anna walked.")


def test_close_finishes_the_window_at_hand_and_no_other(make_store, store):
    store.set_policy(AT_ONCE | {"windows": {"older_than": "P0D", "memories_max": 4}})
    talk(store, count=12)
    slow = Slow()
    busy = make_store(background=EVERY, summarizer=slow)
    assert slow.entered.wait(20)
    assert wait_for(lambda: job(store, "consolidate").running)

    closing = threading.Thread(target=busy.close)
    closing.start()
    slow.may_leave.set()
    closing.join(20)

    assert not closing.is_alive()
    assert slow.calls == 1
    assert len(summaries(store)) == 1
    found = job(store, "consolidate")
    assert (found.running, found.has_worker, found.next_at, found.failures, found.reason) == (False, False, None, 0, None)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # psycopg complains of connections left open
def test_a_store_that_nobody_uses_any_more_stops_working(server_url, tenant):
    MemoryStore(server_url, tenant=tenant, master_key=MASTER_KEY, background=EVERY)

    wait_for(lambda: "memfold-work" not in {thread.name for thread in threading.enumerate()})


def test_work_ends_when_it_is_told_to_and_when_its_store_closes(make_store):
    for end in (lambda store, stop: stop.set(), lambda store, stop: store.close()):
        store, stop = make_store(), threading.Event()
        thread = threading.Thread(target=store.work, args=(EVERY,), kwargs={"stop": stop})
        thread.start()
        wait_for(lambda: job(make_store(), "directory").has_worker)

        end(store, stop)

        thread.join(20)
        assert not thread.is_alive()


@pytest.mark.parametrize(
    ("jobs", "told"),
    [
        ({"consolidat": 1}, "jobs has no job 'consolidat'"),
        ({"embed": 0}, "jobs.embed is no schedule"),
        ({"embed": -1}, "jobs.embed is no schedule"),
        ({"embed": True}, "jobs.embed is no schedule"),
        ({"embed": float("nan")}, "jobs.embed is no schedule"),
        ({"embed": "999999999d"}, "jobs.embed is no schedule"),
        ({"embed": timedelta(days=1000)}, "jobs.embed is no schedule"),
        ({"embed": "often"}, "jobs.embed is neither an interval"),
        ({"embed": "61 * * * *"}, "jobs.embed is neither an interval"),
        ({"embed": "* * *"}, "jobs.embed is neither an interval"),
        ({"embed": ""}, "jobs.embed is neither an interval"),
        (["embed"], "jobs is list"),
    ],
)
def test_a_schedule_that_is_none_is_refused(make_store, jobs, told):
    store = make_store()
    with pytest.raises(SettingsError, match=re.escape(told)):
        store.work(jobs)
    with pytest.raises(SettingsError, match=re.escape(told)):
        make_store(background=jobs)
    assert "memfold-work" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (90, timedelta(seconds=90)),
        (0.5, timedelta(seconds=0.5)),
        ("60s", timedelta(seconds=60)),
        ("1.5h", timedelta(minutes=90)),
        ("2 d", timedelta(days=2)),
        (timedelta(minutes=5), timedelta(minutes=5)),
        ("0 3 * * *", "0 3 * * *"),
        ("off", None),
        (None, None),
    ],
)
def test_a_schedule_can_be_said_in_several_ways(given, meant):
    assert parsed("jobs.embed", given) == meant


# -- failures ------------------------------------------------------------------------------------------------------------------


class Down:
    """A summarizer that is down until it is mended."""

    name = "down"

    def __init__(self):
        self.mended = False

    def summarize(self, window):
        if not self.mended:
            raise SummarizerFailed(self.name, "does not answer", retry=True)
        return Summary(text="Anna walked.")


def test_a_summarizer_that_is_down_shows_in_the_status_and_the_other_jobs_go_on(store, working_store):
    store.set_policy(AT_ONCE)
    talk(store)

    working_store(summarizer=Down())

    found = wait_for(lambda: (found := store.status()) and found.parked and found)
    assert found.parked == {"consolidate": 1}
    runs = found.jobs[2].runs
    wait_for(lambda: job(store, "directory").runs > runs)
    wait_for(lambda: job(store, "embed").runs > 1)
    assert store.parked()[0].reason == "does not answer"


def run_jobs(store, jobs, *, until, every=0.05):
    """Run jobs of the test's own as a worker does, until something is so."""
    worker = Worker(
        *(store._database, store._keyring.tenant, jobs, {each.name: timedelta(seconds=every) for each in jobs}),
        clock=store._clock,
        go_on=lambda: True,
    )
    ended = threading.Event()
    thread = threading.Thread(target=worker.run, args=(ended,))
    thread.start()
    try:
        wait_for(until)
    finally:
        ended.set()
        thread.join(20)
    assert not thread.is_alive()


class Unspeakable(Exception):
    """An error with somebody's words in it."""


def test_a_job_that_raises_is_noted_without_a_word_of_anybody_and_the_others_go_on(store):
    ran = {"good": 0, "bad": 0, "ours": 0}

    def run(name, error=None):
        def step(turn):
            ran[name] += 1
            if error and ran[name] <= 3:
                raise error
            return Outcome()

        return step

    bad, ours = run("bad", Unspeakable("the secret of Anna")), run("ours", SummarizerFailed("x", "does not answer", retry=True))
    jobs = [Job("bad", bad), Job("good", run("good")), Job("ours", ours)]
    notes = lambda: jobnotes.noted(store._database, store._keyring.tenant)  # noqa: E731

    run_jobs(store, jobs, until=lambda: ran["bad"] == 3)
    failed = notes()
    ran["bad"] = 3
    run_jobs(store, jobs, until=lambda: ran["bad"] > 4 and ran["ours"] > 4)

    assert (failed["bad"].reason, failed["bad"].failures) == ("Unspeakable", 3)
    assert failed["ours"].reason == "SummarizerFailed: the summarizer x does not answer; the memories are as they were"
    assert failed["good"].failures == 0
    assert failed["good"].runs >= 2
    mended = notes()
    assert [(each.failures, each.reason) for each in mended.values()] == [(0, None)] * 3
    assert mended["bad"].runs > failed["bad"].runs


def test_a_worker_whose_connections_were_cut_goes_on(store, server_url):
    ran = []

    def step(turn):
        ran.append(1)
        return Outcome()

    def cut():
        if len(ran) == 2:
            query = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'memfold'"
            with psycopg.connect(server_url) as owner:
                assert owner.execute(query).fetchall()
            ran.append(1)
        return len(ran) > 5

    run_jobs(store, [Job("one", step)], until=cut)
    assert jobnotes.noted(store._database, store._keyring.tenant)["one"].failures == 0


def test_limits_near_their_end_and_what_was_spent_are_in_the_status(make_store):
    store = make_store(settings=Settings(pool_connections_max=8, llm_tokens_a_day_max=1_000))
    store.set_policy({"retention": {"session_memories_max": 10}})
    talk(store, "nearly", count=8)
    talk(store, "far", count=7)
    store._database.rows(
        "SELECT memfold.spend(%s, %s, 'm', 700, 150, 0.5, 1)", (store._keyring.tenant, datetime.now(UTC).date())
    )
    store._database.rows("SELECT memfold.spend(%s, '2020-01-01', 'm', 1, 1, 0.5, 1)", (store._keyring.tenant,))
    store.consolidate(dry_run=True)

    found = store.status()

    assert (found.tokens_today, found.tokens, found.cost_today, found.cost) == (850, 852, 0.5, 1.0)
    assert [(each.limit, each.used, each.allowed, each.session_id) for each in found.near_limits] == [
        ("llm_tokens_a_day_max", 850, 1_000, None),
        ("session_memories_max", 8, 10, "nearly"),
    ]
    assert "nearly" not in repr(found)


def test_what_is_due_and_what_lags_is_counted(store):
    store.set_policy(AT_ONCE)
    for name in "abc":
        talk(store, name, count=4)
    assert store.status().directory_lag > 0
    store.consolidate("a")

    found = store.status()

    assert job(store, "directory").due == found.directory_lag
    store._consolidating.projector.catch_up(time.monotonic() + 20)
    assert job(store, "consolidate").due == 3
    store.consolidate(until_idle=True)
    assert job(store, "consolidate").due == 0


# -- clocks that jump ----------------------------------------------------------------------------------------------------------


class Jumping(datetime):
    """A wall clock that can be set."""

    ahead = timedelta(0)

    @classmethod
    def now(cls, tz=None):
        return datetime.now(tz) + cls.ahead


@pytest.fixture
def wall(monkeypatch):
    from apscheduler.schedulers import base
    from apscheduler.triggers import interval

    monkeypatch.setattr(Jumping, "ahead", timedelta(0))
    for module in (base, interval, scheduling):
        monkeypatch.setattr(module, "datetime", Jumping)
    return Jumping


def drive(ticker, until, seconds=5.0):
    """Ask a ticker to run what is due, as a worker does, until something is so; whether it came to that."""
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        wait_s = ticker.run_due()
        time.sleep(min(0.02, wait_s or 0.02))
    return until()


@pytest.mark.parametrize("jump", [timedelta(days=-400), timedelta(hours=-1), timedelta(hours=1), timedelta(days=400)])
def test_a_wall_clock_that_jumps_neither_stops_the_jobs_nor_floods_them(wall, jump):
    ran = []
    ticker = Ticker({"one": lambda: ran.append(1)}, {"one": timedelta(seconds=0.1)})
    assert drive(ticker, lambda: len(ran) == 2)

    wall.ahead = jump
    ticker.run_due()

    assert len(ran) <= 3, "it made up for ticks that never were"
    assert drive(ticker, lambda: len(ran) >= 5)
    assert abs(ticker.next_in()["one"]) <= timedelta(seconds=0.2)
    ticker.close()


def test_a_clock_of_the_store_that_jumps_does_not_stop_the_work(make_store):
    class Clock:
        now = datetime(2026, 6, 1, tzinfo=UTC)

        def __call__(self):
            return self.now

    clock = Clock()
    store = make_store(clock=clock, background=EVERY)
    store.set_policy(AT_ONCE | {"windows": {"older_than": "P7D"}})
    talk(store)
    wait_for(lambda: job(store, "consolidate").runs > 1)
    assert summaries(store) == []

    clock.now = datetime(2020, 1, 1, tzinfo=UTC)
    runs = job(store, "consolidate").runs
    wait_for(lambda: job(store, "consolidate").runs > runs + 1)
    assert summaries(store) == []
    clock.now = datetime(2026, 7, 1, tzinfo=UTC)

    assert wait_for(lambda: summaries(store))
    assert job(store, "consolidate").failures == 0


# -- processes -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def start(server_url, tenant):
    """Starts `memfold work` in processes of their own; kills what is left of them."""
    processes = []
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MEMFOLD_")}
    environment = clean | {"MEMFOLD_TARGET": server_url, "MEMFOLD_MASTER_KEY": MASTER_KEY, "PYTHONUNBUFFERED": "1"}

    def begin(*arguments):
        command = [sys.executable, "-m", "memfold", "work", "--tenant", tenant, *arguments]
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert b"working" in process.stderr.readline()
        processes.append(process)
        return process

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


def worker_of(store, name="consolidate"):
    return jobnotes.noted(store._database, store._keyring.tenant)[name].worker


def test_of_two_workers_one_acts_and_when_it_is_killed_the_other_takes_over(store, start):
    store.set_policy(AT_ONCE)
    first = start("--every", "0.1")
    wait_for(lambda: all(each.runs for each in store.status().jobs))
    acting = worker_of(store)
    second = start("--every", "0.1")
    runs = job(store, "consolidate").runs
    wait_for(lambda: job(store, "consolidate").runs > runs + 3)
    assert worker_of(store) == worker_of(store, "embed") == acting

    first.send_signal(signal.SIGKILL)
    first.wait()
    talk(store)

    wait_for(lambda: worker_of(store) != acting)
    assert wait_for(lambda: summaries(store))
    wait_for(lambda: all(each.has_worker for each in store.status().jobs))
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0
    assert {(each.has_worker, each.running, each.next_at) for each in store.status().jobs} == {(False, False, None)}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_work_with_exit_status_0(store, start, number):
    store.set_policy(AT_ONCE)
    talk(store)
    process = start("--every", "0.1")
    wait_for(lambda: all(each.runs for each in store.status().jobs))

    process.send_signal(number)

    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (0, b"")
    assert b"Traceback" not in err
    assert not any(each.running or each.has_worker for each in store.status().jobs)


SLOWLY = """
import sys, time
from memfold import MemoryStore
from memfold.api.cli_work import stopping
from memfold.consolidator.summarizer import Summary

class Slow:
    name = "slow"

    def summarize(self, window):
        print("entered", flush=True)
        time.sleep(0.7)
        return Summary(text="Anna walked.")

with stopping() as stop, MemoryStore(sys.argv[1], tenant=sys.argv[2], master_key=sys.argv[3], summarizer=Slow()) as store:
    store.work({"consolidate": 0.1}, stop=stop)
"""


def test_a_signal_lets_the_window_at_hand_be_finished_and_begins_no_other(store, server_url, tenant):
    store.set_policy(AT_ONCE | {"windows": {"older_than": "P0D", "memories_max": 4}})
    talk(store)
    with subprocess.Popen([sys.executable, "-c", SLOWLY, server_url, tenant, MASTER_KEY], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"entered\n"
        process.send_signal(signal.SIGTERM)
        rest, _ = process.communicate(timeout=30)

    assert (process.returncode, rest) == (0, b"")
    assert len(summaries(store)) == 1
    assert not job(store, "consolidate").running


def test_a_second_signal_ends_work_at_once():
    stop = (
        "from memfold.api.cli_work import stopping\nimport time\nwith stopping() as s:\n print(1, flush=True)\n time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", stop], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == -signal.SIGTERM


# -- the command line ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(server_url, tenant):
    def run(*arguments, key=MASTER_KEY):
        runner = CliRunner(env={"MEMFOLD_TARGET": server_url, "MEMFOLD_MASTER_KEY": key})
        return runner.invoke(cli.app, [*arguments, "--tenant", tenant], prog_name="memfold")

    return run


def test_status_says_how_each_job_fares(store, working_store, shell):
    working_store()
    wait_for(lambda: all(each.runs and each.next_at for each in store.status().jobs))

    told, found = shell("status").output, json.loads(shell("status", "--json").output)

    assert all(name in told for name in working.DEFAULTS)
    assert "embedding lag: 0" in told
    assert found["reachable"]
    assert [each["name"] for each in found["work"]["jobs"]] == list(working.DEFAULTS)
    assert all(each["has_worker"] for each in found["work"]["jobs"])


def test_status_without_the_key_says_what_it_can(shell):
    result = shell("status", "--json", key=None)
    found = json.loads(result.output)

    assert (result.exit_code, found["reachable"], found["work"]) == (0, True, None)
    assert "MEMFOLD_MASTER_KEY" in found["work_problem"]


@pytest.mark.parametrize("schedule", ["often", "0", "* * *"])
def test_work_refuses_a_schedule_that_is_none(shell, schedule):
    result = shell("work", "--every", schedule)
    assert result.exit_code == 1
    assert "jobs.consolidate is n" in result.output
