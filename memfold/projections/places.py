"""Where each row of a view stands in the arrays that words and vectors are searched by: its slot.

Slots are given out in the order of the log and never change hands, so their order is that of the rows. A forgotten row
leaves an empty slot, until there are so many that the view is renumbered. Every slot knows the slots before and after it in
its own session: a turn is understood by the turns around it, and in a view of many sessions those stand elsewhere.
"""

from array import array
from bisect import bisect_left
from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfold.projections.features import FACTS
from memfold.projections.words import Floats, Slots, plain_words

EMPTY_MAX = 1_000  # empty slots before they are closed up, if they are also half of all
NOWHERE = -1
NOBODY = 0
FACTS_BYTES = len(FACTS)


class Rows(NamedTuple):
    """Some slots, rising, with what stands around them.

    `before` and `after` are the places among `slots` of each one's neighbours in its session, -1 where there is none.
    `asked` are the places among `slots` of those that were asked for; the others are only their surroundings.
    """

    slots: Slots
    before: Slots
    after: Slots
    asked: Slots


class Places:
    """The slots of one view, and what of each row is needed for ranking.

    Of each: its row, the position of the row's newest event, who speaks there, when it occurred, how important it is, and
    what its text is like.
    """

    def __init__(self) -> None:
        self._rows = array("q")
        self._live = bytearray()
        self._positions = array("q")
        self._speakers = array("I")
        self._occurred = array("q")
        self._importance = array("f")
        self._before = array("i")
        self._after = array("i")
        self._facts = bytearray()
        self._last: dict[int, int] = {}  # of each session that has any, the last slot
        self._reserved: set[int] = set()  # rows that are not live, and may come back
        self._speaker_numbers: dict[str, int] = {}
        self._spoken: dict[str, int] = {}  # in how many live rows
        self._called: dict[str, set[int]] = {}  # who is called by a word
        self._next_number = NOBODY + 1
        self._all: Rows | None = None
        self.count = 0

    def take(
        self,
        row: int,
        *,
        session: int,
        position: int,
        speaker: str | None,
        occurred_at: int,
        importance: float,
        facts: bytes,
    ) -> int:
        """The slot of a row that comes to be, or comes back. A new row is later in the log than all others.

        A row comes back changed before any other of its session is taken or leaves; one that was reserved, at any time, and
        then the session is to be linked anew.
        """
        slot = bisect_left(self._rows, row)
        if slot == len(self._rows):
            self._append(row, session)
        elif row in self._reserved:
            self._reserved.remove(row)
        else:
            self._link(slot, session)
        self._live[slot] = 1
        self._positions[slot] = position
        self._speakers[slot] = self._number(speaker)
        self._occurred[slot], self._importance[slot] = occurred_at, importance
        self._facts[slot * FACTS_BYTES : (slot + 1) * FACTS_BYTES] = facts
        self.count += 1
        self._all = None
        return slot

    def _append(self, row: int, session: int) -> None:
        before = self._last.get(session, NOWHERE)
        self._rows.append(row)
        self._live.append(0)
        for values in (self._positions, self._speakers, self._occurred, self._importance):
            values.append(0)
        self._facts.extend(bytes(FACTS_BYTES))
        self._before.append(before)
        self._after.append(NOWHERE)
        self._link(len(self._rows) - 1, session)

    def leave(self, row: int, *, session: int, speaker: str | None) -> int:
        """The slot of a row that is taken out."""
        slot = bisect_left(self._rows, row)
        self._live[slot] = 0
        self._unlink(slot, session)
        if speaker is not None:
            self._spoken[speaker] -= 1
            if not self._spoken[speaker]:
                self._drop_name(speaker)
        self.count -= 1
        self._all = None
        return slot

    def reserve(self, row: int) -> None:
        """Keep the slot of a row that has left: it may come back."""
        self._reserved.add(row)

    def release(self, row: int) -> None:
        """A row that has left will not come back."""
        self._reserved.discard(row)

    def link(self, session: int, rows: Sequence[int]) -> None:
        """Say which rows of a session are live, rising, so that each knows the ones beside it."""
        slots = self.slots_of(rows).tolist()
        for before, slot, after in zip([NOWHERE, *slots], slots, [*slots[1:], NOWHERE], strict=False):
            self._before[slot], self._after[slot] = before, after
        if slots:
            self._last[session] = slots[-1]
        self._all = None

    def _link(self, slot: int, session: int) -> None:
        """Put a slot between the neighbours it has or had (dancing links, Knuth 2000)."""
        before, after = self._before[slot], self._after[slot]
        if before != NOWHERE:
            self._after[before] = slot
        if after == NOWHERE:
            self._last[session] = slot
        else:
            self._before[after] = slot

    def _unlink(self, slot: int, session: int) -> None:
        before, after = self._before[slot], self._after[slot]
        if before != NOWHERE:
            self._after[before] = after
        if after != NOWHERE:
            self._before[after] = before
        elif before != NOWHERE:
            self._last[session] = before
        else:
            del self._last[session]

    def slot(self, row: int, position: int) -> int | None:
        """The slot of a live row, if the event at `position` is still its newest."""
        slot = bisect_left(self._rows, row)
        known = slot < len(self._rows) and self._rows[slot] == row
        return slot if known and self._live[slot] and self._positions[slot] == position else None

    def live(self) -> Slots:
        """The slots of all live rows, in order of the log."""
        return np.flatnonzero(np.frombuffer(self._live, np.uint8))

    def rows(self, slots: Slots) -> list[int]:
        """The rows in these slots."""
        found: list[int] = np.asarray(self._rows)[slots].tolist()
        return found

    def positions(self, slots: Slots) -> list[int]:
        """The positions of the newest events of the rows in these slots."""
        found: list[int] = np.asarray(self._positions)[slots].tolist()
        return found

    def slots_of(self, rows: Sequence[int]) -> Slots:
        """The slots of live rows, both in order of the log."""
        return np.searchsorted(np.asarray(self._rows), np.array(rows, np.int64))

    def neighbours(self, row: int) -> tuple[int | None, int | None]:
        """The live rows before and after a live row in its session."""
        slot = bisect_left(self._rows, row)
        near = (self._before[slot], self._after[slot])
        before, after = (None if at == NOWHERE else self._rows[at] for at in near)
        return before, after

    def before(self, slots: Slots) -> Slots:
        """The slots before these in their sessions, -1 where there is none."""
        return _slots(self._before, np.int32, slots)

    def after(self, slots: Slots) -> Slots:
        """The slots after these in their sessions, -1 where there is none."""
        return _slots(self._after, np.int32, slots)

    def all(self) -> Rows:
        """Every live row."""
        if self._all is None:
            slots = self.live()
            self._all = self._among(slots, np.arange(len(slots)))
        return self._all

    def among_all(self, asked: Slots) -> Rows:
        """Every live row, of which these live slots, rising, are asked for."""
        every = self.all()
        return every if len(asked) == self.count else every._replace(asked=np.searchsorted(every.slots, asked))

    def around(self, asked: Slots, reach: int) -> Rows:
        """These live slots, rising, and those up to `reach` before and after each in its session."""
        near = [asked]
        for links in (self._before, self._after):
            at = asked
            for _ in range(reach):
                at = _slots(links, np.int32, at)
                at = at[at != NOWHERE]
                near.append(at)
        slots = distinct(np.concatenate(near))
        return self._among(slots, np.searchsorted(slots, asked))

    def sample(self, count: int) -> Slots:
        """About so many live slots, evenly over all."""
        slots = np.arange(0, len(self._live), max(1, len(self._live) // count))
        live: Slots = slots[np.frombuffer(self._live, np.uint8)[slots] > 0]
        return live

    def _among(self, slots: Slots, asked: Slots) -> Rows:
        before, after = (self._placed(links, slots) for links in (self._before, self._after))
        return Rows(slots, before, after, asked)

    def _placed(self, links: "array[int]", slots: Slots) -> Slots:
        """The places among `slots` that the links of `slots` lead to, -1 where they lead elsewhere."""
        if not len(slots):
            return slots
        goals = _slots(links, np.int32, slots)
        if len(slots) == len(self._rows):
            return goals
        places = np.searchsorted(slots, goals)
        places[places == len(slots)] = 0
        places[slots[places] != goals] = NOWHERE
        return places

    def named(self, words: Collection[str], slots: Slots) -> NDArray[np.bool_]:
        """Of each slot whether a word of its speaker's name is among `words`."""
        numbers = set().union(*(self._called[word] for word in words if word in self._called))
        if not numbers:
            return np.zeros(len(slots), np.bool_)
        called = np.zeros(self._next_number, np.bool_)
        called[list(numbers)] = True
        named: NDArray[np.bool_] = called[self.speakers(slots)]
        return named

    def calls(self, word: str) -> bool:
        """Whether a word is of the name of somebody who speaks."""
        return word in self._called

    def speakers(self, slots: Slots) -> Slots:
        """A number for who speaks in each slot, the same for the same name; 0 for nobody."""
        return _slots(self._speakers, np.uint32, slots)

    def spoken_by(self, speaker: str | None) -> Slots:
        """The slots of this speaker, or of nobody."""
        number = self._speaker_numbers.get(speaker, NOWHERE) if speaker is not None else NOBODY
        slots = self.live()
        spoken: Slots = slots[self.speakers(slots) == number]
        return spoken

    def occurred_at(self, slots: Slots) -> Slots:
        """When it occurred, in microseconds since 1970."""
        return _slots(self._occurred, np.int64, slots)

    def facts(self, slots: Slots) -> NDArray[np.uint8]:
        """What the text of each is like: `features.FACTS`, (n, FACTS_BYTES)."""
        if not len(slots):
            return np.zeros((0, FACTS_BYTES), np.uint8)
        facts: NDArray[np.uint8] = np.frombuffer(self._facts, np.uint8).reshape(-1, FACTS_BYTES)[slots]
        return facts

    def importance(self, slots: Slots) -> Floats:
        """How important each is, in [0, 1]."""
        importance: Floats = np.frombuffer(self._importance, np.float32)[slots] if len(slots) else np.zeros(0, np.float32)
        return importance

    def mostly_empty(self) -> bool:
        """Whether it is worth closing the gaps."""
        empty = len(self._live) - self.count - len(self._reserved)
        return empty > EMPTY_MAX and 2 * empty > len(self._live)

    def renumber(self) -> Slots:
        """Close the gaps; return the slots that were kept, in their order, which are 0, 1, 2 … from now on."""
        kept = np.union1d(self.live(), self.slots_of(sorted(self._reserved)))
        new = np.full(len(self._live) + 1, NOWHERE, np.int32)  # one more, for NOWHERE itself
        new[kept] = np.arange(len(kept), dtype=np.int32)
        for name in ("_rows", "_positions", "_speakers", "_occurred", "_importance", "_before", "_after"):
            old = getattr(self, name)
            values = np.asarray(old)[kept]
            values = new[values] if name in ("_before", "_after") else values
            setattr(self, name, array(old.typecode, values.tobytes()))
        self._last = {session: int(new[slot]) for session, slot in self._last.items()}
        self._facts = bytearray(self.facts(kept).tobytes())
        self._live = bytearray(np.frombuffer(self._live, np.uint8)[kept].tobytes())
        self._all = None
        return kept

    def size_bytes(self) -> int:
        """About how much RAM this takes."""
        return (41 + FACTS_BYTES) * len(self._rows) + 60 * len(self._reserved) + 100 * len(self._last) + 300 * len(self._spoken)

    def _number(self, speaker: str | None) -> int:
        if speaker is None:
            return NOBODY
        self._spoken[speaker] = self._spoken.get(speaker, 0) + 1
        if speaker not in self._speaker_numbers:
            self._speaker_numbers[speaker] = self._next_number
            for word in plain_words(speaker):
                self._called.setdefault(word, set()).add(self._next_number)
            self._next_number += 1
        return self._speaker_numbers[speaker]

    def _drop_name(self, speaker: str) -> None:
        """The name of whoever was forgotten does not stay."""
        del self._spoken[speaker]
        number = self._speaker_numbers.pop(speaker)
        for word in set(plain_words(speaker)):
            self._called[word].discard(number)
            if not self._called[word]:
                del self._called[word]


def distinct(slots: Slots) -> Slots:
    """Each slot once, rising. Several times as fast as `np.unique` for some thousands."""
    slots = np.sort(slots)
    first = np.ones(len(slots), np.bool_)
    np.not_equal(slots[1:], slots[:-1], out=first[1:])
    return slots[first]


def _slots(values: "array[int]", kind: type[np.generic], slots: Slots) -> Slots:
    """The whole numbers that stand in these slots."""
    return np.frombuffer(values, kind)[slots].astype(np.int64) if len(slots) else np.zeros(0, np.int64)
