"""The command line: one command for each verb of a store, and a few that look after it.

A command checks its options, opens the store, calls one verb and shows the answer: as a table on a terminal, plain in a
pipe, as JSON with `--json`. Whatever goes wrong on purpose is one line on standard error and an exit status, never a
traceback. Everything heavy is imported when a command runs, so that `--help` is quick.
"""

import io
import os
import stat
import sys
from contextlib import closing, nullcontext
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import msgspec
import typer

from memfold.api import cli_consolidate, cli_work
from memfold.api.cli_options import (
    AFTER,
    AS_OF,
    BEFORE,
    CATEGORY,
    CURSOR,
    FAILED,
    ID,
    IMPORTANCE,
    INCLUDE_ARCHIVED,
    INTERRUPTED,
    ISO,
    LIMIT,
    METADATA,
    ROLE,
    SESSION,
    SESSIONS,
    SPEAKER,
    TAGS,
    USER_SCOPE,
    WHERE,
    Call,
    Clearable,
    Direction,
    Duplicates,
    app,
    command,
    complain,
    counted,
    from_input,
    moment,
    reading,
)
from memfold.errors import MemfoldError
from memfold.model import UNSET, Embedding
from memfold.settings import Settings, environment
from memfold.validation import DAYS_MAX, LIMIT_MAX

if TYPE_CHECKING:
    from memfold.api.store import MemoryStore


def main() -> None:
    """Run the command line and exit."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a memory may hold what the locale's encoding does not
    try:
        app(prog_name="memfold")
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


# --- memories ----------------------------------------------------------------------------------------------------------------


@command
def remember(
    call: Call,
    *,
    content: Annotated[
        str,
        typer.Argument(
            metavar="CONTENT",
            show_default=False,
            help="What to remember; - reads it from standard input. Put -- before words that begin with a dash.",
        ),
    ],
    session: SESSION,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="Whose data it is. Default: the session's name.")] = None,
    role: ROLE = None,
    speaker: SPEAKER = None,
    category: CATEGORY = None,
    importance: IMPORTANCE = None,
    tag: TAGS = None,
    metadata: METADATA = None,
    occurred_at: Annotated[
        datetime | None, typer.Option(parser=moment, metavar="TIME", help=f"When it happened: {ISO}. Default: now.")
    ] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(metavar="KEY", help="The same command again with this key answers the same and adds nothing.")
    ] = None,
    duplicates: Annotated[
        Duplicates, typer.Option(metavar="keep|skip|merge", help="What to do with what the session holds already.")
    ] = Duplicates.keep,
    duplicate_similarity: Annotated[
        float, typer.Option(min=0, max=1, metavar="NUMBER", help="The least cosine of what counts as the same; 1: equal text.")
    ] = 1.0,
) -> None:
    """Remember something.

    Prints its id; with --json, the memory.
    """
    words = from_input(content)
    with call.store() as store:
        memory = store.remember(
            words,
            session_id=session,
            user_id=user,
            role=role,
            speaker=speaker,
            category=category,
            importance=importance,
            tags=tag,
            metadata=metadata,
            occurred_at=occurred_at,
            idempotency_key=idempotency_key,
            duplicates=duplicates.value,
            duplicate_similarity=duplicate_similarity,
        )
    if call.as_json:
        call.show(memory)
    else:
        typer.echo(memory.id)


@command
def recall(
    call: Call,
    *,
    query: Annotated[str, typer.Argument(metavar="QUERY", show_default=False, help="What to look for, in plain words.")],
    session: SESSIONS = None,
    user: USER_SCOPE = None,
    as_of: AS_OF = None,
    limit: LIMIT = 10,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, metavar="NUMBER", help="Only what answers at least this well, from 0 to 1.")
    ] = 0.0,
    where: WHERE = None,
    before: BEFORE = None,
    after: AFTER = None,
    include_archived: INCLUDE_ARCHIVED = False,
    refresh: Annotated[bool, typer.Option("--refresh", help="What is found counts as used: it fades later.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say what each score is made of.")] = False,
) -> None:
    """Find what answers a question, best first."""
    with call.store() as store:
        found = store.recall(
            query,
            session_ids=session or None,
            user_id=user,
            as_of=as_of,
            limit=limit,
            min_score=min_score,
            where=where,
            before=before,
            after=after,
            include_archived=include_archived,
            refresh=refresh,
            explain=explain,
        )
    call.show(found)


@command
def context(
    call: Call,
    *,
    query: Annotated[
        str, typer.Argument(metavar="QUERY", show_default=False, help="What the prompt is about, in plain words.")
    ],
    session: SESSIONS = None,
    user: USER_SCOPE = None,
    as_of: AS_OF = None,
    max_tokens: Annotated[int, typer.Option(min=1, metavar="COUNT", help="How many tokens at most.")] = 2_000,
    where: WHERE = None,
    before: BEFORE = None,
    after: AFTER = None,
    include_archived: INCLUDE_ARCHIVED = False,
) -> None:
    """Print what of memory goes into a prompt."""
    with call.store() as store:
        found = store.context(
            query,
            session_ids=session or None,
            user_id=user,
            as_of=as_of,
            max_tokens=max_tokens,
            where=where,
            before=before,
            after=after,
            include_archived=include_archived,
        )
    if call.as_json:
        call.show(found)
    else:
        typer.echo(found.text)


@command
def find(
    call: Call,
    *,
    session: SESSIONS = None,
    user: USER_SCOPE = None,
    as_of: AS_OF = None,
    where: WHERE = None,
    before: BEFORE = None,
    after: AFTER = None,
    include_archived: INCLUDE_ARCHIVED = False,
    order: Annotated[Direction, typer.Option(metavar="newest|oldest", help="Which come first.")] = Direction.newest,
    limit: LIMIT = 100,
    cursor: CURSOR = None,
) -> None:
    """List memories in order of time."""
    with call.store() as store:
        page = store.find(
            session_ids=session or None,
            user_id=user,
            as_of=as_of,
            where=where,
            before=before,
            after=after,
            include_archived=include_archived,
            order="oldest" if order is Direction.oldest else "newest",
            limit=limit,
            cursor=cursor,
        )
    call.show(page)


@command
def get(call: Call, memory_id: ID, as_of: AS_OF = None) -> None:
    """Show one memory, whole."""
    with call.store() as store:
        memory = store.get(memory_id, as_of=as_of)
    call.show(memory)


@command
def update(
    call: Call,
    *,
    memory_id: ID,
    content: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The new words; - reads them from standard input.")
    ] = None,
    role: ROLE = None,
    speaker: SPEAKER = None,
    category: CATEGORY = None,
    importance: IMPORTANCE = None,
    tag: TAGS = None,
    metadata: METADATA = None,
    clear: Annotated[
        list[Clearable] | None, typer.Option(metavar="FIELD", help=f"Clear {', '.join(Clearable)}; give it again for more.")
    ] = None,
    expected_version: Annotated[
        int | None, typer.Option(min=1, metavar="NUMBER", help="Only if the memory still is at this version.")
    ] = None,
) -> None:
    """Change a memory. Only what is given changes; tags and metadata are replaced as a whole."""
    given = {
        "role": role,
        "speaker": speaker,
        "category": category,
        "importance": importance,
        "tags": tag or None,
        "metadata": metadata,
    }
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    for field in clear or ():
        if field.value in changes:
            raise typer.BadParameter(f"{field.value} cannot be both set and cleared", param_hint="--clear")
    changes |= {field.value: None for field in clear or ()}
    if content is None and not changes:
        raise typer.BadParameter("say what to change: --content, --role, …, or --clear")
    words = UNSET if content is None else from_input(content)
    with call.store() as store:
        memory = store.update(memory_id, content=words, expected_version=expected_version, **changes)
    call.show(memory)


@command
def history(call: Call, memory_id: ID) -> None:
    """List every version of a memory.

    First to last; of a forgotten memory, the changes without content.
    """
    with call.store() as store:
        changes = store.history(memory_id)
    call.show(changes)


# --- consolidating -----------------------------------------------------------------------------------------------------------

for each in cli_consolidate.COMMANDS:
    command(each)


# --- importing ---------------------------------------------------------------------------------------------------------------


@command
def import_(
    call: Call,
    *,
    file: Annotated[str, typer.Argument(metavar="FILE", show_default=False, help="JSON lines; - reads standard input.")],
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="The session of all lines. Default: what each line says.")
    ] = None,
    user: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose data it is. Default: what the lines say, else the session's name.")
    ] = None,
    skip_invalid: Annotated[
        bool, typer.Option("--skip-invalid", help="Pass over lines that cannot be imported, and say which.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line; open no store.")] = False,
    deferred: Annotated[
        bool, typer.Option("--deferred", help="Embed by the quick static model first; the better one comes later.")
    ] = False,
    embed: Annotated[bool, typer.Option("--embed", help="Also wait until everything is embedded.")] = False,
) -> None:
    """Remember chats from a file, one message a line.

    Lines are as chat APIs have them (role, content, name), with memfold's own fields if there are any; keys that are not
    known become metadata. To import a file again adds nothing twice, also if it has grown.

    Ends at the first invalid line, with exit status 1; whole stretches of lines before it are stored.
    """
    from memfold.api import importing, rendering

    if dry_run and embed:
        raise typer.BadParameter("goes without --dry-run, which stores nothing", param_hint="--embed")
    quiet, failure = call.as_json, None
    with reading(file) as lines, nullcontext() if dry_run else call.store() as store:
        embedding: Embedding = "deferred" if deferred else "soon"
        importer = importing.Importer(store, session=session, user=user, skip_invalid=skip_invalid, embedding=embedding)
        report = importer.report
        try:
            with rendering.progress("imported", "lines", size_of(lines), quiet=quiet) as look:
                importer.run(lines, lambda so_far: look(so_far.bytes, so_far.lines))
            if report.invalid and not skip_invalid:
                failure = "InvalidMemory", importing.refusal(report)
            elif store and embed:
                with rendering.progress("embedded", "events", None, quiet=quiet) as look:
                    importing.embed(store, lambda made, of: look(made, made, of))
        except MemfoldError as error:
            failure = type(error).__name__, str(error).removesuffix("; nothing was stored")
        except KeyboardInterrupt:
            complain("KeyboardInterrupt", f"interrupted; {importing.so_far(report)}", quiet)
            raise
    call.show(report if quiet else importing.told(report))
    if failure:
        complain(failure[0], f"{'standard input' if file == '-' else file}: {failure[1]}; {importing.so_far(report)}", quiet)
        raise typer.Exit(FAILED)


def size_of(file: BinaryIO) -> int | None:
    """How many bytes there are to read; None of a pipe."""
    try:
        found = os.fstat(file.fileno())
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


# --- forgetting --------------------------------------------------------------------------------------------------------------


@command
def forget(
    call: Call,
    *,
    memory_id: Annotated[str | None, typer.Argument(metavar="ID", help="The id of a memory.", show_default=False)] = None,
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="Forget this session, or with --where some of it.")
    ] = None,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="Forget this user, with every session.")] = None,
    where: WHERE = None,
    reason: Annotated[
        str | None, typer.Option(metavar="CODE", help="A short code such as user_request, kept in the log. With an ID only.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Forget memories, sessions or users.

    The keys are destroyed: there is no way back. Forgets one memory by its ID, a --session, what in a session matches
    --where, or a --user with every session.

    Asks before it forgets more than a single ID; where nobody can be asked, --yes must say so.
    """
    if [memory_id, session, user].count(None) != 2:
        raise typer.BadParameter("name one thing to forget: an ID, --session or --user")
    if where is not None and session is None:
        raise typer.BadParameter("needs --session", param_hint="--where")
    if reason is not None and memory_id is None:
        raise typer.BadParameter("goes with an ID only", param_hint="--reason")
    asks = memory_id is None and not yes
    if asks and not (sys.stdin is not None and sys.stdin.isatty()):
        raise typer.BadParameter("there is no terminal to ask on: add --yes if this is meant")
    with call.store() as store:
        if asks and not confirmed(store, session, user, where):
            typer.echo("memfold: nothing was forgotten", err=True)
            raise typer.Exit(FAILED)
        if memory_id is not None:
            erasure = store.forget(memory_id, reason=reason)
        elif user is not None:
            erasure = store.forget_user(user)
        elif where is not None:
            erasure = store.forget_where(str(session), where)
        else:
            erasure = store.forget_session(str(session))
    call.show(erasure)


def confirmed(store: "MemoryStore", session: str | None, user: str | None, where: dict[str, Any] | None) -> bool:
    """Whether the person at the terminal, told how much it is, says yes."""
    if user is not None:
        page = store.sessions(user, limit=LIMIT_MAX)
        subject = f"user {user!r} with {counted(len(page.sessions), 'session')}{' and more' if page.cursor else ''}"
    elif where is not None:
        subject = f"{counted(store.count(str(session), where=where), 'memory', 'memories')} that match in session {session!r}"
    else:
        subject = f"session {session!r} with {counted(store.stats(session).memories, 'memory', 'memories')}"
    typer.echo(f"Forget {subject}, for good? [y/N] ", err=True, nl=False)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


# --- the whole tenant --------------------------------------------------------------------------------------------------------


@command
def log(
    call: Call,
    after: Annotated[int, typer.Option(min=0, metavar="POSITION", help="Only events behind this position of the log.")] = 0,
    session: Annotated[str | None, typer.Option(metavar="NAME", help="Only events of this session.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, metavar="COUNT", help="How many events at most. Default: all.")] = None,
) -> None:
    """Print the log, event by event.

    Ends at what is settled now; with --json, each event is a line.
    To follow it, ask again with --after and the last position you saw.
    """
    from memfold.api import rendering

    with call.store() as store:
        rendering.show_events(islice(store.events(after, session_id=session), limit), as_json=call.as_json)


@command
def sessions(
    call: Call,
    user: Annotated[str | None, typer.Option(metavar="NAME", help="Only this user's.")] = None,
    limit: LIMIT = 100,
    cursor: CURSOR = None,
) -> None:
    """List sessions, newest first."""
    with call.store() as store:
        page = store.sessions(user, limit=limit, cursor=cursor)
    call.show(page)


@command
def stats(
    call: Call,
    session: Annotated[
        str | None, typer.Option(metavar="NAME", help="Of this session only. Default: the whole tenant.")
    ] = None,
    days: Annotated[
        int, typer.Option(min=0, max=DAYS_MAX, metavar="COUNT", help="Also what was appended on each of the last days.")
    ] = 0,
) -> None:
    """Count sessions, users, memories, summaries, events.

    Sizes are in bytes; views are what this very command held in memory.
    """
    with call.store() as store:
        counts = store.stats(session, days=days, details=True)
    call.show(counts)


# --- looking after it --------------------------------------------------------------------------------------------------------

for each in cli_work.COMMANDS:
    command(each)


@command
def doctor(call: Call) -> None:
    """Check folder, server, log and keys.

    Says what is wrong and what to do, and changes nothing. Exit status 1 if a check fails.
    May take 10 seconds if a transaction holds back the settled position.
    """
    from memfold.api import doctor, rendering
    from memfold.api.store import utc_now

    with closing(doctor.examine(call.place(), environment(), Settings(), utc_now)) as checks:
        healthy = rendering.show_checks(checks, as_json=call.as_json)
    if not healthy:
        raise typer.Exit(FAILED)


@command
def stop(
    call: Call, force: Annotated[bool, typer.Option("--force", help="Also while other processes use it.")] = False
) -> None:
    """Stop the embedded server, if it runs."""
    from memfold.eventstore import embedded

    place = call.place()
    if not isinstance(place, Path):
        raise typer.BadParameter(
            "is a server by URL: only the embedded server of a folder is ours to stop", param_hint="--target"
        )
    call.show({"stopped": embedded.stop(place, force=force)})


@command
def version(call: Call) -> None:
    """Print the versions of memfold and Python."""
    from memfold import __version__

    call.show({"memfold": __version__, "python": sys.version.split()[0]})


# --- the whole store, looked through -----------------------------------------------------------------------------------------

A_SESSION = Annotated[str | None, typer.Option(metavar="NAME", help="Only this session. Default: all.")]
POSITION_AFTER = Annotated[int, typer.Option(min=0, metavar="POSITION", help="Only events behind this position.")]
POSITION_UPTO = Annotated[int | None, typer.Option(min=0, metavar="POSITION", help="Only events up to this one.")]


@command
def replay(
    call: Call,
    session: A_SESSION = None,
    after: POSITION_AFTER = 0,
    upto: POSITION_UPTO = None,
    fold: Annotated[bool, typer.Option("--fold", help="Print the memories these events leave, not the events.")] = False,
) -> None:
    """Print the log, or what it leaves, as JSON lines.

    A fold of all events up to a position is what the store held then, less what was forgotten since.
    """
    from memfold.api import operations

    with call.store() as store:
        told = (operations.fold if fold else operations.replay)(store, session, after, upto)
        for line in told:
            typer.echo(msgspec.json.encode(line))


@command
def rebuild(
    call: Call,
    session: A_SESSION = None,
    vectors: Annotated[bool, typer.Option(help="Also embed everything again and replace the stored vectors.")] = True,
) -> None:
    """Make everything derived from the log again, and compare.

    Vectors must keep a cosine of 0.999 with those stored before; every session folded from its first event must be equal,
    in rows, words and vectors, to the view that answers. Exit status 1 if one is not.
    """
    from memfold.api import operations

    sound, lines = True, []
    with call.store() as store:
        for made in operations.rebuild(store, session, vectors=vectors):
            sound = sound and made.sound
            lines.append(made._asdict() | {"sound": made.sound})
            if not call.as_json:
                cosine = "" if made.cosine is None else f", least cosine {made.cosine:.6f}"
                told = f"{made.memories:,} memories, {made.vectors:,} vectors made ({made.missing:,} were missing){cosine}"
                typer.echo(f"{'ok  ' if made.sound else 'FAIL'}  {made.session_id}: {told}{'' if made.same else '; DIFFERS'}")
    if call.as_json:
        typer.echo(msgspec.json.encode({"ok": sound, "sessions": lines}))
    if not sound:
        raise typer.Exit(FAILED)


@command
def audit(
    call: Call,
    canary: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Text that must not be readable in the data folder; give it again for more."),
    ] = None,
    folder: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to look for it. Default: the embedded store's folder.")
    ] = None,
) -> None:
    """Check the whole log against vault and keyring, and list every erasure.

    Every digest, key and version; nothing left of what was forgotten, nothing gone that was not. Exit status 1 if not.
    """
    from memfold.api import operations

    looked_in = folder or operations.data_folder(call.place())
    if canary and looked_in is None:
        raise typer.BadParameter("the store is on a server: say with --folder where its data lies", param_hint="--canary")
    if any(len(text) < 6 for text in canary or []):
        raise typer.BadParameter("needs at least six characters, or chance finds it", param_hint="--canary")
    with call.store() as store:
        found = operations.audit(store, canary or [], looked_in)
    if call.as_json:
        call.show(found)
    else:
        for line in operations.told(found):
            typer.echo(line)
    if not found.ok:
        raise typer.Exit(FAILED)
