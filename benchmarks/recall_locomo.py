"""How much of the evidence does recall find in real conversations?

LoCoMo dev (five conversations; Maharana et al., ACL 2024; CC BY-NC 4.0, never shipped): one session a conversation, one memory
a turn with speaker and time, every question asked as it stands with `limit=20`. r@k is the share of a question's gold evidence
turns among the first k, averaged over questions. The evidence of category 5 is a lure, so it has no bar and is in no average.
Both rankings are asked. The learned one was fitted on these very conversations: what it does for conversations that were left
out of the fit is told by scripts/fit-ranking, at the head of memfold/projections/weights.txt.
"""

import json
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import mean
from typing import Any

from common import ROOT, Report, Server, options, percentile, server

from memfold import MemoryStore
from memfold.embedding import Embedder
from memfold.minilm import MiniLMEmbedder, StaticEmbedder
from memfold.model import Ranking

DATA = ROOT.parent / "shared" / "data" / "locomo-dev.json"
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "commonsense", 4: "single-hop"}
LURES = {5: "adversarial"}
DEPTHS = (5, 10, 20)
RANKINGS: tuple[Ranking, ...] = ("learned", "fixed")
BARS = (0.70, 0.78, 0.83)


def conversations(path: str, report: Report, *, quick: bool) -> list[dict[str, Any]]:
    """The conversations, or none where they are not to be had."""
    if not Path(path).exists():
        report.note(f"Skipped: the conversations are not at {path} (CC BY-NC 4.0, not shipped).")
        return []
    return list(json.loads(Path(path).read_text()))[: 2 if quick else None]


def turns(conversation: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The turns of a conversation as `remember_many` takes them."""
    for name, said in conversation.items():
        if re.fullmatch(r"session_\d+", name):
            begun = datetime.strptime(conversation[f"{name}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
            for number, turn in enumerate(said):
                caption = f" [shared image: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
                yield {
                    "content": turn["text"] + caption,
                    "speaker": turn["speaker"],
                    "occurred_at": begun + timedelta(seconds=number),
                    "metadata": {"turn": turn["dia_id"]},
                }


def evidence(question: dict[str, Any], known: set[str]) -> set[str]:
    """The turns that answer a question; none if they do not exist."""
    return set(re.findall(r"D\d+:\d+", " ".join(question["evidence"]))) & known


def ask(
    store: MemoryStore,
    sample: dict[str, Any],
    known: set[str],
    found: dict[int, list[Any]],
    times_ms: list[float],
    ranking: Ranking,
    categories: dict[int, str] = CATEGORIES,
) -> None:
    """Every question of one conversation; questions without evidence that exists are passed over."""
    for question in sample["qa"]:
        gold = evidence(question, known)
        if question["category"] not in categories or not gold:
            continue
        begun = time.perf_counter()
        hits = store.recall(question["question"], session_id=sample["sample_id"], limit=max(DEPTHS), ranking=ranking)
        times_ms.append((time.perf_counter() - begun) * 1000)
        answer = [hit.memory.metadata["turn"] for hit in hits]
        found[question["category"]].append([len(gold & set(answer[:depth])) / len(gold) for depth in DEPTHS])


def measure(at: Server, samples: list[dict[str, Any]], embedder: Embedder, ranking: Ranking, report: Report) -> None:
    """Remember and ask everything with one embedder and one ranking, and print."""
    found: dict[int, list[Any]] = defaultdict(list)
    lures: dict[int, list[Any]] = defaultdict(list)
    times_ms: list[float] = []
    sizes = []
    with at.store(f"{embedder.name}-{ranking}", embedder=embedder) as store:
        for sample in samples:
            memories = store.remember_many(turns(sample["conversation"]), session_id=sample["sample_id"])
            store.flush()
            sizes.append(len(memories))
            known = {memory.metadata["turn"] for memory in memories}
            ask(store, sample, known, found, times_ms, ranking)
            ask(store, sample, known, lures, times_ms, ranking, LURES)
    asked = [scores for each in found.values() for scores in each]
    rows = [(CATEGORIES[category], found[category]) for category in sorted(found)]
    table = [(name, len(each), *(f"{mean(column):.3f}" for column in zip(*each, strict=True))) for name, each in rows]
    overall = [mean(column) for column in zip(*asked, strict=True)]
    judged = zip(overall, BARS, strict=True)
    verdicts = (f"{value:.4f} (bar ≥ {bar:.2f}: {'met' if value >= bar else '**missed**'})" for value, bar in judged)
    table.append(("all of these", len(asked), *verdicts))
    table += [
        (f"{LURES[category]} (lures)", len(each), *(f"{mean(column):.3f}" for column in zip(*each, strict=True)))
        for category, each in lures.items()
    ]
    report.table((f"{embedder.name}, {ranking}", "questions", *(f"r@{depth}" for depth in DEPTHS)), table)
    report.note(
        f"{sum(sizes):,} memories in {len(sizes)} sessions: {', '.join(map(str, sizes))}. A recall takes "
        f"{percentile(times_ms, 0.5):.2f} ms (p50), {percentile(times_ms, 0.99):.2f} ms (p99), encoding included."
    )


def main() -> None:
    """Measure and print."""
    args = options(__doc__, path=str(DATA))
    report = Report(__doc__, args)
    samples = conversations(args.path, report, quick=args.quick)
    if samples:
        with server() as at:
            for embedder in (MiniLMEmbedder(), StaticEmbedder()):
                for ranking in RANKINGS:
                    measure(at, samples, embedder, ranking, report)
            report.machine(at)


if __name__ == "__main__":
    main()
