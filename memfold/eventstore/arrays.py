"""Python lists as PostgreSQL arrays in binary, put together in one join.

psycopg's own list dumper spends about a microsecond an element, which for a batch of a thousand events in a dozen columns
is as much as PostgreSQL spends on storing them. The layout is that of `array_send` in PostgreSQL's arrayfuncs.c.
"""

import struct
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import cast

from psycopg import Connection
from psycopg.abc import DumperKey
from psycopg.adapt import Buffer, Dumper, PyFormat
from psycopg.pq import Format

BYTEA, INT2, INT4, INT8, UUID, TIMESTAMPTZ = 17, 21, 23, 20, 2950, 1184
_ARRAY_OF = {BYTEA: 1001, INT2: 1005, INT4: 1007, INT8: 1016, UUID: 2951, TIMESTAMPTZ: 1185}
_SIZE = {INT2: 2, INT4: 4, INT8: 8, TIMESTAMPTZ: 8}
_CODE = {INT2: "h", INT4: "i", INT8: "q", TIMESTAMPTZ: "q"}
_LENGTH = struct.Struct("!i").pack
_NULL = _LENGTH(-1)
_UUID_LENGTH = _LENGTH(16)

POSTGRES_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Raw:
    """A value that is already in PostgreSQL's binary form, with its type."""

    __slots__ = ("data", "oid")

    def __init__(self, data: bytes, oid: int) -> None:
        self.data = data
        self.oid = oid


class _RawDumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Raw) -> Buffer | None:
        return obj.data

    def get_key(self, obj: Raw, format: PyFormat) -> DumperKey:  # noqa: ARG002
        # psycopg only ever uses it as the key of a dict.
        return cast("DumperKey", (Raw, obj.oid))

    def upgrade(self, obj: Raw, format: PyFormat) -> "_RawDumper":  # noqa: ARG002
        dumper = _RawDumper(Raw)
        dumper.oid = obj.oid
        return dumper


def register(connection: Connection[object]) -> None:
    """Let `connection` take `Raw` values."""
    connection.adapters.register_dumper(Raw, _RawDumper)


def int8(value: int) -> Raw:
    """A whole number as a bigint."""
    return Raw(value.to_bytes(8, "big", signed=True), INT8)


def uuid(value: bytes) -> Raw:
    """16 bytes as a uuid."""
    return Raw(value, UUID)


def bytea_array(values: Sequence[bytes]) -> Raw:
    return _array(BYTEA, len(values), b"".join([_LENGTH(len(value)) + value for value in values]))


def uuid_array(values: Sequence[bytes | None]) -> Raw:
    parts = [_NULL if value is None else _UUID_LENGTH + value for value in values]
    return _array(UUID, len(values), b"".join(parts), nulls=None in values)


def int_array(values: Sequence[int], oid: int = INT4) -> Raw:
    count, size = len(values), _SIZE[oid]
    flat: list[int] = [size] * (2 * count)
    flat[1::2] = values
    return _array(oid, count, struct.pack(f"!{('i' + _CODE[oid]) * count}", *flat))


def timestamp_array(values: Iterable[datetime]) -> Raw:
    return int_array([(value - POSTGRES_EPOCH) // _MICROSECOND for value in values], TIMESTAMPTZ)


def _array(oid: int, count: int, body: bytes, *, nulls: bool = False) -> Raw:
    if not count:
        return Raw(struct.pack("!iii", 0, 0, oid), _ARRAY_OF[oid])
    return Raw(struct.pack("!iiiii", 1, int(nulls), oid, count, 1) + body, _ARRAY_OF[oid])
