"""Full text in RAM: what a text's words are, and which rows hold how many of a query's words.

A word is a run of letters and digits, in lower case, without accents, English ones stemmed (Porter 1980); a character of a
script that is written without spaces is a word by itself. English stop words are neither kept nor asked for.

`Words` weighs with Okapi BM25 (Robertson and Zaragoza 2009) over arrays. The weight of a turn read together with the turn
before it needs no index of its own: its counts are the sums of theirs. So nothing has to be indexed anew when a turn
between two others is changed or forgotten.
"""

import math
import re
import threading
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import Stemmer
from numpy.typing import NDArray

TERMS_MAX = 64  # a page of text as a query is told by its first words

Floats = NDArray[np.float32]
Slots = NDArray[np.int64]

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Thai, Lao, Burmese, Chinese, Japanese, Korean
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ACCENTS = re.compile("[\u0300-\u036f]")

# Words that say nothing of what is looked for.
STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        """a about an and any are as at be been but by can could did do does for from had has have he her him
        his how i if in into is it its me my of on or our s she so t than that the their them then there these
        they this to us was we were what when where which who whom whose why will with would you your""",
    )
)

K1, B = 1.2, 0.75

# BM25 calls a word worthless that stands in more than half of the rows, which in a session of three is nearly every word.
# So every session counts as if it went on from a hundred earlier turns of ordinary length that say nothing anybody asks for.
PRIOR_ROWS, PRIOR_WORDS = 100, 13

_CACHED_WORDS = 50_000
_thread = threading.local()


def words_of(text: str) -> list[str]:
    """The words of a text, in order, as they are indexed."""
    stemmer = getattr(_thread, "stemmer", None)
    if stemmer is None:
        stemmer = _thread.stemmer = Stemmer.Stemmer("porter", _CACHED_WORDS)  # a stemmer is for one thread
    words: list[str] = stemmer.stemWords(plain_words(text))
    return words


def plain_words(text: str) -> list[str]:
    """The words of a text, in order, unstemmed; stop words are left out."""
    return [word for word in _WORD.findall(plain(text)) if word not in STOP_WORDS]


def asked_for(query: str) -> list[str]:
    """The distinct words of a query, in order, at most TERMS_MAX; none if it holds nothing but stop words."""
    return list(dict.fromkeys(words_of(query)))[:TERMS_MAX]


def plain(text: str) -> str:
    """A text in lower case and without accents."""
    text = text.lower()
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text)))


class Matches(NamedTuple):
    """What a query's words weigh in every row: alone, and in the row together with the one before it."""

    alone: Floats
    paired: Floats


class Words:
    """The words of a view's rows, by slot. A slot is a place in the order of the stream; slots are given out rising."""

    def __init__(self) -> None:
        self._postings: dict[str, array[int]] = {}  # of each word the slots it stands in, rising, once for every time
        self._lengths = array("I")
        self._count = 0

    def add(self, slot: int, text: str) -> None:
        """Index a text at a slot that holds none."""
        found = words_of(text)
        self._lengths.extend([0] * (slot + 1 - len(self._lengths)))
        self._lengths[slot] = len(found)
        for word in found:
            postings = self._postings.get(word)
            if postings is None:
                self._postings[word] = array("I", [slot])
            elif postings[-1] <= slot:
                postings.append(slot)
            else:
                postings.insert(bisect_right(postings, slot), slot)
        self._count += len(found)

    def remove(self, slot: int, text: str) -> None:
        """Take a text out again, as it was added."""
        found = words_of(text)
        for word in found:
            postings = self._postings[word]
            del postings[bisect_left(postings, slot)]
            if not postings:
                del self._postings[word]
        self._lengths[slot] = 0
        self._count -= len(found)

    def renumber(self, slots: Slots) -> None:
        """Keep these slots only (no other holds a text), numbered 0, 1, 2 … in their order."""
        new = np.zeros(len(self._lengths), np.uint32)
        new[slots] = np.arange(len(slots), dtype=np.uint32)
        for word, postings in self._postings.items():
            self._postings[word] = array("I", new[np.frombuffer(postings, np.uint32)].tobytes())
        self._lengths = array("I", np.frombuffer(self._lengths, np.uint32)[slots].tobytes()) if len(slots) else array("I")

    def match(self, words: Sequence[str], slots: Slots) -> Matches:
        """The BM25 weights of the words in each of `slots`: all that hold a text, rising."""
        lengths = np.frombuffer(self._lengths, np.uint32)[slots].astype(np.float32) if len(slots) else np.zeros(0, np.float32)
        alone, paired = _Weights(lengths), _Weights(with_previous(lengths))
        for word in words:
            postings = self._postings.get(word)
            if postings:
                counts = np.bincount(np.frombuffer(postings, np.uint32), minlength=len(self._lengths))[slots].astype(np.float32)
                alone.add(counts)
                paired.add(with_previous(counts))
        return Matches(alone.sums, paired.sums)

    def dump(self, slots: Slots) -> list[list[tuple[str, int]]]:
        """The words of every slot with their counts, for comparing two views."""
        found: dict[int, dict[str, int]] = {int(slot): {} for slot in slots}
        for word, postings in self._postings.items():
            for slot in postings:
                found[slot][word] = found[slot].get(word, 0) + 1
        return [sorted(words.items()) for words in found.values()]

    def size_bytes(self) -> int:
        """About how much RAM the index takes."""
        return 4 * (self._count + len(self._lengths)) + 250 * len(self._postings)


class _Weights:
    """BM25 over rows of these lengths, word by word."""

    def __init__(self, lengths: Floats) -> None:
        prior = PRIOR_WORDS * PRIOR_ROWS
        self._rows = len(lengths) + PRIOR_ROWS
        average = (float(lengths.sum(dtype=np.float64)) + prior) / self._rows
        self._norm = np.float32(K1) * (np.float32(1 - B) + np.float32(B / average) * lengths)
        self.sums: Floats = np.zeros(len(lengths), np.float32)

    def add(self, counts: Floats) -> None:
        """Add what a word weighs that stands `counts` times in each row."""
        holding = int(np.count_nonzero(counts))
        rarity = math.log(1 + (self._rows - holding + 0.5) / (holding + 0.5))
        self.sums += np.float32(rarity * (K1 + 1)) * counts / (counts + self._norm)


def with_previous(values: Floats) -> Floats:
    """Each value plus the one before it."""
    sums = values.copy()
    sums[1:] += values[:-1]
    return sums
