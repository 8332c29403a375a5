"""What has been remembered before: equal text of the same speaker, or, when asked, text of nearly the same meaning."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from memfold.embedding import Vectors
from memfold.events import MemoryMerged, MemoryRemembered
from memfold.model import Memory
from memfold.projections import fold
from memfold.projections.embeddings import Embeddings
from memfold.projections.recall import sources_of, take_stored
from memfold.projections.rows import Said
from memfold.projections.view import View
from memfold.projections.views import Views

EXACT = 1.0  # the least similarity at which only equal text counts


class Known(NamedTuple):
    """What a session holds of some texts at `version` of `stream`: of each the memory that says it already, or None."""

    stream: bytes
    version: int
    memories: list[Memory | None]


class Duplicates:
    """Looks for texts among the memories of a session."""

    def __init__(self, views: Views, embeddings: Embeddings) -> None:
        self._views = views
        self._embeddings = embeddings

    def vectors(self, events: Sequence[MemoryRemembered], least: float) -> Vectors | None:
        """The vectors to compare with; None where only equal text counts.

        Raises:
            EmbedderFailed: the embedder did.
        """
        return self._embeddings.encoder.encode(texts(events)) if least < EXACT and events else None

    def known(self, session_id: str, events: Sequence[MemoryRemembered], vectors: Vectors | None, least: float) -> Known | None:
        """What the session holds as of now; None if there is no such session.

        Raises:
            EmbedderFailed: a memory to compare with cannot be embedded.
        """
        while True:
            with self._views.session(session_id) as view:
                if view is None:
                    return None
                wanted = take_stored(view, self._embeddings) if vectors is not None else []
                sources = sources_of(view, wanted, self._embeddings.tenant)
                if not sources:
                    equal = view.table.equal({said(event) for event in events})
                    asked = zip(events, [None] * len(events) if vectors is None else vectors, strict=True)
                    found = [equal.get(said(event)) or self._near(view, event, vector, least) for event, vector in asked]
                    return Known(view.stream, view.version, found)
            made = self._embeddings.make(sources, lambda: True)
            with self._views.session(session_id) as view:
                if view:
                    view.give(self._embeddings.encoder.name, wanted, made)

    def _near(self, view: View, event: MemoryRemembered, vector: Vectors | None, least: float) -> Memory | None:
        index = view.vectors.get(self._embeddings.encoder.name)
        if vector is None or index is None:
            return None
        slots = view.places.spoken_by(event.speaker)
        if not len(slots):
            return None
        similarities = index.similarities(vector, slots)
        best = int(np.argmax(similarities))
        return view.table.memories(view.places.rows(slots[best : best + 1]))[0] if similarities[best] >= least else None


def first_of(events: Sequence[MemoryRemembered], vectors: Vectors | None, least: float) -> list[int]:
    """Of each event the first among them that says the same; its own place if none did before it."""
    firsts: list[int] = []
    places: dict[Said, int] = {}
    for place, event in enumerate(events):
        equal = places.setdefault(said(event), place)
        firsts.append(firsts[equal] if equal < place else _nearest(events, vectors, least, firsts, place))
    return firsts


def _nearest(
    events: Sequence[MemoryRemembered], vectors: Vectors | None, least: float, firsts: Sequence[int], place: int
) -> int:
    """The first event before `place` that says nearly the same and was the first to do so itself, or `place`."""
    if vectors is None:
        return place
    near = np.flatnonzero(vectors[:place] @ vectors[place] >= np.float32(least))
    same = (at for at in near.tolist() if firsts[at] == at and events[at].speaker == events[place].speaker)
    return next(same, place)


def said(event: MemoryRemembered | MemoryMerged) -> Said:
    """What two events have in common that say the same."""
    return event.content.strip(), event.speaker


def texts(events: Sequence[MemoryRemembered]) -> list[str]:
    """What of each event is embedded."""
    return [fold.text_of(event.content, event.speaker) for event in events]
