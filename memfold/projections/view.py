"""A session folded into RAM: rows and history in an in-memory SQLite database, their words, and their vectors.

`apply` is the fold: a plain function of (view, event). Folding a stream from its first event, or continuing a view that
saw a part of it, gives the same view; a view can be dropped at any time. Nothing of it touches a disk.

Vectors come later than rows, from outside: the view says which it lacks and is given them.

A view is not safe for several threads at once; `views.Views` lends it to one at a time.
"""

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np

from memfold.events import NUMBERS, MemoryForgotten, MemoryRemembered, MemoryUpdated, SessionForgotten
from memfold.eventstore.codec import LoggedEvent, Row
from memfold.eventstore.sealing import WrappingKey
from memfold.model import Change, ChangeType, Memory, Order, Recollection
from memfold.projections import fold, ranking
from memfold.projections.filters import ALL, FUNCTIONS, Condition
from memfold.projections.places import Places
from memfold.projections.words import Floats, Slots, Words, asked_for, plain_words

if TYPE_CHECKING:
    from memfold.projections.vectors import VectorIndex

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
BASE_BYTES = 100_000  # what an empty in-memory database with its prepared statements takes

REMEMBERED, UPDATED, FORGOTTEN, CLOSED = (
    NUMBERS[event] for event in (MemoryRemembered, MemoryUpdated, MemoryForgotten, SessionForgotten)
)
_CHANGES: dict[int, ChangeType] = {REMEMBERED: "remembered", UPDATED: "updated", FORGOTTEN: "forgotten"}

READY_MAX = 1_000

# `row` is the stream version of the first event: it breaks ties between memories of the same time. `past` holds the earlier
# versions of memories that were changed, and all versions, without content, of those that were forgotten.
SCHEMA = """
PRAGMA temp_store = MEMORY;
PRAGMA secure_delete = ON;
PRAGMA trusted_schema = OFF;
CREATE TABLE memories (
    row INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, content TEXT NOT NULL, role TEXT, speaker TEXT, category TEXT,
    importance REAL NOT NULL, tags TEXT NOT NULL, metadata TEXT NOT NULL, occurred_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
    position INTEGER NOT NULL
);
CREATE INDEX memories_occurred ON memories (occurred_at, row);
CREATE TABLE past (
    id BLOB NOT NULL, version INTEGER NOT NULL, type INTEGER NOT NULL, recorded_at INTEGER NOT NULL, position INTEGER NOT NULL,
    memory BLOB, PRIMARY KEY (id, version)
) WITHOUT ROWID;
CREATE VIRTUAL TABLE words USING fts5(text, content='', tokenize='porter unicode61');
"""

# BM25 calls a word worthless that stands in more than half of the memories, which in a session of three is nearly every word.
# So every session counts as if it went on from a hundred earlier turns of ordinary length that say nothing anybody asks for.
# They stand below row 0, where no memory is.
PRIOR = """
INSERT INTO words (rowid, text)
WITH RECURSIVE turn(row) AS (VALUES (-100) UNION ALL SELECT row + 1 FROM turn WHERE row < -1)
SELECT row, 'qqq qqq qqq qqq qqq qqq qqq qqq qqq qqq qqq qqq qqq qqq qqq' FROM turn;
"""
COLUMNS = (
    "id, content, role, speaker, category, importance, tags, metadata, "
    "occurred_at, created_at, updated_at, version, status, position, row"
)


class Wanted(NamedTuple):
    """A row that lacks its vector: its newest event, that event's key as it is stored, and the text to embed."""

    row: int
    position: int
    event_id: bytes
    wrapped_key: bytes
    text: str


class Question(NamedTuple):
    """What is asked: a query, its vector by the model of that name (None: by words alone), and what else counts."""

    text: str
    model: str | None
    vector: Floats | None
    preferences: ranking.Preferences
    now: datetime


class SessionView:
    """The state of one session after `version` events of `stream`."""

    def __init__(self, stream: bytes, session_id: str, user_id: str) -> None:
        self.stream = stream
        self.session_id = session_id
        self.user_id = user_id
        self.version = 0
        self.position = 0
        self.key: WrappingKey | None = None  # the user's, under which the keys of the events are wrapped
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, cached_statements=64)
        self._db.executescript(SCHEMA)
        self._words = Words()
        self._vectors: dict[str, VectorIndex] = {}
        self._places = Places()
        self._ready: dict[int, tuple[Any, ...]] = {}  # rows as they were read last
        self._size_bytes: int | None = None  # measured when asked for; None after a change
        self._keys: dict[int, tuple[bytes, bytes]] = {}  # of each row: its newest event's id and wrapped key
        for name, arguments, function in FUNCTIONS:
            self._db.create_function(name, arguments, function, deterministic=True)

    def close(self) -> None:
        """Free the memory."""
        self._db.close()

    def size_bytes(self) -> int:
        """About how much RAM the view holds."""
        if self._size_bytes is None:
            self._size_bytes = self._measured_bytes()
        return self._size_bytes

    def _measured_bytes(self) -> int:
        pages, size = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        arrays = self._places.size_bytes() + 300 * len(self._keys) + self._words.size_bytes()
        return int(pages * size) + arrays + sum(index.size_bytes() for index in self._vectors.values()) + BASE_BYTES

    # -- folding -------------------------------------------------------------------------------------------------------

    def fold(self, events: Iterable[LoggedEvent]) -> None:
        """Apply events in stream order. If opening one fails, none is applied; if applying one does, drop the view."""
        opened = list(events)
        self._size_bytes = None
        self._db.execute("BEGIN")
        for event in opened:
            apply(self, event)
        self._db.execute("COMMIT")
        self._words.settle()
        if self._places.mostly_empty():
            kept = self._places.renumber()
            self._words.renumber(kept)
            for index in self._vectors.values():
                index.renumber(kept)

    def insert(self, memory: Memory, *, row: int, position: int, event: Row) -> None:
        """Add a memory and its words; `event` is the one that made it what it is."""
        values = (*_stored(memory), position, row)
        self._db.execute(f"INSERT INTO memories ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        slot = self._places.take(row, position=position, speaker=memory.speaker)
        self._keys[row] = (event.event_id, event.wrapped_key or b"")
        self._words.add(slot, fold.text_of(memory.content, memory.speaker))

    def remove(self, memory: Memory, *, row: int) -> None:
        """Take a memory, its words and its vectors out."""
        self._db.execute("DELETE FROM memories WHERE row = ?", (row,))
        slot = self._places.leave(row, speaker=memory.speaker)
        self._words.remove(slot, fold.text_of(memory.content, memory.speaker))
        for index in self._vectors.values():
            index.clear(slot)
        self._keys.pop(row, None)
        self._ready.pop(row, None)

    # -- vectors -------------------------------------------------------------------------------------------------------

    def lacks(self, model: str) -> list[Wanted]:
        """The live rows that have no vector of this model, in order of the stream."""
        slots, index = self._places.live(), self._vectors.get(model)
        missing = slots if index is None else index.missing(slots)
        if not len(missing):
            return []
        rows = self._places.rows(missing)
        texts = self._texts(rows)
        return [
            Wanted(row, self._places.position(slot), *self._keys[row], texts[row])
            for slot, row in zip(missing, rows, strict=True)
        ]

    def give(self, model: str, wanted: Sequence[Wanted], vectors: Mapping[int, Floats]) -> None:
        """Set vectors, by position; of rows that have changed since `lacks` told of them, nothing is set."""
        self._size_bytes = None
        slots, given = [], []
        for want in wanted:
            slot = self._places.slot(want.row, want.position)
            if slot is not None and want.position in vectors:
                slots.append(slot)
                given.append(vectors[want.position])
        if slots:
            self._index(model, len(given[0])).put(np.array(slots, np.int64), np.stack(given))

    def drop_vectors(self, model: str) -> None:
        """Drop all vectors of a model."""
        if self._vectors.pop(model, None):
            self._size_bytes = None

    def _index(self, model: str, dimension: int) -> "VectorIndex":
        from memfold.projections.vectors import VectorIndex  # faiss takes as long to import as a view to fold

        index = self._vectors.get(model)
        if index is None:
            index = self._vectors[model] = VectorIndex(dimension)
        return index

    def _texts(self, rows: Sequence[int]) -> dict[int, str]:
        query = "SELECT row, content, speaker FROM memories WHERE row BETWEEN ? AND ?"
        wanted = set(rows)
        found = self._db.execute(query, (rows[0], rows[-1]))
        return {row: fold.text_of(content, speaker) for row, content, speaker in found if row in wanted}

    def keep_past(  # noqa: PLR0917
        self, memory_id: bytes, version: int, type_number: int, at: datetime, position: int, memory: Memory | None
    ) -> None:
        """Keep a version that is no longer the newest; without `memory`, only that there was one."""
        blob = None if memory is None else msgspec.msgpack.encode(memory)
        self._db.execute(
            "INSERT INTO past VALUES (?, ?, ?, ?, ?, ?)", (memory_id, version, type_number, _micros(at), position, blob)
        )

    def blank_past(self, memory_id: bytes) -> None:
        """Drop the content of every earlier version of a memory."""
        self._db.execute("UPDATE past SET memory = NULL WHERE id = ?", (memory_id,))

    def next_version(self, memory_id: bytes) -> int:
        """The version number after all that are in the past."""
        found = self._db.execute("SELECT max(version) FROM past WHERE id = ?", (memory_id,)).fetchone()[0]
        return int(found or 0) + 1

    # -- reading -------------------------------------------------------------------------------------------------------

    def current(self, memory_id: bytes) -> tuple[Memory, int, int] | None:
        """A live memory with its row and the position of its newest event; None if it is not live here."""
        found = self._db.execute(f"SELECT {COLUMNS} FROM memories WHERE id = ?", (memory_id,)).fetchone()
        return (self._memory(found), found[14], found[13]) if found else None

    def find(
        self,
        where: Condition,
        *,
        before: datetime | None,
        after: datetime | None,
        order: Order,
        limit: int,
        start: tuple[int, int] | None,
    ) -> list[tuple[Memory, tuple[int, int]]]:
        """Memories in order of time, with their place (occurred_at in microseconds, row); from behind the place `start` on."""
        condition = both(where, time_range(before, after))
        if start:
            condition = both(condition, Condition(f"(occurred_at, row) {'<' if order == 'newest' else '>'} (?, ?)", start))
        direction = "DESC" if order == "newest" else "ASC"
        query = (
            f"SELECT {COLUMNS} FROM memories WHERE {condition.sql} ORDER BY occurred_at {direction}, row {direction} LIMIT ?"
        )
        rows = self._db.execute(query, (*condition.values, limit)).fetchall()
        return [(self._memory(row), (row[8], row[14])) for row in rows]

    def count(self, where: Condition) -> int:
        """How many live memories match."""
        return int(self._db.execute(f"SELECT count(*) FROM memories WHERE {where.sql}", where.values).fetchone()[0])

    def ids(self, where: Condition) -> list[bytes]:
        """The ids of the live memories that match, in the order they were remembered."""
        return [row[0] for row in self._db.execute(f"SELECT id FROM memories WHERE {where.sql} ORDER BY row", where.values)]

    def search(self, question: Question, where: Condition, *, limit: int, min_score: float) -> list[Recollection]:
        """The memories that answer best, best first; of equals the older first.

        Every row that `where` leaves is ranked, so the answer is exact. With a vector, no row may lack one of that model.
        """
        slots = self._places.live()
        allowed = self._allowed(where, slots)
        if not len(allowed):
            return []
        scores = ranking.score(self._evidence(question, slots, allowed), question.preferences)
        best = ranking.best(scores.total, allowed, limit, min_score)
        memories = self._memories(self._places.rows(slots[best]))
        told = (scores.of(at) for at in best)
        return [
            Recollection(memory=memory, score=score, parts=parts) for memory, (score, parts) in zip(memories, told, strict=True)
        ]

    def _evidence(self, question: Question, slots: Slots, allowed: Slots) -> ranking.Evidence:
        similarities = None
        if question.vector is not None and question.model in self._vectors:
            near = ranking.looked_at(allowed, len(slots))
            similarities = np.zeros(len(slots), np.float32)
            similarities[near] = self._vectors[question.model].similarities(question.vector, slots[near])
        importance = age_days = np.zeros(0, np.float32)
        if question.preferences.importance or question.preferences.recency:
            rows = self._db.execute("SELECT importance, occurred_at FROM memories ORDER BY row").fetchall()
            importance = np.array([row[0] for row in rows], np.float32)
            age_days = np.array([(_micros(question.now) - row[1]) / 86_400e6 for row in rows], np.float32)
        return ranking.Evidence(
            similarities=similarities,
            matches=self._words.weigh(asked_for(question.text), slots, np.concatenate([[-1], slots[:-1]])),
            named=self._places.named(plain_words(question.text), slots),
            importance=importance,
            age_days=age_days,
        )

    def _allowed(self, where: Condition, slots: Slots) -> Slots:
        """Which of `slots` a condition leaves, as places among them."""
        if where == ALL:
            return np.arange(len(slots))
        rows = [row for (row,) in self._db.execute(f"SELECT row FROM memories WHERE {where.sql} ORDER BY row", where.values)]
        return self._places.among(slots, rows)

    def _memories(self, rows: Sequence[int]) -> list[Memory]:
        """The memories in these rows. What was read last is kept ready: an agent asks much the same again."""
        missing = [row for row in rows if row not in self._ready]
        if len(self._ready) + len(missing) > READY_MAX:
            self._ready.clear()
            missing = list(rows)
        if missing:
            marks = ", ".join("?" * len(missing))
            for found in self._db.execute(f"SELECT {COLUMNS} FROM memories WHERE row IN ({marks})", missing):
                self._ready[found[14]] = found
        return [self._memory(self._ready[row]) for row in rows]

    def history(self, memory_id: bytes) -> list[Change]:
        """Every version of a memory, first to last; empty if it never was in this session."""
        text = fold.memory_id_text(memory_id)
        rows = self._db.execute(
            "SELECT version, type, recorded_at, position, memory FROM past WHERE id = ? ORDER BY version", (memory_id,)
        )
        changes = [
            Change(
                memory_id=text,
                version=version,
                type=_CHANGES[type_number],
                recorded_at=_time(at),
                position=position,
                memory=None if blob is None else msgspec.msgpack.decode(blob, type=Memory),
            )
            for version, type_number, at, position, blob in rows
        ]
        live = self.current(memory_id)
        if live:
            memory, _, position = live
            kind: ChangeType = "remembered" if memory.version == 1 else "updated"
            changes.append(
                Change(
                    memory_id=text,
                    version=memory.version,
                    type=kind,
                    recorded_at=memory.updated_at,
                    position=position,
                    memory=memory,
                )
            )
        return changes

    def dump(self, model: str | None = None) -> tuple[list[Any], list[Any], list[Any], list[Any]]:
        """Everything the view holds, in order, for comparing two views: rows, past, words, and the vectors of `model`."""
        slots = self._places.live()
        index = self._vectors.get(model or "")
        return (
            self._db.execute(f"SELECT {COLUMNS} FROM memories ORDER BY row").fetchall(),
            self._db.execute("SELECT * FROM past ORDER BY id, version").fetchall(),
            self._words.dump(slots),
            index.dump(slots).tolist() if index else [],
        )

    def digest(self, model: str | None = None) -> str:
        """SHA-256 over `dump`, in hexadecimal: two views of equal digests answer alike."""
        return sha256(msgspec.msgpack.encode(self.dump(model))).hexdigest()

    def _memory(self, row: Sequence[Any]) -> Memory:
        return Memory(
            id=fold.memory_id_text(row[0]),
            session_id=self.session_id,
            user_id=self.user_id,
            content=row[1],
            role=row[2],
            speaker=row[3],
            category=row[4],
            importance=row[5],
            tags=tuple(_decode_json(row[6])) if row[6] != "[]" else (),
            metadata=_decode_json(row[7]) if row[7] != "{}" else {},
            occurred_at=_time(row[8]),
            created_at=_time(row[9]),
            updated_at=_time(row[10]),
            version=row[11],
            status=row[12],
        )


def apply(view: SessionView, event: LoggedEvent) -> None:
    """Fold one event into a view. An erased event leaves what the spine still says: that there was a version, and when."""
    row = event.row
    view.version, view.position = row.version, row.position
    if row.memory_id is None:
        return
    if row.type_number == REMEMBERED:
        _apply_remembered(view, event, row.memory_id)
    elif row.type_number == UPDATED:
        _apply_updated(view, event, row.memory_id)
    elif row.type_number == FORGOTTEN:
        _apply_forgotten(view, event, row.memory_id)


def _apply_remembered(view: SessionView, event: LoggedEvent, memory_id: bytes) -> None:
    row, data = event
    if not isinstance(data, MemoryRemembered):
        view.keep_past(memory_id, 1, REMEMBERED, row.recorded_at, row.position, None)
        return
    memory = fold.remembered(
        data, memory_id=memory_id, session_id=view.session_id, user_id=view.user_id, recorded_at=row.recorded_at
    )
    view.insert(memory, row=row.version, position=row.position, event=row)


def _apply_updated(view: SessionView, event: LoggedEvent, memory_id: bytes) -> None:
    row, data = event
    live = view.current(memory_id)
    if live is None or not isinstance(data, MemoryUpdated):
        # Erased: whatever this view still holds of the memory was forgotten too, by a fact that follows.
        _forget(view, memory_id, live)
        view.keep_past(memory_id, view.next_version(memory_id), UPDATED, row.recorded_at, row.position, None)
        return
    memory, place, position = live
    _retire(view, memory_id, memory, place, position, keep=True)
    view.insert(fold.updated(memory, data, recorded_at=row.recorded_at), row=place, position=row.position, event=row)


def _apply_forgotten(view: SessionView, event: LoggedEvent, memory_id: bytes) -> None:
    row = event.row
    _forget(view, memory_id, view.current(memory_id))
    view.keep_past(memory_id, view.next_version(memory_id), FORGOTTEN, row.recorded_at, row.position, None)


def _forget(view: SessionView, memory_id: bytes, live: tuple[Memory, int, int] | None) -> None:
    if live:
        memory, place, position = live
        _retire(view, memory_id, memory, place, position, keep=False)
        view.blank_past(memory_id)


def _retire(view: SessionView, memory_id: bytes, memory: Memory, place: int, position: int, *, keep: bool) -> None:
    view.remove(memory, row=place)
    kind = REMEMBERED if memory.version == 1 else UPDATED
    view.keep_past(memory_id, memory.version, kind, memory.updated_at, position, memory if keep else None)


def both(one: Condition, other: Condition) -> Condition:
    """The condition that holds where both hold."""
    if other == ALL:
        return one
    if one == ALL:
        return other
    return Condition(f"({one.sql}) AND ({other.sql})", (*one.values, *other.values))


def time_range(before: datetime | None, after: datetime | None) -> Condition:
    """`after` <= occurred_at < `before`; None leaves an end open."""
    parts, values = [], []
    if after is not None:
        parts.append("occurred_at >= ?")
        values.append(_micros(after))
    if before is not None:
        parts.append("occurred_at < ?")
        values.append(_micros(before))
    return Condition(" AND ".join(parts), tuple(values)) if parts else ALL


def _stored(memory: Memory) -> tuple[Any, ...]:
    return (
        bytes.fromhex(memory.id.replace("-", "")),
        memory.content,
        memory.role,
        memory.speaker,
        memory.category,
        memory.importance,
        _encode_json(memory.tags) if memory.tags else "[]",
        _encode_json(memory.metadata) if memory.metadata else "{}",
        *(_micros(memory.occurred_at), _micros(memory.created_at), _micros(memory.updated_at)),
        memory.version,
        memory.status,
    )


def _micros(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


def _time(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)


_json_encoder = msgspec.json.Encoder()
_decode_json = msgspec.json.Decoder().decode


def _encode_json(value: Any) -> str:
    return _json_encoder.encode(value).decode()
