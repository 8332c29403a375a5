"""The settled position: every event at or below it is visible for good.

Positions are drawn before they are committed, so the newest visible position proves nothing about smaller ones. `Tail`
asks for the head of the sequence first, then for the transactions that hold a lock on `events` and so may still owe a
position at or below that head; once all of those have ended, the head is settled. Writers pay nothing for it, and a
long transaction elsewhere in the server does not hold it back. Why it is exact: docs/log.md.

A crash of the server can take back positions that were drawn and never committed, and they are drawn anew. What was
learned before a crash is therefore worthless after it. A crash ends every connection, so `Tail` keeps one of its own
and begins anew when that is lost. The position of an event is never taken back: go on from there, not from the mark.
"""

import time
from collections import deque
from types import TracebackType
from typing import Self

from memfold.errors import StoreUnavailable
from memfold.eventstore.database import Connection, Database, Lease, Lost

NEWEST_EVENT = "SELECT max(position) FROM memfold.events WHERE tenant_id = %s AND position <= %s"
PAUSE_S = (0.001, 0.01)  # between ticks while something is in flight: at first, at last


class Tail:
    """Follows the settled position for one reader, on a connection of its own or that of `lease`.

    Not for use by several threads at once; close it, or use `with`.
    """

    def __init__(self, database: Database, lease: Lease | None = None) -> None:
        self._lease = lease or Lease(database)
        self._is_lent = lease is not None
        self._windows: deque[tuple[int, set[str]]] = deque()
        self.settled = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back, unless it is whose it was lent by."""
        if not self._is_lent:
            self._lease.close()

    def advance(self) -> int:
        """Look once, and return the settled position. Rows must be read after this, with a snapshot of their own."""
        try:
            return self._tick()
        except Lost:
            self._begin_anew()
        try:
            return self._tick()
        except Lost as error:
            raise StoreUnavailable("the database connection was lost twice", outcome="not_written") from error.__cause__

    def settle(self, timeout_s: float) -> int:
        """Wait until everything acknowledged before this call is settled, at most `timeout_s`; return the settled position."""
        deadline = time.monotonic() + timeout_s
        pause_s = PAUSE_S[0]
        settled = self.advance()
        goal = self._windows[-1][0] if self._windows else settled
        while settled < goal and time.monotonic() < deadline:
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S[1])
            settled = self.advance()
        return settled

    def newest_event(self, tenant: int, timeout_s: float) -> int:
        """The position of a tenant's newest settled event, after waiting as `settle` does; 0 if there is none.

        Unlike the mark, it can be kept: it was committed, and no crash draws it or anything below it anew.
        """
        for last in (False, True):
            settled = self.settle(timeout_s)
            try:
                with self._lease.connection() as connection:
                    row = connection.execute(NEWEST_EVENT, (tenant, settled)).fetchone()
                return int(row[0] or 0) if row else 0
            except Lost as error:
                self._begin_anew()
                if last:
                    raise StoreUnavailable("the database connection was lost twice", outcome="not_written") from error
        raise AssertionError("unreachable")

    def _begin_anew(self) -> None:
        self._windows.clear()
        self.settled = 0

    def _tick(self) -> int:
        newest = self._windows[-1][0] if self._windows else self.settled
        with self._lease.connection() as connection:
            head, live = tick(connection, newest, waiting=bool(self._windows))
        if live is None:
            return self.settled
        if head > newest:
            self._windows.append((head, set(live)))
        for _, holders in self._windows:
            holders &= set(live)
        # A transaction that owes an old window and still lives is in every newer window too: windows settle in order.
        while self._windows and not self._windows[0][1]:
            self.settled = self._windows.popleft()[0]
        return self.settled


def tick(connection: Connection, known: int, *, waiting: bool) -> tuple[int, list[str] | None]:
    """The head of the sequence, and who may still owe a position up to it; None if nothing is new and nobody waits."""
    row = connection.execute("SELECT head, holders FROM memfold.tick(%s, %s)", (known, waiting)).fetchone()
    assert row is not None
    return row[0], row[1]
