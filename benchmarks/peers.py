"""Other people's stores, from their released packages, each in an environment of its own outside the repository.

A peer runs as a process that reads a JSON line and answers with one, so that its rounds and ours take turns in one run. It
times its own calls; the pipe costs nothing that is measured. Run by itself, this file installs every peer.
"""

import json
import os
import subprocess
import sys
import venv
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from timing import Sample

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "memfold-benchmarks"


class Peer(NamedTuple):
    """A peer: the name of its environment, what is installed there, and the worker that drives it."""

    name: str
    requirements: tuple[str, ...]
    worker: str


LANGGRAPH = Peer("langgraph", ("langgraph-checkpoint-sqlite==3.1.2",), "worker_langgraph.py")
# Its index needs a SQLite that loads extensions: not every Python is built with one, and pysqlite3 brings it along. The rest is
# for running memfold's own encoder there, so that both are timed with the same.
LANGGRAPH_VECTORS = Peer(
    "langgraph-vectors",
    (
        *LANGGRAPH.requirements,
        "pysqlite3-binary==0.5.4.post2; sys_platform=='linux'",
        *(f"{name}=={version(name)}" for name in ("numpy", "onnxruntime", "tokenizers")),
    ),
    "worker_langgraph_vectors.py",
)
EVENTSOURCING = Peer("eventsourcing", ("eventsourcing[postgres]==9.5.6", "psycopg[binary]==3.3.9"), "worker_eventsourcing.py")
TANTIVY = Peer("tantivy", ("tantivy==0.27.0",), "worker_tantivy.py")


def install(peer: Peer) -> Path:
    """The Python of the peer's environment, which is made if it is not there or holds something else."""
    folder = CACHE / peer.name
    python, stamp = folder / "bin" / "python", folder / "installed.txt"
    if not stamp.exists() or stamp.read_text("utf-8").splitlines() != list(peer.requirements):
        print(f"installing {', '.join(peer.requirements)} into {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *peer.requirements], check=True)
        stamp.write_text("\n".join(peer.requirements), "utf-8")
    return python


class Worker:
    """A running peer. `about` says which versions it runs."""

    def __init__(self, peer: Peer) -> None:
        command = [install(peer), "-u", HERE / peer.worker]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.about: str = self.ask("about")["about"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(30)

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Have the worker do something, and return its answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker ended during {do!r}; its last words are above")
        return dict(json.loads(line))

    def sample(self, do: str, **arguments: Any) -> Sample:
        """Have the worker time something."""
        answer = self.ask(do, **arguments)
        return Sample(answer["rate"], answer["latencies_ms"])


if __name__ == "__main__":
    for each in (LANGGRAPH, LANGGRAPH_VECTORS, EVENTSOURCING, TANTIVY):
        with Worker(each) as worker:
            print(worker.about)
