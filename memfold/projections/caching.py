"""What was asked before: vectors of queries, kept in RAM for a while. cachetools enters here and nowhere else.

A query is somebody's words, so it is known by a keyed hash only; the key lives and dies with the process.
"""

import secrets
import threading
from collections.abc import Callable

from cachetools import TTLCache

from memfold.eventstore.sealing import keyed_hash
from memfold.projections.words import Floats

LABEL = b"query"


class Rate:
    """How often something was there already. None before it was first asked for."""

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0

    @property
    def share(self) -> float | None:
        """Hits of all, in [0, 1]."""
        asked = self.hits + self.misses
        return self.hits / asked if asked else None

    def count(self, *, hit: bool) -> None:
        """One more. Two threads at once may count as one."""
        if hit:
            self.hits += 1
        else:
            self.misses += 1


class QueryVectors:
    """The vectors of the last queries, at most `count_max`, for `ttl_s` seconds each. Safe for several threads."""

    def __init__(self, *, count_max: int, ttl_s: float) -> None:
        self.rate = Rate()
        self._key = secrets.token_bytes(32)
        self._kept: TTLCache[bytes, Floats] = TTLCache(count_max, ttl_s)
        self._lock = threading.Lock()

    def known_by(self, *said: str) -> bytes:
        """The keyed hash that what was said is known by."""
        return keyed_hash(self._key, LABEL, *(part.encode("utf-8", "surrogatepass") for part in said))

    def vector(self, model: str, query: str, make: Callable[[str], Floats]) -> Floats:
        """The query's vector by this model, made if it is not here. What `make` raises is passed on, and nothing is kept."""
        key = self.known_by(model, query)
        with self._lock:
            kept = self._kept.get(key)
        self.rate.count(hit=kept is not None)
        if kept is not None:
            return kept
        made = make(query)
        with self._lock:
            self._kept[key] = made
        return made
