"""Forgetting a memory, what a filter finds, a session or a user: one path, and an answer that names what was destroyed.

Decided on a view, appended with the version it was read at, decided anew after a lost race. A second call for the same
subject finds the first one's facts in the log and gives the same answer.
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from memfold.errors import Contended, MemoryForgotten, StoreUnavailable
from memfold.events import MemoryForgotten as MemoryForgottenFact
from memfold.events import SessionForgotten, UserForgotten
from memfold.eventstore import erase
from memfold.eventstore.append import NO_DECISION, Request, Verdict
from memfold.eventstore.codec import open_event, seal_event
from memfold.eventstore.database import Database
from memfold.eventstore.erase import Erased
from memfold.eventstore.keyring import NOBODY, Keyring
from memfold.eventstore.reader import read_stream
from memfold.model import Erasure, Scope
from memfold.projections.filters import Condition
from memfold.projections.fold import memory_id_text
from memfold.projections.lookup import Lookup, id_bytes
from memfold.projections.view import View
from memfold.projections.views import Views

NOTHING: tuple[str, ...] = ()


class Forgetter:
    """Forgets, and says what was destroyed."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        views: Views,
        lookup: Lookup,
        *,
        clock: Callable[[], datetime],
        retries_max: int,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._views = views
        self._lookup = lookup
        self._clock = clock
        self._retries_max = retries_max

    def memory(self, memory_id: str, reason: str | None) -> Erasure:
        """Forget one memory. Raises MemoryNotFound if nobody ever remembered it."""
        for _ in range(self._retries_max):
            with self._lookup.view_of(memory_id) as view:
                stream, session_id, version = view.stream, view.session_id, view.version
                is_live = has_something_left(view, id_bytes(memory_id))
            if not is_live:
                return self._first_erasure(memory_id, stream)
            if self._append(session_id, stream, version, [id_bytes(memory_id)], reason):
                return self._told("memory", stream, [id_bytes(memory_id)], reason)
        raise Contended(self._retries_max)

    def where(self, session_id: str, condition: Condition) -> Erasure:
        """Forget the memories of a session that match; an empty erasure if none does."""
        for _ in range(self._retries_max):
            with self._views.session(session_id) as view:
                ids = view.table.ids(condition) if view else []
                stream, version = (view.stream, view.version) if view else (b"", 0)
            if not ids:
                return nothing("filter")
            if self._append(session_id, stream, version, ids, None):
                return self._told("filter", stream, ids, None)
        raise Contended(self._retries_max)

    def these(self, session_id: str, stream: bytes, version: int, memory_ids: Sequence[bytes], reason: str) -> Erasure | None:
        """Forget memories, as decided at `version` of a session's stream; None, and nothing, if one was touched since."""
        if not self._append(session_id, stream, version, memory_ids, reason):
            return None
        return self._told("filter", stream, memory_ids, reason)

    def session(self, session_id: str) -> Erasure:
        """Forget a session with all it holds."""
        keyring, database = self._keyring, self._database
        name_hmac = keyring.session_hmac(session_id)
        for _ in range(self._retries_max):
            ref = keyring.find_session(session_id)
            if ref is None:
                return _as_erasure("session", erase.erased_as(database, keyring.tenant, name_hmac))
            closing = [self._closing(ref.stream)]
            answer = erase.forget_streams(
                database, keyring.tenant, closing, closing=[ref.stream], name_hmac=name_hmac, user=None
            )
            keyring.drop(session_id)
            if answer.verdict is Verdict.ACCEPTED:
                self._views.catch_up([ref.stream])
                return told(lambda: _as_erasure("session", erase.erased_as(database, keyring.tenant, name_hmac)))
        raise Contended(self._retries_max)

    def user(self, user_id: str) -> Erasure:
        """Forget a user: every session, and the key that everything of the user was sealed under."""
        keyring, database = self._keyring, self._database
        name_hmac = keyring.user_hmac(user_id)
        for _ in range(self._retries_max):
            user = keyring.find_user(user_id)
            if user is None:
                return _as_erasure("user", erase.erased_as(database, keyring.tenant, name_hmac))
            streams = keyring.streams_of_user(user)
            requests = [*map(self._closing, streams), self._farewell(streams)]
            answer = erase.forget_streams(database, keyring.tenant, requests, closing=streams, name_hmac=name_hmac, user=user)
            keyring.drop_user(user)
            if answer.verdict is Verdict.ACCEPTED:
                self._views.catch_up(streams)
                return told(lambda: _as_erasure("user", erase.erased_as(database, keyring.tenant, name_hmac)))
        raise Contended(self._retries_max)

    def _append(self, session_id: str, stream: bytes, version: int, ids: Sequence[bytes], reason: str | None) -> bool:
        at = self._clock()
        ref = self._keyring.find_session(session_id)
        if ref is None or ref.stream != stream:
            return False
        fact = MemoryForgottenFact(reason=reason)
        sealed = [
            seal_event(fact, tenant=self._keyring.tenant, stream=stream, memory_id=memory_id, wrapping=ref.key)
            for memory_id in ids
        ]
        request = Request(stream, ref.user, ref.key.version, at, sealed, version)
        answer = erase.forget_memories(self._database, self._keyring.tenant, request)
        # Also what this process holds in RAM is gone when we return, not only when somebody reads the session again.
        self._views.catch_up([stream])
        return answer.verdict is Verdict.ACCEPTED

    def _closing(self, stream: bytes) -> Request:
        return self._tenant_fact(stream, SessionForgotten())

    def _farewell(self, streams: Sequence[bytes]) -> Request:
        return self._tenant_fact(self._keyring.tenant_stream, UserForgotten(streams=tuple(map(memory_id_text, streams))))

    def _tenant_fact(self, stream: bytes, fact: SessionForgotten | UserForgotten) -> Request:
        """A fact under the tenant's own key: it outlives the user it speaks of."""
        key = self._keyring.tenant_key
        sealed = [seal_event(fact, tenant=self._keyring.tenant, stream=stream, memory_id=None, wrapping=key)]
        return Request(stream, NOBODY, key.version, self._clock(), sealed, NO_DECISION)

    def _first_erasure(self, memory_id: str, stream: bytes) -> Erasure:
        """The erasure that forgot this memory: its own, or that of its session."""
        own = erase.erased_memories(self._database, self._keyring.tenant, stream, [id_bytes(memory_id)])
        if own is None:
            return _as_erasure("session", erase.erased_stream(self._database, self._keyring.tenant, stream))
        return _as_erasure("memory", own, self._reason(stream, own.position))

    def _told(self, scope: Scope, stream: bytes, ids: Sequence[bytes], reason: str | None) -> Erasure:
        return told(lambda: self._erasure(scope, stream, ids, reason))

    def _erasure(self, scope: Scope, stream: bytes, ids: Sequence[bytes], reason: str | None) -> Erasure:
        erased = erase.erased_memories(self._database, self._keyring.tenant, stream, ids)
        if erased is None:
            raise MemoryForgotten(memory_id_text(ids[0]))
        return _as_erasure(scope, erased, reason)

    def _reason(self, stream: bytes, position: int) -> str | None:
        """The code that a forgetting fact holds, as long as its user's key stands."""
        ref = self._keyring.session_of_stream(stream)
        rows = read_stream(self._database, self._keyring.tenant, stream) if ref else []
        for row in rows:
            if row.position == position and ref and row.wrapped_key:
                fact = open_event(row, tenant=self._keyring.tenant, wrapping=ref.key)
                return fact.reason if isinstance(fact, MemoryForgottenFact) else None
        return None


def told(answer: Callable[[], Erasure]) -> Erasure:
    """The answer to a forget that was made. If it cannot be read, the caller must not hear that nothing was written."""
    try:
        return answer()
    except StoreUnavailable as error:
        raise StoreUnavailable(error.reason, outcome="unknown", sqlstate=error.sqlstate) from error


def has_something_left(view: View, memory_id: bytes) -> bool:
    """Whether there is something to forget: a memory, or a summary that was undone and is still in the log."""
    if view.table.current(memory_id):
        return True
    history = view.table.history(memory_id)
    return bool(history) and history[-1].type == "restored"


def nothing(scope: Scope) -> Erasure:
    """The erasure of nothing."""
    return Erasure(scope=scope, position=None, recorded_at=None, memory_ids=NOTHING, erased_positions=(), keys_deleted=0)


def _as_erasure(scope: Scope, erased: Erased | None, reason: str | None = None) -> Erasure:
    if erased is None:
        return nothing(scope)
    return Erasure(
        scope=scope,
        position=erased.position,
        recorded_at=erased.recorded_at,
        memory_ids=tuple(map(memory_id_text, erased.memory_ids)),
        erased_positions=tuple(erased.positions),
        keys_deleted=len(erased.positions),
        reason=reason,
    )
