"""A session folded into RAM: rows, full text and history in one in-memory SQLite database.

`apply` is the fold: a plain function of (view, event). Folding a stream from its first event, or continuing a view that
saw a part of it, gives the same view; a view can be dropped at any time. Nothing of it touches a disk.

A view is not safe for several threads at once; `views.Views` lends it to one at a time.
"""

import sqlite3
import uuid
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from memfold.events import NUMBERS, MemoryForgotten, MemoryRemembered, MemoryUpdated, SessionForgotten
from memfold.eventstore.codec import LoggedEvent
from memfold.model import Change, ChangeType, Memory, Order
from memfold.projections import fold
from memfold.projections.filters import FUNCTIONS, Condition
from memfold.projections.words import match_expression

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
BASE_BYTES = 100_000  # what an empty in-memory database with its prepared statements takes

REMEMBERED, UPDATED, FORGOTTEN, CLOSED = (
    NUMBERS[event] for event in (MemoryRemembered, MemoryUpdated, MemoryForgotten, SessionForgotten)
)
_CHANGES: dict[int, ChangeType] = {REMEMBERED: "remembered", UPDATED: "updated", FORGOTTEN: "forgotten"}

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


class Hit(NamedTuple):
    """A memory whose words matched, with the BM25 weight of the match (greater is better)."""

    memory: Memory
    words: float


class SessionView:
    """The state of one session after `version` events of `stream`."""

    def __init__(self, stream: bytes, session_id: str, user_id: str) -> None:
        self.stream = stream
        self.session_id = session_id
        self.user_id = user_id
        self.version = 0
        self.position = 0
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, cached_statements=64)
        self._db.executescript(SCHEMA + PRIOR)
        for name, arguments, function in FUNCTIONS:
            self._db.create_function(name, arguments, function, deterministic=True)

    def close(self) -> None:
        """Free the memory."""
        self._db.close()

    def size_bytes(self) -> int:
        """About how much RAM the view holds."""
        pages, size = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return int(pages * size) + BASE_BYTES

    # -- folding -------------------------------------------------------------------------------------------------------

    def fold(self, events: Iterable[LoggedEvent]) -> None:
        """Apply events in stream order: all of them, or none if one fails."""
        version, position = self.version, self.position
        self._db.execute("BEGIN")
        try:
            for event in events:
                apply(self, event)
        except BaseException:
            self._db.execute("ROLLBACK")
            self.version, self.position = version, position
            raise
        self._db.execute("COMMIT")

    def insert(self, memory: Memory, *, row: int, position: int) -> None:
        """Add a memory and its words."""
        values = (*_stored(memory), position, row)
        self._db.execute(f"INSERT INTO memories ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        self._db.execute("INSERT INTO words (rowid, text) VALUES (?, ?)", (row, _text(memory)))

    def remove(self, memory: Memory, *, row: int) -> None:
        """Take a memory and its words out."""
        self._db.execute("INSERT INTO words (words, rowid, text) VALUES ('delete', ?, ?)", (row, _text(memory)))
        self._db.execute("DELETE FROM memories WHERE row = ?", (row,))

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

    def search(self, query: str, where: Condition, *, limit: int) -> list[Hit]:
        """The memories whose words match best, best first; of equals the older first."""
        expression = match_expression(query)
        if not expression:
            return []
        columns = ", ".join(f"m.{name}" for name in COLUMNS.split(", "))
        rows = self._db.execute(
            f"""SELECT {columns}, -bm25(words) AS weight FROM words JOIN memories m ON m.row = words.rowid
                WHERE words MATCH ? AND {where.sql} ORDER BY weight DESC, m.row LIMIT ?""",
            (expression, *where.values, limit),
        ).fetchall()
        return [Hit(self._memory(row), row[15]) for row in rows]

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

    def dump(self) -> tuple[list[Any], list[Any], list[Any]]:
        """Everything the view holds, in order, for comparing two views: rows, past, and the words of every row."""
        words = []
        for (row,) in self._db.execute("SELECT row FROM memories ORDER BY row"):
            found = self._db.execute("SELECT id, sz FROM words_docsize WHERE id = ?", (row,)).fetchone()
            words.append(found)
        total = self._db.execute("SELECT count(*) FROM words_docsize").fetchone()[0]
        return (
            self._db.execute(f"SELECT {COLUMNS} FROM memories ORDER BY row").fetchall(),
            self._db.execute("SELECT * FROM past ORDER BY id, version").fetchall(),
            [*words, total],
        )

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
    view.insert(memory, row=row.version, position=row.position)


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
    view.insert(fold.updated(memory, data, recorded_at=row.recorded_at), row=place, position=row.position)


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
    return Condition(f"({one.sql}) AND ({other.sql})", (*one.values, *other.values))


def time_range(before: datetime | None, after: datetime | None) -> Condition:
    """`after` <= occurred_at < `before`; None leaves an end open."""
    parts, values = ["1"], []
    if after is not None:
        parts.append("occurred_at >= ?")
        values.append(_micros(after))
    if before is not None:
        parts.append("occurred_at < ?")
        values.append(_micros(before))
    return Condition(" AND ".join(parts), tuple(values))


def _stored(memory: Memory) -> tuple[Any, ...]:
    return (
        uuid.UUID(memory.id).bytes,
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


def _text(memory: Memory) -> str:
    return f"{memory.speaker}: {memory.content}" if memory.speaker else memory.content


def _micros(time: datetime) -> int:
    return (time - EPOCH) // MICROSECOND


def _time(micros: int) -> datetime:
    return EPOCH + timedelta(microseconds=micros)


_json_encoder = msgspec.json.Encoder()
_decode_json = msgspec.json.Decoder().decode


def _encode_json(value: Any) -> str:
    return _json_encoder.encode(value).decode()
