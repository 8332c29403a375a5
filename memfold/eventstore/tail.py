"""The settled position: every event at or below it is visible for good.

Positions are drawn before they are committed, so the newest visible position proves nothing about smaller ones. `Tail`
asks for the head of the sequence first, then for the transactions that hold a lock on `events` and so may still owe a
position at or below that head; once all of those have ended, the head is settled. Writers pay nothing for it, and a
long transaction elsewhere in the server does not hold it back. Why it is exact: docs/log.md.
"""

import time
from collections import deque

from memfold.eventstore.database import Connection, Database

PAUSE_S = (0.001, 0.01)  # between ticks while something is in flight: at first, at last


class Tail:
    """Follows the settled position for one reader. Not for use by several threads at once."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._windows: deque[tuple[int, set[str]]] = deque()
        self.settled = 0

    def advance(self) -> int:
        """Look once, and return the settled position. Rows must be read after this, with a snapshot of their own."""
        return self._database.read(self._tick)

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

    def _tick(self, connection: Connection) -> int:
        newest = self._windows[-1][0] if self._windows else self.settled
        row = connection.execute("SELECT head, holders FROM memfold.tick(%s, %s)", (newest, bool(self._windows))).fetchone()
        assert row is not None
        head, live = row
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
