"""How many events a second does the projector bring into the directory?

A log of sessions of 500 memories, one of many short sessions, and one in which every third memory was forgotten, projected from
the first event in batches of 2,000, each one durable transaction. Beside it the log's own reader, its rows thrown away.
"""

import itertools
import time
from collections.abc import Callable

from common import Bar, Report, fill, options, parts, ratio, server, take_turns, without_embedding
from timing import Sample

from memfold import MemoryStore, NewMemory
from memfold.eventstore import reader
from memfold.eventstore.tail import Tail
from memfold.projections.directory import Directory
from memfold.projections.projector import Projector


def projected(store: MemoryStore, events: int) -> Sample:
    """Project everything anew."""
    database, keyring = parts(store)
    projector = Projector(database, keyring, Directory(database, keyring.tenant))
    begun = time.perf_counter()
    assert projector.rebuild(time.monotonic() + 600)
    return Sample(events / (time.perf_counter() - begun), [])


def read(store: MemoryStore, events: int) -> Sample:
    """Read everything, keep nothing."""
    database, keyring = parts(store)
    begun = time.perf_counter()
    pages = reader.read_log(database, keyring.tenant, 0, Tail(database).settle(10))
    assert sum(1 for _ in itertools.chain.from_iterable(pages)) == events
    return Sample(events / (time.perf_counter() - begun), [])


def main() -> None:
    """Measure and print."""
    args = options(__doc__)
    events, rounds = (2_000, 2) if args.quick else (50_000, 5)
    report = Report(__doc__, args)
    with server() as at:
        stores = {name: without_embedding(at.store(name)) for name in ("long", "short", "forgotten")}
        fill(stores["long"], sessions=events // 500, memories=500)
        fill(stores["short"], sessions=events // 10, memories=10)
        fill(stores["forgotten"], sessions=events // 500, memories=250)
        for number in range(events // 500):
            gone = [NewMemory(content=f"{number} {place}", category="gone") for place in range(125)]
            stores["forgotten"].remember_many(gone, session_id=f"session-{number}")
            stores["forgotten"].forget_where(f"session-{number}", {"category": "gone"})
        contenders: dict[str, Callable[[], Sample]] = {}
        for name, store in stores.items():
            at.analyze(name)
            contenders[f"{name}, projected"] = lambda store=store: projected(store, events)
            contenders[f"{name}, read"] = lambda store=store: read(store, events)
        samples = take_turns(contenders, rounds)
        report.samples(samples, "events/s")
        report.bars(
            [Bar(f"{name}: projected / read", ratio(samples, f"{name}, projected", f"{name}, read")) for name in stores]
        )
        report.note(
            f"{events:,} events each: long sessions of 500 memories, short ones of 10, and 375 of which 125 were forgotten."
        )
        report.machine(at)
        for store in stores.values():
            store.close()


if __name__ == "__main__":
    main()
