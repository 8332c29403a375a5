"""How fast is one durable remember, one thread, on an empty store and beside 100,000 memories?

Against LangGraph's SqliteStore (put, without its vector index; memfold embeds behind the log, here too) with as many items, and
against the least a PostgreSQL commit can cost: a prepared one-row INSERT of the same bytes on one autocommit connection of the
same server. Every session a store remembers into begins with about 500 memories on the full store, with none on the empty one.
"""

from collections.abc import Callable
from itertools import islice

from common import (
    Bar,
    Report,
    body_bytes,
    committer,
    fill,
    options,
    ratio,
    raw_database,
    raw_insert,
    sealed_requests,
    server,
    take_turns,
)
from peers import LANGGRAPH, Worker
from timing import Sample, repeat, texts

from memfold import MemoryStore

OURS, OURS_FULL = "memfold, empty", "memfold, 100 k"
PEER, PEER_FULL = "LangGraph SqliteStore, empty", "LangGraph SqliteStore, 100 k"
PEER_WAL = "LangGraph SqliteStore, empty, tuned to WAL"
RAW = "bare one-row INSERT"
APPEND = "memfold, empty, append alone (sealed before the clock starts)"


def remember(store: MemoryStore, seconds: float) -> Callable[[], Sample]:
    """A round of remembers, each round in another session."""
    contents, rounds = texts(), iter(range(10_000))

    def run() -> Sample:
        session = f"session-{next(rounds)}"
        store.remember(next(contents), session_id=session)
        return repeat(lambda: store.remember(next(contents), session_id=session), seconds)

    return run


def append(store: MemoryStore, seconds: float) -> Callable[[], Sample]:
    """A round of appends of what was sealed before."""
    commit, rounds = committer(store).append, iter(range(10_000))

    def run() -> Sample:
        sealed = islice(sealed_requests(store, f"append-{next(rounds)}", texts()), int(seconds * 10_000))
        requests = iter(list(sealed))
        return repeat(lambda: commit(next(requests)), seconds)

    return run


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    seconds, rounds, sessions = (0.1, 2, 4) if args.quick else (0.8, 12, 200)
    report = Report(__doc__, args)
    with server() as at, Worker(LANGGRAPH) as peer, at.store("empty") as empty, at.store("full") as full:
        fill(full, sessions=sessions, memories=500)
        at.analyze("full")
        paths = {name: str(at.folder / f"{name}.sqlite") for name in ("empty", "full", "wal")}
        opened = {name: peer.ask("open", path=path, wal=name == "wal")["settings"] for name, path in paths.items()}
        peer.ask("fill", path=paths["full"], sessions=sessions, memories=500)
        size = body_bytes(empty)
        with at.connect(raw_database(at)) as connection:
            insert = raw_insert(connection, bytes(size))
            contenders = {
                OURS: remember(empty, seconds),
                PEER: lambda: peer.sample("put", path=paths["empty"], session="session-0", seconds=seconds),
                RAW: lambda: repeat(insert, seconds),
                OURS_FULL: remember(full, seconds),
                APPEND: append(empty, seconds),
                PEER_FULL: lambda: peer.sample("put", path=paths["full"], session="session-0", seconds=seconds),
                PEER_WAL: lambda: peer.sample("put", path=paths["wal"], session="session-0", seconds=seconds),
            }
            samples = take_turns(contenders, rounds)
        report.samples(samples, "remembers/s")
        report.bars(
            [
                Bar("memfold / LangGraph, empty", ratio(samples, OURS, PEER), 2),
                Bar("memfold / LangGraph, 100 k", ratio(samples, OURS_FULL, PEER_FULL), 2),
                Bar("memfold / bare INSERT, empty", ratio(samples, OURS, RAW), 0.5),
                Bar("memfold / bare INSERT, 100 k", ratio(samples, OURS_FULL, RAW), 0.5),
                Bar("memfold 100 k / memfold empty", ratio(samples, OURS_FULL, OURS), 0.9),
                Bar("memfold append alone / bare INSERT, empty", ratio(samples, APPEND, RAW)),
                Bar("memfold / LangGraph tuned to WAL, empty", ratio(samples, OURS, PEER_WAL)),
            ]
        )
        report.note(f"The bare INSERT writes {size} bytes a row, what memfold seals for 100 characters.")
        report.machine(at, [peer.about, *(f"{name}: {settings}" for name, settings in opened.items() if name != "full")])


if __name__ == "__main__":
    main()
