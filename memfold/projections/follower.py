"""The thread that embeds behind the log, so that no remember waits for a model.

It follows the log by settled position from a durable checkpoint. Of all processes of a tenant one does the work, under a
lease that the database frees when its holder dies; the others look now and then whether it is free. An event is passed
only when its vector is stored, or when it was erased; one that the embedder fails on, or that does not open, holds back
no other, is tried again later, and holds the durable checkpoint back, so that it is not lost with the process.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

from memfold.errors import CorruptEvent, EmbedderFailed, EmbeddingTimeout, MemfoldError, ModelFileError, SettingsError
from memfold.eventstore import derived, reader
from memfold.eventstore.binding import opening_keys
from memfold.eventstore.codec import LoggedEvent, Row, event_key
from memfold.eventstore.database import Database, Lease, Lost
from memfold.eventstore.keyring import Keyring
from memfold.eventstore.sealing import WrappingKey, wrapping_key_id
from memfold.eventstore.tail import Tail
from memfold.projections import fold
from memfold.projections.embeddings import CHUNK_TEXTS, Embeddings, Source
from memfold.projections.loading import open_rows

logger = logging.getLogger("memfold")

PAGE_EVENTS = 512
FIRST_S = 0.05  # a process that remembers one thing and ends need not load a model
IDLE_S = 0.5  # between two looks at a log that stands still, and at a lease that another holds
RETRY_S = (1.0, 60.0)  # after a failure: at first, at last
FLUSH_RETRY_S = 0.2  # between tries while somebody waits in `flush`
STOPS_MAX = 3  # of the database's refusals in a row, before `flush` says so
FAILURES_MAX = 64  # in a row: then it is not the texts' fault
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
        self._failed: dict[int, MemfoldError] = {}  # by position; what the texts are is read again
        self._failures_in_a_row = 0
        self._retries = 0
        self._retry_at, self._retry_s = 0.0, RETRY_S[0]
        self._cursor, self._left_at = 0, -1
        self._down: MemfoldError | None = None  # why nothing is embedded at present

    @property
    def model(self) -> str:
        """The name of the embedder."""
        return self._embeddings.encoder.name

    def wake(self) -> None:
        """Something was remembered: look at it soon. Returns at once."""
        self._written_at = time.monotonic()
        self._start()
        self._woken.set()

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._closed.is_set():
                self._thread = threading.Thread(target=self._run, name="memfold-embed", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Stop after the texts at hand, without waiting for the rest: the next process goes on from the checkpoint."""
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
            EmbedderFailed, CorruptEvent: what is left fails.
            EmbeddingTimeout: it took longer; the work goes on.
        """
        upto = reader.newest_position(self._database, self._keyring.tenant)
        self._down = None
        self.wake()
        with self._lock:
            self._flushing += 1
        try:
            self._await(upto, timeout_s)
        finally:
            with self._lock:
                self._flushing -= 1

    def catch_up(self, go_on: Callable[[], bool], timeout_s: float) -> None:
        """Wait as `flush`, but at the follower's own pace, and without complaint if it takes longer or `go_on` says no.

        Raises:
            EmbedderFailed, CorruptEvent: what is left fails.
            StoreUnavailable, KeyUnavailable: nothing can be embedded at present.
        """
        upto, until = reader.newest_position(self._database, self._keyring.tenant), time.monotonic() + timeout_s
        if self._waiting(upto):
            self._start()
        while (waiting := self._waiting(upto)) and go_on() and time.monotonic() < until:
            if self._down:
                raise self._down
            failures = [self._failed[position] for position in waiting if position in self._failed]
            if len(failures) == len(waiting):
                raise failures[0]
            self._closed.wait(FLUSH_PAUSE_S[1])

    def _await(self, upto: int, timeout_s: float | None) -> None:
        begun, retries = time.monotonic(), self._retries
        pause_s = FLUSH_PAUSE_S[0]
        while waiting := self._waiting(upto):
            if self._down:
                raise self._down
            if self._thread and not self._thread.is_alive():
                raise EmbedderFailed(self.model, "has no thread any more: a fault of memfold's, told on standard error")
            failures = [self._failed[position] for position in waiting if position in self._failed]
            if len(failures) == len(waiting) and self._retries > retries:
                raise failures[0]
            if timeout_s is not None and time.monotonic() - begun > timeout_s:
                raise EmbeddingTimeout(timeout_s, self.lag())
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, FLUSH_PAUSE_S[1])
            self._woken.set()

    def _waiting(self, upto: int) -> list[int]:
        """The first events that wait: one more than we know to fail."""
        limit = len(self._failed) + 1
        return derived.waiting_positions(
            self._database, self._keyring.tenant, self.model, after=self._checkpoint(), upto=upto, limit=limit
        )

    # -- the thread ----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        self._closed.wait(FIRST_S)
        pause_s, stops = RETRY_S[0], 0
        while not self._closed.is_set():
            error = self._take_turn()
            if error is None:
                pause_s, stops = RETRY_S[0], 0
                self._sleep(IDLE_S)
                continue
            stops += 1
            # A database may be back in a moment; an embedder that fails on everything will not.
            hopeless = isinstance(error, EmbedderFailed | SettingsError) or stops >= STOPS_MAX
            self._down = error if isinstance(error, MemfoldError) and hopeless else None
            logger.warning("embedding stopped, and is tried again in %.0f s: %s", pause_s, error)
            self._rest(pause_s)
            pause_s = min(2 * pause_s, RETRY_S[1])

    def _take_turn(self) -> MemfoldError | Lost | None:
        """Follow the log while it is our turn; what ended it, if it was an error. The lease is given back."""
        lease = Lease(self._database)
        try:
            self._follow(lease)
        except (MemfoldError, Lost) as error:
            return error
        finally:
            with suppress(MemfoldError, Lost), lease.connection() as connection:
                derived.unlock(connection)
            lease.close()
        return None

    def _rest(self, seconds: float) -> None:
        """Wait before the next try; not so long while somebody waits in `flush`."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._closed.wait(FLUSH_RETRY_S) and not self._flushing:
            pass

    def _follow(self, lease: Lease) -> None:
        """Follow the log, as long as it is our turn, until the store closes.

        With nothing left but what fails, the turn is over too: perhaps another process does better.
        """
        if not self._is_our_turn(lease):
            return
        self._go_on_from_checkpoint()
        with Tail(self._database, lease) as tail:
            while not self._closed.is_set() and self._is_our_turn(lease):
                page = self._next_page(self._cursor, tail.advance())
                if page and self._embed(list(self._sources(page))):
                    self._cursor = page[-1].position
                    self._move_checkpoint(min([self._cursor, *(position - 1 for position in self._failed)]))
                elif self._failed:
                    self._retry()
                    return
                else:
                    self._sleep(IDLE_S)

    def _go_on_from_checkpoint(self) -> None:
        """Where we left off, if nobody else had a turn since, else from the checkpoint."""
        checkpoint = self._checkpoint()
        if checkpoint != self._left_at:
            self._cursor = self._left_at = checkpoint
            self._failed.clear()
        self._failures_in_a_row = 0

    def _is_our_turn(self, lease: Lease) -> bool:
        """Whether we hold the lease. It dies with its connection, so it is asked for each time; asking twice is harmless."""
        with lease.connection() as connection:
            return derived.try_lock(connection, self._keyring.tenant, self._name)

    def _next_page(self, cursor: int, settled: int) -> list[Row] | None:
        return next(reader.read_log(self._database, self._keyring.tenant, cursor, settled, PAGE_EVENTS), None)

    def _retry(self) -> None:
        """Try again what failed, as far as it still lives and still waits; not too often, but for a flush."""
        if time.monotonic() < self._retry_at and not self._flushing:
            return
        positions = sorted(self._failed)
        span = {"after": positions[0] - 1, "upto": positions[-1], "limit": 2**31}
        waiting = set(derived.waiting_positions(self._database, self._keyring.tenant, self.model, **span))
        for position in positions:
            if position not in waiting:
                del self._failed[position]
            elif page := self._next_page(position - 1, position):
                self._embed(list(self._sources(page)))
        self._retries += 1
        self._retry_s = min(2 * self._retry_s, RETRY_S[1]) if self._failed else RETRY_S[0]
        self._retry_at = time.monotonic() + self._retry_s
        self._move_checkpoint(min([self._cursor, *(position - 1 for position in self._failed)]))

    def _embed(self, sources: Sequence[Source]) -> bool:
        """Embed and store the sources; those that the embedder fails on are kept for later. False if the store closes.

        Raises:
            EmbedderFailed, SettingsError: the embedder fails on whatever it is given.
            StoreUnavailable: what was made could not be stored.
        """
        for begin in range(0, len(sources), CHUNK_TEXTS):
            if self._closed.is_set():
                return False
            chunk, begun = sources[begin : begin + CHUNK_TEXTS], time.monotonic()
            if not self._put(chunk):
                for source in chunk:
                    self._put([source])
            if not self._flushing and time.monotonic() - self._written_at < QUIET_S:
                self._closed.wait(REST * (time.monotonic() - begun))
        return True

    def _put(self, sources: Sequence[Source]) -> bool:
        """Embed and store sources together; False if the embedder fails, which of a single one is noted."""
        try:
            self._embeddings.put(sources)
        except ModelFileError:
            raise
        except EmbedderFailed as error:
            if len(sources) == 1:
                self._note(sources[0].position, error)
            return False
        self._failures_in_a_row, self._down = 0, None
        for source in sources:
            self._failed.pop(source.position, None)
        return True

    def _note(self, position: int, error: MemfoldError) -> None:
        if position not in self._failed:
            logger.warning("no vector for the event at position %d: %s", position, error)
        self._failures_in_a_row += isinstance(error, EmbedderFailed)
        self._failed[position] = error
        if self._failures_in_a_row >= FAILURES_MAX:
            raise error

    def _sources(self, page: Sequence[Row]) -> Iterator[Source]:
        """What is to be embedded of a page. An update says only what it changed, so its memory is folded up to there."""
        tenant = self._keyring.tenant
        rows = [row for row in page if row.type_number in derived.EMBEDDED_TYPES and row.wrapped_key]
        changed = sorted({row.memory_id for row in rows if row.memory_id and row.type_number != derived.EMBEDDED_TYPES[0]})
        history = reader.read_memories(self._database, tenant, changed) if changed else []
        keys = opening_keys(self._database, self._keyring, [*rows, *history])
        texts = fold.texts(list(self._opened({row.position: row for row in [*rows, *history]}.values(), keys)))
        for row in rows:
            wrapping = keys.get(wrapping_key_id(row.wrapped_key or b""))
            if wrapping and row.position in texts:
                yield Source(row.position, row.event_id, event_key(row, tenant=tenant, wrapping=wrapping), texts[row.position])
            elif wrapping and row.position not in self._failed:
                self._note(row.position, CorruptEvent(row.position, "changes a memory whose other events do not open"))

    def _opened(self, rows: Iterable[Row], keys: Mapping[bytes, WrappingKey]) -> Iterator[LoggedEvent]:
        """The rows opened, one by one: one that does not open holds back no other."""
        for row in rows:
            try:
                yield from open_rows([row], self._keyring.tenant, keys, gone_is_erased=True)
            except CorruptEvent as error:
                self._note(row.position, error)

    def _checkpoint(self) -> int:
        return derived.checkpoint(self._database, self._keyring.tenant, self._name)

    def _move_checkpoint(self, goal: int) -> None:
        before = self._checkpoint()
        if goal > before and derived.move_checkpoint(
            self._database, self._keyring.tenant, self._name, before=before, after=goal
        ):
            self._left_at = goal

    def _sleep(self, seconds: float) -> None:
        if not self._closed.is_set():
            self._woken.wait(seconds)
            self._woken.clear()
