"""The story of one memory store, told by running it: five weeks of a household's conversation with its assistant.

python examples/demo.py [--folder FOLDER]

Every number is measured in this run, and every sentence that promises something is checked: if a check fails, the demo
says which and ends with status 1. Nothing is left behind, unless a folder is named.
"""

import argparse
import io
import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from memfold import Memory, MemoryForgotten, MemoryStore, Recollection, Recollections, StoredEvent
from memfold.audit.residue import scan
from memfold.events import MemoryRemembered, MemoryUpdated
from memfold.eventstore import embedded
from memfold.projections.words import words_of

HISTORY = Path(__file__).parent / "history.jsonl"
SESSION = "hartmann-household"
CHILD_SESSION = "the process that was killed"
WIDTH_MAX = 100
ACKNOWLEDGED_MIN = 25  # so many remembers does the process in chapter 6 get through before it is killed


class Question(NamedTuple):
    """A question, and a part of the turn that answers it."""

    query: str
    answer: str


IN_OTHER_WORDS = [
    Question("Who avoids ham and bacon?", "don't eat pork"),
    Question("Which medications was grandmother prescribed?", "bisoprolol 5 mg"),
    Question("How do you cool an overheated amphibian?", "frozen bottle"),
    Question("How is the athlete injured?", "Right knee"),
    Question("Was anybody a victim of theft?", "bicycle has been stolen"),
    Question("What is Portugal's climate in autumn?", "October in Lisbon"),
]
THE_CODE = "What alarm code did Nora set for the studio?"
PARTS_SHOWN = 6
CONTEXT_TOKENS = 180

out = Console(highlight=False)
width = min(WIDTH_MAX, out.width) if sys.stdout.isatty() else WIDTH_MAX
T = TypeVar("T")


class DemoFailed(Exception):
    """A step did not show what it promised."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="a new or empty folder to keep the store in (default: a temporary one)")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a name with an accent must not end the story on an ASCII terminal
    if options.child:
        remember_until_killed(options.child)
    if options.folder and options.folder.exists() and not (options.folder.is_dir() and not any(options.folder.iterdir())):
        parser.error(f"{options.folder} is not an empty folder: the story begins with nothing")
    folder = options.folder.absolute() if options.folder else Path(tempfile.mkdtemp(prefix="memfold-demo-"))
    try:
        tell(folder, kept=options.folder is not None)
    except DemoFailed as failure:
        paragraph(f"This is not as it should be: {failure}", style="bold red")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)


def tell(folder: Path, *, kept: bool) -> None:
    """All chapters, in order."""
    begun = time.perf_counter()
    with MemoryStore(folder) as store:
        started_s = time.perf_counter() - begun
        chapter("1. Remember: a log that brings its own PostgreSQL")
        server = embedded.status(folder)
        paragraph(f"PostgreSQL {server.version} was set up and started in {started_s:.1f} s, in {server.folder}.")
        remember_everything(store)
        recall_in_other_words(store)
        recall_with_reasons(store)
        update_the_alarm_code(store)
        secret = forget_the_password(store, folder)
        before = Before(everything(store), answers(store))
    kill_and_come_back(folder, before, secret)
    read_the_log(folder)
    consolidate_and_undo(folder)
    paragraph(
        f"With the server stopped and all of its pages written, the forgotten password is looked for again: "
        f"{look_on_disk(folder, secret)}."
    )
    out.print()
    if kept:
        paragraph(f"The store is kept. Ask it: {asking(folder)}", wrap=False)
    paragraph(
        f"Done in {time.perf_counter() - begun:.1f} s"
        + (". " if kept else "; the folder is removed. ")
        + "How to use memfold: README.md. What it promises, and why: docs/."
    )


# -- 1. remember ----------------------------------------------------------------------------------------------------------


def remember_everything(store: MemoryStore) -> None:
    memories, times = [], []
    for turn in turns():
        memory, elapsed = timed(lambda turn=turn: store.remember(session_id=SESSION, user_id="hartmann", **turn))
        memories.append(memory)
        times.append(elapsed * 1000)
    lag = store.stats().embedding_lag
    days = (memories[-1].occurred_at - memories[0].occurred_at).days
    people = sorted({memory.speaker for memory in memories if memory.speaker})
    paragraph(
        f"It remembers {len(memories)} turns: {days} days of {', '.join(people[:-1])} and {people[-1]} writing to one "
        f"another, Iris being the assistant. They came one by one, and each was on disk before the next was said: "
        f"median {statistics.median(times):.1f} ms, slowest {max(times):.1f} ms."
    )
    check(everything(store) == {memory.id: memory for memory in memories}, "the store does not hold what was remembered")
    _, elapsed = timed(store.flush)
    stats = store.stats()
    paragraph(
        f"A model that comes with memfold, {stats.embedder}, embeds them behind the log, so that no remember waits for it. "
        f"After the last turn {lag} were still to be embedded (stats().embedding_lag); flush() waited {elapsed:.1f} s, and now "
        f"{stats.embedding_lag} are."
    )
    check(stats.embedding_lag == 0, "flush() came back before everything was embedded")


def turns() -> Iterator[dict[str, Any]]:
    """The shipped conversation, each turn as the arguments of `remember`."""
    for line in HISTORY.read_text("utf-8").splitlines():
        turn = json.loads(line)
        del turn["session"]
        yield turn | {"occurred_at": datetime.fromisoformat(turn["occurred_at"])}


# -- 2. recall by meaning -------------------------------------------------------------------------------------------------


def recall_in_other_words(store: MemoryStore) -> None:
    chapter("2. Recall: the meaning finds what the words do not")
    said = {word for memory in everything(store).values() for word in words_of(f"{memory.speaker} {memory.content}")}
    asked = {word for question in IN_OTHER_WORDS for word in words_of(question.query)}
    check(not asked & said, f"the questions were to use words that nobody said, but somebody said {sorted(asked & said)}")
    paragraph(
        f"These questions were picked for it: not one of their {len(asked)} words ('is', 'the' and the like aside) was said in "
        "any of the turns, in any form. Recall by words alone would find nothing. Each answer has a score from 0 to 1; times "
        "are UTC. How often recall is right in conversations that nobody picked: benchmarks/README.md."
    )
    for question in IN_OTHER_WORDS:
        found = show(store, question.query, limit=1, explain=True)
        check(question.answer in found[0].memory.content, f"{question.query!r} has another best answer")
        check(found[0].parts["words"] == 0, f"the words had a part in the answer to {question.query!r}")


# -- 3. recall ------------------------------------------------------------------------------------------------------------


def recall_with_reasons(store: MemoryStore) -> None:
    chapter("3. Recall: what a score is made of, and where to look")
    paragraph(
        "Words count as well, and the turns around an answer, and who said it. With explain=True, hit.parts tells what each "
        "feature adds to the score; these count most:"
    )
    best = show(store, THE_CODE, explain=True)[0]
    check("4711" in best.memory.content, "the alarm code is not the best answer")
    out.print()
    shares = sorted(best.parts.items(), key=lambda part: -abs(part[1]))
    for name, share in shares[:PARTS_SHOWN]:
        fact(name, f"{share:+.2f}")
    fact("score", f"{best.score:.2f}  the sum of all {len(shares)}")
    check(abs(sum(best.parts.values()) - best.score) < 1e-4, "the parts do not add up to the score")

    out.print()
    paragraph("before=, after= and where= say which memories may answer. The same question thus has several best answers:")
    query, september_8, september_20 = "When is the Tidewater presentation?", at(9, 8), at(9, 20)
    old = show(store, query, limit=1, before=september_8)[0].memory
    new = show(store, query, limit=1, after=september_20)[0].memory
    check("25 September" in old.content and old.occurred_at < september_8, "before= does not lead to the first date")
    check("30 September" in new.content and new.occurred_at >= september_20, "after= does not lead to the last date")
    query = "What did the doctor say?"
    by_ilse = show(store, query, limit=1, where={"speaker": "Ilse"})[0].memory
    tagged = show(store, query, limit=1, where={"tags": "health", "importance": {"$gte": 0.9}})[0].memory
    check(by_ilse.speaker == "Ilse" and "glass of wine" in by_ilse.content, "where= does not lead to what Ilse was told")
    check("health" in tagged.tags and "halved" in tagged.content, "where= does not lead to what is filed under health")


def show(store: MemoryStore, query: str, *, limit: int = 2, **restriction: Any) -> Recollections:
    """Ask, and print the best answers."""
    found, elapsed = timed(lambda: store.recall(query, session_id=SESSION, limit=limit, **restriction))
    told = {name: value for name, value in restriction.items() if name != "explain"}
    given = ", ".join(
        f"{name}={value:%d %b}" if isinstance(value, datetime) else f"{name}={value}" for name, value in told.items()
    )
    out.print()
    out.print(Text.assemble("  ", (query, "bold"), (f"  {elapsed * 1000:.1f} ms  {given}".rstrip(), "dim")), soft_wrap=True)
    for hit in found:
        show_memory(f"{hit.score:.2f}", hit.memory)
    check(bool(found), f"nothing was found for {query!r}")
    check(found.model == store.stats().embedder, f"{query!r} was answered by {found.model or 'words alone'}")
    return found


# -- 4. update ------------------------------------------------------------------------------------------------------------


def update_the_alarm_code(store: MemoryStore) -> None:
    chapter("4. Update")
    old = only(memory for memory in everything(store).values() if "code for the studio is 4711" in memory.content)
    paragraph(
        "The alarm code found above is out of date: the answer below it says so. The assistant puts it right, on condition "
        "that nobody did so in between (expected_version). Nothing is overwritten: the change is one more event, and "
        "history() lists both."
    )
    out.print()
    before = store.stats().position
    store.update(old.id, content=old.content.replace("4711, like the cologne", "9902"), expected_version=old.version)
    changes = store.history(old.id)
    for change in changes:
        if change.memory:
            show_memory(f"v{change.version}", change.memory)
    check([change.type for change in changes] == ["remembered", "updated"], "the history is not complete")
    check(bool(changes[0].memory and "4711" in changes[0].memory.content), "the history does not hold the old version")
    best = show(store, THE_CODE, limit=1)[0].memory
    check(best.id == old.id and "9902" in best.content, "the new version is not the best answer")
    out.print()
    paragraph(
        "The past can still be asked: with as_of=, at any position of the log or any time. And context() lays out for a prompt "
        "what answers a question, within a budget of tokens, fenced so that it reads as data:"
    )
    then = show(store, THE_CODE, limit=1, as_of=before)[0].memory
    check(then.id == old.id and "4711" in then.content, "the past does not answer as it did")
    context = store.context(THE_CODE, session_id=SESSION, max_tokens=CONTEXT_TOKENS)
    check("9902" in str(context) and context.tokens <= CONTEXT_TOKENS, "the context does not hold the answer within its budget")
    out.print()
    for line in str(context).splitlines():
        out.print(Padding(Text(line, "dim"), (0, 0, 0, 2)), width=width)


# -- 5. forget ------------------------------------------------------------------------------------------------------------


def forget_the_password(store: MemoryStore, folder: Path) -> Memory:
    chapter("5. Forget")
    paragraph("The best answer to this question is out of date as well, and a secret besides:")
    query = "What is the network at home called, and its password?"
    secret = only(memory for memory in everything(store).values() if "teal-gills" in memory.content)
    check(show(store, query)[0].memory == secret, "what is to be forgotten is not the best answer before")
    look_on_disk(folder, secret)
    erasure = store.forget(secret.id, reason="user_request")
    out.print()
    paragraph(f"forget({secret.id})")
    fact("Erasure", f"scope {erasure.scope}, position {erasure.position}, reason {erasure.reason}")
    fact("", f"{erasure.keys_deleted} key deleted, of the event at position {', '.join(map(str, erasure.erased_positions))}")
    changes = store.history(secret.id)
    for change in changes:
        fact("history()" if change.version == 1 else "", f"v{change.version} {change.type}, content: {change.memory}")
    check(all(change.memory is None for change in changes), "the history of a forgotten memory still has content")
    fact("get()", refusal(store, secret))
    check(store.forget(secret.id) == erasure, "forgetting twice does not give the same answer")
    fact("forget()", "once more gives the same Erasure")
    show(store, query, limit=1)
    found = store.recall(query, session_id=SESSION, limit=10_000)
    check(secret.id not in {hit.memory.id for hit in found}, "what was forgotten is still found")
    out.print()
    paragraph(
        "Nor is it on disk: the password, the network's name and the whole sentence, in plain and in other encodings, have "
        f"{look_on_disk(folder, secret)}: data files, write-ahead log, the server's log. (A planted word was looked for as "
        "well, and was found in each of the encodings.)"
    )
    paragraph(
        "That was so before, too: words reach PostgreSQL sealed, each event under a key of its own, and forgetting deletes "
        "that key. Its deleted, still sealed row may survive in dead pages and backups: README.md says what that means."
    )
    return secret


def refusal(store: MemoryStore, secret: Memory) -> str:
    try:
        store.get(secret.id)
    except MemoryForgotten as error:
        return f"raises {type(error).__name__}"
    raise DemoFailed("a forgotten memory can still be read")


def look_on_disk(folder: Path, secret: Memory) -> str:
    """Look for what was forgotten in every byte below the folder; return what was looked through."""
    words = ["teal-gills-42-sofa", "Hartmann unten", secret.content]
    check(all(word in secret.content for word in words), "the words to look for are not those that were forgotten")
    found = scan(folder, words)  # raises if it does not find what it has planted itself
    check(not found.hits, f"forgotten words are on disk: {sorted({str(hit.path) for hit in found.hits})}")
    return f"{len(found.hits)} hits in {found.files:,} files, {found.bytes_read / 2**20:.0f} MiB"


# -- 6. kill -9 -----------------------------------------------------------------------------------------------------------


class Before(NamedTuple):
    """What the store held and answered before the crash."""

    memories: dict[str, Memory]
    answers: list[Recollection]


def answers(store: MemoryStore) -> list[Recollection]:
    """The best answer to each question of the demo."""
    queries = [question.query for question in IN_OTHER_WORDS] + [THE_CODE]
    return [store.recall(query, session_id=SESSION, limit=1)[0] for query in queries]


def kill_and_come_back(folder: Path, before: Before, secret: Memory) -> None:
    chapter("6. kill -9")
    acknowledged = kill_in_the_midst_of_it(folder)
    paragraph(
        f"Another process opened the store and remembered without a pause. After its acknowledgement number "
        f"{len(acknowledged)}, it and the PostgreSQL server were killed with SIGKILL. The folder is opened again:"
    )
    out.print()
    logged = (folder / "server.log").stat().st_size
    begun = time.perf_counter()
    with MemoryStore(folder) as store:
        found = everything(store)
        fact("answers", f"after {time.perf_counter() - begun:.1f} s")
        said = (folder / "server.log").read_text("utf-8", "replace")[logged:]
        recovery = re.search(r"database system was not properly shut down[^\n]*", said)
        check(recovery is not None, "the server was not killed: its log tells of no recovery")
        fact("server.log", recovery.group() if recovery else "")
        notes = everything(store, CHILD_SESSION).keys()
        lost = set(acknowledged) - notes
        on_the_way = len(notes) - len(acknowledged)
        fact("lost", f"{len(lost)} of {len(acknowledged)} acknowledged; on disk, but not yet answered: {on_the_way}")
        check(not lost, f"{len(lost)} acknowledged memories were lost")
        same = sum(found.get(memory_id) == memory for memory_id, memory in before.memories.items())
        fact("older", f"{same} of {len(before.memories)} memories are as they were")
        check(found == before.memories, "memories from before the crash are not as they were")
        fact("forgotten", f"stays forgotten: get() {refusal(store, secret)}")
        again = answers(store)
        equal = sum(is_same(*pair) for pair in zip(again, before.answers, strict=True))
        fact("recall", f"{equal} of {len(again)} questions have the same best answer with the same score, the updated one too")
        check(equal == len(again), "recall does not answer as before")
        check("9902" in again[-1].memory.content, "the update was lost")
        embed_what_is_left(store)


def embed_what_is_left(store: MemoryStore) -> None:
    """Recall does not wait for the thread that embeds: what it finds without a vector, it embeds itself."""
    left = store.stats().embedding_lag
    found, elapsed = timed(lambda: store.recall("What was noted at the very end?", session_id=CHILD_SESSION))
    fact("embedded", f"{left} of the new ones were not; a recall embeds what it finds missing: {elapsed * 1000:.0f} ms")
    stats = store.stats(CHILD_SESSION)
    check(found.model == stats.embedder, "the recall was not answered by the model")
    check(stats.embedding_lag == 0, "something is not embedded after a recall")


def is_same(one: Recollection, other: Recollection) -> bool:
    return one.memory == other.memory and abs(one.score - other.score) < 1e-4


def kill_in_the_midst_of_it(folder: Path) -> list[str]:
    """Kill a process that is remembering, and the server below it; return the ids it was given an acknowledgement for."""
    command = [sys.executable, __file__, "--child", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            lines = [child.stdout.readline() for _ in range(ACKNOWLEDGED_MIN)]
            check(all(lines), "the process that was to be killed ended by itself")
            server = int((folder / "pg" / "postmaster.pid").read_text().split()[0])
        finally:
            child.kill()
        os.kill(server, signal.SIGKILL)
        lines += child.stdout.readlines()  # what it still said before it died
    return [line.strip() for line in lines if line.endswith("\n")]


def remember_until_killed(folder: Path) -> None:
    """In the child: remember, and say the id only when `remember` has returned."""
    with MemoryStore(folder) as store:
        for number in range(1_000_000):
            memory = store.remember(f"Note {number} of a process that is about to be killed", session_id=CHILD_SESSION)
            print(memory.id, flush=True)


# -- 7. the log -----------------------------------------------------------------------------------------------------------


def read_the_log(folder: Path) -> None:
    chapter("7. The log, and what a replay of it sees")
    paragraph("Everything above was told to this log. events() reads it from any position on; some of it:")
    out.print()
    with MemoryStore(folder) as store:
        events = list(store.events())
        out.print(Text("  position  type              content", style="dim"), soft_wrap=True)
        shown = [0, *(place for place, event in enumerate(events) if is_telling(event)), len(events) - 1]
        for place, following in zip(shown, [*shown[1:], None], strict=True):
            event = events[place]
            out.print(Text(f"  {event.position:8}  {event.type:16}  {content_of(event)}"), soft_wrap=True)
            if following is not None and following > place + 1:
                out.print(Text("         …", style="dim"))
        replayed, elapsed = timed(lambda: replay(events))
        live = everything(store) | everything(store, CHILD_SESSION)
        same = replayed == {memory.id: memory.content for memory in live.values()}
        stats = store.stats()
    out.print()
    paragraph(
        f"A dictionary in this script, told these {len(events)} events in {elapsed * 1000:.1f} ms, holds {len(replayed)} "
        f"memories: {'the same as' if same else 'others than'} the store's. "
        "One event was erased; a replay sees that it was, and when, but not what."
    )
    check(sum(event.data is None for event in events) == 1, "not one event alone was erased")
    check(same, "a replay of the log does not give what the store holds")
    paragraph(
        f"stats(): {stats.sessions} sessions, {stats.events} events, {stats.memories} memories, {stats.forgotten} forgotten, "
        f"{(stats.database_bytes or 0) / 2**20:.1f} MiB of database."
    )
    check(
        (stats.events, stats.memories, stats.forgotten) == (len(events), len(live), 1), "stats() does not count what is there"
    )


# -- 8. consolidation -----------------------------------------------------------------------------------------------------


def consolidate_and_undo(folder: Path) -> None:
    chapter("8. Old conversation becomes summaries, and comes back")
    with MemoryStore(folder) as store:
        before = everything(store)
        store.set_policy({"windows": {"older_than": "PT0S"}}, session_id=SESSION)
        planned = store.consolidate(SESSION, dry_run=True)
        paragraph(
            f"A dry run finds {planned.windows_count} windows that are old enough, of {planned.tokens_before:,} tokens; "
            "what is important, pinned or new stays. Summaries are picked from what was said, or come from a language model "
            "if there is one."
        )
        done, elapsed = timed(lambda: store.consolidate(SESSION))
        paragraph(f"consolidate(): {done.windows_count} summaries of {done.tokens_after:,} tokens in {elapsed:.1f} s.")
        query = "Which claim number has the stolen bicycle?"
        found = show(store, query, limit=3)
        summary = next(hit.memory for hit in found if hit.memory.category == "summary")
        (source,) = store.sources(summary.id, query=query, limit=1)
        out.print()
        paragraph(
            "A summary says what was said then; what corrected it was important, and stays beside it. Of what the summary "
            "was made from, this answers best:"
        )
        show_memory("", source)
        check("HR-2026-58871" in source.content, "the summary does not lead to what was said")
        check(len(everything(store)) < len(before) / 2, "little was archived")
        restored = store.restore([memory.id for memory in everything(store).values() if memory.category == "summary"])
        same = everything(store) == before
        out.print()
        paragraph(f"restore(): {len(restored)} memories are back, and the session is {'as' if same else 'NOT as'} it was.")
        check(same, "something is not as it was before it was consolidated")


def is_telling(event: StoredEvent) -> bool:
    return event.data is None or event.type != MemoryRemembered.__name__


def content_of(event: StoredEvent) -> str:
    """What a reader of the log with the key gets to see, cut to the width."""
    if event.data is None:
        return "(erased)"
    content = getattr(event.data, "content", None)
    return textwrap.shorten(content, width - 30, placeholder=" …") if content else "(none)"


def replay(events: Iterable[StoredEvent]) -> dict[str | None, str]:
    """Memory is a fold over events: this one keeps the content alone."""
    live: dict[str | None, str] = {}
    for event in events:
        if isinstance(event.data, MemoryRemembered) or (
            isinstance(event.data, MemoryUpdated) and isinstance(event.data.content, str)
        ):
            live[event.memory_id] = event.data.content
        elif event.type == "MemoryForgotten":
            live.pop(event.memory_id, None)
    return live


# -- how it is told -------------------------------------------------------------------------------------------------------


def chapter(title: str) -> None:
    out.print()
    out.print(Text(title, style="bold cyan"))
    out.print()


def paragraph(text: str, *, style: str = "", wrap: bool = True) -> None:
    lines = wrapped(text, 2) if wrap else [text]
    out.print(Text("\n".join("  " + line for line in lines), style=style), soft_wrap=True)


def fact(name: str, text: str) -> None:
    """A line of a list: a name, and what is to be said of it."""
    first, *rest = wrapped(text, 16)
    out.print(Text.assemble((f"    {name:12}", "dim"), "\n".join([first, *(" " * 16 + line for line in rest)])), soft_wrap=True)


def show_memory(mark: str, memory: Memory) -> None:
    """A memory in two columns: when and who, and what."""
    first, *rest = wrapped(memory.content, 29)
    said = "\n".join([first, *(" " * 29 + line for line in rest)])
    head = f"{memory.occurred_at:%d %b %H:%M} {memory.speaker or '':5}"
    out.print(Text.assemble(f"    {mark:4} ", (head, "dim"), "  ", said), soft_wrap=True)


def wrapped(text: str, indent: int) -> list[str]:
    return textwrap.wrap(text, max(width - indent, 20), break_on_hyphens=False) or [""]


def asking(folder: Path) -> str:
    return f"{sys.executable} -m memfold recall --target {folder} --session {SESSION} coriander"


# -- small helpers --------------------------------------------------------------------------------------------------------


def everything(store: MemoryStore, session_id: str = SESSION) -> dict[str, Memory]:
    """All live memories of a session, by id."""
    return {memory.id: memory for memory in store.find(session_id, limit=10_000).memories}


def at(month: int, day: int) -> datetime:
    return datetime(2026, month, day, tzinfo=UTC)


def only(found: Iterable[Memory]) -> Memory:
    memories = list(found)
    check(len(memories) == 1, f"one memory was expected in the history, and there are {len(memories)}")
    return memories[0]


def timed(call: Callable[[], T]) -> tuple[T, float]:
    begun = time.perf_counter()
    return call(), time.perf_counter() - begun


def check(holds: bool, problem: str) -> None:
    if not holds:
        raise DemoFailed(problem)


if __name__ == "__main__":
    main()
