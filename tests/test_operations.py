"""Replay, rebuild and audit: they tell the truth about a sound store, and find every way in which one is not."""

import psycopg
import pytest

from memfold.api import operations
from memfold.eventstore import arrays
from memfold.minilm import MiniLMEmbedder


@pytest.fixture
def owner(server_url):
    """A login that may do what no program of memfold may."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        arrays.register(connection)
        connection.execute("SET session_replication_role = replica")
        yield connection


@pytest.fixture
def filled(store):
    """A session of four memories, one updated and one forgotten, another that was forgotten, and a user who was."""
    kept = [store.remember(f"tea number {number}", session_id="kept", speaker="Anna") for number in range(4)]
    store.update(kept[0].id, content="green tea")
    store.forget(kept[1].id)
    store.remember("coffee", session_id="gone")
    store.forget_session("gone")
    store.remember("milk", session_id="hers", user_id="bea")
    store.forget_user("bea")
    store.flush(30)
    return store


def findings(store):
    return [finding.problem for finding in operations.audit(store, [], None).log.findings]


def position_of(store, content):
    return next(event.position for event in store.events() if event.data and getattr(event.data, "content", None) == content)


def change(owner, store, query, position):
    assert owner.execute(query, (store._keyring.tenant, position)).rowcount == 1


def test_an_audit_of_a_sound_store_finds_nothing_and_lists_every_erasure(filled):
    found = operations.audit(filled, [], None)

    assert found.ok
    assert found.log.findings == []
    assert [erasure.scope for erasure in found.log.erasures] == ["memory", "session", "session", "user"]
    assert found.log.events == filled.stats().events + 5  # the forgotten sessions' events, and the tenant's own
    assert (found.log.erased, found.log.vectors) == (3, 4)
    assert found.log.events == found.log.opened + found.log.erased


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("UPDATE memfold.payloads SET sealed = sealed || 'x' WHERE tenant_id = %s AND position = %s", "another payload"),
        ("UPDATE memfold.events SET digest = 'x' WHERE tenant_id = %s AND position = %s", "another payload"),
        ("DELETE FROM memfold.payloads WHERE tenant_id = %s AND position = %s", "lost its payload"),
        ("DELETE FROM memfold_keys.keys WHERE tenant_id = %s AND position = %s", "lost its key"),
        ("UPDATE memfold_keys.keys SET wrapped = wrapped || 'x' WHERE tenant_id = %s AND position = %s", "does not open"),
        ("UPDATE memfold_keys.keys SET wrapped = 'x' WHERE tenant_id = %s AND position = %s", "lost the key of its user"),
        ("UPDATE memfold.events SET version = 77 WHERE tenant_id = %s AND position = %s", "version 77"),
        ("DELETE FROM memfold.events WHERE tenant_id = %s AND position = %s", "was next"),
        ("DELETE FROM memfold.events WHERE tenant_id = %s AND position = %s", "belongs to nothing"),
        ("UPDATE memfold.embeddings SET sealed = 'x' WHERE tenant_id = %s AND position = %s", "vector of"),
    ],
)  # fmt: skip
def test_an_audit_finds_what_was_tampered_with(filled, owner, query, problem):
    change(owner, filled, query, position_of(filled, "tea number 2"))
    assert any(problem in found for found in findings(filled))
    assert not operations.audit(filled, [], None).ok


@pytest.mark.parametrize("what", ["payload", "key", "vector"])
def test_an_audit_finds_what_was_put_back_behind_a_forget(filled, owner, what):
    tenant = filled._keyring.tenant
    forgotten = next(event.position for event in filled.events() if event.type == "MemoryRemembered" and event.data is None)
    query = {
        "payload": "INSERT INTO memfold.payloads VALUES (%s, %s, 'x')",
        "key": "INSERT INTO memfold_keys.keys VALUES (%s, %s, 1, 1, NULL, 'x')",
        "vector": "INSERT INTO memfold.embeddings VALUES (%s, %s, 'm', 'x')",
    }[what]
    owner.execute(query, (tenant, forgotten))
    assert f"was forgotten, and its {what} is still there" in findings(filled)


def test_an_audit_looks_for_canaries_and_names_where_they_are(filled, tmp_path):
    (tmp_path / "dump.sql").write_text("… my canary Platypus …")
    found = operations.audit(filled, ["canary Platypus"], tmp_path)
    assert not found.ok
    assert [hit.partition(" as ")[0] for hit in found.residue.hits] == ["canary 1"]
    assert operations.audit(filled, ["canary Wombat"], tmp_path).ok
    assert list(operations.told(found))[-1] == "NOT SOUND"


def test_a_rebuild_of_a_sound_store_finds_every_session_the_same(filled):
    made = list(operations.rebuild(filled, None, vectors=True))
    assert [session.session_id for session in made] == ["kept"]
    assert made[0].sound
    assert (made[0].memories, made[0].vectors, made[0].missing) == (3, 4, 0)
    assert made[0].cosine == pytest.approx(1, abs=1e-6)


def test_a_rebuild_mends_what_is_wrong_with_vectors(filled, owner):
    before = [hit.score for hit in filled.recall("green tea", session_id="kept")]
    where = position_of(filled, "tea number 2")
    change(owner, filled, "UPDATE memfold.embeddings SET sealed = 'x' WHERE tenant_id = %s AND position = %s", where)
    where = position_of(filled, "tea number 3")
    change(owner, filled, "DELETE FROM memfold.embeddings WHERE tenant_id = %s AND position = %s", where)

    (made,) = operations.rebuild(filled, None, vectors=True)

    assert (made.vectors, made.missing, made.sound) == (4, 2, True)
    assert operations.audit(filled, [], None).ok
    assert [hit.score for hit in filled.recall("green tea", session_id="kept")] == before


def test_a_rebuild_with_another_model_leaves_the_first_ones_vectors(filled, make_store):
    (made,) = operations.rebuild(make_store(embedder=MiniLMEmbedder()), "kept", vectors=True)
    assert (made.vectors, made.missing, made.cosine) == (4, 4, None)
    (made,) = operations.rebuild(filled, "kept", vectors=False)
    assert (made.vectors, made.sound) == (0, True)


def test_a_live_view_that_differs_from_the_log_is_found(filled):
    with filled._views.session("kept") as view:
        view.table._db.execute("UPDATE memories SET content = 'something else' WHERE row = (SELECT max(row) FROM memories)")
    (made,) = operations.rebuild(filled, None, vectors=False)
    assert not made.sound


def test_a_rebuild_of_a_session_that_never_was_says_nothing(filled):
    assert list(operations.rebuild(filled, "nobody's", vectors=True)) == []


def test_a_replay_prints_a_range_of_the_log(filled):
    whole = list(filled.events())
    told = list(operations.replay(filled, None, whole[1].position, whole[4].position))
    assert told == whole[2:5]


def test_a_fold_up_to_a_position_is_what_the_store_held_then(filled):
    whole = list(filled.events(session_id="kept"))
    held = list(operations.fold(filled, "kept", 0, whole[3].position))
    assert [memory.content for memory in held] == ["tea number 0", "tea number 2", "tea number 3"]
    held = list(operations.fold(filled, None, 0, None))
    assert held == filled.find("kept", order="oldest").memories
    assert list(operations.fold(filled, "nobody's", 0, None)) == []
