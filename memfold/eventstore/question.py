"""A small question that is asked all the time: prepared once a connection, sent and answered in binary, without a cursor.

A cursor of psycopg looks at the types of parameters and columns anew each time, which takes longer than PostgreSQL takes for a
row by its key: the head of a stream, asked by every recall, made up half of it. Waiting stays psycopg's: Ctrl-C cancels the
question, and a lost connection is told as by every other statement.
"""

from collections.abc import Sequence
from contextlib import suppress

from psycopg import errors, generators
from psycopg.pq import ExecStatus, Format
from psycopg.pq.abc import PGresult

from memfold.eventstore.arrays import Raw
from memfold.eventstore.database import Connection

_DONE = (ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK)


class Question:
    """A query with `$1`, `$2`, … for its parameters, under a name of its own."""

    def __init__(self, name: str, query: str) -> None:
        self._name = f"memfold_{name}".encode()
        self._query = query.encode()

    def ask(self, connection: Connection, *parameters: Raw) -> PGresult:
        """The rows that answer it; their values are in PostgreSQL's binary form. Raises psycopg.Error."""
        if self._name not in connection.questions:
            self._prepare(connection, parameters)
        values, formats = [parameter.data for parameter in parameters], [Format.BINARY] * len(parameters)
        connection.pgconn.send_query_prepared(self._name, values, formats, Format.BINARY)
        return _result(connection)

    def _prepare(self, connection: Connection, parameters: Sequence[Raw]) -> None:
        connection.pgconn.send_prepare(self._name, self._query, [parameter.oid for parameter in parameters])
        # Who was interrupted while preparing may have prepared it.
        with suppress(errors.DuplicatePreparedStatement):
            _result(connection)
        connection.questions.add(self._name)


def _result(connection: Connection) -> PGresult:
    result: PGresult = connection.wait(generators.execute(connection.pgconn))[0]
    if result.status not in _DONE:
        raise errors.error_from_result(result)
    return result
