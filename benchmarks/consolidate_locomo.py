"""After consolidation to a quarter of the tokens, how much of the evidence does recall still reach?

LoCoMo dev: one session a conversation, remembered with the clock at the time of each LoCoMo session, so that pauses and ages
are real. A day after the last, all but the newest LoCoMo session is consolidated by the extractive summarizer: first to one
level of summaries, then, as the months go by, to all, which leaves two tokens of a hundred: no bar is for that.

*Recall*: with `limit=20`, the share of a question's gold evidence turns that were found themselves, or that are among the three
sources that fit the question best of a summary that was found (of a summary of summaries: of one of its three best, and so
on); averaged over the questions of categories 1 to 4 as `recall_locomo.py` does.
*Context*: of 1,000 tokens. *Turns*: the share of a question's gold evidence turns that are in it, word for word. *Answer*: the
share of questions whose answer can be read in it: all words of the answer, stemmed, without stop words, stand in its text,
headings included, days also told in words. *Either*: all gold evidence turns are in it, or the answer can be read. What is
counted is the same before and after.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from statistics import mean
from typing import Any, NamedTuple

from common import MASTER_KEY, Report, Server, options, server
from recall_locomo import CATEGORIES, DATA, conversations, evidence, turns

from memfold import Memory, MemoryStore
from memfold.embedding import Embedder
from memfold.minilm import MiniLMEmbedder, StaticEmbedder, default_count_tokens
from memfold.policies import Keep, Policy, Windows
from memfold.projections.tokens import STOP_WORDS, stemmer, written_words

LIMIT, SOURCES, MAX_TOKENS = 20, 3, 1_000
BAR_TOKENS, BAR_RECALL, BAR_CONTEXT = 0.25, 0.90, 0.05
LEVELS = {"one level": 1, "all levels": 8}


class Clock:
    """The time that a store is told."""

    def __init__(self) -> None:
        self.now = datetime.fromisoformat("2020-01-01T00:00:00+00:00")

    def __call__(self) -> datetime:
        return self.now


class Shares(NamedTuple):
    """What one question got: its category, and what was reached by recall and is in the context."""

    category: int
    reached: float
    turns: float
    answer: float
    either: float


def remember(store: MemoryStore, clock: Clock, sample: dict[str, Any]) -> list[Memory]:
    """Remember a conversation as it went on; what was remembered, by LoCoMo session."""
    by_session = groupby(turns(sample["conversation"]), lambda turn: turn["metadata"]["turn"].partition(":")[0])
    memories = []
    for _, said in by_session:
        items = list(said)
        clock.now = max(turn["occurred_at"] for turn in items) + timedelta(seconds=1)
        memories += store.remember_many(items, session_id=sample["sample_id"])
    clock.now += timedelta(days=1)
    return memories


def policy(newest: int, depth: int) -> Policy:
    """Everything but so many memories becomes summaries of at most this depth."""
    windows = Windows(older_than=timedelta(hours=1), target=BAR_TOKENS, depth_max=depth)
    return Policy(windows=windows, keep=Keep(newest=newest, importance_min=None))


def leaves(store: MemoryStore, memory: Memory, question: str) -> Iterator[str]:
    """The turn a memory is, or the turns that fit the question best of those that it stands for."""
    if memory.category != "summary":
        yield memory.metadata["turn"]
        return
    for source in store.sources(memory.id, query=question, limit=SOURCES):
        yield from leaves(store, source, question)


def words_of(text: str) -> set[str]:
    """The words of a text that say something, stemmed."""
    return {stemmer().stemWord(word) for word in written_words(text) if word not in STOP_WORDS}


def ask(store: MemoryStore, sample: dict[str, Any], known: set[str]) -> Iterator[Shares]:
    """Every question of one conversation that has evidence."""
    session_id = sample["sample_id"]
    for question in sample["qa"]:
        gold = evidence(question, known)
        if question["category"] not in CATEGORIES or not gold:
            continue
        text = question["question"]
        hits = store.recall(text, session_id=session_id, limit=LIMIT)
        reached = {turn for hit in hits for turn in leaves(store, hit.memory, text)}
        context = store.context(text, session_id=session_id, max_tokens=MAX_TOKENS)
        memories = [memory for group in context.groups.values() for memory in group]
        there = {memory.metadata["turn"] for memory in memories if memory.category != "summary"}
        answer = words_of(str(question["answer"]))
        can_be_read = bool(answer) and answer <= words_of(told(context.text))
        yield Shares(
            question["category"],
            len(gold & reached) / len(gold),
            len(gold & there) / len(gold),
            float(can_be_read),
            float(can_be_read or gold <= there),
        )


def told(text: str) -> str:
    """A text, its dates also in words, as answers tell them."""
    return re.sub(r"\d{4}-\d\d-\d\d", lambda match: f"{datetime.fromisoformat(match[0]):%Y-%m-%d %-d %B %Y}", text)


class Size(NamedTuple):
    """Of one conversation, without its newest session: memories and tokens before and after."""

    memories: int
    tokens: int
    left: int
    left_tokens: int


def size(store: MemoryStore, old: Sequence[Memory], count: Callable[[str], int]) -> Size:
    """How much became how much."""
    begun, session_id = {memory.id for memory in old}, old[0].session_id
    active = store.find(session_id, limit=10_000).memories
    left = [memory for memory in active if memory.id in begun or memory.category == "summary"]
    return Size(len(begun), *(total(old, count), len(left), total(left, count)))


def total(memories: Sequence[Memory], count: Callable[[str], int]) -> int:
    """The tokens of some memories."""
    return sum(count(memory.content) for memory in memories)


def consolidate(store: MemoryStore, clock: Clock, session_id: str, newest: int, depth: int) -> None:
    """Consolidate all but the newest, as long as there is anything to do, however long that takes by the clock."""
    store.set_policy(policy(newest, depth), session_id=session_id)
    asked_at = clock.now
    while (due_at := store.consolidate(session_id, until_idle=True).sessions[-1].due_at) is not None:
        if due_at <= clock.now:
            break
        clock.now = due_at
    clock.now = asked_at  # questions are asked when they were asked before
    store.flush()


def measure(at: Server, samples: Sequence[dict[str, Any]], embedder: Embedder, report: Report) -> None:
    """Ask before and after, with one embedder, and print."""
    asked: dict[str, list[Shares]] = defaultdict(list)
    sizes: dict[str, list[Size]] = defaultdict(list)
    clock, count = Clock(), default_count_tokens()
    with MemoryStore(at.database(embedder.name), master_key=MASTER_KEY, embedder=embedder, clock=clock) as store:
        for sample in samples:
            memories = remember(store, clock, sample)
            store.flush()
            known = {memory.metadata["turn"] for memory in memories}
            newest = newest_of(memories)
            asked["before"] += ask(store, sample, known)
            for name, depth in LEVELS.items():
                consolidate(store, clock, sample["sample_id"], newest, depth)
                sizes[name].append(size(store, memories[:-newest], count))
                asked[name] += ask(store, sample, known)
    print_sizes(embedder.name, sizes, report)
    print_shares(embedder.name, asked, report)


def newest_of(memories: Sequence[Memory]) -> int:
    """How many memories the newest LoCoMo session has."""
    return [memory.metadata["turn"].partition(":")[0] for memory in memories].count(
        memories[-1].metadata["turn"].partition(":")[0]
    )


def print_sizes(name: str, sizes: dict[str, list[Size]], report: Report) -> None:
    """What became of all but the newest sessions."""
    rows = []
    for levels, each in sizes.items():
        memories, tokens, left, left_tokens = (sum(column) for column in zip(*each, strict=True))
        ratio = left_tokens / tokens
        verdict = f"{ratio:.4f} (bar ≤ {BAR_TOKENS}: {'met' if ratio <= BAR_TOKENS else '**missed**'})"
        rows.append((levels, f"{memories:,}", f"{tokens:,}", f"{left:,}", f"{left_tokens:,}", verdict))
    report.table((f"{name}: all but the newest", "memories", "tokens", "left", "tokens left", "ratio"), rows)


def print_shares(name: str, asked: dict[str, list[Shares]], report: Report) -> None:
    """What was reached before and after."""
    before = asked["before"]
    for what, field in (
        (f"recall of {LIMIT}", "reached"),
        (f"context of {MAX_TOKENS:,}, turns", "turns"),
        (f"context of {MAX_TOKENS:,}, answer", "answer"),
        (f"context of {MAX_TOKENS:,}, either", "either"),
    ):
        rows = []
        for levels, each in asked.items():
            share, first = mean_of(each, field), mean_of(before, field)
            categories = (mean_of([one for one in each if one.category == category], field) for category in CATEGORIES)
            rows.append((levels, f"{share:.4f}", *(f"{one:.3f}" for one in categories), compared(levels, field, share, first)))
        report.table((f"{name}: {what}", "share", *CATEGORIES.values(), ""), rows)


def compared(levels: str, field: str, share: float, before: float) -> str:
    """How a share compares with that before. The bar of recall is for a quarter of the tokens: one level."""
    if levels == "before":
        return "–"
    if field == "reached":
        verdict = f" (bar ≥ {BAR_RECALL}: {verdict_of(share / before >= BAR_RECALL)})" if LEVELS[levels] == 1 else ""
        return f"{share / before:.3f} of before{verdict}"
    verdict = f" (bar ≥ -{BAR_CONTEXT}: {verdict_of(share - before >= -BAR_CONTEXT)})" if field == "either" else ""
    return f"{share - before:+.3f}{verdict}"


def mean_of(asked: Sequence[Shares], field: str) -> float:
    """The mean of one of the shares."""
    return mean(getattr(one, field) for one in asked)


def verdict_of(met: bool) -> str:
    """A bar's verdict."""
    return "met" if met else "**missed**"


def main() -> None:
    """Measure and print."""
    args = options(__doc__, path=str(DATA))
    report = Report(__doc__, args)
    samples = conversations(args.path, report, quick=args.quick)
    if samples:
        with server() as at:
            for embedder in (MiniLMEmbedder(), StaticEmbedder()):
                measure(at, samples, embedder, report)
            report.machine(at)


if __name__ == "__main__":
    main()
