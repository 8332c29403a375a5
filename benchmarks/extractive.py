"""How much of the evidence can still be reached when conversations were summarized by extraction, and how quick is that?

LoCoMo dev as in `recall_locomo.py`, but of every conversation only the newest session is there turn by turn. All before became
summaries of at most a quarter of the tokens: of so many turns of one session each. Every question is asked with `limit=20`;
reached is a turn that is recalled, or is one of the three sources of a recalled summary that fit the question best. *Kept* is
the share of evidence reached, over the share that is among the first 20 turns when nothing was summarized. The summarizer's
few constants were chosen on these very conversations, so that others may keep less. *Answer*: the share of
an answer's words that stand in a context of 1,000 tokens, before and after.

How quick: windows of synthetic prose, a sentence a memory, with the static embedder; and without conversations nothing else.
"""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from statistics import mean
from typing import Any, NamedTuple

from common import Report, options, prose, server
from recall_locomo import CATEGORIES, DATA, conversations, evidence, turns

from memfold import MemoryStore
from memfold.consolidator.extractive import ExtractiveSummarizer
from memfold.consolidator.summarizer import Source, Window
from memfold.embedding import Encoder
from memfold.minilm import MiniLMEmbedder, default_count_tokens, static_embedder
from memfold.projections.tokens import words_of

SIZES = (4, 6, 8, 10, 12)
TARGET = 0.25
LIMIT, BEST = 20, 3
CONTEXT_TOKENS = 1_000
BAR, CONTEXT_BAR = 0.90, 0.05
SECONDS = 5.0

Turn = dict[str, Any]


class Asked(NamedTuple):
    """What a question reached, and the share of its answer's words in a context; None if it has no answer in words."""

    reached: float
    answer: float | None


def windows(said: Sequence[Turn], size: int) -> tuple[list[list[Turn]], list[Turn]]:
    """The turns of all but the newest session in runs of about `size`, and those of the newest."""
    sessions: dict[int, list[Turn]] = {}
    for turn in said:
        sessions.setdefault(int(turn["metadata"]["turn"][1:].partition(":")[0]), []).append(turn)
    *old, newest = (sessions[number] for number in sorted(sessions))
    runs = []
    for turns_there in old:
        count = -(-len(turns_there) // size)
        cuts = [place * len(turns_there) // count for place in range(count + 1)]
        runs += [turns_there[begin:end] for begin, end in pairwise(cuts)]
    return runs, newest


def window_of(run: Sequence[Turn]) -> Window:
    """A run as a summarizer is handed it."""
    count = default_count_tokens()
    sources = [Source(turn["metadata"]["turn"], turn["content"], turn["speaker"], turn["occurred_at"]) for turn in run]
    return Window(tuple(sources), int(TARGET * sum(count(source.content) for source in sources)))


def summarized(summarizer: ExtractiveSummarizer, said: Sequence[Turn], size: int) -> tuple[list[Turn], int, int]:
    """What is remembered in place of the turns, and the tokens of what was summarized, before and after."""
    count = default_count_tokens()
    runs, newest = windows(said, size)
    items, before, after = [], 0, 0
    for run in runs:
        window = window_of(run)
        text = summarizer.summarize(window).text
        before += sum(count(source.content) for source in window.sources)
        after += count(text)
        if text:
            metadata = {"sources": [source.memory_id for source in window.sources]}
            items.append({"content": text, "category": "summary", "occurred_at": run[-1]["occurred_at"], "metadata": metadata})
    return items + newest, before, after


def questions(sample: Turn, said: Sequence[Turn]) -> Iterator[tuple[str, set[str], str]]:
    """Every question with evidence: its text, the evidence, the answer."""
    known = {turn["metadata"]["turn"] for turn in said}
    for question in sample["qa"]:
        gold = evidence(question, known)
        if question["category"] in CATEGORIES and gold:
            yield question["question"], gold, str(question.get("answer", ""))


def ask(store: MemoryStore, session_id: str, turns_id: str, question: str, gold: set[str], answer: str) -> Asked:
    """Ask where summaries may stand, and rank the sources of those that come where the turns are."""
    there = [hit.memory.metadata for hit in store.recall(question, session_id=session_id, limit=LIMIT)]
    reached = {metadata["turn"] for metadata in there if "turn" in metadata}
    sources = [metadata["sources"] for metadata in there if "sources" in metadata]
    if sources:
        where = {"turn": {"$in": [turn for some in sources for turn in some]}}
        ranked = store.recall(question, session_id=turns_id, limit=1_000, where=where)
        places = {hit.memory.metadata["turn"]: place for place, hit in enumerate(ranked)}
        for some in sources:
            reached.update(sorted(some, key=lambda turn: places.get(turn, len(places)))[:BEST])
    words = set(words_of(answer))
    context = store.context(question, session_id=session_id, max_tokens=CONTEXT_TOKENS).text if words else ""
    return Asked(len(gold & reached) / len(gold), len(words & set(words_of(context))) / len(words) if words else None)


def ask_all(store: MemoryStore, samples: Sequence[Turn], name: str) -> tuple[float, float]:
    """Every question of every conversation, where they are remembered under this name."""
    asked = []
    for sample in samples:
        turns_id = f"{sample['sample_id']}-turns"
        for question, gold, answer in questions(sample, list(turns(sample["conversation"]))):
            asked.append(ask(store, f"{sample['sample_id']}-{name}", turns_id, question, gold, answer))
    return mean(one.reached for one in asked), mean(one.answer for one in asked if one.answer is not None)


def quality(samples: Sequence[Turn], summarizer: ExtractiveSummarizer, report: Report) -> None:
    """The table of window sizes."""
    rows = []
    with server() as at, at.store("extractive", embedder=MiniLMEmbedder()) as store:
        for sample in samples:
            store.remember_many(turns(sample["conversation"]), session_id=f"{sample['sample_id']}-turns")
        store.flush()
        reached, answer = ask_all(store, samples, "turns")
        report.note(f"Before: r@{LIMIT} {reached:.4f}, answer {answer:.4f}.")
        for size in SIZES:
            tokens = [0, 0]
            for sample in samples:
                items, before, after = summarized(summarizer, list(turns(sample["conversation"])), size)
                tokens = [tokens[0] + before, tokens[1] + after]
                store.remember_many(items, session_id=f"{sample['sample_id']}-{size}")
            store.flush()
            now, answer_now = ask_all(store, samples, str(size))
            kept, lost = now / reached, answer - answer_now
            rows.append(
                (
                    size,
                    f"{tokens[1] / tokens[0]:.3f}",
                    f"{now:.4f}",
                    f"{kept:.4f} ({'met' if kept >= BAR else '**missed**'})",
                    f"{answer_now:.4f} ({'met' if lost <= CONTEXT_BAR else '**missed**'})",
                )
            )
        bars = (f"kept (bar ≥ {BAR:.2f})", f"answer (bar: ≤ {CONTEXT_BAR:.2f} less)")
        report.table(("turns a window", "of the tokens", "reached", *bars), rows)
        report.machine(at)


def speed(summarizer: ExtractiveSummarizer, report: Report, *, quick: bool) -> None:
    """Windows and tokens a second, one thread."""
    count = default_count_tokens()
    said = [f"{text[:1].upper()}{text[1:]}." for text in prose(2_000, words=20, seed=7)]
    begun_at = datetime(2026, 1, 1, tzinfo=UTC)
    rows = []
    for size in (4, 8, 12, 80, 400):
        sources = [
            Source(str(place), text, ("Ann", "Ben")[place % 2], begun_at + timedelta(minutes=place))
            for place, text in enumerate(said)
        ]
        runs = [tuple(sources[begin : begin + size]) for begin in range(0, len(sources) - size + 1, size)]
        tokens = [sum(count(source.content) for source in run) for run in runs]
        made, read, begun = 0, 0, time.perf_counter()
        while made < len(runs) and time.perf_counter() - begun < (0.2 if quick else SECONDS):
            summarizer.summarize(Window(runs[made], int(TARGET * tokens[made])))
            read += tokens[made]
            made += 1
        took_s = time.perf_counter() - begun
        rows.append((size, f"{read / made:,.0f}", f"{made / took_s:,.1f}", f"{read / took_s:,.0f}"))
    report.table(("memories a window", "tokens a window", "windows/s", "tokens/s"), rows)


def main() -> None:
    """Measure and print."""
    args = options(__doc__, path=str(DATA))
    report = Report(__doc__, args)
    summarizer = ExtractiveSummarizer(Encoder(static_embedder()), default_count_tokens())
    speed(summarizer, report, quick=args.quick)
    samples = conversations(args.path, report, quick=args.quick)
    if samples:
        quality(samples, summarizer, report)


if __name__ == "__main__":
    main()
