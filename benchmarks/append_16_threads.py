"""How fast is a durable append of one event on 16 threads?

Against the recorders of the `eventsourcing` library (released package, a pool connection for every thread) on the same server.
Its application recorder gives all events one order, as memfold's log does; its aggregate recorder gives none, and is shown for
comparison. memfold twice: `remember`, which seals what it appends, and the append of events that are sealed already.
"""

import itertools
from collections.abc import Callable

from common import Bar, Report, body_bytes, committer, options, ratio, sealed_requests, server, take_turns
from peers import EVENTSOURCING, Worker
from timing import Sample, on_threads, texts

from memfold import MemoryStore, Settings

THREADS = 16
OURS, APPEND = "memfold, remember", "memfold, append of sealed events"
APPLICATION, AGGREGATE = "eventsourcing, application recorder", "eventsourcing, aggregate recorder"


def remember(store: MemoryStore, seconds: float) -> Sample:
    """Every thread into a session of its own."""
    return on_threads([rememberer(store, f"session-{number}") for number in range(THREADS)], seconds)


def rememberer(store: MemoryStore, session: str) -> Callable[[], object]:
    """A call that remembers the next text."""
    contents = texts()
    return lambda: store.remember(next(contents), session_id=session)


def append(store: MemoryStore, seconds: float) -> Sample:
    """Every thread to a stream of its own, sealed before the clock starts."""
    commit = committer(store).append
    count = int(1500 * seconds) + 100
    sealed = [
        iter(list(sealed_requests(store, f"append-{number}", itertools.islice(texts(), count)))) for number in range(THREADS)
    ]
    return on_threads([lambda requests=requests: commit(next(requests)) for requests in sealed], seconds)


def main() -> None:
    """Measure and print."""
    args = options(__doc__, append_connections=Settings().append_connections)
    seconds, rounds = (0.3, 2) if args.quick else (1.5, 10)
    report = Report(__doc__, args)
    with (
        server() as at,
        Worker(EVENTSOURCING) as peer,
        at.store("memfold", append_connections=args.append_connections) as store,
    ):
        at.database("peer")
        peer.ask("open", database="peer", host=at.host, port=at.port, threads=THREADS)
        size = body_bytes(store)

        def insert(recorder: str) -> Callable[[], Sample]:
            return lambda: peer.sample("insert", recorder=recorder, threads=THREADS, state_bytes=size, seconds=seconds)

        contenders = {
            OURS: lambda: remember(store, seconds),
            APPLICATION: insert("application"),
            APPEND: lambda: append(store, seconds),
            AGGREGATE: insert("aggregate"),
        }
        samples = take_turns(contenders, rounds)
        report.samples(samples, "events/s")
        report.bars(
            [
                Bar(f"{OURS} / {APPLICATION}", ratio(samples, OURS, APPLICATION), 5),
                Bar(f"{APPEND} / {APPLICATION}", ratio(samples, APPEND, APPLICATION), 5),
                Bar(f"{OURS} / {AGGREGATE}", ratio(samples, OURS, AGGREGATE)),
                Bar(f"{APPEND} / {AGGREGATE}", ratio(samples, APPEND, AGGREGATE)),
            ]
        )
        report.note(f"Each event carries {size} bytes. {THREADS} threads of one Python process each.")
        report.machine(at, [peer.about])


if __name__ == "__main__":
    main()
