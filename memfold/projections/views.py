"""The views this process holds: folded on first use, refreshed by version on every read, dropped when idle or too many.

A read is strongly consistent: it asks the log for the events after the last one it saw, in the same query that says which
stream the session's name leads to now, so it sees every acknowledged append of any process and never serves a dead stream.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

from memfold.errors import CorruptEvent, StoreUnavailable
from memfold.eventstore import reader
from memfold.eventstore.codec import LoggedEvent, Row, open_event
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring
from memfold.eventstore.sealing import WrappingKey, wrapping_key_id
from memfold.projections.view import SessionView
from memfold.settings import Settings

NO_STREAM = bytes(16)


class _Slot:
    """A place for one session's view; the lock is held while it is refreshed or read."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.view: SessionView | None = None
        self.size_bytes = 0
        self.used_at = time.monotonic()


class Views:
    """All views of one store."""

    def __init__(self, database: Database, keyring: Keyring, settings: Settings) -> None:
        self._database = database
        self._keyring = keyring
        self._bytes_max = settings.views_bytes_max
        self._idle_s = settings.view_idle_s
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._lock = threading.Lock()
        self._sweeper: threading.Timer | None = None
        self._closed = False

    @contextmanager
    def session(self, session_id: str) -> Iterator[SessionView | None]:
        """Lend the session's view, fresh as of now; None if there is no such session."""
        slot = self._slot(session_id)
        with slot.lock:
            before = slot.size_bytes
            self._refresh(slot, session_id)
            try:
                yield slot.view
            finally:
                slot.used_at = time.monotonic()
                slot.size_bytes = slot.view.size_bytes() if slot.view else 0
                if self._slots.get(session_id) is not slot:
                    _empty(slot)  # dropped while we waited for it: nobody else will find it
        if slot.size_bytes > before:
            self._shrink()

    def catch_up(self, streams: Iterable[bytes]) -> None:
        """Bring the views held of these streams up to date, so that nothing forgotten stays in RAM."""
        wanted = set(streams)
        with self._lock:
            names = [name for name, slot in self._slots.items() if slot.view and slot.view.stream in wanted]
        for name in names:
            try:
                with self.session(name):
                    pass
            except StoreUnavailable:
                self._forget(name)

    def _forget(self, session_id: str) -> None:
        slot = self._slot(session_id)
        with slot.lock:
            _empty(slot)

    def remains(self, stream: bytes) -> SessionView:
        """A view of what the spine still says of a stream whose session was forgotten; the caller closes it."""
        view = SessionView(stream, "", "")
        view.fold(LoggedEvent(row, None) for row in reader.read_stream(self._database, self._keyring.tenant, stream))
        return view

    def rebuild(self, session_id: str) -> SessionView | None:
        """A new view folded from the first event on, held nowhere; the caller closes it."""
        slot = _Slot()
        self._refresh(slot, session_id)
        return slot.view

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

    def _slot(self, session_id: str) -> _Slot:
        with self._lock:
            slot = self._slots.get(session_id)
            if slot is None:
                slot = self._slots[session_id] = _Slot()
            self._slots.move_to_end(session_id)
            if self._sweeper is None and not self._closed:
                self._schedule_sweep()
            return slot

    def _refresh(self, slot: _Slot, session_id: str) -> None:
        keyring = self._keyring
        # A stream that is open and where we left it is still the one its name leads to: a name changes hands only by a
        # forget, which closes the stream.
        if slot.view and reader.open_at(self._database, keyring.tenant, slot.view.stream) == slot.view.version > 0:
            return
        while True:
            known, after = (slot.view.stream, slot.view.version) if slot.view else (NO_STREAM, 0)
            found = reader.read_session(self._database, keyring.tenant, keyring.session_hmac(session_id), known, after)
            ref = keyring.session_of(session_id, found.stream, found.key_version) if found else None
            if found is None or ref is None:
                keyring.drop(session_id)
                _empty(slot)
                return
            if ref.stream == found.stream:
                break
        if slot.view is None or slot.view.stream != found.stream:
            _empty(slot)
            slot.view = SessionView(found.stream, ref.session_id, ref.user_id)
        slot.view.key = ref.key
        if found.rows:
            events = list(open_rows(found.rows, keyring.tenant, {ref.key.id: ref.key}, gone_is_erased=False))
            try:
                slot.view.fold(events)
            except BaseException:
                _empty(slot)  # half folded: the next reader folds it anew
                raise

    def _shrink(self) -> None:
        """Drop the views used longest ago until the others fit."""
        with self._lock:
            total = sum(slot.size_bytes for slot in self._slots.values())
            while total > self._bytes_max and len(self._slots) > 1:
                session_id, slot = next(iter(self._slots.items()))
                if not slot.lock.acquire(blocking=False):
                    return
                total -= slot.size_bytes
                self._drop(session_id, slot)

    def _schedule_sweep(self) -> None:
        self._sweeper = threading.Timer(self._idle_s / 4, self._sweep)
        self._sweeper.daemon = True
        self._sweeper.start()

    def _sweep(self) -> None:
        """Drop what nobody used for `view_idle_s`: plain words stay in RAM no longer than they serve."""
        with self._lock:
            limit = time.monotonic() - self._idle_s
            for session_id, slot in list(self._slots.items()):
                if slot.used_at < limit and slot.lock.acquire(blocking=False):
                    self._drop(session_id, slot)
            self._sweeper = None
            if self._slots and not self._closed:
                self._schedule_sweep()

    def _drop(self, session_id: str, slot: _Slot) -> None:
        del self._slots[session_id]
        _empty(slot)
        slot.lock.release()


def open_rows(
    rows: Iterable[Row], tenant: int, keys: Mapping[bytes, WrappingKey], *, gone_is_erased: bool
) -> Iterator[LoggedEvent]:
    """Open rows with the keys at hand; an erased event comes without content.

    An event whose wrapping key is not at hand counts as erased where users may have been forgotten since; else it is corrupt.
    """
    for row in rows:
        if row.wrapped_key is None:
            yield LoggedEvent(row, None)
            continue
        wrapping = keys.get(wrapping_key_id(row.wrapped_key))
        if wrapping is None and not gone_is_erased:
            raise CorruptEvent(row.position, "was wrapped by a key that is not its user's")
        yield LoggedEvent(row, open_event(row, tenant=tenant, wrapping=wrapping) if wrapping else None)


def _empty(slot: _Slot) -> None:
    if slot.view:
        slot.view.close()
    slot.view = None
    slot.size_bytes = 0
