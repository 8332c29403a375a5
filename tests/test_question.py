"""Questions: asked all the time, and as safe as any other statement."""

import os
import signal
import threading

import psycopg
import pytest

from memfold import StoreUnavailable
from memfold.eventstore import arrays, reader
from memfold.eventstore.question import Question


@pytest.fixture
def head(store):
    """Asks for the version of a session's stream."""
    store.remember_many(["tea", "coffee", "milk"], session_id="s")
    ref = store._keyring.find_session("s")
    return lambda: reader.open_at(store._database, store._keyring.tenant, ref.stream)


def test_the_head_is_that_of_the_stream_at_every_call(store, head):
    assert head() == 3
    store.remember_many(["water"] * 300, session_id="s")
    assert [head() for _ in range(5)] == [303] * 5


def test_a_stream_that_never_was_or_was_closed_is_at_0(store, head):
    assert reader.open_at(store._database, store._keyring.tenant, os.urandom(16)) == 0
    store.forget_session("s")
    assert head() == 0


def test_a_question_is_asked_anew_where_the_connection_was_lost(store, head, server_url):
    assert head() == 3
    with store._database.connection() as connection:
        pid = connection.info.backend_pid
    with psycopg.connect(server_url, autocommit=True) as owner:
        owner.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
    assert head() == 3


def test_what_the_server_refuses_is_told_with_its_code_and_harms_nothing_else(store, head):
    for query, state in (("SELECT 1 FROM nowhere WHERE $1 = 1", "42P01"), ("SELECT 1 / ($1 - 1)", "22012")):
        question = Question(state, query)
        for _ in range(2):
            with pytest.raises(StoreUnavailable) as caught:
                store._database.read(lambda connection, question=question: question.ask(connection, arrays.int8(1)))
            assert caught.value.sqlstate == state
    assert head() == 3


def test_an_interrupted_question_leaves_the_connection_to_the_next(store, head, server_url):
    assert head() == 3
    with psycopg.connect(server_url) as owner:
        owner.execute("LOCK TABLE memfold.heads IN ACCESS EXCLUSIVE MODE")
        interrupt = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            head()
    assert [head() for _ in range(3)] == [3] * 3


def test_what_was_prepared_without_our_knowing_is_no_fault(store, head):
    assert head() == 3
    with store._database.connection() as connection:
        connection.questions.clear()
    assert head() == 3


def test_threads_get_the_answers_to_their_own_questions(store):
    sizes = {f"s{number}": number for number in range(1, 9)}
    for name, size in sizes.items():
        store.remember_many(["tea"] * size, session_id=name)
    streams = {name: store._keyring.find_session(name).stream for name in sizes}
    wrong = []

    def run(name):
        for _ in range(200):
            if reader.open_at(store._database, store._keyring.tenant, streams[name]) != sizes[name]:
                wrong.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
