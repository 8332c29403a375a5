"""Every error memfold raises, as one tree.

    MemfoldError
    ├── InvalidMemory          a memory, or a part of one, that cannot be stored
    ├── InvalidQuery           a limit, cursor, query or time range that makes no sense
    │   └── FilterError        a malformed `where`, with the path to the fault
    ├── MemoryNotFound
    ├── MemoryForgotten
    ├── VersionConflict        somebody changed the memory since you read it
    ├── Contended              the store gave up after many lost races: try again
    ├── SessionOwnerConflict   the session belongs to another user
    ├── IdempotencyConflict    the idempotency key was used for something else
    ├── StoreClosed
    ├── ForkedStore            the store was opened in the parent process
    ├── StoreUnavailable       the database cannot be reached or refuses to write; says what became of the write
    ├── KeyUnavailable         no master key, or not the one this store was sealed with
    ├── DatabaseUnsuitable     the server would not keep our promises (fsync off, too old, a pooler, …)
    │   └── SchemaTooNew       written by a later memfold
    ├── EmbeddedServerError    the embedded PostgreSQL could not be set up or started
    │   └── DataFolderVersion  the data folder belongs to another PostgreSQL major version
    ├── CorruptEvent           a stored event does not open with its key
    ├── EmbedderFailed         the embedder raised, or returned something that is no unit vector a text
    │   └── ModelFileError     a file of memfold's own models is missing or altered
    ├── RerankerFailed         the reranker given to the store did not do what it promises
    ├── SummarizerFailed       a summarizer could not say a window in fewer words; memories are as they were
    ├── EmbeddingTimeout       not everything was embedded in the time given
    └── SettingsError          a setting or argument of the store itself is unusable
        ├── RankingFileError   a file of weights that does not fit this memfold
        └── PolicyError        a policy that makes no sense, with the path to the fault

A class exists where a caller would act differently. Facts are attributes; the message says what happened, where, and
what to do next. No message holds content, a query, a filter value, or the name of a session or user.
"""

from collections.abc import Sequence
from typing import Literal

Outcome = Literal["not_written", "unknown"]


class MemfoldError(Exception):
    """The root of all errors that memfold raises on purpose."""


class InvalidMemory(MemfoldError):
    """A memory, or a field of one, cannot be stored. `field` names it, `index` its place in a batch."""

    def __init__(self, field: str, problem: str, *, index: int | None = None) -> None:
        self.field = field
        self.problem = problem
        self.index = index
        where = field if index is None else f"item {index}: {field}"
        super().__init__(f"{where} {problem}; nothing was stored")


class InvalidQuery(MemfoldError):
    """An argument of a read makes no sense. `argument` names it."""

    def __init__(self, argument: str, problem: str) -> None:
        self.argument = argument
        self.problem = problem
        super().__init__(f"{argument} {problem}")


class FilterError(InvalidQuery):
    """A `where` filter is malformed. `path` leads to the fault, such as `$and[1].importance.$gt`."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__("where", f"at {path}: {problem}" if path else problem)


class MemoryNotFound(MemfoldError):
    """No memory of this tenant ever had this id."""

    def __init__(self, memory_id: str) -> None:
        self.memory_id = memory_id
        super().__init__(f"there is no memory {memory_id}: check the id and the tenant")


class MemoryForgotten(MemfoldError):
    """The memory existed and was forgotten; its content cannot be had back."""

    def __init__(self, memory_id: str) -> None:
        self.memory_id = memory_id
        super().__init__(f"memory {memory_id} was forgotten; history() still lists its changes, without content")


class VersionConflict(MemfoldError):
    """The memory is not at the version the caller expected; nothing was changed."""

    def __init__(self, memory_id: str, *, expected: int, actual: int) -> None:
        self.memory_id = memory_id
        self.expected = expected
        self.actual = actual
        super().__init__(
            f"memory {memory_id} is at version {actual}, not {expected}: read it again and decide anew; nothing was changed"
        )


class Contended(MemfoldError):
    """Others kept changing the same memories; nothing was written."""

    def __init__(self, attempts: int) -> None:
        self.attempts = attempts
        super().__init__(f"lost {attempts} races against concurrent changes; nothing was written: try again")


class SessionOwnerConflict(MemfoldError):
    """The session belongs to another user, by its first remember."""

    def __init__(self) -> None:
        super().__init__(
            "this session belongs to another user_id, fixed by its first remember: "
            "use that user_id, or another session_id; nothing was stored"
        )


class IdempotencyConflict(MemfoldError):
    """The idempotency key was already used in this session for other content."""

    def __init__(self) -> None:
        super().__init__(
            "this idempotency_key was already used in this session for something else: "
            "use a new key for new content; nothing was stored"
        )


class StoreClosed(MemfoldError):
    """The store was closed."""

    def __init__(self) -> None:
        super().__init__("this store is closed: open a new MemoryStore")


class ForkedStore(MemfoldError):
    """The store was opened by another process and inherited over a fork; connections cannot be shared."""

    def __init__(self, opened_in: int) -> None:
        self.opened_in = opened_in
        super().__init__(
            f"this store was opened in process {opened_in} and inherited by a fork: open a MemoryStore of your own in the child"
        )


class StoreUnavailable(MemfoldError):
    """The database could not be reached, or refused to write.

    `outcome` is "not_written" if the write certainly did not happen (or nothing was to be written), and "unknown" if the
    connection was lost so that nobody can say; with an idempotency key the same call can safely be made again.
    `sqlstate` is PostgreSQL's error code, where it gave one.
    """

    def __init__(self, reason: str, *, outcome: Outcome, sqlstate: str | None = None) -> None:
        self.reason = reason
        self.sqlstate = sqlstate
        self.outcome = outcome
        advice = {
            "not_written": "nothing was written; try again when the database answers",
            "unknown": "nobody can say whether it was written; repeat the call with the same idempotency_key, or look first",
        }[outcome]
        super().__init__(f"{reason}: {advice}")


class KeyUnavailable(MemfoldError):
    """A key that is needed to read or write is missing or wrong."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(problem)


class DatabaseUnsuitable(MemfoldError):
    """The database would not keep what memfold promises. `problem` says why, `remedy` what to change."""

    def __init__(self, problem: str, remedy: str) -> None:
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{problem}: {remedy}")


class SchemaTooNew(DatabaseUnsuitable):
    """The database was written by a later memfold."""

    def __init__(self, found: str, known: str) -> None:
        self.found = found
        self.known = known
        super().__init__(
            f"the database has memfold schema {found}, this memfold knows {known}", "upgrade memfold; nothing was changed"
        )


class EmbeddedServerError(MemfoldError):
    """The embedded PostgreSQL could not be set up, started or stopped. `folder` is the folder it is about."""

    def __init__(self, folder: str, problem: str, remedy: str) -> None:
        self.folder = folder
        self.problem = problem
        self.remedy = remedy
        super().__init__(f"{folder}: {problem}; {remedy}")


class DataFolderVersion(EmbeddedServerError):
    """The data folder was made by another major version of PostgreSQL."""

    def __init__(self, folder: str, *, found: str, available: str) -> None:
        self.found = found
        self.available = available
        super().__init__(
            folder,
            f"made by PostgreSQL {found}, the available binaries are {available}",
            f"dump it with PostgreSQL {found} (pg_dump) and restore into a new folder, or run pg_upgrade; nothing was changed",
        )


class CorruptEvent(MemfoldError):
    """A stored event does not open with its key. `position` says where."""

    def __init__(self, position: int, problem: str) -> None:
        self.position = position
        self.problem = problem
        super().__init__(f"event at position {position} {problem}: restore it from a backup; nothing was changed")


class EmbedderFailed(MemfoldError):
    """The embedder raised, or returned something it must not. Memories are stored all the same."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"the embedder {name} {problem}: mend it or give another; what was remembered is stored all the same")


class ModelFileError(EmbedderFailed):
    """A file of memfold's own models is missing or not the one that was shipped."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__("of this installation", f"cannot be loaded: {path} {problem}; install memfold again")


class RerankerFailed(MemfoldError):
    """The reranker raised, or returned something it must not. Nothing was changed."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"the reranker {problem}: mend it, or open the store without one")


class SummarizerFailed(MemfoldError):
    """A summarizer could not say a window in fewer words. `retry`: another try may help. Memories are as they were.

    `usage` is what was charged all the same (a `consolidator.summarizer.Usage`), None if nothing is known of it.
    """

    def __init__(self, name: str, problem: str, *, retry: bool, usage: object = None) -> None:
        self.name = name
        self.problem = problem
        self.retry = retry
        self.usage = usage
        super().__init__(f"the summarizer {name} {problem}; the memories are as they were")


class EmbeddingTimeout(MemfoldError):
    """Not everything was embedded in the time given; the work goes on. `lag` is how many events still wait."""

    def __init__(self, timeout_s: float, lag: int) -> None:
        self.timeout_s = timeout_s
        self.lag = lag
        super().__init__(f"{lag} events were not embedded within {timeout_s:g} s: the work goes on, wait again or ask stats()")


class ScopeTooLarge(MemfoldError):
    """The memories of a scope take more RAM than `Settings.views_bytes_max` allows. Nothing was dropped but the attempt."""

    def __init__(self, memories: int, size_bytes: int, bytes_max: int) -> None:
        self.memories = memories
        self.size_bytes = size_bytes
        self.bytes_max = bytes_max
        super().__init__(
            f"{memories:,} memories of this scope take {size_bytes:,} bytes of RAM, and views may take {bytes_max:,}: "
            "ask about fewer sessions or one user, or raise Settings.views_bytes_max"
        )


class SettingsError(MemfoldError):
    """A setting or an argument of the store itself is unusable."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"{name} {problem}")


class RankingFileError(SettingsError):
    """A file of weights for ranking cannot be used. `missing` and `unknown` are the names that do not fit, if it is those."""

    def __init__(self, path: str, problem: str, *, missing: Sequence[str] = (), unknown: Sequence[str] = ()) -> None:
        self.path = path
        self.missing = tuple(missing)
        self.unknown = tuple(unknown)
        names = [f"{what}: {', '.join(each)}" for what, each in (("missing", missing), ("unknown", unknown)) if each]
        told = "; ".join([problem, *names])
        super().__init__(
            "ranking", f"file {path} {told}; make it anew with scripts/fit-ranking, or give none to use memfold's own"
        )


class PolicyError(SettingsError):
    """A policy makes no sense, or contradicts itself. `path` leads to the fault, such as `windows.older_than`."""

    def __init__(self, path: str, problem: str) -> None:
        self.path = path
        super().__init__(path, problem)
