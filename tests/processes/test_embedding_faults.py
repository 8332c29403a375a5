"""Kills, cuts, forks and races while vectors are made: everything is embedded in the end, and nothing forgotten."""

import asyncio
import base64
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import psycopg
import pytest

from memfold import (
    AsyncMemoryStore,
    EmbedderFailed,
    EmbeddingTimeout,
    MemfoldError,
    MemoryForgotten,
    MemoryNotFound,
    MemoryStore,
    Settings,
    StoreClosed,
    StoreUnavailable,
)
from memfold.eventstore import embedded
from memfold.minilm import static_embedder

MASTER_KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()  # of the stores that `make_store` opens
PATIENCE_S = 30
MODEL = "words-16"


class Words:
    """A small model that takes its time and writes down which process embedded which text."""

    name = MODEL

    def __init__(self, slow_s: float = 0.0, journal: Path | None = None) -> None:
        self.slow_s = slow_s
        self.encoding = threading.Event()
        self._file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND) if journal else None

    def encode(self, texts: Any) -> Any:
        self.encoding.set()
        for text in texts:
            time.sleep(self.slow_s)
            if self._file is not None:
                os.write(self._file, f"{os.getpid()}\t{text}\n".encode())
        return np.array([self.vector(text) for text in texts], np.float32)

    def vector(self, text: str) -> Any:
        total = np.zeros(16)
        for word in text.lower().split():
            total += np.random.default_rng(crc32(word.encode())).normal(size=16)
        return total / (np.linalg.norm(total) or 1)


class Poisoned(Words):
    def vector(self, text: str) -> Any:
        if "poison" in text:
            raise RuntimeError("cannot digest this")
        return super().vector(text)


def follow(url: str, tenant: str, journal: str, slow_s: str) -> None:
    """A process that embeds until it is killed."""
    store = MemoryStore(url, tenant=tenant, master_key=MASTER_KEY, embedder=Words(float(slow_s), Path(journal)))
    store._follower.wake()
    print("following", flush=True)
    threading.Event().wait()


def remember_when_told(url: str, tenant: str) -> None:
    """A process that remembers each line it reads, and says when that is acknowledged."""
    with MemoryStore(url, tenant=tenant, master_key=MASTER_KEY, embedder=Words(0.002)) as store:
        print("ready", flush=True)
        for line in sys.stdin:
            print(store.remember(line.strip(), session_id="s").id, flush=True)


def change_and_forget(url: str, tenant: str, seed: str, seconds: str) -> None:
    """A process that takes part in `crowd`."""
    with MemoryStore(url, tenant=tenant, master_key=MASTER_KEY, embedder=Words(0.001)) as store:
        crowd([store], random.Random(seed), float(seconds), threads=3)


def start(function: Callable[..., None], *arguments: object, ready: bool = True) -> subprocess.Popen[str]:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_embedding_faults as this; "
    code += f"this.{function.__name__}(*sys.argv[1:])"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    if ready:
        assert child.stdout
        assert child.stdout.readline()
    return child


@contextmanager
def running(children: list[subprocess.Popen[str]]) -> Iterator[list[subprocess.Popen[str]]]:
    try:
        yield children
    finally:
        for child in children:
            child.kill()
            child.communicate()


def wait_until(happened: Callable[[], Any], patience_s: float = PATIENCE_S) -> None:
    end = time.monotonic() + patience_s
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def journal_of(path: Path) -> list[tuple[int, str]]:
    """Which process embedded which text, in order."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [(int(line.split("\t")[0]), line.split("\t")[1]) for line in lines if "\t" in line]


def stored(store: MemoryStore, model: str = MODEL) -> list[int]:
    """The positions that have a vector."""
    query = "SELECT position FROM memfold.embeddings WHERE tenant_id = %s AND model = %s ORDER BY position"
    return [row.position for row in store._database.rows(query, (store._keyring.tenant, model))]


def orphans(store: MemoryStore) -> int:
    """How many vectors have outlived their key."""
    query = """SELECT count(*) AS found FROM memfold.embeddings v WHERE NOT EXISTS (
        SELECT FROM memfold_keys.keys k WHERE (k.tenant_id, k.position) = (v.tenant_id, v.position))"""
    return int(store._database.row(query).found)


def embedding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "memfold-embed"]


# --- kills --------------------------------------------------------------------------------------------------------------------


def kill_while_embedding(
    make_store: Any, server_url: str, tenant: str, tmp_path: Path, rand: random.Random, kills: int
) -> None:
    writer, journal = make_store(), tmp_path / "journal"
    events = len(writer.remember_many([f"tea number {number}" for number in range(60 * (kills + 1))], session_id="s"))
    for _ in range(kills):
        before = len(journal_of(journal))
        with running([start(follow, server_url, tenant, journal, 0.005)]) as (child,):
            goal = before + rand.randint(1, 40)
            wait_until(lambda goal=goal: len(journal_of(journal)) >= goal)
            child.kill()
    kept = stored(writer)
    store = make_store(embedder=Words(0.0, journal))
    store.flush(PATIENCE_S)

    assert store.stats().embedding_lag == 0
    found = stored(writer)
    assert len(found) == events
    assert set(kept) <= set(found)
    # Of each process that was killed only the texts it had in hand were made anew.
    assert len(journal_of(journal)) <= events + 8 * kills
    answer = store.recall("tea number 7", session_id="s")
    assert (answer.model, answer[0].memory.content) == (MODEL, "tea number 7")


def test_what_a_killed_process_had_not_embedded_the_next_one_embeds(make_store, server_url, tenant, tmp_path, rand):
    kill_while_embedding(make_store, server_url, tenant, tmp_path, rand, kills=2)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_a_hundred_processes_killed_while_they_embed_lose_nothing(make_store, server_url, tenant, tmp_path, rand):
    kill_while_embedding(make_store, server_url, tenant, tmp_path, rand, kills=100)


def kill_server(folder: Path) -> None:
    os.kill(int((folder / "pg" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)


def restart(folder: Path) -> embedded.EmbeddedServer:
    end = time.monotonic() + 60
    while True:
        try:
            return embedded.attach(folder)
        except MemfoldError:
            assert time.monotonic() < end
            time.sleep(0.1)


def kill_server_while_embedding(own_server: Any, folder: Path, rand: random.Random, kills: int) -> None:
    with MemoryStore(own_server.url, master_key=MASTER_KEY, embedder=Words(0.002)) as store:
        for round_ in range(kills):
            store.remember_many([f"tea number {number}" for number in range(150)], session_id=f"s{round_}")
            wait_until(lambda round_=round_: store.stats().embedding_lag < 150)
            time.sleep(rand.uniform(0, 0.2))
            kill_server(folder)
            restart(folder).release()
            store.flush(PATIENCE_S)
            assert store.stats().embedding_lag == 0
            assert len(stored(store)) == 150 * (round_ + 1)
            assert store.recall("tea number 7", session_id=f"s{round_}").model == MODEL


def test_after_a_kill_of_the_server_everything_is_embedded(own_server, tmp_path, rand):
    kill_server_while_embedding(own_server, tmp_path / "server", rand, kills=1)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_after_thirty_kills_of_the_server_everything_is_embedded(own_server, tmp_path, rand):
    kill_server_while_embedding(own_server, tmp_path / "server", rand, kills=30)


def test_connections_that_are_cut_again_and_again_lose_no_vector(make_store, server_url):
    store = make_store(embedder=Words(0.002))
    store.remember_many([f"tea number {number}" for number in range(300)], session_id="s")
    with psycopg.connect(server_url, autocommit=True) as owner:
        for _ in range(5):
            time.sleep(0.1)
            owner.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"""
            )
    store.flush(PATIENCE_S)
    assert len(stored(store)) == 300
    assert store.stats().embedding_lag == 0


# --- several processes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [2, 4])
def test_of_several_processes_one_embeds_and_when_it_is_killed_another_does(make_store, server_url, tenant, tmp_path, count):
    writer, journal = make_store(), tmp_path / "journal"
    texts = [f"tea number {number}" for number in range(80 * count)]
    with running([start(follow, server_url, tenant, journal, 0.02) for _ in range(count)]) as children:
        writer.remember_many(texts, session_id="s")
        for round_ in range(count - 1):
            wait_until(lambda round_=round_: len({pid for pid, _ in journal_of(journal)}) == round_ + 1)
            seen = len(journal_of(journal))
            wait_until(lambda seen=seen: len(journal_of(journal)) > seen + 10)
            at_work = journal_of(journal)[-1][0]
            assert {pid for pid, _ in journal_of(journal)[seen:]} == {at_work}
            next(child for child in children if child.pid == at_work).kill()
        wait_until(lambda: len(stored(writer)) == len(texts))
    made = [text for _, text in journal_of(journal)]
    assert set(made) == set(texts)
    assert len(made) <= len(texts) + 8 * (count - 1)
    assert len({pid for pid, _ in journal_of(journal)}) == count


def test_a_process_that_does_not_embed_itself_also_hears_that_a_text_cannot_be_embedded(make_store):
    one, two = make_store(embedder=Poisoned()), make_store(embedder=Poisoned())
    one.remember_many(["poison", "tea"], session_id="s")
    for store in (one, two):
        with pytest.raises(EmbedderFailed):
            store.flush(3)


def test_every_remember_of_another_process_is_recalled_with_its_vector_once_it_is_acknowledged(make_store, server_url, tenant):
    store = make_store(embedder=Words(0.002))
    with running([start(remember_when_told, server_url, tenant)]) as (child,):
        for number in range(40):
            child.stdin.write(f"tea number {number}\n")
            child.stdin.flush()
            memory_id = child.stdout.readline().strip()
            found = store.recall(f"tea number {number}", session_id="s", limit=100, ranking="fixed", explain=True)
            assert found.model == MODEL
            assert len(found) == number + 1
            (hit,) = [hit for hit in found if hit.memory.id == memory_id]
            assert hit.parts["meaning"] > 0


# --- forgetting ---------------------------------------------------------------------------------------------------------------


def crowd(stores: list[MemoryStore], rand: random.Random, seconds: float, *, threads: int) -> None:
    """Remember, update, recall and forget in every way at once; a recall never finds what was forgotten before it began."""
    end, gone = time.monotonic() + seconds, set[str]()
    lock, living = threading.Lock(), list[str]()

    def take() -> str | None:
        with lock:
            return living.pop(rand.randrange(len(living))) if living else None

    def act(store: MemoryStore, own: random.Random) -> None:
        session, user = own.choice([("s1", "u1"), ("s2", "u1"), ("s3", "u2")])
        kind = own.random()
        erasure = None
        if kind < 0.35:
            memories = store.remember_many(
                [f"tea {own.randrange(1000)}"] * own.randint(1, 12), session_id=session, user_id=user
            )
            with lock:
                living.extend(memory.id for memory in memories)
        elif kind < 0.75:
            before = set(gone)
            wait_s = own.choice([0.0, 0.05, 10.0])
            found = store.recall("tea 7", session_id=session, limit=1000, wait_s=wait_s)
            assert not before & {hit.memory.id for hit in found}
            assert found.model in (MODEL, static_embedder().name, None)
        elif kind < 0.8 and (memory_id := take()):
            store.update(memory_id, content="coffee")
            living.append(memory_id)
        elif kind < 0.93 and (memory_id := take()):
            erasure = store.forget(memory_id)
        elif kind < 0.95:
            erasure = store.forget_where(session, {"importance": {"$lt": own.random()}})
        elif kind < 0.98:
            erasure = store.forget_session(session)
        else:
            erasure = store.forget_user(user)
        if erasure:
            gone.update(erasure.memory_ids)

    def work(number: int) -> None:
        own = random.Random(rand.random())
        while time.monotonic() < end:
            try:
                act(stores[number % len(stores)], own)
            except (MemoryForgotten, MemoryNotFound):
                pass

    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(work, number) for number in range(threads)]:
            future.result()


def hold_against_the_keyring(store: MemoryStore, others: list[MemoryStore]) -> None:
    """Nothing derived is left of what was forgotten, in the database, in an answer or in a view."""
    store.flush(PATIENCE_S)
    assert orphans(store) == 0
    keys = """SELECT count(*) AS found FROM memfold_keys.keys JOIN memfold.events USING (tenant_id, position)
              WHERE tenant_id = %s AND type IN (1, 2)"""
    assert len(stored(store)) == store._database.row(keys, (store._keyring.tenant,)).found
    for session in ("s1", "s2", "s3"):
        alive = {memory.id for memory in store.find(session, limit=10_000).memories}
        answers = []
        for each in (store, *others):
            found = each.recall("tea 7", session_id=session, limit=10_000, explain=True)
            assert {hit.memory.id for hit in found} <= alive
            answers.append([(hit.memory.id, hit.score, hit.parts) for hit in found])
            with each._views.session(session) as view:
                if view and alive:
                    fresh = each._views.rebuild(session)
                    assert view.dump()[:3] == fresh.dump()[:3]
                    fresh.close()
        assert answers == answers[:1] * len(answers)


def test_forgetting_in_every_way_under_recalls_and_followers_leaves_no_vector_behind(make_store, rand):
    stores = [make_store(embedder=Words(0.001), settings=Settings(retries_max=500, pool_connections_max=12)) for _ in range(2)]
    crowd(stores, rand, 2.5, threads=6)
    hold_against_the_keyring(make_store(embedder=Words()), stores)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_four_processes_that_remember_recall_and_forget_leave_no_vector_behind(make_store, server_url, tenant, rand):
    children = [start(change_and_forget, server_url, tenant, rand.random(), 120, ready=False) for _ in range(4)]
    for child in children:
        child.communicate(timeout=600)
        assert child.returncode == 0
    hold_against_the_keyring(make_store(embedder=Words()), [])


class Pause:
    """Stops the next caller of a method before it does its work, until told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self._work, self._armed = getattr(owner, name), threading.Lock()
        monkeypatch.setattr(owner, name, self._call)

    def _call(self, *args: Any, **options: Any) -> Any:
        if self._armed.acquire(blocking=False):
            self.reached.set()
            assert self.go.wait(PATIENCE_S)
        return self._work(*args, **options)

    def __enter__(self) -> None:
        assert self.reached.wait(PATIENCE_S)

    def __exit__(self, *_: object) -> None:
        self.go.set()


@pytest.mark.parametrize("forget", ["memory", "session", "user"])
def test_what_is_forgotten_while_a_recall_is_about_to_embed_it_gets_no_vector(make_store, monkeypatch, forget):
    store, other = make_store(embedder=Words(0.01)), make_store()
    memories = other.remember_many([f"tea number {number}" for number in range(60)], session_id="s", user_id="u")
    pause = Pause(monkeypatch, store._recaller, "_make")

    with ThreadPoolExecutor(1) as pool:
        recall = pool.submit(store.recall, "tea", session_id="s", limit=100)
        with pause:
            if forget == "memory":
                other.forget(memories[0].id)
            elif forget == "session":
                other.forget_session("s")
            else:
                other.forget_user("u")
            new = other.remember("tea again", session_id="s", user_id="u")
        found = recall.result(PATIENCE_S)

    ids = {hit.memory.id for hit in found}
    assert new.id in ids
    assert memories[0].id not in ids
    assert len(ids) == (60 if forget == "memory" else 1)
    assert orphans(store) == 0
    assert found.model == MODEL


@pytest.mark.parametrize("forget", ["memory", "session", "user"])
def test_what_is_forgotten_while_a_vector_of_it_is_made_is_not_stored(make_store, forget):
    embedder = Words(0.05)
    store, other = make_store(embedder=embedder), make_store()
    memory = store.remember("tea", session_id="s", user_id="u")
    assert embedder.encoding.wait(PATIENCE_S)

    {
        "memory": lambda: other.forget(memory.id),
        "session": lambda: other.forget_session("s"),
        "user": lambda: other.forget_user("u"),
    }[forget]()

    store.flush(PATIENCE_S)
    assert stored(store) == []
    assert orphans(store) == 0
    assert store.recall("tea", session_id="s") == []


# --- a database that takes no writes ------------------------------------------------------------------------------------------


def test_a_recall_in_a_read_only_database_answers_by_the_embedder_though_nothing_can_be_stored(own_server, caplog):
    options: dict[str, Any] = {"master_key": MASTER_KEY, "embedder": Words()}
    with MemoryStore(own_server.url, master_key=MASTER_KEY, embedder=static_embedder()) as store:
        store.remember_many(["tea with lemon", "coffee with milk"], session_id="s")
    with psycopg.connect(own_server.url, autocommit=True) as owner:
        name = owner.execute("SELECT current_database()").fetchone()[0]
        owner.execute(f'ALTER DATABASE "{name}" SET default_transaction_read_only = on')
        with MemoryStore(own_server.url, **options) as store:
            for _ in range(2):
                found = store.recall("lemon", session_id="s")
                assert (found.model, found[0].memory.content) == (MODEL, "tea with lemon")
            assert store.stats().embedding_lag == 2
            with pytest.raises(StoreUnavailable):
                store.flush(PATIENCE_S)
        assert "could not be stored" in caplog.text
        owner.execute("SET default_transaction_read_only = off")
        owner.execute(f'ALTER DATABASE "{name}" RESET default_transaction_read_only')
    with MemoryStore(own_server.url, **options) as store:
        store.flush(PATIENCE_S)
        assert len(stored(store)) == 2


# --- opening, closing, forking ------------------------------------------------------------------------------------------------


def test_a_store_closed_while_it_embeds_stops_after_the_texts_at_hand(make_store, caplog):
    embedder = Words(0.02)
    store = make_store(embedder=embedder)
    store.remember_many([f"tea number {number}" for number in range(500)], session_id="s")
    assert embedder.encoding.wait(PATIENCE_S)
    store.close()

    embedder.encoding.clear()
    assert embedding_threads() == []
    assert not embedder.encoding.wait(0.3)
    with pytest.raises(StoreClosed):
        store.flush()
    assert [record for record in caplog.records if record.exc_info or record.levelname in ("ERROR", "CRITICAL")] == []
    next_one = make_store(embedder=Words())
    assert 0 < len(stored(next_one)) <= 16
    next_one.flush(PATIENCE_S)
    assert len(stored(next_one)) == 500


def test_a_store_is_closed_however_long_its_thread_would_have_rested(make_store, monkeypatch):
    monkeypatch.setattr("memfold.projections.follower.IDLE_S", 2.0 * PATIENCE_S)
    store = make_store(embedder=Words())
    store.remember("tea", session_id="s")
    store.flush(PATIENCE_S)
    closing = threading.Thread(target=store.close, daemon=True)
    closing.start()
    closing.join(PATIENCE_S / 6)
    is_closed = not closing.is_alive()
    store._follower._woken.set()  # whatever it waits for, it leaves no thread to the tests after this one
    closing.join(PATIENCE_S)
    assert is_closed


def test_a_store_closed_while_others_recall_and_remember_says_so_and_leaves_no_thread(make_store):
    for _ in range(5):
        store = make_store(embedder=Words(0.002))
        store.remember("tea", session_id="s")

        def use(store: MemoryStore = store) -> None:
            while True:
                store.remember("tea", session_id="s")
                store.recall("tea", session_id="s")

        with ThreadPoolExecutor(4) as pool:
            futures = [pool.submit(use) for _ in range(4)]
            time.sleep(0.1)
            store.close()
            for future in futures:
                with pytest.raises(MemfoldError):
                    future.result(PATIENCE_S)
        wait_until(lambda: embedding_threads() == [])
        # A verb that was under way may still have opened a connection, or given one back.
        store._committer.close()
        store._database.close()


def test_stores_opened_and_closed_quickly_leave_no_thread_and_no_lease(make_store, server_url):
    for number in range(25):
        store = make_store(embedder=Words(0.001), settings=Settings(pool_connections_max=4))
        store.remember_many([f"tea {number} {item}" for item in range(5)], session_id="s")
        if number % 3 == 0:
            time.sleep(0.06)
        store.close()
    assert embedding_threads() == []
    last = make_store(embedder=Words())
    last.flush(PATIENCE_S)
    assert len(stored(last)) == 125


FORK = """
import os, sys, time, threading
sys.path.insert(0, {folder!r})
import test_embedding_faults as this
from memfold import ForkedStore, MemoryStore
url, tenant = sys.argv[1:]
options = dict(tenant=tenant, master_key=this.MASTER_KEY)

def fails(call):
    try:
        call()
    except ForkedStore:
        return
    raise SystemExit("no ForkedStore")

store = MemoryStore(url, **options, embedder=this.Words(0.005))
store.remember_many([f"tea number {{number}}" for number in range(50)], session_id="s")
store.recall("tea", session_id="s", wait_s=0)
pid = os.fork()
if pid == 0:
    fails(lambda: store.recall("tea", session_id="s"))
    fails(lambda: store.flush())
    fails(lambda: store.remember("tea", session_id="s"))
    store.close()
    with MemoryStore(url, **options, embedder=this.Words()) as own:
        own.remember("coffee of the child", session_id="s")
        assert own.recall("coffee child", session_id="s")[0].memory.content == "coffee of the child"
        own.flush(30)
    sys.exit(0)
_, status = os.waitpid(pid, 0)
assert status == 0, status
found = store.recall("coffee child", session_id="s")
assert (found.model, found[0].memory.content) == (this.MODEL, "coffee of the child")
store.flush(30)
assert len(this.stored(store)) == 51
store.close()
print("good")
"""

FORK_WHILE_LOADING = """
import os, sys, threading, signal
from memfold import MemoryStore
from memfold.minilm import default_embedder
url, tenant = sys.argv[1:]
options = dict(tenant=tenant, master_key={key!r})
loading, go = threading.Event(), threading.Event()
embedder = default_embedder()
load = embedder._load

def slowly():
    loading.set()
    go.wait()
    return load()

embedder._load = slowly
store = MemoryStore(url, **options)
store.remember("tea with lemon", session_id="s")
assert loading.wait(30)
pid = os.fork()
if pid == 0:
    signal.alarm(5)  # a child that hangs is ended
    embedder._load = load
    with MemoryStore(url, **options) as own:
        own.recall("tea", session_id="s")
    os._exit(0)
_, status = os.waitpid(pid, 0)
go.set()
store.close()
print("good" if status == 0 else f"the child ended with {{status}}")
"""


def run(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=120, check=False)
    return done.stdout.strip() or done.stderr


def test_a_fork_leaves_the_parent_its_follower_and_the_child_free_to_open_a_store(server_url, tenant):
    assert run(FORK.format(folder=str(Path(__file__).parent)), server_url, tenant) == "good"


def test_a_child_forked_while_the_model_is_loaded_can_recall_in_a_store_of_its_own(server_url, tenant):
    assert run(FORK_WHILE_LOADING.format(key=MASTER_KEY), server_url, tenant) == "good"


UNCLOSED = """
import sys
sys.path.insert(0, {folder!r})
import test_embedding_faults as this
from memfold import MemoryStore
url, tenant = sys.argv[1:]
store = MemoryStore(url, tenant=tenant, master_key=this.MASTER_KEY, embedder=this.Words(0.01))
store.remember_many(["tea"] * 200, session_id="s")
store.recall("tea", session_id="s", wait_s=0)
print("good")
"""


def test_a_program_that_ends_without_closing_its_store_ends_and_leaves_the_rest_to_the_next(make_store, server_url, tenant):
    assert run(UNCLOSED.format(folder=str(Path(__file__).parent)), server_url, tenant) == "good"
    store = make_store(embedder=Words())
    store.flush(PATIENCE_S)
    assert len(stored(store)) == 200


def test_flush_is_awaited_like_any_verb(server_url, tenant):
    async def use() -> None:
        store = AsyncMemoryStore(server_url, tenant=tenant, master_key=MASTER_KEY, embedder=Words(0.002))
        async with store:
            await store.remember_many([f"tea number {number}" for number in range(100)], session_id="s")
            with pytest.raises(EmbeddingTimeout) as caught:
                await store.flush(0)
            assert 0 < caught.value.lag <= 100
            assert caught.value.timeout_s == 0
            answers, _ = await asyncio.gather(
                asyncio.gather(*(store.recall("tea number 7", session_id="s") for _ in range(4))), store.flush(PATIENCE_S)
            )
            assert [answer[0].memory.content for answer in answers] == ["tea number 7"] * 4
            assert (await store.stats()).embedding_lag == 0

    asyncio.run(use())
    assert embedding_threads() == []
