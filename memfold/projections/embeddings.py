"""The vectors of events: taken from where they are stored, made where they are not, and kept sealed.

A vector is stored in half precision, and everybody computes with what is stored, also who has just made it: so every
process, and every view folded anew, ranks alike.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from memfold.embedding import Encoder, Vectors, normalized
from memfold.errors import EmbedderFailed, StoreUnavailable
from memfold.eventstore import derived
from memfold.eventstore.database import Database
from memfold.eventstore.sealing import BadSeal
from memfold.projections.words import Floats

logger = logging.getLogger("memfold")

STORED = np.dtype("<f2")
CHUNK_TEXTS = 8  # made between two looks at the clock and at what others have stored meanwhile


class Source(NamedTuple):
    """An event that has, or is to have, a vector: where it stands, its own key, and the text that is embedded."""

    position: int
    event_id: bytes
    key: bytes
    text: str


class Position(Protocol):
    """Whatever says which event it is about."""

    @property
    def position(self) -> int: ...


class Embeddings:
    """The vectors of one tenant's events, of one model. Safe for several threads."""

    def __init__(self, database: Database, tenant: int, encoder: Encoder) -> None:
        self.encoder = encoder
        self._database = database
        self.tenant = tenant
        self._dimension_checked = False

    def sealed(self, positions: Sequence[int]) -> dict[int, bytes]:
        """What is stored of these events, by position."""
        return derived.stored_embeddings(self._database, self.tenant, self.encoder.name, positions)

    def opened(self, sources: Sequence[Source], sealed: Mapping[int, bytes]) -> dict[int, Floats]:
        """The vectors of those sources that have one, by position. One that does not open counts as missing.

        Raises:
            EmbedderFailed: they have another dimension than the embedder's.
        """
        opened = {
            source.position: self._open(source, sealed[source.position]) for source in sources if source.position in sealed
        }
        return unpacked({position: blob for position, blob in opened.items() if blob is not None})

    def make(self, sources: Sequence[Source], go_on: Callable[[], bool]) -> dict[int, Floats]:
        """Embed and store the sources in order, as long as `go_on` says so; return what there is then, by position.

        What somebody else has stored meanwhile is taken, not made again.

        Raises:
            EmbedderFailed: the embedder did; what was made before is stored.
        """
        found: dict[int, Floats] = {}
        for begin in range(0, len(sources), CHUNK_TEXTS):
            if not go_on():
                break
            chunk = sources[begin : begin + CHUNK_TEXTS]
            found |= self.opened(chunk, self.sealed([source.position for source in chunk]))
            found |= self.make_now([source for source in chunk if source.position not in found])
        return found

    def make_now(self, sources: Sequence[Source]) -> dict[int, Floats]:
        """Embed the sources, and store them if the database takes them.

        Raises:
            EmbedderFailed: the embedder did; nothing is stored.
        """
        packed = self._encoded(sources)
        try:
            self._store(sources, packed)
        except StoreUnavailable as error:
            logger.warning("%d vectors were made and could not be stored: %s", len(sources), error)
        return unpacked(dict(zip((source.position for source in sources), packed, strict=True)))

    def made(self, wanted: Sequence[Position], texts: Sequence[str]) -> dict[int, Floats]:
        """The vectors of texts, by position, as they would be if they had been stored; nothing is stored.

        Raises:
            EmbedderFailed: the embedder did.
        """
        if not texts:
            return {}
        vectors = rounded(self.encoder.encode(texts))
        return {want.position: vector for want, vector in zip(wanted, vectors, strict=True)}

    def put(self, sources: Sequence[Source]) -> None:
        """Embed and store those sources that have no vector yet.

        Raises:
            EmbedderFailed, StoreUnavailable: nothing is stored.
        """
        known = self.sealed([source.position for source in sources])
        missing = [source for source in sources if source.position not in known]
        self._store(missing, self._encoded(missing))

    def remake(self, sources: Sequence[Source]) -> list[float]:
        """Embed anew, and put that in the place of what is stored; return the cosines of old and new.

        NaN where there was none, or one that did not open.
        """
        old = self.sealed([source.position for source in sources])
        before = self.opened(sources, old)
        packed = self._encoded(sources)
        after = unpacked(dict(zip((source.position for source in sources), packed, strict=True)))
        positions, sealed = [source.position for source in sources], self._seal(sources, packed)
        derived.replace_embeddings(self._database, self.tenant, self.encoder.name, positions, sealed)
        derived.store_embeddings(self._database, self.tenant, self.encoder.name, positions, sealed)
        return [float(before[at] @ after[at]) if at in before else float("nan") for at in positions]

    def _open(self, source: Source, sealed: bytes) -> bytes | None:
        name = self.encoder.name
        try:
            blob = derived.open_vector(sealed, tenant=self.tenant, event_id=source.event_id, key=source.key, model=name)
        except BadSeal:
            advice = "it is made anew in this process; scripts/rebuild mends it"
            logger.warning("the vector at position %d does not open: %s", source.position, advice)
            return None
        dimension = len(blob) // STORED.itemsize
        if self.encoder.dimension not in (None, dimension):
            raise self._other_dimension(dimension)
        return blob

    def _seal(self, sources: Sequence[Source], packed: Sequence[bytes]) -> list[bytes]:
        return [
            derived.seal_vector(blob, tenant=self.tenant, event_id=source.event_id, key=source.key, model=self.encoder.name)
            for source, blob in zip(sources, packed, strict=True)
        ]

    def _encoded(self, sources: Sequence[Source]) -> list[bytes]:
        """The sources' vectors as they are stored; refused if those stored before have another dimension."""
        if not sources:
            return []
        packed = pack(self.encoder.encode([source.text for source in sources]))
        if not self._dimension_checked:
            # A few of a strange size were tampered with; if all are, it is the embedder that changed.
            sizes = {size for size in derived.stored_sizes(self._database, self.tenant, self.encoder.name) if size > 0}
            if sizes and len(packed[0]) not in sizes:
                raise self._other_dimension(max(sizes) // STORED.itemsize)
            self._dimension_checked = True
        return packed

    def _other_dimension(self, stored: int) -> EmbedderFailed:
        problem = f"returned vectors of {self.encoder.dimension} dimensions, and those stored under its name have {stored}"
        return EmbedderFailed(self.encoder.name, f"{problem}: a changed model needs another name")

    def _store(self, sources: Sequence[Source], packed: Sequence[bytes]) -> None:
        if sources:
            positions = [source.position for source in sources]
            derived.store_embeddings(self._database, self.tenant, self.encoder.name, positions, self._seal(sources, packed))


def pack(vectors: Vectors) -> list[bytes]:
    """Vectors as they are stored."""
    return [row.tobytes() for row in vectors.astype(STORED)]


def rounded(vectors: Vectors) -> Vectors:
    """Vectors as they are after they were stored."""
    return normalized(vectors.astype(STORED).astype(np.float32))


def unpacked(packed: dict[int, bytes]) -> dict[int, Floats]:
    """Stored vectors as unit vectors, by position."""
    if not packed:
        return {}
    vectors = normalized(np.stack([np.frombuffer(blob, STORED) for blob in packed.values()]).astype(np.float32))
    return dict(zip(packed, vectors, strict=True))
