"""Restoring: archived memories come back, by one fact a session."""

from collections.abc import Callable, Sequence
from datetime import datetime

from memfold.errors import Contended
from memfold.events import MemoriesRestored
from memfold.eventstore.append import Committer, Request, Verdict
from memfold.eventstore.codec import seal_event
from memfold.eventstore.keyring import Keyring
from memfold.model import Memory
from memfold.projections.fold import memory_id_text
from memfold.projections.lookup import Lookup
from memfold.projections.summaries import to_restore


class Restorer:
    """Appends that memories were restored."""

    def __init__(
        self,
        keyring: Keyring,
        committer: Committer,
        lookup: Lookup,
        *,
        clock: Callable[[], datetime],
        retries_max: int,
    ) -> None:
        self._keyring = keyring
        self._committer = committer
        self._lookup = lookup
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
                to_restore(view, memory_id)
                by_session.setdefault(view.session_id, []).append(memory_id)
        return [memory for session_id, ids in by_session.items() for memory in self._restore(session_id, ids)]

    def _restore(self, session_id: str, memory_ids: Sequence[str]) -> list[Memory]:
        for _ in range(self._retries_max):
            with self._lookup.view_of(memory_ids[0]) as view:
                named = list(dict.fromkeys(each for memory_id in memory_ids for each in to_restore(view, memory_id)))
                stream, archived = view.stream, view.lineage(view.stream).archived()
            if not named:
                return []
            ref = self._keyring.open_session(session_id, None, self._clock())
            fact = MemoriesRestored(memory_ids=tuple(map(memory_id_text, named)))
            sealed = [seal_event(fact, tenant=self._keyring.tenant, stream=stream, memory_id=None, wrapping=ref.key)]
            # No decision stands behind it: whatever happened meanwhile to what is named, it is not archived after this.
            answer = self._committer.append(Request(stream, ref.user, ref.key.version, self._clock(), sealed))
            if answer.verdict is Verdict.ACCEPTED:
                return self._came_back(memory_ids[0], stream, archived)
            self._keyring.drop(session_id)
        raise Contended(self._retries_max)

    def _came_back(self, memory_id: str, stream: bytes, archived: set[bytes]) -> list[Memory]:
        with self._lookup.view_of(memory_id) as view:
            now = view.lineage(stream).archived()
            found = [kept for kept in map(view.table.current, archived - now) if kept]
        return [kept.memory for kept in sorted(found, key=lambda kept: kept.row)]
