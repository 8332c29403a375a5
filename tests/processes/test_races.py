"""Races, each held still at its worst line: a lock another connection holds, a call that is paused, a line that is cut.

Two stores in one process share nothing but the database, so they stand for two processes wherever no memory is at stake.
"""

import base64
import secrets
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from memfold import Contended, MemoryForgotten, MemoryStore, Settings, StoreUnavailable, VersionConflict
from memfold.eventstore import derived
from memfold.eventstore.append import Verdict, call

PATIENCE_S = 20
MASTER_KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()  # of the stores that `make_store` opens


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(32) as pool:
        yield pool


class Pause:
    """Stops the next caller of a method before or after it does its work, until told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, *, after: bool = False) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._work, self._after, self._armed = getattr(owner, name), after, threading.Lock()
        monkeypatch.setattr(owner, name, self._call)

    def _call(self, *args: Any, **options: Any) -> Any:
        stops = self._armed.acquire(blocking=False)
        if not self._after and stops:
            self._stop()
        result = self._work(*args, **options)
        if self._after and stops:
            self._stop()
        return result

    def _stop(self) -> None:
        self.reached.set()
        assert self.go.wait(PATIENCE_S)

    def __enter__(self) -> None:
        assert self.reached.wait(PATIENCE_S)

    def __exit__(self, *_: object) -> None:
        self.go.set()


@contextmanager
def holding(url: str, query: str, *parameters: Any) -> Iterator[psycopg.Connection[Any]]:
    """Rows locked by somebody else, until the block ends."""
    with psycopg.connect(url) as owner:
        assert owner.execute(query, parameters).fetchall()
        yield owner
        owner.rollback()


HEAD = "SELECT 1 FROM memfold.heads WHERE stream_id = %s FOR UPDATE"


def stream_of(store: MemoryStore, session_id: str) -> UUID:
    ref = store._keyring.find_session(session_id)
    assert ref is not None
    return UUID(bytes=ref.stream)


def wait_until(happened: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def await_blocked(url: str, count: int = 1) -> list[int]:
    """Wait until `count` of memfold's statements wait for a lock; their backends."""
    pids: list[int] = []

    def look() -> bool:
        with psycopg.connect(url, autocommit=True) as owner:
            query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'memfold' AND wait_event_type = 'Lock'"
            pids[:] = [pid for (pid,) in owner.execute(query).fetchall()]
        return len(pids) >= count

    wait_until(look)
    return pids


def living(store: MemoryStore, memory_id: str) -> int:
    """How many events of a memory still have a key, a payload or a vector."""
    query = """SELECT count(*) AS found FROM memfold.events e WHERE e.memory_id = %s AND e.type <> 3 AND (
        EXISTS (SELECT FROM memfold_keys.keys k WHERE (k.tenant_id, k.position) = (e.tenant_id, e.position))
        OR EXISTS (SELECT FROM memfold.payloads p WHERE (p.tenant_id, p.position) = (e.tenant_id, e.position))
        OR EXISTS (SELECT FROM memfold.embeddings v WHERE (v.tenant_id, v.position) = (e.tenant_id, e.position)))"""
    return int(store._database.row(query, (UUID(memory_id),)).found)


def assert_unreadable(store: MemoryStore, memory_id: str, session_id: str, *words: str) -> None:
    with pytest.raises(MemoryForgotten):
        store.get(memory_id)
    assert living(store, memory_id) == 0
    assert [change.memory for change in store.history(memory_id)] == [None] * len(store.history(memory_id))
    for word in words:
        for hit in store.recall(word, session_id=session_id):
            assert hit.memory.id != memory_id
            assert word not in hit.memory.content
    for event in store.events():
        assert event.memory_id != memory_id or event.data is None or type(event.data).__name__ == "MemoryForgotten"


# --- updating against forgetting ---------------------------------------------------------------------------------------------


def test_an_update_decided_before_a_forget_does_not_bring_the_memory_back(make_store, threads, monkeypatch):
    store, other = make_store(), make_store()
    memory = store.remember("aardvark", session_id="s")
    pause = Pause(monkeypatch, store._committer, "append")

    update = threads.submit(store.update, memory.id, content="bandicoot")
    with pause:
        other.forget(memory.id)

    with pytest.raises(MemoryForgotten):
        update.result(PATIENCE_S)
    for each in (store, other, make_store()):
        assert_unreadable(each, memory.id, "s", "aardvark", "bandicoot")


@pytest.mark.parametrize("forget", ["memory", "session", "user"])
def test_a_forget_that_waits_behind_an_update_destroys_what_the_update_wrote(make_store, server_url, threads, forget):
    store, other = make_store(), make_store()
    memory = store.remember("aardvark", session_id="s", user_id="u")
    verb = {"memory": (other.forget, memory.id), "session": (other.forget_session, "s"), "user": (other.forget_user, "u")}[
        forget
    ]

    with holding(server_url, HEAD, stream_of(store, "s")):
        update = threads.submit(store.update, memory.id, content="bandicoot")
        await_blocked(server_url)
        forgotten = threads.submit(*verb)
        await_blocked(server_url, 2)

    erasure = forgotten.result(PATIENCE_S)
    assert memory.id in erasure.memory_ids
    try:
        assert update.result(PATIENCE_S).version == 2
        assert len(erasure.erased_positions) == 2
    except MemoryForgotten:
        assert len(erasure.erased_positions) == 1
    for each in (store, other, make_store()):
        assert_unreadable(each, memory.id, "s", "aardvark", "bandicoot")


def test_an_update_decided_before_its_session_was_forgotten_and_opened_anew_goes_nowhere(make_store, threads, monkeypatch):
    store, other = make_store(), make_store()
    memory = store.remember("aardvark", session_id="s")
    pause = Pause(monkeypatch, store._committer, "append")

    update = threads.submit(store.update, memory.id, content="bandicoot")
    with pause:
        other.forget_session("s")
        new = other.remember("cassowary", session_id="s")

    with pytest.raises(MemoryForgotten):
        update.result(PATIENCE_S)
    assert_unreadable(store, memory.id, "s", "aardvark", "bandicoot")
    assert [found.id for found in store.find("s").memories] == [new.id]


# --- remembering against forgetting ------------------------------------------------------------------------------------------


def test_a_remember_with_a_cached_key_of_a_forgotten_user_begins_a_new_life(make_store):
    store, other = make_store(), make_store()
    old = store.remember("aardvark", session_id="s", user_id="u")
    cached = store._keyring.find_session("s")

    other.forget_user("u")
    new = store.remember("bandicoot", session_id="s", user_id="u")

    fresh = store._keyring.find_session("s")
    assert cached.stream != fresh.stream
    assert cached.user != fresh.user
    assert cached.key.id != fresh.key.id
    for each in (store, other, make_store()):
        assert [memory.id for memory in each.find("s").memories] == [new.id]
        assert_unreadable(each, old.id, "s", "aardvark")
        assert each.forget_user("nobody").position is None


def test_the_key_of_a_forgotten_user_is_refused_whatever_a_process_still_holds(make_store, monkeypatch):
    store, other = make_store(), make_store()
    store.remember("aardvark", session_id="s", user_id="u")
    requests = []
    real = store._committer.append
    monkeypatch.setattr(store._committer, "append", lambda request: requests.append(request) or real(request))
    store.remember("bandicoot", session_id="s")
    other.forget_user("u")

    again = requests[0]
    again.events = [again.events[0]._replace(event_id=secrets.token_bytes(16))]
    with store._database.connection() as connection:
        assert call(connection, store._keyring.tenant, [again])[0].verdict in (Verdict.KEY_GONE, Verdict.STREAM_GONE)
        batch = call(connection, store._keyring.tenant, [again, again])
    assert {answer.verdict for answer in batch} <= {Verdict.KEY_GONE, Verdict.STREAM_GONE}
    assert store.count("s") == 0

    # Nor does it open a door to a stream that lives.
    other.remember("cassowary", session_id="t", user_id="v")
    again.stream = other._keyring.find_session("t").stream
    with store._database.connection() as connection:
        assert call(connection, store._keyring.tenant, [again])[0].verdict is Verdict.KEY_GONE
        assert [answer.verdict for answer in call(connection, store._keyring.tenant, [again] * 2)] == [Verdict.KEY_GONE] * 2
    assert store.count("t") == 1


@pytest.mark.parametrize("reopened", [False, True])
@pytest.mark.parametrize("forget", ["session", "user"])
def test_a_session_forgotten_elsewhere_may_get_another_owner(make_store, forget, reopened):
    store, other = make_store(), make_store()
    store.remember("aardvark", session_id="s", user_id="ann")

    other.forget_session("s") if forget == "session" else other.forget_user("ann")
    if reopened:
        other.remember("bandicoot", session_id="s", user_id="bob")
    memory = store.remember("cassowary", session_id="s", user_id="bob")

    assert memory.user_id == "bob"
    assert store.count("s") == other.count("s") == 1 + reopened


@pytest.mark.parametrize("many", [1, 50])
def test_a_remember_on_its_way_while_its_session_is_forgotten_lands_in_the_new_one(make_store, threads, monkeypatch, many):
    store, other = make_store(), make_store()
    old = store.remember("aardvark", session_id="s")
    pause = Pause(monkeypatch, store._committer, "append")

    new = threads.submit(store.remember_many, [f"bandicoot {number}" for number in range(many)], session_id="s")
    with pause:
        erasure = other.forget_session("s")

    ids = [memory.id for memory in new.result(PATIENCE_S)]
    assert erasure.memory_ids == (old.id,)
    assert [memory.id for memory in other.find("s", order="oldest").memories] == ids
    assert_unreadable(store, old.id, "s", "aardvark")


def test_sessions_forgotten_under_a_crowd_that_remembers_keep_nothing_behind_their_end(make_store, threads):
    store, other = make_store(settings=Settings(retries_max=200)), make_store(settings=Settings(retries_max=200))
    stop = threading.Event()

    def remember(one: MemoryStore) -> list[str]:
        made = []
        while not stop.is_set():
            made.append(one.remember("aardvark", session_id="s", user_id="u").id)
        return made

    crowd = [threads.submit(remember, one) for one in (store, other) for _ in range(4)]
    erasures = []
    for number in range(20):
        time.sleep(0.02)
        erasures.append(other.forget_user("u") if number % 2 else other.forget_session("s"))
    stop.set()
    made = {memory_id for future in crowd for memory_id in future.result(PATIENCE_S)}

    # Who forgets again before anybody has come back is told of the first time.
    once = {erasure.position: erasure for erasure in erasures}.values()
    forgotten = [memory_id for erasure in once for memory_id in erasure.memory_ids]
    assert len(forgotten) == len(set(forgotten))
    left = {memory.id for memory in store.find("s", limit=10_000).memories}
    assert left | set(forgotten) == made
    assert left & set(forgotten) == set()
    # In a closed stream only its closing fact has a key.
    query = """SELECT count(*) AS found FROM memfold.events e JOIN memfold.heads h USING (tenant_id, stream_id)
               JOIN memfold_keys.keys k USING (tenant_id, position)
               WHERE h.closed AND e.tenant_id = %s AND e.memory_id IS NOT NULL"""
    assert store._database.row(query, (store._keyring.tenant,)).found == 0


def test_a_user_forgotten_between_finding_its_key_and_opening_a_session_is_opened_anew(make_store, threads, monkeypatch):
    store, other = make_store(), make_store()
    old = store.remember("aardvark", session_id="first", user_id="u")
    pause = Pause(monkeypatch, store._keyring, "_open_user", after=True)

    new = threads.submit(store.remember, "bandicoot", session_id="second", user_id="u")
    with pause:
        other.forget_user("u")

    memory = new.result(PATIENCE_S)
    assert [found.id for found in other.find("second").memories] == [memory.id]
    assert_unreadable(other, old.id, "first", "aardvark")
    assert [session.session_id for session in other.sessions("u").sessions] == ["second"]


def test_forgetting_a_user_also_takes_the_session_that_was_opened_meanwhile(make_store, server_url, threads):
    store, other = make_store(), make_store()
    old = store.remember("aardvark", session_id="first", user_id="u")
    user = UUID(bytes=store._keyring.find_user("u"))

    with holding(server_url, "SELECT 1 FROM memfold_keys.users WHERE user_id = %s FOR KEY SHARE", user):
        erasure = threads.submit(other.forget_user, "u")
        await_blocked(server_url)
        new = store.remember("bandicoot", session_id="second", user_id="u")

    assert set(erasure.result(PATIENCE_S).memory_ids) == {old.id, new.id}
    for each in (store, other):
        assert each.sessions("u").sessions == []
        assert_unreadable(each, old.id, "first", "aardvark")
        assert_unreadable(each, new.id, "second", "bandicoot")


# --- derivatives against forgetting ------------------------------------------------------------------------------------------


def vectors(store: MemoryStore, positions: list[int]) -> int:
    return derived.store_embeddings(store._database, store._keyring.tenant, "m", positions, [b"sealed"] * len(positions))


def test_a_derivative_that_comes_while_its_source_is_being_forgotten_is_not_stored(make_store, server_url, threads):
    store, other = make_store(), make_store()
    memory = store.remember("aardvark", session_id="s")
    position = store.history(memory.id)[0].position

    # The payload's lock stops the forget after it has deleted the key and before it commits.
    with holding(server_url, "SELECT 1 FROM memfold.payloads WHERE position = %s FOR UPDATE", position):
        forgotten = threads.submit(other.forget, memory.id)
        await_blocked(server_url)
        stored = threads.submit(vectors, store, [position])
        await_blocked(server_url, 2)

    assert forgotten.result(PATIENCE_S).erased_positions == (position,)
    assert stored.result(PATIENCE_S) == 0
    assert vectors(store, [position]) == 0
    assert living(store, memory.id) == 0


@pytest.mark.parametrize("forget", ["memory", "session", "user"])
def test_a_forget_waits_for_a_derivative_being_stored_and_deletes_it(make_store, server_url, threads, forget):
    store = make_store()
    memory = store.remember("aardvark", session_id="s", user_id="u")
    position = store.history(memory.id)[0].position
    verb = {"memory": (store.forget, memory.id), "session": (store.forget_session, "s"), "user": (store.forget_user, "u")}[
        forget
    ]

    with psycopg.connect(server_url) as owner:
        query = "SELECT memfold.store_embeddings(%s, 'm', %s::bigint[], %s::bytea[])"
        assert owner.execute(query, (store._keyring.tenant, [position], [b"sealed"])).fetchone() == (1,)
        forgotten = threads.submit(*verb)
        await_blocked(server_url)
        assert not forgotten.done()
        owner.commit()

    assert forgotten.result(PATIENCE_S).keys_deleted == 1
    assert living(store, memory.id) == 0


# --- the same thing twice ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forget", ["memory", "session", "user"])
def test_two_forgets_of_the_same_at_once_give_equal_erasures(make_store, server_url, threads, forget):
    stores = [make_store() for _ in range(4)]
    memory = stores[0].remember("aardvark", session_id="s", user_id="u")
    stores[0].update(memory.id, content="bandicoot")

    with holding(server_url, HEAD, stream_of(stores[0], "s")):
        erasures = [
            threads.submit(store.forget, memory.id, reason=f"reason_{number}")
            if forget == "memory"
            else threads.submit(store.forget_session, "s")
            if forget == "session"
            else threads.submit(store.forget_user, "u")
            for number, store in enumerate(stores)
        ]
        await_blocked(server_url, 4)

    found = [erasure.result(PATIENCE_S) for erasure in erasures]
    assert found == found[:1] * 4
    assert found[0].memory_ids == (memory.id,)
    assert found[0].keys_deleted == 2
    facts = [
        event
        for event in stores[0].events()
        if event.type == {"memory": "MemoryForgotten", "session": "SessionForgotten", "user": "UserForgotten"}[forget]
    ]
    assert len(facts) == 1


REMEMBERER = """
import sys
from memfold import MemoryStore
url, tenant, key, name, count = sys.argv[1:]
with MemoryStore(url, tenant=tenant, master_key=key) as store:
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(int(count)):
        store.remember(f"{name} {number}", session_id=f"session {number}", user_id=f"user {number // 5}")
"""


def test_two_processes_that_open_the_same_sessions_at_once_share_their_streams(make_store, server_url, tenant):
    store, count = make_store(), 40
    command = [sys.executable, "-c", REMEMBERER, server_url, tenant, MASTER_KEY]
    pipe = subprocess.PIPE
    both = [subprocess.Popen([*command, name, str(count)], stdin=pipe, stdout=pipe, text=True) for name in ("one", "two")]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("\n")
        process.stdin.flush()
    for process in both:
        process.communicate(timeout=60)
        assert process.returncode == 0

    events = list(store.events())
    assert len({event.stream_id for event in events}) == count
    assert len(store.sessions(limit=1000).sessions) == count
    assert store.stats().users == count / 5
    for number in range(count):
        found = {memory.content for memory in store.find(f"session {number}").memories}
        assert found == {f"one {number}", f"two {number}"}


def test_updates_of_one_memory_by_sixteen_threads_are_all_applied(make_store, threads):
    stores = [make_store() for _ in range(2)]
    memory = stores[0].remember("aardvark", session_id="s")
    start = threading.Barrier(16)

    def update(number: int) -> int:
        start.wait()
        return stores[number % 2].update(memory.id, content=f"bandicoot {number}").version

    versions = list(threads.map(update, range(16)))

    assert sorted(versions) == list(range(2, 18))
    assert stores[0].get(memory.id).version == 17
    history = stores[1].history(memory.id)
    assert {change.memory.content for change in history[1:]} == {f"bandicoot {number}" for number in range(16)}
    for number, version in enumerate(versions):
        assert history[version - 1].memory.content == f"bandicoot {number}"


def test_of_sixteen_updates_that_expect_the_same_version_one_wins(make_store, threads):
    stores = [make_store() for _ in range(2)]
    memory = stores[0].remember("aardvark", session_id="s")
    start = threading.Barrier(16)

    def update(number: int) -> bool:
        start.wait()
        try:
            stores[number % 2].update(memory.id, content=f"bandicoot {number}", expected_version=1)
        except VersionConflict as error:
            assert error.actual == 2
            return False
        return True

    won = list(threads.map(update, range(16)))

    assert sum(won) == 1
    assert stores[0].get(memory.id).content == f"bandicoot {won.index(True)}"
    assert stores[0].get(memory.id).version == 2


def test_an_update_is_not_starved_by_a_crowd_that_remembers_beside_it(make_store, threads):
    crowd, single = make_store(), make_store(settings=Settings(retries_max=1))
    memory = crowd.remember("aardvark", session_id="s")
    stop = threading.Event()

    def remember() -> int:
        made = 0
        while not stop.is_set():
            crowd.remember("bandicoot", session_id="s")
            made += 1
        return made

    futures = [threads.submit(remember) for _ in range(8)]
    try:
        # One attempt each: a crowd that touches other memories must not cost a single retry.
        for number in range(50):
            single.update(memory.id, content=f"cassowary {number}")
    finally:
        stop.set()
    made = sum(future.result(PATIENCE_S) for future in futures)

    assert made > 50
    assert single.get(memory.id).version == 51
    assert single.count("s") == made + 1


@pytest.mark.parametrize("many", [1, 5])
def test_equal_idempotency_keys_at_once_make_one_memory_and_equal_answers(make_store, threads, many):
    stores = [make_store() for _ in range(2)]
    for attempt in range(5):
        start = threading.Barrier(8)

        def remember(number: int, start: threading.Barrier = start, attempt: int = attempt) -> Any:
            start.wait()
            items = [f"aardvark {item}" for item in range(many)]
            return stores[number % 2].remember_many(items, session_id=f"s{attempt}", idempotency_key="k")

        answers = list(threads.map(remember, range(8)))
        assert answers == answers[:1] * 8
        assert stores[0].find(f"s{attempt}", order="oldest").memories == answers[0]


def test_equal_updates_with_one_idempotency_key_at_once_are_one_update(make_store, threads):
    stores = [make_store() for _ in range(2)]
    memory = stores[0].remember("aardvark", session_id="s")
    start = threading.Barrier(8)

    def update(number: int) -> Any:
        start.wait()
        return stores[number % 2].update(memory.id, content="bandicoot", idempotency_key="k")

    answers = list(threads.map(update, range(8)))

    assert answers == answers[:1] * 8
    assert stores[0].get(memory.id) == answers[0]
    assert answers[0].version == 2


def test_equal_keys_within_one_flush_make_one_memory(make_store, server_url, threads, monkeypatch):
    store = make_store(settings=Settings(append_connections=1))
    store.remember("aardvark", session_id="s")
    flushes = []
    real = store._committer._commit
    monkeypatch.setattr(
        store._committer, "_commit", lambda requests, lease: flushes.append(len(requests)) or real(requests, lease)
    )

    with holding(server_url, HEAD, stream_of(store, "s")):
        first = threads.submit(store.remember, "bandicoot", session_id="s")
        await_blocked(server_url)
        rest = [threads.submit(store.remember, "cassowary", session_id="s", idempotency_key="k") for _ in range(6)]
        wait_until(lambda: len(store._committer._queue) == 6)

    first.result(PATIENCE_S)
    answers = [future.result(PATIENCE_S) for future in rest]
    assert flushes == [1, 6]
    assert answers == answers[:1] * 6
    assert store.count("s") == 3


# --- a server that refuses or waits too long ---------------------------------------------------------------------------------


def test_what_timed_out_as_not_written_is_not_written_later(make_store, server_url):
    store = make_store(settings=Settings(statement_timeout_s=0.4))
    memory = store.remember("aardvark", session_id="s")
    with holding(server_url, HEAD, stream_of(store, "s")):
        calls: list[Callable[[], Any]] = [
            lambda: store.remember("bandicoot", session_id="s"),
            lambda: store.remember_many(["bandicoot"] * 3, session_id="s"),
            lambda: store.update(memory.id, content="bandicoot"),
            lambda: store.forget(memory.id),
            lambda: store.forget_session("s"),
        ]
        for run in calls:
            with pytest.raises(StoreUnavailable) as caught:
                run()
            assert (caught.value.outcome, caught.value.sqlstate) == ("not_written", "57014")
    time.sleep(0.2)
    assert store.find("s").memories == [memory]
    assert store.stats("s").events == 1


def test_a_forget_and_an_append_that_deadlock_both_come_to_an_end(make_store, server_url, threads):
    """Somebody else holds the key row and wants the head: the server must pick a victim, and ours is simply tried again."""
    store = make_store()
    memory = store.remember("aardvark", session_id="s")
    position = store.history(memory.id)[0].position
    stream = stream_of(store, "s")
    with psycopg.connect(server_url) as owner:
        # So patient that it is memfold's transaction which looks for a deadlock, finds it, and is the victim.
        owner.execute("SET deadlock_timeout = '1min'")
        owner.execute("SELECT FROM memfold_keys.keys WHERE position = %s FOR UPDATE", (position,))
        erasure = threads.submit(store.forget, memory.id)
        await_blocked(server_url)
        owner.execute("SELECT FROM memfold.heads WHERE stream_id = %s FOR UPDATE", (stream,))
        owner.rollback()
    assert erasure.result(PATIENCE_S).memory_ids == (memory.id,)
    assert_unreadable(store, memory.id, "s", "aardvark")


# --- lines that are cut ------------------------------------------------------------------------------------------------------


READY = b"Z\0\0\0\x05I"  # the server's last word on a statement: done, and in no transaction
STARTUP, BIND, SYNC = b"\0"[0], b"B"[0], b"S"[0]


class Messages:
    """Follows what a client says, to tell when a statement is executed (not merely prepared) and when it is said in full."""

    def __init__(self) -> None:
        self.complete = True
        self._rest = b""

    def take(self, data: bytes) -> bool:
        """Whether the client binds a statement to its parameters in these bytes."""
        self._rest += data
        executes, last = False, 0
        while len(self._rest) >= 5:
            last = self._rest[0]
            executes = executes or last == BIND
            # The first message alone has no type; its length begins with a zero.
            length = int.from_bytes(self._rest[:4] if last == STARTUP else self._rest[1:5], "big") + (last != STARTUP)
            if len(self._rest) < length:
                break
            self._rest = self._rest[length:]
        self.complete = not self._rest and last == SYNC
        return executes


class Line:
    """A line between a store and the server that can be cut at a chosen moment."""

    def __init__(self, folder: Path, url: str) -> None:
        found = conninfo_to_dict(url)
        self._server = (str(found["host"]), int(str(found.get("port", 5432))))
        folder.mkdir()
        path = folder / ".s.PGSQL.5432"
        self.url = url.replace(quote(self._server[0], safe="/"), str(folder))
        assert self.url != url
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(100)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._armed = ""
        self._down_after = False
        self.down = False
        self.cuts = 0
        self._spawn(self._accept)

    def cut_next(self, how: str, *, down: bool = False) -> None:
        """Cut the line at the next statement: "before" the server gets it, "after" it is done and before the answer passes,
        or "hang": the client loses the line at once while the server never learns of it.
        """
        with self._lock:
            self._armed, self._down_after = how, down

    def close(self) -> None:
        self.down = True
        _shut(self._listener)
        self._cut_all()
        for thread in self._threads:
            thread.join(PATIENCE_S)
        self._listener.close()

    def _spawn(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.down:
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(f"{self._server[0]}/.s.PGSQL.{self._server[1]}")
            with self._lock:
                self._open |= {client, server}
            self._spawn(self._carry, client, server)

    def _carry(self, client: socket.socket, server: socket.socket) -> None:
        messages, how, answer = Messages(), "", b""
        try:
            while True:
                readable, _, _ = select.select([server] if how == "gone" else [client, server], [], [])
                for source in readable:
                    data = source.recv(1 << 20)
                    if not data:
                        return
                    if source is client:
                        executes = messages.take(data)
                        if executes and not how:
                            how = self._disarm()
                        if how == "before":
                            return self._record_cut()
                        server.sendall(data)
                        if how == "hang" and messages.complete:
                            how = "gone"
                            _shut(client)
                            self._record_cut()
                    elif how == "after":
                        answer += data
                        if answer.endswith(READY):
                            return self._record_cut()
                    elif how != "gone":
                        client.sendall(data)
        except OSError:
            pass
        finally:
            with self._lock:
                self._open -= {client, server}
            client.close()
            server.close()

    def _disarm(self) -> str:
        with self._lock:
            how, self._armed = self._armed, ""
            return how

    def _record_cut(self) -> None:
        self.cuts += 1
        if self._down_after:
            self.down = True
            self._cut_all()

    def _cut_all(self) -> None:
        with self._lock:
            for each in self._open:
                _shut(each)


def _shut(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass


@pytest.fixture
def line(tmp_path_factory: pytest.TempPathFactory, server_url: str) -> Iterator[Line]:
    line = Line(tmp_path_factory.mktemp("p") / "s", server_url)
    yield line
    line.close()


@pytest.fixture
def remote(line: Line, make_store: Callable[..., MemoryStore]) -> MemoryStore:
    """A store whose line to the server can be cut."""
    store = make_store(target=line.url, settings=Settings(pool_connections_max=8, connect_timeout_s=3, statement_timeout_s=15))
    store._follower.close()  # or the cut may hit what it asks, not what the test does
    return store


class Verb:
    """A write with what it must have done when it was done exactly once."""

    def __init__(self, remote: MemoryStore, judge: MemoryStore, name: str) -> None:
        self.remote, self.judge, self.name = remote, judge, name
        self.memory = remote.remember("aardvark", session_id="s", user_id="u")
        self.events_before = judge.stats("s").events

    def __call__(self) -> Any:
        store, memory_id = self.remote, self.memory.id
        run: dict[str, Callable[[], Any]] = {
            "remember": lambda: store.remember("bandicoot", session_id="s"),
            "remember with key": lambda: store.remember("bandicoot", session_id="s", idempotency_key="k"),
            "remember_many": lambda: store.remember_many(["bandicoot"] * 30, session_id="s"),
            "update": lambda: store.update(memory_id, content="bandicoot"),
            "update expecting": lambda: store.update(memory_id, content="bandicoot", expected_version=1),
            "update with key": lambda: store.update(memory_id, content="bandicoot", idempotency_key="k"),
            "forget": lambda: store.forget(memory_id, reason="user_request"),
            "forget_where": lambda: store.forget_where("s", {"importance": {"$gte": 0}}),
            "forget_session": lambda: store.forget_session("s"),
            "forget_user": lambda: store.forget_user("u"),
        }
        return run[self.name]()

    def times_done(self) -> float:
        """How often it was done: 0, 1, or something that must not be."""
        judge = self.judge
        if self.name.startswith("remember"):
            expected = 30 if self.name == "remember_many" else 1
            return (judge.stats("s").events - self.events_before) / expected
        if self.name.startswith("update"):
            changes = judge.history(self.memory.id)
            assert all(change.memory.content == "bandicoot" for change in changes[1:])
            return len(changes) - 1
        kind = {"forget_session": "SessionForgotten", "forget_user": "UserForgotten"}.get(self.name, "MemoryForgotten")
        facts = sum(event.type == kind for event in judge.events())
        if facts:
            assert_unreadable(judge, self.memory.id, "s", "aardvark")
        else:
            assert judge.get(self.memory.id) == self.memory
        return facts

    def check_answer(self, answer: Any) -> None:
        judge = self.judge
        if self.name == "remember_many":
            assert judge.find("s", order="oldest").memories[1:] == answer
        elif self.name.startswith(("remember", "update")):
            assert judge.get(answer.id) == answer
        else:
            assert answer.memory_ids == (self.memory.id,)
            assert answer.keys_deleted == 1


WRITES = [
    *("remember", "remember with key", "remember_many", "update", "update expecting", "update with key"),
    *("forget", "forget_where", "forget_session", "forget_user"),
]


@pytest.fixture(params=WRITES)
def verb(request: pytest.FixtureRequest, remote: MemoryStore, make_store: Callable[..., MemoryStore]) -> Verb:
    return Verb(remote, make_store(), request.param)


class WriteOf:
    """Calls `act` right before the statement that writes is sent, and `then` right after its answer was taken."""

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, act: Callable[[], None], then: Callable[[], None] = lambda: None
    ) -> None:
        from memfold.eventstore import append
        from memfold.eventstore import erase as forgetting

        self._once = threading.Lock()

        def around(work: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any) -> Any:
                if not self._once.acquire(blocking=False):
                    return work(*args)
                act()
                result = work(*args)
                then()
                return result

            return run

        for module in (append, forgetting):
            monkeypatch.setattr(module, "fetch", around(append.fetch) if module is append else around(forgetting.fetch))


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_write_whose_line_is_cut_is_done_exactly_once(line, verb, monkeypatch, how):
    WriteOf(monkeypatch, lambda: line.cut_next(how))
    answer = verb()
    assert line.cuts == 1
    assert verb.times_done() == 1
    verb.check_answer(answer)


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_write_whose_server_stays_away_has_an_unknown_outcome(line, verb, monkeypatch, how):
    WriteOf(monkeypatch, lambda: line.cut_next(how, down=True))
    with pytest.raises(StoreUnavailable) as caught:
        verb()
    assert caught.value.outcome == "unknown"
    assert verb.times_done() == (how == "after")
    line.down = False
    assert verb.remote.count("nobody") == 0  # it recovers by itself


def test_a_write_to_a_server_that_is_away_is_not_written(line, verb):
    line.down = True
    line._cut_all()
    with pytest.raises(StoreUnavailable) as caught:
        verb()
    line.down = False
    # An idle connection takes a statement before it is seen to be broken, so "unknown" is honest too.
    assert caught.value.outcome in ("not_written", "unknown")
    assert verb.times_done() == 0
    verb.check_answer(verb())
    assert verb.times_done() == 1


def test_a_server_that_goes_away_after_its_answer_does_not_turn_a_write_into_not_written(line, verb, monkeypatch):
    def away() -> None:
        line.down = True
        line._cut_all()

    WriteOf(monkeypatch, lambda: None, away)
    try:
        verb()
    except StoreUnavailable as error:
        assert error.outcome == "unknown"
    line.down = False
    assert verb.times_done() == 1


def test_a_write_that_the_server_finishes_after_its_client_lost_the_line_is_done_once(
    line, verb, server_url, threads, monkeypatch
):
    WriteOf(monkeypatch, lambda: line.cut_next("hang"))
    with holding(server_url, HEAD, stream_of(verb.judge, "s")):
        answer = threads.submit(verb)
        # The first statement waits in the server without a client, the second one behind it.
        await_blocked(server_url, 2)
    assert line.cuts == 1
    verb.check_answer(answer.result(PATIENCE_S))
    assert verb.times_done() == 1


def test_a_write_whose_backend_is_terminated_while_it_waits_is_done_once(verb, server_url, threads):
    with holding(server_url, HEAD, stream_of(verb.judge, "s")) as owner:
        answer = threads.submit(verb)
        (pid,) = await_blocked(server_url)
        owner.execute("SELECT pg_terminate_backend(%s)", (pid,))
        wait_until(lambda: pid not in await_blocked(server_url))
    verb.check_answer(answer.result(PATIENCE_S))
    assert verb.times_done() == 1


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_shared_flush_whose_line_is_cut_is_done_exactly_once_for_everybody(line, make_store, server_url, threads, how):
    store = make_store(target=line.url, settings=Settings(append_connections=1, pool_connections_max=8))
    store._follower.close()
    store.remember("aardvark", session_id="s")
    with holding(server_url, HEAD, stream_of(store, "s")):
        first: Future[Any] = threads.submit(store.remember, "first", session_id="s")
        await_blocked(server_url)
        rest = [threads.submit(store.remember, f"bandicoot {number}", session_id="s") for number in range(10)]
        wait_until(lambda: len(store._committer._queue) == 10)
        line.cut_next(how)
    first.result(PATIENCE_S)
    answers = [future.result(PATIENCE_S) for future in rest]
    assert line.cuts == 1
    assert [memory.content for memory in answers] == [f"bandicoot {number}" for number in range(10)]
    found = {memory.id: memory for memory in store.find("s").memories}
    assert len(found) == 12
    assert all(found[memory.id] == memory for memory in answers)


@pytest.mark.parametrize("how", ["before", "after"])
def test_reads_recover_from_a_cut_line(line, remote, how):
    memory = remote.remember("aardvark", session_id="s")
    reads: list[Callable[[], Any]] = [
        lambda: remote.get(memory.id),
        lambda: remote.find("s").memories,
        lambda: remote.recall("aardvark", session_id="s")[0].memory,
        lambda: remote.history(memory.id)[0].memory,
        lambda: list(remote.events())[0].memory_id,
        lambda: remote.sessions().sessions[0].session_id,
        lambda: remote.stats().memories,
    ]
    expected = [read() for read in reads]
    for number, read in enumerate(reads):
        line.cut_next(how)
        assert read() == expected[number], number
        assert line.cuts == number + 1


def test_a_new_session_whose_opening_is_cut_is_opened_once(line, remote, make_store):
    for number in range(6):
        for how in ("before", "after"):
            remote.stats()
            line.cut_next(how)
            remote.remember("aardvark", session_id=f"s {number} {how}", user_id=f"u {number % 3}")
    judge = make_store()
    assert line.cuts == 12
    assert len(judge.sessions(limit=100).sessions) == 12
    assert judge.stats().users == 3
    assert judge.stats().memories == 12


def test_contended_is_told_when_every_attempt_loses(make_store, monkeypatch):
    store, other = make_store(settings=Settings(retries_max=3)), make_store()
    memory = store.remember("aardvark", session_id="s")
    real = store._committer.append

    def lose(request: Any) -> Any:
        other.update(memory.id, content="bandicoot")
        return real(request)

    monkeypatch.setattr(store._committer, "append", lose)
    with pytest.raises(Contended) as caught:
        store.update(memory.id, content="cassowary")
    assert caught.value.attempts == 3
    assert store.get(memory.id).version == 4
    assert store.get(memory.id).content == "bandicoot"
