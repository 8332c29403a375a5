"""The story of one memory store, told by running it: five weeks of a household's conversation with its assistant.

python examples/demo.py [--folder FOLDER]      keeps the store in FOLDER; without it, everything is removed at the end
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from memfold import Memory, MemoryForgotten, MemoryStore, Recollections
from memfold.audit.residue import scan

HISTORY = Path(__file__).parent / "history.jsonl"
SESSION = "hartmann-household"
out = Console(width=None if sys.stdout.isatty() else 100, highlight=False, soft_wrap=False)


class DemoFailed(Exception):
    """A step did not show what it promised."""


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--folder", type=Path, help="where to keep the store (default: a temporary folder)")
    arguments.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = arguments.parse_args()
    if options.child:
        be_killed(options.child)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="memfold-demo-"))
    try:
        tell(folder)
    except DemoFailed as failure:
        out.print(f"[bold red]This is not as it should be:[/] {failure}")
        sys.exit(1)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def tell(folder: Path) -> None:
    """All chapters, in order."""
    begun = time.perf_counter()
    with MemoryStore(folder) as store:
        chapter("1", "A log that starts itself")
        say(f"An embedded PostgreSQL was set up and started in {time.perf_counter() - begun:.1f} s, in {folder}.")
        remember_everything(store)
        recall_by_words(store)
        code = update_the_code(store)
        secret = forget_the_password(store, folder)
        look_at_the_log(store)
    kill_and_come_back(folder, code, secret)
    out.print(
        f"\n[bold]Done[/] in {time.perf_counter() - begun:.0f} s. How to use it: README.md. What it promises, and why: docs/."
    )


def turns() -> Iterator[dict[str, Any]]:
    """The shipped conversation, as `remember_many` takes it."""
    for line in HISTORY.read_text("utf-8").splitlines():
        turn = json.loads(line)
        del turn["session"]
        yield turn | {"occurred_at": datetime.fromisoformat(turn["occurred_at"])}


def remember_everything(store: MemoryStore) -> None:
    memories, elapsed = timed(lambda: store.remember_many(turns(), session_id=SESSION, user_id="nora"))
    days = (max(memory.occurred_at for memory in memories) - min(memory.occurred_at for memory in memories)).days
    people = sorted({memory.speaker for memory in memories if memory.speaker})
    say(
        f"It remembers {len(memories)} turns of {days} days between {', '.join(people[:-1])} and {people[-1]}: "
        f"one durable batch, {elapsed * 1000:.0f} ms."
    )
    single, elapsed = timed(lambda: store.remember("Emil has a swimming lesson on Friday.", session_id=SESSION, speaker="Nora"))
    say(f"One more remember, alone, is durable after {elapsed * 1000:.1f} ms. Every payload is sealed under a key of its own.")
    check(store.count(SESSION) == len(memories) + 1, "not every turn was remembered")
    check(store.get(single.id) == single, "a memory is not what was remembered")


def recall_by_words(store: MemoryStore) -> None:
    chapter("2", "Recall, by words in any form")
    show(store, "Who hates coriander?")
    show(store, "What is Emil allergic to?")
    show(store, "Where does the cinnamon go in the plum cake?")
    show(
        store, "When does the return flight depart?", where={"tags": {"$exists": True}}, note="only turns that an agent tagged"
    )
    since = datetime(2026, 9, 20, tzinfo=UTC)
    show(store, "running and the knee", after=since, note="only what was said since 20 September")


def show(store: MemoryStore, query: str, *, note: str = "", limit: int = 2, **restriction: Any) -> Recollections:
    found, elapsed = timed(lambda: store.recall(query, session_id=SESSION, limit=limit, **restriction))
    check(bool(found), f"nothing was found for {query!r}")
    out.print(f"\n  [bold]{query}[/]  [dim]{elapsed * 1000:.1f} ms{', ' + note if note else ''}[/]")
    for hit in found:
        line(hit.memory, f"{hit.score:.2f}")
    return found


def update_the_code(store: MemoryStore) -> Memory:
    chapter("3", "An update is another fact, and the past stays known")
    old = next(hit.memory for hit in store.recall("studio alarm code 9902", session_id=SESSION) if "9902" in hit.memory.content)
    new = store.update(old.id, content=old.content.replace("9902", "5150"), expected_version=old.version)
    for change in store.history(old.id):
        check(change.memory is not None, "a version of a living memory is missing")
        if change.memory:
            line(change.memory, f"v{change.version}")
    check(
        not any("9902" in hit.memory.content for hit in store.recall("9902", session_id=SESSION) if hit.memory.id == old.id),
        "the old version is still found",
    )
    say("Recall finds the new code by its number, and the old number no longer leads here.")
    check(new in [hit.memory for hit in store.recall("5150", session_id=SESSION)], "the new version is not found")
    return new


def forget_the_password(store: MemoryStore, folder: Path) -> Memory:
    chapter("4", "Forgetting destroys keys")
    secret = next(
        hit.memory for hit in store.recall("home wifi password", session_id=SESSION) if "password" in hit.memory.content
    )
    line(secret, "")
    erasure = store.forget(secret.id, reason="user_request")
    say(f"→ {erasure.keys_deleted} key deleted, fact at position {erasure.position}, reason {erasure.reason}")
    try:
        store.get(secret.id)
        check(False, "a forgotten memory can still be read")
    except MemoryForgotten as error:
        say(f"→ get: {error}")
    kept = [(change.version, change.type, change.memory) for change in store.history(secret.id)]
    say(f"→ history: {', '.join(f'{version} {type_}' for version, type_, _ in kept)}; content of all: none")
    words = [secret.content, *(word.strip(".,!?") for word in secret.content.split() if len(word) > 9)]
    found = scan(folder, words)
    check(not found.hits, "the forgotten words are on disk")
    say(
        f"Its longest words and the whole sentence were looked for in every byte below the folder, WAL and server log "
        f"included: {found.files} files, {found.bytes_read / 2**20:.0f} MiB, {len(found.hits)} hits. "
        "(A word that was planted for the purpose was found.)"
    )
    return secret


def look_at_the_log(store: MemoryStore) -> None:
    chapter("5", "The log, as a replay would see it")
    table = Table(box=None, pad_edge=False, padding=(0, 3))
    for column in ("  position", "version", "type", "content"):
        table.add_column(column)
    events = list(store.events())
    for event in events[-3:]:
        table.add_row(
            f"  {event.position}", str(event.version), event.type, "erased" if event.data is None else "sealed, opened for us"
        )
    out.print(table)
    stats = store.stats()
    erased = sum(event.data is None for event in events)
    say(
        f"{len(events)} events, {erased} erased; {stats.memories} memories live; "
        f"{(stats.database_bytes or 0) / 2**20:.0f} MiB of database."
    )
    check(erased == 1, "not exactly one event was erased")


def kill_and_come_back(folder: Path, code: Memory, secret: Memory) -> None:
    chapter("6", "kill -9")
    child = subprocess.Popen([sys.executable, __file__, "--child", str(folder)], stdout=subprocess.PIPE, text=True)
    acknowledged = [child.stdout.readline().strip() for _ in range(25)] if child.stdout else []
    server = int((folder / "pg" / "postmaster.pid").read_text().split()[0])
    child.kill()
    kill_server(server)
    child.communicate()
    say(
        f"A process remembered {len(acknowledged)} things one by one. "
        "Then it and the PostgreSQL server were killed with SIGKILL."
    )
    begun = time.perf_counter()
    with MemoryStore(folder) as store:
        found = {memory.id for memory in store.find(SESSION, limit=10_000).memories}
        say(f"A new process recovers and answers after {time.perf_counter() - begun:.1f} s.")
        lost = [memory_id for memory_id in acknowledged if memory_id not in found]
        check(not lost, f"{len(lost)} acknowledged memories were lost")
        check(store.get(code.id) == code, "the update was lost")
        check(secret.id not in found, "what was forgotten came back")
        say(
            f"Acknowledged and lost: {len(lost)} of {len(acknowledged)}. "
            "What was forgotten stays forgotten; what was changed stays changed:"
        )
        show(store, "studio alarm code 5150", limit=1)


def kill_server(server: int) -> None:
    """Kill a postmaster, and wait until its children have noticed."""
    os.kill(server, signal.SIGKILL)
    time.sleep(0.5)


def be_killed(folder: Path) -> None:
    """In the child: remember until somebody kills us, and say what was acknowledged."""
    with MemoryStore(folder) as store:
        for number in range(1_000_000):
            memory = store.remember(f"Note {number} of a process that will be killed", session_id=SESSION)
            print(memory.id, flush=True)


def timed(call: Callable[[], Any]) -> tuple[Any, float]:
    begun = time.perf_counter()
    return call(), time.perf_counter() - begun


def chapter(number: str, title: str) -> None:
    out.print(f"\n[bold cyan]{number}. {title}[/]\n")


def say(text: str) -> None:
    out.print(Padding(text, (0, 0, 0, 2)))


def line(memory: Memory, mark: str) -> None:
    table = Table.grid(padding=(0, 1))
    table.add_column(width=6)
    table.add_column(width=22, style="dim", no_wrap=True)
    table.add_column(ratio=1)
    table.add_row(f"  {mark}", f"{memory.occurred_at:%d %b %H:%M} {memory.speaker or ''}", memory.content)
    out.print(table)


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise DemoFailed(problem)


if __name__ == "__main__":
    main()
