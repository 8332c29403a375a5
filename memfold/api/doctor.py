"""Is this store in order? Checks of folder, server, embedders, log, keys and vectors: what was found, and what to do about it.

Nothing is set up, migrated or written: a folder in which nothing was stored yet is reported as such. An embedded server is
started for the checks, as any store would, and stops with them. Called by `memfold doctor` and `memfold status`.
"""

import os
import shutil
import stat
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Literal

import msgspec

from memfold.api.opening import KEY_FILE, given_service
from memfold.embedding import Embedder, Encoder
from memfold.errors import (
    DatabaseUnsuitable,
    EmbeddedServerError,
    EmbedderFailed,
    KeyUnavailable,
    MemfoldError,
    ModelFileError,
    StoreUnavailable,
)
from memfold.eventstore import embedded
from memfold.eventstore.binaries import find_binaries, major_version
from memfold.eventstore.database import (
    ROLE,
    WRITERS,
    Connection,
    Database,
    Lost,
    has_role,
    probe_server,
    refuse_transaction_pooling,
)
from memfold.eventstore.derived import EMBEDDED_TYPES
from memfold.eventstore.keyring import open_lookup_key, sealed_before
from memfold.eventstore.keyservice import MAKE_A_KEY, KeyService, LocalKeyService, read_key_file
from memfold.eventstore.migrating import HEAD
from memfold.eventstore.tail import Tail
from memfold.minilm import MiniLMEmbedder, StaticEmbedder
from memfold.settings import Environment, Settings

Verdict = Literal["ok", "warn", "fail"]

ROOM_BYTES = 1024**3
SLOW_S = 1.0  # to settle; on an idle server it takes milliseconds
CLOCKS_APART = timedelta(seconds=1)
SHOWN = ("fsync", "full_page_writes", "synchronous_commit", "max_prepared_transactions", "server_encoding")
MEASURED_S = 0.2
SAMPLE = "Nora is allergic to peanuts, and her brother Emil, who comes on Friday, does not eat fish."
SAMPLES = 8  # embedded at a time
SLOW_TEXTS_A_SECOND = 20  # ten times slower than one core of a laptop
TRIGGERS = {"events_immutable", "events_no_truncate"}


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a report. `advice` says what to do; None where nothing need be done."""

    verdict: Verdict
    name: str
    found: str
    advice: str | None = None


class RemoteStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Whether the server of a URL answers, and which it is. The URL itself is left out: it may hold a password."""

    reachable: bool
    version: str | None = None
    host: str | None = None
    port: int | None = None
    database: str | None = None
    login: str | None = None
    problem: str | None = None


def examine(place: str | Path, environment: Environment, settings: Settings, clock: Callable[[], datetime]) -> Generator[Check]:
    """Check the store at `place`, a URL or a folder; the checks come one by one, and end early where one bars the next."""
    if isinstance(place, str):
        yield from _database_checks(place, partial(_given_key, environment), settings, clock)
        return
    yield _guarded("programs", partial(_programs, place))
    yield _folder(place)
    if not (place / "pg").is_dir():
        yield warn("server", "nothing was stored in this folder yet", "nothing: the first remember sets it up")
        yield from _embedder_checks()
        return
    try:
        server = embedded.attach(place, runtime_folder=environment.runtime_folder)
    except EmbeddedServerError as error:
        yield fail("server", str(error), "see the message, and server.log in the folder")
        return
    try:
        yield from _database_checks(server.url, partial(_key_of_folder, place, environment), settings, clock)
    finally:
        server.release()


def remote_status(url: str, settings: Settings) -> RemoteStatus:
    """Ask the server of a URL for its version."""
    with closing(Database(url, settings, role=False)) as database:
        try:
            return database.read(_describe)
        except StoreUnavailable as error:
            return RemoteStatus(reachable=False, problem=error.reason)


def ok(name: str, found: str) -> Check:
    return Check(verdict="ok", name=name, found=found)


def warn(name: str, found: str, advice: str) -> Check:
    return Check(verdict="warn", name=name, found=found, advice=advice)


def fail(name: str, found: str, advice: str) -> Check:
    return Check(verdict="fail", name=name, found=found, advice=advice)


def _guarded(name: str, probe: Callable[[], Check]) -> Check:
    """What the probe found; a failed check if it could not even look."""
    try:
        return probe()
    except DatabaseUnsuitable as error:
        return fail(name, error.problem, error.remedy)
    except StoreUnavailable as error:
        return fail(name, error.reason, "see that the server runs, the address is right and this login may connect")
    except EmbeddedServerError as error:
        return fail(name, str(error), "give another folder, or the URL of a server")
    except Lost:
        return fail(name, "the connection broke", "see the server's log, and try again")
    except MemfoldError as error:
        return fail(name, str(error), "see the message")


# --- the folder --------------------------------------------------------------------------------------------------------------


def _programs(folder: Path) -> Check:
    binaries = find_binaries(folder, None)
    return ok("programs", f"PostgreSQL {major_version(binaries)} in {binaries}")


def _folder(folder: Path) -> Check:
    if not folder.exists():
        parent = next(parent for parent in folder.parents if parent.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            return fail("folder", f"{folder} is not there, and {parent} cannot be written to", "name another folder")
        return ok("folder", f"{folder} is not there yet")
    if not folder.is_dir() or not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return fail("folder", f"{folder} is no folder this process may use", "name another, or mend its owner and mode")
    free = shutil.disk_usage(folder).free
    if free < ROOM_BYTES:
        return warn("folder", f"{folder} has {free / 1024**2:,.0f} MiB left", "make room: a full disk stops every write")
    if stat.S_IMODE(folder.stat().st_mode) & 0o066:
        return warn("folder", f"{folder} can be read by others", f"chmod 700 {folder}")
    return ok("folder", f"{folder}, {free / 1024**3:,.0f} GiB free")


# --- the database ------------------------------------------------------------------------------------------------------------


def _database_checks(
    url: str, key: Callable[[], KeyService | None], settings: Settings, clock: Callable[[], datetime]
) -> Iterator[Check]:
    with closing(Database(url, settings, role=False)) as login:
        reached = _guarded("server", partial(_server, login))
        yield reached
        if reached.verdict == "fail":
            return
        yield _guarded("settings", partial(_settings, login))
        yield _guarded("connections", partial(_connections, login))
        yield _guarded("clock", partial(_clock, login, clock))
        yield from _embedder_checks()
        schema = _guarded("schema", partial(_schema, login))
        yield schema
        if schema.verdict != "ok":
            return
        yield from _log_checks(login)
        # As the store itself will read, so that what the application role may not do shows here.
        with closing(Database(url, settings, role=login.read(has_role))) as database:
            yield _guarded("master key", partial(_master_key, database, key))
            yield _guarded("settled position", partial(_settled, database, login, settings.settle_timeout_s))
            yield _guarded("vectors", partial(_vectors, database))


def _log_checks(login: Database) -> Iterator[Check]:
    yield _guarded("application role", partial(_role, login))
    yield _guarded("triggers", partial(_triggers, login))
    yield _guarded("grants", partial(_grants, login))
    yield _guarded("positions", partial(_positions, login))


def _server(login: Database) -> Check:
    status = login.read(_describe)
    return ok("server", f"PostgreSQL {status.version} at {status.host}, database {status.database}, login {status.login}")


def _describe(connection: Connection) -> RemoteStatus:
    row = connection.execute("SELECT current_setting('server_version'), current_database(), session_user").fetchone()
    assert row is not None
    info = connection.info
    return RemoteStatus(reachable=True, version=row[0], host=info.host, port=info.port, database=row[1], login=row[2])


def _settings(login: Database) -> Check:
    rows = login.rows("SELECT name, current_setting(name) AS value FROM unnest(%s::text[]) AS name", (list(SHOWN),))
    found = {row.name: row.value for row in rows}
    login.read(probe_server)
    if found["synchronous_commit"] != "on":
        return fail(
            "settings",
            f"synchronous_commit = {found['synchronous_commit']}, though our sessions ask for on",
            "connect without a pooler, or through one in session mode",
        )
    return ok("settings", ", ".join(f"{name} = {value}" for name, value in found.items()))


def _connections(login: Database) -> Check:
    with login.connection() as one, login.connection() as other:
        refuse_transaction_pooling(one, other)
    return ok("connections", "each keeps its own backend: no transaction pooler stands between")


def _clock(login: Database, clock: Callable[[], datetime]) -> Check:
    before = clock()
    at = login.row("SELECT clock_timestamp() AS at").at
    after = clock()
    apart = at - (before + (after - before) / 2)
    found = (
        f"the server's clock is {apart.total_seconds():+.3f} s from this one, ± {(after - before).total_seconds() / 2:.3f} s"
    )
    if abs(apart) > CLOCKS_APART:
        return warn("clock", found, "let both follow NTP: a memory's times come from the process that remembers it")
    return ok("clock", found)


def _schema(login: Database) -> Check:
    if login.row("SELECT to_regclass('memfold.alembic_version') AS found").found is None:
        return warn("schema", "this database holds no memfold yet", "nothing: the first remember sets it up")
    found = login.row("SELECT version_num AS found FROM memfold.alembic_version").found
    if found > HEAD:
        return fail("schema", f"version {found}, this memfold knows {HEAD}", "upgrade memfold")
    if found < HEAD:
        return warn("schema", f"version {found}, this memfold brings {HEAD}", "nothing: opening the store migrates it")
    return ok("schema", f"version {found}")


def _role(login: Database) -> Check:
    if login.read(has_role):
        return ok("application role", f"{ROLE}: it may read and call the log's functions, nothing else")
    user = login.row("SELECT session_user AS name").name
    exists = login.row("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)) is not None
    advice = f"GRANT {ROLE} TO {user}" if exists else f"as a login that may: CREATE ROLE {ROLE} NOLOGIN, then docs/log.md"
    return warn("application role", f"triggers alone: {user} may not act as {ROLE}", advice)


def _triggers(login: Database) -> Check:
    rows = login.rows(
        """SELECT tgname::text AS name FROM pg_trigger
           WHERE tgrelid = 'memfold.events'::regclass AND NOT tgisinternal AND tgenabled IN ('O', 'A')"""
    )
    missing = TRIGGERS - {row.name for row in rows}
    if missing:
        found = f"off or missing on memfold.events: {', '.join(sorted(missing))}"
        return fail("triggers", found, "ALTER TABLE memfold.events ENABLE TRIGGER ALL; find out who switched them off")
    replaying = login.row("SELECT current_setting('session_replication_role') AS role").role
    if replaying == "replica":
        return fail("triggers", "session_replication_role = replica switches them off", "reset it for this login and database")
    return ok("triggers", "memfold.events refuses update, delete and truncate")


# Everybody is asked about, whoever asks: information_schema shows only what concerns the asking role. Nobody may call
# `destroy` by itself, and nothing of the log is open to PUBLIC.
MISSING = """
SELECT 'USAGE ON SCHEMA ' || nspname AS found FROM pg_namespace
WHERE nspname IN ('memfold', 'memfold_keys') AND NOT has_schema_privilege(%(role)s, oid, 'USAGE')
UNION ALL
SELECT 'SELECT ON ' || oid::regclass FROM pg_class
WHERE relnamespace IN ('memfold'::regnamespace, 'memfold_keys'::regnamespace) AND relkind IN ('r', 'p', 'S')
AND NOT has_table_privilege(%(role)s, oid, 'SELECT')
UNION ALL
SELECT 'EXECUTE ON FUNCTION memfold.' || proname FROM pg_proc
WHERE pronamespace = 'memfold'::regnamespace AND proname <> 'destroy'
AND NOT has_function_privilege(%(role)s, oid, 'EXECUTE')"""


def _grants(login: Database) -> Check:
    writers = [row.found for row in login.rows(WRITERS)]
    if writers:
        return fail("grants", f"others may write past the log's functions: {_listed(writers)}", "REVOKE each of them")
    if login.row("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,)) is None:
        return ok("grants", "nobody but the owner may write")
    missing = login.read(lambda connection: [row[0] for row in connection.execute(MISSING, {"role": ROLE})])
    if missing:
        return fail("grants", f"{ROLE} lacks {_listed(missing)}", f"as the owner of the tables: GRANT it to {ROLE}")
    return ok("grants", f"nobody but the owner may write past the log's functions; {ROLE} has what it needs")


def _positions(login: Database) -> Check:
    cache = login.row("SELECT seqcache AS size FROM pg_sequence WHERE seqrelid = 'memfold.position'::regclass").size
    if cache != 1:
        return fail("positions", f"memfold.position has CACHE {cache}", "ALTER SEQUENCE memfold.position CACHE 1")
    return ok("positions", "drawn one at a time")


HOLDERS = """
SELECT l.pid, a.application_name AS program, a.state, extract(epoch FROM clock_timestamp() - a.xact_start)::float8 AS age_s
FROM pg_locks l LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.locktype = 'relation' AND l.relation = 'memfold.events'::regclass AND l.mode = 'RowExclusiveLock' AND l.granted
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY age_s DESC NULLS LAST"""


def _settled(database: Database, login: Database, timeout_s: float) -> Check:
    head = database.row("SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS head FROM memfold.position").head
    begun = time.monotonic()
    with Tail(database) as tail:
        settled = tail.settle(timeout_s)
    took_s = time.monotonic() - begun
    if settled < head:
        holders = [_holder(row) for row in login.rows(HOLDERS)]
        found = f"{settled} of {head} after {took_s:.1f} s, held back by {_listed(holders) or 'a transaction that just ended'}"
        return fail(
            "settled position", found, "let it end, or SELECT pg_terminate_backend(pid): the log is read up to here only"
        )
    if took_s > SLOW_S:
        return warn("settled position", f"{settled}, after {took_s:.1f} s", "look for long transactions that write memories")
    return ok("settled position", f"{settled}, known after {took_s * 1000:.0f} ms")


def _holder(row: Any) -> str:
    who = f"pid {row.pid}" if row.pid is not None else "a prepared transaction"
    age = f"for {row.age_s:.0f} s" if row.age_s is not None else ""
    return " ".join(filter(None, [who, f"({row.program})" if row.program else "", row.state or "", age]))


def _listed(found: list[str]) -> str:
    return ", ".join(found[:5]) + (f" and {len(found) - 5} more" if len(found) > 5 else "")


# --- embedders and vectors ---------------------------------------------------------------------------------------------------


def _embedder_checks() -> Iterator[Check]:
    yield _guarded("embedder", partial(_embedder, "embedder", MiniLMEmbedder()))
    yield _guarded("static embedder", partial(_embedder, "static embedder", StaticEmbedder()))


def _embedder(name: str, embedder: Embedder) -> Check:
    """Load a model as a store does, which checks its files, and measure it for a moment."""
    encoder = Encoder(embedder)
    try:
        loaded_s, rate = _measured(encoder)
    except ModelFileError as error:
        return fail(name, str(error), "install memfold again: recall needs this model")
    except EmbedderFailed as error:
        return fail(name, f"{error}{_cause(error)}", "install memfold again, with what it depends on")
    speed = f"loaded in {loaded_s:.2f} s, {rate:,.0f} texts a second"
    found = f"{encoder.name}, {encoder.dimension} dimensions, its files are as shipped; {speed}"
    if rate < SLOW_TEXTS_A_SECOND:
        return warn(name, found, "look for what else keeps this machine busy: recall waits for what is not embedded yet")
    return ok(name, found)


def _measured(encoder: Encoder) -> tuple[float, float]:
    """How long an embedder takes to load, and how many texts it does a second then."""
    begun = time.perf_counter()
    encoder.encode([SAMPLE])
    loaded = time.perf_counter()
    count = 0
    while (took_s := time.perf_counter() - loaded) < MEASURED_S:
        count += len(encoder.encode([SAMPLE] * SAMPLES))
    return loaded - begun, count / took_s


def _cause(error: EmbedderFailed) -> str:
    return f" ({error.__cause__})" if error.__cause__ else ""


# Of all tenants: the spine and its keys say what should have a vector, no key is needed to count.
WAITING = """
SELECT count(*) AS count FROM memfold.events e
JOIN memfold_keys.keys k ON k.tenant_id = e.tenant_id AND k.position = e.position AND k.wrapped <> ''
WHERE e.type = ANY(%s) AND NOT EXISTS (
    SELECT FROM memfold.embeddings v WHERE v.tenant_id = e.tenant_id AND v.position = e.position AND v.model = %s
)"""


def _vectors(database: Database) -> Check:
    """What is stored of vectors, by model, of all tenants."""
    ours = MiniLMEmbedder.name
    rows = database.rows("SELECT model, count(*) AS count FROM memfold.embeddings GROUP BY model ORDER BY model")
    counts = {row.model: row.count for row in rows}
    size = database.row("SELECT pg_total_relation_size('memfold.embeddings') AS bytes").bytes
    lag = database.row(WAITING, (EMBEDDED_TYPES, ours)).count
    listed = _listed([f"{count:,} of {model}" for model, count in counts.items()]) or "none"
    found = f"{listed}, all tenants; {lag:,} events wait for one of {ours}; {size / 1024**2:,.1f} MiB"
    if set(counts) - {ours}:
        advice = f"nothing, if a store is opened with that embedder; else they are left over, and serve nobody who uses {ours}"
        return warn("vectors", found, advice)
    return ok("vectors", found)


# --- the master key ----------------------------------------------------------------------------------------------------------


def _given_key(environment: Environment) -> KeyService | None:
    return given_service(None, environment)


def _key_of_folder(folder: Path, environment: Environment) -> KeyService | None:
    given = _given_key(environment)
    if given is not None:
        return given
    key = read_key_file(folder / KEY_FILE)
    return LocalKeyService(key) if key is not None else None


def _master_key(database: Database, find: Callable[[], KeyService | None]) -> Check:
    try:
        service, sealed = find(), sealed_before(database)
        if service is not None and sealed:
            open_lookup_key(database, service)
    except KeyUnavailable as error:
        return fail("master key", error.problem, "give the key this store was sealed with: without it nothing can be read")
    if service is None:
        return _no_key(sealed)
    return ok("master key", "found, and the right one" if sealed else "found; nothing is sealed yet")


def _no_key(sealed: bool) -> Check:
    if sealed:
        advice = f"set MEMFOLD_MASTER_KEY, or put {KEY_FILE} back into the folder: without it nothing can be read"
        return fail("master key", "not found, and this store was sealed with one", advice)
    return warn(
        "master key", "not found", f"an embedded store makes its own; for a server set MEMFOLD_MASTER_KEY: {MAKE_A_KEY}"
    )
