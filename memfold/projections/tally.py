"""What events say of a session, as counts, ids and times: the pure fold behind the durable directory.

What happened to single memories is folded from the spine alone. Summaries and what is archived are folded with `Lineage`, of
living memories only, and a summary that cannot be read any more counts as one that never was. So a fold from the first
event gives the same today, with all that was forgotten since, as one that was kept while it happened.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from memfold.events import (
    NUMBERS,
    Event,
    MemoriesArchived,
    MemoriesRefreshed,
    MemoriesRestored,
    MemoryForgotten,
    MemoryMerged,
    MemoryRemembered,
    SessionForgotten,
    WindowCompressed,
)
from memfold.eventstore.spine import Fate, Header
from memfold.projections.lineage import Lineage

REMEMBERED, FORGOTTEN, CLOSED = NUMBERS[MemoryRemembered], NUMBERS[MemoryForgotten], NUMBERS[SessionForgotten]
COMPRESSED, ARCHIVED, RESTORED = NUMBERS[WindowCompressed], NUMBERS[MemoriesArchived], NUMBERS[MemoriesRestored]
PLAIN = {REMEMBERED, NUMBERS[MemoryMerged], NUMBERS[MemoriesRefreshed]}
"""The events that make no summary stale, and by themselves nothing due."""
OF_WINDOWS = {FORGOTTEN, COMPRESSED, ARCHIVED, RESTORED}
"""The events that may change what the windows of a session are."""


class Fact(NamedTuple):
    """An event as the directory folds it: its header, and its content if that was asked for and still is."""

    header: Header
    data: Event | None = None


class Window(NamedTuple):
    """A living summary, or with `summary` None what faded together.

    `position` is that of the event that made it. `archived` are the memories that are out of default recall because of it.
    """

    position: int
    summary: bytes | None
    sources: tuple[bytes, ...]
    archived: frozenset[bytes]
    tokens_before: int
    tokens_after: int


class Tally:
    """What a stretch of a session's events says: `version`, `changed_version` and times of this stretch, and how often."""

    def __init__(self) -> None:
        self.version = 0
        self.changed_version = 0
        self.remembered = 0
        self.forgotten = 0
        self.first_at: datetime | None = None
        self.last_at: datetime | None = None
        self.is_closed = False

    def add(self, header: Header, fates: Mapping[bytes, Fate]) -> None:
        """One more event."""
        self.version = header.version
        if header.type_number not in PLAIN:
            self.changed_version = header.version
        if header.type_number == REMEMBERED:
            self.remembered += 1
            self.first_at = self.first_at or header.recorded_at
            self.last_at = header.recorded_at
        elif header.type_number == FORGOTTEN:
            fate = fates.get(header.memory_id or b"")
            self.forgotten += bool(fate and not fate.is_summary and fate.forgotten == header.version)
        elif header.type_number == CLOSED:
            self.is_closed = True


class Windows:
    """The windows of one session, as events change them."""

    def __init__(self, windows: Iterable[Window]) -> None:
        self._before = {window.position: window for window in windows}
        self._windows = dict(self._before)
        self._positions = {window.summary: window.position for window in self._before.values() if window.summary}
        self._lineage = Lineage()
        for window in self._before.values():
            if window.summary:
                self._lineage.compress(window.summary, window.sources)
        for window in self._before.values():
            self._lineage.archive(window.archived, window.summary)

    def add(self, fact: Fact, fates: Mapping[bytes, Fate]) -> None:
        """One more event."""
        header, data = fact
        if header.type_number == FORGOTTEN and header.memory_id:
            changed = self._lineage.forget(header.memory_id)
            self._drop({header.memory_id, *changed.dead})
            self._release({header.memory_id, *changed.dead})
        elif isinstance(data, WindowCompressed):
            self._compress(header, data)
        elif isinstance(data, MemoriesArchived):
            self._archive(header, data, fates)
        elif isinstance(data, MemoriesRestored):
            named = ids_of(data.memory_ids)
            changed = self._lineage.restore(named, ids_of(data.undone), header.recorded_at, header.version)
            self._drop(set(changed.dead))
            self._release({*named, *changed.dead})

    def _compress(self, header: Header, data: WindowCompressed) -> None:
        if header.memory_id is None:
            raise ValueError("a summary without an id")
        sources = tuple(ids_of(data.sources))
        self._lineage.compress(header.memory_id, sources)
        window = Window(header.position, header.memory_id, sources, frozenset(), data.tokens_before, data.tokens_after)
        self._positions[header.memory_id] = header.position
        self._windows[header.position] = window

    def _archive(self, header: Header, data: MemoriesArchived, fates: Mapping[bytes, Fate]) -> None:
        named = [memory_id for memory_id in ids_of(data.memory_ids) if self._lives(memory_id, header, fates)]
        if data.summary_id is None:
            faded = {each for window in self._windows.values() if window.summary is None for each in window.archived}
            new = frozenset(named) - faded
            if new:
                self._windows[header.position] = Window(header.position, None, (), new, 0, 0)
                self._lineage.archive(new, None)
            return
        summary = UUID(data.summary_id).bytes
        if summary in self._positions:
            window = self._windows[self._positions[summary]]
            new = frozenset(named) & frozenset(window.sources)
            self._windows[window.position] = window._replace(archived=window.archived | new)
            self._lineage.archive(new, summary)

    def _lives(self, memory_id: bytes, header: Header, fates: Mapping[bytes, Fate]) -> bool:
        fate = fates.get(memory_id)
        if fate is None or fate.stream != header.stream or 0 < fate.forgotten < header.version:
            return False
        return not fate.is_summary or memory_id in self._positions

    def _drop(self, summaries: set[bytes]) -> None:
        """These summaries are gone."""
        for summary in summaries & self._positions.keys():
            del self._windows[self._positions.pop(summary)]

    def _release(self, memory_ids: set[bytes]) -> None:
        """Nothing keeps these archived any more."""
        for window in list(self._windows.values()):
            if not memory_ids.isdisjoint(window.archived):
                self._put(window._replace(archived=window.archived - memory_ids))

    def _put(self, window: Window) -> None:
        if window.summary is None and not window.archived:
            del self._windows[window.position]
        else:
            self._windows[window.position] = window

    @property
    def living(self) -> Sequence[Window]:
        """The windows as they are now."""
        return list(self._windows.values())

    def archived(self) -> set[bytes]:
        """Everything that is out of default recall."""
        return {memory_id for window in self._windows.values() for memory_id in window.archived}

    def changed(self) -> list[Window]:
        """The windows that came to be, or are not as they were."""
        return [window for position, window in self._windows.items() if self._before.get(position) != window]

    def gone(self) -> list[int]:
        """The positions of windows that are no more."""
        return [position for position in self._before if position not in self._windows]


def named_in(facts: Iterable[Fact]) -> Iterator[bytes]:
    """The memories whose fate must be known to fold these facts."""
    for header, data in facts:
        if header.type_number == FORGOTTEN and header.memory_id:
            yield header.memory_id
        elif isinstance(data, MemoriesArchived):
            yield from ids_of(data.memory_ids)


def ids_of(texts: Iterable[str]) -> list[bytes]:
    """Ids as bytes."""
    return [UUID(text).bytes for text in texts]
