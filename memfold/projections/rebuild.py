"""Everything derived, made again from the log: to see what the log says, and to prove that what answers says the same.

`replay` folds a stretch of the log into memories. `rebuild` embeds every stored vector anew and folds every session from
its first event, and compares both with what serves recall now.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from memfold.eventstore import reader
from memfold.eventstore.binding import opening_keys
from memfold.eventstore.codec import LoggedEvent, event_key
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring, SessionRef
from memfold.eventstore.sealing import WrappingKey, wrapping_key_id
from memfold.model import Memory
from memfold.projections import fold
from memfold.projections.embeddings import CHUNK_TEXTS, Embeddings, Source
from memfold.projections.filters import ALL
from memfold.projections.loading import open_rows
from memfold.projections.recall import take_stored
from memfold.projections.view import View
from memfold.projections.views import Views

COSINE_MIN = 0.999  # of a vector made again and the one that was stored: another processor may round otherwise, not more
CHUNKS_A_COMMIT = 8
TRIES_MAX = 10  # to find a session standing still between two looks


class Rebuilt(NamedTuple):
    """One session made again. `cosine` is the least of its vectors, old and new; None if none was stored.

    `vectors` were made again, of which `missing` had not been stored, or did not open. `same` says whether the session
    folded from its first event has the same rows, words and vectors as the view that answers.
    """

    session_id: str
    memories: int
    vectors: int
    missing: int
    cosine: float | None
    same: bool

    @property
    def sound(self) -> bool:
        """Whether nothing was found to be wrong with it."""
        return self.same and (self.cosine is None or self.cosine >= COSINE_MIN)


def replay(database: Database, keyring: Keyring, session_id: str, *, after: int, upto: int) -> list[Memory]:
    """The memories that a session's events with `after` < position <= `upto` leave, by time; none of an unknown session.

    A memory remembered at or before `after` is not among them, also if it was updated since.

    Raises:
        CorruptEvent: an event does not open.
    """
    ref = keyring.find_session(session_id)
    if ref is None:
        return []
    view = View(ref.stream)
    view.own(ref.stream, ref.session_id, ref.user_id, ref.user)
    try:
        view.fold(event for event in _events(database, keyring, ref)[0] if after < event.row.position <= upto)
        found = view.table.find(ALL, before=None, after=None, order="oldest", limit=-1, start=None)
        return [memory for memory, _ in found]
    finally:
        view.close()


def rebuild(
    database: Database, keyring: Keyring, views: Views, embeddings: Embeddings, session_id: str, *, vectors: bool = True
) -> Rebuilt | None:
    """Make one session again; None if there is none of this name. With `vectors` off, the stored ones are taken as they are.

    Raises:
        CorruptEvent: an event does not open.
        EmbedderFailed: the embedder did; what was made before is stored.
    """
    cosines = _remake(embeddings, list(_sources(database, keyring, session_id))) if vectors else []
    for _ in range(TRIES_MAX):
        fresh = views.rebuild(session_id)
        if fresh is None:
            return None
        try:
            made = _state(fresh, embeddings)
        finally:
            fresh.close()
        with views.session(session_id) as view:
            if view is None:
                return None
            if vectors:
                view.drop_vectors(embeddings.encoder.name)  # the next answer is to come from what is stored now
            live = _state(view, embeddings)
        if made.version == live.version:
            break
    known = [cosine for cosine in cosines if not math.isnan(cosine)]
    return Rebuilt(
        session_id=session_id,
        memories=live.memories,
        vectors=len(cosines),
        missing=len(cosines) - len(known),
        cosine=min(known) if known else None,
        same=made == live,
    )


class _State(NamedTuple):
    version: int
    memories: int
    digest: str


def _state(view: View, embeddings: Embeddings) -> _State:
    """What a view says, with all vectors that are stored."""
    take_stored(view, embeddings)
    return _State(view.version, view.table.count(ALL), view.digest(embeddings.encoder.name))


def _remake(embeddings: Embeddings, sources: Sequence[Source]) -> list[float]:
    step = CHUNK_TEXTS * CHUNKS_A_COMMIT
    return [cosine for begin in range(0, len(sources), step) for cosine in embeddings.remake(sources[begin : begin + step])]


def _sources(database: Database, keyring: Keyring, session_id: str) -> Iterator[Source]:
    """Every living event of a session that has a vector, also those of earlier versions."""
    ref = keyring.find_session(session_id)
    events, keys = _events(database, keyring, ref) if ref else ([], {})
    texts = fold.texts(events)
    for row, data in events:
        if data is not None and row.position in texts:
            key = event_key(row, tenant=keyring.tenant, wrapping=keys[wrapping_key_id(row.wrapped_key or b"")])
            yield Source(row.position, row.event_id, key, texts[row.position])


def _events(database: Database, keyring: Keyring, ref: SessionRef) -> tuple[list[LoggedEvent], dict[bytes, WrappingKey]]:
    """All events of a session, and what their keys are wrapped under."""
    rows = reader.read_stream(database, keyring.tenant, ref.stream)
    keys = {ref.key.id: ref.key, **opening_keys(database, keyring, rows)}
    return list(open_rows(rows, keyring.tenant, keys, gone_is_erased=False)), keys
