"""From a summary down to what it was made from, and from a memory up to what was made from it, within one view."""

from memfold.errors import MemoryForgotten
from memfold.projections.filters import Condition
from memfold.projections.lookup import id_bytes, live
from memfold.projections.rows import Kept
from memfold.projections.view import View


def sources_of(view: View, memory_id: str) -> list[Kept]:
    """What a summary was made from, in reading order; none, if it is no summary. Raises as `lookup.live`."""
    live(view, memory_id)
    lineage = view.summarized(view.stream)
    return _kept(view, lineage.sources(id_bytes(memory_id)) if lineage else ())


def derived_from(view: View, memory_id: str) -> list[Kept]:
    """The summaries that were made from a memory directly, oldest first. Raises as `lookup.live`."""
    live(view, memory_id)
    lineage = view.summarized(view.stream)
    return _kept(view, lineage.derived_from(id_bytes(memory_id)) if lineage else ())


def rows_among(found: list[Kept]) -> Condition:
    """These memories and no others."""
    return Condition(f"(row IN ({', '.join('?' * len(found))}))", tuple(kept.row for kept in found))


def to_restore(view: View, memory_id: str) -> list[bytes]:
    """What is to be named to bring a memory back: itself if it is archived; if it is a summary, it and what it stands for.

    Nothing, if there is nothing to bring back. Raises as `lookup.live`.
    """
    live(view, memory_id)
    memory, lineage = id_bytes(memory_id), view.summarized(view.stream)
    if lineage is None:
        return []
    if lineage.is_summary(memory):
        return [memory, *lineage.sources(memory)]
    return [memory] if lineage.is_archived(memory) else []


def _kept(view: View, memory_ids: "tuple[bytes, ...] | list[bytes]") -> list[Kept]:
    found = [kept for kept in map(view.table.current, memory_ids) if kept]
    if len(found) < len(memory_ids):
        raise MemoryForgotten("of a summary's sources")
    return found
