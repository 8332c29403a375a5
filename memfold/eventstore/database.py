"""One database: its pool, its capability probe, its migrations, and one place where driver errors become ours.

Everybody else asks for a connection here, takes rows, and never sees a psycopg or SQLAlchemy exception. Connections are
autocommit, so a statement is a transaction and none stays open between calls; they take the application role when there
is one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import psycopg
import sqlalchemy
from psycopg import sql
from psycopg.rows import namedtuple_row
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import Pool, PoolProxiedConnection, QueuePool

from memfold.errors import DatabaseUnsuitable, SchemaTooNew, StoreClosed, StoreUnavailable
from memfold.eventstore import arrays
from memfold.eventstore.schema import HEAD
from memfold.settings import Settings

T = TypeVar("T")
Connection = psycopg.Connection[Any]

ROLE = "memfold_app"
DIRECTLY = "connect to PostgreSQL itself; memfold keeps a pool of its own"
MIGRATION_LOCK = 0x6D656D666F6C64  # "memfold"
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


class Lost(Exception):
    """The connection broke while a statement was under way: nobody knows whether it took effect."""


class Database:
    """A PostgreSQL database that keeps our promises; `open_database` makes one."""

    def __init__(self, conninfo: str, settings: Settings, *, role: bool) -> None:
        self.has_role = role
        self._closed = False
        self._conninfo = conninfo
        self._settings = settings
        self._role = role
        pool = QueuePool(
            cast("Callable[[], DBAPIConnection]", self._connect),
            pool_size=settings.pool_connections_max,
            max_overflow=0,
            timeout=settings.connect_timeout_s,
            reset_on_return=None,
        )
        self.engine = sqlalchemy.create_engine(
            "postgresql+psycopg://", pool=pool, use_native_hstore=False, isolation_level="AUTOCOMMIT"
        )

    def close(self) -> None:
        """Close every connection that is not in use; the others are closed when they are given back, and none is lent."""
        self._closed = True
        self.engine.dispose()

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

    def select(self, query: sqlalchemy.Select[Any]) -> Sequence[sqlalchemy.RowMapping]:
        """All rows of a cold query, by SQLAlchemy; once more on a fresh connection if the connection is lost."""
        for last in (False, True):
            try:
                with self.engine.connect() as connection:
                    return connection.execute(query).mappings().all()
            except DBAPIError as error:
                if last or not error.connection_invalidated:
                    raise StoreUnavailable("the database did not answer", outcome="not_written") from error.orig
            except PoolTimeout as error:
                raise StoreUnavailable("every database connection is in use", outcome="not_written") from error
        raise AssertionError("unreachable")

    def lend(self) -> PoolProxiedConnection:
        """Take a connection out of the pool; `Lease` gives it back."""
        if self._closed:
            raise StoreClosed
        try:
            return self.engine.raw_connection()
        except PoolTimeout as error:
            raise StoreUnavailable("every database connection is in use", outcome="not_written") from error
        except psycopg.Error as error:
            raise unavailable(error) from error

    def _connect(self) -> Connection:
        timeout_ms = int(self._settings.statement_timeout_s * 1000)
        options = (
            f"-c statement_timeout={timeout_ms} -c idle_in_transaction_session_timeout=5000 "
            "-c client_connection_check_interval=1000 -c synchronous_commit=on -c timezone=UTC "
            "-c default_transaction_isolation=read\\ committed -c plan_cache_mode=auto -c jit=off -c memfold.session=ours"
        )
        connection = connect(self._conninfo, self._settings, options + (f" -c role={ROLE}" if self._role else ""))
        arrays.register(connection)
        if connection.info.server_version >= 170000:
            # An append that hangs is the one thing that holds the settled position back. The statement's own time runs out
            # first, and spares the connection.
            connection.execute(f"SET transaction_timeout = {2 * timeout_ms}")
        return connection


class Lease:
    """A connection kept out of the pool by one user at a time, replaced after it was lost.

    Taking one out of the pool costs 20 µs, a tenth of an append: the committer keeps its own.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._held: PoolProxiedConnection | None = None
        self._pool: Pool | None = None

    @contextmanager
    def connection(self) -> Iterator[Connection]:
        """Lend the connection; raises as `Database.connection`."""
        if self._held is None:
            self._pool = self._database.engine.pool
            self._held = self._database.lend()
        held = self._held
        driver: Connection = held.driver_connection  # type: ignore[assignment]
        try:
            yield driver
        except psycopg.Error as error:
            if not (driver.closed or driver.broken):
                raise unavailable(error) from error
            # The others were most likely lost with it: after a restart of the server none of them is good.
            self._held = None
            held.invalidate()
            self._database.engine.dispose()
            raise Lost from error

    def close(self) -> None:
        """Give the connection back to the pool it came from, or close it if that pool was given up."""
        if self._held is None:
            return
        if self._pool is self._database.engine.pool:
            self._held.close()
        else:
            self._held.invalidate()
        self._held = None

    def __del__(self) -> None:
        self.close()


def _rows(connection: Connection, query: str, parameters: tuple[Any, ...] | dict[str, Any]) -> list[Any]:
    with connection.cursor(binary=True, row_factory=namedtuple_row) as cursor:
        return cursor.execute(query, parameters).fetchall()


def connect(conninfo: str, settings: Settings, options: str) -> Connection:
    """A connection with our session settings. TCP keep-alive finds a dead peer; a Unix socket needs none."""
    return psycopg.connect(
        conninfo,
        autocommit=True,
        options=options,
        connect_timeout=max(2, int(settings.connect_timeout_s)),
        application_name="memfold",
        prepare_threshold=2,
        tcp_user_timeout=int(settings.statement_timeout_s * 1000),
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


def open_database(conninfo: str, settings: Settings) -> Database:
    """Check the server, bring the schema up to date, and open a pool.

    Raises:
        DatabaseUnsuitable: the server would not keep our promises, or the schema is newer than this memfold.
        StoreUnavailable: it cannot be reached.
    """
    try:
        with connect(conninfo, settings, "-c memfold.session=ours -c timezone=UTC") as connection:
            probe_server(connection)
            migrate(connection, conninfo)
            probe_log(connection)
            role = has_role(connection)
        with connect(conninfo, settings, "-c memfold.session=ours") as one, connect(conninfo, settings, "") as other:
            refuse_transaction_pooling(one, other)
    except psycopg.Error as error:
        if "unsupported startup parameter" in str(error):
            raise DatabaseUnsuitable("a pooler refuses our session settings", DIRECTLY) from error
        raise unavailable(error) from error
    return Database(conninfo, settings, role=role)


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
    for name, (wanted, remedy) in demands.items():
        found = _setting(connection, name)
        if found != wanted:
            raise DatabaseUnsuitable(f"the server runs with {name} = {found}", remedy)
    if _one(connection, "SELECT pg_is_in_recovery()"):
        raise DatabaseUnsuitable("the server is a standby", "connect to the primary (target_session_attrs=read-write)")
    if _setting(connection, "memfold.session") != "ours":
        raise DatabaseUnsuitable("a pooler drops our session settings", DIRECTLY)


def refuse_transaction_pooling(one: Connection, other: Connection) -> None:
    """A session must keep its backend, also while another is in a transaction; a transaction pooler hands it on."""
    before = _one(one, "SELECT pg_backend_pid()")
    with other.transaction():
        other.execute("SELECT 1")
        after = _one(one, "SELECT pg_backend_pid()")
    if before != after:
        raise DatabaseUnsuitable("a transaction pooler stands before the server", DIRECTLY)


def probe_log(connection: Connection) -> None:
    """Refuse a log that was tampered with in a way that would lose events (see docs/log.md)."""
    cache = _one(connection, "SELECT cache_size FROM pg_sequences WHERE schemaname = 'memfold' AND sequencename = 'position'")
    if cache != 1:
        raise DatabaseUnsuitable(f"the sequence memfold.position has CACHE {cache}", "ALTER SEQUENCE memfold.position CACHE 1")
    writers = [row[0] for row in connection.execute(WRITERS, ()).fetchall()]
    if writers:
        raise DatabaseUnsuitable(f"others may write past the log's functions ({', '.join(writers)})", "REVOKE each of them")
    triggers = _one(
        connection,
        """SELECT count(*) FROM pg_trigger
           WHERE tgrelid = 'memfold.events'::regclass AND NOT tgisinternal AND tgenabled IN ('O', 'A')""",
    )
    if triggers < 2:
        raise DatabaseUnsuitable(
            "the triggers that keep memfold.events immutable are missing", "ALTER TABLE … ENABLE TRIGGER ALL"
        )


def has_role(connection: Connection) -> bool:
    """Whether this login may act as the application role."""
    query = "SELECT bool_or(pg_has_role(current_user, oid, 'MEMBER')) FROM pg_roles WHERE rolname = %s"
    if not _one(connection, query, (ROLE,)):
        return False
    try:
        connection.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(ROLE)))
    except psycopg.errors.InsufficientPrivilege:
        return False
    connection.execute("RESET ROLE")
    return True


def migrate(connection: Connection, conninfo: str) -> None:
    """Bring the schema to HEAD. An advisory lock lets racing first starts take turns; both succeed."""
    if _current(connection) == HEAD:
        return
    connection.execute("SELECT pg_advisory_lock(%s)", (MIGRATION_LOCK,))
    try:
        found = _current(connection)
        if found != HEAD:
            _upgrade(connection, conninfo, found)
    finally:
        connection.execute("SELECT pg_advisory_unlock(%s)", (MIGRATION_LOCK,))


def _upgrade(connection: Connection, conninfo: str, found: str | None) -> None:
    # Alembic takes 0.2 s to import and is needed once in a database's life.
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if found is not None and found not in known:
        raise SchemaTooNew(found, HEAD)
    connection.execute("CREATE SCHEMA IF NOT EXISTS memfold; CREATE SCHEMA IF NOT EXISTS memfold_keys")
    engine = sqlalchemy.create_engine(
        "postgresql+psycopg://",
        creator=lambda: psycopg.connect(conninfo),
        poolclass=sqlalchemy.NullPool,
        use_native_hstore=False,
    )
    with engine.begin() as bound:
        config.attributes["connection"] = bound
        command.upgrade(config, "head")


def _current(connection: Connection) -> str | None:
    if _one(connection, "SELECT to_regclass('memfold.alembic_version')") is None:
        return None
    found: str | None = _one(connection, "SELECT version_num FROM memfold.alembic_version")
    return found


def _setting(connection: Connection, name: str) -> str | None:
    value: str | None = _one(connection, "SELECT current_setting(%s, true)", (name,))
    return value


def _one(connection: Connection, query: str, parameters: tuple[Any, ...] | None = None) -> Any:
    row = connection.execute(query, parameters).fetchone()
    return row[0] if row else None
