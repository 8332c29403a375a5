"""Summaries for tests, appended as the consolidator appends them."""

from datetime import UTC, datetime

from memfold.consolidator.appending import append_summary
from memfold.events import WindowCompressed
from memfold.eventstore.append import Verdict
from memfold.projections.lookup import id_bytes


def summarize(store, memory_ids, text="in short", *, key=None, version=None):
    """Summarize memories of one session; return the summary's id, or the verdict if the log refused."""
    memory_ids = list(memory_ids)
    keyring = store._keyring
    with store._lookup.view_of(memory_ids[0]) as view:
        session_id, seen = view.session_id, view.version
        opened = [view.event_key(view.table.current(id_bytes(each)).row, keyring.tenant) for each in memory_ids]
    event = WindowCompressed(
        content=text,
        sources=tuple(memory_ids),
        occurred_at=datetime(2030, 1, 2, tzinfo=UTC),
        started_at=datetime(2030, 1, 1, tzinfo=UTC),
        summarizer="test",
        policy=0,
        tokens_before=100,
        tokens_after=10,
    )
    answer, summary_id = append_summary(
        store._database,
        keyring,
        keyring.find_session(session_id),
        event=event,
        sources=opened,
        version=seen if version is None else version,
        key=key or "-".join(memory_ids),
        clock=store._clock,
    )
    return summary_id if answer.verdict is Verdict.ACCEPTED else answer.verdict
