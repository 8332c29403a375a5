"""kill -9 of who projects, at any moment, while others append and forget: every event is counted once, and none is passed over.

Several processes project at once and are killed; now and then PostgreSQL loses a connection's backend, or all of them. After
each kill the directory is held against the log up to its own checkpoint, in one snapshot; at the end against one rebuilt.
"""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psycopg
import pytest
from directory_log import Log, step

from memfold import MemfoldError, MemoryStore, Settings, StoreUnavailable
from memfold.eventstore import derived, embedded
from memfold.minilm import static_embedder
from memfold.projections.directory import Directory
from memfold.projections.projector import Projector

PROJECTORS = 2

# Of each session that the checkpoint has seen and that still is: what the directory says, beside what the spine says up to
# there. Where a rebuild has just begun, nothing is said yet.
AGAINST_THE_LOG = """
WITH seen AS (SELECT tenant_id, position FROM memfold.checkpoints WHERE name = 'directory 1' AND position > 0),
gone AS (
    SELECT f.tenant_id, f.position FROM memfold.events f
    WHERE f.type = 3 AND EXISTS (
        SELECT FROM memfold.events r WHERE r.tenant_id = f.tenant_id AND r.memory_id = f.memory_id AND r.type = 1)
),
told AS (
    SELECT e.tenant_id, e.stream_id, max(e.version) AS version,
        count(*) FILTER (WHERE e.type = 1) - count(gone.position) AS memories
    FROM memfold.events e
    JOIN seen ON seen.tenant_id = e.tenant_id AND e.position <= seen.position
    JOIN memfold.sessions s ON s.tenant_id = e.tenant_id AND s.stream_id = e.stream_id
    LEFT JOIN gone ON gone.tenant_id = e.tenant_id AND gone.position = e.position
    GROUP BY e.tenant_id, e.stream_id
),
kept AS (SELECT d.* FROM memfold.directory d JOIN seen USING (tenant_id) JOIN memfold.sessions s USING (tenant_id, stream_id))
SELECT count(t.stream_id), count(*) FILTER (WHERE (t.version, t.memories) IS DISTINCT FROM (k.version, k.memories))
FROM told t FULL JOIN kept k USING (tenant_id, stream_id)"""


def project(folder: Path, seed: int) -> None:
    """The victim: projects what comes, in small batches, and now and then all anew, until it is killed.

    Half of the victims ignore the lease: it spares work, and nothing may rest on it.
    """
    rand = random.Random(seed)
    if rand.random() < 0.5:
        derived.try_lock = lambda *_: True
    store = MemoryStore(folder, settings=Settings(connect_timeout_s=5), embedder=static_embedder())
    directory = Directory(store._database, store._keyring.tenant)
    print("working", flush=True)
    while True:
        projector = Projector(store._database, store._keyring, directory, batch_events=rand.choice((1, 3, 20, 2_000)))
        try:
            if rand.random() < 0.02:
                projector.rebuild(time.monotonic() + 5)
            projector.catch_up(time.monotonic() + 5)
        except StoreUnavailable:
            time.sleep(0.05)


def start_projector(folder: Path, seed: int) -> subprocess.Popen[str]:
    paths = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    code = f"import sys; sys.path[:0] = {paths!r}; import test_projector_kill; from pathlib import Path; "
    code += f"test_projector_kill.project(Path({str(folder)!r}), {seed})"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "working\n"
    return child


class Writer(threading.Thread):
    """Appends to sessions and forgets, one thing after the other, until it is stopped."""

    def __init__(self, log: Log, rand: random.Random) -> None:
        super().__init__(daemon=True)
        self.log, self.rand = log, rand
        self.writing, self.is_over = threading.Lock(), False
        self.error: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.is_over:
                with self.writing:
                    step(self.log, self.rand, "abcdef")
                time.sleep(0.001)
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.is_over = True
        self.join()
        if self.error:
            raise self.error


def end_a_batch(url: str) -> int:
    """End the connections that hold a follower's lease: whoever projects is most likely within a batch."""
    query = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND granted"
    with psycopg.connect(url) as owner:
        return len(owner.execute(query).fetchall())


def kill_server(folder: Path) -> embedded.EmbeddedServer:
    os.kill(int((folder / "pg" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while True:
        try:
            return embedded.attach(folder)
        except MemfoldError:
            assert time.monotonic() < deadline
            time.sleep(0.1)


def sessions_that_differ(url: str) -> tuple[int, int]:
    """How many sessions the checkpoint has seen, and of how many the directory says something else. A rebuild may be on."""
    with psycopg.connect(url) as owner:
        return owner.execute(AGAINST_THE_LOG).fetchone()


def kill_loop(folder: Path, rand: random.Random, *, kills: int) -> dict[str, int]:
    counted = {"projector": 0, "connection": 0, "server": 0, "compared": 0}
    store = MemoryStore(folder, embedder=static_embedder())
    server = embedded.attach(folder)
    log = Log(store, server.url)
    projectors = [start_projector(folder, number) for number in range(PROJECTORS)]
    writer = Writer(log, rand)
    writer.start()
    for number in range(kills):
        time.sleep(rand.uniform(0.02, 0.3))
        assert all(child.poll() is None for child in projectors)
        if number % 20 == 19:
            counted["server"] += 1
            with writer.writing:
                server.release()
                server = kill_server(folder)
        elif number % 4 == 3:
            counted["connection"] += end_a_batch(server.url)
        else:
            counted["projector"] += 1
            victim = number % PROJECTORS
            projectors[victim].kill()
            projectors[victim].communicate()
            projectors[victim] = start_projector(folder, PROJECTORS + number)
        seen, different = sessions_that_differ(server.url)
        assert different == 0
        counted["compared"] += seen
    writer.stop()
    for child in projectors:
        child.kill()
        child.communicate()
    assert log.projector.catch_up(time.monotonic() + 60)
    assert log.found() == log.expected()
    assert log.projector.parked() == []
    kept = log.directory.digest()
    assert log.projector.rebuild(time.monotonic() + 60)
    assert log.directory.digest() == kept
    counted["events"] = log.projector.position
    store.close()
    server.release()
    return counted


def test_kills_of_who_projects_count_nothing_twice_and_pass_nothing_over(tmp_path, rand):
    print(kill_loop(tmp_path / "store", rand, kills=8))


@pytest.mark.soak
def test_150_kills_of_who_projects_count_nothing_twice_and_pass_nothing_over(tmp_path, rand, capsys):
    with capsys.disabled():
        print(kill_loop(tmp_path / "store", rand, kills=150))
