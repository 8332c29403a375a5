"""How answers look: JSON for programs, tables on a terminal, and one line a row, parted by tabs, in a pipe.

An answer is laid out once, as `Facts` (names and values) or a `Grid` (rows); terminal and pipe differ only in how they
write that down. Content is shown, since it was asked for, but never as it stands: a memory must not steer the terminal, so
control and direction characters are written as escapes. Called by the commands alone, and imported when one has an answer.
"""

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any, NamedTuple

import msgspec
import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from memfold.api.doctor import Check, RemoteStatus
from memfold.eventstore.embedded import ServerStatus
from memfold.model import (
    Change,
    Consolidation,
    Erasure,
    JobStatus,
    Memory,
    Page,
    ParkedWork,
    Recollections,
    Session,
    SessionConsolidation,
    SessionPage,
    Stats,
    StoredEvent,
    WorkStatus,
)

CELL_CHARACTERS_MAX = 500  # of a cell on a terminal; `get` shows everything
TABLE_EVENTS = 200  # a table is drawn when its widths are known, and a log should appear as it is read
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
LINE_EVERY_S = 10.0  # of progress, where there is no terminal
COLORS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


class Facts(NamedTuple):
    """Names and values; what has no value is left out."""

    pairs: list[tuple[str, object]]


class Grid(NamedTuple):
    """Rows of cells. A tuple is one column of several lines on a terminal, and several columns in a pipe."""

    columns: tuple[str, ...]
    rows: list[tuple[object, ...]]
    cursor: str | None = None


def show(answer: Any, *, as_json: bool) -> None:
    """Write an answer to standard output; where a page goes on, say so on standard error."""
    if as_json:
        _write_json(_document(answer))
        return
    layout = lay_out(answer)
    if isinstance(layout, Facts):
        _write_facts(layout)
        return
    _write_grid(layout)
    if layout.cursor:
        typer.echo(f"there is more: --cursor {layout.cursor}", err=True)


def show_events(events: Iterator[StoredEvent], *, as_json: bool) -> None:
    """Write events as they come; as JSON, one a line."""
    if as_json:
        for event in events:
            _write_json(event)
        return
    columns = ("position", "event", "what")
    while page := list(islice(events, TABLE_EVENTS)):
        _write_grid(Grid(columns, [_event_row(event) for event in page]))


def show_work(found: WorkStatus) -> None:
    """Write how the work behind the log fares: each job, then what concerns all of them."""
    columns = ("job", "due", "last run", "next run", "runs", "failed in a row")
    _write_grid(Grid(columns, [_job_row(job) for job in found.jobs]))
    typer.echo()
    near = [f"{each.limit} {_text(each.used)} of {_text(each.allowed)} {each.session_id or ''}" for each in found.near_limits]
    _write_facts(
        Facts(
            [
                ("directory lag", found.directory_lag),
                ("embedding lag", found.embedding_lag),
                ("summarizer", found.summarizer),
                ("tokens spent", f"{found.tokens_today:,} today, {found.tokens:,} in all"),
                ("cost", f"{found.cost_today:.2f} today, {found.cost:.2f} in all" if found.cost else None),
                ("parked", tuple(f"{job} {count:,}" for job, count in found.parked.items())),
                ("limits near their end", tuple(each.strip() for each in near)),
            ]
        )
    )


def _job_row(job: JobStatus) -> tuple[object, ...]:
    last = (job.last_started_at or "never", "running" if job.running else job.last_finished_at)
    next_run = job.next_at or ("unknown" if job.has_worker else "no worker")
    return job.name, job.due, last, next_run, job.runs, (job.failures, job.reason)


def show_checks(checks: Iterable[Check], *, as_json: bool) -> bool:
    """Write checks as they come (as JSON, all in one document); whether none failed."""
    done: list[Check] = []
    for check in checks:
        done.append(check)
        if not as_json:
            _write_check(check)
    healthy = all(check.verdict != "fail" for check in done)
    if as_json:
        _write_json({"ok": healthy, "checks": done})
    return healthy


@contextmanager
def progress(done: str, things: str, total: int | None, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """A bar on standard error if that is a terminal; else a line every ten seconds, or nothing if `quiet`.

    What it gives is told how far the work is, how many things are done, and what there is to do if that has changed.
    """
    if sys.stderr is not None and sys.stderr.isatty():
        columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.fields[count]:,} " + things), TimeRemainingColumn())
        with Progress(TextColumn("{task.description}"), *columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(done, total=total, count=0)
            yield lambda place, count, of=total: bar.update(task, completed=place, count=count, total=of)
    else:
        yield _quietly if quiet else _Lines(done, things)


def _quietly(*_: int) -> None:
    """Show nothing."""


class _Lines:
    """Progress where there is no terminal: a plain line now and then, none of what is done quickly."""

    def __init__(self, done: str, things: str) -> None:
        self._told = f"{{:,}} {things} {done}"
        self._at = time.monotonic()

    def __call__(self, _place: int, count: int, _of: int | None = None) -> None:
        if time.monotonic() >= self._at + LINE_EVERY_S:
            self._at = time.monotonic()
            typer.echo(f"memfold: {self._told.format(count)}", err=True)


def clean(text: str) -> str:
    """The text with everything a terminal would obey, or show in another order, written as an escape."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


# --- layouts -----------------------------------------------------------------------------------------------------------------


def lay_out(answer: Any) -> Facts | Grid:
    """An answer as facts or rows."""
    return LAYOUTS[type(answer)](answer)


def _page(page: Page) -> Grid:
    return Grid(("memory", "content"), [_memory_row(memory) for memory in page.memories], page.cursor)


LEAST_SHARE = 0.0005


def _recollections(found: Recollections) -> Grid:
    rows = [(f"{each.score:.3f}", *_memory_row(each.memory)) for each in found]
    if not any(each.parts for each in found):
        return Grid(("score", "memory", "content"), rows)
    told = [(*row, _parts(each.parts)) for row, each in zip(rows, found, strict=True)]
    return Grid(("score", "memory", "content", "made of"), told)


def _parts(parts: dict[str, float]) -> str:
    """What a score is made of, what counts most first; what counts for nothing is left out."""
    most = sorted(parts.items(), key=lambda part: -abs(part[1]))
    return ", ".join(f"{name} {share:+.3f}" for name, share in most if abs(share) >= LEAST_SHARE)


def _sessions(page: SessionPage) -> Grid:
    columns = ("session, user", "memories", "events", "first, last event")
    return Grid(columns, [_session_row(session) for session in page.sessions], page.cursor)


def _several(answers: list[Any]) -> Grid:
    """A list, by what is in it."""
    return LISTS[type(answers[0])](answers) if answers else Grid((), [])


def _memories(memories: list[Memory]) -> Grid:
    return Grid(("memory", "content"), [_memory_row(memory) for memory in memories])


def _parked(found: list[ParkedWork]) -> Grid:
    rows: list[tuple[object, ...]] = [
        ((each.job, each.session_id), each.reason, each.attempts, (each.first_at, each.next_at)) for each in found
    ]
    return Grid(("what", "why", "tries", "first failed, tried next"), rows)


def _changes(changes: list[Change]) -> Grid:
    return Grid(("version", "change", "recorded at", "content"), [_change_row(change) for change in changes])


def _consolidation(done: Consolidation) -> Grid:
    """A row for all summaries of a session, and for what else was done to it; in a dry run a row for each window."""
    columns = ("session", "what", "memories", "tokens before", "after", "")
    return Grid(columns, [row for session in done.sessions for row in _session_done(session, each_window=done.dry_run)])


def _session_done(session: SessionConsolidation, *, each_window: bool) -> Iterator[tuple[object, ...]]:
    windows, name = session.windows, session.session_id
    if each_window:
        for each in windows:
            yield name, f"summary of level {each.level}", each.memories, each.tokens_before, each.tokens_after, each.text
    elif windows:
        sums = (sum(counts) for counts in zip(*((w.memories, w.tokens_before, w.tokens_after) for w in windows), strict=True))
        yield name, f"summaries: {len(windows):,}", *sums, None
    for what, ids in (("faded", session.faded), ("expired", session.expired)):
        if ids:
            yield name, what, len(ids), None, None, None
    for failed in session.failed:
        yield name, "failed", len(failed.memory_ids), None, None, failed.problem
    for limit in session.near_limits:
        yield name, "near its limit", session.memories, None, None, limit


def _stats(stats: Stats) -> Facts:
    told = dict(_fields(stats).pairs)
    told["growth"] = tuple(f"{day.day}: {day.events:,} events, {day.bytes:,} bytes" for day in stats.growth)
    told["categories"] = {name: each.memories for name, each in stats.categories.items()}
    return Facts(list(told.items()))


def _fields(answer: msgspec.Struct) -> Facts:
    return Facts([(name.replace("_", " "), value) for name, value in msgspec.structs.asdict(answer).items()])


def _memory(memory: Memory) -> Facts:
    pairs = _fields(memory).pairs
    return Facts(sorted(pairs, key=lambda pair: pair[0] == "content"))  # the longest comes last


def _memory_row(memory: Memory) -> tuple[object, ...]:
    return (memory.id, memory.occurred_at, memory.speaker or memory.role, memory.category), memory.content


def _session_row(session: Session) -> tuple[object, ...]:
    times = (session.created_at, session.updated_at)
    return (session.session_id, session.user_id), session.memories, session.events, times


def _change_row(change: Change) -> tuple[object, ...]:
    content = change.memory.content if change.memory else "(forgotten)"
    return change.version, change.type, (change.recorded_at, f"position {change.position}"), content


def _event_row(event: StoredEvent) -> tuple[object, ...]:
    return event.position, (event.type, event.recorded_at, event.session_id, event.memory_id), _gist(event)


def _gist(event: StoredEvent) -> str:
    """The content an event brought or the reason it gave, else the names of the fields it set."""
    if event.data is None:
        return "(erased)"
    fields = msgspec.structs.asdict(event.data)
    for words in (fields.get("content"), fields.get("reason")):
        if isinstance(words, str):
            return words
    return ", ".join(name for name, value in fields.items() if value is not msgspec.UNSET and value is not None)


def _erasure(erasure: Erasure) -> Facts:
    if erasure.position is None:
        return Facts([("forgotten", "nothing: there was nothing to forget")])
    return Facts(
        [
            ("forgotten", erasure.scope),
            ("memories", len(erasure.memory_ids)),
            ("keys deleted", erasure.keys_deleted),
            ("position", erasure.position),
            ("recorded at", erasure.recorded_at),
            ("reason", erasure.reason),
        ]
    )


LISTS: dict[type, Callable[[Any], Grid]] = {Change: _changes, Memory: _memories, ParkedWork: _parked}

LAYOUTS: dict[type, Callable[[Any], Facts | Grid]] = {
    Memory: _memory,
    Page: _page,
    Recollections: _recollections,
    SessionPage: _sessions,
    list: _several,
    Consolidation: _consolidation,
    Erasure: _erasure,
    Stats: _stats,
    ServerStatus: _fields,
    RemoteStatus: _fields,
    dict: lambda answer: Facts(list(answer.items())),
}


# --- writing -----------------------------------------------------------------------------------------------------------------


def _on_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()


def _document(answer: Any) -> object:
    if isinstance(answer, Recollections):  # a list with attributes, which JSON does not have
        return {
            "position": answer.position,
            "model": answer.model,
            "withheld": answer.withheld,
            "recollections": list(answer),
        }
    return answer


def _write_json(document: object) -> None:
    typer.echo(msgspec.json.encode(document, enc_hook=str))


def _write_facts(facts: Facts) -> None:
    pairs = [(name, value) for name, value in facts.pairs if value not in (None, (), {})]
    if not _on_terminal():
        for name, value in pairs:
            typer.echo(f"{name}: {_text(value)}")
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, Text(_text(value)))
    Console().print(grid)


def _write_grid(grid: Grid) -> None:
    if not _on_terminal():
        for row in grid.rows:
            typer.echo("\t".join(_folded(cell) for cell in _flat(row)))
        return
    if not grid.rows:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in grid.columns:
        table.add_column(column, overflow="fold", no_wrap=False)
    for row in grid.rows:
        table.add_row(*map(_cell, row))
    Console().print(table)


def _flat(row: tuple[object, ...]) -> Iterator[object]:
    for cell in row:
        if isinstance(cell, tuple):
            yield from cell
        else:
            yield cell


def _folded(value: object) -> str:
    """A cell without the tabs and line breaks that would end it."""
    return " ".join(_text(value).split())


def _cell(value: object) -> Text:
    if not isinstance(value, tuple):
        return Text(_shortened(_text(value)))
    lines = [_shortened(_text(line)) for line in value if line is not None]
    return Text("\n").join([Text(lines[0]), *(Text(line, "dim") for line in lines[1:])])


def _shortened(text: str) -> str:
    return text if len(text) <= CELL_CHARACTERS_MAX else text[: CELL_CHARACTERS_MAX - 1] + "…"


def _text(value: object) -> str:
    """A value for people: on a terminal with times of this machine's zone and grouped digits, in a pipe as programs like it."""
    if isinstance(value, datetime):
        return _local(value) if _on_terminal() else value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int) and _on_terminal():
        return f"{value:,}"
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, dict):
        return clean(msgspec.json.encode(value).decode())
    return "" if value is None else clean(str(value))


def _local(moment: datetime) -> str:
    return moment.astimezone().isoformat(" ", "seconds")


def _write_check(check: Check) -> None:
    advice = f"     → {clean(check.advice)}" if check.advice else None
    if not _on_terminal():
        typer.echo(f"{check.verdict:4} {check.name}: {clean(check.found)}")
        if advice:
            typer.echo(advice)
        return
    line = Text.assemble((f"{check.verdict:4} ", COLORS[check.verdict]), (check.name, "bold"), ": ", clean(check.found))
    console = Console()
    console.print(line, soft_wrap=True)
    if advice:
        console.print(Text(advice), soft_wrap=True)
