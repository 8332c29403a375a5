"""Recall finds what it found when it was measured, on one real conversation (skipped where that is not to be had)."""

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest

from memfold.minilm import MiniLMEmbedder, StaticEmbedder


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import recall_locomo

    yield recall_locomo
    for name in ("recall_locomo", "common"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(("embedder", "least"), [(MiniLMEmbedder(), 0.75), (StaticEmbedder(), 0.70)], ids=["minilm", "static"])
def test_most_evidence_is_among_the_first_ten(make_store, locomo, benchmark, embedder, least):
    store = make_store(embedder=embedder)
    sample = json.loads(locomo.read_text())[0]
    memories = store.remember_many(benchmark.turns(sample["conversation"]), session_id=sample["sample_id"])
    found = defaultdict(list)
    benchmark.ask(store, sample, {memory.metadata["turn"] for memory in memories}, found, [], "learned")
    scores = [each for category in found.values() for each in category]
    assert len(scores) == 150
    assert mean(score[1] for score in scores) >= least
