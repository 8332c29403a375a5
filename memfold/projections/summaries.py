"""From a summary down to what it was made from, and from a memory up to what was made from it, within one view."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from memfold.model import Recollection
from memfold.projections.filters import Condition
from memfold.projections.lookup import id_bytes, live
from memfold.projections.rows import Kept
from memfold.projections.view import View

OPENED_MAX = 40  # of the best summaries found, a context looks at what was said
ROWS_MAX = 5_000  # and at no more of it than this
TOKENS_A_SUMMARY = 1_000  # of a context, for one summary that comes first


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


class Opened(NamedTuple):
    """What was found, its summaries opened: how many memories found are summaries, and what may go in their place.

    `rows` are what the best of the summaries tell of, as it was remembered, and what else was found.
    """

    summaries: list[Recollection]
    rows: list[Kept]


def opened(view: View, found: Sequence[Recollection]) -> Opened:
    """The summaries among memories that were found in a view, and what the best OPENED_MAX of them tell of."""
    summaries: list[Recollection] = []
    rows: dict[int, Kept] = {}
    for hit in found:
        memory_id = id_bytes(hit.memory.id)
        leaves = view.leaves(memory_id)
        if leaves:
            summaries.append(hit)
        kept = view.table.current(memory_id)
        behind = leaves if len(summaries) <= OPENED_MAX else []
        for each in behind or ([kept] if kept and not leaves else []):
            if len(rows) < ROWS_MAX:
                rows[each.row] = each
    return Opened(summaries, list(rows.values()))


def with_turns(summaries: Sequence[Recollection], turns: Sequence[Recollection], max_tokens: int) -> list[Recollection]:
    """What goes into a context of so many tokens, best first: a summary or a few, then what was said, then other summaries."""
    first = max_tokens // TOKENS_A_SUMMARY
    return [*summaries[:first], *turns, *summaries[first:]]


class Restoring(NamedTuple):
    """What is to be brought back, and which summaries are to be undone for it."""

    memory_ids: list[bytes]
    undone: list[bytes]


def to_restore(view: View, memory_ids: Iterable[str]) -> Restoring:
    """What bringing memories back takes: what is archived comes back; a summary that is not is undone, with those made from it.

    Raises as `lookup.live`.
    """
    restoring, lineage = Restoring([], []), view.summarized(view.stream)
    for text in memory_ids:
        live(view, text)
        memory_id = id_bytes(text)
        if lineage and lineage.is_archived(memory_id):
            restoring.memory_ids.append(memory_id)
        elif lineage and lineage.is_summary(memory_id):
            undone = [memory_id, *lineage.above(memory_id)]
            restoring.undone.extend(undone)
            restoring.memory_ids.extend(source for summary in undone for source in lineage.sources(summary))
    undone = list(dict.fromkeys(restoring.undone))
    return Restoring([each for each in dict.fromkeys(restoring.memory_ids) if each not in undone], undone)


def _kept(view: View, memory_ids: Iterable[bytes]) -> list[Kept]:
    return [kept for kept in map(view.table.current, memory_ids) if kept]
