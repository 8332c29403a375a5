"""The consolidator: looks at a session, summarizes what is old, lets fade what nobody needs, forgets what may not be kept.

Everything it does is a decision of pure code about what it saw at one version of the session's stream, and enters the log by
an append that fails if the session has moved on. Then it looks again: if no source was touched, the same summary is appended
at the new version without asking the summarizer twice; else it is dropped. A summary is made outside any transaction and
holding nothing. An idempotency key lets two workers that made the same window append it once.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import NamedTuple

from memfold.audit.erasure import Forgetter
from memfold.consolidator import fading, windows
from memfold.consolidator.appending import append_summary
from memfold.consolidator.candidates import Candidate
from memfold.consolidator.limits import REASON
from memfold.consolidator.looking import Eye, Seen
from memfold.consolidator.policybook import PolicyBook
from memfold.consolidator.spending import Spending
from memfold.consolidator.summarizer import Source, Summarizer, Summary, Usage, Window, cleaned
from memfold.consolidator.windows import Chosen
from memfold.errors import Contended, SummarizerFailed
from memfold.events import MemoriesArchived, WindowCompressed
from memfold.eventstore.append import Committer, Verdict
from memfold.eventstore.database import Database
from memfold.eventstore.facts import fact_of_many
from memfold.eventstore.keyring import Keyring, SessionRef
from memfold.model import CompressedWindow, FailedWindow, SessionConsolidation
from memfold.policies import Policies
from memfold.projections.fold import memory_id_text
from memfold.projections.views import Views

logger = logging.getLogger("memfold")


class Turn(NamedTuple):
    """What one look at a session is done with: its policies, their version, the time, and whether anything is appended.

    If nothing is, `gone` and `faded` are what would be no more by now.
    """

    policies: Policies
    policy_version: int
    now: datetime
    dry_run: bool
    with_summaries: bool
    gone: tuple[bytes, ...] = ()
    faded: tuple[bytes, ...] = ()


class Consolidator:
    """Consolidates the sessions of one tenant, one at a time."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        views: Views,
        committer: Committer,
        forgetter: Forgetter,
        *,
        book: PolicyBook,
        summarizer: Summarizer,
        count: Callable[[str], int],
        clock: Callable[[], datetime],
        retries_max: int,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._views = views
        self._committer = committer
        self._forgetter = forgetter
        self._book = book
        self._summarizer = summarizer
        self._count = count
        self._clock = clock
        self._retries_max = retries_max
        self._eye = Eye(keyring.tenant, count)

    def session(
        self,
        session_id: str,
        spending: Spending,
        *,
        passed_over: Callable[[str], bool],
        dry_run: bool = False,
        with_summaries: bool = False,
    ) -> SessionConsolidation | None:
        """Do for one session what is due, or with `dry_run` say what would be done; None if there is no such session.

        Windows whose key `passed_over` names are left alone.

        Raises:
            Contended: others kept writing to the session; what was done so far stands.
        """
        book = self._book.read()
        seen = self.look(session_id)
        if seen is None:
            return None
        turn = Turn(book.of(seen.stream), book.version, self._clock(), dry_run, with_summaries)
        expired = self._expire(session_id, turn)
        turn = turn._replace(gone=expired)
        faded = self._fade(session_id, turn)
        made, failed, stopped = self._compress(session_id, turn._replace(faded=faded), spending, passed_over)
        rest = self.look(session_id) or seen
        return SessionConsolidation(
            session_id=session_id,
            stream_id=memory_id_text(seen.stream),
            version=rest.version,
            policy_version=book.version,
            memories=sum(each.level == 0 for each in rest.candidates),
            windows=tuple(made),
            failed=tuple(failed),
            faded=_texts(faded),
            expired=_texts(expired),
            near_limits=tuple(
                near.limit for near in fading.near_limits(fading.usage(rest.candidates), turn.policies.of(None).retention)
            ),
            due_at=due_at(rest.candidates, turn.policies, turn.now),
            stopped=stopped,
        )

    def look(self, session_id: str) -> Seen | None:
        """A session as it stands."""
        with self._views.session(session_id) as view:
            return self._eye.look(view) if view else None

    def _look_ahead(self, session_id: str, turn: Turn) -> Seen | None:
        """A session as it stands; in a dry run as it would."""
        with self._views.session(session_id) as view:
            seen = self._eye.look(view, count_all=turn.dry_run) if view else None
        if seen is None or not turn.dry_run:
            return seen
        return seen._replace(candidates=fading.without(seen.candidates, turn.gone, turn.faded))

    # -- windows -------------------------------------------------------------------------------------------------------

    def _compress(
        self, session_id: str, turn: Turn, spending: Spending, passed_over: Callable[[str], bool]
    ) -> tuple[list[CompressedWindow], list[FailedWindow], str | None]:
        made: list[CompressedWindow] = []
        failed: list[FailedWindow] = []
        for key, chosen in self._windows(session_id, turn):
            if passed_over(key):
                continue
            if not turn.dry_run and (stopped := spending.stopped()):
                return made, failed, stopped
            try:
                window = self._summarized(session_id, chosen, key, turn, spending)
            except SummarizerFailed as error:
                logger.warning("a window of %d memories was not summarized: %s", len(chosen.sources), error)
                failed.append(FailedWindow(key=key, memory_ids=_ids(chosen.sources), problem=error.problem, retry=error.retry))
                continue
            if window:
                made.append(window)
        return made, failed, None

    def _windows(self, session_id: str, turn: Turn) -> Iterator[tuple[str, Chosen]]:
        """The windows of a session, each with its key; chosen at once, and each looked at again when it is its turn."""
        seen = self._look_ahead(session_id, turn)
        for chosen in windows.choose(seen.candidates, turn.policies, turn.now) if seen else []:
            undone = max((seen.touched.get(source.memory_id, 0) for source in chosen.sources), default=0) if seen else 0
            yield windows.key([source.event_id for source in chosen.sources], turn.policy_version, undone), chosen

    def _summarized(self, session_id: str, chosen: Chosen, key: str, turn: Turn, spending: Spending) -> CompressedWindow | None:
        """Summarize a window and append it; None if it is no longer as it was chosen.

        Raises:
            SummarizerFailed: the summarizer did.
        """
        sources = self._sources(session_id, chosen.sources, turn)
        if sources is None:
            return None
        if turn.dry_run and not turn.with_summaries:
            return _told(chosen, None, None, None)
        summary = self._asked(Window(tuple(sources), chosen.target_tokens), spending)
        if turn.dry_run:
            return _told(chosen, summary.text, self._count(summary.text), None)
        event = self._event(sources, chosen, summary, turn)
        summary_id = self._append(session_id, chosen, event, key)
        return _told(chosen, summary.text, event.tokens_after, summary_id) if summary_id else None

    def _asked(self, window: Window, spending: Spending) -> Summary:
        name = self._summarizer.name
        try:
            answer = self._summarizer.summarize(window)
        except SummarizerFailed as error:
            if isinstance(error.usage, Usage) and error.usage.makes_sense:
                spending.record(name, error.usage)
            raise
        except Exception as error:
            raise SummarizerFailed(name, f"raised {type(error).__name__}", retry=True) from error
        if isinstance(answer, Summary) and isinstance(answer.usage, Usage) and answer.usage.makes_sense:
            spending.record(name, answer.usage)
        return cleaned(name, answer, window, self._count)

    def _sources(self, session_id: str, chosen: Sequence[Candidate], turn: Turn) -> list[Source] | None:
        with self._views.session(session_id) as view:
            found = self._eye.sources(view, chosen, also_archived=turn.dry_run) if view else None
        return found[0] if found else None

    def _event(self, sources: Sequence[Source], chosen: Chosen, summary: Summary, turn: Turn) -> WindowCompressed:
        times = [source.occurred_at for source in sources]
        return WindowCompressed(
            content=summary.text,
            sources=_ids(chosen.sources),
            occurred_at=max(times),
            started_at=min(times),
            summarizer=self._summarizer.name,
            policy=turn.policy_version,
            tokens_before=chosen.tokens,
            tokens_after=self._count(summary.text),
            importance=max(source.importance for source in chosen.sources),
            prompt_tokens=summary.usage.prompt_tokens,
            completion_tokens=summary.usage.completion_tokens,
            cost=summary.usage.cost,
        )

    def _append(self, session_id: str, chosen: Chosen, event: WindowCompressed, key: str) -> str | None:
        """Append a summary while its sources are as they were chosen; None if they no longer are, or somebody was first."""
        for _ in range(self._retries_max):
            with self._views.session(session_id) as view:
                found = self._eye.sources(view, chosen.sources) if view else None
                stream, version = (view.stream, view.version) if view else (b"", 0)
            ref = self._ref(session_id, stream)
            if found is None or ref is None:
                return None
            answer, summary_id = append_summary(
                self._database, self._keyring, ref, event=event, sources=found[1], version=version, key=key, clock=self._clock
            )
            if answer.verdict is Verdict.ACCEPTED:
                return summary_id
            if answer.verdict is Verdict.DUPLICATE:
                return None
            if answer.verdict is not Verdict.CONFLICT:
                self._keyring.drop(session_id)
        raise Contended(self._retries_max)

    def _ref(self, session_id: str, stream: bytes) -> SessionRef | None:
        """The session, if its name still leads to this stream."""
        ref = self._keyring.find_session(session_id)
        return ref if ref and ref.stream == stream else None

    # -- fading and retention ------------------------------------------------------------------------------------------

    def _fade(self, session_id: str, turn: Turn) -> tuple[bytes, ...]:
        """Archive what has faded, by one fact, decided anew whenever the session moved on meanwhile."""
        for _ in range(self._retries_max):
            seen = self._look_ahead(session_id, turn)
            faded = _keys(fading.faded(seen.candidates, turn.policies, turn.now)) if seen else ()
            ref = self._ref(session_id, seen.stream) if seen and faded else None
            if turn.dry_run or seen is None or ref is None:
                return faded
            fact = MemoriesArchived(memory_ids=_texts(faded), policy=turn.policy_version)
            request = fact_of_many(self._keyring.tenant, ref, fact, self._clock(), decided_at=seen.version)
            if self._committer.append(request).verdict is Verdict.ACCEPTED:
                return faded
            self._keyring.drop(session_id)
        raise Contended(self._retries_max)

    def _expire(self, session_id: str, turn: Turn) -> tuple[bytes, ...]:
        """Forget what has lived its time, and what is more than may be kept; decided anew if it was touched meanwhile."""
        for _ in range(self._retries_max):
            seen = self.look(session_id)
            expired = _keys(fading.expired(seen.candidates, turn.policies, turn.now)) if seen else ()
            rest = [each for each in seen.candidates if each.memory_id not in set(expired)] if seen else []
            expired += _keys(fading.beyond_limits(rest, turn.policies))
            if seen is None or not expired or turn.dry_run:
                return expired
            if self._forgetter.these(session_id, seen.stream, seen.version, expired, REASON):
                return expired
            self._keyring.drop(session_id)
        raise Contended(self._retries_max)


def due_at(candidates: Sequence[Candidate], policies: Policies, now: datetime) -> datetime | None:
    """When there is something to do next, if it is `now` and nothing more is remembered; None: never."""
    times = (
        windows.due_at(candidates, policies, now),
        fading.fades_at(candidates, policies),
        fading.expires_at(candidates, policies),
    )
    return min((at for at in times if at is not None), default=None)


def _ids(candidates: Iterable[Candidate]) -> tuple[str, ...]:
    return tuple(memory_id_text(each.memory_id) for each in candidates)


def _keys(candidates: Iterable[Candidate]) -> tuple[bytes, ...]:
    return tuple(each.memory_id for each in candidates)


def _texts(memory_ids: Iterable[bytes]) -> tuple[str, ...]:
    return tuple(map(memory_id_text, memory_ids))


def _told(chosen: Chosen, text: str | None, tokens_after: int | None, summary_id: str | None) -> CompressedWindow:
    return CompressedWindow(
        memory_ids=_ids(chosen.sources),
        level=chosen.level,
        tokens_before=chosen.tokens,
        tokens_after=chosen.target_tokens if tokens_after is None else tokens_after,
        summary_id=summary_id,
        text=text,
    )
