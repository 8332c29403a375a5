"""From what a user names to an open database with its key service.

A target is nothing (the embedded store in the user's data folder), a folder (embedded there), or a `postgresql://` URL.
The master key is an argument, else `MEMFOLD_MASTER_KEY`, else, embedded only, the file `master.key` in the folder.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from memfold.errors import KeyUnavailable, SettingsError
from memfold.eventstore import embedded
from memfold.eventstore.database import Database, open_database
from memfold.eventstore.keyring import sealed_before
from memfold.eventstore.keyservice import (
    MAKE_A_KEY,
    KeyService,
    LocalKeyService,
    create_key_file,
    parse_master_key,
    read_key_file,
)
from memfold.settings import Environment, Settings, default_folder

Target = str | os.PathLike[str] | None
MasterKey = str | bytes | KeyService | None
URL_SCHEMES = ("postgresql://", "postgres://", "postgresql+psycopg://")
KEY_FILE = "master.key"


class Opened(NamedTuple):
    """An open database, the key service for it, and what gives back the server's lease."""

    database: Database
    service: KeyService
    release: Callable[[], None]


def open_target(target: Target, master_key: MasterKey, settings: Settings, environment: Environment) -> Opened:
    """Open the database a target names; nothing stays open if this fails.

    Raises:
        KeyUnavailable, EmbeddedServerError, DatabaseUnsuitable, StoreUnavailable, SettingsError: see `errors`.
    """
    place = resolve(target, environment)
    given = given_service(master_key, environment)
    if isinstance(place, str):
        if given is None:
            raise KeyUnavailable(f"a database by URL needs a master key: set MEMFOLD_MASTER_KEY; make one with: {MAKE_A_KEY}")
        return Opened(open_database(place, settings), given, lambda: None)
    server = embedded.attach(place, runtime_folder=environment.runtime_folder)
    try:
        database = open_database(server.url, settings, own_server=True)
        try:
            return Opened(database, given or key_file_service(place, database), server.release)
        except BaseException:
            database.close()
            raise
    except BaseException:
        server.release()
        raise


def resolve(target: Target, environment: Environment) -> str | Path:
    """A URL as a string, or a folder as an absolute path."""
    named = target if target is not None else environment.target
    if isinstance(named, str) and named.startswith(URL_SCHEMES):
        return named.replace("postgresql+psycopg://", "postgresql://", 1)
    if isinstance(named, str) and "://" in named:
        raise SettingsError("target", "has a scheme memfold does not know: give a folder or postgresql://user@host/database")
    if named is not None and not isinstance(named, str | os.PathLike):
        raise SettingsError("target", f"is {type(named).__name__}: give a folder or postgresql://user@host/database")
    if named == "":
        raise SettingsError("target", "is empty: give a folder or postgresql://user@host/database")
    return Path(named).expanduser().absolute() if named is not None else default_folder()


def given_service(master_key: MasterKey, environment: Environment) -> KeyService | None:
    """The key service that was handed in or that the environment names; None if neither."""
    given = environment.master_key if master_key is None else master_key
    if given is None:
        return None
    if isinstance(given, str):
        return LocalKeyService(parse_master_key(given))
    if isinstance(given, bytes):
        return LocalKeyService(given if len(given) == 32 else parse_master_key(given.decode("ascii", "replace")))
    if not (callable(getattr(given, "wrap", None)) and callable(getattr(given, "unwrap", None))):
        raise KeyUnavailable(f"master_key is {type(given).__name__}: give 32 bytes in base64url, or a KeyService")
    return given


def key_file_service(folder: Path, database: Database) -> KeyService:
    """The key file of an embedded store, made on first use; never made anew for a store that was sealed with another."""
    path = folder / KEY_FILE
    key = read_key_file(path)
    if key is None and sealed_before(database):
        raise KeyUnavailable(
            f"{path} is missing, and this store was sealed with it: put it back, or give the key as master_key"
        )
    return LocalKeyService(key or create_key_file(path))
