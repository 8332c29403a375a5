"""`MemoryStore`: the verbs, and the one place where the parts are put together.

Every verb checks its arguments, then hands on: writing to `writer`, forgetting to `audit.erasure`, reading one session to
its view, reading everything to `catalog`.
"""

import logging
import os
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from memfold import validation
from memfold.api.catalog import Catalog, from_cursor, session_place, to_cursor
from memfold.api.opening import MasterKey, Target, open_target
from memfold.api.restoring import Restorer
from memfold.api.writer import Writer
from memfold.audit.erasure import Forgetter
from memfold.consolidator.summarizer import Summarizer
from memfold.embedding import Embedder, Encoder, Reranker
from memfold.errors import FilterError, ForkedStore, InvalidMemory, InvalidQuery, MemoryNotFound, SettingsError, StoreClosed
from memfold.events import MemoryRemembered
from memfold.eventstore.append import Committer
from memfold.eventstore.keyring import Keyring
from memfold.minilm import default_embedder, static_embedder
from memfold.model import (
    UNSET,
    Change,
    Consolidation,
    Context,
    Embedding,
    Erasure,
    Memory,
    NewMemory,
    OnDuplicate,
    Order,
    Page,
    ParkedWork,
    Ranking,
    Recollections,
    SessionConsolidation,
    SessionPage,
    Stats,
    StoredEvent,
    UnsetType,
    WorkStatus,
)
from memfold.policies import Effective, Policy
from memfold.projections import lookup
from memfold.projections import summaries as lineage
from memfold.projections.caching import QueryVectors
from memfold.projections.counting import CountTokens, TokenCounter
from memfold.projections.duplicates import Duplicates
from memfold.projections.embeddings import Embeddings
from memfold.projections.filters import Condition, compile_filter, is_empty
from memfold.projections.follower import Follower
from memfold.projections.learned import load, shipped
from memfold.projections.loading import Loader
from memfold.projections.lookup import Lookup
from memfold.projections.ranking import Preferences
from memfold.projections.recall import Asked, Recaller
from memfold.projections.rows import both, time_range
from memfold.projections.scope import AsOf, Scope, session_scope
from memfold.projections.views import Views
from memfold.settings import Settings, environment

if TYPE_CHECKING:
    from memfold.api.consolidating import Consolidating, Parts
    from memfold.api.working import Stop, Working

Where = Mapping[str, Any]

logger = logging.getLogger("memfold")


def check_tenant(tenant: object) -> None:
    """A tenant's name is a setting of the store, not part of a memory."""
    try:
        validation.name("tenant", tenant)
    except InvalidMemory as error:
        raise SettingsError("tenant", error.problem) from None


def check_clock(clock: Callable[[], datetime]) -> None:
    """A clock without a time zone would be found out only when something is to be remembered."""
    now = clock() if callable(clock) else None
    if not isinstance(now, datetime) or now.utcoffset() is None:
        raise SettingsError("clock", "does not return an aware datetime: give one such as lambda: datetime.now(timezone.utc)")


def utc_now() -> datetime:
    """The default clock."""
    return datetime.now(UTC)


class MemoryStore:
    """The memory of an agent, kept as an immutable log of sealed events in PostgreSQL.

    `target` is None (an embedded PostgreSQL in the user's data folder), a folder (embedded there), or `postgresql://…`.
    `tenant` keeps customers apart: nothing of one is visible to another. `master_key` is 32 bytes in base64url, or a
    `KeyService`; it defaults to `MEMFOLD_MASTER_KEY`, and for an embedded store to the file `master.key` in its folder.
    `clock` returns the current time as an aware datetime. `embedder` makes the vectors that recall by meaning compares; it
    defaults to the MiniLM model that comes with memfold. `count_tokens` says how many tokens a text has, for `context`; it
    defaults to the tokenizer that comes with memfold. `ranking_weights` is a file of weights for recall, as
    scripts/fit-ranking writes it; a `reranker`, such as a cross-encoder, has the last word about the fifty best. A `summarizer`
    says windows in fewer words for `consolidate`; it defaults to the language model that the environment names, else to one
    that picks sentences and needs none. With `background`, a thread does what `work` does until the store closes; a dict says
    how often, as for `work`.
    Safe to use from many threads; not across a fork.

    Raises, besides what each verb says: StoreClosed, ForkedStore, StoreUnavailable, KeyUnavailable, CorruptEvent.
    """

    def __init__(
        self,
        target: Target = None,
        *,
        tenant: str = "default",
        master_key: MasterKey = None,
        settings: Settings | None = None,
        clock: Callable[[], datetime] = utc_now,
        embedder: Embedder | None = None,
        count_tokens: CountTokens | None = None,
        ranking_weights: str | os.PathLike[str] | None = None,
        reranker: Reranker | None = None,
        summarizer: Summarizer | None = None,
        background: bool | Mapping[str, Any] = False,
    ) -> None:
        check_tenant(tenant)
        check_clock(clock)
        self._counter = TokenCounter(count_tokens)
        if reranker is not None and (isinstance(reranker, type) or not isinstance(reranker, Reranker)):
            raise SettingsError("reranker", f"is {type(reranker).__name__}: give an object with rerank(query, texts)")
        if summarizer is not None and (isinstance(summarizer, type) or not isinstance(summarizer, Summarizer)):
            problem = f"is {type(summarizer).__name__}: give an object with a name and summarize(window)"
            raise SettingsError("summarizer", problem)
        self._reranker = reranker
        self._summarizer = summarizer
        self._weights = shipped() if ranking_weights is None else load(Path(ranking_weights))
        encoder = Encoder(default_embedder() if embedder is None else embedder)
        self._pid = os.getpid()
        self._closed = True
        self._settings = settings or Settings()
        opened = open_target(target, master_key, self._settings, environment())
        self._database = opened.database
        try:
            self._keyring = Keyring(self._database, opened.service, tenant)
        except BaseException:
            self._database.close()
            opened.release()
            raise
        loader = Loader(self._database, self._keyring, bytes_max=self._settings.views_bytes_max)
        self._views = Views(loader, bytes_max=self._settings.views_bytes_max, idle_s=self._settings.view_idle_s)
        self._put_together(clock, encoder)
        # Also when the program ends without closing: neither the thread nor the server may outlive its last user.
        self._enders = [self._follower.close]
        self._release = weakref.finalize(self, _let_go, self._enders, opened.release)
        if not self._database.has_role:
            logger.warning("the role memfold_app could not be made or taken: triggers alone keep the log immutable")
        self._closed = False
        if background:
            self._work_behind(None if background is True else background)

    def _work_behind(self, jobs: Mapping[str, Any] | None) -> None:
        try:
            self._working.start(jobs)
        except BaseException:
            self.close()
            raise

    def _put_together(self, clock: Callable[[], datetime], encoder: Encoder) -> None:
        database, keyring, settings = self._database, self._keyring, self._settings
        retries_max = settings.retries_max
        self._lookup = Lookup(database, keyring, self._views)
        self._committer = Committer(database, keyring.tenant, settings)
        self._forgetter = Forgetter(database, keyring, self._views, self._lookup, clock=clock, retries_max=retries_max)
        self._embeddings = Embeddings(database, keyring.tenant, encoder)
        self._follower = Follower(database, keyring, self._embeddings)
        known = Duplicates(self._views, self._embeddings)
        self._writer = Writer(database, keyring, self._committer, self._lookup, known, clock=clock, retries_max=retries_max)
        self._restorer = Restorer(keyring, self._committer, self._lookup, self._views, clock=clock, retries_max=retries_max)
        self._clock = clock
        self._static = Embeddings(database, keyring.tenant, Encoder(static_embedder(), seconds_a_text=0.00005))
        self._recaller = Recaller(
            self._views,
            self._embeddings,
            self._static,
            QueryVectors(count_max=settings.query_vectors_max, ttl_s=settings.view_idle_s),
            preferences=Preferences(settings.importance_weight, settings.recency_weight, settings.recency_half_life_days),
            weights=self._weights,
            reranker=self._reranker,
            clock=clock,
        )
        self._catalog = Catalog(
            database, keyring, self._views, self._follower, self._recaller, settle_timeout_s=settings.settle_timeout_s
        )

    def __repr__(self) -> str:
        return f"MemoryStore({'closed' if self._closed else 'open'})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the store. The embedded server stops when its last user closes. Closing twice is harmless.

        What is not embedded yet is left to the next process that remembers or recalls it. Work in the background finishes the
        step at hand.
        """
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:
            return
        for end in self._enders:
            end()
        self._views.close()
        self._committer.close()
        self._database.close()
        self._release()

    # -- writing -------------------------------------------------------------------------------------------------------

    def remember(
        self,
        content: str,
        *,
        session_id: str,
        user_id: str | None = None,
        role: str | None = None,
        speaker: str | None = None,
        category: str | None = None,
        importance: float | None = 0.5,
        tags: Iterable[str] | None = (),
        metadata: Mapping[str, Any] | None = None,
        occurred_at: datetime | None = None,
        idempotency_key: str | None = None,
        duplicates: OnDuplicate = "keep",
        duplicate_similarity: float = 1.0,
    ) -> Memory:
        """Remember something in a session; durable when this returns.

        `user_id` is whose data it is (default: the session's name), fixed by the first remember of the session.
        `importance` is in [0, 1]; `occurred_at` an aware datetime (default: now); `metadata` a JSON object. With an
        `idempotency_key`, the same call made again in this session returns the first answer and adds nothing.

        `duplicates` says what happens if the same speaker said the same before in this session: "keep" remembers it again;
        "skip" adds nothing and returns the memory that there is; "merge" appends that it was said again, which gives that
        memory the tags and metadata it did not have, and the greater importance. The same is equal text, and with
        `duplicate_similarity` below 1 also text whose vector has that cosine or more.

        Raises:
            InvalidMemory: a field cannot be stored.
            SessionOwnerConflict: the session belongs to another user.
            IdempotencyConflict: the key was used in this session for other content.
            MemoryForgotten: the key was used for a memory that has been forgotten since.
            Contended: others kept writing to the session, so that what is a duplicate could not be decided.
            EmbedderFailed: similar text was asked for, and cannot be embedded.
        """
        self._check()
        memory = NewMemory(
            content=content,
            role=role,
            speaker=speaker,
            category=category,
            importance=importance,
            tags=tags,  # type: ignore[arg-type]
            metadata=metadata,  # type: ignore[arg-type]
            occurred_at=occurred_at,
        )
        session_id, user_id, key = _names(session_id, user_id, idempotency_key)
        events = [validation.to_event(memory)]
        return self._remember(events, session_id, user_id, key, duplicates, duplicate_similarity)[0]

    def remember_many(
        self,
        items: Iterable[str | Mapping[str, Any] | NewMemory],
        *,
        session_id: str,
        user_id: str | None = None,
        idempotency_key: str | None = None,
        duplicates: OnDuplicate = "keep",
        duplicate_similarity: float = 1.0,
        embedding: Embedding = "soon",
    ) -> list[Memory]:
        """Remember up to 10,000 things in one session, all or none, in order.

        Each item is a string, a `NewMemory`, or a dict with exactly the fields content, role, speaker (or name),
        category, importance, tags, metadata, occurred_at. The idempotency key is of the whole batch. Duplicates are treated as
        by `remember`, also those within the batch; the answer names a memory for each item all the same.

        `embedding` is "soon", or for a lot at once "deferred": the static model embeds the items before this returns, at some
        ten thousand a second, and answers for them until the store's own embedder has come by; no recall waits for that.

        Raises: as `remember`; InvalidMemory names the item by its index.
        """
        self._check()
        if isinstance(items, str | Mapping) or not isinstance(items, Iterable):
            raise InvalidMemory("items", "is one item or none: give a list of strings, dicts or NewMemory")
        events = [validation.to_event(validation.as_new_memory(item, index), index) for index, item in enumerate(items)]
        validation.batch(events)
        session_id, user_id, key = _names(session_id, user_id, idempotency_key)
        if not events:
            return []
        first = self._static if validation.embedding(embedding) == "deferred" else None
        return self._remember(events, session_id, user_id, key, duplicates, duplicate_similarity, first)

    def _remember(  # noqa: PLR0917
        self,
        events: list[MemoryRemembered],
        session_id: str,
        user_id: str | None,
        key: str | None,
        duplicates: OnDuplicate,
        similarity: float,
        first: Embeddings | None = None,
    ) -> list[Memory]:
        least = validation.similarity(similarity)
        if validation.on_duplicate(duplicates) == "keep":
            memories = self._writer.remember(events, session_id=session_id, user_id=user_id, idempotency_key=key, first=first)
        else:
            memories = self._writer.remember_once(
                events,
                session_id=session_id,
                user_id=user_id,
                idempotency_key=key,
                merge=duplicates == "merge",
                least=least,
                first=first,
            )
        self._follower.wake()
        return memories

    def update(
        self,
        memory_id: str,
        *,
        content: str | UnsetType = UNSET,
        role: str | UnsetType | None = UNSET,
        speaker: str | UnsetType | None = UNSET,
        category: str | UnsetType | None = UNSET,
        importance: float | UnsetType | None = UNSET,
        tags: Iterable[str] | UnsetType | None = UNSET,
        metadata: Mapping[str, Any] | UnsetType | None = UNSET,
        expected_version: int | None = None,
        idempotency_key: str | None = None,
    ) -> Memory:
        """Change a memory; only what is given changes, None clears, metadata is replaced as a whole.

        With `expected_version`, only if the memory still is at that version. If nothing is given, nothing is appended.

        Raises:
            MemoryNotFound, MemoryForgotten: there is no such memory, or no longer.
            VersionConflict: it is at another version than expected.
            InvalidMemory, IdempotencyConflict: as `remember`.
            Contended: others kept changing it.
        """
        self._check()
        lookup.id_bytes(memory_id)
        event = validation.to_update(
            content=content, role=role, speaker=speaker, category=category, importance=importance, tags=tags, metadata=metadata
        )
        if expected_version is not None and (isinstance(expected_version, bool) or not isinstance(expected_version, int)):
            raise InvalidMemory("expected_version", f"is {type(expected_version).__name__}: give a whole number")
        key = None if idempotency_key is None else validation.name("idempotency_key", idempotency_key)
        memory = self._writer.update(memory_id, event, expected_version=expected_version, idempotency_key=key)
        self._follower.wake()
        return memory

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything that was remembered before this call is embedded, by whatever process; None: however long.

        Nothing needs this: `recall` embeds what it needs. It is for measuring, and before a process ends for long.

        Raises:
            EmbeddingTimeout: it took longer than `timeout_s`; the work goes on.
            EmbedderFailed: the embedder fails on some of it.
        """
        self._check()
        if timeout_s is not None:
            timeout_s = validation.wait(timeout_s, "timeout_s")
        self._follower.flush(timeout_s)

    # -- forgetting ----------------------------------------------------------------------------------------------------

    def forget(self, memory_id: str, *, reason: str | None = None) -> Erasure:
        """Forget a memory and every version of it: its keys are destroyed. Twice returns the first `Erasure`.

        `reason` is a short code such as `user_request`, never free text.

        Raises:
            MemoryNotFound: nobody ever remembered it.
        """
        self._check()
        lookup.id_bytes(memory_id)
        return self._forgetter.memory(memory_id, validation.reason(reason))

    def forget_session(self, session_id: str) -> Erasure:
        """Forget a session with all it holds. The name may be used again and means a new session then.

        Twice returns the first `Erasure`; of a session that never was, an empty one.
        """
        self._check()
        return self._forgetter.session(validation.session(session_id))

    def forget_user(self, user_id: str) -> Erasure:
        """Forget a user: every session, and the key everything of the user was sealed under.

        Twice returns the first `Erasure`; of a user that never was, an empty one.
        """
        self._check()
        return self._forgetter.user(validation.asked_name("user_id", user_id))

    def forget_where(self, session_id: str, where: Where) -> Erasure:
        """Forget the memories of a session that match a filter; an empty `Erasure` if none does.

        Raises:
            FilterError: the filter is malformed, or empty: to forget everything, say forget_session.
        """
        self._check()
        session_id = validation.session(session_id)
        condition = compile_filter(where)
        if is_empty(where):
            raise FilterError("", "an empty filter forgets nothing: name what to forget, or use forget_session")
        return self._forgetter.where(session_id, condition)

    # -- reading -------------------------------------------------------------------------------------------------------

    def get(self, memory_id: str, *, as_of: AsOf | None = None) -> Memory:
        """A memory by its id; with `as_of`, as it stood at that time or log position.

        Raises:
            MemoryNotFound: no memory ever had this id, or none had it yet.
            MemoryForgotten: it was forgotten, by now or by then.
            InvalidQuery: `as_of` is no moment of the past.
        """
        self._check()
        as_of = self._as_of(as_of)
        with self._lookup.view_of(memory_id) as view:
            return lookup.live(view, memory_id) if as_of is None else lookup.as_of(view, memory_id, as_of)

    def find(
        self,
        session_id: str | None = None,
        *,
        session_ids: Iterable[str] | None = None,
        user_id: str | None = None,
        as_of: AsOf | None = None,
        where: Where | None = None,
        before: datetime | None = None,
        after: datetime | None = None,
        include_archived: bool = False,
        order: Order = "newest",
        limit: int = 100,
        cursor: str | None = None,
        wait_s: float = 10.0,
    ) -> Page:
        """A page of the memories of a session, of several, of a user or of the whole tenant, in order of time.

        Scope, `as_of`, `include_archived` and `wait_s` are as in `recall`. `after` <= occurred_at < `before`. `limit` is 1 to
        10,000; `cursor` comes from the page before. An unknown or forgotten session is empty.

        Raises:
            InvalidQuery, FilterError: an argument makes no sense.
            ScopeTooLarge: the scope takes more RAM than views may.
        """
        self._check()
        scope, limit = self._scope(session_id, session_ids, user_id, as_of), validation.limit(limit)
        include_archived = validation.flag("include_archived", include_archived)
        if order not in ("newest", "oldest"):
            raise InvalidQuery("order", 'must be "newest" or "oldest"')
        start = None if cursor is None else from_cursor(order, cursor, tuple[int, int])
        condition = compile_filter(where or {})
        before, after = validation.bound("before", before), validation.bound("after", after)
        with self._views.lend(scope, _deadline(wait_s)) as view:
            if view is None:
                return Page(memories=[], cursor=None)
            shown = condition if include_archived else view.shown(condition)
            found = view.table.find(shown, before=before, after=after, order=order, limit=limit + 1, start=start)
            position, withheld = view.position, len(view.withheld)
        cursor = to_cursor(order, found[limit - 1][1]) if len(found) > limit else None
        return Page(memories=[memory for memory, _ in found[:limit]], cursor=cursor, position=position, withheld=withheld)

    def count(
        self,
        session_id: str | None = None,
        *,
        session_ids: Iterable[str] | None = None,
        user_id: str | None = None,
        as_of: AsOf | None = None,
        where: Where | None = None,
        before: datetime | None = None,
        after: datetime | None = None,
        include_archived: bool = False,
        wait_s: float = 10.0,
    ) -> int:
        """How many memories match; 0 for an unknown or forgotten session.

        Scope, `as_of`, `include_archived` and `wait_s` are as in `recall`.

        Raises: as `find`.
        """
        self._check()
        scope = self._scope(session_id, session_ids, user_id, as_of)
        include_archived = validation.flag("include_archived", include_archived)
        condition = self._restriction(where, before, after)
        with self._views.lend(scope, _deadline(wait_s)) as view:
            if view is None:
                return 0
            return view.table.count(condition if include_archived else view.shown(condition))

    def recall(
        self,
        query: str,
        *,
        session_id: str | None = None,
        session_ids: Iterable[str] | None = None,
        user_id: str | None = None,
        as_of: AsOf | None = None,
        limit: int = 10,
        min_score: float = 0.0,
        where: Where | None = None,
        before: datetime | None = None,
        after: datetime | None = None,
        include_archived: bool = False,
        refresh: bool = False,
        ranking: Ranking = "learned",
        explain: bool = False,
        wait_s: float = 10.0,
    ) -> Recollections:
        """The memories that answer `query` best, best first, with a score in [0, 1].

        They are looked for in one session, in several, in all of a user's, or, with none of these, in the whole tenant. One
        session is seen with every remember that was acknowledged before the call, by any process. So are the wider scopes,
        if that takes no longer than `wait_s`; up to where they were looked at is said by `.position`.

        With `as_of`, a time or a position of the log, the answer is the one of that moment, from the memories as they stood.
        What has been forgotten since is not in it; `.withheld` says how many that are.

        What is archived, because a summary stands for it or because it faded, is not looked at unless `include_archived`;
        `sources` leads from a summary to what it was made from. With `refresh`, what is found counts as used: for fading, it
        is as old as this recall. That is an event in each session it was found in.

        They are found by meaning and by words; a score means the same for every query. `ranking` is "learned" (a linear ranker
        over features with names) or "fixed" (a mix of a few weights). With `explain`, `parts` says what each score is made of.
        The query is plain text: no character of it is special. `wait_s` also bounds how long the answer may wait for vectors
        that are not there yet; after that a quicker model answers for the whole scope, or words alone: see `.model`.

        Raises:
            InvalidQuery, FilterError: an argument makes no sense; an empty query, a limit outside 1 to 10,000, two scopes.
            ScopeTooLarge: the scope takes more RAM than views may.
            EmbedderFailed: the query cannot be embedded.
            RerankerFailed: the reranker failed.
        """
        self._check()
        scope = self._scope(session_id, session_ids, user_id, as_of, include_archived=include_archived)
        asked = self._asked(query, scope, self._restriction(where, before, after), min_score, wait_s)._replace(
            limit=validation.limit(limit), ranking=validation.ranking(ranking), explain=bool(explain)
        )
        refresh = validation.flag("refresh", refresh)
        found = self._recaller.recall(asked)
        if refresh and as_of is None:
            self._restorer.refresh([hit.memory for hit in found])
        return found

    def context(
        self,
        query: str,
        *,
        session_id: str | None = None,
        session_ids: Iterable[str] | None = None,
        user_id: str | None = None,
        as_of: AsOf | None = None,
        max_tokens: int = 2_000,
        min_score: float = 0.0,
        where: Where | None = None,
        before: datetime | None = None,
        after: datetime | None = None,
        include_archived: bool = False,
        wait_s: float = 10.0,
    ) -> Context:
        """The memories that answer `query` best, laid out to go into a prompt, in at most `max_tokens` tokens.

        They are grouped (preferences, facts, summaries, conversation), in order of time, each turn with the one it cannot be
        understood without, and fenced so that whatever they say reads as data. `str(context)` is the text; tokens are counted
        by the store's `count_tokens`. What summaries were made from is looked at too, archived or not, except in a context of
        the whole tenant: most of what a context holds is word for word. The other arguments are those of `recall`.

        Raises: as `recall`;
            InvalidQuery: not even one memory fits; it says how many tokens the shortest needs.
            SettingsError: `count_tokens` fails.
        """
        self._check()
        max_tokens = validation.max_tokens(max_tokens)
        scope = self._scope(session_id, session_ids, user_id, as_of, include_archived=include_archived)
        asked = self._asked(query, scope, self._restriction(where, before, after), min_score, wait_s)
        return self._recaller.context(asked, max_tokens, self._counter.for_one_text())

    # -- consolidating -------------------------------------------------------------------------------------------------

    def consolidate(
        self,
        session_id: str | None = None,
        *,
        dry_run: bool = False,
        summaries: bool = False,
        until_idle: bool = False,
        progress: Callable[[SessionConsolidation], None] | None = None,
    ) -> Consolidation:
        """Do what the policies say is due, in one session or in all: summarize old windows, let fade, forget what is not kept.

        With `dry_run` nothing is written, and the answer says what would be; with `summaries` also in which words. With
        `until_idle` go on until nothing is due, summaries of summaries too. `progress` is called after each session. Nothing
        is lost or half done, whatever happens: a summary and the archiving of what it stands for are one append, and
        `restore` undoes it. What fails is tried again later, and then set aside: see `parked`.

        Without a session, it does nothing while another worker is at it, and says so in `.stopped`.

        Raises:
            InvalidQuery: an argument makes no sense.
            Contended: others kept writing to the session; what was done so far stands.
        """
        self._check()
        from memfold.consolidator.running import Ask

        ask = Ask(
            dry_run=validation.flag("dry_run", dry_run),
            with_summaries=validation.flag("summaries", summaries),
            until_idle=validation.flag("until_idle", until_idle),
            go_on=lambda: not self._closed,
            progress=validation.callback("progress", progress) or (lambda _: None),
        )
        return self._consolidating.run(None if session_id is None else validation.session(session_id), ask)

    def set_policy(
        self, policy: Policy | Mapping[str, Any] | None, *, session_id: str | None = None, category: str | None = None
    ) -> None:
        """Set what the consolidator may do: in the whole tenant, with memories of a category, or in a session.

        `policy` is a `Policy`, or what JSON makes of one: {"windows": {"older_than": "P7D"}}. What it leaves out is inherited;
        None takes it away again. It is an event, as everything is.

        Raises:
            PolicyError: it makes no sense; `path` leads to the fault.
        """
        self._check()
        self._consolidating.set_policy(policy, _asked("session_id", session_id), _asked("category", category))

    def policy(self, *, session_id: str | None = None, category: str | None = None) -> Effective:
        """What holds for memories of a category in a session, after everything that is inherited.

        Raises:
            PolicyError: there is no such session.
        """
        self._check()
        return self._consolidating.policy(_asked("session_id", session_id), _asked("category", category))

    def policies(self) -> dict[str, Any]:
        """Every policy that was set: "tenant" (or None), "categories" and "sessions", by name."""
        self._check()
        return self._consolidating.policies()

    def parked(self) -> list[ParkedWork]:
        """What failed so often that it was set aside, or waits for another try, oldest first."""
        self._check()
        return self._consolidating.parked()

    def retry_parked(self) -> int:
        """Let everything that was set aside be tried again by the next `consolidate`; return how many things that is."""
        self._check()
        return self._consolidating.retry_parked()

    def work(self, jobs: Mapping[str, Any] | None = None, *, stop: "Stop | None" = None) -> None:
        """Do the work behind the log on schedule, in this thread, until `stop` is set or the store closes.

        `jobs` says how often each job runs, where not as usual: {"consolidate": "5m", "embed": 10, "directory": None}. That is
        seconds, a timedelta, an interval such as "60s", a cron expression such as "0 3 * * *" in this machine's time zone, or
        None for never. Any number of processes may work: each job is done by one of them at a time, and taken over from one
        that dies. A job that fails is tried again at its next tick, and `status` says why. When told to stop, it finishes the
        step at hand. `stop` is a `threading.Event`, or anything with `is_set()`.

        Raises:
            SettingsError: there is no such job, or that is no schedule.
        """
        self._check()
        self._working.run(jobs, stop)

    def _end_work(self) -> None:
        if "_working" in self.__dict__:
            self._working.close()

    def status(self) -> WorkStatus:
        """How the work behind the log fares: by job, what is due, when it ran and runs next, why it failed; what was spent."""
        self._check()
        return self._working.status(self._consolidating)

    @cached_property
    def _consolidating(self) -> "Consolidating":
        from memfold.api.consolidating import Consolidating  # it is imported by those alone who use it

        return Consolidating(self._parts())

    @cached_property
    def _working(self) -> "Working":
        from memfold.api.working import Working

        working = Working(self._parts(), self._follower)
        self._enders.insert(0, working.close)
        return working

    def _parts(self) -> "Parts":
        from memfold.api.consolidating import Parts

        return Parts(
            self._database,
            self._keyring,
            self._views,
            self._committer,
            self._forgetter,
            self._settings,
            environment(),
            self._counter.one,
            self._clock,
            self._summarizer,
        )

    # -- summaries -----------------------------------------------------------------------------------------------------

    def sources(self, memory_id: str, *, query: str | None = None, limit: int | None = None) -> list[Memory]:
        """The memories a summary was made from, archived or not, in reading order; of any other memory none.

        With a `query`, best first, as `recall` ranks them; with a `limit`, so many at most.

        Raises:
            MemoryNotFound, MemoryForgotten: there is no such memory, or no longer.
            InvalidQuery: an argument makes no sense.
        """
        self._check()
        limit = 10_000 if limit is None else validation.limit(limit)
        query = None if query is None else validation.query(query)
        with self._lookup.view_of(memory_id) as view:
            found, session_id = lineage.sources_of(view, memory_id), view.session_id
        if query is None or not found:
            return [kept.memory for kept in found[:limit]]
        asked = self._asked(query, session_scope(session_id, archived=True), lineage.rows_among(found), 0.0, 10.0)
        return [hit.memory for hit in self._recaller.recall(asked._replace(limit=limit))]

    def derived_from(self, memory_id: str) -> list[Memory]:
        """The summaries that were made from a memory directly, oldest first; none if none was.

        Raises:
            MemoryNotFound, MemoryForgotten: there is no such memory, or no longer.
        """
        self._check()
        with self._lookup.view_of(memory_id) as view:
            return [kept.memory for kept in lineage.derived_from(view, memory_id)]

    def restore(self, memory_ids: str | Iterable[str]) -> list[Memory]:
        """Bring archived memories back into recall; return those that came back. One event a session does it.

        A summary that is not archived itself is undone: everything it stands for comes back, and it goes, with every summary
        made from it. What else is not archived stays as it is. For the consolidator, what came back is as old as its return.

        Raises:
            MemoryNotFound, MemoryForgotten: there is no such memory, or no longer; nothing was restored.
            Contended: others kept changing the session.
        """
        self._check()
        return self._restorer(validation.memory_ids(memory_ids))

    def history(self, memory_id: str) -> list[Change]:
        """Every version of a memory, first to last; of a forgotten one the changes without content.

        Raises:
            MemoryNotFound: no memory ever had this id.
        """
        self._check()
        with self._lookup.view_of(memory_id) as view:
            changes = view.table.history(lookup.id_bytes(memory_id))
        if not changes:
            raise MemoryNotFound(memory_id)
        return changes

    def sessions(self, user_id: str | None = None, *, limit: int = 100, cursor: str | None = None) -> SessionPage:
        """A page of sessions, newest first, of one user or of everybody."""
        self._check()
        if user_id is not None:
            validation.asked_name("user_id", user_id)
        limit = validation.limit(limit)
        session_place(cursor)
        return self._catalog.sessions(user_id, limit, cursor)

    def stats(self, session_id: str | None = None, *, days: int = 0, details: bool = False) -> Stats:
        """Counts of a session, or of the whole tenant; with its growth in the last `days`, today included.

        With `details`, a session is folded to say what it holds by category, and which limits are near.
        """
        self._check()
        session_id = None if session_id is None else validation.session(session_id)
        since = self._clock() - timedelta(days=days) if validation.days(days) else None
        details = validation.flag("details", details)
        return self._consolidating.statistics(self._catalog.stats(session_id), session_id, since=since, details=details)

    def events(self, after: int = 0, *, session_id: str | None = None) -> Iterator[StoredEvent]:
        """The log behind position `after`, in order, up to what is settled at the time of the call.

        Ask again with the last position you saw to go on: no event is missed and none comes twice. Erased events come
        with `data=None`.
        """
        self._check()
        if isinstance(after, bool) or not isinstance(after, int) or not 0 <= after < 2**63:
            raise InvalidQuery("after", "must be a position: 0, or one that an event had")
        return self._catalog.events(after, None if session_id is None else validation.session(session_id))

    def _asked(self, query: str, scope: Scope, where: Condition, min_score: float, wait_s: float) -> Asked:
        return Asked(validation.query(query), scope, where, 0, validation.score(min_score), validation.wait(wait_s))

    def _scope(
        self,
        session_id: str | None,
        session_ids: Iterable[str] | None,
        user_id: str | None,
        as_of: AsOf | None,
        *,
        include_archived: bool = False,
    ) -> Scope:
        named = validation.scope(session_id, session_ids, user_id)
        return Scope(*named, self._as_of(as_of), archived=validation.flag("include_archived", include_archived))

    def _as_of(self, as_of: AsOf | None) -> AsOf | None:
        moment = validation.as_of(as_of, self._clock())
        if isinstance(moment, int) and moment > self._views.newest_position():
            raise InvalidQuery("as_of", "is a position that the log has not reached: give one that an event had")
        return moment

    def _restriction(self, where: Where | None, before: datetime | None, after: datetime | None) -> Condition:
        times = time_range(validation.bound("before", before), validation.bound("after", after))
        return both(compile_filter(where or {}), times)

    def _check(self) -> None:
        if os.getpid() != self._pid:
            raise ForkedStore(self._pid)
        if self._closed:
            raise StoreClosed


def _asked(argument: str, name: str | None) -> str | None:
    return None if name is None else validation.asked_name(argument, name)


def _deadline(wait_s: object) -> float:
    return monotonic() + validation.wait(wait_s)


def _let_go(enders: list[Callable[[], None]], release: Callable[[], None]) -> None:
    for end in enders:
        end()
    release()


def _names(session_id: str, user_id: str | None, idempotency_key: str | None) -> tuple[str, str | None, str | None]:
    return (
        validation.name("session_id", session_id),
        None if user_id is None else validation.name("user_id", user_id),
        None if idempotency_key is None else validation.name("idempotency_key", idempotency_key),
    )
