"""Recall: from a query to recollections, from everything that was acknowledged before the call.

The query is embedded, the session's view refreshed, what it lacks of vectors taken or made, and everything ranked in one
hold of the view. Vectors of two models are never compared: while the store's own embedder has not seen the whole session
and cannot in the time given, the static model answers for all of it; and words alone where even that would take too long.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime

from memfold.embedding import Encoder
from memfold.errors import EmbedderFailed
from memfold.eventstore.codec import key_context
from memfold.model import Recollections
from memfold.projections.embeddings import Embeddings, Source, rounded
from memfold.projections.filters import Condition
from memfold.projections.ranking import Preferences
from memfold.projections.view import Question, SessionView, Wanted
from memfold.projections.views import Views
from memfold.projections.words import Floats

AT_ONCE_S = 0.1  # what takes no longer is made while the view is held, so that it ends
STATIC_TEXTS = 8_192  # between two looks at the clock
STATIC_S = 0.25  # the static model may take this long even if nobody wants to wait


class Recaller:
    """Answers queries about one session at a time."""

    def __init__(
        self,
        views: Views,
        embeddings: Embeddings,
        static: Encoder,
        *,
        preferences: Preferences,
        clock: Callable[[], datetime],
    ) -> None:
        self._views = views
        self._embeddings = embeddings
        self._static = static
        self._preferences = preferences
        self._clock = clock

    def recall(
        self, query: str, session_id: str, where: Condition, *, limit: int, min_score: float, wait_s: float
    ) -> Recollections:
        """The best memories of a session; none of an unknown one.

        Raises:
            EmbedderFailed: the query cannot be embedded.
        """
        deadline = time.monotonic() + wait_s
        encoder = self._embeddings.encoder
        question = self._question(query, encoder)

        def answer(view: SessionView, question: Question) -> Recollections:
            found = view.search(question, where, limit=limit, min_score=min_score)
            return Recollections(found, position=view.position, model=question.model)

        while True:
            with self._views.session(session_id) as view:
                if view is None:
                    return Recollections([], position=0)
                wanted = take_stored(view, self._embeddings)
                rest_s = len(wanted) * encoder.seconds_a_text
                in_time = rest_s <= deadline - time.monotonic()
                # With the key of this hold: by the next one the name may mean another session.
                sources = sources_of(view, wanted, self._embeddings.tenant) if in_time else []
                if wanted and in_time and rest_s <= AT_ONCE_S:
                    in_time = self._make_now(view, wanted, sources)
                    wanted = view.lacks(encoder.name)
                if not wanted:
                    if encoder.name != self._static.name:
                        view.drop_vectors(self._static.name)
                    return answer(view, question)
            if not in_time or not self._make(session_id, wanted, sources, deadline):
                return self._recall_static(query, session_id, answer, deadline)

    def _question(self, query: str, encoder: Encoder | None) -> Question:
        vector = encoder.encode_query(query) if encoder else None
        return Question(query, encoder.name if encoder else None, vector, self._preferences, self._clock())

    # -- the store's own model -----------------------------------------------------------------------------------------

    def _make_now(self, view: SessionView, wanted: Sequence[Wanted], sources: Sequence[Source]) -> bool:
        try:
            made = self._embeddings.make_now(sources)
        except EmbedderFailed:
            return False
        view.give(self._embeddings.encoder.name, wanted, made)
        return True

    def _make(self, session_id: str, wanted: Sequence[Wanted], sources: Sequence[Source], deadline: float) -> bool:
        """Embed while others may use the view; False if the time or the embedder does not allow it."""
        try:
            made = self._embeddings.make(sources, lambda: time.monotonic() < deadline)
        except EmbedderFailed:
            return False
        with self._views.session(session_id) as view:
            if view:
                view.give(self._embeddings.encoder.name, wanted, made)
        return len(made) == len(sources)

    # -- the static model ----------------------------------------------------------------------------------------------

    def _recall_static(
        self, query: str, session_id: str, answer: Callable[[SessionView, Question], Recollections], deadline: float
    ) -> Recollections:
        """Answer by the static model, or by words alone if there is no time for that either."""
        encoder = self._static
        while True:
            with self._views.session(session_id) as view:
                if view is None:
                    return Recollections([], position=0)
                wanted = view.lacks(encoder.name)
                rest_s = len(wanted) * encoder.seconds_a_text
                if rest_s > max(deadline - time.monotonic(), STATIC_S):
                    return answer(view, self._question(query, None))
                if rest_s <= STATIC_S:
                    if wanted:
                        view.give(encoder.name, wanted, self._encode_static(wanted))
                    return answer(view, self._question(query, encoder))
            for begin in range(0, len(wanted), STATIC_TEXTS):
                if time.monotonic() >= deadline:
                    break  # the next recall goes on from here
                some = wanted[begin : begin + STATIC_TEXTS]
                made = self._encode_static(some)
                with self._views.session(session_id) as view:
                    if view:
                        view.give(encoder.name, some, made)

    def _encode_static(self, wanted: Sequence[Wanted]) -> dict[int, Floats]:
        """Rounded as if they had been stored: the store's own embedder may be this one."""
        vectors = rounded(self._static.encode([want.text for want in wanted]))
        return {want.position: vector for want, vector in zip(wanted, vectors, strict=True)}


def take_stored(view: SessionView, embeddings: Embeddings) -> list[Wanted]:
    """Give a view the stored vectors it lacks; return what it still lacks then."""
    model = embeddings.encoder.name
    wanted = view.lacks(model)
    stored = embeddings.sealed([want.position for want in wanted])
    if stored:
        found = [want for want in wanted if want.position in stored]
        view.give(model, found, embeddings.opened(sources_of(view, found, embeddings.tenant), stored))
        wanted = view.lacks(model)
    return wanted


def sources_of(view: SessionView, wanted: Sequence[Wanted], tenant: int) -> list[Source]:
    """What a view lacks, with the keys of its events."""
    if view.key is None:
        return []
    unwrap = view.key.unwrap
    return [
        Source(want.position, want.event_id, unwrap(want.wrapped_key, key_context(tenant, want.event_id)), want.text)
        for want in wanted
    ]
