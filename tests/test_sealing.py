"""Keys and seals: what opens, what does not, and that stored payloads of every version ever released still open."""

import hmac
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfold.errors import CorruptEvent, KeyUnavailable
from memfold.events import (
    NUMBERS,
    TYPES,
    MemoriesArchived,
    MemoriesRefreshed,
    MemoriesRestored,
    MemoryForgotten,
    MemoryMerged,
    MemoryRemembered,
    MemoryUpdated,
    PolicySet,
    SessionForgotten,
    UserForgotten,
    WindowCompressed,
)
from memfold.eventstore import sealing
from memfold.eventstore.binding import bound_key
from memfold.eventstore.codec import Row, open_event, seal_event
from memfold.eventstore.keyservice import LocalKeyService, create_key_file, parse_master_key, read_key_file
from memfold.policies import Keep, Policy, Retention, Windows

GOLDEN = Path(__file__).parent / "golden"
KEY = bytes(range(32))
WRAPPING = sealing.WrappingKey(KEY, b"u" * 16, 1)
EVENTS = [
    MemoryRemembered(content="tea"),
    MemoryRemembered(
        content="t",
        role="user",
        speaker="Ann",
        category="fact",
        importance=0.75,
        tags=("a", "b"),
        metadata={"n": [1, 2.5, None, True, {"x": "y"}], "big": 2**63 - 1},
        occurred_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    ),
    MemoryUpdated(content="green tea", role=None, metadata={}),
    MemoryMerged(content="green tea", speaker="Ann", tags=("b",), metadata={"n": 1}, importance=1.0),
    MemoryForgotten(reason="user_request"),
    MemoryForgotten(),
    SessionForgotten(),
    UserForgotten(streams=("a",)),
    WindowCompressed(
        content="tea",
        sources=("a", "b"),
        occurred_at=datetime(2026, 1, 2, tzinfo=UTC),
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
        summarizer="extractive-1",
        policy=3,
        tokens_before=40,
        tokens_after=10,
        cost=0.25,
    ),
    MemoriesArchived(memory_ids=("a", "b"), summary_id="s", policy=3),
    MemoriesArchived(memory_ids=("a",)),
    MemoriesRestored(memory_ids=("a",), undone=("s",)),
    MemoriesRefreshed(memory_ids=("a",)),
    PolicySet(policy=Policy(windows=Windows(older_than=timedelta(days=7)), keep=Keep(importance_min=None)), stream="s"),
    PolicySet(policy=Policy(retention=Retention(ttl={"mood": timedelta(hours=36)})), category="fact"),
    PolicySet(),
]


def as_row(sealed, *, stream=b"s" * 16, **changes):
    values = {
        "position": 1,
        "stream": stream,
        "version": 1,
        "event_id": sealed.event_id,
        "memory_id": sealed.memory_id,
        "type_number": sealed.type_number,
        "schema_version": sealed.schema_version,
        "recorded_at": datetime(2026, 1, 1, tzinfo=UTC),
        "digest": sealed.digest,
        "payload": sealed.payload,
        "wrapped_key": sealed.wrapped_key,
        "key_version": 1,
    }
    return Row(**values | changes)


def seal(event, stream=b"s" * 16):
    return seal_event(event, tenant=7, stream=stream, memory_id=b"m" * 16, wrapping=WRAPPING)


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_a_sealed_event_opens_to_the_same_event(event):
    assert open_event(as_row(seal(event)), tenant=7, wrapping=WRAPPING) == event


@pytest.mark.parametrize(
    "changes",
    [
        {"stream": b"t" * 16},
        {"event_id": b"e" * 16},
        {"type_number": 2},
        {"wrapped_key": seal(EVENTS[0]).wrapped_key},
        {"payload": seal(EVENTS[0]).payload},
        {"payload": b""},
        {"payload": None},
        {"wrapped_key": b""},
        {"schema_version": 99},
        {"type_number": 99},
    ],
    ids=str,
)
def test_a_payload_that_was_moved_or_changed_does_not_open(changes):
    with pytest.raises(CorruptEvent):
        open_event(as_row(seal(EVENTS[0]))._replace(**changes), tenant=7, wrapping=WRAPPING)


def test_another_tenant_or_key_or_key_version_opens_nothing():
    row = as_row(seal(EVENTS[0]))
    with pytest.raises(CorruptEvent):
        open_event(row, tenant=8, wrapping=WRAPPING)
    for other in (
        sealing.WrappingKey(bytes(32), b"u" * 16, 1),
        sealing.WrappingKey(KEY, b"v" * 16, 1),
        sealing.WrappingKey(KEY, b"u" * 16, 2),
    ):
        with pytest.raises(CorruptEvent):
            open_event(row, tenant=7, wrapping=other)


@given(st.integers(0, 200), st.integers(0, 7))
def test_a_flipped_bit_anywhere_is_noticed(place, bit):
    sealed = seal(EVENTS[1])
    payload = bytearray(sealed.payload)
    payload[place % len(payload)] ^= 1 << bit
    with pytest.raises(CorruptEvent):
        open_event(as_row(sealed, payload=bytes(payload)), tenant=7, wrapping=WRAPPING)
    assert sealing.digest(b"h", bytes(payload)) != sealing.digest(b"h", sealed.payload)


def test_equal_events_give_unlike_bytes():
    one, other = seal(EVENTS[0]), seal(EVENTS[0])
    assert one.payload != other.payload
    assert one.wrapped_key != other.wrapped_key
    assert one.digest != other.digest
    assert b"tea" not in one.payload


def test_the_subkey_is_hkdf_expand_of_rfc_5869():
    for purpose in (sealing.PAYLOAD, sealing.COMMITMENT, sealing.BIND, sealing.NAME, sealing.vector_label("m")):
        assert sealing.subkey(KEY, purpose) == hmac.digest(KEY, purpose + b"\x01", "sha256")


def test_subkeys_of_unlike_purposes_are_unlike():
    purposes = [sealing.PAYLOAD, sealing.COMMITMENT, sealing.BIND, sealing.NAME, sealing.LOOKUP]
    purposes += [sealing.vector_label("a"), sealing.vector_label("b")]
    assert len({sealing.subkey(KEY, purpose) for purpose in purposes}) == len(purposes)


def test_keyed_hashes_do_not_run_together():
    assert sealing.keyed_hash(KEY, b"ab", b"c") != sealing.keyed_hash(KEY, b"a", b"bc")


def test_a_wrapped_blob_begins_with_its_format_and_the_id_of_its_key():
    wrapped = seal(EVENTS[0]).wrapped_key
    assert wrapped[:1] == sealing.WRAPPED_1
    assert sealing.wrapping_key_id(wrapped) == b"u" * 16


def test_no_repr_shows_a_key():
    assert KEY.hex() not in repr(WRAPPING) + repr(LocalKeyService(KEY))


def test_a_key_service_opens_only_its_own_and_only_in_its_place():
    service = LocalKeyService(KEY)
    blob = service.wrap(b"k" * 32, context=b"user 1")
    assert service.unwrap(blob, context=b"user 1") == b"k" * 32
    for other, context in ((service, b"user 2"), (LocalKeyService(bytes(32)), b"user 1")):
        with pytest.raises(KeyUnavailable):
            other.unwrap(blob, context=context)


def test_a_key_file_is_private_made_once_and_read_back(tmp_path):
    path = tmp_path / "master.key"
    assert read_key_file(path) is None
    key = create_key_file(path)
    assert (len(key), path.stat().st_mode & 0o777) == (32, 0o600)
    assert create_key_file(path) == key == read_key_file(path)
    assert [file.name for file in tmp_path.iterdir()] == ["master.key"]


def test_a_key_file_that_others_can_read_is_refused(tmp_path):
    path = tmp_path / "master.key"
    create_key_file(path)
    path.chmod(0o644)
    with pytest.raises(KeyUnavailable, match="chmod 600"):
        read_key_file(path)


@pytest.mark.parametrize("text", ["", "tea", "é" * 43])
def test_a_key_file_of_something_else_is_refused(tmp_path, text):
    path = tmp_path / "master.key"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(KeyUnavailable):
        read_key_file(path)


def test_a_master_key_is_read_with_and_without_padding():
    text = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8"
    assert parse_master_key(text) == parse_master_key(text + "=") == KEY


def test_types_and_numbers_are_one_to_one():
    assert {number: event for event, number in NUMBERS.items()} == TYPES


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.json")), ids=lambda path: path.stem)
def test_stored_payloads_of_every_version_still_open(path):
    stored = json.loads(path.read_text())
    sources = {bytes.fromhex(event_id): bytes.fromhex(key) for event_id, key in stored.get("bound_to", {}).items()}
    wrapping = bound_key(stored["tenant"], bytes.fromhex(stored["event_id"]), sources) if sources else WRAPPING
    row = Row(
        position=1,
        stream=bytes.fromhex(stored["stream"]),
        version=1,
        event_id=bytes.fromhex(stored["event_id"]),
        memory_id=None,
        type_number=stored["type"],
        schema_version=stored["schema_version"],
        recorded_at=datetime(2026, 1, 1, tzinfo=UTC),
        digest=bytes.fromhex(stored["digest"]),
        payload=bytes.fromhex(stored["payload"]),
        wrapped_key=bytes.fromhex(stored["wrapped_key"]),
        key_version=wrapping.version,
    )
    event = open_event(row, tenant=stored["tenant"], wrapping=wrapping)
    assert type(event).__name__ == stored["name"]
    found = {name: getattr(event, name) for name in stored["fields"]}
    assert json.loads(msgspec.json.encode(found)) == stored["fields"]
    header = sealing.event_header(stored["tenant"], row.event_id, row.stream, row.type_number, row.schema_version)
    assert sealing.digest(header, row.payload) == row.digest


def test_every_event_type_has_a_golden_payload():
    assert {json.loads(path.read_text())["name"] for path in GOLDEN.glob("*.json")} == {event.__name__ for event in NUMBERS}
