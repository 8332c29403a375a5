"""How fast is remembering 100 things at once?

`remember_many` of 100 texts, against a batch of 100 puts of LangGraph's SqliteStore (without its vector index; memfold embeds
behind the log, here too). Both are durable when they return, and all or none.
"""

import itertools
from collections.abc import Callable

from common import Bar, Report, options, ratio, server, take_turns
from peers import LANGGRAPH, Worker
from timing import Sample, repeat, texts

from memfold import MemoryStore

BATCH = 100
OURS, PEER, PEER_WAL = "memfold", "LangGraph SqliteStore", "LangGraph SqliteStore, tuned to WAL"


def remember(store: MemoryStore, seconds: float) -> Callable[[], Sample]:
    """Rounds of batches, each round into another session."""
    contents, rounds = texts(), itertools.count()

    def run() -> Sample:
        session = f"session-{next(rounds)}"
        return repeat(
            lambda: store.remember_many(list(itertools.islice(contents, BATCH)), session_id=session), seconds, amount=BATCH
        )

    return run


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    seconds, rounds = (0.1, 2) if args.quick else (1, 14)
    report = Report(__doc__, args)
    with server() as at, Worker(LANGGRAPH) as peer, at.store("memfold") as store:
        plain, wal = str(at.folder / "plain.sqlite"), str(at.folder / "wal.sqlite")
        peer.ask("open", path=plain, wal=False)
        peer.ask("open", path=wal, wal=True)
        contenders = {
            OURS: remember(store, seconds),
            PEER: lambda: peer.sample("batch", path=plain, session="one", size=BATCH, seconds=seconds),
            PEER_WAL: lambda: peer.sample("batch", path=wal, session="one", size=BATCH, seconds=seconds),
        }
        samples = take_turns(contenders, rounds)
        report.samples(samples, "memories/s")
        report.bars(
            [Bar("memfold / LangGraph", ratio(samples, OURS, PEER), 1), Bar("memfold / tuned", ratio(samples, OURS, PEER_WAL))]
        )
        report.machine(at, [peer.about])


if __name__ == "__main__":
    main()
