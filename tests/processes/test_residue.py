"""Canaries: words that must not be found in any byte of the data folder, before forgetting or after."""

import base64
import json
import secrets
from datetime import UTC, datetime
from urllib.parse import quote

import psycopg
import pytest

from memfold import FilterError, IdempotencyConflict, MemoryStore, SessionOwnerConflict
from memfold.audit import residue
from memfold.eventstore import embedded

PLACES = [
    *("content", "changed content", "metadata key", "metadata value", "nested value", "tag", "category", "role", "speaker"),
    *(
        "session",
        "user",
        "idempotency key",
        "query",
        "filter value",
        "filter key",
        "forgotten content",
        "refused content",
        "batch",
    ),
]


@pytest.mark.parametrize(
    "form",
    [
        lambda word: word.encode(),
        lambda word: word.encode("utf-16-le"),
        lambda word: word.encode("utf-16-be"),
        lambda word: word.encode().hex().encode(),
        lambda word: word.encode().hex().upper().encode(),
        lambda word: json.dumps(word).encode(),
        lambda word: quote(word).encode(),
        lambda word: base64.b64encode(word.encode()),
        lambda word: base64.b64encode(b"x" + word.encode() + b"tail"),
        lambda word: base64.b64encode(b"xy" + word.encode() + b"t"),
    ],
)
def test_a_planted_word_is_found_in_every_form_also_across_borders(tmp_path, monkeypatch, form):
    monkeypatch.setattr(residue, "CHUNK_BYTES", 64)
    word = "Plöver-" + secrets.token_hex(6)
    for before in range(0, 130, 7):
        (tmp_path / "file").write_bytes(b"\xfe" * before + form(word) + b"\xfe" * 50)
        assert residue.scan(tmp_path, [word]).hits, before


def test_a_word_that_is_not_there_is_not_found(tmp_path):
    (tmp_path / "file").write_bytes(secrets.token_bytes(100_000))
    found = residue.scan(tmp_path, ["plover-not-here"])
    assert (found.hits, found.files) == ([], 1)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_scan_that_does_not_see_its_own_word_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(residue, "_files", lambda folder: iter(()))
    with pytest.raises(residue.ScanFailed):
        residue.scan(tmp_path, ["plover-not-here"])


def test_a_short_canary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="six"):
        residue.scan(tmp_path, ["tea"])


def test_nothing_anybody_said_is_readable_on_disk_before_or_after_forgetting(tmp_path):
    folder = tmp_path / "store"
    canary = {place: f"kx{secrets.token_hex(10)}" for place in PLACES}
    with MemoryStore(folder) as store:
        session, user = canary["session"], canary["user"]
        memory = store.remember(
            f"the code is {canary['content']} today",
            session_id=session,
            user_id=user,
            role=canary["role"],
            speaker=canary["speaker"],
            category=canary["category"],
            tags=[canary["tag"]],
            metadata={canary["metadata key"]: canary["metadata value"], "a": {"b": [canary["nested value"]]}},
            occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
            idempotency_key=canary["idempotency key"],
        )
        store.update(memory.id, content=canary["changed content"], idempotency_key=canary["idempotency key"] + "2")
        forgotten = store.remember(canary["forgotten content"], session_id=session)
        store.remember_many([f"{canary['batch']} {number}" for number in range(500)], session_id=session)
        store.recall(canary["query"] + " code", session_id=session, where={canary["filter key"]: canary["filter value"]})
        with pytest.raises(FilterError):
            store.find(session, where={canary["filter key"]: {"$bad": canary["filter value"]}})
        with pytest.raises(SessionOwnerConflict):
            store.remember(canary["refused content"], session_id=session, user_id="another")
        with pytest.raises(IdempotencyConflict):
            store.remember(canary["refused content"], session_id=session, idempotency_key=canary["idempotency key"])
        # Errors of the server, which are logged: cut a connection, break a rule.
        with psycopg.connect(embedded.attach(folder).url, autocommit=True) as owner:
            with pytest.raises(psycopg.Error):
                owner.execute("DELETE FROM memfold.events")
            owner.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"""
            )
            store.remember(canary["batch"], session_id=session)
            owner.execute("CHECKPOINT")
            before = residue.scan(folder, canary.values())
            assert before.files > 100
            assert before.hits == []

            store.forget(forgotten.id)
            store.forget_where(session, {"role": canary["role"]})
            store.forget_session(session)
            store.forget_user(user)
            owner.execute("CHECKPOINT")
        after = residue.scan(folder, canary.values())
        assert after.hits == []
    embedded.stop(folder, force=True)
    assert residue.scan(folder, canary.values()).hits == []
