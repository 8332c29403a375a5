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
    """What a fact did besides: the summaries that died of it, and the memories that came back, in order."""

    dead: list[bytes]
    active: list[bytes]


class Lineage:
    """The living summaries of a session, and what is archived. Ids are of memories; a summary is one."""

    def __init__(self) -> None:
        self.sources: dict[bytes, tuple[bytes, ...]] = {}  # of each living summary
        self.touched: dict[bytes, tuple[datetime, int]] = {}  # when memories came back or were refreshed, and at which version
        self._archived: dict[bytes, set[bytes]] = {}  # of each archived memory what keeps it so

    def is_archived(self, memory_id: bytes) -> bool:
        """Whether a memory is out of default recall."""
        return memory_id in self._archived

    def archived(self) -> set[bytes]:
        """Everything that is archived."""
        return set(self._archived)

    def derived_from(self, memory_id: bytes) -> list[bytes]:
        """The living summaries that were made from a memory directly."""
        return [summary for summary, sources in self.sources.items() if memory_id in sources]

    def compress(self, summary: bytes, sources: Sequence[bytes]) -> None:
        """A summary of some memories came to be."""
        self.sources[summary] = tuple(sources)

    def archive(self, memory_ids: Iterable[bytes], summary: bytes | None) -> list[bytes]:
        """Memories are archived; return those that were not. Nothing is, if `summary` is no living one."""
        if summary is not None and summary not in self.sources:
            return []
        new = []
        for memory_id in memory_ids:
            if memory_id not in self._archived:
                new.append(memory_id)
            self._archived.setdefault(memory_id, set()).add(FADED if summary is None else summary)
        return new

    def restore(self, memory_ids: Iterable[bytes], at: datetime, version: int) -> Changed:
        """Memories come back, whatever kept them archived; summaries among them are undone."""
        changed = Changed([], [])
        for memory_id in memory_ids:
            if memory_id in self.sources:
                self._kill(memory_id, changed)
            elif self._archived.pop(memory_id, None):
                changed.active.append(memory_id)
        self.touched |= {memory_id: (at, version) for memory_id in (*changed.active, *changed.dead)}
        return changed

    def refresh(self, memory_ids: Iterable[bytes], at: datetime, version: int) -> None:
        """The age of memories counts from here."""
        self.touched |= {memory_id: (at, version) for memory_id in memory_ids}

    def forget(self, memory_id: bytes) -> Changed:
        """A memory is gone, and every summary that was made from it, at any depth."""
        changed = Changed([], [])
        self._archived.pop(memory_id, None)
        self.touched.pop(memory_id, None)
        if memory_id in self.sources:
            self._kill(memory_id, changed)
            changed.dead.remove(memory_id)  # it is known to be gone
        else:
            self._kill_all(self.derived_from(memory_id), changed)
        return changed

    def _kill_all(self, summaries: Iterable[bytes], changed: Changed) -> None:
        for summary in summaries:
            if summary in self.sources:
                self._kill(summary, changed)

    def _kill(self, summary: bytes, changed: Changed) -> None:
        above = self.derived_from(summary)
        sources = self.sources.pop(summary)
        changed.dead.append(summary)
        self._archived.pop(summary, None)
        if summary in changed.active:
            changed.active.remove(summary)
        self._kill_all(above, changed)
        for memory_id in sources:
            reasons = self._archived.get(memory_id)
            if reasons:
                reasons.discard(summary)
                if not reasons:
                    del self._archived[memory_id]
                    changed.active.append(memory_id)
