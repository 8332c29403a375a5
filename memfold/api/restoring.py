"""Restoring, and refreshing: facts about several memories, one a session."""

from collections.abc import Callable, Sequence
from datetime import datetime

from memfold.errors import Contended
from memfold.events import MemoriesRefreshed, MemoriesRestored
from memfold.eventstore.append import Committer, Verdict
from memfold.eventstore.facts import fact_of_many
from memfold.eventstore.keyring import Keyring
from memfold.model import Memory
from memfold.projections.fold import memory_id_text
from memfold.projections.lookup import Lookup
from memfold.projections.summaries import to_restore
from memfold.projections.views import Views


class Restorer:
    """Appends that memories were restored, or were of use."""

    def __init__(
        self,
        keyring: Keyring,
        committer: Committer,
        lookup: Lookup,
        views: Views,
        *,
        clock: Callable[[], datetime],
        retries_max: int,
    ) -> None:
        self._keyring = keyring
        self._committer = committer
        self._lookup = lookup
        self._views = views
        self._clock = clock
        self._retries_max = retries_max

    def __call__(self, memory_ids: Sequence[str]) -> list[Memory]:
        """Restore memories, of whatever sessions; return those that are active again and were not, session by session.

        Raises:
            MemoryNotFound, MemoryForgotten: one of them is not there; nothing was appended.
            Contended: others kept changing a session.
        """
        by_session: dict[str, list[str]] = {}
        for memory_id in dict.fromkeys(memory_ids):
            with self._lookup.view_of(memory_id) as view:
                to_restore(view, [memory_id])
                by_session.setdefault(view.session_id, []).append(memory_id)
        return [memory for session_id, ids in by_session.items() for memory in self._restore(session_id, ids)]

    def refresh(self, memories: Sequence[Memory]) -> None:
        """Say that memories were of use. A session that was forgotten meanwhile is passed over."""
        for session_id in dict.fromkeys(memory.session_id for memory in memories):
            ref = self._keyring.find_session(session_id)
            fact = MemoriesRefreshed(memory_ids=tuple(memory.id for memory in memories if memory.session_id == session_id))
            if ref:
                self._committer.append(fact_of_many(self._keyring.tenant, ref, fact, self._clock()))

    def _restore(self, session_id: str, memory_ids: Sequence[str]) -> list[Memory]:
        for _ in range(self._retries_max):
            with self._lookup.view_of(memory_ids[0]) as view:
                back, undone = to_restore(view, memory_ids)
                stream, version, archived = view.stream, view.version, view.lineage(view.stream).archived()
            if not back:
                return []
            ref = self._keyring.find_session(session_id)
            if ref is None or ref.stream != stream:
                continue  # the session was forgotten: the next look says so
            fact = MemoriesRestored(memory_ids=tuple(map(memory_id_text, back)), undone=tuple(map(memory_id_text, undone)))
            answer = self._committer.append(fact_of_many(self._keyring.tenant, ref, fact, self._clock(), decided_at=version))
            if answer.verdict is Verdict.ACCEPTED:
                return self._came_back(session_id, stream, archived)
            if answer.verdict is not Verdict.CONFLICT:
                self._keyring.drop(session_id)
        raise Contended(self._retries_max)

    def _came_back(self, session_id: str, stream: bytes, archived: set[bytes]) -> list[Memory]:
        with self._views.session(session_id) as view:
            now = view.lineage(stream).archived() if view else archived
            found = [kept for kept in map(view.table.current, archived - now) if kept] if view else []
        return [kept.memory for kept in sorted(found, key=lambda kept: kept.row)]
