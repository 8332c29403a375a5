"""The two embedders that come with memfold: all-MiniLM-L6-v2 as an int8 ONNX graph, and a static model distilled from it.

Both are plain files under `memfold/models`, made and proven by scripts/models; each file's sha256 is checked before it is
loaded. Texts go through the graph one at a time: in a dynamically quantized graph a vector depends on what else is in its
batch, and a padded batch was no faster.

Models: Wang et al. 2020 (MiniLM), Reimers and Gurevych 2019 (sentence-transformers), Minish Lab 2024 (model2vec).
"""

import os
import threading
from collections.abc import Sequence
from functools import cache
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memfold.embedding import Embedder, Vectors, normalized
from memfold.errors import ModelFileError

MODELS = Path(__file__).parent / "models"
TOKENS_MAX = 256
BATCH_TEXTS = 4_096
FEW_TEXTS = 32  # too few to repeat their words
CHARACTERS_MAX = 4_000  # more than the 256 tokens either model looks at; the rest need not be tokenized
UNKNOWN = "[UNK]"


class _Lazy:
    """A model that is loaded by its first use, once, whichever thread is first."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._loaded: Any = None

    def _ready(self) -> Any:
        if self._loaded is None:
            with self._lock:
                if self._loaded is None:
                    self._loaded = self._load()
        return self._loaded

    def _load(self) -> Any:
        raise NotImplementedError

    def _file(self, name: str) -> bytes:
        return read_checked(self._folder, f"{self._folder.name}/{name}")


class MiniLMEmbedder(_Lazy):
    """all-MiniLM-L6-v2, int8: 384 dimensions, the first 256 tokens of a text, about 4 ms a text on one core."""

    name = "all-MiniLM-L6-v2-int8"

    def __init__(self, folder: Path = MODELS / "minilm") -> None:
        super().__init__(folder)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of the texts, float32 (n, 384).

        Raises:
            ModelFileError: a file of the model is missing or not the one that was shipped.
        """
        tokenizer, session = self._ready()
        vectors = np.empty((len(texts), 384), np.float32)
        for index, text in enumerate(texts):
            ids = np.array([tokenizer.encode(text[:CHARACTERS_MAX]).ids], np.int64)
            vectors[index] = session.run(None, {"input_ids": ids})[0][0]
        return vectors

    def _load(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        tokenizer = _tokenizer(self._file("tokenizer.json"))
        return tokenizer, onnxruntime.InferenceSession(self._file("model.onnx"), options, providers=["CPUExecutionProvider"])


class StaticEmbedder(_Lazy):
    """A vector a token, averaged: 256 dimensions, more than ten thousand texts a second, and nearly as good in a mix."""

    name = "all-MiniLM-L6-v2-static-256"

    def __init__(self, folder: Path = MODELS / "static") -> None:
        super().__init__(folder)

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Unit vectors of the texts, float32 (n, 256); zeros for a text of which no word is known.

        Raises:
            ModelFileError: a file of the model is missing or not the one that was shipped.
        """
        sums = np.zeros((len(texts), self._ready()[1].shape[1]), np.float32)
        for begin in range(0, len(texts), BATCH_TEXTS):
            self._add_up([text[:CHARACTERS_MAX] for text in texts[begin : begin + BATCH_TEXTS]], sums[begin:])
        return normalized(sums)

    def _add_up(self, texts: Sequence[str], sums: Vectors) -> None:
        """Set the first rows of `sums` to the sums of the texts' token vectors.

        A space always parts tokens, so a text's tokens are those of its pieces, and each piece is tokenized once: people use
        few words often. The vectors are whole numbers, so it does not matter in which order they are added.
        """
        if len(texts) < FEW_TEXTS:
            sums[: len(texts)] = self._token_sums(texts)[0]
            return
        numbers: dict[str, int] = {}
        pieces = [[numbers.setdefault(piece, len(numbers)) for piece in text.split(" ")] for text in texts]
        of_pieces, counts = self._token_sums(list(numbers))
        for index, (text, places) in enumerate(zip(texts, pieces, strict=True)):
            if counts[places].sum() <= TOKENS_MAX:
                sums[index] = of_pieces[places].sum(axis=0)
            else:
                sums[index] = self._token_sums([text])[0][0]

    def _token_sums(self, texts: Sequence[str]) -> tuple[Vectors, NDArray[np.int64]]:
        """The sum of the token vectors of each text, of its first 256 tokens, and how many those are."""
        tokenizer, embeddings, unknown = self._ready()
        tokens = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        sums = np.zeros((len(texts), embeddings.shape[1]), np.float32)
        for index, ids in enumerate(tokens):
            known = [token for token in ids if token != unknown]
            if known:
                sums[index] = embeddings[known].sum(axis=0, dtype=np.float32)
        return sums, np.array([len(ids) for ids in tokens], np.int64)

    def _load(self) -> Any:
        tokenizer = _tokenizer(self._file("tokenizer.json"))
        embeddings = np.load(BytesIO(self._file("embeddings.npy")))
        return tokenizer, embeddings, tokenizer.token_to_id(UNKNOWN)


class WordPieceCounter(_Lazy):
    """Counts tokens by the vocabulary of all-MiniLM-L6-v2 (BERT's, for English), never fewer than a text is worth.

    A piece the vocabulary knows is one token, so is a line break, and so is every byte of what it does not know: one "unknown"
    for a whole word of another script, or for a long run without spaces, would promise too much room. The tokens of a text
    are those of its lines, and of the breaks between them.
    """

    def __init__(self, folder: Path = MODELS / "minilm") -> None:
        super().__init__(folder)

    def __call__(self, text: str) -> int:
        """How many tokens a text has.

        Raises:
            ModelFileError: a file of the tokenizer is missing or not the one that was shipped.
        """
        lines = text.split("\n")
        return sum(self.of_lines(lines)) + len(lines) - 1

    def of_lines(self, lines: Sequence[str]) -> list[int]:
        """How many tokens each line has, its break not among them.

        Raises: as a call.
        """
        tokenizer, unknown = self._ready()
        encodings = tokenizer.encode_batch_fast(lines, add_special_tokens=False)
        return [
            len(encoding) if line.isascii() and line.isprintable() and unknown not in encoding.ids else self._with_bytes(line)
            for line, encoding in zip(lines, encodings, strict=True)
        ]

    def _with_bytes(self, text: str) -> int:
        """The known pieces of a text, and the bytes of everything else in it but white space."""
        tokenizer, unknown = self._ready()
        encoding = tokenizer.encode(text, add_special_tokens=False)
        spans = [span for span, piece in zip(encoding.offsets, encoding.ids, strict=True) if piece != unknown]
        rest, end = [], 0
        for begin, stop in spans:
            rest.append(text[end:begin])
            end = max(end, stop)
        rest.append(text[end:])
        return len(spans) + len("".join("".join(rest).split()).encode())

    def _load(self) -> Any:
        tokenizer = _tokenizer(self._file("tokenizer.json"))
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer, tokenizer.token_to_id(UNKNOWN)


@cache
def default_embedder() -> Embedder:
    """The embedder of a store that was given none: one in this process, loaded by its first text."""
    return MiniLMEmbedder()


@cache
def static_embedder() -> Embedder:
    """The embedder that answers while the better one has not seen everything yet."""
    return StaticEmbedder()


@cache
def default_count_tokens() -> WordPieceCounter:
    """The tokenizer of a store that was given none: one in this process, loaded by its first text."""
    return WordPieceCounter()


def _begin_anew() -> None:
    """In a forked child: a lock that another thread held stays locked for ever, and so would the model behind it."""
    default_embedder.cache_clear()
    static_embedder.cache_clear()
    default_count_tokens.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def read_checked(folder: Path, name: str) -> bytes:
    """A model file whose sha256 is the one that SHA256SUMS beside `folder` names.

    Raises:
        ModelFileError: it is missing, or another.
    """
    path = folder.parent / name
    try:
        sums = (folder.parent / "SHA256SUMS").read_text("utf-8")
        content = path.read_bytes()
    except OSError as error:
        raise ModelFileError(str(error.filename), "cannot be read") from error
    if f"{sha256(content).hexdigest()}  {name}" not in sums.splitlines():
        raise ModelFileError(str(path), "is not the file that was shipped (its sha256 is another)")
    return content


def _tokenizer(content: bytes) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_buffer(content)
