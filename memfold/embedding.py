"""From texts to vectors: what an embedder must be, and the wrapper that holds one to it.

memfold's own two are in `minilm`; any sentence-transformers model is here, imported when used. Whatever an embedder
returns is checked before anything trusts it: a NaN in an index would spoil every search.
"""

import threading
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from memfold.errors import EmbedderFailed, RerankerFailed, SettingsError

Vectors = NDArray[np.float32]
"""float32, shape (n, d)."""

NAME_CHARACTERS_MAX = 200
NEAR_ENOUGH = 1e-6


@runtime_checkable
class Embedder(Protocol):
    """Makes vectors of texts. Give one to `MemoryStore(embedder=…)`.

    `name` says which model, and everything that changes its vectors (release, quantization): vectors are stored under it
    and never mixed with those of another. `encode` returns float32 of shape (n, d), a unit vector for each text in order,
    the same for the same text whatever stands beside it; d never changes. It is called from several threads at once.
    """

    @property
    def name(self) -> str: ...

    def encode(self, texts: Sequence[str]) -> Vectors: ...


class SentenceTransformerEmbedder:
    """Any model of sentence-transformers, by its name on the hub or its folder. Needs `memfold[sentence-transformers]`.

    The model is loaded by the first text. `name` is `model` unless given; give one if the model may change under it.

    Raises:
        SettingsError: sentence-transformers is not installed.
        EmbedderFailed: the model cannot be loaded.
    """

    def __init__(self, model: str, *, name: str | None = None, **options: Any) -> None:
        self.name = name or model
        failed = partial(EmbedderFailed, self.name)
        self._load = _Loading("SentenceTransformer", model, options, setting="embedder", failed=failed)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of the texts, float32 (n, d)."""
        model = self._load()
        return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), dtype=np.float32)


@runtime_checkable
class Reranker(Protocol):
    """Says how well texts answer a query, looking at both together. Give one to `MemoryStore(reranker=…)`.

    `rerank` returns a number a text, in order, from 0 (does not answer) to 1 (does). It is called from several threads at once.
    """

    def rerank(self, query: str, texts: Sequence[str]) -> Sequence[float]: ...


class CrossEncoderReranker:
    """Any cross-encoder of sentence-transformers, by its name on the hub or its folder. Needs `memfold[sentence-transformers]`.

    The model is loaded by the first query. Its scores go through the logistic function, if they have not yet.

    Raises:
        SettingsError: sentence-transformers is not installed.
        RerankerFailed: the model cannot be loaded.
    """

    def __init__(self, model: str, **options: Any) -> None:
        self._load = _Loading("CrossEncoder", model, options, setting="reranker", failed=RerankerFailed)

    def rerank(self, query: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers, from 0 to 1."""
        model = self._load()
        found = model.predict([(query, text) for text in texts], show_progress_bar=False)
        scores = np.asarray(found, np.float64).reshape(len(texts), -1)[:, -1]
        is_logistic = type(model.activation_fn).__name__ == "Sigmoid"
        brought: list[float] = (scores if is_logistic else 1 / (1 + np.exp(-scores))).tolist()
        return brought


class _Loading:
    """A model of sentence-transformers, loaded when it is first asked for; `failed` makes the error of one that cannot be."""

    def __init__(
        self, kind: str, model: str, options: dict[str, Any], *, setting: str, failed: Callable[[str], Exception]
    ) -> None:
        self._kind, self._name, self._options = kind, model, options
        self._setting, self._failed = setting, failed
        self._lock = threading.Lock()
        self._model: Any = None

    def __call__(self) -> Any:
        with self._lock:
            if self._model is None:
                self._model = self._load()
            return self._model

    def _load(self) -> Any:
        try:
            import sentence_transformers
        except ImportError:
            install = "pip install 'memfold[sentence-transformers]'"
            raise SettingsError(self._setting, f"needs sentence-transformers, which is not installed: {install}") from None
        try:
            return getattr(sentence_transformers, self._kind)(self._name, **self._options)
        except Exception as error:
            raise self._failed(f"could not be loaded ({type(error).__name__}: {error})") from error


def reranked(reranker: Reranker, query: str, texts: Sequence[str]) -> list[float]:
    """What a reranker says, held to what it promises.

    Raises:
        RerankerFailed: it raised, or returned something else than a number from 0 to 1 for each text.
    """
    try:
        given = reranker.rerank(query, texts)
    except (RerankerFailed, SettingsError):
        raise
    except Exception as error:
        raise RerankerFailed(f"raised {type(error).__name__}") from error
    try:
        scores = np.asarray(given, np.float64)
    except (TypeError, ValueError) as error:
        raise RerankerFailed("returned something that is no list of numbers") from error
    if scores.shape != (len(texts),) or not ((scores >= 0) & (scores <= 1)).all():
        raise RerankerFailed(f"did not return a number from 0 to 1 for each of {len(texts)} texts")
    found: list[float] = scores.tolist()
    return found


class Encoder:
    """An embedder that keeps its word: every vector it hands on is finite, of one dimension and of unit length."""

    def __init__(self, embedder: Embedder, *, seconds_a_text: float = 0.005) -> None:
        name = getattr(embedder, "name", None)
        is_class = isinstance(embedder, type)
        if is_class or not _is_name(name) or not callable(getattr(embedder, "encode", None)):
            what = f"the class {embedder.__name__}" if isinstance(embedder, type) else type(embedder).__name__
            wanted = f"an object with a name (1 to {NAME_CHARACTERS_MAX} characters) and encode(texts)"
            raise SettingsError("embedder", f"is {what}: give {wanted}")
        self.name = str(name)
        self.dimension: int | None = None
        self.seconds_a_text = seconds_a_text  # until it is measured
        self._measured = False
        self._embedder = embedder

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors, float32 (n, d); a vector of zeros stays one, and is like nothing.

        Raises:
            EmbedderFailed: it raised, or returned something else than it promises.
        """
        return normalized(self._encode(texts))

    def encode_query(self, query: str) -> Vectors:
        """The unit vector of a query, float32 (d,).

        One that is near enough to length 1 is taken as it is. A vector that is kept never is: it must not depend on its batch.

        Raises: as `encode`.
        """
        vectors = self._encode([query])
        with np.errstate(over="ignore"):
            is_unit = abs(float(vectors[0] @ vectors[0]) - 1) < NEAR_ENOUGH
        vector: Vectors = vectors[0] if is_unit else normalized(vectors)[0]
        return vector

    def _encode(self, texts: Sequence[str]) -> Vectors:
        begun = perf_counter()
        try:
            given = self._embedder.encode(texts)
        except (EmbedderFailed, SettingsError):
            raise
        except Exception as error:
            raise EmbedderFailed(self.name, f"raised {type(error).__name__}") from error
        vectors = self._checked(given, len(texts))
        if texts and self._measured:
            self.seconds_a_text += 0.2 * ((perf_counter() - begun) / len(texts) - self.seconds_a_text)
        self._measured = True  # from the second call on: the first may have loaded the model
        return vectors

    def _checked(self, given: object, count: int) -> Vectors:
        try:
            vectors: Vectors = np.ascontiguousarray(given, dtype=np.float32)
        except (TypeError, ValueError) as error:
            raise EmbedderFailed(self.name, "returned something that is no array of numbers") from error
        if vectors.ndim != 2 or len(vectors) != count or vectors.shape[1] == 0:
            raise EmbedderFailed(self.name, f"returned an array of shape {vectors.shape} for {count} texts, not ({count}, d)")
        if self.dimension is not None and vectors.shape[1] != self.dimension:
            raise EmbedderFailed(self.name, f"returned vectors of {vectors.shape[1]} dimensions, {self.dimension} before")
        if not np.isfinite(vectors).all():
            raise EmbedderFailed(self.name, "returned a vector with NaN or infinity in it")
        self.dimension = vectors.shape[1]
        return vectors


def normalized(vectors: Vectors) -> Vectors:
    """Every row at length 1; rows of zeros stay as they are."""
    largest = np.abs(vectors).max(axis=1, keepdims=True, initial=0)  # first, or the squares of extreme numbers overflow
    scaled = np.divide(vectors, largest, out=np.zeros_like(vectors), where=largest > 0)
    norms = np.sqrt(np.einsum("ij,ij->i", scaled, scaled))[:, None]
    return np.asarray(np.divide(scaled, norms, out=np.zeros_like(scaled), where=norms > 0), np.float32)


def _is_name(name: object) -> bool:
    """Whether vectors can be stored under it."""
    if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS_MAX or "\0" in name:
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
