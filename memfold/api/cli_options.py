"""What the commands of the command line have in common: the app they are registered on, the options, how they end.

A command is a function that is handed a `Call` and the options it names; `command` registers it, adds the options every
command takes, and turns what may go wrong into a line on standard error and an exit status.
"""

import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, NamedTuple

import msgspec
import typer

from memfold.errors import MemfoldError, MemoryForgotten, MemoryNotFound
from memfold.settings import environment
from memfold.validation import LIMIT_MAX

if TYPE_CHECKING:
    from memfold.api.store import MemoryStore

FAILED, NOT_FOUND, INTERRUPTED, PIPE_CLOSED = 1, 3, 130, 141  # and 2 for wrong usage, which is typer's to say

EPILOG = """\
Times are ISO 8601, such as 2026-09-03T10:30:00+02:00; without an offset they are meant in this machine's time zone.

\b
Exit status: 0 done; 1 refused or failed, with the reason on standard error; 2 wrong usage;
3 there is no such memory, or it was forgotten; 130 interrupted; 141 the reader of a pipe went away.
"""
app = typer.Typer(
    name="memfold",
    help="The memory of AI agents: an event-sourced store in PostgreSQL.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


# --- what commands have in common --------------------------------------------------------------------------------------------


class Call(NamedTuple):
    """What every command is told: where the store is, which tenant's, and whether a program reads the answer."""

    target: str | None
    tenant: str
    as_json: bool

    def store(self) -> "MemoryStore":
        """Open the store, which is to be closed again."""
        from memfold.api.store import MemoryStore

        return MemoryStore(self.target, tenant=self.tenant)

    def place(self) -> str | Path:
        """Where the store is: a URL or a folder."""
        from memfold.api.opening import resolve

        return resolve(self.target, environment())

    def show(self, answer: object) -> None:
        """Write the answer to standard output."""
        from memfold.api import rendering

        rendering.show(answer, as_json=self.as_json)


TARGET = Annotated[
    str | None,
    typer.Option(
        help="A folder (PostgreSQL embedded there) or postgresql://user@host/database. "
        "Default: MEMFOLD_TARGET, else a folder in your data folder.",
        metavar="FOLDER|URL",
    ),
]
TENANT = Annotated[
    str | None,
    typer.Option(metavar="NAME", help='Whose memories: nothing of one tenant is visible to another. Default: "default".'),
]
JSON = Annotated[bool, typer.Option("--json", help="Answer in JSON, for programs.")]


@app.callback()
def options(context: typer.Context, target: TARGET = None, tenant: TENANT = None, as_json: JSON = False) -> None:
    """Options before the command mean the same as behind it."""
    context.obj = Call(target, "default" if tenant is None else tenant, as_json)


def command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command: it is handed a `Call`, takes the options every command takes, and exits as agreed."""
    own = list(inspect.signature(function).parameters.values())[1:]
    common = list(inspect.signature(options).parameters.values())
    common = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in common]

    @wraps(function)
    def run(context: typer.Context, target: str | None, tenant: str | None, as_json: bool, **arguments: Any) -> None:
        before: Call = context.obj
        call = Call(
            before.target if target is None else target,
            before.tenant if tenant is None else tenant,
            as_json or before.as_json,
        )
        with exit_statuses(call.as_json):
            function(call, **arguments)

    run.__signature__ = inspect.Signature([*own, *common])  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *common]}
    name = function.__name__.rstrip("_").replace("_", "-")  # import_: import is a keyword
    return app.command(name)(run)


@contextmanager
def exit_statuses(as_json: bool) -> Iterator[None]:
    """Turn what may go wrong into a line on standard error and an exit status."""
    try:
        yield
    except MemfoldError as error:
        complain(type(error).__name__, str(error), as_json)
        raise typer.Exit(NOT_FOUND if isinstance(error, MemoryNotFound | MemoryForgotten) else FAILED) from None
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None
    except BrokenPipeError:
        # Python flushes standard output once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise typer.Exit(PIPE_CLOSED) from None
    except OSError as error:  # of what the store does, it translates all: this is the answer that cannot be written
        complain(type(error).__name__, f"the answer could not be written: {error.strerror}", as_json)
        raise typer.Exit(FAILED) from None


def complain(kind: str, message: str, as_json: bool) -> None:
    """Say what went wrong, in one line."""
    message = " ".join(message.split())
    if as_json:
        typer.echo(msgspec.json.encode({"error": kind, "message": message}), err=True)
    else:
        typer.echo(f"memfold: {message}", err=True)


# --- options -----------------------------------------------------------------------------------------------------------------


def moment(text: str) -> datetime:
    """A time as people write it; without an offset, of this machine's time zone."""
    try:
        given = datetime.fromisoformat(text)
        return given.astimezone() if given.tzinfo is None else given
    except (ValueError, OverflowError, OSError):
        raise typer.BadParameter("is no ISO 8601 time, such as 2026-09-03T10:30:00+02:00 or 2026-09-03") from None


def json_object(text: str) -> dict[str, Any]:
    """A JSON object. The complaint names the place, not what stands there: it may be somebody's data."""
    try:
        found = msgspec.json.decode(text.encode())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError) as error:
        problem = str(error) if isinstance(error, msgspec.DecodeError) else type(error).__name__
        raise typer.BadParameter(f"""is no JSON object, such as '{{"category": "fact"}}': {problem}""") from None
    if not isinstance(found, dict):
        raise typer.BadParameter("""is JSON, but no object: write it as '{"category": "fact"}'""")
    return found


def past(text: str) -> int | datetime:
    """A position of the log, or a time."""
    return int(text) if text.isascii() and text.isdecimal() else moment(text)


class Direction(StrEnum):
    newest = "newest"
    oldest = "oldest"


class Duplicates(StrEnum):
    keep = "keep"
    skip = "skip"
    merge = "merge"


class Clearable(StrEnum):
    role = "role"
    speaker = "speaker"
    category = "category"
    importance = "importance"
    tags = "tags"
    metadata = "metadata"


ISO = "ISO 8601, of this machine's time zone if it has no offset"
ID = Annotated[str, typer.Argument(metavar="ID", help="The id of a memory.", show_default=False)]
SESSION = Annotated[str, typer.Option(metavar="NAME", help="The session's name.", show_default=False)]
SESSIONS = Annotated[
    list[str] | None,
    typer.Option("--session", metavar="NAME", help="A session; again for more. Default: all there are."),
]
USER_SCOPE = Annotated[str | None, typer.Option("--user", metavar="NAME", help="All sessions of this user.")]
AS_OF = Annotated[
    Any, typer.Option(parser=past, metavar="TIME|POSITION", help=f"As it stood then: a log position, or a time, {ISO}.")
]
ROLE = Annotated[str | None, typer.Option(metavar="NAME", help="Such as user or assistant.")]
SPEAKER = Annotated[str | None, typer.Option(metavar="NAME", help="Who said it.")]
CATEGORY = Annotated[str | None, typer.Option(metavar="NAME", help="Such as fact or preference.")]
IMPORTANCE = Annotated[float | None, typer.Option(min=0, max=1, metavar="NUMBER", help="From 0 to 1. A new memory has 0.5.")]
TAGS = Annotated[list[str] | None, typer.Option("--tag", metavar="NAME", help="A tag; give it again for more.")]
METADATA = Annotated[
    dict[str, Any] | None, typer.Option(parser=json_object, metavar="JSON", help="""An object, such as '{"source": "mail"}'.""")
]
WHERE = Annotated[
    dict[str, Any] | None,
    typer.Option(
        parser=json_object,
        metavar="JSON",
        help="""A filter, such as '{"category": "fact", "importance": {"$gte": 0.7}}'.""",
    ),
]
BEFORE = Annotated[
    datetime | None, typer.Option(parser=moment, metavar="TIME", help=f"Only what occurred before this time: {ISO}.")
]
AFTER = Annotated[
    datetime | None, typer.Option(parser=moment, metavar="TIME", help=f"Only what occurred at or after this time: {ISO}.")
]
INCLUDE_ARCHIVED = Annotated[
    bool, typer.Option("--include-archived", help="Also what is archived: summaries stand for it, or it faded.")
]
LIMIT = Annotated[int, typer.Option(min=1, max=LIMIT_MAX, metavar="COUNT", help=f"How many at most, 1 to {LIMIT_MAX:,}.")]
CURSOR = Annotated[str | None, typer.Option(metavar="CURSOR", help="Where to go on, as the page before said.")]


# --- what is read and said ----------------------------------------------------------------------------------------------------


def from_input(content: str) -> str:
    """The words given; for a dash those on standard input, without the line break at their end."""
    if content != "-":
        return content
    try:
        return typer.get_binary_stream("stdin").read().decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise typer.BadParameter("standard input is not UTF-8") from None


@contextmanager
def reading(name: str) -> Iterator[BinaryIO]:
    """A file to be read, or standard input for a dash."""
    if name == "-":
        yield typer.get_binary_stream("stdin")
        return
    try:
        file = open(name, "rb")  # noqa: SIM115 (what goes wrong inside is no fault of opening)
    except OSError as error:
        raise typer.BadParameter(f"cannot be read: {error.strerror}", param_hint="FILE") from None
    with file:
        yield file


def counted(count: int, one: str, many: str | None = None) -> str:
    """A count with its noun."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"
