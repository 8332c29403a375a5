"""The directory of sessions: what it says, that it says the same however it came to be, and what is due because of it."""

import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from uuid import UUID

import psycopg
import pytest
from directory_log import BEGINNING, Log, step, texts

from memfold.errors import KeyUnavailable, StoreUnavailable
from memfold.events import MemoriesArchived, MemoryRemembered
from memfold.eventstore import derived
from memfold.eventstore.codec import new_id
from memfold.projections import projector
from memfold.projections.directory import Directory
from memfold.projections.projector import POISONED_MAX, Projector

DAY = timedelta(days=1)


@pytest.fixture
def log(store, server_url):
    return Log(store, server_url)


def soon():
    return time.monotonic() + 30


def test_a_directory_kept_in_batches_of_any_size_is_the_one_rebuilt_from_the_first_event(log, rand):
    for _ in range(150):
        step(log, rand)
        if rand.random() < 0.2:
            batch = rand.choice((1, 2, 3, 7, 2_000))
            assert Projector(log.database, log.keyring, log.directory, batch_events=batch).catch_up(soon())
            assert log.found() == log.expected()
    assert log.projector.catch_up(soon())
    kept = log.directory.digest()
    assert log.projector.rebuild(soon())
    assert log.directory.digest() == kept
    assert log.found() == log.expected()


def test_a_faded_summary_that_died_is_not_archived_in_what_is_rebuilt(log):
    source, other = log.remember("a", 2)
    summary = log.compress("a", [source])
    log.fade("a", [summary, other])
    assert log.projector.catch_up(soon())
    assert log.found() == log.expected()

    log.forget("a", source)

    for bring in (log.projector.catch_up, log.projector.rebuild):
        assert bring(soon())
        assert log.found() == log.expected()
        assert log.directory.session(log.sessions["a"].stream).archived == 1


def test_the_fold_reads_a_fact_of_something_that_is_gone_by_then(log):
    """The projector is behind: what it folds was erased since, by facts that it has yet to read."""
    one, two, three = log.remember("a", 3)
    below = log.compress("a", [one, two])
    log.compress("a", [below, three])
    log.forget("a", one)
    log.forget("a", below)

    for batch in (1, 2, 4, 6, 8):
        Projector(log.database, log.keyring, log.directory, batch_events=batch).rebuild(soon())
        assert log.found() == log.expected()


def test_what_was_forgotten_before_or_belongs_elsewhere_is_not_archived(log):
    one, two = log.remember("a", 2)
    (other,) = log.remember("b")
    log.forget("a", one)
    stray = MemoriesArchived(memory_ids=texts([one, two, other, new_id()]))
    log.append("a", (stray, None))
    log.sessions["a"].kept.add((b"", two))
    assert log.projector.catch_up(soon())
    assert log.found() == log.expected()


def test_a_window_is_kept_with_its_sources_and_what_it_keeps_archived(log):
    one, two, three, four = log.remember("a", 4)
    summary = log.compress("a", [one, two], (90, 10))
    log.fade("a", [three, four])
    log.restore("a", [two, three])
    assert log.projector.catch_up(soon())

    window, faded = log.directory.windows(log.sessions["a"].stream)

    assert (window.summary, window.sources, window.archived) == (summary, (one, two), {one})
    assert (window.tokens_before, window.tokens_after) == (90, 10)
    assert (faded.summary, faded.archived) == (None, {four})


def test_of_a_forgotten_session_nothing_is_left_also_with_no_projector_alive(log):
    log.compress("a", log.remember("a", 2))
    log.remember("b")
    assert log.projector.catch_up(soon())
    stream = log.sessions["a"].stream
    assert log.directory.examined(stream, 3, 1, None, None, at=BEGINNING)
    assert log.directory.park(stream, b"window", reason="too long", at=BEGINNING, next_at=None)

    log.forget_session("a")

    for table in ("directory", "windows", "agenda", "parked"):
        query = f"SELECT count(*) AS count FROM memfold.{table} WHERE tenant_id = %s AND stream_id = %s"
        assert log.database.row(query, (log.keyring.tenant, UUID(bytes=stream))).count == 0
    assert not log.directory.park(stream, b"window", reason="too long", at=BEGINNING, next_at=None)
    assert not log.directory.examined(stream, 3, 1, None, None, at=BEGINNING)
    assert log.projector.catch_up(soon())
    assert log.found() == log.expected()


def test_with_the_newest_schema_the_bytes_of_a_summary_go_with_a_source(log):
    """Migrations that define a function anew must not bring an older one back."""
    one, two = log.remember("a", 2)
    log.compress("a", [one, two])
    position = window_position(log, "a")
    query = "SELECT count(*) AS count FROM memfold.payloads WHERE tenant_id = %s AND position = %s"
    assert log.database.row(query, (log.keyring.tenant, position)).count == 1
    log.forget("a", one)
    assert log.database.row(query, (log.keyring.tenant, position)).count == 0


def test_the_lag_counts_what_is_not_projected(log):
    log.remember("a", 3)
    assert log.projector.lag()[:2] == (3, 0)
    assert log.projector.catch_up(soon())
    lag = log.projector.lag()
    assert lag.events == 0
    assert lag.position == lag.newest > 0


def test_a_deadline_that_is_over_leaves_the_rest_for_later(log):
    log.remember("a", 3)
    assert not log.projector.catch_up(time.monotonic() - 1)
    assert log.projector.lag().events == 3


def test_totals_are_sums_over_sessions_or_those_of_a_user(log):
    log.compress("a", log.remember("a", 3), (70, 7))
    log.fade("b", log.remember("b", 2))
    assert log.projector.catch_up(soon())
    user = log.keyring.find_user("a")
    assert log.directory.totals() == (2, 5, 1, 5, 70, 7)
    assert log.directory.totals(user) == (1, 3, 1, 3, 70, 7)
    assert log.directory.totals_by_user() == {user: (1, 3, 1, 3, 70, 7), log.keyring.find_user("b"): (1, 2, 0, 2, 0, 0)}


# -- poison and faults -----------------------------------------------------------------------------------------------------


def spoil(log, position, payload):
    """Put other bytes in the place of a payload; return those that were there."""
    with psycopg.connect(log.owner_url) as owner:
        where = (log.keyring.tenant, position)
        query = "SELECT sealed FROM memfold.payloads WHERE tenant_id = %s AND position = %s FOR UPDATE"
        (before,) = owner.execute(query, where).fetchone()
        owner.execute("UPDATE memfold.payloads SET sealed = %s WHERE tenant_id = %s AND position = %s", (payload, *where))
        return before


def window_position(log, name):
    query = "SELECT min(position) AS found FROM memfold.events WHERE tenant_id = %s AND stream_id = %s AND type = 7"
    return log.database.row(query, (log.keyring.tenant, UUID(bytes=log.sessions[name].stream))).found


@pytest.mark.parametrize("batch", [1, 3, 2_000])
def test_a_poisoned_event_parks_its_stream_and_no_other_until_it_is_retried(log, batch, caplog):
    for name in "ab":
        log.compress(name, log.remember(name, 2))
    position = window_position(log, "a")
    payload = spoil(log, position, b"nonsense")
    projector = Projector(log.database, log.keyring, log.directory, batch_events=batch)
    assert projector.catch_up(soon())
    log.remember("a")
    log.remember("b")
    assert projector.catch_up(soon())

    (parked,) = projector.parked()
    assert (parked.stream, parked.position, parked.attempts, parked.parked) == (log.sessions["a"].stream, position, 1, True)
    assert "does not open" in parked.reason
    assert f"position {position}" in caplog.text
    found, expected = log.found(), log.expected()
    assert found.pop(log.sessions["a"].stream)[:2] == (2, 2)
    assert expected.items() >= found.items()
    assert len(found) == 1

    assert projector.retry_parked() == 0
    assert projector.parked()[0].attempts == 2
    assert log.found()[log.sessions["a"].stream][:2] == (2, 2)
    spoil(log, position, payload)
    assert projector.retry_parked() == 1
    assert projector.parked() == []
    assert log.found() == log.expected()
    log.compress("a", log.remember("a", 2))
    assert projector.catch_up(soon())
    assert log.found() == log.expected()


def test_what_the_fold_itself_cannot_take_parks_the_stream_without_a_word_of_it(log):
    log.remember("b")
    log.remember("a", 2)
    log.append("a", (MemoriesArchived(memory_ids=("secret words",)), None))
    log.append("a", (MemoryRemembered(content="tea"), new_id()))
    assert log.projector.catch_up(soon())

    (parked,) = log.projector.parked()
    assert parked.reason == f"event at position {parked.position}: ValueError"
    assert {row[0] for row in log.found().values()} == {1, 2}


def test_values_that_the_database_refuses_park_the_stream(log, monkeypatch):
    log.remember("a", 2)
    log.remember("b")
    apply, refused = Directory.apply, log.sessions["a"].stream

    def refuse(directory, connection, facts):
        wrong = [fact for fact in facts if (fact.header.stream, fact.header.version) == (refused, 2)]
        connection.execute("SELECT 1 / %s", (0 if wrong else 1,))
        apply(directory, connection, facts)

    monkeypatch.setattr(Directory, "apply", refuse)
    assert log.projector.catch_up(soon())
    (parked,) = log.projector.parked()
    assert parked.reason == f"event at position {parked.position}: DivisionByZero"
    assert log.directory.session(refused).memories == log.directory.session(log.sessions["b"].stream).memories == 1


def test_a_type_of_a_later_memfold_parks_its_streams(log, monkeypatch):
    log.remember("a")
    log.remember("b")
    log.fade("b", log.remember("b"))
    with monkeypatch.context() as older:
        older.setattr(projector, "TYPES", {1: MemoryRemembered})
        assert log.projector.catch_up(soon())
        assert [parked.stream for parked in log.projector.parked()] == [log.sessions["b"].stream]
    assert log.projector.retry_parked() == 1
    assert log.found() == log.expected()


def test_a_rebuild_takes_up_what_was_parked(log):
    log.compress("a", log.remember("a", 2))
    position = window_position(log, "a")
    payload = spoil(log, position, b"nonsense")
    assert log.projector.catch_up(soon())
    spoil(log, position, payload)
    assert log.projector.rebuild(soon())
    assert log.projector.parked() == []
    assert log.found() == log.expected()


def test_a_parked_session_that_is_forgotten_is_gone(log):
    log.compress("a", log.remember("a", 2))
    spoil(log, window_position(log, "a"), b"nonsense")
    assert log.projector.catch_up(soon())
    log.forget_session("a")
    assert log.projector.catch_up(soon())
    assert log.projector.parked() == []
    assert log.found() == {}


def test_a_note_left_behind_by_a_race_with_a_forget_goes_with_the_fact(log):
    log.remember("a")
    stream = UUID(bytes=log.sessions["a"].stream)
    log.forget_session("a")
    with psycopg.connect(log.owner_url) as owner:
        query = "INSERT INTO memfold.parked VALUES (%s, 'directory', %s, '', 1, 'late', 1, now(), NULL, true)"
        owner.execute(query, (log.keyring.tenant, stream))
    assert log.projector.catch_up(soon())
    assert log.projector.parked() == []


def test_many_poisoned_streams_at_once_are_not_passed_over(log):
    for number in range(POISONED_MAX + 1):
        log.append(f"s{number}", (MemoriesArchived(memory_ids=("x",)), None))
    with pytest.raises(ValueError, match="badly formed"):
        log.projector.catch_up(soon())
    assert log.projector.position == 0
    assert log.projector.parked() == []


@pytest.mark.parametrize("error", [StoreUnavailable("full", outcome="not_written"), KeyUnavailable("away"), MemoryError()])
def test_what_is_not_the_fault_of_an_event_passes_nothing_over(log, monkeypatch, error):
    log.remember("a")

    def refuse(*_):
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(Directory, "apply", refuse)
        with pytest.raises(type(error)):
            log.projector.catch_up(soon())
    assert log.projector.position == 0
    assert log.projector.parked() == []
    assert log.projector.catch_up(soon())
    assert log.found() == log.expected()


def test_a_connection_that_is_lost_in_a_batch_loses_and_doubles_nothing(log, monkeypatch):
    log.compress("a", log.remember("a", 2))
    apply, cut = Directory.apply, []

    def lose(directory, connection, facts):
        apply(directory, connection, facts)
        if not cut:
            cut.append(True)
            with psycopg.connect(log.owner_url) as owner:
                owner.execute("SELECT pg_terminate_backend(%s)", (connection.info.backend_pid,))

    monkeypatch.setattr(Directory, "apply", lose)
    assert log.projector.catch_up(soon())
    assert cut
    assert log.found() == log.expected()


@pytest.mark.parametrize("leased", [True, False])
def test_projectors_that_race_apply_every_event_once(log, monkeypatch, leased, rand):
    if not leased:
        monkeypatch.setattr(derived, "try_lock", lambda *_: True)
    for _ in range(60):
        step(log, rand)

    def follow():
        assert Projector(log.database, log.keyring, log.directory, batch_events=rand.randint(1, 3)).catch_up(soon())

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(follow) for _ in range(4)]:
            done.result()
    assert log.found() == log.expected()


def test_who_finds_the_checkpoint_moved_writes_nothing(log, monkeypatch):
    """Another projector is done with the batch just before ours begins its transaction."""
    log.remember("a")
    read = Projector._opened
    other = Projector(log.database, log.keyring, log.directory)

    def be_late(self, headers):
        if self is not other:
            monkeypatch.undo()
            derived_lock_is_free(log)
            assert other.catch_up(soon())
        return read(self, headers)

    monkeypatch.setattr(derived, "try_lock", lambda *_: True)
    monkeypatch.setattr(Projector, "_opened", be_late)
    assert log.projector.catch_up(soon())
    assert log.found() == log.expected()


def derived_lock_is_free(log):
    with log.database.connection() as connection:
        assert derived.try_lock(connection, log.keyring.tenant, "directory 1")
        derived.unlock(connection)


def test_another_version_of_the_fold_begins_anew(log, monkeypatch):
    log.compress("a", log.remember("a", 2))
    assert log.projector.catch_up(soon())
    monkeypatch.setattr(Directory, "version", 2)
    assert Projector(log.database, log.keyring, log.directory).catch_up(soon())
    assert log.found() == log.expected()


# -- what is due -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def due(log):
    """The names of the sessions that are due so much later, under a version of the policies."""

    def ask(after=timedelta(0), *, policy=1, older=DAY, limit=100):
        assert log.projector.catch_up(soon())
        names = {session.stream: name for name, session in log.sessions.items()}
        return [names[stream] for stream in log.directory.due(log.now + after, policy, older, limit)]

    return ask


@pytest.fixture
def examined(log):
    def note(name, *, version=None, policy=1, due_at=None, due_memories=None):
        assert log.projector.catch_up(soon())
        session = log.sessions[name]
        return log.directory.examined(session.stream, version or session.version, policy, due_at, due_memories, at=log.now)

    return note


def test_a_session_never_examined_is_due_once_its_first_memory_is_old(log, due):
    for name in "cab":
        log.remember(name)
    assert due(DAY - timedelta(seconds=1)) == ["c", "a"]
    assert due(2 * DAY) == ["c", "a", "b"]
    assert due(2 * DAY, limit=2) == ["c", "a"]
    assert due() == []


def test_an_examined_session_is_due_at_its_time(log, due, examined):
    log.remember("a")
    assert examined("a", due_at=log.now + 3 * DAY)
    assert due(2 * DAY) == []
    assert due(3 * DAY) == ["a"]


def test_an_examined_session_is_due_with_so_many_memories(log, due, examined):
    log.remember("a", 2)
    assert examined("a", due_memories=4)
    log.remember("a")
    assert due() == []
    log.remember("a")
    assert due() == ["a"]
    assert examined("a", due_memories=4)
    assert due() == ["a"]  # still so many
    assert examined("a", due_memories=5)
    assert due() == []


@pytest.mark.parametrize("what", ["forget", "change", "restore", "fade"])
def test_an_examined_session_that_changed_is_due(log, due, examined, what):
    one, _ = log.remember("a", 2)
    assert examined("a")
    log.remember("a")
    log.change("a", one, merge=True)
    log.refresh("a", [one])
    assert due() == []
    {"forget": log.forget, "change": lambda *of: log.change(*of, merge=False)}.get(
        what, lambda name, memory_id: getattr(log, what)(name, [memory_id])
    )("a", one)
    assert due() == ["a"]
    assert examined("a")
    assert due() == []


def test_a_change_that_an_examination_did_not_see_stays_due(log, due, examined):
    one, _ = log.remember("a", 2)
    log.change("a", one, merge=False)
    assert examined("a", version=2)
    assert due() == ["a"]


def test_a_session_examined_under_other_policies_is_due(log, due, examined):
    log.remember("a")
    assert examined("a", policy=2)
    assert due(policy=2) == []
    assert due(policy=1) == due(policy=3) == ["a"]


def test_an_examination_never_goes_back(log, due, examined):
    log.remember("a", 3)
    assert examined("a", version=3)
    assert not examined("a", version=2, due_memories=1)
    assert due() == []
    assert examined("a", version=3, due_memories=1)
    assert due() == ["a"]


def test_what_was_set_aside_is_due_at_its_time_and_not_when_it_waits_for_somebody(log, due, examined):
    log.remember("a")
    assert examined("a")
    stream, at = log.sessions["a"].stream, log.now
    directory = log.directory
    assert directory.park(stream, b"one", reason="down", at=at, next_at=at + DAY)
    assert directory.park(stream, b"one", reason="still down", at=at + DAY, next_at=at + 2 * DAY)
    assert directory.park(stream, b"two", reason="refused", at=at + DAY, next_at=None)
    assert due(2 * DAY - timedelta(seconds=1)) == []
    assert due(2 * DAY) == ["a"]
    one, two = directory.parked()
    assert (one.key, one.reason, one.attempts, one.first_at, one.next_at) == (b"one", "still down", 2, at, at + 2 * DAY)
    assert (one.parked, two.parked) == (False, True)
    assert directory.parked(stream=stream) == directory.parked(None) == [one, two]
    assert directory.parked("another job") == directory.parked(stream=new_id()) == []
    assert directory.unpark(stream, b"one") == 1
    assert due(2 * DAY) == []
    assert directory.unpark() == 1
    assert directory.parked() == []


def test_a_rebuild_leaves_the_agenda(log, due, examined):
    one, _ = log.remember("a", 2)
    log.remember("b")
    assert examined("a", due_memories=3)
    assert log.projector.rebuild(soon())
    assert due() == []
    log.change("a", one, merge=False)
    assert due(2 * DAY) == ["b", "a"] or due(2 * DAY) == ["a", "b"]


def test_an_examination_waits_for_a_change_that_is_being_projected(log, due, examined, monkeypatch):
    one, _ = log.remember("a", 2)
    assert examined("a")
    stream, version, apply = log.sessions["a"].stream, log.sessions["a"].version, Directory.apply
    log.change("a", one, merge=False)
    with ThreadPoolExecutor(1) as pool:
        noted = []

        def apply_slowly(directory, connection, facts):
            apply(directory, connection, facts)
            noted.append(pool.submit(directory.examined, stream, version, 1, None, None, at=log.now))
            time.sleep(0.2)

        monkeypatch.setattr(Directory, "apply", apply_slowly)
        assert log.projector.catch_up(soon())
        assert noted[0].result()
    assert due() == ["a"]
