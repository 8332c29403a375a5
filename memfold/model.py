"""What callers hand in and get back: frozen structs without behaviour.

Every time is an aware `datetime` in UTC. No `repr` shows content, names, tags or metadata: a memory may end up in a log
line, its words must not.
"""

from datetime import date, datetime
from typing import Any, ClassVar, Literal

import msgspec
from msgspec import UNSET, UnsetType

from memfold.events import Event

Status = Literal["active", "archived"]
Order = Literal["newest", "oldest"]
ChangeType = Literal["remembered", "updated", "merged", "forgotten", "compressed", "restored"]
Embedding = Literal["soon", "deferred"]
OnDuplicate = Literal["keep", "skip", "merge"]
Ranking = Literal["learned", "fixed"]
Scope = Literal["memory", "filter", "session", "user"]


class Discreet(msgspec.Struct, frozen=True):
    """A struct whose `repr` names only the fields in `shown`."""

    shown: ClassVar[tuple[str, ...]] = ()

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={getattr(self, name)!r}" for name in self.shown)
        return f"{type(self).__name__}({fields})"

    def __rich_repr__(self) -> Any:
        for name in self.shown:
            yield name, getattr(self, name)


class NewMemory(Discreet, frozen=True, kw_only=True):
    """A memory to be, as `remember_many` takes it. See `MemoryStore.remember` for the fields."""

    content: str
    role: str | None = None
    speaker: str | None = None
    category: str | None = None
    importance: float | None = 0.5
    tags: tuple[str, ...] | list[str] | None = ()
    metadata: dict[str, Any] | None = None
    occurred_at: datetime | None = None


class Memory(Discreet, frozen=True, kw_only=True):
    """One memory as it stands at `version` (1, 2, 3 … for this memory).

    `importance` is in [0, 1]. `occurred_at` is when it happened (by default, when it was remembered; of a summary, when the
    last of what it sums up did); `created_at` and `updated_at` are when the log recorded its first and its newest version.
    `status` "archived": it is out of recall, because a summary stands for it or because it faded.
    """

    shown = ("id", "version", "status")

    id: str
    session_id: str
    user_id: str
    content: str
    role: str | None
    speaker: str | None
    category: str | None
    importance: float
    tags: tuple[str, ...]
    metadata: dict[str, Any]
    occurred_at: datetime
    created_at: datetime
    updated_at: datetime
    version: int
    status: Status = "active"


class Recollection(Discreet, frozen=True, kw_only=True):
    """A memory that `recall` found. `score` is in [0, 1]; `parts` holds what it was made of, by name, if that was asked for."""

    shown = ("memory", "score", "parts")

    memory: Memory
    score: float
    parts: dict[str, float]


class Recollections(list[Recollection]):
    """The answer of `recall`, best first.

    `position`: everything in the scope up to this log position was looked at. `model`: which embeddings answered
    (None: words alone). `withheld`: how many memories were left out because they have been forgotten since.
    """

    def __init__(self, found: list[Recollection], *, position: int, model: str | None = None, withheld: int = 0) -> None:
        super().__init__(found)
        self.position = position
        self.model = model
        self.withheld = withheld


class Context(Discreet, frozen=True, kw_only=True):
    """The part of memory that goes into a prompt. `str(context)` is its text, as it goes in; empty if nothing was found.

    `tokens` is how many `text` has, never more than `max_tokens`. `memory_ids` are the memories in it, in reading order;
    `groups` holds them by group, in the order of the text. `too_long` are found memories that would not fit even alone.
    `position`, `model` and `withheld` are as in `Recollections`.
    """

    shown = ("tokens", "max_tokens", "position", "model")

    text: str
    tokens: int
    max_tokens: int
    memory_ids: tuple[str, ...]
    groups: dict[str, tuple[Memory, ...]]
    too_long: tuple[str, ...]
    position: int
    model: str | None
    withheld: int

    def __str__(self) -> str:
        return self.text


class Page(Discreet, frozen=True, kw_only=True):
    """Some memories and where to go on: hand `cursor` to the next `find`; None at the end.

    `position` and `withheld` are as in `Recollections`.
    """

    shown = ("memories", "cursor", "position", "withheld")

    memories: list[Memory]
    cursor: str | None
    position: int = 0
    withheld: int = 0


class Change(Discreet, frozen=True, kw_only=True):
    """One version of a memory. `memory` is how it stood then; None once it is forgotten."""

    shown = ("memory_id", "version", "type", "recorded_at", "position")

    memory_id: str
    version: int
    type: ChangeType
    recorded_at: datetime
    position: int
    memory: Memory | None


class Session(Discreet, frozen=True, kw_only=True):
    """A session as `sessions` lists it: its live memories, its events, and the times of the first and the last event."""

    shown = ("memories", "events", "created_at", "updated_at")

    session_id: str
    user_id: str
    memories: int
    events: int
    created_at: datetime
    updated_at: datetime


class SessionPage(Discreet, frozen=True, kw_only=True):
    """Some sessions, newest first, and the cursor of the next page; None at the end."""

    shown = ("sessions", "cursor")

    sessions: list[Session]
    cursor: str | None


class DayStats(Discreet, frozen=True, kw_only=True):
    """What was appended on a day of UTC: events, and the bytes of their sealed content that are still there."""

    shown = ("day", "events", "bytes")

    day: date
    events: int
    bytes: int


class CategoryStats(Discreet, frozen=True, kw_only=True):
    """The memories of a category, archived ones too, and the bytes of their content in UTF-8."""

    shown = ("memories", "bytes")

    memories: int
    bytes: int


class Stats(Discreet, frozen=True, kw_only=True):
    """Counts of a session, or of the whole tenant.

    `position` is the settled position (of a session: its last event's). `database_bytes` is the size of the whole
    database (None for a session). `embedder` names the model of this store, and `embedding_lag` counts the events that wait
    for their vector. `views` and `view_bytes` count the folded views this process holds in RAM. Of the recalls of this
    process, `query_hit_rate` is the share whose query's vector was there already, `recall_hit_rate` the share that was
    answered without a search, for nothing had changed since the same question; in [0, 1], None before the first.

    `memories` were remembered and not forgotten, archived or not; `summaries` live beside them, and `archived` counts what is
    out of default recall, summaries too. `tokens_before` are those of what living summaries were made from, `tokens_after`
    their own, `compression_ratio` the second by the first. `growth` is what was appended day by day, if days were asked for.
    Of a session, `categories` says what it holds, and `near_limits` which limits of its retention are used to 80 %, if details
    were asked for.
    """

    shown = (
        *("sessions", "users", "memories", "forgotten", "events", "position", "database_bytes"),
        *("embedder", "embedding_lag", "views", "view_bytes", "query_hit_rate", "recall_hit_rate"),
        *("summaries", "archived", "tokens_before", "tokens_after", "compression_ratio", "near_limits"),
    )

    sessions: int
    users: int
    memories: int
    forgotten: int
    events: int
    position: int
    database_bytes: int | None
    embedder: str
    embedding_lag: int
    views: int
    view_bytes: int
    query_hit_rate: float | None
    recall_hit_rate: float | None
    summaries: int = 0
    archived: int = 0
    tokens_before: int = 0
    tokens_after: int = 0
    compression_ratio: float | None = None
    growth: tuple[DayStats, ...] = ()
    categories: dict[str, CategoryStats] = {}
    near_limits: tuple[str, ...] = ()


class CompressedWindow(Discreet, frozen=True, kw_only=True):
    """A window that became a summary, or would. `level` is 1 for a summary of memories, 2 for one of summaries, and so on.

    `tokens_after` are the summary's, of a dry run without summaries its target. `summary_id` is None in a dry run, and `text`
    in one without summaries.
    """

    shown = ("memories", "level", "tokens_before", "tokens_after", "summary_id")

    memory_ids: tuple[str, ...]
    level: int
    tokens_before: int
    tokens_after: int
    summary_id: str | None
    text: str | None

    @property
    def memories(self) -> int:
        """How many it is made of."""
        return len(self.memory_ids)


class FailedWindow(Discreet, frozen=True, kw_only=True):
    """A window that could not be summarized: its memories are as they were. `retry`: another try may help."""

    shown = ("key", "problem", "retry")

    key: str
    memory_ids: tuple[str, ...]
    problem: str
    retry: bool


class SessionConsolidation(Discreet, frozen=True, kw_only=True):
    """What was done in a session, or would be.

    `faded` memories were archived, `expired` ones forgotten, because of a retention. `near_limits` names the limits of which
    80 % are used. `due_at` is when there is more to do, if nothing is remembered until then; None: never. `stopped` says why
    not everything was done, None if it was. `version` is that of the session's stream afterwards; `memories` are in it.
    """

    shown = ("version", "windows_count", "failed_count", "faded_count", "expired_count", "due_at", "stopped")

    session_id: str
    stream_id: str
    version: int
    policy_version: int
    memories: int
    windows: tuple[CompressedWindow, ...]
    failed: tuple[FailedWindow, ...]
    faded: tuple[str, ...]
    expired: tuple[str, ...]
    near_limits: tuple[str, ...]
    due_at: datetime | None
    stopped: str | None

    @property
    def windows_count(self) -> int:
        """How many windows became a summary, or would."""
        return len(self.windows)

    @property
    def failed_count(self) -> int:
        """How many could not be summarized."""
        return len(self.failed)

    @property
    def faded_count(self) -> int:
        """How many memories faded."""
        return len(self.faded)

    @property
    def expired_count(self) -> int:
        """How many memories were forgotten, or would be."""
        return len(self.expired)

    @property
    def did_something(self) -> bool:
        """Whether anything was done, or would be."""
        return bool(self.windows or self.faded or self.expired)


class ParkedWork(Discreet, frozen=True, kw_only=True):
    """Something that failed and was set aside, so that it holds up nothing else.

    `job` is "consolidate" (a window) or "directory" (a session). `next_at` is when it is tried again by itself; None: not
    before somebody asks for it.
    """

    shown = ("job", "reason", "attempts", "first_at", "next_at")

    job: str
    session_id: str
    stream_id: str
    reason: str
    attempts: int
    first_at: datetime
    next_at: datetime | None


class JobStatus(Discreet, frozen=True, kw_only=True):
    """How a job of the workers fares.

    `name` is "consolidate" (which lets fade and forgets too), "embed" or "directory". `due` counts what waits to be done:
    sessions (10,000 at most are counted), or events. `has_worker`: a living worker has taken it on, and `next_at` is when that
    one runs it next. `running`: it is at it now; `beat_at` is its last sign of life. `runs` counts those that ended, `failures`
    those in a row that failed. `reason` says why the last one did, or what else there is to say of it.
    """

    shown = (
        *("name", "due", "has_worker", "running", "last_started_at", "last_finished_at", "next_at", "beat_at"),
        *("runs", "failures", "reason"),
    )

    name: str
    due: int
    has_worker: bool
    running: bool
    last_started_at: datetime | None
    last_finished_at: datetime | None
    next_at: datetime | None
    beat_at: datetime | None
    runs: int
    failures: int
    reason: str | None


class NearLimit(Discreet, frozen=True, kw_only=True):
    """A limit of which 80 % or more is used: of a retention in a session, or of what may be spent in a day."""

    shown = ("limit", "used", "allowed")

    limit: str
    used: float
    allowed: float
    session_id: str | None


class WorkStatus(Discreet, frozen=True, kw_only=True):
    """How the work behind the log fares: `memfold work`, `MemoryStore(background=True)`, and who calls `consolidate`.

    `directory_lag` counts the events that the directory does not know of, `embedding_lag` those without a vector. Tokens and
    `cost` are what summarizers have charged this tenant, `today` by UTC. `parked` counts what was set aside or waits for
    another try, by job; `parked()` lists it. `near_limits` are those of which 80 % is used, 100 at most.
    """

    shown = (
        *("jobs", "directory_lag", "embedding_lag", "summarizer", "tokens_today", "tokens", "cost_today", "cost"),
        *("parked", "near_limits"),
    )

    jobs: tuple[JobStatus, ...]
    directory_lag: int
    embedding_lag: int
    summarizer: str | None
    tokens_today: int
    tokens: int
    cost_today: float
    cost: float
    parked: dict[str, int]
    near_limits: tuple[NearLimit, ...]


class Consolidation(Discreet, frozen=True, kw_only=True):
    """What a run of the consolidator did, or with `dry_run` would do, session by session.

    `prompt_tokens`, `completion_tokens` and `cost` are what the summarizer charged. `stopped` says why it ended before all was
    done: a cap was reached, or another worker is at it; None if it was done.
    """

    shown = (
        *("sessions_count", "windows_count", "tokens_before", "tokens_after", "failed_count", "faded_count", "expired_count"),
        *("dry_run", "prompt_tokens", "completion_tokens", "cost", "stopped"),
    )

    sessions: tuple[SessionConsolidation, ...]
    dry_run: bool
    prompt_tokens: int
    completion_tokens: int
    cost: float
    stopped: str | None

    @property
    def sessions_count(self) -> int:
        """How many sessions were looked at; one that was looked at again counts once."""
        return len({session.stream_id for session in self.sessions})

    @property
    def windows(self) -> tuple[CompressedWindow, ...]:
        """The windows of all sessions."""
        return tuple(window for session in self.sessions for window in session.windows)

    @property
    def windows_count(self) -> int:
        """How many windows became a summary, or would."""
        return len(self.windows)

    @property
    def failed_count(self) -> int:
        """How many windows could not be summarized."""
        return sum(session.failed_count for session in self.sessions)

    @property
    def faded_count(self) -> int:
        """How many memories faded."""
        return sum(session.faded_count for session in self.sessions)

    @property
    def expired_count(self) -> int:
        """How many memories were forgotten, or would be."""
        return sum(session.expired_count for session in self.sessions)

    @property
    def tokens_before(self) -> int:
        """Tokens of everything that became, or would become, a summary."""
        return sum(window.tokens_before for window in self.windows)

    @property
    def tokens_after(self) -> int:
        """Tokens of the summaries."""
        return sum(window.tokens_after for window in self.windows)


class StoredEvent(Discreet, frozen=True, kw_only=True):
    """An event as it stands in the log.

    `version` counts the events of its stream without gaps; `position` orders the whole log, with gaps. `data` is the
    opened event, None once erased; `session_id` is None once its session is forgotten, and for the tenant's own events.
    """

    shown = ("position", "version", "type", "event_id", "memory_id", "recorded_at")

    position: int
    event_id: str
    stream_id: str
    session_id: str | None
    version: int
    type: str
    schema_version: int
    memory_id: str | None
    recorded_at: datetime
    digest: bytes
    data: Event | None


class Erasure(Discreet, frozen=True, kw_only=True):
    """What a forget destroyed, named by id and position, never by content.

    `position` and `recorded_at` are those of the (last) fact appended; None if there was nothing to forget.
    `memory_ids` were forgotten; the keys of the events at `erased_positions` were deleted, `keys_deleted` of them.
    Deleted rows may survive in dead heap pages and in WAL until the keys above them are rotated.
    """

    shown = ("scope", "position", "recorded_at", "memory_ids", "keys_deleted", "reason")

    scope: Scope
    position: int | None
    recorded_at: datetime | None
    memory_ids: tuple[str, ...]
    erased_positions: tuple[int, ...]
    keys_deleted: int
    reason: str | None = None


__all__ = [
    "UNSET",
    "Change",
    "ChangeType",
    "Context",
    "Discreet",
    "Embedding",
    "Erasure",
    "JobStatus",
    "Memory",
    "NearLimit",
    "NewMemory",
    "OnDuplicate",
    "Order",
    "Page",
    "Ranking",
    "Recollection",
    "Recollections",
    "Scope",
    "Session",
    "SessionPage",
    "Stats",
    "Status",
    "StoredEvent",
    "UnsetType",
    "WorkStatus",
]
