"""What operators and auditors run on a whole store: replay, rebuild and audit, each a pass that says what it found.

The commands of the same names print it. Each answer knows whether all is well, which is their exit status.
"""

from collections.abc import Iterator
from pathlib import Path

import msgspec

from memfold.api.store import MemoryStore
from memfold.audit.residue import Scan, scan
from memfold.audit.verify import Verification, verify
from memfold.eventstore import embedded
from memfold.eventstore.tail import Tail
from memfold.model import Memory, StoredEvent
from memfold.projections import rebuild as rebuilding
from memfold.projections.rebuild import Rebuilt
from memfold.validation import LIMIT_MAX


class Residue(msgspec.Struct, frozen=True):
    """What a scan of the data folder for canaries found: each hit names the canary by its place in the list."""

    files: int
    bytes_read: int
    hits: list[str]


class Audit(msgspec.Struct, frozen=True):
    """An audit's answer: the pass over the log, and the scan of the data folder if one was asked for."""

    ok: bool
    log: Verification
    residue: Residue | None


def replay(store: MemoryStore, session_id: str | None, after: int, upto: int | None) -> Iterator[StoredEvent]:
    """The events with `after` < position <= `upto`, of a session or of all, in order."""
    for event in store.events(after, session_id=session_id):
        if upto is not None and event.position > upto:
            return
        yield event


def fold(store: MemoryStore, session_id: str | None, after: int, upto: int | None) -> Iterator[Memory]:
    """The memories those events leave, session by session, each in order of time."""
    end = _settled(store) if upto is None else upto
    for name in _names(store, session_id):
        yield from rebuilding.replay(store._database, store._keyring, name, after=after, upto=end)


def rebuild(store: MemoryStore, session_id: str | None, *, vectors: bool) -> Iterator[Rebuilt]:
    """Make a session, or all of them, again, one by one; see `projections.rebuild`."""
    for name in _names(store, session_id):
        found = rebuilding.rebuild(store._database, store._keyring, store._views, store._embeddings, name, vectors=vectors)
        if found:
            yield found


def audit(store: MemoryStore, canaries: list[str], folder: Path | None) -> Audit:
    """Check the whole log; look for `canaries` in `folder`."""
    log = verify(store._database, store._keyring, _settled(store))
    residue = _residue(scan(folder, canaries)) if folder and canaries else None
    return Audit(ok=not log.findings and not (residue and residue.hits), log=log, residue=residue)


def data_folder(place: str | Path) -> Path | None:
    """The folder whose bytes an audit looks through; None for a server that is not ours."""
    return embedded.status(place).folder if isinstance(place, Path) else None


def _residue(found: Scan) -> Residue:
    hits = [f"canary {hit.canary + 1} as {hit.encoding} at byte {hit.offset} of {hit.path}" for hit in found.hits]
    return Residue(files=found.files, bytes_read=found.bytes_read, hits=hits)


def _names(store: MemoryStore, session_id: str | None) -> Iterator[str]:
    if session_id is not None:
        yield session_id
        return
    cursor = None
    while True:
        page = store.sessions(limit=LIMIT_MAX, cursor=cursor)
        yield from (session.session_id for session in page.sessions)
        cursor = page.cursor
        if cursor is None:
            return


def _settled(store: MemoryStore) -> int:
    with Tail(store._database) as tail:
        return tail.newest_event(store._keyring.tenant, store._settings.settle_timeout_s)


def told(found: Audit) -> Iterator[str]:
    """An audit's answer, line by line."""
    log = found.log
    for erasure in log.erasures:
        yield f"erased  {erasure.position:>10}  {erasure.recorded_at:%Y-%m-%d %H:%M:%S}Z  {erasure.scope:<7}  {erasure.id}"
    for finding in log.findings:
        yield f"FAIL    {finding.position:>10}  the event {finding.problem}"
    yield (
        f"log: {log.events:,} events up to position {log.position}: {log.opened:,} opened and fit their digests, "
        f"{log.erased:,} erased by {len(log.erasures):,} facts, {log.vectors:,} vectors opened, {len(log.findings):,} findings"
    )
    if found.residue:
        yield from (f"FAIL    {hit}" for hit in found.residue.hits)
        size = f"{found.residue.files:,} files, {found.residue.bytes_read:,} bytes"
        yield f"data folder: {len(found.residue.hits):,} hits in {size}; a planted word was found in every encoding"
    yield "sound" if found.ok else "NOT SOUND"
