"""How much of the evidence is in a context of so many tokens?

LoCoMo dev, remembered as `recall_locomo.py` does. Every question asks for a context of 500 to 4,000 tokens, by the tokenizer
that comes along; the share of its gold evidence turns in there is averaged over the questions of categories 1 to 4. *Frame*:
the share of tokens that are no memory's own words: the fence, headings, names. The time is that of assembling alone.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from statistics import mean
from typing import Any, NamedTuple

from common import Report, options, percentile, server
from recall_locomo import CATEGORIES, DATA, conversations, evidence, turns

from memfold import Context, Memory, MemoryStore
from memfold.minilm import MiniLMEmbedder, default_count_tokens
from memfold.projections.layout import one_line

BUDGETS = (500, 1_000, 2_000, 4_000)
BAR = (1_000, 0.75)


class Asked(NamedTuple):
    """One question: its category, the context it got, the share of its evidence in there, and what assembling took."""

    category: int
    context: Context
    share: float
    took_ms: float


def context_of(store: MemoryStore, question: str, session_id: str, max_tokens: int) -> tuple[Context, float]:
    """The context of a question, and how many milliseconds it took."""
    begun = time.perf_counter()
    context = store.context(question, session_id=session_id, max_tokens=max_tokens)
    return context, (time.perf_counter() - begun) * 1000


def ask(store: MemoryStore, sample: dict[str, Any], memories: Sequence[Memory], max_tokens: int) -> Iterator[Asked]:
    """Every question of one conversation that has evidence."""
    known = {memory.metadata["turn"] for memory in memories}
    for question in sample["qa"]:
        gold = evidence(question, known)
        if question["category"] in CATEGORIES and gold:
            context, took_ms = context_of(store, question["question"], sample["sample_id"], max_tokens)
            there = {memory.metadata["turn"] for group in context.groups.values() for memory in group}
            yield Asked(question["category"], context, len(gold & there) / len(gold), took_ms)


def frame(context: Context, count: Callable[[str], int]) -> float:
    """The share of tokens that no memory's own words have."""
    words = sum(count(one_line(memory.content)) for group in context.groups.values() for memory in group)
    return 1 - words / context.tokens


def row(max_tokens: int, asked: Sequence[Asked]) -> tuple[object, ...]:
    """The line of one budget."""
    by_category = defaultdict(list)
    for one in asked:
        by_category[one.category].append(one.share)
    share = mean(one.share for one in asked)
    bar = f" (bar ≥ {BAR[1]}: {'met' if share >= BAR[1] else '**missed**'})" if max_tokens == BAR[0] else ""
    times_ms = [one.took_ms for one in asked]
    return (
        f"{max_tokens:,}",
        f"{share:.4f}{bar}",
        *(f"{mean(by_category[category]):.3f}" for category in CATEGORIES),
        f"{mean(len(one.context.memory_ids) for one in asked):.1f}",
        f"{mean(one.context.tokens for one in asked):,.0f} (most {max(one.context.tokens for one in asked):,})",
        f"{mean(frame(one.context, default_count_tokens()) for one in asked):.0%}",
        f"{percentile(times_ms, 0.5):.1f}, {percentile(times_ms, 0.99):.1f}",
    )


def main() -> None:
    """Measure and print."""
    args = options(__doc__, path=str(DATA))
    report = Report(__doc__, args)
    samples = conversations(args.path, report, quick=args.quick)
    if not samples:
        return
    asked: dict[int, list[Asked]] = defaultdict(list)
    with server() as at, at.store("contexts", embedder=MiniLMEmbedder()) as store:
        for sample in samples:
            store.remember_many(turns(sample["conversation"]), session_id=sample["sample_id"])
            store.flush()
            memories = store.find(sample["sample_id"], order="oldest", limit=10_000).memories
            for max_tokens in BUDGETS:
                asked[max_tokens] += ask(store, sample, memories, max_tokens)
        header = ("tokens", "evidence", *CATEGORIES.values(), "memories", "used", "frame", "ms, recall included (p50, p99)")
        report.table(header, [row(max_tokens, asked[max_tokens]) for max_tokens in BUDGETS])
        report.note(f"{len(asked[BUDGETS[0]])} questions.")
        report.machine(at)


if __name__ == "__main__":
    main()
