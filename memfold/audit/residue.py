"""Is a word still readable on disk? Looks for canaries in every byte of a folder, in the encodings a word may hide in.

Nothing is parsed: data files, WAL, logs and temporary files are read as bytes. A scan that finds nothing proves nothing by
itself, so every scan first plants a positive and must find it.
"""

import base64
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

CHUNK_BYTES = 4 * 1024 * 1024


class Hit(NamedTuple):
    """Where a canary was found: which one (by its place in the list), in which encoding, in which file at which byte."""

    canary: int
    encoding: str
    path: Path
    offset: int


class Scan(NamedTuple):
    """What a scan read and found. The planted positive is not among the hits."""

    hits: list[Hit]
    files: int
    bytes_read: int


class ScanFailed(Exception):
    """The scan did not find what it had planted itself, so what it says of other words is worth nothing."""


def scan(folder: Path, canaries: Iterable[str]) -> Scan:
    """Look for `canaries` (each of at least six characters) in every file below `folder`.

    A file that vanishes while it is read is passed over: what the server deletes is no longer there to be found.

    Raises:
        ScanFailed: the planted positive was not found in every encoding.
        ValueError: a canary is too short to be told from chance.
    """
    words = list(canaries)
    if any(len(word) < 6 for word in words):
        raise ValueError("a canary needs at least six characters, or chance finds it")
    planted = f"planted-{secrets.token_hex(8)}"
    marker = folder / f".{planted}"
    needles = [(number, name, needle) for number, word in enumerate([*words, planted]) for name, needle in encodings(word)]
    try:
        marker.write_bytes(b"\0\xff".join(needle for number, _, needle in needles if number == len(words)))
        found, files, size = _search(folder, needles)
    finally:
        marker.unlink(missing_ok=True)
    seen = {hit.encoding for hit in found if hit.canary == len(words) and hit.path == marker}
    if seen != {name for number, name, _ in needles if number == len(words)}:
        raise ScanFailed("the planted word was not found in every encoding: the scan cannot be believed")
    return Scan([hit for hit in found if hit.canary < len(words)], files - 1, size)


def encodings(word: str) -> Iterator[tuple[str, bytes]]:
    """The forms a word may take on disk, without those that are equal to an earlier one."""
    plain = word.encode()
    forms = {
        "utf-8": plain,
        "utf-8 upper": word.upper().encode(),
        "utf-16-le": word.encode("utf-16-le"),
        "utf-16-be": word.encode("utf-16-be"),
        "hex": plain.hex().encode(),
        "hex upper": plain.hex().upper().encode(),
        "json": json.dumps(word)[1:-1].encode(),
        "url": quote(word).encode(),
        "reversed": plain[::-1],
    }
    for start in range(3):
        # What base64 makes of the word does not depend on its neighbours but in the first and last characters.
        inner = base64.b64encode(b"\0" * start + plain).rstrip(b"=")
        forms[f"base64 at {start}"] = inner[[0, 2, 3][start] : -1]
    seen: set[bytes] = set()
    for name, form in forms.items():
        if form not in seen:
            seen.add(form)
            yield name, form


def _search(folder: Path, needles: list[tuple[int, str, bytes]]) -> tuple[list[Hit], int, int]:
    overlap = max(len(needle) for _, _, needle in needles) - 1
    found: dict[tuple[int, str, Path, int], Hit] = {}
    files = size = 0
    for path in _files(folder):
        try:
            with path.open("rb") as file:
                files += 1
                for start, chunk in _chunks(file.fileno(), overlap):
                    size += len(chunk)
                    for hit in _hits(path, start, chunk, needles):
                        found[hit.canary, hit.encoding, hit.path, hit.offset] = hit
        except FileNotFoundError:
            continue
    return list(found.values()), files, size


def _files(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def _chunks(descriptor: int, overlap: int) -> Iterator[tuple[int, bytes]]:
    """A file in overlapping pieces, so that a word across a border is found."""
    start, kept = 0, b""
    while data := os.read(descriptor, CHUNK_BYTES):
        yield start - len(kept), kept + data
        start += len(data)
        kept = (kept + data)[-overlap:]


def _hits(path: Path, start: int, chunk: bytes, needles: list[tuple[int, str, bytes]]) -> Iterator[Hit]:
    for number, name, needle in needles:
        place = chunk.find(needle)
        while place >= 0:
            yield Hit(number, name, path, start + place)
            place = chunk.find(needle, place + 1)
