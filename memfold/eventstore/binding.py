"""Keys that die with what they were made from: a summary's is wrapped under one derived from the keys of all its sources.

For an event S bound to events e1 … en, the wrapping key is HKDF-SHA256 over the bind-subkeys of the keys of e1 … en in the
order of their ids, with the tenant and S as info. Nothing else wraps the key of S. So the moment one of those keys is
destroyed, S opens to nobody, nor does anything that is bound to S, at any depth, with no worker involved. Nothing can be
undone by it either: a bind-subkey tells nothing of the key it came from.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from memfold.errors import StoreUnavailable
from memfold.events import Event
from memfold.eventstore import arrays, reader, sealing
from memfold.eventstore.append import Answer, Request, Verdict, answers, columns, durably, fetch
from memfold.eventstore.codec import Row, SealedEvent, event_key, new_id, seal_event
from memfold.eventstore.database import Connection, Database
from memfold.eventstore.keyring import Keyring

SOURCE_GONE = "MF002"  # raised by append_bound, so that what it wrote is undone

_ARRAYS = ", ".join(["%b"] * 17)
APPEND_BOUND = f"SELECT verdict, version, recorded, positions FROM memfold.append_bound(%s, {_ARRAYS}, %b)"


class EventKey(NamedTuple):
    """An event's id, and its own key."""

    event_id: bytes
    key: bytes

    def __repr__(self) -> str:
        return "EventKey(…)"


def seal_bound(event: Event, *, tenant: int, stream: bytes, memory_id: bytes, sources: Sequence[EventKey]) -> SealedEvent:
    """Seal an event so that it opens only while the keys of all `sources` stand."""
    event_id = new_id()
    wrapping = bound_key(tenant, event_id, dict(sources))
    return seal_event(event, tenant=tenant, stream=stream, memory_id=memory_id, wrapping=wrapping, event_id=event_id)


def bound_key(tenant: int, event_id: bytes, sources: Mapping[bytes, bytes]) -> sealing.WrappingKey:
    """What wraps the key of the event `event_id`, bound to `sources`: the keys of other events, by their ids."""
    material = b"".join(sealing.subkey(sources[source], sealing.BIND) for source in sorted(sources))
    place = sealing.BOUND + tenant.to_bytes(8, "big", signed=True) + event_id
    return sealing.WrappingKey(sealing.derived_key(material, place), event_id, 0)


def append_bound(database: Database, tenant: int, request: Request, sources: Sequence[bytes]) -> Answer:
    """Append a request the key of whose first event is bound to the events `sources`, while all their keys stand.

    CONFLICT also if one of them was forgotten meanwhile. Raises as `append.durably`.
    """

    def write(connection: Connection, tenant: int, request: Request) -> Answer:
        row = fetch(connection, APPEND_BOUND, (tenant, *columns([request]), arrays.uuid_array(sources)))
        return answers([request], row)[0]

    try:
        return durably(database, tenant, request, write)
    except StoreUnavailable as error:
        if error.sqlstate == SOURCE_GONE:
            return Answer(Verdict.CONFLICT)
        raise


def opening_keys(
    database: Database, keyring: Keyring, rows: Iterable[Row], known: Mapping[bytes, sealing.WrappingKey] | None = None
) -> dict[bytes, sealing.WrappingKey]:
    """What the keys of these events are wrapped under, by id, besides what is `known`: keys of users, of the tenant, and bound.

    One that was destroyed, or lost something it was bound to, is missing.
    """
    known = known or {}
    held = {row.event_id: row for row in rows if row.wrapped_key}
    bound = [row for row in held.values() if row.sources and row.event_id not in known]
    if bound:
        _fetch_sources(database, keyring.tenant, held, bound)
    wanted = {sealing.wrapping_key_id(row.wrapped_key or b"") for row in held.values() if not row.sources} - known.keys()
    keys = keyring.wrapping_keys(wanted) if wanted else {}
    if bound:
        _bind(keyring.tenant, held, {**known, **keys}, keys)
    return keys


def source_ids(row: Row) -> list[bytes]:
    """The ids of the events that an event's key is bound to."""
    return [source.bytes for source in row.sources or ()]


def _fetch_sources(database: Database, tenant: int, held: dict[bytes, Row], bound: Sequence[Row]) -> None:
    """Add to `held` what `bound` is bound to, and what that is bound to, as far as it still has a key."""
    looked_for = set(held)
    while missing := sorted({source for row in bound for source in source_ids(row)} - looked_for):
        looked_for.update(missing)
        found = [row for row in reader.read_events(database, tenant, missing) if row.wrapped_key]
        held |= {row.event_id: row for row in found}
        bound = [row for row in found if row.sources]


def _bind(
    tenant: int, held: Mapping[bytes, Row], at_hand: dict[bytes, sealing.WrappingKey], keys: dict[bytes, sealing.WrappingKey]
) -> None:
    """Derive the keys of the bound events. What an event is bound to stands before it in the log."""
    opened: dict[bytes, bytes | None] = {}

    def key_of(event_id: bytes) -> bytes | None:
        if event_id not in opened:
            row = held.get(event_id)
            wrapping = at_hand.get(sealing.wrapping_key_id(row.wrapped_key or b"")) if row else None
            try:
                opened[event_id] = event_key(row, tenant=tenant, wrapping=wrapping) if row and wrapping else None
            except sealing.BadSeal:
                opened[event_id] = None  # whoever reads that event is told
        return opened[event_id]

    for row in sorted((row for row in held.values() if row.sources), key=lambda row: row.position):
        sources = {source: key_of(source) for source in source_ids(row)}
        living = {source: key for source, key in sources.items() if key is not None}
        if len(living) == len(sources):
            keys[row.event_id] = at_hand[row.event_id] = bound_key(tenant, row.event_id, living)
