"""The views this process holds: folded on first use, made fresh on every read, dropped when idle or too many.

A read is strongly consistent: it asks the log what is new each time, so it sees every acknowledged append of any process and
never serves a dead stream. What is kept is RAM that can be dropped at any time.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime

from memfold.errors import MemfoldError, StoreUnavailable
from memfold.projections.loading import Loader
from memfold.projections.scope import Scope, session_scope
from memfold.projections.view import View

CATCH_UP_S = 1.0  # to make wide views fresh after a forget; those that are not are dropped


class _Slot:
    """A place for the view of one scope; the lock is held while it is refreshed or read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.view: View | None = None
        self.size_bytes = 0
        self.used_at = time.monotonic()

    def may_hold(self, streams: set[bytes]) -> bool:
        """Whether its view holds one of these streams, or is being folded, so that nobody can tell yet."""
        view = self.view
        return self.lock.locked() or (view is not None and not streams.isdisjoint(view.streams()))


class Views:
    """All views of one store."""

    def __init__(self, loader: Loader, *, bytes_max: int, idle_s: float) -> None:
        self._loader = loader
        self._bytes_max = bytes_max
        self._idle_s = idle_s
        self._slots: OrderedDict[Scope, _Slot] = OrderedDict()
        self._lock = threading.Lock()
        self._sweeper: threading.Timer | None = None
        self._closed = False

    @contextmanager
    def lend(self, scope: Scope, deadline: float = 0.0) -> Iterator[View | None]:
        """Lend the view of a scope, fresh as of now; None if it is of a session that does not exist.

        A wide one is as fresh as it gets by `deadline`, a moment of `time.monotonic`.

        Raises: as `Loader.refresh`.
        """
        upto = self._loader.settled(scope, deadline)
        slot = self._slot(scope)
        with slot.lock:
            before = slot.size_bytes
            self._refresh(slot, scope, deadline, upto)
            try:
                yield slot.view
            finally:
                slot.used_at = time.monotonic()
                slot.size_bytes = slot.view.size_bytes() if slot.view else 0
                if self._slots.get(scope) is not slot:
                    _empty(slot)  # dropped while we waited for it: nobody else will find it
        if slot.size_bytes > before:
            self._shrink()

    @contextmanager
    def session(self, session_id: str) -> Iterator[View | None]:
        """Lend the view of one session."""
        with self.lend(session_scope(session_id)) as view:
            yield view

    def catch_up(self, streams: Iterable[bytes]) -> None:
        """Bring the views that hold these streams up to date, so that nothing forgotten stays in RAM."""
        wanted = set(streams)
        with self._lock:
            held = [scope for scope, slot in self._slots.items() if slot.may_hold(wanted)]
        deadline = time.monotonic() + CATCH_UP_S
        for scope in held:
            try:
                newest = 0 if scope.session else self.newest_position()
                with self.lend(scope, deadline) as view:
                    knows_it = view is None or scope.session or view.seen >= newest
            except MemfoldError:  # the forgetting stands, whatever is wrong with a view: its next reader is told
                knows_it = False
            if not knows_it:
                self._forget(scope)

    def _forget(self, scope: Scope) -> None:
        slot = self._slot(scope)
        with slot.lock:
            _empty(slot)

    def newest_position(self) -> int:
        """The position of the newest committed event; 0 if there is none."""
        return self._loader.newest_position()

    def time_at(self, position: int) -> datetime:
        """When the newest event at or before a position was recorded; 1970 if there is none."""
        return self._loader.time_at(position)

    def remains(self, stream: bytes) -> View:
        """A view of what the spine still says of a stream whose session was forgotten; the caller closes it."""
        return self._loader.remains(stream)

    def rebuild(self, session_id: str) -> View | None:
        """A new view folded from the first event on, held nowhere; the caller closes it."""
        return self._loader.refresh(None, session_scope(session_id), 0)

    def size(self) -> tuple[int, int]:
        """How many views are held, and about how many bytes."""
        with self._lock:
            held = [slot for slot in self._slots.values() if slot.view]
            return len(held), sum(slot.size_bytes for slot in held)

    def close(self) -> None:
        """Drop every view."""
        with self._lock:
            self._closed = True
            if self._sweeper:
                self._sweeper.cancel()
            slots = list(self._slots.values())
            self._slots.clear()
        for slot in slots:
            with slot.lock:
                _empty(slot)

    def _slot(self, scope: Scope) -> _Slot:
        with self._lock:
            slot = self._slots.get(scope)
            if slot is None:
                slot = self._slots[scope] = _Slot()
            self._slots.move_to_end(scope)
            if self._sweeper is None and not self._closed:
                self._schedule_sweep()
            return slot

    def _refresh(self, slot: _Slot, scope: Scope, deadline: float, upto: int) -> None:
        try:
            fresh = self._loader.refresh(slot.view, scope, deadline, upto)
        except StoreUnavailable:
            raise  # what the view has seen is still so
        except BaseException:
            _empty(slot)  # half folded: the next reader folds it anew
            raise
        if fresh is not slot.view:
            _empty(slot)
            slot.view = fresh

    def _shrink(self) -> None:
        """Drop the views used longest ago until the others fit."""
        with self._lock:
            total = sum(slot.size_bytes for slot in self._slots.values())
            while total > self._bytes_max and len(self._slots) > 1:
                scope, slot = next(iter(self._slots.items()))
                if not slot.lock.acquire(blocking=False):
                    return
                total -= slot.size_bytes
                self._drop(scope, slot)

    def _schedule_sweep(self) -> None:
        self._sweeper = threading.Timer(self._idle_s / 4, self._sweep)
        self._sweeper.daemon = True
        self._sweeper.start()

    def _sweep(self) -> None:
        """Drop what nobody used for `view_idle_s`: plain words stay in RAM no longer than they serve."""
        with self._lock:
            limit = time.monotonic() - self._idle_s
            for scope, slot in list(self._slots.items()):
                if slot.used_at < limit and slot.lock.acquire(blocking=False):
                    self._drop(scope, slot)
            self._sweeper = None
            if self._slots and not self._closed:
                self._schedule_sweep()

    def _drop(self, scope: Scope, slot: _Slot) -> None:
        del self._slots[scope]
        _empty(slot)
        slot.lock.release()


def _empty(slot: _Slot) -> None:
    if slot.view:
        slot.view.close()
    slot.view = None
    slot.size_bytes = 0
