"""The settled position under attack: whoever follows the whole log to it sees every event once and in stream order.

Writers append in transactions that pause, roll back and use savepoints, several streams at a time, and are killed, from
outside and by the server. Readers follow as `events` does. A planted reader that trusts the newest position must be caught.
"""

import multiprocessing
import os
import random
import signal
import threading
import time
import uuid
from collections import Counter
from datetime import UTC, datetime

import psycopg
import pytest

from memfold import MemoryStore
from memfold.errors import DatabaseUnsuitable, SchemaTooNew
from memfold.events import MemoryRemembered
from memfold.eventstore import arrays, embedded
from memfold.eventstore.append import Request, Verdict, call
from memfold.eventstore.codec import new_id, seal_event
from memfold.eventstore.database import open_database
from memfold.eventstore.tail import Tail
from memfold.settings import Settings

TENANT = 7
NOBODY = bytes(16)
SPAWN = multiprocessing.get_context("forkserver")
SPAWN.set_forkserver_preload(["psycopg", "memfold.eventstore.database", "memfold.eventstore.tail"])
CALL = "SELECT verdict FROM memfold.append(" + ", ".join(["%s", *["%b"] * 17]) + ")"


def connect(url):
    # Deadlocks are left to happen, and found quickly.
    connection = psycopg.connect(url, options="-c deadlock_timeout=20ms")
    arrays.register(connection)
    return connection


def make_streams(url, count):
    streams = [uuid.uuid4().bytes for _ in range(count)]
    with connect(url) as owner:
        owner.cursor().executemany(
            "INSERT INTO memfold.heads VALUES (%s, %s, 0, now(), false)",
            [(TENANT, uuid.UUID(bytes=stream)) for stream in streams],
        )
    return streams


def append(connection, streams, sizes):
    """One call of the append function: a request a stream, of so many events each."""
    count, ints, uuids, blobs = sum(sizes), arrays.int_array, arrays.uuid_array, arrays.bytea_array
    requests = len(streams)
    parameters = (
        TENANT,
        uuids(streams),
        uuids([NOBODY] * requests),
        ints([1] * requests),
        arrays.timestamp_array([datetime.now(UTC)] * requests),
        blobs([b""] * requests),
        blobs([b""] * requests),
        ints([-1] * requests),
        ints(sizes),
        ints([number for number, size in enumerate(sizes, 1) for _ in range(size)]),
        ints([place for size in sizes for place in range(1, size + 1)]),
        uuids([uuid.uuid4().bytes for _ in range(count)]),
        uuids([None] * count),
        ints([1] * count, arrays.INT2),
        ints([1] * count, arrays.INT2),
        blobs([b"d"] * count),
        blobs([b"p"] * count),
        blobs([b"w"] * count),
    )
    connection.execute(CALL, parameters)


def write(url, streams, seed, committed, goal):
    """A writer process: hostile transactions until `goal` events are committed by all together."""
    rand = random.Random(seed)
    while committed.value < goal:
        try:
            with connect(url) as connection:
                while committed.value < goal:
                    written = transaction(connection, streams, rand)
                    with committed.get_lock():
                        committed.value += written
        except psycopg.Error:
            continue  # deadlocks and terminated backends are part of the attack


def transaction(connection, streams, rand):
    written = 0
    for _ in range(rand.randint(1, 3)):
        chosen = rand.sample(streams, rand.randint(1, 5))
        sizes = [rand.choice((1, 1, 2, 5, 20, 60)) for _ in chosen]
        if rand.random() < 0.15:
            connection.execute("SAVEPOINT here")
            append(connection, chosen, sizes)
            if rand.random() < 0.5:
                connection.execute("ROLLBACK TO here")
                continue
        else:
            append(connection, chosen, sizes)
        written += sum(sizes)
        if rand.random() < 0.3:
            time.sleep(0.3 if rand.random() < 0.01 else rand.random() * 0.01)
    if rand.random() < 0.15:
        connection.rollback()
        return 0
    connection.commit()
    return written


def follow(url, naive, stop, result):
    """A reader process: demands version 1, 2, 3 … of each stream, and counts what is missing or comes twice."""
    database = open_database(url, Settings(pool_connections_max=4))
    tail, cursor, seen = Tail(database), 0, Counter()
    wrong = total = 0
    last_round = False
    while True:
        last_round = last_round or stop.is_set()
        upto = 2**62 if naive else (tail.settle(30) if last_round else tail.advance())
        query = """SELECT position, uuid_send(stream_id) AS stream, version FROM memfold.events
                   WHERE tenant_id = %s AND position > %s AND position <= %s ORDER BY position LIMIT 20000"""
        rows = database.rows(query, (TENANT, cursor, upto))
        for row in rows:
            wrong += row.version != seen[row.stream] + 1
            seen[row.stream] = row.version
        total += len(rows)
        cursor = rows[-1].position if len(rows) == 20_000 or (naive and rows) else (cursor if naive else max(cursor, upto))
        if last_round and len(rows) < 20_000:
            break
        time.sleep(0.002)
    result.put((naive, total, wrong))
    database.close()


def chaos(url, writers, rand, *, kills):
    """Kill a writer now and then, from outside or from within the server; writers are replaced by the caller."""
    with psycopg.connect(url, autocommit=True) as owner:
        if kills and rand.random() < 0.5:
            victim = rand.choice([writer for writer in writers if writer.is_alive()] or [None])
            if victim:
                os.kill(victim.pid, signal.SIGKILL)
                return "killed"
        owner.execute(
            """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE query LIKE '%memfold.append%' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1"""
        )
        return "terminated"


def attack(url, rand, *, goal, writers, readers):
    """Run the whole attack; returns what each reader counted and what was done to the writers."""
    open_database(url, Settings()).close()
    streams = make_streams(url, 200)
    committed, stop, results = SPAWN.Value("q", 0), SPAWN.Event(), SPAWN.Queue()
    followers = [SPAWN.Process(target=follow, args=(url, naive, stop, results)) for naive in [True] + [False] * readers]
    start = [lambda: SPAWN.Process(target=write, args=(url, streams, rand.getrandbits(32), committed, goal))]
    crew = [start[0]() for _ in range(writers)]
    for process in [*followers, *crew]:
        process.start()
    done = Counter()
    while any(writer.is_alive() for writer in crew):
        time.sleep(0.7)
        if committed.value < goal * 0.9:
            done[chaos(url, crew, rand, kills=True)] += 1
        for number, writer in enumerate(crew):
            if not writer.is_alive() and committed.value < goal:
                crew[number] = start[0]()
                crew[number].start()
    stop.set()
    found = [results.get(timeout=300) for _ in followers]
    for process in [*followers, *crew]:
        process.join()
    return found, done


def count(url, query):
    with psycopg.connect(url) as owner:
        return owner.execute(query, (TENANT,)).fetchone()[0]


def check_attack(url, rand, capfd_print, **options):
    found, done = attack(url, rand, **options)
    total = count(url, "SELECT count(*) FROM memfold.events WHERE tenant_id = %s")
    drawn = count(url, "SELECT last_value FROM memfold.position WHERE %s = 7")
    capfd_print(f"{total:,} events committed of {drawn:,} drawn; {dict(done)}; naive, seen, wrong: {sorted(found)}")
    for naive, seen, wrong in found:
        if naive:
            assert seen < total or wrong > 0, "the attack is too weak: even a naive reader missed nothing"
        else:
            assert (seen, wrong) == (total, 0)
    assert total >= options["goal"]
    assert count(url, "SELECT count(*) FROM memfold.payloads WHERE tenant_id = %s") == total
    assert count(url, "SELECT count(*) FROM memfold_keys.keys WHERE tenant_id = %s") == total
    torn = """SELECT count(*) FROM memfold.heads h JOIN (
                  SELECT stream_id, max(version) AS newest, count(*) AS n FROM memfold.events
                  WHERE tenant_id = %s GROUP BY stream_id
              ) e USING (stream_id) WHERE e.newest <> e.n OR e.newest <> h.version"""
    assert count(url, torn) == 0


def test_readers_of_the_whole_log_miss_nothing(own_server, rand, capsys):
    check_attack(own_server.url, rand, print, goal=50_000, writers=6, readers=1)


@pytest.mark.soak
def test_readers_of_the_whole_log_miss_nothing_of_a_million(own_server, rand, capsys):
    with capsys.disabled():
        check_attack(own_server.url, rand, print, goal=1_000_000, writers=28, readers=3)


# -- schedules, step by step ---------------------------------------------------------------------------------------------


@pytest.fixture
def log(own_server):
    database = open_database(own_server.url, Settings(pool_connections_max=4))
    yield database, own_server.url, make_streams(own_server.url, 3)
    database.close()


def last_position(url):
    return count(url, "SELECT last_value FROM memfold.position WHERE %s = 7")


def test_the_mark_waits_for_a_smaller_position_that_is_not_committed_yet(log):
    database, url, streams = log
    tail = Tail(database)
    with connect(url) as slow, connect(url) as quick:
        append(slow, streams[:1], [1])
        drawn = last_position(url)
        append(quick, streams[1:2], [1])
        quick.commit()
        assert [tail.advance() for _ in range(3)][-1] < drawn
        assert tail.settle(0.05) < drawn
        slow.commit()
        assert tail.settle(5) == drawn + 1


def test_a_rolled_back_position_holds_nobody_back(log):
    database, url, streams = log
    with connect(url) as connection:
        append(connection, streams[:1], [5])
        connection.rollback()
        assert Tail(database).settle(5) == last_position(url)


def test_a_savepoint_that_is_rolled_back_and_written_again_is_waited_for(log):
    database, url, streams = log
    tail = Tail(database)
    with connect(url) as connection:
        connection.execute("SAVEPOINT here")
        append(connection, streams[:1], [1])
        connection.execute("ROLLBACK TO here")
        append(connection, streams[:1], [1])
        drawn = last_position(url)
        assert tail.settle(0.05) < drawn
        connection.commit()
        assert tail.settle(5) == drawn


@pytest.mark.parametrize(
    "statement",
    ["CREATE TABLE elsewhere (x int)", "SELECT * FROM memfold.heads FOR UPDATE", "SELECT count(*) FROM memfold.events"],
)
def test_a_long_transaction_elsewhere_does_not_hold_the_mark_back(log, statement):
    database, url, streams = log
    with connect(url) as foreign, connect(url) as writer:
        if "heads" in statement:
            statement += " OF heads"
            foreign.execute(f"SELECT FROM memfold.heads WHERE stream_id = '{uuid.UUID(bytes=streams[2])}' FOR UPDATE")
        else:
            foreign.execute(statement)
        append(writer, streams[:1], [1])
        writer.commit()
        assert Tail(database).settle(5) == last_position(url)
        foreign.rollback()


LOOK = """
CREATE FUNCTION look(times int, OUT unlocked int, OUT tick int) LANGUAGE plpgsql AS $$
DECLARE seen bigint; BEGIN
    unlocked := 0; tick := 0;
    FOR i IN 1 .. times LOOP
        SELECT CASE WHEN is_called THEN last_value ELSE 0 END INTO seen FROM memfold.position;
        unlocked := unlocked + (seen > coalesce(pg_sequence_last_value('memfold.position'), 0))::int;
        SELECT head INTO seen FROM memfold.tick(4611686018427387904, true);
        tick := tick + (seen > coalesce(pg_sequence_last_value('memfold.position'), 0))::int;
    END LOOP;
END $$"""


def test_the_head_is_never_ahead_of_what_was_drawn(log):
    """A plain SELECT of the sequence is, now and then: nextval puts a later value there for a moment."""
    _, url, _ = log
    stop = threading.Event()

    def draw():
        with psycopg.connect(url, autocommit=True) as connection:
            while not stop.is_set():
                connection.execute("SELECT count(nextval('memfold.position')) FROM generate_series(1, 20000)")

    drawing = threading.Thread(target=draw)
    drawing.start()
    unlocked = ticks = 0
    deadline = time.monotonic() + 30
    try:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(LOOK)
            while unlocked < 20 and time.monotonic() < deadline:
                row = connection.execute("SELECT unlocked, tick FROM look(5000)").fetchone()
                unlocked, ticks = unlocked + row[0], ticks + row[1]
    finally:
        stop.set()
        drawing.join()
    assert unlocked > 0, "the window was never hit: this test proves nothing"
    assert ticks == 0


def test_a_tick_with_an_old_snapshot_is_refused(log):
    _, url, _ = log
    with psycopg.connect(url) as connection:
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        with pytest.raises(psycopg.errors.RaiseException, match="READ COMMITTED"):
            connection.execute("SELECT * FROM memfold.tick(0, false)")


# -- what is refused at start ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "repair", "words"),
    [
        ("ALTER SEQUENCE memfold.position CACHE 10", "ALTER SEQUENCE memfold.position CACHE 1", "CACHE 10"),
        ("ALTER TABLE memfold.events DISABLE TRIGGER ALL", "ALTER TABLE memfold.events ENABLE TRIGGER ALL", "triggers"),
        ("GRANT INSERT ON memfold.events TO PUBLIC", "REVOKE INSERT ON memfold.events FROM PUBLIC", "INSERT ON memfold.events"),
        ("GRANT DELETE ON memfold_keys.keys TO memfold_app", "REVOKE DELETE ON memfold_keys.keys FROM memfold_app", "DELETE"),
    ],
)
def test_a_log_that_could_lose_events_is_refused(log, damage, repair, words):
    _, url, _ = log
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute(damage)
        with pytest.raises(DatabaseUnsuitable, match=words):
            open_database(url, Settings())
        owner.execute(repair)
    open_database(url, Settings()).close()


def test_a_newer_schema_is_refused_and_left_alone(log):
    _, url, _ = log
    with psycopg.connect(url, autocommit=True) as owner:
        owner.execute("UPDATE memfold.alembic_version SET version_num = '9999'")
        with pytest.raises(SchemaTooNew, match="9999"):
            open_database(url, Settings())
        assert owner.execute("SELECT version_num FROM memfold.alembic_version").fetchone() == ("9999",)


@pytest.mark.parametrize(
    ("setting", "value"), [("fsync", "off"), ("full_page_writes", "off"), ("max_prepared_transactions", "5")]
)
def test_a_server_that_would_lose_what_it_acknowledged_is_refused(tmp_path, monkeypatch, setting, value):
    monkeypatch.setitem(embedded.SETTINGS, setting, value)
    server = embedded.attach(tmp_path / "server")
    try:
        with pytest.raises(DatabaseUnsuitable, match=setting):
            open_database(server.url, Settings())
    finally:
        server.release()


# -- a crash takes back what was drawn and not yet on disk --------------------------------------------------------------------


class Crashing:
    """A server that writes its WAL only when a commit asks for it, so that a crash takes positions back that were drawn."""

    def __init__(self, folder):
        self.folder = folder
        self.server = embedded.attach(folder)
        self.url = self.server.url
        self.again = None

    def draw_in_vain(self, streams):
        with connect(self.url) as connection:
            append(connection, streams[:1], [40])
            connection.rollback()

    def crash(self):
        os.kill(int((self.folder / "pg" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        self.again = embedded.attach(self.folder)

    def close(self):
        for lease in filter(None, [self.again, self.server]):
            lease.release()


@pytest.fixture
def crashing(tmp_path, monkeypatch):
    monkeypatch.setitem(embedded.SETTINGS, "wal_writer_delay", "10s")
    crashing = Crashing(tmp_path / "server")
    yield crashing
    crashing.close()


def test_a_position_that_stats_told_before_a_crash_is_a_good_place_to_go_on_from(crashing):
    with MemoryStore(crashing.folder) as store:
        store.remember("aardvark", session_id="s")
        crashing.draw_in_vain(make_streams(crashing.url, 1))
        position = store._catalog.stats(None).position  # before the directory catches up, which would write to the log's disk
        crashing.crash()
        memory = store.remember("bandicoot", session_id="s")
        assert last_position(crashing.url) < 41, "the crash took nothing back: this test proves nothing"
        assert [event.memory_id for event in store.events(position)] == [memory.id]


def test_a_follower_that_lived_through_a_crash_waits_for_positions_that_are_drawn_anew(crashing):
    database = open_database(crashing.url, Settings(pool_connections_max=4))
    streams = make_streams(crashing.url, 3)
    tail = Tail(database)
    crashing.draw_in_vain(streams)
    tail.settle(5)
    crashing.crash()
    with connect(crashing.url) as slow, connect(crashing.url) as quick:
        append(slow, streams[:1], [1])
        drawn = last_position(crashing.url)
        assert drawn < 41, "the crash took nothing back: this test proves nothing"
        append(quick, streams[1:2], [1])
        quick.commit()
        assert [tail.advance() for _ in range(3)][-1] < drawn
        slow.commit()
        assert tail.settle(5) == drawn + 1
    database.close()


def test_events_asked_for_before_a_crash_and_read_after_it_leave_nothing_out(crashing):
    with MemoryStore(crashing.folder) as store:
        store.remember("aardvark", session_id="slow")
        store.remember("aardvark", session_id="quick")
        begin = store.stats().position
        crashing.draw_in_vain(make_streams(crashing.url, 1))
        events = store.events(begin)
        crashing.crash()
        with connect(crashing.url) as slow:
            assert call(slow, store._keyring.tenant, [request_for(store, "slow")])[0].verdict is Verdict.ACCEPTED
            assert last_position(crashing.url) < 41, "the crash took nothing back: this test proves nothing"
            store.remember("bandicoot", session_id="quick")
            seen = list(events)
            slow.commit()
        seen += store.events(seen[-1].position if seen else begin)
        assert [event.session_id for event in seen] == ["slow", "quick"]


def request_for(store, session_id):
    ref, tenant = store._keyring.find_session(session_id), store._keyring.tenant
    event = MemoryRemembered(content="cassowary")
    sealed = seal_event(event, tenant=tenant, stream=ref.stream, memory_id=new_id(), wrapping=ref.key)
    return Request(ref.stream, ref.user, ref.key.version, datetime.now(UTC), [sealed])
