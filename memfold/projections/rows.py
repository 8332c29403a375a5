"""The rows of a view: its memories and their history, in an in-memory SQLite database. Nothing of it touches a disk.

A row is numbered by the log position of the event that made its memory, which breaks ties between memories of one time.
"""

import sqlite3
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import msgspec

from memfold.events import (
    NUMBERS,
    MemoriesRestored,
    MemoryForgotten,
    MemoryMerged,
    MemoryRemembered,
    MemoryUpdated,
    WindowCompressed,
)
from memfold.model import Change, ChangeType, Memory, Order, Status
from memfold.projections import fold
from memfold.projections.filters import ALL, FUNCTIONS, Condition

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
BASE_BYTES = 100_000  # what an empty in-memory database with its prepared statements takes
READY_MAX = 1_000
SPACE = "".join(chr(code) for code in range(0x3001) if chr(code).isspace())  # what `str.strip` takes away
MARKS_MAX = 30_000  # values in one statement; SQLite takes 32,766

_CHANGES: dict[int, ChangeType] = {
    NUMBERS[MemoryRemembered]: "remembered",
    NUMBERS[MemoryUpdated]: "updated",
    NUMBERS[MemoryMerged]: "merged",
    NUMBERS[MemoryForgotten]: "forgotten",
    NUMBERS[WindowCompressed]: "compressed",
    NUMBERS[MemoriesRestored]: "restored",
}
ACTIVE = Condition("status = 'active'", ())
"""What is not archived."""


# `session` is the number of the memory's session in this view, `type` that of its newest event. `past` holds the earlier
# versions of memories that were changed, and all versions, without content, of those that were forgotten.
SCHEMA = """
PRAGMA temp_store = MEMORY;
PRAGMA secure_delete = ON;
PRAGMA trusted_schema = OFF;
CREATE TABLE memories (
    row INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, content TEXT NOT NULL, role TEXT, speaker TEXT, category TEXT,
    importance REAL NOT NULL, tags TEXT NOT NULL, metadata TEXT NOT NULL, occurred_at INTEGER NOT NULL,
    created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL,
    position INTEGER NOT NULL, session INTEGER NOT NULL, type INTEGER NOT NULL
);
CREATE INDEX memories_occurred ON memories (occurred_at, row);
CREATE TABLE past (
    id BLOB NOT NULL, version INTEGER NOT NULL, type INTEGER NOT NULL, recorded_at INTEGER NOT NULL, position INTEGER NOT NULL,
    memory BLOB, PRIMARY KEY (id, version)
) WITHOUT ROWID;
"""
COLUMNS = (
    "id, content, role, speaker, category, importance, tags, metadata, "
    "occurred_at, created_at, updated_at, version, status, session, row, position, type"
)
MARKS = ", ".join("?" * (COLUMNS.count(",") + 1))

Said = tuple[str, str | None]
"""A text without space around it, and who speaks."""


class Owner(NamedTuple):
    """A session of a view: its number there, and whose it is."""

    number: int
    session_id: str
    user_id: str
    user: bytes = b""


class Kept(NamedTuple):
    """A memory as it is kept: its row, and the position and type of its newest event."""

    memory: Memory
    row: int
    position: int
    type_number: int


class Table:
    """The memories of a view. `owners` are its sessions, by number."""

    def __init__(self, owners: Sequence[Owner]) -> None:
        self._owners = owners
        self._db = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False, cached_statements=64)
        self._db.executescript(SCHEMA)
        self._ready: dict[int, tuple[Any, ...]] = {}  # rows as they were read last
        for name, arguments, function in FUNCTIONS:
            self._db.create_function(name, arguments, function, deterministic=True)

    def close(self) -> None:
        """Free the memory."""
        self._db.close()

    def begin(self) -> None:
        """What follows takes effect together, with `commit`."""
        self._db.execute("BEGIN")

    def commit(self) -> None:
        """Make what was done since `begin` take effect."""
        self._db.execute("COMMIT")

    def size_bytes(self) -> int:
        """About how much RAM the rows take."""
        pages, size = (self._db.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
        return int(pages * size) + BASE_BYTES

    # -- writing -------------------------------------------------------------------------------------------------------

    def insert(self, kept: Kept, owner: Owner) -> None:
        """Add a memory."""
        values = (*_stored(kept.memory), owner.number, kept.row, kept.position, kept.type_number)
        self._db.execute(f"INSERT INTO memories ({COLUMNS}) VALUES ({MARKS})", values)

    def delete(self, row: int) -> None:
        """Take a memory out."""
        self._db.execute("DELETE FROM memories WHERE row = ?", (row,))
        self._ready.pop(row, None)

    def set_status(self, rows: Sequence[int], status: Status) -> None:
        """Say whether memories are archived."""
        self._db.executemany("UPDATE memories SET status = ? WHERE row = ?", [(status, row) for row in rows])
        for row in rows:
            self._ready.pop(row, None)

    def keep_past(  # noqa: PLR0917
        self, memory_id: bytes, version: int, type_number: int, at: datetime, position: int, memory: Memory | None
    ) -> None:
        """Keep a version that is no longer the newest; without `memory`, only that there was one.

        Whether it is archived is said of a memory, not of its versions.
        """
        blob = None if memory is None else msgspec.msgpack.encode(msgspec.structs.replace(memory, status="active"))
        self._db.execute(
            "INSERT INTO past VALUES (?, ?, ?, ?, ?, ?)", (memory_id, version, type_number, micros(at), position, blob)
        )

    def blank_past(self, memory_id: bytes) -> None:
        """Drop the content of every earlier version of a memory."""
        self._db.execute("UPDATE past SET memory = NULL WHERE id = ?", (memory_id,))

    def next_version(self, memory_id: bytes) -> int:
        """The version number after all that are in the past."""
        found = self._db.execute("SELECT max(version) FROM past WHERE id = ?", (memory_id,)).fetchone()[0]
        return int(found or 0) + 1

    # -- reading -------------------------------------------------------------------------------------------------------

    def current(self, memory_id: bytes) -> Kept | None:
        """A live memory; None if it is not live here."""
        found = self._db.execute(f"SELECT {COLUMNS} FROM memories WHERE id = ?", (memory_id,)).fetchone()
        return Kept(self._memory(found), found[14], found[15], found[16]) if found else None

    def everything(self) -> list[tuple[bytes, Kept]]:
        """All memories with their ids, archived ones too, in the order they were remembered."""
        found = self._db.execute(f"SELECT {COLUMNS} FROM memories ORDER BY row")
        return [(row[0], Kept(self._memory(row), row[14], row[15], row[16])) for row in found]

    def equal(self, said: Collection[Said]) -> dict[Said, Memory]:
        """Of each text and speaker the oldest memory that says this, but for space around it, as far as there is one."""
        query = f"SELECT {COLUMNS} FROM memories WHERE trim(content, ?) IN (SELECT value FROM json_each(?)) ORDER BY row"
        found: dict[Said, Memory] = {}
        for row in self._db.execute(query, (SPACE, _encode_json([text for text, _ in said]))):
            what = (row[1].strip(), row[3])
            if what in said and what not in found:
                found[what] = self._memory(row)
        return found

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

    def matching(self, where: Condition) -> list[int]:
        """The rows that match, rising."""
        return [row for (row,) in self._db.execute(f"SELECT row FROM memories WHERE {where.sql} ORDER BY row", where.values)]

    def of_session(self, number: int) -> list[bytes]:
        """The ids of a session's live memories."""
        return self.ids(Condition("session = ?", (number,)))

    def active_rows(self, number: int) -> list[int]:
        """The rows of a session's memories that are not archived, rising."""
        return self.matching(both(ACTIVE, Condition("session = ?", (number,))))

    def memories(self, rows: Sequence[int]) -> list[Memory]:
        """The memories in these rows. What was read last is kept ready: an agent asks much the same again."""
        missing = [row for row in rows if row not in self._ready]
        if len(self._ready) + len(missing) > READY_MAX:
            self._ready.clear()
            missing = list(rows)
        for some in _portions(missing):
            marks = ", ".join("?" * len(some))
            for found in self._db.execute(f"SELECT {COLUMNS} FROM memories WHERE row IN ({marks})", some):
                self._ready[found[14]] = found
        return [self._memory(self._ready[row]) for row in rows]

    def texts(self, rows: Sequence[int]) -> dict[int, str]:
        """What of each of these rows is searched; `rows` rise."""
        found: dict[int, str] = {}
        for some in _portions(rows):
            marks = ", ".join("?" * len(some))
            query = f"SELECT row, content, speaker FROM memories WHERE row IN ({marks})"
            found |= {row: fold.text_of(content, speaker) for row, content, speaker in self._db.execute(query, some)}
        return found

    def history(self, memory_id: bytes) -> list[Change]:
        """Every version of a memory, first to last; empty if it never was in this view."""
        rows = self._db.execute(
            "SELECT version, type, recorded_at, position, memory FROM past WHERE id = ? ORDER BY version", (memory_id,)
        )
        text = fold.memory_id_text(memory_id)
        changes = [
            _change(text, version, type_number, time(at), position, blob and msgspec.msgpack.decode(blob, type=Memory))
            for version, type_number, at, position, blob in rows
        ]
        if live := self.current(memory_id):
            memory = live.memory
            changes.append(_change(text, memory.version, live.type_number, memory.updated_at, live.position, memory))
        return changes

    def dump(self) -> tuple[list[Any], list[Any]]:
        """All memories and all of the past, in order, for comparing two views."""
        return (
            self._db.execute(f"SELECT {COLUMNS} FROM memories ORDER BY row").fetchall(),
            self._db.execute("SELECT * FROM past ORDER BY id, version").fetchall(),
        )

    def _memory(self, row: Sequence[Any]) -> Memory:
        owner = self._owners[row[13]]
        return Memory(
            id=fold.memory_id_text(row[0]),
            session_id=owner.session_id,
            user_id=owner.user_id,
            content=row[1],
            role=row[2],
            speaker=row[3],
            category=row[4],
            importance=row[5],
            tags=tuple(_decode_json(row[6])) if row[6] != "[]" else (),
            metadata=_decode_json(row[7]) if row[7] != "{}" else {},
            occurred_at=time(row[8]),
            created_at=time(row[9]),
            updated_at=time(row[10]),
            version=row[11],
            status=row[12],
        )


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
        values.append(micros(after))
    if before is not None:
        parts.append("occurred_at < ?")
        values.append(micros(before))
    return Condition(" AND ".join(parts), tuple(values)) if parts else ALL


def micros(at: datetime) -> int:
    """A time as microseconds since 1970."""
    return (at - EPOCH) // MICROSECOND


def time(at: int) -> datetime:
    """The time so many microseconds after 1970."""
    return EPOCH + timedelta(microseconds=at)


def _change(  # noqa: PLR0917
    memory_id: str, version: int, type_number: int, at: datetime, position: int, memory: Memory | None
) -> Change:
    return Change(
        memory_id=memory_id, version=version, type=_CHANGES[type_number], recorded_at=at, position=position, memory=memory
    )


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
        *(micros(memory.occurred_at), micros(memory.created_at), micros(memory.updated_at)),
        memory.version,
        memory.status,
    )


def _portions(rows: Sequence[int]) -> list[Sequence[int]]:
    return [rows[begin : begin + MARKS_MAX] for begin in range(0, len(rows), MARKS_MAX)]


_json_encoder = msgspec.json.Encoder()
_decode_json = msgspec.json.Decoder().decode


def _encode_json(value: Any) -> str:
    return _json_encoder.encode(value).decode()
