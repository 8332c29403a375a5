"""Events to sealed bytes and back, at every schema version ever released.

`SealedEvent` is an event ready for the log: its header fields, sealed payload, digest and wrapped key. Nothing here asks
a database. An older schema version is brought up to date by a pure function named `upcast_<type>_v1_v2`; there is none yet.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

import msgspec
import uuid_utils

from memfold.errors import CorruptEvent
from memfold.events import NUMBERS, TYPES, Event
from memfold.eventstore import sealing

SCHEMA_VERSION = 1

encode = msgspec.msgpack.Encoder(order="deterministic").encode
_decode = {number: msgspec.msgpack.Decoder(event).decode for number, event in TYPES.items()}


class SealedEvent(NamedTuple):
    """One event as `append` stores it. `key` stays in this process; the log gets it wrapped."""

    event_id: bytes
    memory_id: bytes | None
    type_number: int
    schema_version: int
    digest: bytes
    payload: bytes
    wrapped_key: bytes
    key: bytes


class Row(NamedTuple):
    """One event as it is read back. `payload`, `wrapped_key` and `key_version` are None once the event is erased.

    `sources` are the events that its key is bound to (see `binding`), None for most; where `wrapped_key` is empty, one of them
    was forgotten.
    """

    position: int
    stream: bytes
    version: int
    event_id: bytes
    memory_id: bytes | None
    type_number: int
    schema_version: int
    recorded_at: datetime
    digest: bytes
    payload: bytes | None
    wrapped_key: bytes | None
    key_version: int | None
    sources: Sequence[UUID] | None = None


class LoggedEvent(NamedTuple):
    """An event as it stands in the log: its row, and its content, None once erased."""

    row: Row
    data: Event | None


def new_id() -> bytes:
    """A new UUIDv7 (RFC 9562) as 16 bytes: random, and roughly in order of time, which keeps indexes compact."""
    return uuid_utils.uuid7().bytes


def key_context(tenant: int, event_id: bytes) -> bytes:
    """The place an event's key belongs to."""
    return b"event" + tenant.to_bytes(8, "big", signed=True) + event_id


def seal_event(
    event: Event,
    *,
    tenant: int,
    stream: bytes,
    memory_id: bytes | None,
    wrapping: sealing.WrappingKey,
    event_id: bytes | None = None,
) -> SealedEvent:
    """Seal `event` under a fresh key, wrapped by `wrapping`. Equal events give unlike bytes."""
    event_id = event_id or new_id()
    number = NUMBERS[type(event)]
    header = sealing.event_header(tenant, event_id, stream, number, SCHEMA_VERSION)
    key = sealing.fresh_key()
    payload = sealing.seal(sealing.subkey(key, sealing.PAYLOAD), encode(event), header)
    wrapped = wrapping.wrap(key, key_context(tenant, event_id))
    return SealedEvent(event_id, memory_id, number, SCHEMA_VERSION, sealing.digest(header, payload), payload, wrapped, key)


def open_event(row: Row, *, tenant: int, wrapping: sealing.WrappingKey) -> Event:
    """Open a stored event that has not been erased.

    Raises:
        CorruptEvent: the key or the payload does not open, or the type or schema version is unknown.
    """
    if row.payload is None:
        raise CorruptEvent(row.position, "has a key but no payload")
    decode = _decode.get(row.type_number)
    if decode is None or row.schema_version > SCHEMA_VERSION:
        raise CorruptEvent(row.position, "is of a type or schema version this memfold does not know")
    header = sealing.event_header(tenant, row.event_id, row.stream, row.type_number, row.schema_version)
    try:
        key = event_key(row, tenant=tenant, wrapping=wrapping)
        return decode(sealing.unseal(sealing.subkey(key, sealing.PAYLOAD), row.payload, header))
    except sealing.BadSeal as error:
        raise CorruptEvent(row.position, "does not open with its key") from error
    except msgspec.DecodeError as error:
        raise CorruptEvent(row.position, "opens to something that is no event") from error


def event_key(row: Row, *, tenant: int, wrapping: sealing.WrappingKey) -> bytes:
    """The event's own key; BadSeal if `wrapping` did not wrap it."""
    return wrapping.unwrap(row.wrapped_key or b"", key_context(tenant, row.event_id))


def type_name(number: int) -> str:
    """The name of an event type, by its number in the spine."""
    event = TYPES.get(number)
    return event.__name__ if event else f"Unknown{number}"
