"""The thread that embeds behind the log, so that no remember waits for a model.

It follows the log by settled position from a durable checkpoint. Of all processes of a tenant one does the work, under a
lease that the database frees when its holder dies; the others look now and then whether it is free. An event is passed
only when its vector is stored, or when it was erased; one that the embedder fails on is tried again later, does not stop
the others, and holds the durable checkpoint back, so that it is not lost with the process.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from memfold.errors import EmbedderFailed, EmbeddingTimeout, MemfoldError, ModelFileError, StoreClosed
from memfold.eventstore import derived, reader
from memfold.eventstore.codec import Row, event_key
from memfold.eventstore.database import Database, Lease, Lost
from memfold.eventstore.keyring import Keyring
from memfold.eventstore.sealing import wrapping_key_id
from memfold.eventstore.tail import Tail
from memfold.projections import fold
from memfold.projections.embeddings import CHUNK_TEXTS, Embeddings, Source
from memfold.projections.views import open_rows

logger = logging.getLogger("memfold")

PAGE_EVENTS = 512
FIRST_S = 0.05  # a process that remembers one thing and ends need not load a model
IDLE_S = 0.5  # between two looks at a log that stands still, and at a lease that another holds
RETRY_S = (1.0, 60.0)  # after a failure: at first, at last
# An embedder takes a core, and Python's lock from whoever waits for the database: beside it, remembers were four to six times
# slower. So while this process writes, the thread rests four times as long as it works; nobody waits for it, but a flush.
QUIET_S = 0.1
REST = 4.0
FLUSH_PAUSE_S = (0.005, 0.25)


class Follower:
    """Embeds what is remembered in one tenant, in a thread that starts when it is first needed."""

    def __init__(self, database: Database, keyring: Keyring, embeddings: Embeddings) -> None:
        self._database = database
        self._keyring = keyring
        self._embeddings = embeddings
        self._name = f"embeddings {self.model}"
        self._woken = threading.Event()
        self._closed = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._written_at = 0.0
        self._flushing = 0
        self._failed: dict[int, Source] = {}
        self._failure: EmbedderFailed | None = None  # on the texts in _failed
        self._down: EmbedderFailed | None = None  # on everything

    @property
    def model(self) -> str:
        """The name of the embedder."""
        return self._embeddings.encoder.name

    def wake(self) -> None:
        """Something was remembered: look at it soon. Returns at once."""
        self._written_at = time.monotonic()
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="memfold-embed", daemon=True)
                self._thread.start()
        self._woken.set()

    def close(self) -> None:
        """Stop after the text at hand, without waiting for the rest: the next process goes on from the checkpoint."""
        self._closed.set()
        self._woken.set()
        if self._thread and self._thread is not threading.current_thread():
            self._thread.join()

    def lag(self, stream: bytes | None = None) -> int:
        """How many events wait for their vector, of one stream or of all."""
        return derived.waiting(self._database, self._keyring.tenant, self.model, after=self._checkpoint(), stream=stream)

    def flush(self, timeout_s: float | None) -> None:
        """Wait until everything acknowledged before this call has its vector.

        Raises:
            EmbedderFailed: the embedder fails on some of it.
            EmbeddingTimeout: it took longer; the work goes on.
        """
        self._down = None
        self.wake()
        with self._lock:
            self._flushing += 1
        try:
            self._await(timeout_s)
        finally:
            with self._lock:
                self._flushing -= 1

    def _await(self, timeout_s: float | None) -> None:
        begun = time.monotonic()
        pause_s = FLUSH_PAUSE_S[0]
        while lag := self.lag():
            if self._down:
                raise self._down
            if self._failure and lag <= len(self._failed):
                raise self._failure
            if timeout_s is not None and time.monotonic() - begun > timeout_s:
                raise EmbeddingTimeout(timeout_s, lag)
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, FLUSH_PAUSE_S[1])
            self._woken.set()

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._closed.wait(FIRST_S)
        pause_s = RETRY_S[0]
        while not self._closed.is_set():
            lease = Lease(self._database)
            try:
                self._follow(lease)
                pause_s = RETRY_S[0]
            except StoreClosed:
                return
            except (MemfoldError, Lost) as error:
                self._down = error if isinstance(error, EmbedderFailed) else None
                logger.warning("embedding stopped, and is tried again in %.0f s: %s", pause_s, error)
                self._sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_S[1])
            finally:
                with suppress(MemfoldError, Lost), lease.connection() as connection:
                    derived.unlock(connection)
                lease.close()

    def _follow(self, lease: Lease) -> None:
        """Follow the log until the store closes, or until another process has the turn."""
        cursor = None
        self._failed.clear()
        retry_at, retry_s = 0.0, RETRY_S[0]
        with Tail(self._database, lease) as tail:
            while not self._closed.is_set():
                if not self._is_our_turn(lease):
                    self._sleep(IDLE_S)
                    return
                cursor = self._checkpoint() if cursor is None else cursor
                page = self._next_page(cursor, tail.advance())
                if page:
                    self._embed(list(self._sources(page)))
                    cursor = page[-1].position
                    self._move_checkpoint(min([cursor, *(position - 1 for position in self._failed)]))
                elif self._failed and time.monotonic() >= retry_at:
                    self._embed(list(self._failed.values()))
                    retry_at, retry_s = time.monotonic() + retry_s, min(2 * retry_s, RETRY_S[1])
                else:
                    self._sleep(IDLE_S)

    def _is_our_turn(self, lease: Lease) -> bool:
        """Whether we hold the lease. It dies with its connection, so it is asked for each time; asking twice is harmless."""
        with lease.connection() as connection:
            return derived.try_lock(connection, self._keyring.tenant, self._name)

    def _next_page(self, cursor: int, settled: int) -> list[Row] | None:
        return next(reader.read_log(self._database, self._keyring.tenant, cursor, settled, PAGE_EVENTS), None)

    def _embed(self, sources: Sequence[Source]) -> None:
        """Embed the sources; those that the embedder fails on are kept for later.

        Raises:
            EmbedderFailed: it fails on all that stand together: then it is not the texts' fault.
        """
        for begin in range(0, len(sources), CHUNK_TEXTS):
            chunk = sources[begin : begin + CHUNK_TEXTS]
            try:
                self._make(chunk)
            except EmbedderFailed as error:
                if isinstance(error, ModelFileError) or not sum(self._made(source) for source in chunk):
                    raise

    def _made(self, source: Source) -> bool:
        try:
            self._make([source])
        except EmbedderFailed as error:
            if source.position not in self._failed:
                logger.warning("no vector for the event at position %d, to be tried again: %s", source.position, error)
            self._failed[source.position] = source
            self._failure = error
            return False
        return True

    def _make(self, sources: Sequence[Source]) -> None:
        begun = time.monotonic()
        self._embeddings.make(sources, lambda: not self._closed.is_set())
        if not self._flushing and time.monotonic() - self._written_at < QUIET_S:
            self._closed.wait(REST * (time.monotonic() - begun))
        if self._closed.is_set():
            raise StoreClosed
        for source in sources:
            self._failed.pop(source.position, None)

    def _sources(self, page: Sequence[Row]) -> Iterator[Source]:
        """What is to be embedded of a page. An update says only what it changed, so its memory is folded up to there."""
        tenant = self._keyring.tenant
        rows = [row for row in page if row.type_number in derived.EMBEDDED_TYPES and row.wrapped_key]
        changed = sorted({row.memory_id for row in rows if row.memory_id and row.type_number != derived.EMBEDDED_TYPES[0]})
        history = reader.read_memories(self._database, tenant, changed) if changed else []
        keys = self._keyring.wrapping_keys({wrapping_key_id(row.wrapped_key) for row in [*rows, *history] if row.wrapped_key})
        texts = fold.texts(open_rows([*rows, *history], tenant, keys, gone_is_erased=True))
        for row in rows:
            wrapping = keys.get(wrapping_key_id(row.wrapped_key or b""))
            if wrapping and row.position in texts:
                yield Source(row.position, row.event_id, event_key(row, tenant=tenant, wrapping=wrapping), texts[row.position])

    def _checkpoint(self) -> int:
        return derived.checkpoint(self._database, self._keyring.tenant, self._name)

    def _move_checkpoint(self, goal: int) -> None:
        before = self._checkpoint()
        if goal > before:
            derived.move_checkpoint(self._database, self._keyring.tenant, self._name, before=before, after=goal)

    def _sleep(self, seconds: float) -> None:
        self._woken.wait(seconds)
        self._woken.clear()
