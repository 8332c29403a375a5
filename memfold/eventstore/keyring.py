"""Who a session belongs to, and the keys of tenants and users.

Names are looked up by keyed hash and kept sealed; ids are random. Keys are unwrapped once and cached in this process; a
cached key is never trusted to be alive: every append names its version and the log judges.
"""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from memfold.errors import KeyUnavailable, SessionOwnerConflict
from memfold.eventstore import arrays, sealing
from memfold.eventstore.database import Database
from memfold.eventstore.keyservice import KeyService

NOBODY = bytes(16)
CACHED_MAX = 10_000


class SessionRef(NamedTuple):
    """A session as this process knows it: its stream, its names and its user's key."""

    stream: bytes
    session_id: str
    user_id: str
    user: bytes
    key: sealing.WrappingKey


class Keyring:
    """The keys of one tenant."""

    def __init__(self, database: Database, service: KeyService, tenant_name: str) -> None:
        self._database = database
        self._service = service
        lookup = open_lookup_key(database, service)
        self._open_tenant(sealing.keyed_hash(lookup, b"tenant", tenant_name.encode()))
        self._names = self.tenant_key.subkey(sealing.LOOKUP)
        self._sessions: OrderedDict[str, SessionRef] = OrderedDict()
        self._users: OrderedDict[bytes, sealing.WrappingKey] = OrderedDict()
        self._lock = threading.Lock()

    # -- names ---------------------------------------------------------------------------------------------------------

    def session_hmac(self, session_id: str) -> bytes:
        """How a session's name is looked up."""
        return sealing.keyed_hash(self._names, b"session", session_id.encode())

    def user_hmac(self, user_id: str) -> bytes:
        """How a user's name is looked up."""
        return sealing.keyed_hash(self._names, b"user", user_id.encode())

    def idempotency_hmac(self, stream: bytes, key: str) -> bytes:
        """How an idempotency key of a stream is looked up."""
        return sealing.keyed_hash(self._names, b"idempotency", stream, key.encode())

    # -- sessions ------------------------------------------------------------------------------------------------------

    def open_session(self, session_id: str, user_id: str | None, at: datetime) -> SessionRef:
        """The session of this name, made if there is none. `user_id` None: whoever it belongs to, else the session's name.

        Raises:
            SessionOwnerConflict: it belongs to another user.
        """
        ref = self._sessions.get(session_id)
        if ref is None or (user_id is not None and ref.user_id != user_id):
            # Also where we know another owner: the session may have been forgotten since, and its name be free.
            ref = self.find_session(session_id)
        while ref is None:
            self._create_session(session_id, session_id if user_id is None else user_id, at)
            ref = self.find_session(session_id)
        if user_id is not None and ref.user_id != user_id:
            raise SessionOwnerConflict
        return ref

    def find_session(self, session_id: str) -> SessionRef | None:
        """The session of this name as the database has it now; None if there is none."""
        row = self._database.row(
            SESSION + "WHERE s.tenant_id = %s AND s.name_hmac = %s", (self.tenant, self.session_hmac(session_id))
        )
        if row is None:
            self.drop(session_id)
            return None
        return self._remember(self._session(row))

    def session_of(self, session_id: str, stream: bytes, key_version: int) -> SessionRef | None:
        """The session of this name, from memory if that still speaks of `stream` and this key; it may be another by now."""
        ref = self._sessions.get(session_id)
        if ref and ref.stream == stream and ref.key.version == key_version:
            return ref
        return self.find_session(session_id)

    def session_of_stream(self, stream: bytes) -> SessionRef | None:
        """The session a stream belongs to; None if it was forgotten."""
        row = self._database.row(SESSION + "WHERE s.tenant_id = %s AND s.stream_id = %s", (self.tenant, arrays.uuid(stream)))
        return self._session(row) if row else None

    def drop(self, session_id: str) -> None:
        """Forget what this process knows of a session and of its user's key."""
        with self._lock:
            ref = self._sessions.pop(session_id, None)
            if ref:
                self._users.pop(ref.user, None)

    def drop_user(self, user: bytes) -> None:
        """Forget what this process knows of a user's key and sessions."""
        with self._lock:
            self._users.pop(user, None)
            for session_id in [name for name, ref in self._sessions.items() if ref.user == user]:
                del self._sessions[session_id]

    def sessions_of_streams(self, streams: set[bytes]) -> dict[bytes, SessionRef]:
        """The sessions these streams belong to, of those that were not forgotten."""
        query = SESSION + "WHERE s.tenant_id = %s AND s.stream_id = ANY(%s)"
        rows = self._database.rows(query, (self.tenant, arrays.uuid_array(sorted(streams)))) if streams else []
        return {ref.stream: ref for ref in map(self._session, rows)}

    def find_user(self, user_id: str) -> bytes | None:
        """The random id of the user of this name; None if there is none."""
        row = self._database.row(
            "SELECT user_id FROM memfold_keys.users WHERE tenant_id = %s AND name_hmac = %s",
            (self.tenant, self.user_hmac(user_id)),
        )
        return row.user_id.bytes if row else None

    def streams_of_user(self, user: bytes) -> list[bytes]:
        """The streams of a user's sessions, oldest first."""
        query = "SELECT stream_id FROM memfold.sessions WHERE tenant_id = %s AND user_id = %s ORDER BY created_at, stream_id"
        return [row.stream_id.bytes for row in self._database.rows(query, (self.tenant, arrays.uuid(user)))]

    def streams_of_names(self, session_ids: Sequence[str]) -> list[bytes]:
        """The streams of the sessions of these names, of those that there are."""
        query = "SELECT stream_id FROM memfold.sessions WHERE tenant_id = %s AND name_hmac = ANY(%s)"
        names = arrays.bytea_array([self.session_hmac(session_id) for session_id in session_ids])
        found = self._database.read(lambda connection: connection.execute(query, (self.tenant, names)).fetchall())
        return [row[0].bytes for row in found]

    # -- keys ----------------------------------------------------------------------------------------------------------

    def wrapping_keys(self, ids: set[bytes]) -> dict[bytes, sealing.WrappingKey]:
        """The living keys among `ids` (users' and the tenant's), for opening events of many streams."""
        found = {self.tenant_key.id: self.tenant_key} if self.tenant_key.id in ids else {}
        missing = sorted(key_id for key_id in ids - found.keys() if len(key_id) == sealing.KEY_ID_BYTES)
        query = "SELECT user_id, wrapped_key, key_version FROM memfold_keys.users WHERE tenant_id = %s AND user_id = ANY(%s)"
        for row in self._database.rows(query, (self.tenant, arrays.uuid_array(missing))) if missing else []:
            found[row.user_id.bytes] = self._user_key(row.user_id.bytes, row.wrapped_key, row.key_version)
        return found

    def _user_key(self, user: bytes, wrapped: bytes, version: int) -> sealing.WrappingKey:
        cached = self._users.get(user)
        if cached and cached.version == version:
            return cached
        key = sealing.WrappingKey(self._service.unwrap(wrapped, context=self._context(b"user", user)), user, version)
        with self._lock:
            self._users[user] = key
            _trim(self._users)
        return key

    def _session(self, row: Any) -> SessionRef:
        stream, user = row.stream_id.bytes, row.user_id.bytes
        key = self._user_key(user, row.wrapped_key, row.key_version)
        name = key.subkey(sealing.NAME)
        session_id = sealing.unseal(name, row.sealed_name, self._context(b"session name", stream))
        user_id = sealing.unseal(name, row.sealed_user, self._context(b"user name", user))
        return SessionRef(stream, session_id.decode(), user_id.decode(), user, key)

    def _remember(self, ref: SessionRef) -> SessionRef:
        with self._lock:
            self._sessions[ref.session_id] = ref
            _trim(self._sessions)
        return ref

    def _create_session(self, session_id: str, user_id: str, at: datetime) -> None:
        user, key = self._open_user(user_id)
        stream = secrets.token_bytes(16)
        sealed = sealing.seal(key.subkey(sealing.NAME), session_id.encode(), self._context(b"session name", stream))
        self._write(
            "SELECT memfold.open_session(%s, %s, %s, %s, %s, %s, %s)",
            (self.tenant, arrays.uuid(stream), self.session_hmac(session_id), arrays.uuid(user), key.version, sealed, at),
        )

    def _open_user(self, user_id: str) -> tuple[bytes, sealing.WrappingKey]:
        query = "SELECT user_id, wrapped_key, key_version FROM memfold_keys.users WHERE tenant_id = %s AND name_hmac = %s"
        while (row := self._database.row(query, (self.tenant, self.user_hmac(user_id)))) is None:
            self._create_user(user_id)
        return row.user_id.bytes, self._user_key(row.user_id.bytes, row.wrapped_key, row.key_version)

    def _create_user(self, user_id: str) -> None:
        user, key = secrets.token_bytes(16), sealing.fresh_key()
        name = sealing.seal(sealing.subkey(key, sealing.NAME), user_id.encode(), self._context(b"user name", user))
        wrapped = self._service.wrap(key, context=self._context(b"user", user))
        self._write(
            "SELECT memfold.open_user(%s, %s, %s, %s, %s)",
            (self.tenant, arrays.uuid(user), self.user_hmac(user_id), name, wrapped),
        )

    def _write(self, query: str, parameters: tuple[object, ...]) -> None:
        # Opening is harmless to repeat, so a lost connection is simply tried again.
        self._database.read(lambda connection: connection.execute(query, parameters))

    def _context(self, kind: bytes, subject: bytes) -> bytes:
        return kind + b"\0" + self.tenant.to_bytes(8, "big", signed=True) + subject

    def _open_tenant(self, name_hmac: bytes) -> None:
        query = "SELECT tenant_id, stream_id, wrapped_key, key_version FROM memfold_keys.tenants WHERE name_hmac = %s"
        row = self._database.row(query, (name_hmac,))
        if row is None:
            self.tenant, stream, key = secrets.randbits(62), secrets.token_bytes(16), sealing.fresh_key()
            wrapped = self._service.wrap(key, context=self._context(b"tenant", stream))
            self._write(
                "SELECT memfold.open_tenant(%s, %s, %s, %s, now())", (name_hmac, self.tenant, arrays.uuid(stream), wrapped)
            )
            row = self._database.row(query, (name_hmac,))
        self.tenant = row.tenant_id
        self.tenant_stream: bytes = row.stream_id.bytes
        key = self._service.unwrap(row.wrapped_key, context=self._context(b"tenant", self.tenant_stream))
        self.tenant_key = sealing.WrappingKey(key, self.tenant_stream, row.key_version)


SESSION = """
SELECT s.stream_id, s.user_id, s.sealed_name, s.created_at, u.sealed_name AS sealed_user, u.wrapped_key, u.key_version
FROM memfold.sessions s JOIN memfold_keys.users u USING (tenant_id, user_id) """


def sealed_before(database: Database) -> bool:
    """Whether a master key was ever used on this database: then a new one would open nothing."""
    return database.row("SELECT 1 FROM memfold_keys.master") is not None


def open_lookup_key(database: Database, service: KeyService) -> bytes:
    """The key that tenants' names are hashed with. It is wrapped by the master key, so opening it finds a wrong one.

    Raises:
        KeyUnavailable: the master key is not the one this database was sealed with; nothing was written.
    """
    query = "SELECT wrapped_lookup FROM memfold_keys.master"
    row = database.row(query)
    if row is None:
        wrapped = service.wrap(sealing.fresh_key(), context=b"lookup")
        database.read(lambda connection: connection.execute("SELECT memfold.open_master(%s)", (wrapped,)))
        row = database.row(query)
    key = service.unwrap(row.wrapped_lookup, context=b"lookup")
    if len(key) != sealing.KEY_BYTES:
        raise KeyUnavailable("the key service returned something that is no key: check its configuration")
    return key


def _trim(cache: OrderedDict[Any, Any]) -> None:
    while len(cache) > CACHED_MAX:
        cache.popitem(last=False)
