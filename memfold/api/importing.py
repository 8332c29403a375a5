"""Chats that people have, as memories: JSON lines, one message a line, in any of the usual spellings.

Pure part first: `to_message` makes one line a message, or says which field is at fault. Then the file: it is read in windows
of lines, so that one of any length takes little memory, and each window is checked whole before it is stored, session by
session, in batches. A batch has an idempotency key of its lines and its place, and what of it was stored before is found by
the keys of its beginnings: a file that is imported again adds nothing twice, also if it has grown since.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any, BinaryIO, NamedTuple

import msgspec

from memfold import validation
from memfold.api.store import MemoryStore
from memfold.errors import EmbeddingTimeout, InvalidMemory
from memfold.eventstore import arrays
from memfold.model import Embedding, NewMemory

# Windows and batches begin at the same lines whatever follows in the file: a changed size would be a changed key.
WINDOW_LINES = 10_000
WINDOW_BYTES = 16 * 1024 * 1024
BATCH_LINES = 1_000
LINE_BYTES_MAX = 4 * 1024 * 1024
BAD_LINES_NAMED = 1_000
LINES_A_LOOK = 1_000  # read between two looks at the progress
EMBED_LOOK_S = 0.5

# What a field may be called; of several that are given the first counts, and the others are metadata.
CONTENT = ("content", "text", "message", "parts")
SPEAKER = ("speaker", "name", "author")
OCCURRED_AT = ("occurred_at", "timestamp", "created_at", "createdAt")
SESSION = ("session_id", "session", "conversation_id", "thread_id", "sessionId", "conversationId", "threadId")
USER = ("user_id", "user", "userId")
TEXT_PARTS = ("text", "input_text", "output_text")
CALLS = ("tool_calls", "function_call")

UNIX = re.compile(r"-?\d{9,}(\.\d+)?")
MILLISECONDS_FROM = 1e11  # as seconds the year 5138, as milliseconds 1973
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
BOM = b"\xef\xbb\xbf"
NOTHING = (None, "")
ARRAY = "is a JSON array: write one message a line, as jq -c '.[]' chat.json > chat.jsonl does"
LINE_FORM = 'write one message a line, such as {"role": "user", "content": "hello"}'


class Message(NamedTuple):
    """What one line says, checked: it can be stored as it is."""

    session: str
    user: str | None
    memory: NewMemory


class Line(NamedTuple):
    """A line of the file: its number, from 1, and its bytes without the line break."""

    number: int
    raw: bytes


class BadLine(msgspec.Struct, frozen=True):
    """Which line cannot be imported, which field is at fault, and why; never what stands there."""

    line: int
    field: str
    problem: str


class Imported(msgspec.Struct, kw_only=True):
    """How far an import is. `stored_through` is the line up to which everything is stored, or was passed over.

    `messages` could be stored; `stored` were, by this import; `already_stored` by an earlier one. `without_words` said nothing,
    such as tool calls. Of the `invalid` lines the first thousand are named in `invalid_lines`.
    """

    dry_run: bool = False
    lines: int = 0
    bytes: int = 0
    messages: int = 0
    stored: int = 0
    already_stored: int = 0
    without_words: int = 0
    invalid: int = 0
    invalid_lines: list[BadLine] = []
    stored_through: int = 0


# --- a line ------------------------------------------------------------------------------------------------------------------


def to_message(raw: bytes, *, session: str | None = None, user: str | None = None) -> Message | None:
    """What a line says; None if it holds no words, such as a tool call, an image, an empty message.

    `session` and `user` stand for what the line says of them, which is metadata then, as is every key that is not known. A
    missing value, null and an empty string are the same.

    Raises:
        InvalidMemory: with the field at fault.
    """
    fields = _unwrapped(_object(raw))
    content = _words(fields)
    if not content.strip():
        return None
    session_id = _name("session_id", _take(fields, *SESSION) if session is None else session)
    user_id = _name("user_id", _take(fields, *USER) if user is None else user)
    if session_id is None:
        raise InvalidMemory("session_id", "is missing: name one with --session")
    memory = NewMemory(
        content=content,
        role=_take(fields, "role"),
        speaker=_take(fields, *SPEAKER),
        category=_take(fields, "category"),
        importance=_take(fields, "importance"),
        tags=_take(fields, "tags"),
        occurred_at=_moment(_take(fields, *OCCURRED_AT)),
        metadata=_metadata(_take(fields, "metadata"), fields),
    )
    validation.to_event(memory)
    return Message(session_id, user_id, memory)


def _object(raw: bytes) -> dict[str, Any]:
    if raw.lstrip().startswith(b"["):
        raise InvalidMemory("line", ARRAY)
    if len(raw) > LINE_BYTES_MAX:
        raise InvalidMemory("line", f"has more than {LINE_BYTES_MAX:,} bytes: {LINE_FORM}")
    try:
        found = msgspec.json.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidMemory("line", _undecodable(raw, error)) from None
    if not isinstance(found, dict):
        raise InvalidMemory("line", f"is JSON, but no object: {LINE_FORM}")
    return found


def _undecodable(raw: bytes, error: Exception) -> str:
    """Why a line is no JSON. msgspec names the place, not what stands there."""
    try:
        raw.decode()
    except UnicodeDecodeError:
        return "is not UTF-8"
    return f"is no JSON: {error if isinstance(error, msgspec.DecodeError) else 'nested too deeply'}"


def _unwrapped(fields: dict[str, Any]) -> dict[str, Any]:
    """Some logs keep the message in an object of its own, beside its time and session."""
    message = fields.get("message")
    if not isinstance(message, dict) or "content" in fields or "text" in fields:
        return fields
    return {name: value for name, value in fields.items() if name != "message"} | message


def _words(fields: dict[str, Any]) -> str:
    """The text of a message; taken from the fields."""
    given = any(name in fields for name in CONTENT)
    value = _take(fields, *CONTENT)
    if isinstance(value, list):
        return "\n".join(filter(None, map(_part, value)))
    if value is not None:
        return value if isinstance(value, str) else validation.content(value)  # which refuses it
    if given or any(name in fields for name in CALLS):
        return ""
    if "messages" in fields:
        raise InvalidMemory("content", "is missing, and messages stands there: write one a line, as jq -c '.messages[]' does")
    raise InvalidMemory("content", "is missing: it is looked for as content, text or message")


def _part(part: object) -> str:
    """The text of a part of a message; empty if it is an image, a tool call or another thing without words."""
    if isinstance(part, str):
        return part
    if not isinstance(part, dict):
        raise InvalidMemory("content", f"holds {type(part).__name__}: give a string or a list of parts")
    text = part.get("text")
    return text if isinstance(text, str) and part.get("type", "text") in TEXT_PARTS else ""


def _take(fields: dict[str, Any], *names: str) -> Any:
    """The first of these that says something, which is taken out of the fields."""
    return next((fields.pop(name) for name in names if fields.get(name) not in NOTHING), None)


def _name(field: str, value: object) -> str | None:
    """A name; many have whole numbers for it."""
    if value is None:
        return None
    return validation.name(field, str(value) if isinstance(value, int) and not isinstance(value, bool) else value)


def _moment(value: object) -> datetime | None:
    """ISO 8601, of this machine's time zone if it has no offset, or Unix time in seconds or milliseconds."""
    if value is None:
        return None
    try:
        if isinstance(value, str) and not UNIX.fullmatch(value.strip()):
            given = datetime.fromisoformat(value.strip())
            return given.astimezone() if given.tzinfo is None else given
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            number = float(value)
            return EPOCH + timedelta(milliseconds=number if abs(number) >= MILLISECONDS_FROM else number * 1000)
    except (ValueError, OverflowError, OSError):
        pass
    raise InvalidMemory("occurred_at", "is no time: give ISO 8601, or Unix seconds or milliseconds")


def _metadata(given: object, unknown: dict[str, Any]) -> Any:
    """What was given as metadata, and every unknown key that says something and is not in there."""
    if given is not None and not isinstance(given, dict):
        return given  # which validation refuses
    return {name: value for name, value in unknown.items() if value not in NOTHING} | (given or {})


# --- a file ------------------------------------------------------------------------------------------------------------------


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """The lines of a file. Of one that is too long only the beginning, which is too long already.

    Raises:
        InvalidMemory: the file cannot be read any further.
    """
    number = 0
    try:
        while raw := file.readline(LINE_BYTES_MAX + 2):
            rest = raw
            while len(rest) > LINE_BYTES_MAX and not rest.endswith(b"\n"):
                rest = file.readline(LINE_BYTES_MAX + 2)
            number += 1
            yield Line(number, (raw.removeprefix(BOM) if number == 1 else raw).rstrip(b"\r\n"))
    except OSError as error:
        raise InvalidMemory("file", f"cannot be read behind line {number:,}: {error.strerror}") from None


def windows(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """The lines, in stretches that fit in memory. Where one ends depends on nothing behind it."""
    window: list[Line] = []
    size = 0
    for line in lines:
        window.append(line)
        size += len(line.raw)
        if len(window) == WINDOW_LINES or size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def batch_keys(lines: Sequence[Line]) -> list[str]:
    """An idempotency key for every beginning of a batch: a digest of its lines, and where it begins."""
    digest = sha256()
    keys = []
    for line in lines:
        digest.update(len(line.raw).to_bytes(4, "big") + line.raw)
        keys.append(f"import {lines[0].number} {digest.hexdigest()}")
    return keys


Look = Callable[[Imported], None]


def _look_away(_: Imported) -> None:
    """Where nobody watches."""


class Batch(NamedTuple):
    """Messages of one session and the lines they stand in, in order."""

    session: str
    user: str | None
    lines: list[Line]
    memories: list[NewMemory]

    def behind(self, count: int) -> "Batch":
        """This batch without its first messages."""
        return self._replace(lines=self.lines[count:], memories=self.memories[count:])


class Importer:
    """Imports one file into a store; without one, checks it only. `report` says how far it is, also after an error."""

    def __init__(
        self,
        store: MemoryStore | None,
        *,
        session: str | None = None,
        user: str | None = None,
        skip_invalid: bool = False,
        embedding: Embedding = "soon",
    ) -> None:
        self.report = Imported(dry_run=store is None)
        self._store = store
        self._session = session
        self._user = user
        self._embedding: Embedding = embedding
        self._goes_on = skip_invalid or store is None
        self._look: Look = _look_away

    def run(self, file: BinaryIO, look: Look = _look_away) -> Imported:
        """Import the file. Without `skip_invalid`, ends before the first window of lines in which one is invalid.

        A file may be imported again, whole, whatever became of the first time: what is stored is not stored twice. `look`
        is shown the report now and then.

        Raises: what `MemoryStore.remember_many` raises; SessionOwnerConflict: a session belongs to another user;
        InvalidMemory: the file cannot be read any further.
        """
        self._look = look
        for window in windows(read_lines(file)):
            batches = self._batches(window)
            if self.report.invalid and not self._goes_on:
                break
            for batch in batches if self._store else ():
                self._keep(batch)
                self._look(self.report)
            if self._store:
                self.report.stored_through = window[-1].number
        self._look(self.report)
        return self.report

    def _batches(self, window: Sequence[Line]) -> list[Batch]:
        """The messages of a window by session, at most a thousand each, in the order of the file."""
        sessions: dict[str, list[Batch]] = {}
        users: dict[str, str] = {}
        for line in window:
            try:
                message = self._message(line, users)
            except InvalidMemory as error:
                self._refuse(line, error)
                continue
            if message:
                batches = sessions.setdefault(message.session, [])
                if not batches or len(batches[-1].lines) == BATCH_LINES:
                    batches.append(Batch(message.session, None, [], []))
                batches[-1].lines.append(line)
                batches[-1].memories.append(message.memory)
        return [batch._replace(user=users.get(batch.session)) for batches in sessions.values() for batch in batches]

    def _message(self, line: Line, users: dict[str, str]) -> Message | None:
        self.report.lines += 1
        self.report.bytes += len(line.raw) + 1
        if line.number % LINES_A_LOOK == 0:
            self._look(self.report)
        if not line.raw.strip():
            return None
        message = to_message(line.raw, session=self._session, user=self._user)
        if message is None:
            self.report.without_words += 1
            return None
        if message.user is not None and users.setdefault(message.session, message.user) != message.user:
            raise InvalidMemory("user_id", "is another than above in this session, which belongs to one: name it with --user")
        self.report.messages += 1
        return message

    def _refuse(self, line: Line, error: InvalidMemory) -> None:
        self.report.invalid += 1
        if len(self.report.invalid_lines) < BAD_LINES_NAMED:
            self.report.invalid_lines.append(BadLine(line.number, error.field, error.problem))

    def _keep(self, batch: Batch) -> None:
        """Store what of a batch is not stored yet."""
        assert self._store is not None
        while batch.lines:
            keys = batch_keys(batch.lines)
            done = stored_before(self._store, batch.session, keys)
            self.report.already_stored += done
            if done == 0:
                self._store.remember_many(
                    batch.memories,
                    session_id=batch.session,
                    user_id=batch.user,
                    idempotency_key=keys[-1],
                    embedding=self._embedding,
                )
                self.report.stored += len(batch.lines)
                return
            batch = batch.behind(done)


def stored_before(store: MemoryStore, session: str, keys: Sequence[str]) -> int:
    """How many messages of a batch are stored: the longest beginning whose key was used. Also if some were forgotten since.

    No verb asks this: `remember_many` answers for one key, and for a batch of which something was forgotten not at all.
    """
    ref = store._keyring.find_session(session)
    if ref is None:
        return 0
    lengths = {store._keyring.idempotency_hmac(ref.stream, key): length for length, key in enumerate(keys, 1)}
    query = "SELECT key_hmac FROM memfold.idempotency WHERE tenant_id = %s AND stream_id = %s AND key_hmac = ANY(%b)"
    parameters = (store._keyring.tenant, arrays.uuid(ref.stream), arrays.bytea_array(list(lengths)))
    return max((lengths[row.key_hmac] for row in store._database.rows(query, parameters)), default=0)


def told(report: Imported) -> dict[str, object]:
    """A report for people: counts, and what is wrong with each line that was refused."""
    counts: dict[str, object] = {
        "lines": report.lines,
        "messages": report.messages,
        "stored": "nothing: it was a dry run" if report.dry_run else report.stored,
        "already stored": report.already_stored,
        "without words": report.without_words,
        "invalid": report.invalid,
    }
    return counts | {f"line {bad.line}": f"{bad.field} {bad.problem}" for bad in report.invalid_lines}


def refusal(report: Imported) -> str:
    """Which line is the first that cannot be imported, and why."""
    bad = report.invalid_lines[0]
    others = f" (and {report.invalid - 1:,} more)" if report.invalid > 1 else ""
    return f"line {bad.line}: {bad.field} {bad.problem}{others}: mend it, or add --skip-invalid"


def so_far(report: Imported) -> str:
    """What an import that ended early has stored, and how to go on."""
    if report.dry_run:
        return "nothing was stored: it was a dry run"
    if not report.stored and not report.already_stored:
        return "nothing was stored"
    stored = f"{report.stored:,} memories were stored" + f", {report.already_stored:,} before" * bool(report.already_stored)
    return f"before that, {stored}, among them every line up to {report.stored_through:,}: the same import again goes on there"


def embed(store: MemoryStore, look: Callable[[int, int], None]) -> None:
    """Wait until everything is embedded; `look` is told how many events were, and of how many.

    Raises:
        EmbedderFailed: the embedder fails on some of it.
    """
    total = store.stats().embedding_lag
    while True:
        try:
            store.flush(EMBED_LOOK_S)
        except EmbeddingTimeout as error:
            total = max(total, error.lag)
            look(total - error.lag, total)
        else:
            look(total, total)
            return
