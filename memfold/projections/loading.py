"""How a view becomes fresh: which events it lacks, read from the log, opened, and folded.

A view of one session asks for the events after the last version it saw, in the query that also says which stream the
session's name leads to: exact, and as of now, from any process. A view of many sessions follows the log by settled position.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

from memfold.errors import CorruptEvent, ScopeTooLarge
from memfold.eventstore import reader
from memfold.eventstore.binding import opening_keys
from memfold.eventstore.codec import LoggedEvent, Row, open_event
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring, SessionRef
from memfold.eventstore.sealing import WrappingKey, wrapping_key_id
from memfold.eventstore.tail import Tail
from memfold.projections.rows import EPOCH
from memfold.projections.scope import Scope
from memfold.projections.view import View

NO_STREAM = bytes(16)
SETTLE_S = 0.1  # transactions under way get this long to end, also where nobody wants to wait


class Loader:
    """Makes views of one tenant, and brings them up to date. Whoever calls holds the view."""

    def __init__(self, database: Database, keyring: Keyring, *, bytes_max: int) -> None:
        self._database = database
        self._keyring = keyring
        self._bytes_max = bytes_max
        self._settled = 0

    def settled(self, scope: Scope, deadline: float) -> int:
        """Up to where a wide scope may be folded: everything acknowledged before the call, if it settles by `deadline`.

        `deadline` is a moment of `time.monotonic`. Wait here without holding a view. 0 for a session, which waits for nobody.
        """
        if scope.session is not None:
            return 0
        with Tail(self._database) as tail:
            found = tail.newest_event(self._keyring.tenant, max(deadline - time.monotonic(), SETTLE_S))
        self._settled = max(self._settled, found)  # what was settled once is, whoever writes now
        return self._settled

    def refresh(self, view: View | None, scope: Scope, deadline: float, upto: int = 0) -> View | None:
        """The view of a scope as of now: `view` itself, further on, if it still is the right one. None: no such session.

        A wide scope is folded up to `upto`, which is settled, or as far as it comes by `deadline`; `View.position` says how
        far. If this raises, `view` must not be used any more.

        Raises:
            CorruptEvent: an event does not open.
            ScopeTooLarge: the view takes more RAM than all views may.
        """
        if scope.session is not None:
            return self._session(view, scope, scope.session)
        return self._wide(view, scope, deadline, upto)

    def is_fresh(self, view: View, scope: Scope) -> bool:
        """Whether a session's view is as of now, by a quick look. True is certain.

        A stream that is open and where we left it is still the one its name leads to: a name changes hands only by a forget,
        which closes the stream.
        """
        if scope.session is None:
            return False
        return reader.open_at(self._database, self._keyring.tenant, view.stream) == view.version > 0

    # -- one session ---------------------------------------------------------------------------------------------------

    def _session(self, view: View | None, scope: Scope, session_id: str) -> View | None:
        if view and self.is_fresh(view, scope):
            return view
        keyring = self._keyring
        while True:
            known, after = (view.stream, view.version) if view else (NO_STREAM, 0)
            found = reader.read_session(self._database, keyring.tenant, keyring.session_hmac(session_id), known, after)
            ref = keyring.session_of(session_id, found.stream, found.key_version) if found else None
            if found is None or ref is None:
                keyring.drop(session_id)
                return None
            if ref.stream == found.stream:
                break
        if view is None or view.stream != found.stream:
            view = _session_view(ref, scope)
        if view.keys.get(ref.key.id) is not ref.key:
            view.keys = {ref.key.id: ref.key}
        view.keys |= opening_keys(self._database, keyring, _bound(found.rows), view.keys)
        self._fold(view, scope, found.rows, view.keys, gone_is_erased=False)
        if found.rows:
            view.version = found.rows[-1].version
        return view

    def remains(self, stream: bytes) -> View:
        """A view of what the spine still says of a stream whose session was forgotten; the caller closes it."""
        view = View(stream)
        view.fold(LoggedEvent(row, None) for row in reader.read_stream(self._database, self._keyring.tenant, stream))
        return view

    # -- many sessions -------------------------------------------------------------------------------------------------

    def _wide(self, view: View | None, scope: Scope, deadline: float, upto: int) -> View:
        view = view or View(keeps_past=False, keeps_archived=scope.archived)
        # The streams after the position: events of one that comes to be later lie behind it.
        streams = self._streams(view, scope)
        database, tenant = self._database, self._keyring.tenant
        pages = (
            reader.read_log(database, tenant, view.seen, upto)
            if streams is None
            else reader.read_streams(database, tenant, streams, after=view.seen, upto=upto)
        )
        for page in pages:
            self._fold_page(view, scope, page)
            view.seen = page[-1].position
            if time.monotonic() > deadline:
                return view
        view.seen = max(view.seen, upto)
        if scope.as_of is None:
            view.position = view.seen
        return view

    def newest_position(self) -> int:
        """The position of the newest committed event."""
        return reader.newest_position(self._database, self._keyring.tenant)

    def time_at(self, position: int) -> datetime:
        """When the newest event at or before a position was recorded; 1970 if there is none."""
        return reader.time_at(self._database, self._keyring.tenant, position) or EPOCH

    def _streams(self, view: View, scope: Scope) -> list[bytes] | None:
        """The streams of a scope; None for all. Those that were forgotten since the view saw them are withheld from it."""
        keyring = self._keyring
        if scope.sessions is None and scope.user is None:
            return None
        if scope.user is not None:
            user = keyring.find_user(scope.user)
            streams = keyring.streams_of_user(user) if user else []
        else:
            streams = keyring.streams_of_names(scope.sessions or ())
        gone = (view.streams() | set(view.withheld.values())) - set(streams)
        if gone:
            view.forget_streams(gone)
        return streams

    def _fold_page(self, view: View, scope: Scope, page: Sequence[Row]) -> None:
        keyring = self._keyring
        refs = keyring.sessions_of_streams({row.stream for row in page if not view.knows(row.stream)})
        for stream, ref in refs.items():
            view.own(stream, ref.session_id, ref.user_id, ref.user)
            view.keys[ref.key.id] = ref.key
        unknown = [row for row in page if row.wrapped_key and wrapping_key_id(row.wrapped_key) not in view.keys]
        keys = opening_keys(self._database, keyring, unknown, view.keys) if unknown else {}
        view.keys |= {row.event_id: keys[row.event_id] for row in unknown if row.event_id in keys}
        keys = {**view.keys, **keys} if keys else view.keys
        self._fold(view, scope, page, keys, gone_is_erased=True)
        if view.size_bytes() > self._bytes_max:
            raise ScopeTooLarge(view.places.count, view.size_bytes(), self._bytes_max)

    def _fold(
        self, view: View, scope: Scope, rows: Sequence[Row], keys: Mapping[bytes, WrappingKey], *, gone_is_erased: bool
    ) -> None:
        """Fold what had happened by the scope's time; of what came later only that things were forgotten."""
        held = rows if scope.as_of is None else [row for row in rows if scope.holds(row)]
        if held:
            view.fold(open_rows(held, self._keyring.tenant, keys, gone_is_erased=gone_is_erased))
        if len(held) < len(rows):
            view.forget((row.type_number, row.stream, row.memory_id) for row in rows if not scope.holds(row))


def _bound(rows: Sequence[Row]) -> list[Row]:
    """The rows whose keys are bound to others, and what else of these rows that takes; none if none is."""
    return list(rows) if any(row.sources for row in rows) else []


def _session_view(ref: SessionRef, scope: Scope) -> View:
    view = View(ref.stream, keeps_archived=scope.archived)
    view.own(ref.stream, ref.session_id, ref.user_id, ref.user)
    return view


def open_rows(
    rows: Iterable[Row], tenant: int, keys: Mapping[bytes, WrappingKey], *, gone_is_erased: bool
) -> Iterator[LoggedEvent]:
    """Open rows with the keys at hand; an erased event comes without content.

    An event whose wrapping key is not at hand counts as erased where users may have been forgotten since, or if it was bound to
    something that was; else it is corrupt.
    """
    for row in rows:
        if not row.wrapped_key:
            yield LoggedEvent(row, None)
            continue
        wrapping = keys.get(wrapping_key_id(row.wrapped_key))
        if wrapping is None and not gone_is_erased and not row.sources:
            raise CorruptEvent(row.position, "was wrapped by a key that is not its user's")
        yield LoggedEvent(row, open_event(row, tenant=tenant, wrapping=wrapping) if wrapping else None)
