"""Remembering and updating: from a caller's words to an acknowledged fact.

A fact about a new memory needs no decision. An update is decided on a view, appended with the stream version it was read
at, and decided anew when somebody touched the memory in between.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from hashlib import sha256

from memfold import validation
from memfold.api.plan import Plan
from memfold.errors import Contended, EmbedderFailed, IdempotencyConflict, MemoryForgotten, StoreUnavailable, VersionConflict
from memfold.events import Event, MemoryMerged, MemoryRemembered, MemoryUpdated
from memfold.eventstore import arrays, binding, reader, sealing
from memfold.eventstore.append import NO_DECISION, Answer, Committer, Request, Verdict
from memfold.eventstore.binding import EventKey
from memfold.eventstore.codec import LoggedEvent, SealedEvent, encode, event_key, new_id, seal_event
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring, SessionRef
from memfold.eventstore.sealing import wrapping_key_id
from memfold.model import Memory
from memfold.projections import fold
from memfold.projections.duplicates import Duplicates, first_of, said, texts
from memfold.projections.embeddings import Embeddings, Source
from memfold.projections.fold import memory_id_text
from memfold.projections.loading import open_rows
from memfold.projections.lookup import Lookup, id_bytes, live

TURNS = 64  # sessions in which a process decides about duplicates at once

logger = logging.getLogger("memfold")


class Writer:
    """Appends facts about memories and says what they made."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        committer: Committer,
        lookup: Lookup,
        duplicates: Duplicates,
        *,
        clock: Callable[[], datetime],
        retries_max: int,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._committer = committer
        self._lookup = lookup
        self._duplicates = duplicates
        self._clock = clock
        self._retries_max = retries_max
        self._turns = [threading.Lock() for _ in range(TURNS)]

    def remember(
        self,
        events: Sequence[MemoryRemembered],
        *,
        session_id: str,
        user_id: str | None,
        idempotency_key: str | None,
        first: Embeddings | None = None,
    ) -> list[Memory]:
        """Append new memories of a session, all or none; and have them embedded by `first` before this returns."""
        for _ in range(self._retries_max):
            at = self._clock()
            ref = self._keyring.open_session(session_id, user_id, at)
            sealed = [self._seal(event, ref, new_id()) for event in events]
            request = self._request(ref, sealed, at, events, idempotency_key)
            answer = self._committer.append(request)
            if answer.verdict is Verdict.ACCEPTED:
                embed(first, sealed, texts(events), answer.positions)
                return [
                    fold.remembered(
                        event,
                        memory_id=stored.memory_id or b"",
                        session_id=ref.session_id,
                        user_id=ref.user_id,
                        recorded_at=answer.recorded_at,
                    )
                    for event, stored in zip(events, sealed, strict=True)
                ]
            if answer.verdict is Verdict.DUPLICATE:
                logged = self._first_answer(ref, request.idempotency, events)
                if [type(event.data) for event in logged] != [MemoryRemembered] * len(events):
                    raise IdempotencyConflict  # it stands for a call that skipped or merged
                return [self._as_remembered(ref, event) for event in logged]
            # The session or its user was forgotten since we last looked: the same name now means a new one.
            self._keyring.drop(session_id)
        raise Contended(self._retries_max)

    def remember_once(
        self,
        events: Sequence[MemoryRemembered],
        *,
        session_id: str,
        user_id: str | None,
        idempotency_key: str | None,
        merge: bool,
        least: float,
        first: Embeddings | None = None,
    ) -> list[Memory]:
        """Append what was not said before; what was is skipped, or merged into the memory that says it already.

        The decision is about the whole session, so it is taken anew whenever anything was appended to it meanwhile.
        """
        vectors = self._duplicates.vectors(events, least)
        firsts = first_of(events, vectors, least)
        with self._turns[hash(session_id) % TURNS]:  # this process's threads would only lose races to one another
            for _ in range(self._retries_max):
                at = self._clock()
                ref = self._keyring.open_session(session_id, user_id, at)
                known = self._duplicates.known(session_id, events, vectors, least)
                if known is None or known.stream != ref.stream:
                    self._keyring.drop(session_id)
                    continue
                repeated = self._appended(ref, events, idempotency_key)
                before = self._made(repeated, events, known.memories) if repeated else known.memories
                plan = Plan(events, firsts, before, merge=merge and not repeated)
                sealed = [self._seal(event, ref, memory_id) for memory_id, event in plan.facts]
                if not sealed or repeated:
                    return plan.memories(ref, at)
                for memory in plan.memories(ref, at):
                    validation.merged(memory)
                request = self._request(ref, sealed, at, events, idempotency_key, expected=known.version, of_all=True)
                answer = self._committer.append(request)
                if answer.verdict is Verdict.ACCEPTED:
                    memories = plan.memories(ref, answer.recorded_at)
                    words = {memory.id: fold.text_of(memory.content, memory.speaker) for memory in memories}
                    embed(first, sealed, [words[memory_id_text(fact.memory_id or b"")] for fact in sealed], answer.positions)
                    return memories
                if answer.verdict is not Verdict.CONFLICT:
                    self._keyring.drop(session_id)
        raise Contended(self._retries_max)

    def _appended(self, ref: SessionRef, events: Sequence[Event], idempotency_key: str | None) -> list[LoggedEvent]:
        """What this very call appended when it was made before; empty if it was not. Raises as `_first_answer`."""
        if idempotency_key is None:
            return []
        key_hmac = self._keyring.idempotency_hmac(ref.stream, idempotency_key)
        return self._first_answer(ref, key_hmac, events) if self._idempotent_row(ref, key_hmac) else []

    def _made(
        self, logged: Sequence[LoggedEvent], events: Sequence[MemoryRemembered], known: Sequence[Memory | None]
    ) -> list[Memory | None]:
        """The memory of each event when it was first appended, as it is now; of those that were skipped, what is `known`."""
        ids = {said(data): row.memory_id for row, data in logged if isinstance(data, MemoryRemembered | MemoryMerged)}
        with self._lookup.view_of(memory_id_text(logged[0].row.memory_id or b"")) as view:
            made = {what: view.table.current(memory_id or b"") for what, memory_id in ids.items()}
        kept = [made.get(said(event)) for event in events]
        return [each.memory if each else memory for each, memory in zip(kept, known, strict=True)]

    def update(
        self, memory_id: str, event: MemoryUpdated, *, expected_version: int | None, idempotency_key: str | None
    ) -> Memory:
        """Append a change of one memory."""
        for _ in range(self._retries_max):
            with self._lookup.view_of(memory_id) as view:
                stream_version, session_id, stream = view.version, view.session_id, view.stream
                memory = live(view, memory_id)
                sources = view.bound_to(id_bytes(memory_id), self._keyring.tenant)
            ref = self._keyring.find_session(session_id) if idempotency_key else None
            if idempotency_key and ref and ref.stream == stream:
                earlier = self._earlier(ref, memory_id, event, idempotency_key)
                if earlier:
                    return earlier
            if expected_version is not None and memory.version != expected_version:
                raise VersionConflict(memory_id, expected=expected_version, actual=memory.version)
            if not dict(fold.given(event)):
                return memory
            answer = self._append_update(
                memory,
                event,
                session_id=session_id,
                stream=stream,
                version=stream_version,
                idempotency_key=idempotency_key,
                sources=sources,
            )
            if answer.verdict is Verdict.ACCEPTED:
                return fold.updated(memory, event, recorded_at=answer.recorded_at)
        raise Contended(self._retries_max)

    def _append_update(
        self,
        memory: Memory,
        event: MemoryUpdated,
        *,
        session_id: str,
        stream: bytes,
        version: int,
        idempotency_key: str | None,
        sources: Sequence[EventKey],
    ) -> Answer:
        """Append a change; what is said of a summary is bound to its sources, as the summary is."""
        at = self._clock()
        ref = self._keyring.open_session(session_id, None, at)
        if ref.stream != stream:
            self._keyring.drop(session_id)
            return Answer(Verdict.CONFLICT)
        tenant, memory_id = self._keyring.tenant, id_bytes(memory.id)
        if sources:
            bound = binding.seal_bound(event, tenant=tenant, stream=ref.stream, memory_id=memory_id, sources=sources)
            request = self._request(ref, [bound], at, [event], idempotency_key, expected=version)
            answer = binding.append_bound(self._database, tenant, request, [source.event_id for source in sources])
        else:
            sealed = [self._seal(event, ref, memory_id)]
            answer = self._committer.append(self._request(ref, sealed, at, [event], idempotency_key, expected=version))
        if answer.verdict in (Verdict.KEY_GONE, Verdict.STREAM_GONE):
            self._keyring.drop(session_id)
        return answer

    def _seal(self, event: Event, ref: SessionRef, memory_id: bytes) -> SealedEvent:
        return seal_event(event, tenant=self._keyring.tenant, stream=ref.stream, memory_id=memory_id, wrapping=ref.key)

    def _request(
        self,
        ref: SessionRef,
        sealed: Sequence[SealedEvent],
        at: datetime,
        events: Sequence[Event],
        idempotency_key: str | None,
        *,
        expected: int = NO_DECISION,
        of_all: bool = False,
    ) -> Request:
        request = Request(ref.stream, ref.user, ref.key.version, at, sealed, expected, of_all=of_all)
        if idempotency_key:
            request.idempotency = self._keyring.idempotency_hmac(ref.stream, idempotency_key)
            request.commitment = commitment([event.key for event in sealed], events)
        return request

    def _earlier(self, ref: SessionRef, memory_id: str, event: MemoryUpdated, idempotency_key: str) -> Memory | None:
        """The answer the same update was given before; None if this is the first time."""
        key_hmac = self._keyring.idempotency_hmac(ref.stream, idempotency_key)
        if self._idempotent_row(ref, key_hmac) is None:
            return None
        logged = self._first_answer(ref, key_hmac, [event])[0]
        if logged.row.memory_id != id_bytes(memory_id):
            raise IdempotencyConflict
        with self._lookup.view_of(memory_id) as view:
            live(view, memory_id)
            return next(
                change.memory for change in view.table.history(id_bytes(memory_id)) if change.position == logged.row.position
            )

    def _idempotent_row(self, ref: SessionRef, key_hmac: bytes) -> tuple[int, int, bytes] | None:
        row = self._database.row(
            """SELECT first_version, last_version, commitment FROM memfold.idempotency
               WHERE tenant_id = %s AND stream_id = %s AND key_hmac = %s""",
            (self._keyring.tenant, arrays.uuid(ref.stream), key_hmac),
        )
        return (row.first_version, row.last_version, row.commitment) if row else None

    def _first_answer(self, ref: SessionRef, key_hmac: bytes, events: Sequence[Event]) -> list[LoggedEvent]:
        """The events that were appended when the idempotency key was first used, if they say the same as `events`.

        Raises:
            IdempotencyConflict: they say something else.
            MemoryForgotten: one of them was forgotten since, so nobody can tell, nor repeat the answer.
        """
        found = self._idempotent_row(ref, key_hmac)
        if found is None:
            raise Contended(1)
        first, last, committed = found
        rows = reader.read_stream(self._database, self._keyring.tenant, ref.stream, first - 1, last)
        for row in rows:
            if not row.wrapped_key:
                raise MemoryForgotten(fold.memory_id_text(row.memory_id or bytes(16)))
        tenant = self._keyring.tenant
        wrapping = {ref.key.id: ref.key, **binding.opening_keys(self._database, self._keyring, rows)}
        keys = [event_key(row, tenant=tenant, wrapping=wrapping[wrapping_key_id(row.wrapped_key or b"")]) for row in rows]
        if commitment(keys, events) != committed:
            raise IdempotencyConflict
        return list(open_rows(rows, tenant, wrapping, gone_is_erased=False))

    def _as_remembered(self, ref: SessionRef, event: LoggedEvent) -> Memory:
        assert isinstance(event.data, MemoryRemembered)
        return fold.remembered(
            event.data,
            memory_id=event.row.memory_id or b"",
            session_id=ref.session_id,
            user_id=ref.user_id,
            recorded_at=event.row.recorded_at,
        )


def embed(first: Embeddings | None, sealed: Sequence[SealedEvent], said: Sequence[str], positions: Sequence[int]) -> None:
    """Embed events that were just appended. They are remembered whatever comes of it, so nothing is raised."""
    if first is None:
        return
    sources = [
        Source(position, event.event_id, event.key, text) for position, event, text in zip(positions, sealed, said, strict=True)
    ]
    try:
        first.put(sources)
    except (EmbedderFailed, StoreUnavailable) as error:
        logger.warning("%d memories are not embedded yet, and will be when they are recalled: %s", len(sources), error)


def commitment(keys: Sequence[bytes], events: Sequence[Event]) -> bytes:
    """What an idempotency key stands for, as a hash that dies with the events it speaks of.

    Keyed by subkeys of all the events' keys: once one of them is forgotten, nobody can try guesses against it.
    """
    key = sha256(b"".join(sealing.subkey(key, sealing.COMMITMENT) for key in keys)).digest()
    return sealing.keyed_hash(key, *(type(event).__name__.encode() + encode(event) for event in events))
