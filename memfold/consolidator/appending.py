"""How a summary enters the log: with the fact that its sources are archived, in one append, or not at all.

The key that the summary is sealed under is bound to the newest events of all its sources (see `eventstore.binding`).
"""

from collections.abc import Callable, Sequence
from datetime import datetime

from memfold.events import MemoriesArchived, WindowCompressed
from memfold.eventstore import binding
from memfold.eventstore.append import Answer
from memfold.eventstore.binding import EventKey
from memfold.eventstore.codec import new_id
from memfold.eventstore.database import Database
from memfold.eventstore.facts import fact_of_many
from memfold.eventstore.keyring import Keyring, SessionRef
from memfold.projections.fold import memory_id_text


def append_summary(
    database: Database,
    keyring: Keyring,
    ref: SessionRef,
    *,
    event: WindowCompressed,
    sources: Sequence[EventKey],
    version: int,
    key: str,
    clock: Callable[[], datetime],
) -> tuple[Answer, str]:
    """Append a summary, decided at `version` of the session's stream; return what the log said, and the summary's id.

    CONFLICT: something was appended since, or a source was forgotten. DUPLICATE: the same was appended before, by whomever.
    """
    tenant, summary_id = keyring.tenant, new_id()
    summary = binding.seal_bound(event, tenant=tenant, stream=ref.stream, memory_id=summary_id, sources=sources)
    fact = MemoriesArchived(memory_ids=event.sources, summary_id=memory_id_text(summary_id), policy=event.policy)
    request = fact_of_many(tenant, ref, fact, clock(), decided_at=version)
    request.events = [summary, *request.events]
    request.idempotency = keyring.idempotency_hmac(ref.stream, key)
    answer = binding.append_bound(database, tenant, request, [source.event_id for source in sources])
    return answer, memory_id_text(summary_id)
