"""An agent's old conversation, consolidated: five weeks of a household's turns become summaries, and come back.

python examples/consolidation.py [--folder FOLDER]

Needs no language model; with MEMFOLD_LLM_MODEL set, that one says the summaries.
"""

import argparse
import json
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

from memfold import MemoryStore, SessionConsolidation

HISTORY = Path(__file__).parent / "history.jsonl"
SESSION = "hartmann-household"
FIELDS = ("content", "role", "speaker", "category", "importance", "tags", "metadata")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a new or empty folder to keep the store in (default: a temporary one)")
    folder = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        tell(folder or Path(temporary) / "store")


def tell(folder: Path) -> None:
    """Remember the history as it happened, then let a week pass."""
    lines = [json.loads(line) for line in HISTORY.read_text("utf-8").splitlines()]
    times = [datetime.fromisoformat(line["occurred_at"]) for line in lines]
    now = times[-1]
    items = [
        {name: line[name] for name in FIELDS if name in line} | {"occurred_at": at}
        for line, at in zip(lines, times, strict=True)
    ]
    with MemoryStore(folder, clock=lambda: now) as store:
        remembered = store.remember_many(items, session_id=SESSION)
        now += timedelta(days=8)
        # What is set is a policy, as data: what it does not say is as usual. The newest 20, the important and the pinned stay.
        store.set_policy({"windows": {"older_than": "P7D", "pause": "P1D"}})
        consolidate(store)
        ask(store, "Which claim number has the stolen bicycle?")
        back = store.restore([memory.id for memory in store.find(SESSION, limit=1_000).memories])
        same = store.find(SESSION, order="oldest", limit=1_000).memories == remembered
        print(f"\nrestored: {len(back)} memories are back, and the session is {'as' if same else 'NOT as'} it was")


def consolidate(store: MemoryStore) -> None:
    """Say what would be done, then do it."""
    planned = store.consolidate(dry_run=True)
    print(
        f"planned:  {planned.windows_count} windows, {planned.tokens_before:,} tokens, at most {planned.tokens_after:,} after"
    )

    def told(session: SessionConsolidation) -> None:
        print(f"done:     {session.windows_count} summaries in {session.session_id}; {session.memories} memories are kept")

    done = store.consolidate(progress=told)
    print(f"          {done.tokens_before:,} tokens are {done.tokens_after:,} now; {store.count(SESSION)} things are recalled")


def ask(store: MemoryStore, question: str) -> None:
    """A question finds a summary, and the summary leads to the turn that answers."""
    found = [hit.memory for hit in store.recall(question, session_id=SESSION, limit=20)]
    print(f"\n{question}")
    for summary in [memory for memory in found if memory.category == "summary"][:1]:
        print(f"  summary of {summary.occurred_at:%d %B}:\n    " + summary.content.replace("\n", "\n    "))
        for source in store.sources(summary.id, query=question, limit=2):
            print(f"  made from, {source.occurred_at:%d %B}, {source.speaker}: {source.content}")


if __name__ == "__main__":
    main()
