"""The log's own promises: an immutable spine, a role that can only call functions, digests, the schema as declared."""

import threading
import uuid

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import NullPool, create_engine

from memfold import CorruptEvent
from memfold.events import MemoryRemembered
from memfold.eventstore import arrays, derived, migrating, reader, schema, sealing
from memfold.eventstore.append import NO_DECISION, Committer, Request, Verdict
from memfold.eventstore.codec import new_id, seal_event
from memfold.eventstore.database import open_database
from memfold.settings import Settings


def request_for(store, ref, count=1, **options):
    events = [
        seal_event(
            MemoryRemembered(content=f"tea {number}"),
            tenant=store._keyring.tenant,
            stream=ref.stream,
            memory_id=new_id(),
            wrapping=ref.key,
        )
        for number in range(count)
    ]
    return Request(ref.stream, ref.user, ref.key.version, store._writer._clock(), events, **options)


@pytest.fixture
def ref(store):
    store.remember("first", session_id="s")
    return store._keyring.find_session("s")


@pytest.fixture
def committer(store):
    return store._writer._committer


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE memfold.events SET digest = ''",
        "DELETE FROM memfold.events",
        "TRUNCATE memfold.events",
        "TRUNCATE memfold.events CASCADE",
    ],
)
def test_not_even_the_owner_changes_the_spine(store, server_url, statement):
    store.remember("tea", session_id="s")
    with psycopg.connect(server_url) as owner, pytest.raises(psycopg.errors.RestrictViolation, match="immutable"):
        owner.execute(statement)
    assert store.count("s") == 1


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO memfold.payloads VALUES (1, 1, '')",
        "DELETE FROM memfold.payloads",
        "DELETE FROM memfold_keys.keys",
        "UPDATE memfold.heads SET version = 0",
        "DELETE FROM memfold.sessions",
        "SELECT nextval('memfold.position')",
        "SELECT setval('memfold.position', 1)",
        "SELECT memfold.destroy(1, '{1}')",
        "ALTER TABLE memfold.events DISABLE TRIGGER ALL",
        "DROP TABLE memfold.events",
        "CREATE TABLE memfold.x (y int)",
    ],
)
def test_the_application_role_can_only_call_and_read(store, statement):
    with store._database.connection() as connection:
        assert connection.execute("SELECT current_user").fetchone() == ("memfold_app",)
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(statement)


def test_no_transaction_of_ours_can_hold_the_settled_position_back_for_ever(store):
    with store._database.connection() as connection:
        shown = {
            name: connection.execute("SELECT current_setting(%s, true)", (name,)).fetchone()[0]
            for name in (
                "statement_timeout",
                "transaction_timeout",
                "idle_in_transaction_session_timeout",
                "synchronous_commit",
            )
        }
        assert connection.autocommit
        if connection.info.server_version >= 170000:
            assert shown["transaction_timeout"] == "2min"
    assert (shown["statement_timeout"], shown["idle_in_transaction_session_timeout"], shown["synchronous_commit"]) == (
        "1min",
        "5s",
        "on",
    )


def test_the_tables_are_as_declared(server_url, store):
    engine = create_engine(
        "postgresql+psycopg://", creator=lambda: psycopg.connect(server_url), poolclass=NullPool, use_native_hstore=False
    )
    with engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_schemas": True,
                "compare_server_default": False,
                "include_name": lambda name, kind, parents: (
                    name in ("memfold", "memfold_keys") if kind == "schema" else name != "alembic_version"
                ),
            },
        )
        assert compare_metadata(context, schema.metadata) == []


def test_every_key_is_led_by_the_tenant():
    for table in schema.metadata.tables.values():
        if table.name in ("master", "tenants"):
            continue
        # A GIN index takes no number beside its arrays without an extension; it serves a search, and orders nothing.
        ordered = [index for index in table.indexes if index.dialect_kwargs.get("postgresql_using") != "gin"]
        for columns in [table.primary_key.columns, *(index.columns for index in ordered)]:
            assert next(iter(columns)).name == "tenant_id", table.name
    assert all(not table.foreign_keys for table in schema.metadata.tables.values())


def test_every_digest_matches_its_payload(store):
    store.remember_many(["a", "b", "c"], session_id="s")
    tenant = store._keyring.tenant
    rows = [row for page in reader.read_log(store._database, tenant, 0, 2**62) for row in page]
    for row in rows:
        header = sealing.event_header(tenant, row.event_id, row.stream, row.type_number, row.schema_version)
        assert sealing.digest(header, row.payload) == row.digest


def test_spine_vault_and_keyring_are_complete_and_versions_dense(store, committer, ref):
    for count in (1, 3, 200):
        assert committer.append(request_for(store, ref, count)).verdict is Verdict.ACCEPTED
    rows = reader.read_stream(store._database, store._keyring.tenant, ref.stream)
    assert [row.version for row in rows] == list(range(1, 206))
    assert all(row.payload and row.wrapped_key for row in rows)
    assert [row.position for row in rows] == sorted(row.position for row in rows)


def test_a_batch_keeps_payloads_keys_and_headers_together(store, committer, ref):
    request = request_for(store, ref, 50)
    answer = committer.append(request)
    rows = reader.read_stream(store._database, store._keyring.tenant, ref.stream, answer.version - 1)
    for event, position, row in zip(request.events, answer.positions, rows, strict=True):
        assert (row.position, row.event_id, row.payload, row.wrapped_key) == (
            position,
            event.event_id,
            event.payload,
            event.wrapped_key,
        )


def test_a_flush_judges_each_request_by_itself(store, ref):
    from memfold.eventstore.append import call

    good, other = request_for(store, ref, 2), request_for(store, ref, 3)
    gone = request_for(store, ref)
    gone.stream = bytes(16)
    wrong_key = request_for(store, ref)
    wrong_key.key_version = 2
    with store._database.connection() as connection:
        answers = call(connection, store._keyring.tenant, [gone, good, wrong_key, other])
    assert [answer.verdict for answer in answers] == [Verdict.STREAM_GONE, Verdict.ACCEPTED, Verdict.KEY_GONE, Verdict.ACCEPTED]
    rows = reader.read_stream(store._database, store._keyring.tenant, ref.stream, 1)
    assert [row.payload for row in rows] == [event.payload for event in [*good.events, *other.events]]
    assert [row.wrapped_key for row in rows] == [event.wrapped_key for event in [*good.events, *other.events]]


def test_two_equal_keys_in_one_flush_are_judged_in_order(store, ref):
    from memfold.eventstore.append import call

    first, second = (request_for(store, ref, idempotency=b"k" * 32, commitment=b"c" * 32) for _ in range(2))
    with store._database.connection() as connection:
        answers = call(connection, store._keyring.tenant, [first, second])
    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED, Verdict.DUPLICATE]
    assert answers[1].version == answers[0].version


def test_a_decision_conflicts_only_if_its_memory_was_touched(store, ref):
    from memfold.eventstore.append import call

    memory = new_id()
    events = [
        seal_event(
            MemoryRemembered(content="x"), tenant=store._keyring.tenant, stream=ref.stream, memory_id=memory, wrapping=ref.key
        )
        for _ in range(3)
    ]
    base = {"stream": ref.stream, "user": ref.user, "key_version": 1, "at": store._writer._clock()}
    with store._database.connection() as connection:
        tenant = store._keyring.tenant
        made = call(connection, tenant, [Request(**base, events=events[:1], expected=NO_DECISION)])[0]
        assert call(connection, tenant, [request_for(store, ref, 5)])[0].verdict is Verdict.ACCEPTED
        unaware = Request(**base, events=events[1:2], expected=made.version)
        stale = Request(**base, events=events[2:3], expected=made.version)
        assert [answer.verdict for answer in call(connection, tenant, [unaware, stale])] == [Verdict.ACCEPTED, Verdict.CONFLICT]
        assert call(connection, tenant, [stale])[0].verdict is Verdict.CONFLICT


@pytest.mark.parametrize("connections", [1, 2, 4])
def test_many_threads_share_commits_and_every_answer_is_its_own(store, ref, connections):
    committer = Committer(store._database, store._keyring.tenant, Settings(append_connections=connections))
    requests = [request_for(store, ref, 1 + number % 3) for number in range(200)]
    answers = [None] * len(requests)

    def run(start):
        for number in range(start, len(requests), 16):
            answers[number] = committer.append(requests[number])

    threads = [threading.Thread(target=run, args=(start,)) for start in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    committer.close()

    rows = {row.event_id: row for row in reader.read_stream(store._database, store._keyring.tenant, ref.stream)}
    for request, answer in zip(requests, answers, strict=True):
        found = [rows[event.event_id] for event in request.events]
        assert [row.position for row in found] == list(answer.positions)
        assert [row.version for row in found] == list(range(answer.version, answer.version + len(found)))


def test_a_corrupted_payload_is_told_and_harms_nothing_else(store, server_url):
    memory = store.remember("tea", session_id="s")
    store.remember("fine", session_id="t")
    with psycopg.connect(server_url) as owner:
        owner.execute(
            """UPDATE memfold.payloads p SET sealed = overlay(p.sealed PLACING '\\x00'::bytea FROM 20)
               FROM memfold.events e WHERE e.memory_id = %s AND p.position = e.position AND p.tenant_id = e.tenant_id""",
            (uuid.UUID(memory.id),),
        )
    for _ in range(2):
        with pytest.raises(CorruptEvent, match="position"):
            store.count("s")
    assert store.count("t") == 1


def test_embeddings_are_stored_only_beside_a_living_key(store):
    one, other = store.remember_many(["a", "b"], session_id="s")
    positions = [event.position for event in store.events()]
    store.forget(one.id)
    database, tenant = store._database, store._keyring.tenant
    assert derived.store_embeddings(database, tenant, "m", positions, [b"x", b"y"]) == 1
    assert derived.store_embeddings(database, tenant, "m", positions, [b"x", b"y"]) == 0
    found = database.rows("SELECT position, sealed FROM memfold.embeddings WHERE tenant_id = %s", (tenant,))
    assert [(row.position, row.sealed) for row in found] == [(positions[1], b"y")]
    store.forget(other.id)
    assert database.rows("SELECT FROM memfold.embeddings WHERE tenant_id = %s", (tenant,)) == []


def test_arrays_are_what_postgresql_understands(store):
    ids = [new_id() for _ in range(3)]
    moment = store._writer._clock()
    with store._database.connection() as connection, connection.cursor(binary=True) as cursor:
        cursor.execute(
            "SELECT %b, %b, %b, %b, %b, %b, %b",
            (
                arrays.uuid_array([ids[0], None, ids[2]]),
                arrays.bytea_array([b"", b"x" * 1000]),
                arrays.int_array([1, -2], arrays.INT2),
                arrays.int_array([2**31 - 1]),
                arrays.int_array([-(2**63), 2**63 - 1], arrays.INT8),
                arrays.timestamp_array([moment]),
                arrays.int_array([]),
            ),
        )
        row = cursor.fetchone()
    assert row[0] == [uuid.UUID(bytes=ids[0]), None, uuid.UUID(bytes=ids[2])]
    assert row[1:] == ([b"", b"x" * 1000], [1, -2], [2**31 - 1], [-(2**63), 2**63 - 1], [moment], [])


def test_two_first_starts_at_once_both_succeed(server_url):
    name = f"fresh_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as owner:
        owner.execute(f"CREATE DATABASE {name}")
    url = server_url.replace("/postgres?", f"/{name}?")
    assert url != server_url
    found, errors = [], []

    def start():
        try:
            found.append(open_database(url, Settings()))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for database in found:
        assert database.row("SELECT version_num FROM memfold.alembic_version").version_num == migrating.HEAD
        database.close()
    assert errors == []
    with psycopg.connect(server_url, autocommit=True) as owner:
        owner.execute(f"DROP DATABASE {name} WITH (FORCE)")


def test_where_no_role_may_be_made_the_triggers_stand_alone(server_url):
    name = f"plain_{uuid.uuid4().hex}"
    with psycopg.connect(server_url, autocommit=True) as owner:
        owner.execute(f"CREATE ROLE {name} LOGIN NOSUPERUSER NOCREATEROLE")
        owner.execute(f"CREATE DATABASE {name} OWNER {name}")
    url = server_url.replace("/postgres?", f"/{name}?").replace("postgres@", f"{name}@")
    database = open_database(url, Settings())
    try:
        assert not database.has_role
        with psycopg.connect(url) as login, pytest.raises(psycopg.errors.RestrictViolation):
            login.execute("TRUNCATE memfold.events")
    finally:
        database.close()
        with psycopg.connect(server_url, autocommit=True) as owner:
            owner.execute(f"DROP DATABASE {name} WITH (FORCE)")
            owner.execute(f"DROP ROLE {name}")
