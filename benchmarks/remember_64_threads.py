"""How fast is a durable remember on 64 threads?

Against the usual way to write from 64 threads: a connection each, one bare INSERT of the same bytes per commit, same server.
Our threads remember into a session each, then all into one, which a store that locks per stream would have to do one by one.
"""

from collections.abc import Callable
from contextlib import ExitStack

from common import Bar, Report, body_bytes, options, ratio, raw_database, raw_insert, server, take_turns
from timing import Sample, on_threads, texts

from memfold import MemoryStore, Settings

THREADS = 64
MANY, ONE, RAW = "memfold, 64 sessions", "memfold, one session", "bare INSERT, 64 connections"


def remember(store: MemoryStore, sessions: list[str], seconds: float) -> Sample:
    """A thread for each entry in `sessions`."""
    return on_threads([rememberer(store, session) for session in sessions], seconds)


def rememberer(store: MemoryStore, session: str) -> Callable[[], object]:
    """A call that remembers the next text."""
    contents = texts()
    return lambda: store.remember(next(contents), session_id=session)


def main() -> None:
    """Measure and print."""
    args = options(__doc__, append_connections=Settings().append_connections)
    seconds, rounds = (0.3, 2) if args.quick else (2, 10)
    report = Report(__doc__, args)
    with server() as at, at.store("memfold", append_connections=args.append_connections) as store, ExitStack() as stack:
        size = body_bytes(store)
        name = raw_database(at)
        connections = [stack.enter_context(at.connect(name)) for _ in range(THREADS)]
        inserts = [raw_insert(connection, bytes(size)) for connection in connections]
        contenders = {
            MANY: lambda: remember(store, [f"session-{number}" for number in range(THREADS)], seconds),
            RAW: lambda: on_threads(inserts, seconds),
            ONE: lambda: remember(store, ["one"] * THREADS, seconds),
        }
        samples = take_turns(contenders, rounds)
        report.samples(samples, "remembers/s")
        report.bars([Bar(f"{each} / {RAW}", ratio(samples, each, RAW), 1.5) for each in (MANY, ONE)])
        report.note(f"The bare INSERT writes {size} bytes a row. All threads of a contender share one Python process.")
        report.machine(at)


if __name__ == "__main__":
    main()
