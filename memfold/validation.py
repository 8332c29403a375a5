"""Is this something we can keep? Pure checks of what callers hand in, each with an error that names the field.

Limits are generous for a memory and small for a log: what is larger belongs in a document store, with its address here.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import msgspec
from msgspec import UNSET

from memfold.errors import InvalidMemory, InvalidQuery
from memfold.events import MemoryRemembered, MemoryUpdated
from memfold.model import Memory, NewMemory, Ranking

CONTENT_BYTES_MAX = 262_144
METADATA_BYTES_MAX = 65_536
METADATA_DEPTH_MAX = 32
LABEL_CHARACTERS_MAX = 256
NAME_CHARACTERS_MAX = 512
TAGS_MAX = 64
BATCH_MAX = 10_000
BATCH_BYTES_MAX = 64 * 1024 * 1024
LIMIT_MAX = 10_000
DAYS_MAX = 3_653  # ten years
WAIT_S_MAX = 1e9
SESSIONS_MAX = 10_000
INTEGER_MAX = 2**63 - 1

_FIELDS = NewMemory.__struct_fields__
_REASON = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")


def to_event(memory: NewMemory, index: int | None = None) -> MemoryRemembered:
    """The fact that `memory` was remembered.

    Raises:
        InvalidMemory: with the field at fault, and `index` as its place in a batch.
    """
    try:
        return MemoryRemembered(
            content=content(memory.content),
            role=label("role", memory.role),
            speaker=label("speaker", memory.speaker),
            category=label("category", memory.category),
            importance=importance(memory.importance),
            tags=tags(memory.tags),
            metadata=metadata(memory.metadata),
            occurred_at=moment("occurred_at", memory.occurred_at),
        )
    except InvalidMemory as error:
        raise InvalidMemory(error.field, error.problem, index=index) from None


def to_update(**fields: Any) -> MemoryUpdated:
    """The fact that these fields were given new values; UNSET ones are left as they are, None clears.

    Raises:
        InvalidMemory: with the field at fault.
    """
    checks: dict[str, Any] = {
        "content": content,
        "role": lambda value: label("role", value),
        "speaker": lambda value: label("speaker", value),
        "category": lambda value: label("category", value),
        "importance": importance,
        "tags": tags,
        "metadata": metadata,
    }
    return MemoryUpdated(**{name: checks[name](value) for name, value in fields.items() if value is not UNSET})


def as_new_memory(item: object, index: int) -> NewMemory:
    """An item of `remember_many`: a string, a dict of exactly the known fields (`name` means `speaker`), or a NewMemory."""
    if isinstance(item, NewMemory):
        return item
    if isinstance(item, str):
        return NewMemory(content=item)
    if not isinstance(item, Mapping):
        raise InvalidMemory("item", f"is {type(item).__name__}: give a string, a dict or a NewMemory", index=index)
    fields = dict(item)
    if "name" in fields and "speaker" not in fields:
        fields["speaker"] = fields.pop("name")
    unknown = [name for name in fields if name not in _FIELDS]
    if unknown:
        raise InvalidMemory("item", f"has {len(unknown)} unknown field(s): the fields are {', '.join(_FIELDS)}", index=index)
    if "content" not in fields:
        raise InvalidMemory("content", "is missing", index=index)
    return NewMemory(**fields)


def batch(events: Sequence[MemoryRemembered]) -> Sequence[MemoryRemembered]:
    """A batch that fits one append."""
    if len(events) > BATCH_MAX:
        raise InvalidMemory("items", f"has {len(events):,} items, at most {BATCH_MAX:,} fit a batch: split it")
    size = sum(len(event.content) for event in events)
    if size > BATCH_BYTES_MAX:
        raise InvalidMemory("items", f"has {size:,} characters, at most {BATCH_BYTES_MAX:,} fit a batch: split it")
    return events


def content(value: object) -> str:
    text = _text("content", value)
    if not text.strip():
        raise InvalidMemory("content", "is empty: a memory needs words")
    size = len(text.encode())
    if size > CONTENT_BYTES_MAX:
        raise InvalidMemory(
            "content", f"has {size:,} bytes, at most {CONTENT_BYTES_MAX:,} are kept: split it, or store its address"
        )
    return text


def label(field: str, value: object) -> str | None:
    """A short text such as a role or a category."""
    if value is None:
        return None
    text = _text(field, value)
    if not text:
        raise InvalidMemory(field, "is empty: leave it out or give None")
    if len(text) > LABEL_CHARACTERS_MAX:
        raise InvalidMemory(field, f"has {len(text):,} characters, at most {LABEL_CHARACTERS_MAX} are kept")
    return text


def importance(value: object) -> float:
    """A number in [0, 1]; None is the default, 0.5."""
    if value is None:
        return 0.5
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidMemory("importance", f"is {type(value).__name__}: give a number from 0 to 1")
    if not 0 <= value <= 1:
        raise InvalidMemory("importance", "is outside 0 to 1")
    return float(value)


def tags(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise InvalidMemory("tags", f"is {type(value).__name__}: give a list of strings")
    ordered = sorted(value, key=str) if isinstance(value, set | frozenset) else value
    found = dict.fromkeys(label("tags", tag) for tag in ordered)
    if None in found:
        raise InvalidMemory("tags", "holds None: give strings")
    if len(found) > TAGS_MAX:
        raise InvalidMemory("tags", f"has {len(found):,} tags, at most {TAGS_MAX} are kept")
    return tuple(tag for tag in found if tag is not None)


def metadata(value: object) -> dict[str, Any]:
    """A JSON object: strings, finite numbers within 64 bits, booleans, null, lists and objects with string keys."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidMemory("metadata", f"is {type(value).__name__}: give a dict")
    plain: dict[str, Any] = _json(value, METADATA_DEPTH_MAX)
    size = len(msgspec.json.encode(plain))
    if size > METADATA_BYTES_MAX:
        raise InvalidMemory("metadata", f"has {size:,} bytes as JSON, at most {METADATA_BYTES_MAX:,} are kept")
    return plain


def _json(value: object, depth: int) -> Any:
    if depth == 0:
        raise InvalidMemory("metadata", f"is nested deeper than {METADATA_DEPTH_MAX} levels")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return _text("metadata", value)
    if isinstance(value, int):
        if not -INTEGER_MAX - 1 <= value <= INTEGER_MAX:
            raise InvalidMemory("metadata", "holds an integer beyond 64 bits: store it as a string")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise InvalidMemory("metadata", "holds NaN or an infinity: JSON has no word for them")
        return value
    if isinstance(value, Mapping):
        return {_key(key): _json(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner, depth - 1) for inner in value]
    raise InvalidMemory(
        "metadata", f"holds {type(value).__name__}, which JSON does not know: give strings, numbers, lists, dicts"
    )


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise InvalidMemory("metadata", f"has a key of type {type(key).__name__}: keys are strings")
    return _text("metadata", key)


def moment(field: str, value: object) -> datetime | None:
    """An aware datetime."""
    if value is None:
        return None
    if not isinstance(value, datetime):
        raise InvalidMemory(field, f"is {type(value).__name__}: give an aware datetime")
    if value.utcoffset() is None:
        raise InvalidMemory(field, "has no time zone: give an aware datetime, such as datetime.now(timezone.utc)")
    if not 1 < value.year < 9999:
        raise InvalidMemory(field, "lies outside the years 2 to 9998")
    return value


def name(field: str, value: object) -> str:
    """The name of a session, user or tenant, or an idempotency key."""
    text = _text(field, value)
    if not text:
        raise InvalidMemory(field, "is empty")
    if len(text) > NAME_CHARACTERS_MAX:
        raise InvalidMemory(field, f"has {len(text):,} characters, at most {NAME_CHARACTERS_MAX} are kept")
    return text


def merged(memory: Memory) -> None:
    """A memory that something is merged into must stay one that could have been remembered."""
    if len(memory.tags) > TAGS_MAX:
        raise InvalidMemory(
            "tags", f"would be {len(memory.tags)} after merging, at most {TAGS_MAX} are kept: skip it, or keep it apart"
        )
    size = len(msgspec.json.encode(memory.metadata))
    if size > METADATA_BYTES_MAX:
        problem = f"would have {size:,} bytes as JSON after merging, at most {METADATA_BYTES_MAX:,} are kept"
        raise InvalidMemory("metadata", f"{problem}: skip it, or keep it apart")


def reason(value: object) -> str | None:
    """A short code that says why something was forgotten; free text would itself be something to forget."""
    if value is None:
        return None
    if not isinstance(value, str) or not _REASON.fullmatch(value):
        raise InvalidMemory("reason", "is no short code: use up to 64 of a-z 0-9 _ . -, such as user_request")
    return value


def limit(value: object) -> int:
    """How many to return: 1 to LIMIT_MAX."""
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LIMIT_MAX:
        raise InvalidQuery("limit", f"must be a whole number from 1 to {LIMIT_MAX:,}")
    return value


def max_tokens(value: object) -> int:
    """How many tokens a context may have."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidQuery("max_tokens", "must be a whole number of 1 or more")
    return value


def bound(field: str, value: object) -> datetime | None:
    """A `before` or `after`."""
    try:
        return moment(field, value)
    except InvalidMemory as error:
        raise InvalidQuery(field, error.problem) from None


def query(value: object) -> str:
    """What to look for: any text with something in it."""
    if not isinstance(value, str):
        raise InvalidQuery("query", f"is {type(value).__name__}: give a string")
    if not value.strip():
        raise InvalidQuery("query", "is empty: say what to look for, or use find()")
    return value


def score(value: object) -> float:
    """A least score: a number in [0, 1]."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise InvalidQuery("min_score", "must be a number from 0 to 1")
    return float(value)


def ranking(value: object) -> Ranking:
    """Who ranks."""
    if value not in ("learned", "fixed"):
        raise InvalidQuery("ranking", 'must be "learned" or "fixed"')
    return "fixed" if value == "fixed" else "learned"


def days(value: object) -> int:
    """How many days to look back: up to ten years."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= DAYS_MAX:
        raise InvalidQuery("days", f"must be a whole number from 0 to {DAYS_MAX:,}")
    return value


def flag(name: str, value: object) -> bool:
    """True or False."""
    if not isinstance(value, bool):
        raise InvalidQuery(name, "must be True or False")
    return value


def callback(name: str, value: Callable[..., None] | None) -> Callable[..., None] | None:
    """A function, or None."""
    if value is not None and not callable(value):
        raise InvalidQuery(name, f"is {type(value).__name__}: give a function, or None")
    return value


def memory_ids(value: object) -> list[str]:
    """One memory's id, or those of several; what they lead to is looked at later."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Iterable):
        raise InvalidQuery("memory_ids", "is neither the id of a memory nor a list of such")
    ids = list(value)
    if len(ids) > LIMIT_MAX:
        raise InvalidQuery("memory_ids", f"are more than {LIMIT_MAX:,}: give fewer at a time")
    if not all(isinstance(each, str) for each in ids):
        raise InvalidQuery("memory_ids", "hold something that is no id: ids are strings")
    return ids


def wait(value: object, name: str = "wait_s") -> float:
    """How long to wait, in seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0:
        raise InvalidQuery(name, "must be a number of seconds, 0 or more")
    return float(min(value, WAIT_S_MAX))


def asked_name(argument: str, value: object) -> str:
    """The name of a session or user that is asked for, not stored."""
    try:
        return name(argument, value)
    except InvalidMemory as error:
        raise InvalidQuery(argument, error.problem) from None


def session(value: object) -> str:
    """The name of a session to read from."""
    return asked_name("session_id", value)


def on_duplicate(value: object) -> str:
    """What to do with what was said before."""
    if value not in ("keep", "skip", "merge"):
        raise InvalidMemory("duplicates", 'must be "keep", "skip" or "merge"')
    return str(value)


def embedding(value: object) -> str:
    """When the store's own embedder is to see a batch."""
    if value not in ("soon", "deferred"):
        raise InvalidMemory("embedding", 'must be "soon" or "deferred"')
    return str(value)


def similarity(value: object) -> float:
    """The least cosine at which two texts count as the same; at 1 only equal ones do."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise InvalidMemory("duplicate_similarity", "must be a number above 0, up to 1")
    return float(value)


def scope(session_id: object, session_ids: object, user_id: object) -> tuple[tuple[str, ...] | None, str | None]:
    """Which sessions, or whose, a question is about: at most one of the three is given. None and None: the whole tenant."""
    given = {"session_id": session_id, "session_ids": session_ids, "user_id": user_id}
    named = [argument for argument, value in given.items() if value is not None]
    if len(named) > 1:
        raise InvalidQuery(named[1], f"is given besides {named[0]}: name one of them")
    if session_id is not None:
        return (session(session_id),), None
    if user_id is not None:
        return None, asked_name("user_id", user_id)
    if session_ids is None:
        return None, None
    if isinstance(session_ids, str) or not isinstance(session_ids, Iterable):
        raise InvalidQuery("session_ids", f"is {type(session_ids).__name__}: give a list of names")
    names = tuple(dict.fromkeys(asked_name("session_ids", value) for value in session_ids))
    if len(names) > SESSIONS_MAX:
        raise InvalidQuery("session_ids", f"names {len(names):,} sessions, at most {SESSIONS_MAX:,} are asked at once")
    return names, None


def as_of(value: object, now: datetime) -> int | datetime | None:
    """A moment of the past: a position of the log, or an aware datetime."""
    if value is None:
        return None
    if isinstance(value, datetime):
        at = bound("as_of", value)
        if at is not None and at > now:
            raise InvalidQuery("as_of", "lies in the future: nothing has happened there yet")
        return at
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidQuery("as_of", f"is {type(value).__name__}: give an aware datetime or a position of the log")
    if not 0 <= value < 2**63:
        raise InvalidQuery("as_of", "is no position: give 0, or one that an event had")
    return value


def _text(field: str, value: object) -> str:
    if not isinstance(value, str):
        raise InvalidMemory(field, f"is {type(value).__name__}: give a string")
    if "\0" in value:
        raise InvalidMemory(field, "holds a NUL character: remove it")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidMemory(field, "holds half of a surrogate pair: decode it properly first") from None
    return value
