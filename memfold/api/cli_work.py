"""The commands about the work behind the log: `work` does it on schedule, `status` says how it fares.

`cli` registers them.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from memfold.api.cli_options import FAILED, Call
from memfold.errors import MemfoldError
from memfold.settings import Settings

if TYPE_CHECKING:
    from memfold.model import WorkStatus

SCHEDULE = "seconds, 60s, 5m, 2h, a cron expression such as '0 3 * * *' of this machine's time zone, or off"


def a_schedule(text: str) -> str:
    """A schedule as people write it; seconds may stand alone."""
    return f"{text}s" if text.replace(".", "", 1).isdecimal() and text.isascii() else text


def schedule_option(what: str, default: str) -> Any:
    """An option that says how often a job runs."""
    told = f"When to {what}: {SCHEDULE}. Default: {default}."
    return typer.Option(parser=a_schedule, metavar="SCHEDULE", help=told)


def work(
    call: Call,
    every: Annotated[
        str | None,
        typer.Option(parser=a_schedule, metavar="SCHEDULE", help=f"When to do what no other option names: {SCHEDULE}."),
    ] = None,
    consolidate: Annotated[str | None, schedule_option("summarize, let fade and forget what is not kept", "60s")] = None,
    embed: Annotated[str | None, schedule_option("embed what was remembered", "10s")] = None,
    directory: Annotated[str | None, schedule_option("bring the directory of sessions up to date", "30s")] = None,
) -> None:
    """Do the work behind the log, on schedule.

    Summarizes old windows, lets fade, forgets what is not kept, embeds. Any number of these may run on one store: each job is
    done by one, and taken over from one that dies.

    Ends on SIGTERM or SIGINT when the step at hand is done, with exit status 0; a second signal ends it at once.
    """
    given = {"consolidate": consolidate, "embed": embed, "directory": directory}
    jobs = {name: every if schedule is None else schedule for name, schedule in given.items() if schedule or every}
    with stopping() as stop, call.store() as store:
        if not call.as_json:
            typer.echo("memfold: working; SIGTERM or Ctrl-C ends it", err=True)
        store.work(jobs, stop=stop)


class Signals:
    """Whether a signal came. Not an Event: a handler that waits for a lock may wait for the thread it interrupted."""

    def __init__(self) -> None:
        self._came = False

    def is_set(self) -> bool:
        """Whether one came."""
        return self._came

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self._came:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._came = True


@contextmanager
def stopping() -> Iterator[Signals]:
    """Watch for the signals that ask to stop."""
    stop = Signals()
    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status(call: Call) -> None:
    """Say whether the server runs, and how the work behind the log fares.

    By job: what is due, when it ran and runs next, what failed and why. Starts no server.
    Exit status 1 if a server named by URL does not answer.
    """
    from memfold.api import rendering
    from memfold.api.doctor import remote_status
    from memfold.eventstore import embedded

    place = call.place()
    server: Any = embedded.status(place) if isinstance(place, Path) else remote_status(place, Settings())
    answers = server.running if isinstance(place, Path) else server.reachable
    found, problem = fares(call) if answers else (None, None)
    if call.as_json:
        call.show({**msgspec.structs.asdict(server), "work": found, "work_problem": problem and str(problem)})
    else:
        call.show(server)
        if found:
            typer.echo()
            rendering.show_work(found)
        if problem:
            typer.echo(f"memfold: how the work fares cannot be said: {problem}", err=True)
    if not answers and not isinstance(place, Path):
        raise typer.Exit(FAILED)


def fares(call: Call) -> "tuple[WorkStatus | None, MemfoldError | None]":
    """How the work fares, or why that cannot be said."""
    try:
        with call.store() as store:
            return store.status(), None
    except MemfoldError as error:
        return None, error


COMMANDS = (work, status)
