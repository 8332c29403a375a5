"""Does the best score tell whether a session knows the answer at all?

LoCoMo dev, as in recall_locomo.py: in each conversation its own questions are asked (categories 1 to 4, with evidence that
exists), and those of the other conversations, whose answer it does not know. AUC: how often the best answer to one of its own
scores above the best answer to a strange one, taken over all pairs and all conversations, because a score means the same
everywhere. A speaker's name in a question gives much away, so questions without one are counted apart, and strange ones are
asked once more with the names of the conversation's own speakers put in the place of theirs.
"""

import re
from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from common import Report, Server, options, server
from recall_locomo import CATEGORIES, DATA, conversations, evidence, turns

from memfold import MemoryStore
from memfold.embedding import Embedder
from memfold.minilm import MiniLMEmbedder, StaticEmbedder
from memfold.projections.words import plain_words

BAR = 0.75
OWN, STRANGE, RENAMED = "own", "strange", "renamed"


class Asked(NamedTuple):
    """A question put to a conversation, and the score of the best answer."""

    conversation: str
    kind: str
    named: bool
    score: float


def auc(own: Sequence[float], strange: Sequence[float]) -> float:
    """How often one of `own` is above one of `strange`; equals count half."""
    above = np.subtract.outer(np.array(own), np.array(strange))
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


def questions(sample: dict[str, Any]) -> list[str]:
    """What is asked about a conversation and answered in it."""
    known = {turn["metadata"]["turn"] for turn in turns(sample["conversation"])}
    return [one["question"] for one in sample["qa"] if one["category"] in CATEGORIES and evidence(one, known)]


def speakers(sample: dict[str, Any]) -> list[str]:
    """Who speaks, the first first."""
    return list(dict.fromkeys(turn["speaker"] for turn in turns(sample["conversation"])))


def renamed(question: str, theirs: Sequence[str], ours: Sequence[str]) -> str:
    """A question about other people, asked about ours."""
    names = dict(zip(theirs, ours, strict=True))
    return re.sub(rf"\b({'|'.join(map(re.escape, names))})\b", lambda found: names[found[0]], question)


def ask(store: MemoryStore, samples: list[dict[str, Any]]) -> Iterator[Asked]:
    """Every question in every conversation; the strange ones a second time with the conversation's own names in them."""
    for sample in samples:
        name, ours = sample["sample_id"], speakers(sample)
        names = {word for speaker in ours for word in plain_words(speaker)}
        for other in samples:
            theirs = speakers(other)
            for question in questions(other):
                put = {OWN: question} if other is sample else {STRANGE: question, RENAMED: renamed(question, theirs, ours)}
                for kind, text in put.items():
                    hits = store.recall(text, session_id=name, limit=1)
                    yield Asked(name, kind, bool(names & set(plain_words(text))), hits[0].score if hits else 0.0)


def row(what: str, asked: Sequence[Asked], strange_kind: str, *, judged: bool = False) -> tuple[object, ...]:
    """A line of the table: its own questions against strange ones."""
    own, strange = ([each.score for each in asked if each.kind == kind] for kind in (OWN, strange_kind))
    if not own or not strange:
        return (what, len(own), len(strange), "–", "–", "–")
    value = auc(own, strange)
    verdict = f" (bar ≥ {BAR}: {'met' if value >= BAR else '**missed**'})" if judged else ""
    return (what, len(own), len(strange), f"{value:.3f}{verdict}", f"{median(own):.3f}", f"{median(strange):.3f}")


def measure(at: Server, samples: list[dict[str, Any]], embedder: Embedder, report: Report) -> None:
    """Remember and ask everything with one embedder, and print."""
    with at.store(embedder.name, embedder=embedder) as store:
        for sample in samples:
            store.remember_many(turns(sample["conversation"]), session_id=sample["sample_id"])
        store.flush()
        asked = list(ask(store, samples))
    rows = [
        row("all", asked, STRANGE, judged=True),
        row("no speaker of the conversation in either", [each for each in asked if not each.named], STRANGE),
        row("strange questions with the conversation's own names put in", asked, RENAMED),
    ]
    rows += [
        row(sample["sample_id"], [each for each in asked if each.conversation == sample["sample_id"]], STRANGE)
        for sample in samples
    ]
    report.table((embedder.name, "own", "strange", "AUC", "median best score, own", "strange"), rows)


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
