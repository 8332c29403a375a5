"""kill -9 of the client or of the server at any moment: nothing acknowledged is lost, nothing is doubled, nothing is half.

A client process works in several threads and writes down each call before it begins and each answer once it has it, in a file
that survives it. Afterwards the store is opened anew and every line is held against it.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import psycopg
import pytest

from memfold import MemfoldError, MemoryForgotten, MemoryStore, Settings, StoreUnavailable
from memfold.events import MemoryUpdated
from memfold.eventstore import embedded

SESSIONS = ["a", "b", "c"]
THREADS = 6


def work(folder: Path, journal: Path, seed: int) -> None:
    """The client: remembers, updates and forgets until it is killed."""
    store = MemoryStore(folder, settings=Settings(connect_timeout_s=5))
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def note(**line: object) -> None:
        os.write(file, json.dumps(line).encode() + b"\n")

    def run(number: int) -> None:
        rand, own, step = random.Random(seed * 100 + number), [], 0
        while True:
            step += 1
            token = f"{seed}-{number}-{step}"
            try:
                act(store, rand, own, token, note)
            except StoreUnavailable as error:
                note(token=token, outcome=error.outcome)
                time.sleep(0.05)

    for number in range(THREADS):
        threading.Thread(target=run, args=(number,), daemon=True).start()
    print("working", flush=True)
    threading.Event().wait()


def act(store, rand, own, token, note) -> None:
    kind = rand.random()
    if own and kind < 0.15:
        memory_id = own.pop(rand.randrange(len(own)))
        note(token=token, begins="forget", id=memory_id)
        store.forget(memory_id)
        note(token=token, done="forget", id=memory_id)
    elif own and kind < 0.3:
        memory_id = rand.choice(own)
        note(token=token, begins="update", id=memory_id)
        memory = store.update(memory_id, content=f"updated {token}")
        note(token=token, done="update", id=memory_id, version=memory.version)
    elif kind < 0.4:
        note(token=token, begins="batch")
        memories = store.remember_many([f"{token} {place}" for place in range(20)], session_id=rand.choice(SESSIONS))
        note(token=token, done="batch", ids=[memory.id for memory in memories])
    else:
        note(token=token, begins="remember")
        key = token if kind > 0.8 else None
        memory = store.remember(token, session_id=rand.choice(SESSIONS), idempotency_key=key)
        note(token=token, done="remember", id=memory.id)
        own.append(memory.id)


def start_client(folder: Path, journal: Path, seed: int) -> subprocess.Popen[str]:
    code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_kill; from pathlib import Path; "
    code += f"test_kill.work(Path({str(folder)!r}), Path({str(journal)!r}), {seed})"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "working\n"
    return child


def kill_server(folder: Path) -> None:
    os.kill(int((folder / "pg" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)


def kill_backend(folder: Path) -> None:
    """Kill what serves one connection: PostgreSQL then throws everybody out and recovers by itself."""
    server = embedded.attach(folder)
    with psycopg.connect(server.url) as connection:
        query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'memfold' ORDER BY state, random() LIMIT 1"
        (pid,) = connection.execute(query).fetchone()
    os.kill(pid, signal.SIGKILL)
    server.release()


def acknowledged(journal: Path) -> int:
    return len([line for line in lines(journal) if "done" in line])


def lines(journal: Path) -> list[dict]:
    return [json.loads(line) for line in journal.read_bytes().split(b"\n")[:-1]]


def hold_against(store: MemoryStore, journal: Path) -> dict[str, int]:
    """Compare everything the client was told with what the store holds; returns what was counted."""
    notes = lines(journal)
    live = {memory.id: memory for session in SESSIONS for memory in pages(store, session)}
    by_token: dict[str, list] = {}
    for memory in live.values():
        by_token.setdefault(memory.content.removeprefix("updated ").split()[0], []).append(memory)
    done = {line["token"]: line for line in notes if "done" in line}
    begun = {line["token"]: line for line in notes if "begins" in line}
    refused = {line["token"] for line in notes if line.get("outcome") == "not_written"}
    # What was said not to be forgotten must still be there.
    forget_begun = {line["id"] for token, line in begun.items() if line["begins"] == "forget" and token not in refused}
    forgotten = {line["id"] for line in done.values() if line["done"] == "forget"}

    lost = [
        line["id"]
        for line in done.values()
        if line["done"] == "remember" and line["id"] not in live and line["id"] not in forget_begun
    ]
    lost += [
        memory_id for line in done.values() if line["done"] == "batch" for memory_id in line["ids"] if memory_id not in live
    ]
    assert lost == []
    assert [memory_id for memory_id in forgotten if memory_id in live] == []
    for line in done.values():
        if line["done"] == "update" and line["id"] in live:
            assert live[line["id"]].version >= line["version"]
    for token, line in begun.items():
        found = [memory for memory in by_token.get(token, []) if memory.version == 1]
        if line["begins"] == "remember":
            assert len(found) <= 1, "a remember was doubled"
        if line["begins"] == "batch":
            assert len(found) in (0, 20), "half a batch"
        if token in refused and line["begins"] in ("remember", "batch"):
            assert found == [], "what was said not to be written was written"
    return {
        "acknowledged": len(done),
        "begun": len(begun),
        "refused": len(refused),
        "live": len(live),
        "forgotten": len(forgotten),
    }


def pages(store, session):
    cursor = None
    while True:
        page = store.find(session, limit=10_000, cursor=cursor)
        yield from page.memories
        if (cursor := page.cursor) is None:
            return


def check_log(store: MemoryStore, journal: Path) -> None:
    """No half appends: versions are dense, and every event has its payload and key unless its memory was forgotten.

    Every acknowledged update is in the log once, every other at most once, and one that was refused is not there.
    """
    updates: Counter[str] = Counter()
    versions: dict[str, int] = {}
    forgotten, erased = set(), set()
    for event in store.events():
        assert event.version == versions.get(event.stream_id, 0) + 1
        versions[event.stream_id] = event.version
        if isinstance(event.data, MemoryUpdated):
            updates[str(event.data.content).removeprefix("updated ")] += 1
        if event.type == "MemoryForgotten":
            forgotten.add(event.memory_id)
        elif event.data is None:
            erased.add(event.memory_id)
    assert erased == forgotten
    notes = lines(journal)
    assert all(times == 1 for times in updates.values()), "an update was doubled"
    done = {line["token"] for line in notes if line.get("done") == "update" and line["id"] not in forgotten}
    assert done - updates.keys() == set(), "an acknowledged update was lost"
    refused = {line["token"] for line in notes if line.get("outcome") == "not_written"}
    assert refused & updates.keys() == set(), "what was said not to be written was written"
    for memory_id in list(forgotten)[:20]:
        with pytest.raises(MemoryForgotten):
            store.get(memory_id)


def kill_loop(folder: Path, rand: random.Random, *, kills: int) -> dict[str, int]:
    journal, client, what = folder.parent / "journal", None, {"client": 0, "server": 0, "backend": 0}
    for round_ in range(kills):
        if client is None:
            client = start_client(folder, journal, round_)
        time.sleep(rand.uniform(0.05, 1.0))
        victim = ("client", "server", "backend")[round_ % 3]
        what[victim] += 1
        if victim == "client":
            client.kill()
            client.communicate()
            client = None
        elif victim == "server":
            kill_server(folder)
            answered = acknowledged(journal)
            restart(folder)
            recovers(client, journal, answered)
        else:
            kill_backend(folder)
            recovers(client, journal, acknowledged(journal))
        if client is None and round_ % 5 == 4:
            with MemoryStore(folder) as store:
                hold_against(store, journal)
    if client:
        client.kill()
        client.communicate()
    with MemoryStore(folder) as store:
        check_log(store, journal)
        return what | hold_against(store, journal)


def restart(folder: Path) -> None:
    """Another process finds the server dead and starts it."""
    deadline = time.monotonic() + 60
    while True:
        try:
            server = embedded.attach(folder)
            break
        except MemfoldError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
    server.release()


def recovers(client: subprocess.Popen[str], journal: Path, answered: int) -> None:
    """The client that lived through it goes on by itself."""
    deadline = time.monotonic() + 60
    while acknowledged(journal) < answered + 20:
        assert client.poll() is None
        assert time.monotonic() < deadline, "the client did not come back"
        time.sleep(0.05)


def test_kills_lose_nothing_double_nothing_and_leave_nothing_half(tmp_path, rand):
    print(kill_loop(tmp_path / "store", rand, kills=6))


@pytest.mark.soak
def test_a_hundred_kills_lose_nothing_double_nothing_and_leave_nothing_half(tmp_path, rand, capsys):
    with capsys.disabled():
        print(kill_loop(tmp_path / "store", rand, kills=100))
