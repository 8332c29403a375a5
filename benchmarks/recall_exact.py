"""Does recall return the ten best of all rows, whatever the filter, the size and what happened before?

Against brute force: the documented mix (projections/ranking.py and words.py) written down once more in plain numpy with double
precision, over every row of the session as it should stand, kept beside the store in a list. A memory counts as right if it
passes the filter and brute force finds no ten that are better by more than 0.000001; every memory that scores above 0 is due.
Sessions of 5 to 50,000 memories, with and without filters, as remembered, after updates and forgets, and after most of it was
forgotten.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import numpy as np
from common import Report, options, prose, queries, server
from numpy.typing import NDArray

from memfold import Memory, MemoryStore
from memfold.minilm import StaticEmbedder
from memfold.projections.words import asked_for, plain_words, words_of

SIZES = (5, 50, 500, 5_000, 50_000)
LIMIT, TOLERANCE = 10, 1e-6
BEGUN = datetime(2026, 1, 1, tzinfo=UTC)
NAMES = ("Anna", "Béla Tóth", "Chiara", None)
CATEGORIES = ("fact", "plan", "preference", None)
Reals = NDArray[np.float64]


# -- brute force -----------------------------------------------------------------------------------------------------------


class Rows:
    """The rows of a session as they should stand, and all that brute force needs of them."""

    def __init__(self, memories: Sequence[Memory], embedder: StaticEmbedder) -> None:
        self.memories = memories
        texts = [f"{memory.speaker}: {memory.content}" if memory.speaker else memory.content for memory in memories]
        self._counts = [Counter(words_of(text)) for text in texts]
        self._lengths = np.array([counts.total() for counts in self._counts], float)
        self._embedder = embedder
        stored = embedder.encode(texts).astype(np.float16).astype(float)  # vectors are kept in half precision
        self._vectors = stored / np.linalg.norm(stored, axis=1, keepdims=True)

    def scores(self, query: str) -> Reals:
        """How good an answer each row is."""
        cosines = self._vectors @ self._embedder.encode([query])[0]
        meaning = 0.5 * np.clip(0.75 * cosines + 0.25 * before(cosines), 0, 1)
        counts = [np.array([row[word] for row in self._counts], float) for word in asked_for(query)]
        rarities = [rarity(each) for each in counts]
        average = (self._lengths.sum() + 1300) / (len(self._lengths) + 100)
        alone = bm25(counts, rarities, self._lengths / average)
        both = [each + before(each) for each in counts]
        paired = bm25(both, rarities, (self._lengths + before(self._lengths)) / (2 * average))
        weight = 0.6 * alone + 0.4 * paired
        own = meaning + 0.5 * weight / (weight + 10)
        asked = set(plain_words(query))
        named = np.array([bool(asked & set(plain_words(memory.speaker or ""))) for memory in self.memories], float)
        mixed = own + 0.2 * before(own) + 0.25 * before(own[::-1])[::-1] + 0.2 * named
        return np.asarray(1 - np.exp(-mixed), float)


def before(values: Reals) -> Reals:
    """Of each row the value of the row before it."""
    return np.concatenate([[0.0], values[:-1]])


def rarity(counts: Reals) -> float:
    """What a word is worth that stands so often in each row, as if a hundred rows without it went before."""
    holding = np.count_nonzero(counts)
    return math.log(1 + (len(counts) + 100 - holding + 0.5) / (holding + 0.5))


def bm25(counts: Sequence[Reals], rarities: Sequence[float], lengths: Reals) -> Reals:
    """Okapi BM25 (k1 1.2, b 0.75); lengths are shares of the average, to which a hundred rows of thirteen words count."""
    norms = 1.2 * (0.25 + 0.75 * lengths)
    weights = (worth * each * 2.2 / (each + norms) for each, worth in zip(counts, rarities, strict=True))
    return np.asarray(sum(weights, np.zeros(len(lengths))))


# -- filters ---------------------------------------------------------------------------------------------------------------


class Filter(NamedTuple):
    """What recall is given, and the same said in Python."""

    arguments: dict[str, Any]
    holds: Callable[[Memory], bool]


def filters(size: int) -> dict[str, Filter]:
    """Some that leave much, some that leave little, one that leaves a single row."""
    early, late = BEGUN + timedelta(minutes=size // 5), BEGUN + timedelta(minutes=size // 2)
    number = size // 3
    return {
        "none": Filter({}, lambda memory: True),
        "category": Filter({"where": {"category": "plan"}}, lambda memory: memory.category == "plan"),
        "importance": Filter({"where": {"importance": {"$gte": 0.8}}}, lambda memory: memory.importance >= 0.8),
        "tags": Filter({"where": {"tags": "rare"}}, lambda memory: "rare" in memory.tags),
        "metadata": Filter(
            {"where": {"metadata.source": {"$in": ["mail", "call"]}, "speaker": {"$ne": "Anna"}}},
            lambda memory: memory.metadata.get("source") in ("mail", "call") and memory.speaker != "Anna",
        ),
        "one row": Filter({"where": {"number": number}}, lambda memory: memory.metadata["number"] == number),
        "before": Filter({"before": late}, lambda memory: memory.occurred_at < late),
        "before, after and a category": Filter(
            {"before": late, "after": early, "where": {"category": {"$exists": False}}},
            lambda memory: early <= memory.occurred_at < late and memory.category is None,
        ),
    }


def things(size: int, rand: random.Random) -> Iterator[dict[str, Any]]:
    """What is remembered."""
    for number, content in enumerate(prose(size, seed=size)):
        yield {
            "content": content,
            "speaker": rand.choice(NAMES),
            "category": rand.choice(CATEGORIES),
            "importance": round(rand.random(), 2),
            "tags": ["rare"] if rand.random() < 0.02 else [],
            "metadata": {"number": number, "source": rand.choice(["mail", "call", "chat"])},
            "occurred_at": BEGUN + timedelta(minutes=number),
        }


# -- the comparison --------------------------------------------------------------------------------------------------------


class Tally:
    """How many of the answers that were due came, and how far scores were from brute force's."""

    def __init__(self) -> None:
        self.asked, self.due, self.right, self.off = 0, 0, 0, 0.0

    def add(self, due: int, right: int, off: float) -> None:
        """One query more."""
        self.asked, self.due, self.right, self.off = self.asked + 1, self.due + due, self.right + right, max(self.off, off)

    def row(self) -> tuple[object, ...]:
        """Its part of a line of the table."""
        verdict = "met" if self.right == self.due else "**missed**"
        share = 10 * self.right / max(1, self.due)
        return (self.asked, f"{self.right:,} of {self.due:,}", f"{share:.2f}", verdict, f"{self.off:.0e}")


def compare(store: MemoryStore, session: str, query: str, one: Filter, rows: Rows, scores: Reals) -> tuple[int, int, float]:
    """Ask once: how many answers were due, how many were right, and how far a score was off."""
    allowed = {memory.id: scores[at] for at, memory in enumerate(rows.memories) if one.holds(memory)}
    due = sorted((score for score in allowed.values() if score > 0), reverse=True)[:LIMIT]
    found = store.recall(query, session_id=session, limit=LIMIT, ranking="fixed", **one.arguments)
    answers = {each.memory.id: each.score for each in found}
    assert len(answers) == len(found) <= LIMIT
    assert found.model == StaticEmbedder.name
    right = sum(allowed.get(answer, -1.0) >= due[-1] - TOLERANCE for answer in answers) if due else 0
    return len(due), right, max((abs(score - allowed.get(answer, 9.0)) for answer, score in answers.items()), default=0.0)


def states(store: MemoryStore, session: str, size: int, rand: random.Random) -> Iterator[tuple[str, list[Memory]]]:
    """What happens to a session, and the rows as they should stand then."""
    items = list(things(size, rand))
    batches = (items[begin : begin + 5_000] for begin in range(0, size, 5_000))
    memories = [memory for batch in batches for memory in store.remember_many(batch, session_id=session)]
    yield "as remembered", memories
    memories = change(store, memories, rand)
    yield "after updates and forgets", memories
    store.forget_where(session, {"metadata.source": {"$in": ["mail", "chat"]}})
    yield "after two of three were forgotten", [memory for memory in memories if memory.metadata["source"] == "call"]


def change(store: MemoryStore, memories: list[Memory], rand: random.Random) -> list[Memory]:
    """Update some, forget some; the rows as they should stand then."""
    count = min(500, len(memories) // 5)
    chosen = rand.sample(range(len(memories)), 2 * count)
    texts = iter(prose(count, seed=len(memories) + 1))
    memories = list(memories)
    for at in chosen[:count]:
        memories[at] = store.update(memories[at].id, content=next(texts), category="plan", speaker=rand.choice(NAMES))
    gone = set(chosen[count:])
    for at in gone:
        store.forget(memories[at].id)
    return [memory for at, memory in enumerate(memories) if at not in gone]


def main() -> None:
    """Compare and print."""
    args = options(__doc__)
    report = Report(__doc__, args)
    rand, embedder = random.Random(5), StaticEmbedder()
    asked = [f"{rand.choice(['What did Anna say of', 'bela', 'Tell me about', ''])} {query}" for query in queries(60)]
    by_state: dict[tuple[int, str], Tally] = {}
    by_filter: dict[str, Tally] = {}
    with server() as at, at.store("memfold", embedder=embedder) as store:
        for size in SIZES[: 3 if args.quick else None]:
            session = f"session-{size}"
            count = 3 if args.quick else max(6, min(60, 300_000 // size))
            for state, memories in states(store, session, size, rand):
                store.flush()
                rows, tally = Rows(memories, embedder), by_state.setdefault((size, state), Tally())
                for query in asked[:count]:
                    scores = rows.scores(query)
                    for name, one in filters(size).items():
                        found = compare(store, session, query, one, rows, scores)
                        tally.add(*found)
                        by_filter.setdefault(name, Tally()).add(*found)
        header = ("queries", "right", "right of 10", "bar 10.0", "score off by at most")
        report.table(("session", "", *header), [(f"{size:,}", state, *each.row()) for (size, state), each in by_state.items()])
        report.table(("filter", *header), [(name, *each.row()) for name, each in by_filter.items()])
        report.machine(at)


if __name__ == "__main__":
    main()
