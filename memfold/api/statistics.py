"""What `stats` says beyond the log's own counts: what was summarized and archived, how a store grows, what limits are near."""

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

import msgspec

from memfold.consolidator import fading
from memfold.consolidator.policybook import PolicyBook
from memfold.errors import StoreUnavailable
from memfold.eventstore import arrays
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring
from memfold.model import CategoryStats, DayStats, Stats
from memfold.projections.directory import Directory, SessionCounts, Totals
from memfold.projections.lineage import Lineage
from memfold.projections.projector import Projector
from memfold.projections.rows import Kept
from memfold.projections.views import Views

CATCH_UP_S = 2.0  # for the directory; what it lacks then shows in its lag, in `status`

GROWTH = """
SELECT (e.recorded_at AT TIME ZONE 'UTC')::date AS day, count(*) AS events, coalesce(sum(length(p.sealed)), 0)::bigint AS bytes
FROM memfold.events e LEFT JOIN memfold.payloads p ON p.tenant_id = e.tenant_id AND p.position = e.position
WHERE e.tenant_id = %(tenant)s AND (%(stream)s::uuid IS NULL OR e.stream_id = %(stream)s)
AND e.recorded_at >= %(since)s GROUP BY 1 ORDER BY 1"""


class Statistics:
    """Adds to counts what the directory, the policies and the views know."""

    def __init__(
        self,
        database: Database,
        keyring: Keyring,
        views: Views,
        directory: Directory,
        projector: Projector,
        *,
        book: PolicyBook,
        may_catch_up: bool,
    ) -> None:
        self._database = database
        self._keyring = keyring
        self._views = views
        self._directory = directory
        self._projector = projector
        self._book = book
        self._may_catch_up = may_catch_up

    def __call__(self, counts: Stats, session_id: str | None, *, since: datetime | None, details: bool) -> Stats:
        """`counts` with everything filled in; `growth` from the time `since` on, empty if it is None."""
        with suppress(StoreUnavailable):  # the database may be read-only: then what was projected before is told
            if self._may_catch_up:
                self._projector.catch_up(time.monotonic() + CATCH_UP_S)
        ref = None if session_id is None else self._keyring.find_session(session_id)
        if session_id is not None and ref is None:
            return counts
        stream = ref.stream if ref else None
        found: Totals | SessionCounts | None = self._directory.session(stream) if stream else self._directory.totals()
        summed = {} if found is None else {name: getattr(found, name) for name in ("summaries", "archived")}
        before, after = (found.tokens_before, found.tokens_after) if found else (0, 0)
        return msgspec.structs.replace(
            counts,
            **summed,
            tokens_before=before,
            tokens_after=after,
            compression_ratio=after / before if before else None,
            growth=() if since is None else self._growth(stream, since),
            **(self._of_session(session_id, stream) if details and session_id is not None and stream else {}),
        )

    def _growth(self, stream: bytes | None, since: datetime) -> tuple[DayStats, ...]:
        parameters = {"tenant": self._keyring.tenant, "stream": arrays.uuid(stream) if stream else None, "since": since}
        return tuple(
            DayStats(day=row.day, events=row.events, bytes=row.bytes) for row in self._database.rows(GROWTH, parameters)
        )

    def _of_session(self, session_id: str, stream: bytes) -> dict[str, Any]:
        with self._views.session(session_id) as view:
            kept = view.table.everything() if view else []
            lineage = (view and view.summarized(stream)) or Lineage()
            said = [each for memory_id, each in kept if not lineage.is_summary(memory_id)]
        sizes = [len(each.memory.content.encode()) for each in said]
        usage = fading.Usage(session_memories=len(said), session_bytes=sum(sizes))
        near = fading.near_limits(usage, self._book.read().of(stream).of(None).retention)
        return {"categories": by_category([each for _, each in kept]), "near_limits": tuple(each.limit for each in near)}


def by_category(kept: Sequence[Kept]) -> dict[str, CategoryStats]:
    """How many memories there are of each category, and the bytes of their content; "" holds those without one."""
    found: dict[str, list[int]] = {}
    for each in kept:
        sums = found.setdefault(each.memory.category or "", [0, 0])
        sums[0] += 1
        sums[1] += len(each.memory.content.encode())
    return {name: CategoryStats(memories=count, bytes=size) for name, (count, size) in sorted(found.items())}
