"""How bytes are sealed: AES-256-GCM under single-use keys, HKDF subkeys, and the digests the spine keeps.

Pure functions over bytes; no key is stored here and none is looked up. Called by `codec` for events, by `keyring` for
keys and names. AES-GCM is NIST SP 800-38D, HKDF is RFC 5869.

Every sealed blob begins with a format byte, so that another algorithm or compression can be told apart later. Every
wrapped key names, after that byte, the key that wrapped it.
"""

import hmac
import os
from hashlib import sha256
from struct import Struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF, HKDFExpand

KEY_BYTES = 32
NONCE_BYTES = 12
KEY_ID_BYTES = 16
SEAL_BYTES = 1 + NONCE_BYTES + 16  # what `seal` adds: format, nonce, tag

SEALED_1 = b"\x01"  # AES-256-GCM over plain msgpack
WRAPPED_1 = b"\x01"  # AES-256-GCM over a 32-byte key

PAYLOAD = b"memfold payload 1"
COMMITMENT = b"memfold commitment 1"
BIND = b"memfold bind 1"  # of a source's key, from which a key that is bound to the source is derived
BOUND = b"memfold bound 1"
NAME = b"memfold name 1"
LOOKUP = b"memfold lookup 1"

_EVENT_HEADER = Struct("!q16s16shh")

BadSeal = InvalidTag

_SHA256 = hashes.SHA256()


def vector_label(model: str) -> bytes:
    """The purpose of the subkey that seals the vector which the embedding model `model` made of an event."""
    return b"memfold vector 1 " + model.encode()


def subkey(key: bytes, purpose: bytes) -> bytes:
    """Derive a 32-byte key for one purpose; none tells anything of another, nor of `key`.

    HKDF-Expand with SHA-256. Extraction is left out because our keys are uniformly random (RFC 5869, 3.3).
    """
    return HKDFExpand(_SHA256, KEY_BYTES, purpose).derive(key)


def derived_key(material: bytes, purpose: bytes) -> bytes:
    """Derive a 32-byte key from several keys in a row, all of which are needed: HKDF with SHA-256 (RFC 5869)."""
    return HKDF(_SHA256, KEY_BYTES, salt=None, info=purpose).derive(material)


def keyed_hash(key: bytes, *parts: bytes) -> bytes:
    """HMAC-SHA256 over length-prefixed parts: without `key` it says nothing about them, and parts cannot run together."""
    message = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
    return hmac.digest(key, message, "sha256")


def event_header(tenant: int, event_id: bytes, stream: bytes, type_number: int, schema_version: int) -> bytes:
    """The associated data of an event's payload: a payload moved to another event, stream, type or tenant does not open."""
    return _EVENT_HEADER.pack(tenant, event_id, stream, type_number, schema_version)


def fresh_key() -> bytes:
    """A new random 256-bit key."""
    return os.urandom(KEY_BYTES)


def seal(key: bytes, plaintext: bytes, associated: bytes) -> bytes:
    """Seal `plaintext`; only `key` and the same `associated` data open it again."""
    nonce = os.urandom(NONCE_BYTES)
    return SEALED_1 + nonce + AESGCM(key).encrypt(nonce, plaintext, associated)


def unseal(key: bytes, blob: bytes, associated: bytes) -> bytes:
    """Open what `seal` made.

    Raises:
        BadSeal: another key, other associated data, an unknown format, or a changed blob.
    """
    if blob[:1] != SEALED_1:
        raise BadSeal
    return AESGCM(key).decrypt(blob[1:13], blob[13:], associated)


def digest(header: bytes, blob: bytes) -> bytes:
    """What the spine keeps of a payload: SHA-256 over its header and ciphertext, checkable without any key."""
    return sha256(header + blob).digest()


class WrappingKey:
    """A key that wraps other keys, kept ready: making the cipher costs more than using it.

    `id` (16 bytes) is written into every blob; `version` is bound into it.
    """

    def __init__(self, key: bytes, key_id: bytes, version: int) -> None:
        self.id = key_id
        self.version = version
        self._key = key
        self._cipher = AESGCM(key)
        self._version = version.to_bytes(4, "big")

    def __repr__(self) -> str:
        return f"WrappingKey(version={self.version})"

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap `key` for the place that `context` names."""
        nonce = os.urandom(NONCE_BYTES)
        return WRAPPED_1 + self.id + nonce + self._cipher.encrypt(nonce, key, self._version + context)

    def unwrap(self, blob: bytes, context: bytes) -> bytes:
        """Open what `wrap` made, in the same place, with the same key and version; else BadSeal."""
        if blob[:1] != WRAPPED_1 or blob[1:17] != self.id:
            raise BadSeal
        return self._cipher.decrypt(blob[17:29], blob[29:], self._version + context)

    def subkey(self, purpose: bytes) -> bytes:
        """A key of its own for `purpose`, such as sealing names."""
        return subkey(self._key, purpose)


def wrapping_key_id(blob: bytes) -> bytes:
    """Which key wrapped this blob."""
    return blob[1:17]
