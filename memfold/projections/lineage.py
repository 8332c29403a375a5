"""Which memories a summary stands for, what is archived therefore, and what comes back when a summary dies.

Pure: a fold of the facts of one session, shared by the views and by the durable directory. A summary dies when it, or
anything it was made from at any depth, is forgotten or undone; then everything it stood for comes back, unless something
else keeps it archived.
"""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import NamedTuple

FADED = b""  # what keeps a memory archived that no summary stands for


class Changed(NamedTuple):
    """What a fact did besides: the summaries that died of it, and the memories that came back, in order.

    Of a forget, `dead` holds also those that had been undone before: nothing of them may be read any more.
    """

    dead: list[bytes]
    active: list[bytes]


class Touched(NamedTuple):
    """When a memory was restored last, and at which version of the stream."""

    at: datetime
    version: int


class Lineage:
    """The summaries of a session, and what is archived. Ids are of memories; a summary is one."""

    def __init__(self) -> None:
        self.touched: dict[bytes, Touched] = {}
        self.refreshed: dict[bytes, datetime] = {}
        self.archived_at: dict[bytes, int] = {}  # at which version last, also by a summary that is no more
        self._made_from: dict[bytes, tuple[bytes, ...]] = {}  # of each summary, also of those that were undone
        self._living: set[bytes] = set()
        self._archived: dict[bytes, set[bytes]] = {}  # of each archived memory what keeps it so

    def is_archived(self, memory_id: bytes) -> bool:
        """Whether a memory is out of default recall."""
        return memory_id in self._archived

    def archived(self) -> set[bytes]:
        """Everything that is out of default recall."""
        return set(self._archived)

    def changed_at(self, memory_id: bytes) -> int:
        """At which version of the stream a memory was archived or brought back last; 0: never."""
        touched = self.touched.get(memory_id)
        return max(self.archived_at.get(memory_id, 0), touched.version if touched else 0)

    def is_summary(self, memory_id: bytes) -> bool:
        """Whether this is a living summary."""
        return memory_id in self._living

    def sources(self, summary: bytes) -> tuple[bytes, ...]:
        """What a living summary was made from; empty if it is none."""
        return self._made_from[summary] if summary in self._living else ()

    def leaves(self, summary: bytes) -> list[bytes]:
        """What was remembered that a living summary tells of, all the way down, each once; empty if it is none."""
        found: dict[bytes, None] = {}
        for source in self.sources(summary):
            found |= dict.fromkeys(self.leaves(source) or [source])
        return list(found)

    def derived_from(self, memory_id: bytes) -> list[bytes]:
        """The living summaries that were made from a memory directly."""
        return [summary for summary in self._all_from(memory_id) if summary in self._living]

    def above(self, summary: bytes) -> list[bytes]:
        """The living summaries that were made from a living summary, at any height."""
        found = self.derived_from(summary)
        for each in found:
            found += [other for other in self.derived_from(each) if other not in found]
        return found

    def level(self, memory_id: bytes) -> int:
        """How many times what a memory says was summarized; 0 for what was remembered."""
        sources = self.sources(memory_id)
        return 1 + max(map(self.level, sources)) if sources else 0

    def compress(self, summary: bytes, sources: Sequence[bytes]) -> None:
        """A summary of some memories came to be."""
        self._made_from[summary] = tuple(sources)
        self._living.add(summary)

    def archive(self, memory_ids: Iterable[bytes], summary: bytes | None, version: int = 0) -> list[bytes]:
        """Memories are archived; return those that were not. Nothing is, if `summary` is no living one."""
        memory_ids = list(memory_ids)
        self.archived_at |= dict.fromkeys(memory_ids, version)
        if summary is not None and summary not in self._living:
            return []
        new = []
        for memory_id in memory_ids:
            if memory_id not in self._archived:
                new.append(memory_id)
            self._archived.setdefault(memory_id, set()).add(FADED if summary is None else summary)
        return new

    def restore(self, memory_ids: Sequence[bytes], undone: Iterable[bytes], at: datetime, version: int) -> Changed:
        """Summaries are undone, and memories come back, whatever kept them archived."""
        changed = Changed([], [])
        for summary in undone:
            if summary in self._living:
                self._kill(summary, changed)
        for memory_id in memory_ids:
            if self._archived.pop(memory_id, None):
                changed.active.append(memory_id)
        self.touched |= dict.fromkeys((*memory_ids, *changed.active), Touched(at, version))
        return changed

    def refresh(self, memory_ids: Iterable[bytes], at: datetime) -> None:
        """Memories were of use."""
        self.refreshed |= dict.fromkeys(memory_ids, at)

    def forget(self, memory_id: bytes) -> Changed:
        """A memory is gone, and every summary that was made from it, at any depth."""
        changed = Changed([], [])
        unreadable = [memory_id]
        for gone in unreadable:
            unreadable += [summary for summary in self._all_from(gone) if summary not in unreadable]
        if memory_id in self._living:
            self._kill(memory_id, changed)
        for summary in unreadable[1:]:
            if summary in self._living:
                self._kill(summary, changed)
        for gone in unreadable:
            self._made_from.pop(gone, None)
            self._archived.pop(gone, None)
            self.touched.pop(gone, None)
            self.refreshed.pop(gone, None)
            self.archived_at.pop(gone, None)
        return Changed(unreadable[1:] + [each for each in changed.dead if each not in unreadable], changed.active)

    def _all_from(self, memory_id: bytes) -> list[bytes]:
        return [summary for summary, sources in self._made_from.items() if memory_id in sources]

    def _kill(self, summary: bytes, changed: Changed) -> None:
        """A living summary dies, and so does what was made from it; what they stood for comes back."""
        self._living.discard(summary)
        self._archived.pop(summary, None)
        changed.dead.append(summary)
        for above in self.derived_from(summary):
            if above in self._living:
                self._kill(above, changed)
        for memory_id in self._made_from[summary]:
            reasons = self._archived.get(memory_id, set())
            reasons.discard(summary)
            if memory_id in self._archived and not reasons:
                del self._archived[memory_id]
                changed.active.append(memory_id)
