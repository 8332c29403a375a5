"""Facts about several memories of a session at once, sealed and ready to append."""

from datetime import datetime

from memfold.events import Event
from memfold.eventstore.append import NO_DECISION, Request
from memfold.eventstore.codec import seal_event
from memfold.eventstore.keyring import SessionRef


def fact_of_many(tenant: int, ref: SessionRef, fact: Event, at: datetime, *, decided_at: int | None = None) -> Request:
    """A request to append `fact` to a session, under its user's key.

    With `decided_at`, it was decided at that version of the stream, and whatever was appended since stands against it.
    """
    sealed = seal_event(fact, tenant=tenant, stream=ref.stream, memory_id=None, wrapping=ref.key)
    expected, of_all = (NO_DECISION, False) if decided_at is None else (decided_at, True)
    return Request(ref.stream, ref.user, ref.key.version, at, [sealed], expected, of_all=of_all)
