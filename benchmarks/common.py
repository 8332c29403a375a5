"""What every benchmark shares: the machine, a server of its own, rounds that take turns, ratios with their spread, tables.

The machine is shared and noisy, so a figure by itself says little. Contenders take turns (A B, B A, A B, …), a ratio is taken
within each round, and its median and its extremes are printed beside the bar. Nothing is asserted.
"""

import argparse
import base64
import datetime
import functools
import itertools
import json
import multiprocessing
import os
import platform
import random
import shlex
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import psycopg
from numpy.typing import NDArray
from psycopg import sql
from timing import Sample, texts

from memfold import MemoryStore, Settings
from memfold.embedding import Embedder
from memfold.eventstore import embedded
from memfold.eventstore.append import Committer, Request
from memfold.eventstore.arrays import Raw, register
from memfold.eventstore.codec import new_id, seal_event
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring
from memfold.minilm import MODELS
from memfold.projections.words import STOP_WORDS, asked_for
from memfold.validation import as_new_memory, to_event

MASTER_KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()
ROOT = Path(__file__).parents[1]
WORKERS = 2  # processes that remember at once


# -- the run ---------------------------------------------------------------------------------------------------------------


def options(question: str | None, **extra: Any) -> argparse.Namespace:
    """The command line: `--quick` for a smoke run, and what else a benchmark asks for (name=default)."""
    parser = argparse.ArgumentParser(description=question, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a smoke run: every path once, the figures worth nothing")
    for name, default in extra.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    return parser.parse_args()


@contextmanager
def scratch() -> Iterator[Path]:
    """A temporary folder, gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="memfold-benchmark-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# -- the server ------------------------------------------------------------------------------------------------------------


class Server:
    """The embedded PostgreSQL in a temporary folder, with fsync on, and databases on it."""

    def __init__(self, lease: embedded.EmbeddedServer) -> None:
        self.folder = lease.folder
        self.host = str(lease.socket_folder)
        self.port = embedded.SETTINGS["port"]
        self._url = lease.url

    def url(self, database: str) -> str:
        """Where to connect for a database."""
        return self._url.replace("/postgres?", f"/{database}?")

    def connect(self, database: str = "postgres") -> psycopg.Connection[Any]:
        """A plain connection in autocommit mode, its queries prepared at the first use."""
        connection = psycopg.connect(self.url(database), autocommit=True, prepare_threshold=0)
        register(connection)
        return connection

    def database(self, name: str) -> str:
        """Make a database, and return its URL."""
        with self.connect() as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def analyze(self, database: str) -> None:
        """Let the planner know what is in a database, as autovacuum does within minutes."""
        with self.connect(database) as connection:
            connection.execute("ANALYZE")

    def store(self, name: str, *, embedder: Embedder | None = None, **settings: Any) -> MemoryStore:
        """A new store in a database of its own."""
        return MemoryStore(self.database(name), master_key=MASTER_KEY, settings=Settings(**settings), embedder=embedder)

    def reopened(self, name: str, *, embedder: Embedder | None = None, **settings: Any) -> MemoryStore:
        """A store opened once more: nothing is folded yet."""
        return MemoryStore(self.url(name), master_key=MASTER_KEY, settings=Settings(**settings), embedder=embedder)


@contextmanager
def server() -> Iterator[Server]:
    """A server of our own for one run."""
    with scratch() as folder:
        lease = embedded.attach(folder / "store")
        try:
            yield Server(lease)
        finally:
            lease.release()


class Parts(NamedTuple):
    """The inside of a store, for measuring a part of it alone."""

    database: Database
    keyring: Keyring


def parts(store: MemoryStore) -> Parts:
    """Take a store apart. Only benchmarks may."""
    return Parts(store._database, store._keyring)


def committer(store: MemoryStore) -> Committer:
    """A committer of the store's tenant with the settings of the store."""
    return Committer(store._database, store._keyring.tenant, store._settings)


def sealed_requests(store: MemoryStore, session: str, contents: Iterable[str]) -> Iterator[Request]:
    """A request for each text, sealed when asked for."""
    keyring = parts(store).keyring
    for content in contents:
        at = datetime.datetime.now(datetime.UTC)
        ref = keyring.open_session(session, None, at)
        event = to_event(as_new_memory(content, 0), 0)
        sealed = seal_event(event, tenant=keyring.tenant, stream=ref.stream, memory_id=new_id(), wrapping=ref.key)
        yield Request(ref.stream, ref.user, ref.key.version, at, [sealed])


def fill(store: MemoryStore, *, sessions: int, memories: int, contents: Iterator[str] | None = None) -> None:
    """Remember `memories` things in each of `sessions` sessions, texts of 100 characters unless given."""
    contents = contents or texts()
    for number in range(sessions):
        store.remember_many([next(contents) for _ in range(memories)], session_id=f"session-{number}")


def fill_up(url: str, remember: Callable[[str, int, int], object], sessions: int) -> float:
    """Let WORKERS processes fill so many sessions, each by `remember(url, worker, sessions)`; how many seconds they took."""
    context, begun = multiprocessing.get_context("spawn"), time.perf_counter()
    shares = (len(range(worker, sessions, WORKERS)) for worker in range(WORKERS))
    processes = [context.Process(target=remember, args=(url, worker, share)) for worker, share in enumerate(shares)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise RuntimeError("a process that was to remember ended early")
    return time.perf_counter() - begun


def without_embedding(store: MemoryStore) -> MemoryStore:
    """Keep a store from embedding behind the log what it remembers. Only benchmarks may."""
    store._follower.close()
    return store


def body_bytes(store: MemoryStore) -> int:
    """How many bytes of content a memory of 100 characters brings to the log: payload, wrapped key, digest."""
    event = next(sealed_requests(store, "one of a kind", texts())).events[0]
    return len(event.payload) + len(event.wrapped_key) + len(event.digest)


# -- texts and vectors -----------------------------------------------------------------------------------------------------

DIMENSION = 384
WORDS_A_TEXT, WORDS_A_QUERY = 40, 10


def prose(count: int, *, words: int = WORDS_A_TEXT, seed: int = 1) -> list[str]:
    """Different texts of so many English words, each as frequent as Zipf's law says; nearly half of them are stop words."""
    rand = random.Random(seed)
    vocabulary = _vocabulary()
    weights = list(itertools.accumulate(1 / rank for rank in range(1, len(vocabulary) + 1)))
    return [" ".join(rand.choices(vocabulary, cum_weights=weights, k=words)) for _ in range(count)]


def queries(count: int) -> list[str]:
    """Texts of ten words to ask for, about five of which say something, and two at least."""
    return [text for text in prose(2 * count, words=WORDS_A_QUERY, seed=2) if len(asked_for(text)) > 1][:count]


@functools.cache
def _vocabulary() -> list[str]:
    """The whole words that the encoder's tokenizer knows, which stand there about by frequency."""
    numbers = json.loads((MODELS / "minilm" / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
    words = (word for word in sorted(numbers, key=numbers.get) if word.isascii() and word.isalpha() and word.islower())
    return [word for word in words if len(word) > 1 or word in STOP_WORDS]


class RandomVectors:
    """An embedder that costs a look into a dict: a random unit vector a text, the same in every process."""

    def __init__(self, name: str = "random") -> None:
        self.name = name
        self._vectors: dict[str, NDArray[np.float32]] = {}

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of the texts, float32 (n, 384)."""
        return np.stack([self._vector(text) for text in texts])

    def _vector(self, text: str) -> NDArray[np.float32]:
        found = self._vectors.get(text)
        if found is None:
            found = np.random.default_rng(crc32(text.encode())).standard_normal(DIMENSION, np.float32)
            found = self._vectors[text] = found / np.linalg.norm(found)
        return found

    def learn(self, text: str, vector: NDArray[np.float32]) -> None:
        """From now on, this is the vector of this text."""
        self._vectors[text] = vector

    def write(self, folder: Path, texts: Sequence[str]) -> dict[str, str]:
        """The texts and their vectors as files, for a peer in a process of its own; where they are."""
        names = {"texts": str(folder / "texts.json"), "vectors": str(folder / "vectors.f32")}
        Path(names["texts"]).write_text(json.dumps(texts))
        self.encode(texts).tofile(names["vectors"])
        return names


# -- the bare table that a log can at best be as fast as -------------------------------------------------------------------

RAW_TABLE = "CREATE TABLE raw (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body bytea NOT NULL)"
RAW_INSERT = "INSERT INTO raw (body) VALUES (%b)"


def raw_database(at: Server) -> str:
    """A database with nothing but a table of ids and bytes; its name."""
    at.database("raw")
    with at.connect("raw") as connection:
        connection.execute(RAW_TABLE)
    return "raw"


def raw_insert(connection: psycopg.Connection[Any], body: bytes) -> Callable[[], object]:
    """One row, one commit, prepared."""
    cursor = connection.cursor(binary=True)
    value = Raw(body, 17)
    return lambda: cursor.execute(RAW_INSERT, (value,), prepare=True)


# -- rounds ----------------------------------------------------------------------------------------------------------------

Contenders = dict[str, Callable[[], Sample]]
Samples = dict[str, list[Sample]]


def take_turns(contenders: Contenders, rounds: int, *, warm_up: bool = True) -> Samples:
    """Let each contender run once a round, forwards and backwards in turn; a first round does not count."""
    names = list(contenders)
    samples: Samples = {name: [] for name in names}
    if warm_up:
        for name in names:
            contenders[name]()
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            samples[name].append(contenders[name]())
    return samples


class Spread(NamedTuple):
    """The median of several rounds, and how far they lie apart."""

    median: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{_number(self.median)} ({_number(self.least)}–{_number(self.most)})"


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most."""
    return Spread(statistics.median(values), min(values), max(values))


def rates(samples: Samples, name: str) -> Spread:
    """Things a second."""
    return spread([sample.rate for sample in samples[name]])


def ratio(samples: Samples, one: str, other: str) -> Spread:
    """How many times as fast `one` is, taken within each round."""
    return spread([a.rate / b.rate for a, b in zip(samples[one], samples[other], strict=True)])


def latencies(samples: Samples, name: str, share: float) -> Spread:
    """The latency that a share of the calls of a round do not exceed, in ms."""
    return spread([percentile(sample.latencies_ms, share) for sample in samples[name]])


def latency_ratio(samples: Samples, one: str, other: str, share: float) -> Spread:
    """How many times as long `one` takes at this percentile, taken within each round."""
    both = zip(samples[one], samples[other], strict=True)
    return spread([percentile(a.latencies_ms, share) / percentile(b.latencies_ms, share) for a, b in both])


def best(samples: Samples, names: Sequence[str]) -> str:
    """The fastest of several contenders, by its median."""
    return max(names, key=lambda name: rates(samples, name).median)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def _number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


# -- what is printed -------------------------------------------------------------------------------------------------------


class Bar(NamedTuple):
    """A goal: what was measured, and the least (or, with `at_most`, the most) it should be; None: no goal, for information."""

    what: str
    measured: Spread
    goal: float | None = None
    at_most: bool = False

    def row(self) -> tuple[str, ...]:
        """Its line of the table."""
        if self.goal is None:
            return (self.what, str(self.measured), "–", "–")
        met = self.measured.median <= self.goal if self.at_most else self.measured.median >= self.goal
        return (self.what, str(self.measured), f"{'≤' if self.at_most else '≥'} {self.goal:g}", "met" if met else "**missed**")


class Report:
    """The tables of one benchmark, printed as Markdown as they come."""

    def __init__(self, question: str | None, args: argparse.Namespace) -> None:
        first = (question or "").strip().splitlines()[0]
        self._load = os.getloadavg()[0]
        self._begun = time.monotonic()
        command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]])
        print(f"\n## {first}\n\n`{command}`{' (a smoke run: figures worth nothing)' if args.quick else ''}\n")

    def note(self, text: str) -> None:
        """A line of text."""
        print(text + "\n", flush=True)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A Markdown table."""
        lines = [header, ["---"] * len(header), *rows]
        print("\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n", flush=True)

    def samples(self, samples: Samples, unit: str) -> None:
        """What every contender did."""
        rows = []
        for name, found in samples.items():
            pooled = [latency for sample in found for latency in sample.latencies_ms]
            times = (f"{percentile(pooled, share):.2f}" for share in (0.5, 0.95, 0.99)) if pooled else "–––"
            rows.append((name, rates(samples, name), *times))
        self.table((f"{len(next(iter(samples.values())))} rounds", unit, "p50 ms", "p95 ms", "p99 ms"), rows)

    def bars(self, bars: Iterable[Bar], what: str = "ratio within a round") -> None:
        """Each goal, and whether it was met by the median."""
        self.table((what, "median (min–max)", "bar", ""), [bar.row() for bar in bars])

    def machine(self, at: Server | None = None, about: Iterable[str] = ()) -> None:
        """The machine, and what ran on it."""
        rows = [*machine(at), ("load average", f"{self._load:.1f} before, {os.getloadavg()[0]:.1f} after")]
        rows += [("peer", text) for text in about]
        rows.append(("took", f"{time.monotonic() - self._begun:.0f} s"))
        self.table(("machine", ""), rows)


def machine(at: Server | None) -> list[tuple[str, str]]:
    """What the figures were measured on."""
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "?")
    rows = [
        ("date", datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")),
        ("memfold", _revision()),
        ("processor", f"{model}, {os.cpu_count()} cores, shared with other work"),
        (
            "system",
            f"{platform.system()} {platform.release()}, Python {platform.python_version()}, psycopg {psycopg.__version__}",
        ),
    ]
    if at:
        with at.connect() as connection:
            version = connection.execute("SHOW server_version").fetchone()
            fsync = connection.execute("SHOW fsync").fetchone()
        rows.append(("PostgreSQL", f"{version and version[0]}, fsync {fsync and fsync[0]}, Unix socket"))
    rows.append(("fdatasync of 200 bytes", f"p50 {fdatasync_ms():.2f} ms"))
    return rows


def fdatasync_ms(count: int = 200) -> float:
    """How long the disk takes to keep 200 bytes for good."""
    with tempfile.TemporaryFile() as file:
        latencies = []
        for _ in range(count):
            begun = time.perf_counter()
            file.write(bytes(200))
            file.flush()
            os.fdatasync(file)
            latencies.append((time.perf_counter() - begun) * 1000)
    return statistics.median(latencies)


def _revision() -> str:
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    changes = subprocess.run([*git, "status", "--short", "--", "memfold"], capture_output=True, text=True, check=False).stdout
    return f"{commit or 'no commit'}{' with changes not yet committed' if changes else ''}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text("utf-8").splitlines()
    except OSError:
        return []
