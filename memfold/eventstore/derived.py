"""What is derived from single events and kept beside them: sealed vectors; and how far a follower of the log has come.

A vector is sealed under a subkey of its event's own key and stored only while that key stands, so it dies with its event.
It is stored once for each (event, model). Everything here could be made anew from the log.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

from memfold.events import NUMBERS, MemoryMerged, MemoryRemembered, MemoryUpdated, WindowCompressed
from memfold.eventstore import arrays, sealing
from memfold.eventstore.append import fetch
from memfold.eventstore.database import Connection, Database

EMBEDDED_TYPES = [NUMBERS[each] for each in (MemoryRemembered, MemoryUpdated, MemoryMerged, WindowCompressed)]
"""The events that have a vector: each that gives a memory its words, or may change them."""

# The range is written on all three tables, and loops are not nested (`_merged`): PostgreSQL plans for the tables as they were
# when it last looked, and a nested loop over the vectors of all events for every event does not end.
WAITING = """
FROM memfold.events e
JOIN memfold_keys.keys k ON k.tenant_id = %(tenant)s AND k.position > %(after)s AND k.position <= %(upto)s
    AND k.position = e.position AND k.wrapped <> ''
WHERE e.tenant_id = %(tenant)s AND e.position > %(after)s AND e.position <= %(upto)s AND e.type = ANY(%(types)s)
AND (%(stream)s::uuid IS NULL OR e.stream_id = %(stream)s)
AND NOT EXISTS (
    SELECT FROM memfold.embeddings v WHERE v.tenant_id = %(tenant)s AND v.model = %(model)s
    AND v.position > %(after)s AND v.position <= %(upto)s AND v.position = e.position
)"""
END_OF_LOG = 2**63 - 1


def seal_vector(vector: bytes, *, tenant: int, event_id: bytes, key: bytes, model: str) -> bytes:
    """Seal a vector under the subkey of its event's `key` that is for this model."""
    return sealing.seal(sealing.subkey(key, sealing.vector_label(model)), vector, _place(tenant, event_id))


def open_vector(sealed: bytes, *, tenant: int, event_id: bytes, key: bytes, model: str) -> bytes:
    """Open what `seal_vector` made; sealing.BadSeal if it is not that, or was changed."""
    return sealing.unseal(sealing.subkey(key, sealing.vector_label(model)), sealed, _place(tenant, event_id))


def store_embeddings(database: Database, tenant: int, model: str, positions: Sequence[int], sealed: Sequence[bytes]) -> int:
    """Store a sealed vector a position, only where the event's key still stands; return how many.

    Storing again changes nothing.
    """
    return _call(database, "SELECT memfold.store_embeddings(%s, %s, %b, %b)", tenant, model, positions, sealed)


def replace_embeddings(database: Database, tenant: int, model: str, positions: Sequence[int], sealed: Sequence[bytes]) -> int:
    """Put sealed vectors in the place of those stored at these positions; return how many there were."""
    return _call(database, "SELECT memfold.replace_embeddings(%s, %s, %b, %b)", tenant, model, positions, sealed)


def stored_embeddings(database: Database, tenant: int, model: str, positions: Sequence[int]) -> dict[int, bytes]:
    """The sealed vectors that are stored for these positions."""
    query = "SELECT position, sealed FROM memfold.embeddings WHERE tenant_id = %s AND position = ANY(%b) AND model = %s"
    parameters = (tenant, arrays.int_array(positions, arrays.INT8), model)

    def read(connection: Connection) -> dict[int, bytes]:
        with connection.cursor(binary=True) as cursor:
            return dict(cursor.execute(query, parameters).fetchall())

    return database.read(read) if positions else {}


def stored_sizes(database: Database, tenant: int, model: str) -> set[int]:
    """How many bytes the vectors have that are stored under this name, by a sample of them; empty if there are none."""
    query = """SELECT DISTINCT length(sealed) - %s::int AS size FROM
               (SELECT sealed FROM memfold.embeddings WHERE tenant_id = %s AND model = %s LIMIT 100) sample"""
    return {row.size for row in database.rows(query, (sealing.SEAL_BYTES, tenant, model))}


def waiting(database: Database, tenant: int, model: str, *, after: int, stream: bytes | None = None) -> int:
    """How many living events behind `after`, of one stream or of all, have no vector of this model."""
    parameters = _waiting(tenant, model, after, END_OF_LOG, stream)
    return int(_merged(database, "SELECT count(*)" + WAITING, parameters)[0][0])


def waiting_positions(database: Database, tenant: int, model: str, *, after: int, upto: int, limit: int) -> list[int]:
    """The first of the living events with `after` < position <= `upto` that have no vector of this model."""
    parameters = _waiting(tenant, model, after, upto, None) | {"limit": limit}
    query = f"SELECT e.position {WAITING} ORDER BY e.position LIMIT %(limit)s"
    return [position for (position,) in _merged(database, query, parameters)]


def _merged(database: Database, query: str, parameters: dict[str, object]) -> list[tuple[Any, ...]]:
    def read(connection: Connection) -> list[tuple[Any, ...]]:
        with connection.transaction():
            connection.execute("SET LOCAL enable_nestloop = off")
            return connection.execute(query, parameters).fetchall()

    return database.read(read)


def _waiting(tenant: int, model: str, after: int, upto: int, stream: bytes | None) -> dict[str, object]:
    return {
        "tenant": tenant,
        "after": after,
        "upto": upto,
        "types": arrays.int_array(EMBEDDED_TYPES, arrays.INT2),
        "stream": arrays.uuid(stream) if stream else None,
        "model": model,
    }


def checkpoint(database: Database, tenant: int, name: str) -> int:
    """The position up to which the follower of this name is done; 0 if it never was here."""
    row = database.row("SELECT position FROM memfold.checkpoints WHERE tenant_id = %s AND name = %s", (tenant, name))
    return row.position if row else 0


def move_checkpoint(database: Database, tenant: int, name: str, *, before: int, after: int) -> bool:
    """Move a checkpoint from `before` to `after`; False if somebody else moved it meanwhile."""
    return database.read(lambda connection: move_checkpoint_on(connection, tenant, name, before=before, after=after))


def move_checkpoint_on(connection: Connection, tenant: int, name: str, *, before: int, after: int) -> bool:
    """The same within the transaction of a connection, until whose end nobody else can move it."""
    return bool(fetch(connection, "SELECT memfold.move_checkpoint(%s, %s, %s, %s)", (tenant, name, before, after))[0])


def try_lock(connection: Connection, tenant: int, name: str) -> bool:
    """Take a follower's lease, for as long as this connection lives; False if another connection has it.

    Taking what one has is harmless.
    """
    return bool(fetch(connection, "SELECT pg_try_advisory_lock(%s)", (_lock_number(tenant, name),))[0])


def is_locked(database: Database, tenant: int, name: str) -> bool:
    """Whether anybody has a follower's lease."""
    number = _lock_number(tenant, name) % 2**64
    query = """SELECT EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND granted AND objsubid = 1
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
        AND classid::bigint = %s AND objid::bigint = %s) AS found"""
    return bool(database.row(query, (number >> 32, number % 2**32)).found)


def unlock(connection: Connection) -> None:
    """Give back every lease this connection has."""
    fetch(connection, "SELECT pg_advisory_unlock_all()", ())


def _lock_number(tenant: int, name: str) -> int:
    return int.from_bytes(sha256(f"memfold follower {tenant} {name}".encode()).digest()[:8], "big", signed=True)


def _call(  # noqa: PLR0917
    database: Database, query: str, tenant: int, model: str, positions: Sequence[int], sealed: Sequence[bytes]
) -> int:
    parameters = (tenant, model, arrays.int_array(positions, arrays.INT8), arrays.bytea_array(sealed))
    return int(database.read(lambda connection: fetch(connection, query, parameters)[0]))


def _place(tenant: int, event_id: bytes) -> bytes:
    return b"vector" + tenant.to_bytes(8, "big", signed=True) + event_id
