"""What the consolidator sees of a session: its memories as candidates, and, of those that are chosen, their words and keys."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from memfold.consolidator.candidates import Candidate
from memfold.consolidator.summarizer import Source
from memfold.eventstore.binding import EventKey
from memfold.projections.lineage import Lineage
from memfold.projections.rows import Kept
from memfold.projections.view import View

COUNTED_MAX = 200_000  # token counts that are kept


class Seen(NamedTuple):
    """A session as it stood at `version` of its stream: its candidates in order, and the version at which each was archived
    or brought back last, if it was."""

    session_id: str
    stream: bytes
    version: int
    candidates: list[Candidate]
    touched: dict[bytes, int]


class Eye:
    """Looks at views; counts the tokens of every text once."""

    def __init__(self, tenant: int, count: Callable[[str], int]) -> None:
        self._tenant = tenant
        self._count = count
        self._counted: dict[bytes, int] = {}

    def look(self, view: View, *, count_all: bool = False) -> Seen:
        """Everything of a session, in order. Archived memories are of 0 tokens, but with `count_all`."""
        lineage = view.summarized(view.stream) or Lineage()
        found = view.table.everything()
        candidates = [self._candidate(view, kept, memory_id, lineage, count_all) for memory_id, kept in found]
        touched = {memory_id: lineage.changed_at(memory_id) for memory_id, _ in found}
        return Seen(view.session_id, view.stream, view.version, candidates, touched)

    def sources(
        self, view: View, chosen: Sequence[Candidate], *, also_archived: bool = False
    ) -> tuple[list[Source], list[EventKey]] | None:
        """The words of chosen candidates, and the keys to bind their summary to.

        None: one of them is no longer as it was chosen: gone, changed, or, unless `also_archived`, archived by somebody else.
        """
        sources, opened = [], []
        for candidate in chosen:
            kept = view.table.current(candidate.memory_id)
            event = kept and view.event_key(kept.row, self._tenant)
            if not kept or not event or event.event_id != candidate.event_id:
                return None
            if kept.memory.status != "active" and not also_archived:
                return None
            memory = kept.memory
            sources.append(Source(memory.id, memory.content, memory.speaker, memory.occurred_at))
            opened.append(event)
        return sources, opened

    def _candidate(self, view: View, kept: Kept, memory_id: bytes, lineage: Lineage, count_all: bool) -> Candidate:
        memory, event_id = kept.memory, view.event_id(kept.row)
        is_archived = memory.status == "archived"
        touched = lineage.touched.get(memory_id)
        return Candidate(
            memory_id=memory_id,
            event_id=event_id,
            since=touched.at if touched else memory.created_at,
            tokens=0 if is_archived and not count_all else self._tokens(event_id, memory.content),
            size_bytes=len(memory.content.encode()),
            importance=memory.importance,
            category=memory.category,
            tags=memory.tags,
            level=lineage.level(memory_id),
            occurred_at=memory.occurred_at,
            remembered_at=memory.created_at,
            refreshed_at=lineage.refreshed.get(memory_id),
            archived=is_archived,
            made_from=lineage.sources(memory_id),
        )

    def _tokens(self, event_id: bytes, text: str) -> int:
        if event_id not in self._counted:
            if len(self._counted) >= COUNTED_MAX:
                self._counted.clear()
            self._counted[event_id] = self._count(text)
        return self._counted[event_id]
