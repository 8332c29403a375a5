"""The pool: never more connections than agreed, none lost, and after a loss only new ones."""

import gc
import threading
from contextlib import ExitStack

import psycopg
import pytest

from memfold import Settings, StoreClosed, StoreUnavailable
from memfold.eventstore.database import Database, Lease, Lost, open_database

CONNECTIONS = 3
SETTINGS = Settings(pool_connections_max=CONNECTIONS, append_connections=1, connect_timeout_s=30)
IMPATIENT = Settings(pool_connections_max=CONNECTIONS, append_connections=1, connect_timeout_s=0.05)


@pytest.fixture
def open_pool(server_url):
    """Opens databases with a small pool."""
    with ExitStack() as stack:

        def make(settings):
            database = open_database(server_url, settings)
            stack.callback(database.close)
            return database

        yield make


def backend(database):
    return database.row("SELECT pg_backend_pid() AS pid").pid


def backend_of(lease):
    with lease.connection() as connection:
        return connection.info.backend_pid


def end(server_url, *pids):
    with psycopg.connect(server_url, autocommit=True) as owner:
        for pid in pids:
            owner.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))


def test_a_connection_stays_and_the_last_one_given_back_is_lent_first(open_pool):
    database = open_pool(SETTINGS)
    first = backend(database)
    assert [backend(database) for _ in range(3)] == [first] * 3
    with database.connection() as one, database.connection() as other:
        later = one.info.backend_pid
        assert other.info.backend_pid != first
    assert backend(database) == later


def test_no_more_are_lent_than_agreed(open_pool):
    database = open_pool(IMPATIENT)
    with ExitStack() as stack:
        for _ in range(CONNECTIONS):
            stack.enter_context(database.connection())
        for _ in range(2):
            with pytest.raises(StoreUnavailable, match="every database connection is in use"):
                backend(database)
    assert backend(database)


def test_who_waits_gets_the_next_that_comes_free(open_pool):
    database = open_pool(SETTINGS)
    leases = [Lease(database) for _ in range(CONNECTIONS)]
    pids = [backend_of(lease) for lease in leases]
    found = []
    waiting = [threading.Thread(target=lambda: found.append(backend(database))) for _ in range(4)]
    for thread in waiting:
        thread.start()
    leases[1].close()
    for thread in waiting:
        thread.join(30)
    assert found == [pids[1]] * 4
    for lease in leases:
        lease.close()


def test_many_threads_never_share_a_connection(open_pool):
    database, busy, errors = open_pool(SETTINGS), set(), []

    def run():
        for _ in range(100):
            with database.connection() as connection:
                if id(connection) in busy:
                    errors.append("shared")
                busy.add(id(connection))
                connection.execute("SELECT 1")
                busy.discard(id(connection))

    threads = [threading.Thread(target=run) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_a_connection_that_cannot_be_made_takes_no_room(tmp_path):
    database = Database(f"postgresql://nobody@/nothing?host={tmp_path}", IMPATIENT, role=False)
    for _ in range(2 * CONNECTIONS):
        with pytest.raises(StoreUnavailable, match="cannot be reached"):
            backend(database)
    database.close()


def test_after_a_loss_every_connection_is_a_new_one(open_pool, server_url):
    database = open_pool(SETTINGS)
    one, other, idle = (Lease(database) for _ in range(3))
    lent, lost, kept = backend_of(one), backend_of(other), backend_of(idle)
    idle.close()
    end(server_url, lost)
    with pytest.raises(Lost), other.connection() as connection:
        connection.execute("SELECT 1")
    assert backend_of(one) == lent  # still in use: it is closed when it comes back
    one.close()
    with ExitStack() as stack:
        fresh = {stack.enter_context(database.connection()).info.backend_pid for _ in range(CONNECTIONS)}
    assert len(fresh) == CONNECTIONS
    assert not fresh & {lent, lost, kept}


def test_reading_outlives_the_loss_of_every_connection(open_pool, server_url):
    database = open_pool(SETTINGS)
    with ExitStack() as stack:
        pids = [stack.enter_context(database.connection()).info.backend_pid for _ in range(CONNECTIONS)]
    end(server_url, *pids)
    assert backend(database) not in pids


def test_who_waits_while_the_pool_closes_is_told_so(open_pool):
    database = open_pool(SETTINGS)
    leases = [Lease(database) for _ in range(CONNECTIONS)]
    connections = []
    for lease in leases:
        with lease.connection() as connection:
            connections.append(connection)
    errors = []

    def ask():
        try:
            backend(database)
        except StoreClosed as error:
            errors.append(error)

    waiting = threading.Thread(target=ask)
    waiting.start()
    database.close()
    waiting.join(30)
    assert len(errors) == 1
    assert [connection.closed for connection in connections] == [False] * CONNECTIONS
    for lease in leases:
        lease.close()
    assert [connection.closed for connection in connections] == [True] * CONNECTIONS


def test_a_lease_that_is_forgotten_gives_its_connection_back(open_pool):
    database = open_pool(IMPATIENT)
    for _ in range(2 * CONNECTIONS):
        lease = Lease(database)
        backend_of(lease)
        lease.itself = lease
        del lease
        gc.collect()
    assert backend(database)
