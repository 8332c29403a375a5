"""From a memory's id to the view it lives in."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from memfold.errors import MemoryForgotten, MemoryNotFound
from memfold.eventstore import reader
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring
from memfold.model import Change, Memory
from memfold.projections.scope import AsOf
from memfold.projections.view import View
from memfold.projections.views import Views


class Lookup:
    """Finds memories by id, in whatever session they are."""

    def __init__(self, database: Database, keyring: Keyring, views: Views) -> None:
        self._database = database
        self._keyring = keyring
        self._views = views

    @contextmanager
    def view_of(self, memory_id: str) -> Iterator[View]:
        """Lend the view that holds this memory or what is left of it.

        Raises:
            MemoryNotFound: no memory ever had this id.
        """
        stream = reader.stream_of_memory(self._database, self._keyring.tenant, id_bytes(memory_id))
        if stream is None:
            raise MemoryNotFound(memory_id)
        ref = self._keyring.session_of_stream(stream)
        if ref:
            with self._views.session(ref.session_id) as view:
                if view and view.stream == stream:
                    yield view
                    return
        view = self._views.remains(stream)
        try:
            yield view
        finally:
            view.close()


def id_bytes(memory_id: object) -> bytes:
    """An id as the log keeps it.

    Raises:
        MemoryNotFound: it is no id at all, so no memory has it.
    """
    try:
        if isinstance(memory_id, str):
            return uuid.UUID(memory_id).bytes
    except ValueError:
        pass
    raise MemoryNotFound(repr(memory_id) if isinstance(memory_id, int | float) else "with an id that is no UUID")


def live(view: View, memory_id: str) -> Memory:
    """The memory as it stands.

    Raises:
        MemoryForgotten: it was forgotten.
        MemoryNotFound: it was a summary, and was undone.
    """
    found = view.table.current(id_bytes(memory_id))
    if found is None:
        raise MemoryNotFound(memory_id) if was_undone(view, memory_id) else MemoryForgotten(memory_id)
    return found.memory


def was_undone(view: View, memory_id: str) -> bool:
    """Whether this was a summary whose sources were restored."""
    history = view.table.history(id_bytes(memory_id))
    return bool(history) and history[-1].type == "restored"


def as_of(view: View, memory_id: str, moment: AsOf) -> Memory:
    """The memory as it stood then.

    Raises:
        MemoryNotFound: it was remembered later.
        MemoryForgotten: it was forgotten, by then or since.
    """
    past = [change for change in view.table.history(id_bytes(memory_id)) if _is_before(change, moment)]
    if not past:
        raise MemoryNotFound(memory_id)
    memory = past[-1].memory
    if memory is None:
        raise MemoryForgotten(memory_id)
    return memory


def _is_before(change: Change, moment: AsOf) -> bool:
    return change.position <= moment if isinstance(moment, int) else change.recorded_at <= moment
