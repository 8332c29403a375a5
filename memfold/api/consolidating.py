"""The consolidator of one store. It is put together when first asked for: who only remembers and recalls does not pay."""

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import cached_property
from typing import Any, NamedTuple

from memfold import rules
from memfold.api.statistics import Statistics
from memfold.audit.erasure import Forgetter
from memfold.consolidator.consolidator import Consolidator
from memfold.consolidator.extractive import ExtractiveSummarizer
from memfold.consolidator.limits import UserLimits
from memfold.consolidator.llm import from_environment
from memfold.consolidator.policybook import PolicyBook
from memfold.consolidator.running import Ask, Progress, Runner
from memfold.consolidator.spending import caps_of
from memfold.consolidator.summarizer import Summarizer
from memfold.embedding import Encoder
from memfold.errors import PolicyError, SettingsError
from memfold.eventstore.append import Committer
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring
from memfold.eventstore.parking import Parked
from memfold.minilm import static_embedder
from memfold.model import Consolidation, ParkedWork
from memfold.policies import Effective, Policy
from memfold.projections.directory import CONSOLIDATE, Directory
from memfold.projections.fold import memory_id_text
from memfold.projections.projector import Projector
from memfold.projections.views import Views
from memfold.settings import Environment, Settings

CONNECTIONS = 5  # of a run, beside those that append


class Parts(NamedTuple):
    """What of a store the consolidator works with."""

    database: Database
    keyring: Keyring
    views: Views
    committer: Committer
    forgetter: Forgetter
    settings: Settings
    environment: Environment
    count: Callable[[str], int]
    clock: Callable[[], datetime]
    summarizer: Summarizer | None


class Consolidating:
    """Policies, runs and what was set aside."""

    def __init__(self, parts: Parts) -> None:
        database, keyring, clock = parts.database, parts.keyring, parts.clock
        self._parts = parts
        self._keyring = keyring
        self._clock = clock
        self.book = PolicyBook(database, keyring, parts.committer, clock=clock)
        self.directory = Directory(database, keyring.tenant)
        self.projector = Projector(database, keyring, self.directory, clock=clock)
        self.statistics = Statistics(
            database,
            keyring,
            parts.views,
            self.directory,
            self.projector,
            book=self.book,
            may_catch_up=has_room(parts.settings),
        )

    @cached_property
    def summarizer(self) -> Summarizer:
        """Who summarizes. Counts and policies do without, so that one who is set up wrongly does not stand in their way.

        Raises:
            SettingsError: the language model that the environment names is unusable.
        """
        return summarizer_of(self._parts)

    @cached_property
    def runner(self) -> Runner:
        """Who does what is due. Raises as `summarizer`."""
        parts = self._parts
        consolidator = Consolidator(
            *(parts.database, parts.keyring, parts.views, parts.committer, parts.forgetter),
            book=self.book,
            summarizer=self.summarizer,
            count=parts.count,
            clock=parts.clock,
            retries_max=parts.settings.retries_max,
        )
        limits = UserLimits(parts.keyring, self.directory, parts.forgetter, self.book, consolidator.look)
        return Runner(
            *(parts.database, parts.keyring, consolidator, self.directory, self.projector),
            limits=limits,
            book=self.book,
            caps=caps_of(parts.settings),
            clock=parts.clock,
        )

    # -- policies ------------------------------------------------------------------------------------------------------

    def set_policy(self, policy: Policy | Mapping[str, Any] | None, session_id: str | None, category: str | None) -> None:
        """Set a policy, or with None take it away.

        Raises:
            PolicyError: it makes no sense, or there is no such session.
        """
        if session_id is not None and category is not None:
            raise PolicyError("category", "and session_id are both given: a policy is of one of them, or of the tenant")
        owner: rules.Owner = "session" if session_id is not None else "category" if category is not None else "tenant"
        checked = None if policy is None else rules.policy(policy, owner)
        stream = None if session_id is None else self._stream(session_id)
        self.book.write(checked, stream=stream, category=category)

    def policy(self, session_id: str | None, category: str | None) -> Effective:
        """What holds for memories of a category in a session.

        Raises:
            PolicyError: there is no such session.
        """
        book = self.book.read()
        stream = b"" if session_id is None else self._stream(session_id)
        return book.of(stream).of(category)

    def policies(self) -> dict[str, Any]:
        """Everything that was set: of the tenant, by category and by session."""
        book = self.book.read()
        streams = {bytes.fromhex(text.replace("-", "")): policy for text, policy in book.sessions.items()}
        refs = self._keyring.sessions_of_streams(set(streams))
        sessions = {refs[stream].session_id: policy for stream, policy in streams.items() if stream in refs}
        return {"tenant": book.tenant, "categories": dict(book.categories), "sessions": sessions}

    def _stream(self, session_id: str) -> bytes:
        ref = self._keyring.find_session(session_id)
        if ref is None:
            raise PolicyError("session_id", "names no session: remember something in it first")
        return ref.stream

    # -- runs ----------------------------------------------------------------------------------------------------------

    def run(self, session_id: str | None, ask: Ask) -> Consolidation:
        """Do what is due, in one session or anywhere.

        Raises:
            SettingsError: this process may not hold enough database connections for it.
        """
        if not has_room(self._parts.settings):
            least = self._parts.settings.append_connections + CONNECTIONS
            raise SettingsError("pool_connections_max", f"leaves too few for the consolidator: give {least} or more")
        return self.runner.due(ask) if session_id is None else self.runner.session(session_id, ask)

    def parked(self) -> list[ParkedWork]:
        """What was set aside, by the directory and by runs, oldest first."""
        found = self.directory.parked(None)
        refs = self._keyring.sessions_of_streams({each.stream for each in found})
        return [as_work(each, refs[each.stream].session_id) for each in found if each.stream in refs]

    def retry_parked(self) -> int:
        """Let everything that was set aside be tried again; return how many things that is."""
        found, now = self.directory.parked(), self._clock()
        for each in found:
            self.directory.unpark(each.stream, each.key)
            self.directory.park(each.stream, each.key, reason=each.reason, at=now, next_at=now)
        return len(found) + self.projector.retry_parked()


def has_room(settings: Settings) -> bool:
    """Whether a run has its connections beside those that append: each worker's turn, the projector, and readers."""
    return settings.pool_connections_max >= settings.append_connections + CONNECTIONS


def as_work(each: Parked, session_id: str) -> ParkedWork:
    """What was set aside, as callers see it."""
    return ParkedWork(
        job="consolidate" if each.job == CONSOLIDATE else each.job,
        session_id=session_id,
        stream_id=memory_id_text(each.stream),
        reason=each.reason,
        attempts=each.attempts,
        first_at=each.first_at,
        next_at=each.next_at,
    )


def summarizer_of(parts: Parts) -> Summarizer:
    """The summarizer that was given, else the language model that is configured, else the extractive one."""
    given = parts.summarizer
    if given is None:
        configured = from_environment(parts.environment, parts.settings)
        return configured or ExtractiveSummarizer(Encoder(static_embedder()), parts.count)
    return given


__all__ = ["Ask", "Consolidating", "Parts", "Progress"]
