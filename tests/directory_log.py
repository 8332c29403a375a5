"""Sessions written event by event, as a consolidator would, and a plain account of what the directory must say of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from random import Random
from uuid import UUID

from memfold import MemoryStore
from memfold.events import (
    Event,
    MemoriesArchived,
    MemoriesRefreshed,
    MemoriesRestored,
    MemoryForgotten,
    MemoryMerged,
    MemoryRemembered,
    MemoryUpdated,
    WindowCompressed,
)
from memfold.eventstore import erase
from memfold.eventstore.append import NO_DECISION, Request, Verdict
from memfold.eventstore.binding import EventKey, append_bound, seal_bound
from memfold.eventstore.codec import new_id, seal_event
from memfold.projections.directory import Directory
from memfold.projections.projector import Projector

BEGINNING = datetime(2024, 1, 1, tzinfo=UTC)
PLAIN = (MemoryRemembered, MemoryMerged, MemoriesRefreshed)


@dataclass
class Session:
    """What a session's directory row must say, kept by other means than the fold's."""

    stream: bytes
    version: int = 0
    changed: int = 0
    memories: list[bytes] = field(default_factory=list)
    first_at: datetime | None = None
    last_at: datetime | None = None
    summaries: dict[bytes, list[bytes]] = field(default_factory=dict)
    every: dict[bytes, list[bytes]] = field(default_factory=dict)  # also of summaries that were undone
    tokens: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    kept: set[tuple[bytes, bytes]] = field(default_factory=set)  # (what keeps it archived, what is archived)

    def living(self) -> list[bytes]:
        return [*self.memories, *self.summaries]

    def active(self) -> list[bytes]:
        archived = {memory_id for _, memory_id in self.kept}
        return [memory_id for memory_id in self.living() if memory_id not in archived]

    def kill(self, summary: bytes) -> None:
        del self.summaries[summary]
        self.kept = {(why, what) for why, what in self.kept if summary not in (why, what)}
        for above in [above for above, sources in self.summaries.items() if summary in sources]:
            if above in self.summaries:
                self.kill(above)

    def unreadable(self, memory_id: bytes) -> list[bytes]:
        """The summaries that were made of a memory, at any depth."""
        found = [memory_id]
        for gone in found:
            found += [summary for summary, sources in self.every.items() if gone in sources and summary not in found]
        return found[1:]

    def row(self) -> tuple:
        tokens = [self.tokens[summary] for summary in self.summaries]
        return (
            *(self.version, len(self.memories), len(self.summaries), len({memory_id for _, memory_id in self.kept})),
            *(self.first_at, self.last_at, self.changed, sum(one for one, _ in tokens), sum(other for _, other in tokens)),
        )


class Log:
    """Appends to sessions of a store, and keeps account. `owner_url` connects as whoever may do anything."""

    def __init__(self, store: MemoryStore, owner_url: str) -> None:
        self.store = store
        self.owner_url = owner_url
        self.database, self.keyring = store._database, store._keyring
        self.sessions: dict[str, Session] = {}
        self.newest: dict[bytes, EventKey] = {}
        self.now = BEGINNING
        self.directory = Directory(self.database, self.keyring.tenant)
        self.projector = Projector(self.database, self.keyring, self.directory)

    def expected(self) -> dict[bytes, tuple]:
        return {session.stream: session.row() for session in self.sessions.values()}

    def found(self) -> dict[bytes, tuple]:
        query = "SELECT stream_id FROM memfold.directory WHERE tenant_id = %s"
        streams = [row.stream_id.bytes for row in self.database.rows(query, (self.keyring.tenant,))]
        return {stream: tuple(self.directory.session(stream)[1:]) for stream in streams}

    # -- appending -----------------------------------------------------------------------------------------------------

    def append(self, name: str, *events: tuple[Event, bytes | None]) -> list[int]:
        """Append events with their memories in one request, sealed under the user's key; return their positions."""
        request = self._request(name, events)
        answer = self.store._writer._committer.append(request)
        assert answer.verdict is Verdict.ACCEPTED
        self._keep(request)
        self._count(name, events)
        return list(answer.positions)

    def _request(self, name: str, events, expected: int = NO_DECISION) -> Request:
        self.now += timedelta(seconds=1)
        ref = self.keyring.open_session(name, None, self.now)
        self.sessions.setdefault(name, Session(ref.stream))
        sealed = [
            seal_event(event, tenant=self.keyring.tenant, stream=ref.stream, memory_id=memory_id, wrapping=ref.key)
            for event, memory_id in events
        ]
        return Request(ref.stream, ref.user, ref.key.version, self.now, sealed, expected)

    def _keep(self, request: Request) -> None:
        """Remember the key of the newest event of each memory: what is made of it is bound to that."""
        for event in request.events:
            if event.memory_id:
                self.newest[event.memory_id] = EventKey(event.event_id, event.key)

    def _count(self, name: str, events) -> None:
        session = self.sessions[name]
        for event, _ in events:
            session.version += 1
            if not isinstance(event, PLAIN):
                session.changed = session.version

    # -- what happens to sessions --------------------------------------------------------------------------------------

    def remember(self, name: str, count: int = 1) -> list[bytes]:
        ids = [new_id() for _ in range(count)]
        self.append(name, *((MemoryRemembered(content="tea"), memory_id) for memory_id in ids))
        session = self.sessions[name]
        session.memories += ids
        session.first_at, session.last_at = session.first_at or self.now, self.now
        return ids

    def change(self, name: str, memory_id: bytes, *, merge: bool) -> None:
        self.append(name, (MemoryMerged(content="tea") if merge else MemoryUpdated(content="coffee"), memory_id))

    def refresh(self, name: str, memory_ids: list[bytes]) -> None:
        self.append(name, (MemoriesRefreshed(memory_ids=texts(memory_ids)), None))

    def compress(self, name: str, sources: list[bytes], tokens: tuple[int, int] = (100, 20)) -> bytes:
        """A summary of some memories, which leave default recall, in one request."""
        session = self.sessions[name]
        self.now += timedelta(seconds=1)
        event, keys = compressed(sources, *tokens), [self.newest[source] for source in sources]
        summary = new_id()
        sealed = seal_bound(event, tenant=self.keyring.tenant, stream=session.stream, memory_id=summary, sources=keys)
        fact = MemoriesArchived(memory_ids=texts(sources), summary_id=str(UUID(bytes=summary)))
        request = self._request(name, [(fact, None)])
        request.events = [sealed, *request.events]
        answer = append_bound(self.database, self.keyring.tenant, request, [key.event_id for key in keys])
        assert answer.verdict is Verdict.ACCEPTED
        self._keep(request)
        self._count(name, [(event, summary), (fact, None)])
        session.summaries[summary] = session.every[summary] = sources
        session.tokens[summary] = tokens
        session.kept |= {(summary, source) for source in sources}
        return summary

    def fade(self, name: str, memory_ids: list[bytes]) -> None:
        self.append(name, (MemoriesArchived(memory_ids=texts(memory_ids)), None))
        self.sessions[name].kept |= {(b"", memory_id) for memory_id in memory_ids}

    def restore(self, name: str, memory_ids: list[bytes], undone: Sequence[bytes] = ()) -> None:
        self.append(name, (MemoriesRestored(memory_ids=texts(memory_ids), undone=texts(undone)), None))
        session = self.sessions[name]
        for summary in undone:
            if summary in session.summaries:
                session.kill(summary)
        for memory_id in memory_ids:
            session.kept = {(why, what) for why, what in session.kept if what != memory_id}

    def forget(self, name: str, memory_id: bytes) -> None:
        """Forget a memory or a summary; what was made of it is unreadable from then on."""
        session = self.sessions[name]
        request = self._request(name, [(MemoryForgotten(), memory_id)], expected=session.version)
        assert erase.forget_memories(self.database, self.keyring.tenant, request).verdict is Verdict.ACCEPTED
        self._count(name, [(MemoryForgotten(), memory_id)])
        dead = session.unreadable(memory_id)
        for summary in [memory_id, *dead]:
            if summary in session.summaries:
                session.kill(summary)
        session.kept = {(why, what) for why, what in session.kept if what != memory_id}
        session.memories = [each for each in session.memories if each != memory_id]

    def forget_session(self, name: str) -> None:
        self.store.forget_session(name)
        self.sessions.pop(name, None)


def step(log: Log, rand: Random, names: str = "abc") -> None:
    """One more thing happens to one of some sessions."""
    name = rand.choice(names)
    session = log.sessions.get(name)
    if session is None or not session.memories or rand.random() < 0.25:
        log.remember(name, rand.randint(1, 4))
        return
    living, active = session.living(), session.active()
    some = rand.sample(living, min(len(living), rand.randint(1, 3)))
    kind = rand.choice(("compress", "compress", "fade", "restore", "forget", "forget", "change", "refresh", "end"))
    if kind == "compress" and active:
        log.compress(
            name, rand.sample(active, min(len(active), rand.randint(1, 4))), (rand.randint(10, 99), rand.randint(1, 9))
        )
    elif kind == "fade":
        log.fade(name, some)
    elif kind == "restore":
        log.restore(name, some, rand.sample(list(session.every), min(len(session.every), rand.randint(0, 2))))
    elif kind == "forget":
        log.forget(name, rand.choice(living))
    elif kind == "change":
        log.change(name, rand.choice(session.memories), merge=rand.random() < 0.5)
    elif kind == "refresh":
        log.refresh(name, some)
    elif kind == "end" and rand.random() < 0.1:
        log.forget_session(name)


def compressed(sources: list[bytes], before: int = 100, after: int = 20) -> WindowCompressed:
    return WindowCompressed(
        content="they drank tea",
        sources=texts(sources),
        occurred_at=BEGINNING,
        started_at=BEGINNING,
        summarizer="test",
        policy=1,
        tokens_before=before,
        tokens_after=after,
    )


def texts(ids: Sequence[bytes]) -> tuple[str, ...]:
    return tuple(str(UUID(bytes=each)) for each in ids)
