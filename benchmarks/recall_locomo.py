"""How much of the evidence does recall by words find in real conversations?

LoCoMo dev (five conversations; Maharana et al., ACL 2024; CC BY-NC 4.0, never shipped): one session a conversation, one memory
a turn with speaker and time, every question of categories 1 to 4 asked as it stands with `limit=20`. r@k is the share of a
question's gold evidence turns among the first k, averaged over questions.
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

from common import Report, options, percentile, server

from memfold import MemoryStore

DATA = Path(__file__).parents[2] / "shared" / "data" / "locomo-dev.json"
CATEGORIES = {1: "multi-hop", 2: "temporal", 3: "commonsense", 4: "single-hop"}
DEPTHS = (5, 10, 20)
BAR = 0.54


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


def ask(
    store: MemoryStore, sample: dict[str, Any], known: set[str], found: dict[int, list[Any]], times_ms: list[float]
) -> None:
    """Every question of one conversation; questions without evidence that exists are passed over."""
    for question in sample["qa"]:
        gold = set(re.findall(r"D\d+:\d+", " ".join(question["evidence"]))) & known
        if question["category"] not in CATEGORIES or not gold:
            continue
        begun = time.perf_counter()
        hits = store.recall(question["question"], session_id=sample["sample_id"], limit=max(DEPTHS))
        times_ms.append((time.perf_counter() - begun) * 1000)
        answer = [hit.memory.metadata["turn"] for hit in hits]
        found[question["category"]].append([len(gold & set(answer[:depth])) / len(gold) for depth in DEPTHS])


def main() -> None:
    """Measure and print."""
    args = options(__doc__, path=str(DATA))
    report = Report(__doc__, args)
    if not Path(args.path).exists():
        report.note(f"Skipped: the conversations are not at {args.path} (CC BY-NC 4.0, not shipped).")
        return
    samples = json.loads(Path(args.path).read_text())[: 1 if args.quick else None]
    found: dict[int, list[Any]] = defaultdict(list)
    times_ms: list[float] = []
    sizes: list[int] = []
    with server() as at, at.store("memfold") as store:
        for sample in samples:
            memories = store.remember_many(turns(sample["conversation"]), session_id=sample["sample_id"])
            sizes.append(len(memories))
            ask(store, sample, {memory.metadata["turn"] for memory in memories}, found, times_ms)
        rows = [(CATEGORIES[category], found[category]) for category in sorted(found)]
        rows.append(("all", [scores for each in found.values() for scores in each]))
        header = ("category", "questions", *(f"r@{depth}" for depth in DEPTHS))
        report.table(
            header, [(name, len(each), *(f"{mean(column):.3f}" for column in zip(*each, strict=True))) for name, each in rows]
        )
        overall = mean(scores[1] for scores in rows[-1][1])
        report.note(f"Bar r@10 ≥ {BAR}: {'met' if overall >= BAR else '**missed**'} ({overall:.4f}).")
        report.note(f"{sum(sizes):,} memories in {len(sizes)} sessions: {', '.join(map(str, sizes))}.")
        report.note(f"A recall takes {percentile(times_ms, 0.5):.2f} ms (p50), {percentile(times_ms, 0.99):.2f} ms (p99).")
        report.machine(at)


if __name__ == "__main__":
    main()
