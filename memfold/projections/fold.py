"""What each event does to a memory, as pure functions.

The view folds a stream with them, and the doors use them to say what an append has made: one meaning, one place.
"""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any

import msgspec
from msgspec import UNSET

from memfold.events import MemoryMerged, MemoryRemembered, MemoryUpdated, WindowCompressed
from memfold.eventstore.codec import LoggedEvent
from memfold.model import Memory


def memory_id_text(memory_id: bytes) -> str:
    """An id as callers see it. Four times as fast as by way of `uuid.UUID`, and every event has three."""
    text = memory_id.hex()
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"


def memory_id_bytes(text: str) -> bytes:
    """The id that `memory_id_text` gave."""
    return bytes.fromhex(text.replace("-", ""))


def remembered(event: MemoryRemembered, *, memory_id: bytes, session_id: str, user_id: str, recorded_at: datetime) -> Memory:
    """The memory that a MemoryRemembered makes."""
    return Memory(
        id=memory_id_text(memory_id),
        session_id=session_id,
        user_id=user_id,
        content=event.content,
        role=event.role,
        speaker=event.speaker,
        category=event.category,
        importance=event.importance,
        tags=event.tags,
        metadata=event.metadata,
        occurred_at=(event.occurred_at or recorded_at).astimezone(UTC),
        created_at=recorded_at,
        updated_at=recorded_at,
        version=1,
    )


def compressed(event: WindowCompressed, *, memory_id: bytes, session_id: str, user_id: str, recorded_at: datetime) -> Memory:
    """The summary that a WindowCompressed makes."""
    return Memory(
        id=memory_id_text(memory_id),
        session_id=session_id,
        user_id=user_id,
        content=event.content,
        role=None,
        speaker=None,
        category=event.category,
        importance=event.importance,
        tags=event.tags,
        metadata=event.metadata,
        occurred_at=event.occurred_at.astimezone(UTC),
        created_at=recorded_at,
        updated_at=recorded_at,
        version=1,
    )


def updated(memory: Memory, event: MemoryUpdated, *, recorded_at: datetime) -> Memory:
    """`memory` after a MemoryUpdated."""
    return msgspec.structs.replace(memory, **dict(given(event)), updated_at=recorded_at, version=memory.version + 1)


def merged(memory: Memory, event: MemoryMerged, *, recorded_at: datetime) -> Memory:
    """`memory` after a MemoryMerged: as it was, with the tags and metadata it did not have, and the greater importance."""
    return msgspec.structs.replace(
        memory,
        importance=max(memory.importance, event.importance),
        tags=tuple(dict.fromkeys((*memory.tags, *event.tags))),
        metadata={**event.metadata, **memory.metadata},
        updated_at=recorded_at,
        version=memory.version + 1,
    )


def changed(memory: Memory, event: MemoryUpdated | MemoryMerged, *, recorded_at: datetime) -> Memory:
    """`memory` after whatever changed it."""
    apply = updated if isinstance(event, MemoryUpdated) else merged
    return apply(memory, event, recorded_at=recorded_at)  # type: ignore[arg-type]


def given(event: MemoryUpdated) -> Iterator[tuple[str, Any]]:
    """The fields that an update sets, with their new values."""
    for name in event.__struct_fields__:
        value = getattr(event, name)
        if value is not UNSET:
            yield name, value


def text_of(content: str, speaker: str | None) -> str:
    """What of a memory is searched, by words and by meaning."""
    return f"{speaker}: {content}" if speaker else content


def texts(events: Iterable[LoggedEvent]) -> dict[int, str]:
    """The text that each event left its memory with, by position. Needs all events of a memory up to the last one asked for."""
    found: dict[int, str] = {}
    said: dict[bytes, dict[str, Any]] = {}
    for row, data in sorted(events, key=lambda event: event.row.position):
        memory_id = row.memory_id or b""
        if isinstance(data, MemoryRemembered):
            said[memory_id] = {"content": data.content, "speaker": data.speaker}
        elif isinstance(data, WindowCompressed):
            said[memory_id] = {"content": data.content, "speaker": None}
        elif isinstance(data, MemoryMerged) and memory_id in said:
            pass  # the memory keeps its words
        elif isinstance(data, MemoryUpdated) and memory_id in said:
            said[memory_id] |= {name: value for name, value in given(data) if name in said[memory_id]}
        else:
            continue
        found[row.position] = text_of(**said[memory_id])
    return found
