"""Recall: from a query to recollections, from everything that was acknowledged before the call.

The query is embedded, the scope's view made fresh, what it lacks of vectors taken or made, and everything ranked in one hold
of the view. Vectors of two models are never compared: while the store's own embedder has not seen the whole scope and
cannot in the time given, the static model answers for all of it; and words alone where even that would take too long.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from memfold.embedding import Reranker, reranked
from memfold.errors import EmbedderFailed, ScopeTooLarge
from memfold.eventstore.codec import key_context
from memfold.model import Context, Memory, Ranking, Recollection, Recollections
from memfold.projections.caching import QueryVectors, Rate
from memfold.projections.context import assemble, wanted
from memfold.projections.counting import Count
from memfold.projections.embeddings import Embeddings, Source
from memfold.projections.filters import Condition
from memfold.projections.fold import text_of
from memfold.projections.learned import Weights
from memfold.projections.lookup import id_bytes
from memfold.projections.ranking import Preferences
from memfold.projections.rows import both
from memfold.projections.scope import Scope
from memfold.projections.search import Question, Search
from memfold.projections.summaries import opened, rows_among, with_turns
from memfold.projections.times import preferred
from memfold.projections.view import View, Wanted
from memfold.projections.views import Views
from memfold.projections.words import Floats

AT_ONCE_S = 0.1  # what takes no longer is made while the view is held, so that it ends
STATIC_TEXTS = 8_192  # between two looks at the clock
STATIC_S = 0.25  # the static model may take this long even if nobody wants to wait
STORED_ROWS = 5_000  # vectors that are fetched at a time
RERANKED = 50  # of the best, if there is a reranker
SAMPLE = 64  # rows that are looked at to tell whether somebody asked for the static model first


class Asked(NamedTuple):
    """A query and how it is to be answered."""

    query: str
    scope: Scope
    where: Condition
    limit: int
    min_score: float
    wait_s: float
    ranking: Ranking = "learned"
    explain: bool = False


class Recaller:
    """Answers queries about any scope."""

    def __init__(
        self,
        views: Views,
        embeddings: Embeddings,
        static: Embeddings,
        queries: QueryVectors,
        *,
        preferences: Preferences,
        weights: Mapping[str, Weights],
        reranker: Reranker | None,
        clock: Callable[[], datetime],
    ) -> None:
        self._views = views
        self._embeddings = embeddings
        self._static = static
        self._queries = queries
        self._preferences = preferences
        self._weights = weights
        self._reranker = reranker
        self._clock = clock
        self._search = Search(queries.known_by)

    @property
    def rates(self) -> tuple[Rate, Rate]:
        """How often a query's vector was there already, and how often a whole answer."""
        return self._queries.rate, self._search.rate

    def recall(self, asked: Asked) -> Recollections:
        """The best memories of a scope; none of an unknown session. A reranker has the last word about the best of them.

        Raises:
            EmbedderFailed: the query cannot be embedded.
            ScopeTooLarge: the scope's view takes too much RAM.
            RerankerFailed: the reranker did.
        """
        if self._reranker is None or asked.ranking == "fixed":
            return self._recall(asked)
        found = self._recall(asked._replace(limit=max(asked.limit, RERANKED), min_score=0.0))
        hits = last_word(self._reranker, asked.query, found, explain=asked.explain)
        answer = [hit for hit in hits[: asked.limit] if hit.score >= asked.min_score]
        return Recollections(answer, position=found.position, model=found.model, withheld=found.withheld)

    def _recall(self, asked: Asked) -> Recollections:
        deadline = time.monotonic() + asked.wait_s
        encoder = self._embeddings.encoder
        vector = self._queries.vector(encoder.name, asked.query, encoder.encode_query)
        while True:
            with self._views.lend(asked.scope, deadline) as view:
                if view is None:
                    return Recollections([], position=0)
                wanted = self._ready(view, deadline)
                if not wanted:
                    return self._answer(view, asked, encoder.name, vector)
                # With the keys of this hold: by the next one the name may mean another session.
                in_time = len(wanted) * encoder.seconds_a_text <= deadline - time.monotonic()
                sources = sources_of(view, wanted, self._embeddings.tenant) if in_time and not self._deferred(wanted) else []
            if not sources or not self._make(asked.scope, wanted, sources, deadline):
                return self._recall_static(asked, deadline)

    def context(self, asked: Asked, max_tokens: int, count: Count) -> Context:
        """The part of a scope's memories that goes into a prompt.

        Raises: as `recall`, and as `context.assemble`.
        """
        begun = time.monotonic()
        asked = asked._replace(limit=wanted(max_tokens))
        found, asked = self._opened(self.recall(asked), asked, begun + asked.wait_s, max_tokens)
        with self._views.lend(asked.scope, begun + asked.wait_s) as view:
            # A view of the past stays where it is, whatever is withheld from it.
            if view is None or view.position != found.position or asked.scope.as_of is not None:
                found = _living(found, view)  # nothing that was forgotten in between

            def neighbours(memory_id: str) -> tuple[Memory | None, Memory | None]:
                return view.neighbours(id_bytes(memory_id), asked.where) if view else (None, None)

            return assemble(found, neighbours, max_tokens=max_tokens, count=count)

    def _opened(self, found: Recollections, asked: Asked, deadline: float, max_tokens: int) -> tuple[Recollections, Asked]:
        """What was found, and what its summaries were made from, ranked together; and what was asked for that.

        A whole tenant's summaries stay as they are: to look behind them, everything in it would have to be held twice.
        """
        if asked.scope.archived or (asked.scope.sessions is None and asked.scope.user is None):
            return found, asked
        with self._views.lend(asked.scope, deadline) as view:
            summaries, rows = opened(view, found) if view else ([], [])
        if not summaries:
            return found, asked
        deeper = asked._replace(scope=asked.scope._replace(archived=True), wait_s=max(deadline - time.monotonic(), 0.0))
        try:
            turns = self.recall(deeper._replace(where=both(asked.where, rows_among(rows))))
        except ScopeTooLarge:
            return found, asked
        best = with_turns(summaries, turns, max_tokens)
        position = min(found.position, turns.position)
        return Recollections(best, position=position, model=turns.model, withheld=turns.withheld), deeper

    def _answer(self, view: View, asked: Asked, model: str | None, vector: Floats | None) -> Recollections:
        as_of = asked.scope.as_of
        now = self._clock() if as_of is None else as_of if isinstance(as_of, datetime) else self._views.time_at(as_of)
        section = "words" if model is None else "static" if model == self._static.encoder.name else "meaning"
        # It was fitted on conversations, where a turn is often answered by the next. Among facts in any order it would mislead.
        weights = self._weights[section] if asked.ranking == "learned" and view.is_conversation else None
        spans = preferred(asked.query, now)
        question = Question(asked.query, model, vector, self._preferences, now, spans, weights)
        found = self._search(view, question, asked.where, limit=asked.limit, min_score=asked.min_score, explain=asked.explain)
        return Recollections(found, position=view.position, model=model, withheld=len(view.withheld))

    # -- the store's own model -----------------------------------------------------------------------------------------

    def _ready(self, view: View, deadline: float) -> list[Wanted]:
        """Give a view the vectors that are stored, and make what is quickly made; return what it still lacks then."""
        encoder = self._embeddings.encoder
        wanted = take_stored(view, self._embeddings, deadline)
        if wanted and len(wanted) * encoder.seconds_a_text <= min(AT_ONCE_S, deadline - time.monotonic()):
            try:
                made = self._embeddings.make_now(sources_of(view, wanted, self._embeddings.tenant))
            except EmbedderFailed:
                return wanted
            view.give(encoder.name, wanted, made)
            wanted = view.lacks(encoder.name)
        if not wanted and encoder.name != self._static.encoder.name:
            view.drop_vectors(self._static.encoder.name)
        return wanted

    def _deferred(self, wanted: Sequence[Wanted]) -> bool:
        """Whether somebody stored vectors of the static model, so that nobody waits for the better ones."""
        if self._static.encoder.name == self._embeddings.encoder.name:
            return False
        return bool(self._static.sealed([want.position for want in wanted[:SAMPLE]]))

    def _make(self, scope: Scope, wanted: Sequence[Wanted], sources: Sequence[Source], deadline: float) -> bool:
        """Embed while others may use the view; False if the time or the embedder does not allow it."""
        try:
            made = self._embeddings.make(sources, lambda: time.monotonic() < deadline)
        except EmbedderFailed:
            return False
        with self._views.lend(scope, deadline) as view:
            if view:
                view.give(self._embeddings.encoder.name, wanted, made)
        return len(made) == len(sources)

    # -- the static model ----------------------------------------------------------------------------------------------

    def _recall_static(self, asked: Asked, deadline: float) -> Recollections:
        """Answer by the static model, or by words alone if there is no time for that either."""
        encoder = self._static.encoder
        in_time = True
        while True:
            with self._views.lend(asked.scope, deadline) as view:
                if view is None:
                    return Recollections([], position=0)
                wanted = take_stored(view, self._static, deadline)
                rest_s = len(wanted) * encoder.seconds_a_text
                if not in_time or rest_s > max(deadline - time.monotonic(), STATIC_S):
                    return self._answer(view, asked, None, None)
                some = wanted[:STATIC_TEXTS]
                texts = view.texts(some)
                if rest_s <= STATIC_S:
                    view.give(encoder.name, some, self._static.made(some, texts))
                    vector = self._queries.vector(encoder.name, asked.query, encoder.encode_query)
                    return self._answer(view, asked, encoder.name, vector)
            made = self._static.made(some, texts)
            with self._views.lend(asked.scope, deadline) as view:
                if view:
                    view.give(encoder.name, some, made)
            in_time = time.monotonic() < deadline  # if it is over, the next recall goes on from here


def last_word(reranker: Reranker, query: str, found: Sequence[Recollection], *, explain: bool) -> list[Recollection]:
    """The best as a reranker orders them, and the others behind.

    Raises:
        RerankerFailed: it raised, or returned something else than it promises.
    """
    head, tail = found[:RERANKED], found[RERANKED:]
    if not head:
        return []
    scores = reranked(reranker, query, [text_of(hit.memory.content, hit.memory.speaker) for hit in head])
    told = [{"reranker": score} if explain else {} for score in scores]
    best = [
        Recollection(memory=hit.memory, score=score, parts=parts) for hit, score, parts in zip(head, scores, told, strict=True)
    ]
    best.sort(key=lambda hit: -hit.score)
    least = best[-1].score
    return best + [Recollection(memory=hit.memory, score=min(hit.score, least), parts={}) for hit in tail]


def _living(found: Recollections, view: View | None) -> Recollections:
    hits = [hit for hit in found if view and view.table.current(id_bytes(hit.memory.id))]
    return Recollections(hits, position=found.position, model=found.model, withheld=found.withheld)


def take_stored(view: View, embeddings: Embeddings, deadline: float = float("inf")) -> list[Wanted]:
    """Give a view the stored vectors it lacks; return what it still lacks then, or when the time is over."""
    model = embeddings.encoder.name
    wanted = view.lacks(model)
    for begin in range(0, len(wanted), STORED_ROWS):
        some = wanted[begin : begin + STORED_ROWS]
        stored = embeddings.sealed([want.position for want in some])
        if stored:
            found = [want for want in some if want.position in stored]
            view.give(model, found, embeddings.opened(sources_of(view, found, embeddings.tenant, with_text=False), stored))
        if time.monotonic() > deadline:
            break
    return view.lacks(model) if wanted else []


def sources_of(view: View, wanted: Sequence[Wanted], tenant: int, *, with_text: bool = True) -> list[Source]:
    """What a view lacks, with the keys of its events."""
    texts = view.texts(wanted) if with_text else [""] * len(wanted)
    keys = [view.unwrap(want, key_context(tenant, want.event_id)) for want in wanted]
    return [Source(want.position, want.event_id, key, text) for want, key, text in zip(wanted, keys, texts, strict=True) if key]
