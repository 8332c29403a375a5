"""Bringing the schema up to date, once in a database's life and after an upgrade of memfold.

The rule: a database that is at `HEAD` costs one query. Alembic and SQLAlchemy are imported only to migrate; they take 0.2 s.
Called by the opening of a database.
"""

from pathlib import Path
from typing import Any

import psycopg

from memfold.errors import SchemaTooNew

HEAD = "0007"
"""The newest migration."""

LOCK = 0x6D656D666F6C64  # "memfold"


def found(connection: psycopg.Connection[Any]) -> str | None:
    """The schema's version; None if there is none yet."""
    try:
        row = connection.execute("SELECT version_num FROM memfold.alembic_version").fetchone()
    except psycopg.errors.UndefinedTable:
        return None
    return row[0] if row else None


def migrate(conninfo: str) -> None:
    """Bring the schema to HEAD. An advisory lock lets racing first starts take turns; both succeed.

    Raises:
        SchemaTooNew: it was made by a newer memfold.
        psycopg.Error: the database refused.
    """
    with psycopg.connect(conninfo, autocommit=True, application_name="memfold") as connection:
        connection.execute("SELECT pg_advisory_lock(%s)", (LOCK,))
        version = found(connection)
        if version != HEAD:
            _upgrade(connection, conninfo, version)


def _upgrade(connection: psycopg.Connection[Any], conninfo: str, version: str | None) -> None:
    import sqlalchemy
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    if version is not None and version not in known:
        raise SchemaTooNew(version, HEAD)
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
