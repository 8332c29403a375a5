"""The commands around the consolidator: consolidating, policies, what was set aside, and the ways between summary and source.

What a run did is a table on standard output, or one JSON document; what is to be said besides (that nothing was due, why it
stopped, what failed, which policies contradict one another) is on standard error. `cli` registers them.
"""

from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from memfold.api.cli_options import CATEGORY, FAILED, ID, Call, counted, json_object, reading
from memfold.model import Consolidation, SessionConsolidation
from memfold.validation import LIMIT_MAX

if TYPE_CHECKING:
    from memfold.api.store import MemoryStore
    from memfold.rules import Contradiction

PROBLEMS_SHOWN = 5

ONE_SESSION = Annotated[str | None, typer.Option(metavar="NAME", help="Only this session. Default: wherever something is due.")]


def consolidate(
    call: Call,
    *,
    session: ONE_SESSION = None,
    until_idle: Annotated[
        bool, typer.Option("--until-idle", help="Go on until nothing is due, summaries of summaries too.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")] = False,
    summaries: Annotated[
        bool, typer.Option("--summaries", help="With --dry-run, also in which words. A language model is asked and charges.")
    ] = False,
) -> None:
    """Do what the policies say is due.

    Summarizes old windows, lets memories fade, forgets what is not kept. Killed or run twice, it does nothing by halves or
    twice; nothing is done while another worker is at it. Exit status 1 if a window could not be summarized: it stays as it
    was, is tried again later, and stands in `memfold parked`.
    """
    from memfold.api import rendering

    if summaries and not dry_run:
        raise typer.BadParameter("goes with --dry-run: a real run has its summaries in the store", param_hint="--summaries")
    with call.store() as store:
        contradictions = contradicting(store) if dry_run else []
        with rendering.progress("consolidated", "sessions", None, quiet=call.as_json) as look:
            done = store.consolidate(
                session, dry_run=dry_run, summaries=summaries, until_idle=until_idle, progress=counting(look)
            )
    if call.as_json:
        call.show(document(done, contradictions))
    else:
        call.show(done)
        say([*notes(done, session), *disagreeing(contradictions)])
    if done.failed_count:
        raise typer.Exit(FAILED)


def counting(look: Callable[..., None]) -> Callable[[SessionConsolidation], None]:
    """What a run is to call after each session, so that the progress is shown."""
    seen = 0

    def count(_: SessionConsolidation) -> None:
        nonlocal seen
        seen += 1
        look(seen, seen)

    return count


def document(done: Consolidation, contradictions: "list[Contradiction]") -> dict[str, Any]:
    """What a run did, for programs, with its sums; only a dry run was asked for words."""
    sums = ("windows_count", "tokens_before", "tokens_after", "failed_count", "faded_count", "expired_count")
    told = msgspec.structs.asdict(done) | {name: getattr(done, name) for name in sums}
    if not done.dry_run:
        told["sessions"] = [without_words(session) for session in done.sessions]
    return told | {"contradictions": [each._asdict() for each in contradictions]} if done.dry_run else told


def without_words(session: SessionConsolidation) -> SessionConsolidation:
    """What was done in a session, for a log: the summaries are in the store, by their ids."""
    windows = tuple(msgspec.structs.replace(window, text=None) for window in session.windows)
    return msgspec.structs.replace(session, windows=windows)


def say(notes: Iterable[str]) -> None:
    """Write notes beside an answer."""
    for note in notes:
        typer.echo(f"memfold: {note}", err=True)


def notes(done: Consolidation, session: str | None) -> Iterator[str]:
    """What is to be said of a run beside the table."""
    if session is not None and not done.sessions:
        yield "there is no such session"
    elif not any(each.did_something or each.failed for each in done.sessions) and not done.stopped:
        yield "nothing is due"
    if done.windows:
        memories = counted(sum(window.memories for window in done.windows), "memory", "memories")
        verb = "would become" if done.dry_run else "became"
        summaries = counted(done.windows_count, "summary", "summaries")
        target = " at most" if done.dry_run and all(window.text is None for window in done.windows) else ""
        yield f"{memories} {verb} {summaries}: {done.tokens_before:,} tokens, {done.tokens_after:,}{target} afterwards"
    if done.prompt_tokens or done.completion_tokens or done.cost:
        yield f"charged: {done.prompt_tokens:,} tokens read, {done.completion_tokens:,} written, cost {done.cost:.4f}"
    if done.stopped:
        yield f"stopped: {done.stopped}"
    problems = list(dict.fromkeys(each.problem for session in done.sessions for each in session.failed))
    if problems:
        more = " …" if len(problems) > PROBLEMS_SHOWN else ""
        yield f"{counted(done.failed_count, 'window')} failed: the summarizer {'; '.join(problems[:PROBLEMS_SHOWN])}{more}"


def disagreeing(contradictions: "Iterable[Contradiction]") -> Iterator[str]:
    """Contradictions in words."""
    for each in contradictions:
        whose = "" if each.category is None else f" (category {each.category!r})"
        yield f"policies contradict one another{whose}: {each.path} {each.problem}"


def contradicting(store: "MemoryStore") -> "list[Contradiction]":
    """What contradicts when the policies that were set are taken together: in any session, then in those with their own."""
    from memfold import rules
    from memfold.policies import Policies

    found = store.policies()
    tenant, categories = found["tenant"], found["categories"]
    met = [Policies(tenant, categories, session) for session in (None, *found["sessions"].values())]
    return list(dict.fromkeys(each for policies in met for each in rules.contradictions(policies)))


# --- policies ----------------------------------------------------------------------------------------------------------------


class PolicyAction(StrEnum):
    show = "show"
    set = "set"
    unset = "unset"


def policy(
    call: Call,
    *,
    action: Annotated[PolicyAction, typer.Argument(metavar="show|set|unset", help="What to do.")] = PolicyAction.show,
    file: Annotated[
        str | None,
        typer.Argument(
            metavar="FILE", show_default=False, help="With set: the policy as a JSON object; - reads standard input."
        ),
    ] = None,
    session: Annotated[str | None, typer.Option(metavar="NAME", help="Of this session. Default: of the whole tenant.")] = None,
    category: CATEGORY = None,
) -> None:
    """Show or set what the consolidator may do.

    Policies are of the tenant, of a --category or of a --session; what one leaves out is inherited. Prints, as JSON, what is
    effective there and what was set, also after setting one.
    """
    from memfold.policies import dump

    if (action is PolicyAction.set) != (file is not None):
        raise typer.BadParameter("goes with set, and set needs it: a policy as a JSON object", param_hint="FILE")
    if action is not PolicyAction.show and session is not None and category is not None:
        raise typer.BadParameter(
            "goes without --session: a policy is of one of them, or of the tenant", param_hint="--category"
        )
    given = None if file is None else from_file(file)
    with call.store() as store:
        if action is not PolicyAction.show:
            store.set_policy(given, session_id=session, category=category)
        effective, found = store.policy(session_id=session, category=category), store.policies()
        contradictions = contradicting(store)
    told = {"effective": dump(effective), "set": what_was_set(found, session, category)}
    shown = msgspec.json.encode(told)
    typer.echo(shown if call.as_json else msgspec.json.format(shown, indent=2))
    if not call.as_json:
        say(disagreeing(contradictions))


def what_was_set(found: dict[str, Any], session: str | None, category: str | None) -> dict[str, Any]:
    """The policies that were set, as JSON has them: all; else the tenant's, and those of what is named."""
    from memfold.policies import dump

    def dumped(policies: dict[str, Any], name: str | None, other: str | None) -> dict[str, Any]:
        wanted = {name} if name is not None else set() if other is not None else set(policies)
        return {each: dump(policy) for each, policy in policies.items() if each in wanted}

    return {
        "tenant": dump(found["tenant"]) if found["tenant"] is not None else None,
        "categories": dumped(found["categories"], category, session),
        "sessions": dumped(found["sessions"], session, category),
    }


def from_file(name: str) -> dict[str, Any]:
    """The JSON object in a file."""
    with reading(name) as file:
        raw = file.read()
    try:
        return json_object(raw.decode())
    except UnicodeDecodeError:
        raise typer.BadParameter("is not UTF-8", param_hint="FILE") from None
    except typer.BadParameter as error:
        raise typer.BadParameter(error.message, param_hint="FILE") from None


# --- what was set aside -----------------------------------------------------------------------------------------------------


def parked(
    call: Call,
    retry: Annotated[bool, typer.Option("--retry", help="Let all of it be tried again by the next run.")] = False,
) -> None:
    """List what failed and was set aside.

    Windows that could not be summarized, and sessions whose events could not be folded: each with its reason, how often it
    was tried, and when it is tried again by itself.
    """
    with call.store() as store:
        found: Any = {"retried": store.retry_parked()} if retry else store.parked()
    call.show(found)


# --- summaries and their sources --------------------------------------------------------------------------------------------


def sources(
    call: Call,
    *,
    memory_id: ID,
    query: Annotated[
        str | None, typer.Option(metavar="QUERY", help="Best first for this question. Default: in reading order.")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, max=LIMIT_MAX, metavar="COUNT", help="How many at most. Default: all.")
    ] = None,
) -> None:
    """List what a summary was made from, archived or not."""
    with call.store() as store:
        found = store.sources(memory_id, query=query, limit=limit)
    call.show(found)


def derived_from(call: Call, memory_id: ID) -> None:
    """List the summaries that were made from a memory directly."""
    with call.store() as store:
        found = store.derived_from(memory_id)
    call.show(found)


def restore(
    call: Call,
    memory_id: Annotated[list[str], typer.Argument(metavar="ID…", show_default=False, help="Ids of memories or summaries.")],
) -> None:
    """Bring archived memories back into recall.

    Prints those that came back. A summary that is not archived itself is undone: everything it stands for comes back, and it
    goes, with every summary made from it.
    """
    with call.store() as store:
        found = store.restore(memory_id)
    call.show(found)


COMMANDS: tuple[Callable[..., None], ...] = (consolidate, policy, parked, sources, derived_from, restore)
