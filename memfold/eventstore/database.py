"""One database: its connections, its capability probe, and one place where driver errors become ours.

Everybody else asks for a connection here, takes rows, and never sees a psycopg exception. Connections are autocommit, so a
statement is a transaction and none stays open between calls; they take the application role when there is one.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import psycopg
from psycopg.pq.abc import PGconn
from psycopg.rows import RowFactory, namedtuple_row, tuple_row

from memfold.errors import DatabaseUnsuitable, StoreUnavailable
from memfold.eventstore import arrays, migrating
from memfold.eventstore.pool import Held, Pool
from memfold.settings import Settings

T = TypeVar("T")

ROLE = "memfold_app"
DIRECTLY = "connect to PostgreSQL itself; memfold keeps a pool of its own"
LOST = (psycopg.OperationalError, psycopg.InterfaceError)


# Whoever but the owner may write the log's tables, or a part of them, without its functions: as grants to be revoked.
WRITERS = """
WITH ours AS (
    SELECT oid, relowner, relacl FROM pg_class WHERE relnamespace IN ('memfold'::regnamespace, 'memfold_keys'::regnamespace)
), granted AS (
    SELECT o.oid::regclass::text AS subject, o.relowner, a.* FROM ours o, aclexplode(o.relacl) a
    UNION ALL
    SELECT o.oid::regclass || '.' || c.attname, o.relowner, a.*
    FROM ours o JOIN pg_attribute c ON c.attrelid = o.oid, aclexplode(c.attacl) a
    UNION ALL
    SELECT 'memfold.' || p.proname, p.proowner, a.*
    FROM pg_proc p, aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) a
    WHERE p.pronamespace = 'memfold'::regnamespace AND (a.grantee = 0 OR p.proname = 'destroy')
)
SELECT DISTINCT format('%%s ON %%s TO %%s', privilege_type, subject, coalesce(r.rolname, 'PUBLIC')) AS found
FROM granted LEFT JOIN pg_roles r ON r.oid = grantee
WHERE grantee <> relowner AND privilege_type IN ('INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'TRIGGER', 'EXECUTE')
ORDER BY found"""


class Connection(psycopg.Connection[Any]):
    """A connection that remembers which `Question`s were prepared on it."""

    def __init__(self, pgconn: PGconn, row_factory: RowFactory[Any] = tuple_row) -> None:
        super().__init__(pgconn, row_factory)
        self.questions: set[bytes] = set()


class Lost(Exception):
    """The connection broke while a statement was under way: nobody knows whether it took effect."""


class Database:
    """A PostgreSQL database that keeps our promises; `open_database` makes one."""

    def __init__(self, conninfo: str, settings: Settings, *, role: bool) -> None:
        self.has_role = role
        self.pool = Pool(
            lambda: _prepared(connect(conninfo, settings, _options(settings, role=role)), settings),
            connections_max=settings.pool_connections_max,
            timeout_s=settings.connect_timeout_s,
        )

    def close(self) -> None:
        """Close every connection that is not in use; the others are closed when they are given back, and none is lent."""
        self.pool.close()

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend a connection in autocommit mode.

        Raises:
            StoreUnavailable: the server cannot be reached, refuses, or all connections are taken for too long.
            Lost: the connection broke after a statement was sent.
        """
        lease = Lease(self)
        try:
            with lease.connection() as connection:
                yield connection
        finally:
            lease.close()

    def read(self, run: Callable[[Connection], T]) -> T:
        """Run reads on a connection; once more on a fresh one if the connection is lost, for reading twice harms nobody."""
        try:
            with self.connection() as connection:
                return run(connection)
        except Lost:
            pass
        try:
            with self.connection() as connection:
                return run(connection)
        except Lost as error:
            raise StoreUnavailable("the database connection was lost twice", outcome="not_written") from error.__cause__

    def rows(self, query: str, parameters: tuple[Any, ...] | dict[str, Any] = ()) -> list[Any]:
        """All rows of a query, as named tuples, in binary."""
        return self.read(lambda connection: _rows(connection, query, parameters))

    def row(self, query: str, parameters: tuple[Any, ...] = ()) -> Any:
        """The first row of a query; None if there is none."""
        rows = self.rows(query, parameters)
        return rows[0] if rows else None

    def lend(self) -> Held[Connection]:
        """Take a connection out of the pool; `Lease` gives it back."""
        try:
            return self.pool.take()
        except psycopg.Error as error:
            raise unavailable(error) from error


class Lease:
    """A connection kept out of the pool by one user at a time, replaced after it was lost."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: Held[Connection] | None = None

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend the connection; raises as `Database.connection`."""
        if self._held is None:
            self._held = self._database.lend()
        held = self._held
        try:
            yield held.connection
        except psycopg.Error as error:
            if not (held.connection.closed or held.connection.broken):
                raise unavailable(error) from error
            # The others were most likely lost with it: after a restart of the server none of them is good.
            self._held = None
            self._database.pool.discard(held)
            self._database.pool.give_up()
            raise Lost from error

    def close(self) -> None:
        """Give the connection back to the pool, which closes it if all were given up meanwhile."""
        held, self._held = self._held, None
        if held is not None:
            self._database.pool.give(held)

    def __del__(self) -> None:
        self.close()


def _rows(connection: Connection, query: str, parameters: tuple[Any, ...] | dict[str, Any]) -> list[Any]:
    with connection.cursor(binary=True, row_factory=namedtuple_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


def _options(settings: Settings, *, role: bool) -> str:
    """What a session of ours is set to; under the application role, unless it is taken later."""
    return (
        f"-c statement_timeout={_statement_timeout_ms(settings)} -c idle_in_transaction_session_timeout=5000 "
        "-c client_connection_check_interval=1000 -c synchronous_commit=on -c timezone=UTC "
        "-c default_transaction_isolation=read\\ committed -c plan_cache_mode=auto -c jit=off -c memfold.session=ours"
    ) + (f" -c role={ROLE}" if role else "")


def _prepared(connection: Connection, settings: Settings) -> Connection:
    """A new connection, ready for our statements."""
    arrays.register(connection)
    if connection.info.server_version >= 170000:
        # An append that hangs is the one thing that holds the settled position back. The statement's own time runs out
        # first, and spares the connection.
        connection.execute(f"SET transaction_timeout = {2 * _statement_timeout_ms(settings)}")
    return connection


def _statement_timeout_ms(settings: Settings) -> int:
    return int(settings.statement_timeout_s * 1000)


def connect(conninfo: str, settings: Settings, options: str) -> Connection:
    """A connection with our session settings. TCP keep-alive finds a dead peer; a Unix socket needs none."""
    return Connection.connect(
        conninfo,
        autocommit=True,
        options=options,
        connect_timeout=max(2, int(settings.connect_timeout_s)),
        application_name="memfold",
        prepare_threshold=2,
        tcp_user_timeout=_statement_timeout_ms(settings),
        keepalives_idle=30,
    )


def unavailable(error: psycopg.Error) -> StoreUnavailable:
    """What a driver error means to a caller. The server's text is left out unless it can hold no value of ours."""
    state = error.sqlstate or ""
    reasons = {
        "53100": "the database's disk is full",
        "53200": "the database is out of memory",
        "53300": "the database takes no more connections",
        "57014": "the statement took longer than statement_timeout_s",
        "25P04": "the transaction took longer than twice statement_timeout_s",
        "57P01": "the database is shutting down",
        "57P02": "the database crashed and restarts",
        "57P03": "the database is starting up",
        "25006": "the database is read-only (a standby?)",
        "28P01": "the database refused the password",
        "28000": "the database refused the login",
        "3D000": "there is no such database",
        "42501": "the database role lacks a privilege",
        "40001": "the transaction lost a race",
        "40P01": "the transaction lost a race",
    }
    default = (
        "the database cannot be reached"
        if isinstance(error, LOST) and not state
        else f"the database refused (SQLSTATE {state})"
    )
    return StoreUnavailable(reasons.get(state, default), outcome="not_written", sqlstate=error.sqlstate)


def blames_values(error: Exception) -> bool:
    """Whether an error is none of the database's, or one about the values it was given, and not about its service."""
    return not isinstance(error, psycopg.Error) or (error.sqlstate or "")[:2] in ("22", "23")


def open_database(conninfo: str, settings: Settings, *, own_server: bool = False) -> Database:
    """Check the server, bring the schema up to date, and open a pool. No pooler stands before a server of our own.

    Raises:
        DatabaseUnsuitable: the server would not keep our promises, or the schema is newer than this memfold.
        StoreUnavailable: it cannot be reached.
    """
    try:
        database = _checked(conninfo, settings)
    except psycopg.Error as error:
        if "unsupported startup parameter" in str(error):
            raise DatabaseUnsuitable("a pooler refuses our session settings", DIRECTLY) from error
        raise unavailable(error) from error
    try:
        if not own_server:
            with database.connection() as one, database.connection() as other:
                refuse_transaction_pooling(one, other)
    except BaseException as error:
        database.close()
        if isinstance(error, Lost):
            raise StoreUnavailable("the database connection was lost", outcome="not_written") from error.__cause__
        raise
    return database


def _checked(conninfo: str, settings: Settings) -> Database:
    """The database, with the connection it was checked on as the first of its pool."""
    connection = connect(conninfo, settings, _options(settings, role=False))
    try:
        probe_server(connection)
        if migrating.found(connection) != migrating.HEAD:
            migrating.migrate(conninfo)
        probe_log(connection)
        database = Database(conninfo, settings, role=take_role(connection))
        database.pool.adopt(_prepared(connection, settings))
    except BaseException:
        connection.close()
        raise
    return database


SERVER = """
SELECT current_setting('fsync') AS fsync, current_setting('full_page_writes') AS full_page_writes,
    current_setting('max_prepared_transactions') AS max_prepared_transactions,
    current_setting('server_encoding') AS server_encoding,
    pg_is_in_recovery() AS is_standby, current_setting('memfold.session', true) AS session"""


def probe_server(connection: Connection) -> None:
    """Refuse a server that cannot hold a log."""
    version = connection.info.server_version
    if version < 150000:
        raise DatabaseUnsuitable(f"PostgreSQL {version // 10000} is too old", "use PostgreSQL 15 or later")
    demands = {
        "fsync": ("on", "acknowledged memories would be lost with the power: set fsync = on"),
        "full_page_writes": ("on", "a crash could tear pages: set full_page_writes = on"),
        "max_prepared_transactions": ("0", "a prepared transaction hides from the settled position: set it to 0"),
        "server_encoding": ("UTF8", "create the database with ENCODING 'UTF8'"),
    }
    found = _rows(connection, SERVER, ())[0]
    for name, (wanted, remedy) in demands.items():
        value = getattr(found, name)
        if value != wanted:
            raise DatabaseUnsuitable(f"the server runs with {name} = {value}", remedy)
    if found.is_standby:
        raise DatabaseUnsuitable("the server is a standby", "connect to the primary (target_session_attrs=read-write)")
    if found.session != "ours":
        raise DatabaseUnsuitable("a pooler drops our session settings", DIRECTLY)


def refuse_transaction_pooling(one: Connection, other: Connection) -> None:
    """A session must keep its backend, also while another is in a transaction; a transaction pooler hands it on."""
    before = _one(one, "SELECT pg_backend_pid()")
    with other.transaction():
        other.execute("SELECT 1")
        after = _one(one, "SELECT pg_backend_pid()")
    if before != after:
        raise DatabaseUnsuitable("a transaction pooler stands before the server", DIRECTLY)


LOG = f"""
SELECT (SELECT cache_size FROM pg_sequences WHERE schemaname = 'memfold' AND sequencename = 'position') AS cache,
    ARRAY({WRITERS}) AS writers,
    (SELECT count(*) FROM pg_trigger
     WHERE tgrelid = 'memfold.events'::regclass AND NOT tgisinternal AND tgenabled IN ('O', 'A')) AS triggers"""


def probe_log(connection: Connection) -> None:
    """Refuse a log that was tampered with in a way that would lose events (see docs/log.md)."""
    found = _rows(connection, LOG, ())[0]
    if found.cache != 1:
        remedy = "ALTER SEQUENCE memfold.position CACHE 1"
        raise DatabaseUnsuitable(f"the sequence memfold.position has CACHE {found.cache}", remedy)
    if found.writers:
        writers = ", ".join(found.writers)
        raise DatabaseUnsuitable(f"others may write past the log's functions ({writers})", "REVOKE each of them")
    if found.triggers < 2:
        raise DatabaseUnsuitable(
            "the triggers that keep memfold.events immutable are missing", "ALTER TABLE … ENABLE TRIGGER ALL"
        )


def take_role(connection: Connection) -> bool:
    """Take the application role; False if this login may not act as it."""
    query = "SELECT bool_or(pg_has_role(current_user, oid, 'MEMBER')) FROM pg_roles WHERE rolname = %s"
    if not _one(connection, query, (ROLE,)):
        return False
    try:
        connection.execute(f"SET ROLE {ROLE}")
    except psycopg.errors.InsufficientPrivilege:
        return False
    return True


def has_role(connection: Connection) -> bool:
    """Whether this login may act as the application role."""
    if not take_role(connection):
        return False
    connection.execute("RESET ROLE")
    return True


def _one(connection: Connection, query: str, parameters: tuple[Any, ...] | None = None) -> Any:
    row = connection.execute(query, parameters).fetchone()
    return row[0] if row else None
