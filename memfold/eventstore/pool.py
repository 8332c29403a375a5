"""A database's connections: so many at most, kept warm, made by whoever needs one.

There is no thread here, and nothing is sent to find out whether a connection still works: the statement that fails on it
tells, and its user gives up all that were made so far. Taking a connection and giving it back costs 1 µs. Called by
`database`, which says what a connection is; here it is something that can be closed.
"""

import threading
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from memfold.errors import StoreClosed, StoreUnavailable


class Closable(Protocol):
    """What a pool knows of a connection."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class Held(NamedTuple, Generic[C]):
    """A connection out of the pool, and how often the pool had given all up when it was made."""

    connection: C
    era: int


class Pool(Generic[C]):
    """At most `connections_max` connections, lent or idle; `make` makes one, and its errors are its caller's. Thread-safe."""

    def __init__(self, make: Callable[[], C], *, connections_max: int, timeout_s: float) -> None:
        self._make = make
        self._timeout_s = timeout_s
        self._room = connections_max
        self._idle: list[Held[C]] = []
        self._all: set[C] = set()  # also those lent: a forgotten lease in a cycle must not take its connection with it
        self._era = 0
        self._closed = False
        # Its lock is reentrant: a forgotten lease is given back by the garbage collector, also while its thread is in here.
        self._changed = threading.Condition()

    def take(self) -> Held[C]:
        """The connection that was given back last, else a new one, else the next that comes free within `timeout_s`.

        Raises:
            StoreClosed: the pool is closed.
            StoreUnavailable: all connections are lent for too long.
        """
        with self._changed:
            if not self._idle and not self._changed.wait_for(self._is_worth_a_look, self._timeout_s):
                raise StoreUnavailable("every database connection is in use", outcome="not_written")
            if self._closed:
                raise StoreClosed
            if self._idle:
                return self._idle.pop()
            self._room -= 1
            era = self._era
        try:
            connection = self._make()
        except BaseException:
            self._leave_room()
            raise
        self._all.add(connection)
        return Held(connection, era)

    def adopt(self, connection: C) -> None:
        """Take in a connection that was made elsewhere. Only for a pool that has room."""
        with self._changed:
            self._room -= 1
            self._all.add(connection)
            self._idle.append(Held(connection, self._era))

    def give(self, held: Held[C]) -> None:
        """Take a connection back; it is closed if the pool is, or if its kind was given up."""
        with self._changed:
            if held.era == self._era and not self._closed:
                self._idle.append(held)
                self._changed.notify()
                return
        self.discard(held)

    def discard(self, held: Held[C]) -> None:
        """Close a connection that was taken; another may be made for it."""
        self._all.discard(held.connection)
        try:
            held.connection.close()
        finally:
            self._leave_room()

    def give_up(self) -> None:
        """Close every connection made so far: those that are idle now, those that are lent when they come back."""
        with self._changed:
            self._era += 1
            idle, self._idle = self._idle, []
        for held in idle:
            self.discard(held)

    def close(self) -> None:
        """Give all up, and lend none any more; who waits for one is told."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.give_up()

    def _is_worth_a_look(self) -> bool:
        return bool(self._idle) or self._room > 0 or self._closed

    def _leave_room(self) -> None:
        with self._changed:
            self._room += 1
            self._changed.notify()
