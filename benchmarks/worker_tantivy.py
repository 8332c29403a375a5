"""tantivy in RAM, at its best: words stemmed already, split at spaces, without positions; two threads write.

A row's number is a fast field, read for all answers at once. Queries are built from their words, without a parser.
"""

import json
import sys
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import tantivy
from timing import Sample, repeat

HEAP_BYTES, THREADS = 256_000_000, 2
Query = list[str]


class Rows:
    """An index of the lines of a file."""

    def __init__(self, path: str) -> None:
        self.lines = Path(path).read_text("utf-8").split("\n")
        fields = tantivy.SchemaBuilder()
        fields.add_unsigned_field("slot", indexed=True, fast=True)
        fields.add_text_field("words", tokenizer_name="whitespace", index_option="freq")
        self.schema = fields.build()
        self.index = tantivy.Index(self.schema)
        self.writer = self.index.writer(HEAP_BYTES, THREADS)

    def add(self, slot: int) -> None:
        """Add a line."""
        document = tantivy.Document()
        document.add_unsigned("slot", slot)
        document.add_text("words", self.lines[slot])
        self.writer.add_document(document)

    def show(self) -> None:
        """Let what was added be found."""
        self.writer.commit()
        self.index.reload()

    def nearest(self, query: Query, count: int) -> list[int]:
        """The rows that weigh most."""
        terms = [(tantivy.Occur.Should, tantivy.Query.term_query(self.schema, "words", word, "freq")) for word in query]
        searcher = self.index.searcher()
        hits = searcher.search(tantivy.Query.boolean_query(terms), count, count=False).hits
        return list(searcher.fast_field_values("slot", [address for _, address in hits]))

    def change(self, slot: int) -> None:
        """Take a line out, add it again, and find it."""
        self.writer.delete_documents_by_term("slot", slot)
        self.add(slot)
        self.show()
        self.nearest(self.lines[slot].split()[:1], 1)


BUILT: dict[str, Rows] = {}


def main() -> None:
    """Answer a JSON line for each that comes in."""
    commands = {"about": about, "build": build, "ask": ask, "change": change, "found": found}
    for line in sys.stdin:
        arguments = json.loads(line)
        answer = commands[arguments.pop("do")](**arguments)
        print(json.dumps(answer._asdict() if isinstance(answer, Sample) else answer), flush=True)


def about() -> dict[str, Any]:
    """The version."""
    return {"about": f"tantivy {version('tantivy')}, {HEAP_BYTES // 1_000_000} MB of heap, {THREADS} threads"}


def build(path: str) -> Sample:
    """Index every line, until all are found."""
    BUILT.pop(path, None)
    rows = Rows(path)
    begun = perf_counter()
    for slot in range(len(rows.lines)):
        rows.add(slot)
    rows.show()
    BUILT[path] = rows
    return Sample(len(rows.lines) / (perf_counter() - begun), [])


def ask(path: str, queries: list[Query], count: int, seconds: float) -> Sample:
    """Queries, one after the other."""
    asked = cycle(queries)
    return repeat(lambda: BUILT[path].nearest(next(asked), count), seconds)


def found(path: str, query: Query, count: int) -> dict[str, Any]:
    """What a query finds, and how much RAM the process takes by now beside the texts."""
    lines = Path("/proc/self/status").read_text("ascii").splitlines()
    resident = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))
    texts = sum(map(sys.getsizeof, BUILT[path].lines))
    return {"slots": BUILT[path].nearest(query, count), "bytes": resident - texts}


def change(path: str, seconds: float) -> Sample:
    """Lines taken out and added again, one at a time, each until it is found."""
    slots = iter(range(len(BUILT[path].lines)))
    return repeat(lambda: BUILT[path].change(next(slots)), seconds)


main()
