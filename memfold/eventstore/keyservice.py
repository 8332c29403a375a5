"""The master key, or whatever stands in for it.

A `KeyService` wraps and unwraps the keys of tenants and users; a KMS fits behind its two methods. `LocalKeyService` does
it with a 32-byte master key held in this process. Lose the master key and every memory is lost: that is the point of it.
"""

import base64
import binascii
import hmac
import os
import secrets
from pathlib import Path
from typing import Protocol

from memfold.errors import KeyUnavailable
from memfold.eventstore import sealing

MAKE_A_KEY = 'python -c "import base64, os; print(base64.urlsafe_b64encode(os.urandom(32)).decode())"'


class KeyService(Protocol):
    """Wraps keys under a master key that never leaves it."""

    def wrap(self, key: bytes, *, context: bytes) -> bytes:
        """Wrap `key` so that only this service, given the same `context`, can unwrap it."""
        ...

    def unwrap(self, blob: bytes, *, context: bytes) -> bytes:
        """Undo `wrap`. Raises KeyUnavailable if this service did not wrap the blob for this context."""
        ...


class LocalKeyService:
    """A key service over a master key in this process's memory."""

    def __init__(self, master_key: bytes) -> None:
        key_id = hmac.digest(master_key, b"memfold master key id", "sha256")[: sealing.KEY_ID_BYTES]
        self._key = sealing.WrappingKey(master_key, key_id, 1)

    def __repr__(self) -> str:
        return "LocalKeyService(…)"

    def wrap(self, key: bytes, *, context: bytes) -> bytes:
        return self._key.wrap(key, context)

    def unwrap(self, blob: bytes, *, context: bytes) -> bytes:
        try:
            return self._key.unwrap(blob, context)
        except sealing.BadSeal:
            raise KeyUnavailable(
                "the master key is not the one this store was sealed with: give the right one; nothing was written"
            ) from None


def parse_master_key(text: str) -> bytes:
    """Read 32 bytes from base64url, with or without padding.

    Raises:
        KeyUnavailable: it is anything else.
    """
    try:
        key = base64.b64decode(text.strip() + "=" * (-len(text.strip()) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != sealing.KEY_BYTES:
        raise KeyUnavailable(f"the master key is not 32 bytes in base64url; make one with: {MAKE_A_KEY}")
    return key


def read_key_file(path: Path) -> bytes | None:
    """The master key in `path`; None if there is no such file.

    Raises:
        KeyUnavailable: the file cannot be read, is open to others, or holds no key.
    """
    try:
        status = path.stat()
        text = path.read_text("ascii")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise KeyUnavailable(f"{path} cannot be read as a key file: {type(error).__name__}") from None
    if status.st_mode & 0o077:
        raise KeyUnavailable(f"{path} can be read by others: chmod 600 it, and consider who may have seen it")
    return parse_master_key(text)


def create_key_file(path: Path) -> bytes:
    """Make a new master key in `path` (0600), on disk before this returns; if another process was first, take its key."""
    text = base64.urlsafe_b64encode(os.urandom(sealing.KEY_BYTES))
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(text + b"\n")
            file.flush()
            os.fsync(file.fileno())
        publish(draft, path)
    finally:
        draft.unlink()
    key = read_key_file(path)
    if key is None:
        raise KeyUnavailable(f"{path} vanished while it was made: try again")
    return key


def publish(draft: Path, path: Path) -> None:
    """Give the finished file its name, unless the name is taken; a reader never sees half a key."""
    try:
        os.link(draft, path)
    except FileExistsError:
        return
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
