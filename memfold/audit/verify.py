"""Does the log still say what it said, and is what was forgotten gone? One pass over spine, vault and keyring.

For every event: its digest fits its ciphertext, its key opens it, its stream has no gap before it. For every erasure: no key,
payload or vector is left of what it names, and nothing is missing that no fact accounts for. The spine needs no key to be
checked; opening payloads needs the master key.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from memfold.errors import CorruptEvent
from memfold.events import NUMBERS, MemoryForgotten, SessionForgotten, UserForgotten
from memfold.eventstore import arrays, binding, derived, reader, sealing
from memfold.eventstore.codec import Row, event_key, open_event
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import Keyring
from memfold.eventstore.sealing import WrappingKey, wrapping_key_id

FORGOTTEN, SESSION, USER = NUMBERS[MemoryForgotten], NUMBERS[SessionForgotten], NUMBERS[UserForgotten]
SCOPES = {FORGOTTEN: "memory", SESSION: "session", USER: "user"}

STRAYS = """
SELECT 'a payload' AS what, p.position FROM memfold.payloads p
WHERE p.tenant_id = %(tenant)s AND p.position <= %(upto)s
AND NOT EXISTS (SELECT FROM memfold.events e WHERE e.tenant_id = p.tenant_id AND e.position = p.position)
UNION ALL
SELECT 'a key', k.position FROM memfold_keys.keys k
WHERE k.tenant_id = %(tenant)s AND k.position <= %(upto)s
AND NOT EXISTS (SELECT FROM memfold.events e WHERE e.tenant_id = k.tenant_id AND e.position = k.position)
UNION ALL
SELECT 'a vector', v.position FROM memfold.embeddings v
WHERE v.tenant_id = %(tenant)s AND v.position <= %(upto)s
AND NOT EXISTS (SELECT FROM memfold_keys.keys k WHERE k.tenant_id = v.tenant_id AND k.position = v.position)
ORDER BY position"""


class Finding(msgspec.Struct, frozen=True):
    """Something that is not as it must be, and where."""

    position: int
    problem: str


class ErasureFact(msgspec.Struct, frozen=True):
    """A fact that says something was forgotten: of what scope, which one, and when."""

    position: int
    scope: str
    id: str
    recorded_at: datetime


class Verification(msgspec.Struct, frozen=True):
    """What a pass over the log up to `position` found. The log is sound if `findings` is empty."""

    position: int
    events: int
    opened: int
    erased: int
    vectors: int
    erasures: list[ErasureFact]
    findings: list[Finding]


def verify(database: Database, keyring: Keyring, upto: int) -> Verification:
    """Check every event of the tenant up to the settled position `upto`."""
    before = _Erasures.read(database, keyring.tenant, upto)
    check = _Pass(database, keyring, before)
    for page in reader.read_log(database, keyring.tenant, 0, upto):
        check.page(page)
    # What was forgotten while we read is gone with good reason.
    after = _Erasures.read(database, keyring.tenant, 2**62)
    findings = [*check.findings, *(finding for row, finding in check.gone if not after.cover(row))]
    findings += [
        Finding(row.position, f"{row.what} is left that belongs to nothing")
        for row in database.rows(STRAYS, {"tenant": keyring.tenant, "upto": upto})
    ]
    return Verification(
        position=upto,
        events=check.events,
        opened=check.opened,
        erased=check.erased,
        vectors=check.vectors,
        erasures=before.facts,
        findings=sorted(findings, key=lambda finding: finding.position),
    )


class _Erasures:
    """What the facts of the log say was forgotten."""

    def __init__(self, rows: Sequence[Any]) -> None:
        self.memories = {row.memory_id.bytes for row in rows if row.type == FORGOTTEN}
        self.streams = {row.stream_id.bytes for row in rows if row.type == SESSION}
        self.facts = [
            ErasureFact(
                row.position,
                SCOPES[row.type],
                str(row.memory_id if row.type == FORGOTTEN else row.stream_id),
                row.recorded_at.astimezone(UTC),
            )
            for row in rows
        ]

    @classmethod
    def read(cls, database: Database, tenant: int, upto: int) -> "_Erasures":
        query = """SELECT position, type, stream_id, memory_id, recorded_at FROM memfold.events
                   WHERE tenant_id = %(tenant)s AND position <= %(upto)s AND type = ANY(%(types)s) ORDER BY position"""
        types = arrays.int_array([FORGOTTEN, SESSION, USER], arrays.INT2)
        return cls(database.rows(query, {"tenant": tenant, "upto": upto, "types": types}))

    def cover(self, row: Row) -> bool:
        """Whether this event must be erased: its memory, or its whole stream, was forgotten."""
        if row.type_number in (SESSION, USER):
            return False
        return row.stream in self.streams or (row.type_number != FORGOTTEN and row.memory_id in self.memories)


class _Pass:
    """Checks events page by page, and gathers what it finds."""

    def __init__(self, database: Database, keyring: Keyring, erasures: _Erasures) -> None:
        self.events = self.opened = self.erased = self.vectors = 0
        self.findings: list[Finding] = []
        self.gone: list[tuple[Row, Finding]] = []
        self._database = database
        self._keyring = keyring
        self._erasures = erasures
        self._versions: dict[bytes, int] = {}

    def page(self, page: Sequence[Row]) -> None:
        """Check the next events of the log, all of a page."""
        keys = binding.opening_keys(self._database, self._keyring, page)
        vectors = _vectors(self._database, self._keyring.tenant, page)
        for row in page:
            self.events += 1
            self._order(row)
            if self._erasures.cover(row):
                self._erased(row, len(vectors.get(row.position, [])))
            elif row.sources and row.wrapped_key == b"":
                self._died(row, len(vectors.get(row.position, [])))
            else:
                self._kept(row, keys, vectors.get(row.position, []))

    def _order(self, row: Row) -> None:
        expected = self._versions.get(row.stream, 0) + 1
        if row.version != expected:
            self._found(row, f"is version {row.version} of its stream, and {expected} was next")
        self._versions[row.stream] = row.version

    def _erased(self, row: Row, vectors: int) -> None:
        self.erased += 1
        left = {"payload": row.payload is not None, "key": bool(row.wrapped_key), "vector": vectors > 0}
        for what, is_left in left.items():
            if is_left:
                self._found(row, f"was forgotten, and its {what} is still there")

    def _died(self, row: Row, vectors: int) -> None:
        """What was bound to other events died with one of them."""
        self._erased(row, vectors)
        sources = binding.source_ids(row)
        if len(reader.standing(self._database, self._keyring.tenant, sources)) == len(sources):
            self._found(row, "has lost its key, and everything it was made from is still there")

    def _kept(self, row: Row, keys: dict[bytes, WrappingKey], vectors: Sequence[tuple[str, bytes]]) -> None:
        missing = [name for name, part in (("payload", row.payload), ("key", row.wrapped_key)) if part is None]
        if missing:
            problem = f"has lost its {' and its '.join(missing)}, and no fact says that it was forgotten"
            self.gone.append((row, Finding(row.position, problem)))
            return
        tenant = self._keyring.tenant
        header = sealing.event_header(tenant, row.event_id, row.stream, row.type_number, row.schema_version)
        if sealing.digest(header, row.payload or b"") != row.digest:
            self._found(row, "has another payload than its digest says")
            return
        wrapping = keys.get(wrapping_key_id(row.wrapped_key or b""))
        if wrapping is None:
            self.gone.append((row, Finding(row.position, "has lost the key of its user, and no fact says so")))
            return
        try:
            open_event(row, tenant=tenant, wrapping=wrapping)
        except CorruptEvent as error:
            self._found(row, error.problem)
            return
        self.opened += 1
        self._check_vectors(row, event_key(row, tenant=tenant, wrapping=wrapping), vectors)

    def _check_vectors(self, row: Row, key: bytes, vectors: Sequence[tuple[str, bytes]]) -> None:
        for model, sealed in vectors:
            self.vectors += 1
            try:
                derived.open_vector(sealed, tenant=self._keyring.tenant, event_id=row.event_id, key=key, model=model)
            except sealing.BadSeal:
                self._found(row, f"has a vector of {model} that does not open; scripts/rebuild makes it anew")

    def _found(self, row: Row, problem: str) -> None:
        self.findings.append(Finding(row.position, problem))


def _vectors(database: Database, tenant: int, page: Sequence[Row]) -> dict[int, list[tuple[str, bytes]]]:
    query = """SELECT position, model, sealed FROM memfold.embeddings
               WHERE tenant_id = %(tenant)s AND position BETWEEN %(first)s AND %(last)s"""
    found: dict[int, list[tuple[str, bytes]]] = {}
    for row in database.rows(query, {"tenant": tenant, "first": page[0].position, "last": page[-1].position}):
        found.setdefault(row.position, []).append((row.model, row.sealed))
    return found
