"""How long until the first recall is answered: in a session not folded yet, and from the start of a process?

Texts of 40 words, vectors stored. Cold session: 1,000 memories in a store that was just opened, with the default encoder. Start
of a process: a fresh Python that opens the store, asks for one memory in a session of 500 among 20,000 or 100,000, and prints
it, timed from outside until the line is there and is right; against LangGraph's SqliteStore on a file, with the same encoder,
loaded by both, and with the query's vector read from a file instead. The embedded server runs already, or has to be started.
"""

import compileall
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

from common import (
    ROOT,
    Bar,
    RandomVectors,
    Report,
    Samples,
    fill,
    latencies,
    latency_ratio,
    options,
    prose,
    queries,
    scratch,
    take_turns,
)
from peers import LANGGRAPH_VECTORS, Worker, install
from timing import Sample

from memfold import MemoryStore
from memfold.minilm import MiniLMEmbedder

MEMORIES, COLD = 500, 1_000
NEEDLE, QUERY = "Anna's flight to Lisbon leaves at nine in the morning on Friday", "When does the flight to Lisbon leave?"
BAR_COLD_MS, BAR_START, BAR_START_MS = 150, 1.5, 2000

GIVEN = """
class Given:
    name = "all-MiniLM-L6-v2-int8"
    def encode(self, texts):
        import numpy
        return numpy.fromfile(vector, numpy.float32).reshape(1, -1)
"""
OURS = (
    GIVEN
    + """
import sys
from memfold import MemoryStore
target, query, vector = sys.argv[1:]
with MemoryStore(target, embedder=Given() if vector else None) as store:
    print(store.recall(query, session_id="session-0")[0].memory.content, flush=True)
"""
)
THEIRS = (
    GIVEN
    + """
import sys
try:
    import pysqlite3 as sqlite3
except ImportError:
    import sqlite3
from langgraph.store.sqlite import SqliteStore
path, query, vector, root = sys.argv[1:]
sys.path.append(root)
from memfold.minilm import MiniLMEmbedder
embedder = Given() if vector else MiniLMEmbedder()
embed = lambda texts: embedder.encode(texts).tolist()
connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
store = SqliteStore(connection, index={"dims": 384, "embed": embed, "fields": ["content"], "text_fields": ["content"]})
store.setup()
print(store.search(("memories", "session-0"), query=query, limit=10)[0].value["content"], flush=True)
"""
)


def process(python: str | Path, code: str, *arguments: str) -> Callable[[], Sample]:
    """A process, timed until it has printed the right answer; then it may end."""

    def run() -> Sample:
        begun = perf_counter()
        with subprocess.Popen([python, "-c", code, *arguments], stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout
            line = running.stdout.readline()
            took = perf_counter() - begun
        assert line.strip() == NEEDLE, line
        return Sample(1 / took, [took * 1000])

    return run


def cold(folder: Path, encoder: Callable[[], MiniLMEmbedder]) -> Callable[[], Sample]:
    """The first recall in a store that was just opened."""
    asked = iter(queries(999))

    def run() -> Sample:
        with MemoryStore(folder, embedder=encoder()) as store:
            begun = perf_counter()
            found = store.recall(next(asked), session_id="cold")
            took = perf_counter() - begun
        assert len(found) == 10
        assert found.model == MiniLMEmbedder.name
        return Sample(1 / took, [took * 1000])

    return run


def cold_session(folder: Path, rounds: int, report: Report) -> None:
    """A session that is not folded yet, the encoder loaded or not; the server runs."""
    loaded = MiniLMEmbedder()
    loaded.encode(["warm"])
    contenders = {
        "first recall, encoder loaded": cold(folder, lambda: loaded),
        "first recall, encoder not loaded": cold(folder, MiniLMEmbedder),
    }
    samples = take_turns(contenders, rounds)
    first, second = contenders
    bars = [
        Bar(first, latencies(samples, first, 0.5), BAR_COLD_MS, at_most=True),
        Bar(second, latencies(samples, second, 0.5)),
    ]
    report.bars(bars, f"cold session of {COLD:,}, ms")


def started(folder: Path, path: Path, vector: Path, rounds: int, *, running: bool) -> Samples:
    """Processes of ours and theirs in turn, with the encoder and without."""
    python = install(LANGGRAPH_VECTORS)
    contenders = {}
    for how, file in (("", ""), (", vector given", str(vector))):
        contenders[f"memfold{how}"] = process(sys.executable, OURS, str(folder), QUERY, file)
        contenders[f"LangGraph{how}"] = process(python, THEIRS, str(path), QUERY, file, str(ROOT))
    if not running:
        return take_turns(contenders, rounds)
    with MemoryStore(folder):
        return take_turns(contenders, rounds)


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    sizes, rounds = ({"1 k": 2}, 2) if args.quick else ({"20 k": 40, "100 k": 200}, 9)
    report = Report(__doc__, args)
    compileall.compile_dir(ROOT / "memfold", quiet=1)  # as pip leaves theirs: compiling takes 60 ms of every start
    embedder = RandomVectors(MiniLMEmbedder.name)  # stored under the encoder's name, they cost what its own would
    for text, vector in zip((NEEDLE, QUERY), MiniLMEmbedder().encode([NEEDLE, QUERY]), strict=True):
        embedder.learn(text, vector)
    contents = prose(max(sizes.values()) * MEMORIES)
    contents[MEMORIES // 2] = NEEDLE
    bars: list[Bar] = []
    with scratch() as folder, Worker(LANGGRAPH_VECTORS) as peer:
        about = peer.about
        embedder.encode([QUERY]).tofile(folder / "query.f32")
        peer.ask("learn", **embedder.write(folder, contents))
        for size, sessions in sizes.items():
            store_folder, path = folder / f"store {sessions}", folder / f"{sessions}.sqlite"
            peer.ask("open", path=str(path))
            peer.ask("fill", path=str(path), sessions=sessions, memories=MEMORIES)
            with MemoryStore(store_folder, embedder=embedder) as store:
                fill(store, sessions=sessions, memories=MEMORIES, contents=iter(contents))
                store.remember_many(contents[:COLD], session_id="cold")
                store.flush()
                if size == next(iter(sizes)):
                    cold_session(store_folder, 2 * rounds, report)
            for running in (True, False):
                samples = started(store_folder, path, folder / "query.f32", rounds, running=running)
                server = f"{size}, server {'runs' if running else 'to be started'}"
                for how in ("", ", vector given"):
                    ours, theirs = f"memfold{how}", f"LangGraph{how}"
                    ratio, ms = latency_ratio(samples, ours, theirs, 0.5), latencies(samples, ours, 0.5)
                    bars += [
                        Bar(f"{server}{how}: memfold / LangGraph", ratio, BAR_START if running and not how else None, True),
                        Bar(f"{server}{how}: memfold, ms", ms, None if how else BAR_START_MS, True),
                        Bar(f"{server}{how}: LangGraph, ms", latencies(samples, theirs, 0.5)),
                    ]
        report.bars(bars, "start of a process to its first right answer")
        report.machine(about=[about])


if __name__ == "__main__":
    main()
