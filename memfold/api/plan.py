"""What is to be appended of things that may have been said before. Pure: nothing here reads or writes."""

from collections.abc import Sequence
from datetime import datetime

from memfold.events import MemoryMerged, MemoryRemembered
from memfold.eventstore.codec import new_id
from memfold.eventstore.keyring import SessionRef
from memfold.model import Memory
from memfold.projections import fold
from memfold.projections.lookup import id_bytes


class Plan:
    """What is to be appended of some events, of which some were said before, and what their memories are then.

    `firsts` says of each event which of them said it first, `known` which memory of the session does already.
    """

    def __init__(
        self, events: Sequence[MemoryRemembered], firsts: Sequence[int], known: Sequence[Memory | None], *, merge: bool
    ) -> None:
        self._known = [known[place] or known[first] for place, first in enumerate(firsts)]
        self._ids = [id_bytes(memory.id) if memory else b"" for memory in self._known]
        self.facts: list[tuple[bytes, MemoryRemembered | MemoryMerged]] = []
        for place, event in enumerate(events):
            if not self._ids[place] and firsts[place] == place:
                self._ids[place] = new_id()
                self.facts.append((self._ids[place], event))
                continue
            self._ids[place] = self._ids[place] or self._ids[firsts[place]]
            if merge:
                self.facts.append((self._ids[place], as_merged(event)))

    def memories(self, ref: SessionRef, at: datetime) -> list[Memory]:
        """The memory of each event after the facts were recorded at `at`."""
        now = {id_bytes(memory.id): memory for memory in self._known if memory}
        names = {"session_id": ref.session_id, "user_id": ref.user_id}
        for memory_id, fact in self.facts:
            if isinstance(fact, MemoryMerged):
                now[memory_id] = fold.merged(now[memory_id], fact, recorded_at=at)
            else:
                now[memory_id] = fold.remembered(fact, memory_id=memory_id, recorded_at=at, **names)
        return [now[memory_id] for memory_id in self._ids]


def as_merged(event: MemoryRemembered) -> MemoryMerged:
    """The same, as something that was said again."""
    return MemoryMerged(**{name: getattr(event, name) for name in event.__struct_fields__})
