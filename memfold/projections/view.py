"""Events folded into RAM: the memories of one session or of many, their words, and their vectors.

`apply` is the fold: a plain function of (view, event). Folding from the first event, or continuing a view that saw a part,
gives the same view; a view can be dropped at any time. A view of the past is the same fold, stopped there; what has been
forgotten since is withheld from it.

An archived memory leaves the words and vectors, and keeps its row: it can be got, found and forgotten, and comes back where it
stood. A view that `keeps_archived` takes no notice of archiving but for the row's status.

Vectors come later than rows, from outside: the view says which it lacks and is given them.

A view is not safe for several threads at once; `views.Views` lends it to one at a time.
"""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from memfold.events import (
    NUMBERS,
    MemoriesArchived,
    MemoriesRefreshed,
    MemoriesRestored,
    MemoryForgotten,
    MemoryMerged,
    MemoryRemembered,
    MemoryUpdated,
    SessionForgotten,
    WindowCompressed,
)
from memfold.eventstore.binding import EventKey
from memfold.eventstore.codec import LoggedEvent, key_context
from memfold.eventstore.sealing import WrappingKey, wrapping_key_id
from memfold.model import Memory
from memfold.projections import fold
from memfold.projections.features import text_facts
from memfold.projections.filters import ALL, Condition
from memfold.projections.lineage import Changed, Lineage
from memfold.projections.places import Places
from memfold.projections.rows import ACTIVE, Kept, Owner, Table, both, micros
from memfold.projections.words import Floats, Words

if TYPE_CHECKING:
    from memfold.projections.vectors import VectorIndex

REMEMBERED, UPDATED, MERGED, FORGOTTEN, CLOSED = (
    NUMBERS[event] for event in (MemoryRemembered, MemoryUpdated, MemoryMerged, MemoryForgotten, SessionForgotten)
)
COMPRESSED, ARCHIVED, RESTORED, REFRESHED = (
    NUMBERS[event] for event in (WindowCompressed, MemoriesArchived, MemoriesRestored, MemoriesRefreshed)
)


class Wanted(NamedTuple):
    """A row that lacks its vector: its newest event, and that event's key as it is stored."""

    row: int
    position: int
    event_id: bytes
    wrapped_key: bytes


class View:
    """The state after the events up to `position`, of one session (then `stream` is its stream and `version` its) or of many.

    A view of many has looked at the log up to `seen`. `withheld` are the memories that would be here, had they not been
    forgotten since. `found_before` holds answers; whoever puts them there may rely on it being emptied by every change.
    """

    def __init__(self, stream: bytes = b"", *, keeps_past: bool = True, keeps_archived: bool = False) -> None:
        self.stream = stream
        self.version = 0
        self.position = 0
        self.seen = 0
        self.withheld: dict[bytes, bytes] = {}  # from memory to stream
        self.keys: dict[bytes, WrappingKey] = {}  # the users', under which the keys of the events are wrapped
        self.found_before: dict[Any, Any] = {}
        self.words = Words()
        self.places = Places()
        self.vectors: dict[str, VectorIndex] = {}
        self.keeps_archived = keeps_archived
        self._keeps_past = keeps_past
        self._lineages: dict[bytes, Lineage] = {}  # of the streams that hold summaries, or anything archived
        self._hidden = 0  # rows that are archived
        self._summaries: dict[int, bytes] = {}  # from rows that are summaries, archived or not, to their streams
        self._spoken = 0  # of the other rows those that have a speaker
        self._owners: dict[bytes, Owner] = {}  # by stream
        self._by_number: list[Owner] = []
        self.table = Table(self._by_number)
        self._unembedded: dict[int, tuple[bytes, bytes]] = {}  # of rows without a stored vector: event id and wrapped key
        self._size_bytes: int | None = None  # measured when asked for; None after a change

    @property
    def session_id(self) -> str:
        """The name of the one session."""
        return self._by_number[0].session_id if self._by_number else ""

    def close(self) -> None:
        """Free the memory."""
        self.table.close()

    def size_bytes(self) -> int:
        """About how much RAM the view holds."""
        if self._size_bytes is None:
            arrays = self.places.size_bytes() + 300 * len(self._unembedded) + self.words.size_bytes()
            self._size_bytes = arrays + sum(index.size_bytes() for index in self.vectors.values()) + self.table.size_bytes()
        return self._size_bytes

    # -- folding -------------------------------------------------------------------------------------------------------

    def knows(self, stream: bytes) -> bool:
        """Whether it was said whose this stream is."""
        return stream in self._owners

    def own(self, stream: bytes, session_id: str, user_id: str, user: bytes = b"") -> None:
        """Say whose a stream is, before its first event."""
        if stream not in self._owners:
            owner = Owner(len(self._by_number), session_id, user_id, user)
            self._owners[stream] = owner
            self._by_number.append(owner)

    def streams(self) -> set[bytes]:
        """The streams whose sessions are known here."""
        return set(self._owners)

    def owner(self, stream: bytes) -> Owner | None:
        """Whose a stream is; None if nobody knows any more, for it was forgotten."""
        return self._owners.get(stream)

    def fold(self, events: Iterable[LoggedEvent]) -> None:
        """Apply events in order. If opening one fails, none is applied; if applying one does, drop the view."""
        opened = list(events)
        self.table.begin()
        for event in opened:
            apply(self, event)
        self.table.commit()
        self.settle()

    def forget_streams(self, streams: Iterable[bytes]) -> None:
        """Take out what is of sessions that were forgotten."""
        self.table.begin()
        for stream in streams:
            _apply_closed(self, stream)
        self.table.commit()
        self.settle()

    def forget(self, gone: Iterable[tuple[int, bytes, bytes | None]]) -> None:
        """Withhold what was forgotten after the time this view looks at: type, stream and memory of each fact."""
        self.table.begin()
        for type_number, stream, memory_id in gone:
            if type_number == FORGOTTEN and memory_id and self.table.current(memory_id):
                withhold(self, stream, memory_id)  # what was erased when it was folded is withheld already
            elif type_number == CLOSED:
                withhold_session(self, stream)
        self.table.commit()
        self.settle()

    def settle(self) -> None:
        """After a change: nothing that was forgotten stays, and no answer from before."""
        self._size_bytes = None
        self.found_before.clear()
        self.words.settle()
        if self.places.mostly_empty():
            kept = self.places.renumber()
            self.words.renumber(kept)
            for index in self.vectors.values():
                index.renumber(kept)

    def insert(self, memory: Memory, owner: Owner, *, row: int, event: LoggedEvent) -> None:
        """Add a memory and its words; `event` is the one that made it what it is."""
        kept = Kept(memory, row, event.row.position, event.row.type_number)
        self.table.insert(kept, owner)
        self._unembedded[row] = (event.row.event_id, event.row.wrapped_key or b"")
        lineage = self._lineages.get(event.row.stream)
        if lineage and event.row.memory_id and lineage.is_summary(event.row.memory_id):
            self._summaries[row] = event.row.stream
        else:
            self._spoken += memory.speaker is not None
        if self._is_shown(memory):
            self._show(kept, owner)
        else:
            self._hidden += 1

    def remove(self, kept: Kept, owner: Owner) -> None:
        """Take a memory, its words and its vectors out."""
        self.table.delete(kept.row)
        event_id, _ = self._unembedded.pop(kept.row)
        self.keys.pop(event_id, None)  # what a summary's key is wrapped under
        if kept.row in self._summaries:
            del self._summaries[kept.row]
        else:
            self._spoken -= kept.memory.speaker is not None
        if self._is_shown(kept.memory):
            self._hide(kept, owner)
        else:
            self._hidden -= 1

    @property
    def is_conversation(self) -> bool:
        """Whether at least half of what was remembered has a speaker; summaries are what they were made from."""
        return 2 * self._spoken >= len(self._unembedded) - len(self._summaries)

    def _is_shown(self, memory: Memory) -> bool:
        return self.keeps_archived or memory.status == "active"

    def _show(self, kept: Kept, owner: Owner) -> None:
        """Let a memory be found by its words, and by its vector once there is one."""
        memory = kept.memory
        slot = self.places.take(
            kept.row,
            session=owner.number,
            position=kept.position,
            speaker=memory.speaker,
            occurred_at=micros(memory.occurred_at),
            importance=memory.importance,
            facts=bytes(text_facts(memory.content)),
        )
        self.words.add(slot, fold.text_of(memory.content, memory.speaker))

    def _hide(self, kept: Kept, owner: Owner) -> None:
        slot = self.places.leave(kept.row, session=owner.number, speaker=kept.memory.speaker)
        self.words.remove(slot, fold.text_of(kept.memory.content, kept.memory.speaker))
        for index in self.vectors.values():
            index.clear(slot)

    def lineage(self, stream: bytes) -> Lineage:
        """What of a session's memories was summarized and archived."""
        return self._lineages.setdefault(stream, Lineage())

    def summarized(self, stream: bytes) -> Lineage | None:
        """The same, None if nothing was."""
        return self._lineages.get(stream)

    def leaves(self, memory_id: bytes) -> list[Kept]:
        """What was remembered that a summary in this view tells of, all the way down; of any other memory nothing."""
        kept = self.table.current(memory_id)
        lineage = self._lineages.get(self._summaries.get(kept.row, b"")) if kept else None
        return [leaf for leaf in map(self.table.current, lineage.leaves(memory_id) if lineage else ()) if leaf]

    def drop_lineage(self, stream: bytes) -> None:
        """Nothing of this session will come back."""
        self._lineages.pop(stream, None)

    def archive(self, stream: bytes, memory_ids: Iterable[bytes]) -> None:
        """Take active memories out of what is searched."""
        owner = self._owners[stream]
        found = [kept for kept in map(self.table.current, memory_ids) if kept]
        self.table.set_status([kept.row for kept in found], "archived")
        if not self.keeps_archived:
            self._hidden += len(found)
            for kept in found:
                self._hide(kept, owner)
                self.places.reserve(kept.row)

    def activate(self, stream: bytes, memory_ids: Iterable[bytes]) -> None:
        """Archived memories come back to where they stood."""
        owner = self._owners[stream]
        found = [kept for kept in map(self.table.current, memory_ids) if kept]
        self.table.set_status([kept.row for kept in found], "active")
        if found and not self.keeps_archived:
            self._hidden -= len(found)
            for kept in found:
                self._show(kept, owner)
            self.places.link(owner.number, self.table.active_rows(owner.number))

    def shown(self, where: Condition) -> Condition:
        """A condition for what this view shows, from one for all it holds."""
        return both(ACTIVE, where) if self._hidden else where

    def retire(self, kept: Kept, owner: Owner, memory_id: bytes, *, keep: bool) -> None:
        """Take a memory out; what it was becomes its past, without content unless `keep`."""
        self.remove(kept, owner)
        memory = kept.memory
        self.was(memory_id, memory.version, kept.type_number, memory.updated_at, kept.position, memory if keep else None)

    def was(  # noqa: PLR0917
        self, memory_id: bytes, version: int, type_number: int, at: datetime, position: int, memory: Memory | None = None
    ) -> None:
        """Keep that there was a version, if this view keeps the past."""
        if self._keeps_past:
            self.table.keep_past(memory_id, version, type_number, at, position, memory)

    def drop_owner(self, stream: bytes) -> None:
        """The session of this stream is gone; so is its user's key, if none of the user's sessions is left here."""
        owner = self._owners.pop(stream, None)
        if owner and all(other.user != owner.user for other in self._owners.values()):
            self.keys.pop(owner.user, None)
        if owner:
            self._by_number[owner.number] = Owner(owner.number, "", "")

    # -- vectors -------------------------------------------------------------------------------------------------------

    def lacks(self, model: str) -> list[Wanted]:
        """The live rows that have no vector of this model, in order of the log."""
        index = self.vectors.get(model)
        if index is not None and len(index) == self.places.count:
            return []
        slots = self.places.live()
        missing = slots if index is None else index.missing(slots)
        found = zip(self.places.rows(missing), self.places.positions(missing), strict=True)
        return [Wanted(row, position, *self._unembedded.get(row, (b"", b""))) for row, position in found]

    def texts(self, wanted: Sequence[Wanted]) -> list[str]:
        """What is to be embedded of each."""
        found = self.table.texts([want.row for want in wanted])
        return [found[want.row] for want in wanted]

    def unwrap(self, want: Wanted, context: bytes) -> bytes | None:
        """The key of an event; None if its user's key is not here any more."""
        key = self.keys.get(wrapping_key_id(want.wrapped_key)) if want.wrapped_key else None
        return key.unwrap(want.wrapped_key, context) if key else None

    def event_id(self, row: int) -> bytes:
        """The id of the event that made a row what it is."""
        return self._unembedded[row][0]

    def event_key(self, row: int, tenant: int) -> EventKey | None:
        """The event that made a row what it is, with its key; None if its user's key is not here any more."""
        event_id, wrapped_key = self._unembedded[row]
        key = self.keys.get(wrapping_key_id(wrapped_key)) if wrapped_key else None
        return EventKey(event_id, key.unwrap(wrapped_key, key_context(tenant, event_id))) if key else None

    def bound_to(self, memory_id: bytes, tenant: int) -> list[EventKey]:
        """What is said of a summary must be bound to: the events its sources were made by. Nothing, if it is no summary."""
        lineage = self._lineages.get(self.stream)
        found = [self.table.current(source) for source in (lineage.sources(memory_id) if lineage else ())]
        keys = [self.event_key(kept.row, tenant) for kept in found if kept]
        return [key for key in keys if key]

    def give(self, model: str, wanted: Sequence[Wanted], vectors: Mapping[int, Floats]) -> None:
        """Set vectors, by position; of rows that have changed since `lacks` told of them, nothing is set."""
        slots, given = [], []
        for want in wanted:
            slot = self.places.slot(want.row, want.position)
            if slot is not None and want.position in vectors:
                slots.append(slot)
                given.append(vectors[want.position])
        if slots:
            self._size_bytes = None
            self.found_before.clear()
            self._index(model, len(given[0])).put(np.array(slots, np.int64), np.stack(given))

    def drop_vectors(self, model: str) -> None:
        """Drop all vectors of a model."""
        if self.vectors.pop(model, None):
            self._size_bytes = None
            self.found_before.clear()

    def _index(self, model: str, dimension: int) -> "VectorIndex":
        from memfold.projections.vectors import VectorIndex  # faiss takes as long to import as a view to fold

        index = self.vectors.get(model)
        if index is None:
            index = self.vectors[model] = VectorIndex(dimension)
        return index

    # -- reading -------------------------------------------------------------------------------------------------------

    def neighbours(self, memory_id: bytes, where: Condition) -> tuple[Memory | None, Memory | None]:
        """The memories before and after a live memory in its session, if they match."""
        kept = self.table.current(memory_id)
        near = self.places.neighbours(kept.row) if kept else (None, None)
        before, after = (self._matching(row, where) for row in near)
        return before, after

    def _matching(self, row: int | None, where: Condition) -> Memory | None:
        if row is None or (where != ALL and not self.table.matching(both(where, Condition("row = ?", (row,))))):
            return None
        return self.table.memories([row])[0]

    def dump(self, model: str | None = None) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """Everything the view holds, in order, for comparing two views: rows, past, words, and the vectors of `model`."""
        slots = self.places.live()
        index = self.vectors.get(model or "")
        return *self.table.dump(), self.words.dump(slots), index.dump(slots).tolist() if index else []

    def digest(self, model: str | None = None) -> str:
        """SHA-256 over `dump`, in hexadecimal: two views of equal digests answer alike."""
        return sha256(msgspec.msgpack.encode(self.dump(model))).hexdigest()


def apply(view: View, event: LoggedEvent) -> None:
    """Fold one event into a view. An erased event leaves what the spine still says: that there was a version, and when."""
    row = event.row
    view.version, view.position = row.version, row.position
    if row.type_number == CLOSED:
        _apply_closed(view, row.stream)
    elif row.memory_id is None:
        _apply_of_many(view, event)
    elif row.type_number == REMEMBERED:
        _apply_remembered(view, event, row.memory_id)
    elif row.type_number == COMPRESSED:
        _apply_compressed(view, event, row.memory_id)
    elif row.type_number in (UPDATED, MERGED):
        _apply_changed(view, event, row.memory_id)
    elif row.type_number == FORGOTTEN:
        _apply_forgotten(view, event, row.memory_id)


def _apply_remembered(view: View, event: LoggedEvent, memory_id: bytes) -> None:
    row, data = event
    owner = view.owner(row.stream)
    if owner is None or not isinstance(data, MemoryRemembered):
        view.was(memory_id, 1, REMEMBERED, row.recorded_at, row.position)
        view.withheld[memory_id] = row.stream
        return
    memory = fold.remembered(
        data, memory_id=memory_id, session_id=owner.session_id, user_id=owner.user_id, recorded_at=row.recorded_at
    )
    view.insert(memory, owner, row=row.position, event=event)


def _apply_compressed(view: View, event: LoggedEvent, memory_id: bytes) -> None:
    row, data = event
    owner = view.owner(row.stream)
    if owner is None or not isinstance(data, WindowCompressed):
        view.was(memory_id, 1, COMPRESSED, row.recorded_at, row.position)  # something it was made from was forgotten since
        return
    memory = fold.compressed(
        data, memory_id=memory_id, session_id=owner.session_id, user_id=owner.user_id, recorded_at=row.recorded_at
    )
    view.lineage(row.stream).compress(memory_id, [fold.memory_id_bytes(source) for source in data.sources])
    view.insert(memory, owner, row=row.position, event=event)


def _apply_of_many(view: View, event: LoggedEvent) -> None:
    """Apply what was said of several memories of a session at once."""
    row, data = event
    if row.stream not in view.streams() or not isinstance(data, MemoriesArchived | MemoriesRestored | MemoriesRefreshed):
        return
    lineage = view.lineage(row.stream)
    memory_ids = [fold.memory_id_bytes(memory_id) for memory_id in data.memory_ids]
    if isinstance(data, MemoriesArchived):
        summary = fold.memory_id_bytes(data.summary_id) if data.summary_id else None
        known = [memory_id for memory_id in memory_ids if view.table.current(memory_id)]
        view.archive(row.stream, lineage.archive(known, summary, row.version))
    elif isinstance(data, MemoriesRefreshed):
        lineage.refresh(memory_ids, row.recorded_at)
    else:
        undone = [fold.memory_id_bytes(summary) for summary in data.undone]
        changed = lineage.restore(memory_ids, undone, row.recorded_at, row.version)
        for summary in undone:
            _undo(view, event, summary)
        view.activate(row.stream, changed.active)


def _undo(view: View, event: LoggedEvent, summary: bytes) -> None:
    """A summary was undone, be it readable still or not."""
    owner, live = view.owner(event.row.stream), view.table.current(summary)
    if owner and live:
        view.places.release(live.row)
        view.retire(live, owner, summary, keep=True)
    view.was(summary, view.table.next_version(summary), RESTORED, event.row.recorded_at, event.row.position)


def _apply_changed(view: View, event: LoggedEvent, memory_id: bytes) -> None:
    row, data = event
    owner, live = view.owner(row.stream), view.table.current(memory_id)
    if owner is None or live is None or not isinstance(data, MemoryUpdated | MemoryMerged):
        # Erased: whatever this view still holds of the memory was forgotten too, by a fact that follows.
        if row.sources:
            _blank(view, row.stream, memory_id)
        else:
            withhold(view, row.stream, memory_id)
        view.was(memory_id, view.table.next_version(memory_id), row.type_number, row.recorded_at, row.position)
        return
    view.retire(live, owner, memory_id, keep=True)
    view.insert(fold.changed(live.memory, data, recorded_at=row.recorded_at), owner, row=live.row, event=event)


def _apply_forgotten(view: View, event: LoggedEvent, memory_id: bytes) -> None:
    row = event.row
    withhold(view, row.stream, memory_id)
    del view.withheld[memory_id]  # it is not missing: it is as it should be
    view.was(memory_id, view.table.next_version(memory_id), FORGOTTEN, row.recorded_at, row.position)


def _apply_closed(view: View, stream: bytes) -> None:
    withhold_session(view, stream)
    view.withheld = {memory_id: other for memory_id, other in view.withheld.items() if other != stream}


def withhold(view: View, stream: bytes, memory_id: bytes) -> None:
    """Take a memory out that was forgotten, with the content of its past."""
    lineage = view.summarized(stream)
    changed = lineage.forget(memory_id) if lineage else Changed([], [])
    for gone in (memory_id, *changed.dead):
        _blank(view, stream, gone)
    if changed.active:
        view.activate(stream, changed.active)
    view.withheld[memory_id] = stream


def _blank(view: View, stream: bytes, memory_id: bytes) -> None:
    owner, live = view.owner(stream), view.table.current(memory_id)
    if owner and live:
        view.places.release(live.row)
        view.retire(live, owner, memory_id, keep=False)
    view.table.blank_past(memory_id)


def withhold_session(view: View, stream: bytes) -> None:
    """Take all memories of a session out that was forgotten."""
    owner = view.owner(stream)
    view.drop_lineage(stream)
    for memory_id in view.table.of_session(owner.number) if owner else []:
        withhold(view, stream, memory_id)
    view.drop_owner(stream)
