"""Full text in RAM: what a text's words are, and which rows hold how many of a query's words.

A word is a run of letters and digits, in lower case, without accents, English ones stemmed (Porter 1980); a character of a
script that is written without spaces is a word by itself. English stop words are neither kept nor asked for.

`Words` weighs with Okapi BM25 (Robertson and Zaragoza 2009) over arrays. The weight of a turn read together with the turn
before it needs no index of its own: its counts are the sums of theirs. So nothing has to be indexed anew when a turn
between two others is changed or forgotten.
"""

import re
import threading
import unicodedata
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any, NamedTuple

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
STOP = -1
COUNTS_AT_ONCE = 1_000_000  # of words times slots, 4 bytes each

# BM25 calls a word worthless that stands in more than half of the rows, which in a session of three is nearly every word.
# So every session counts as if it went on from a hundred earlier turns of ordinary length that say nothing anybody asks for.
PRIOR_ROWS, PRIOR_WORDS = 100, 13

_thread = threading.local()


def words_of(text: str) -> list[str]:
    """The words of a text, in order, as they are indexed."""
    words: list[str] = stemmer().stemWords(plain_words(text))
    return words


def stemmer() -> Any:
    """This thread's stemmer: one is for one thread. It keeps no words, for they may be somebody's secrets."""
    found = getattr(_thread, "stemmer", None)
    if found is None:
        found = _thread.stemmer = Stemmer.Stemmer("porter", 0)
    return found


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


class _Numbers(dict[str, int]):
    """The number of the word that each way of writing it stands for; STOP for a stop word. Filled as it is asked."""

    def __init__(self, words: dict[str, int], postings: "list[array[int]]") -> None:
        super().__init__()
        self._words = words
        self._postings = postings

    def __missing__(self, written: str) -> int:
        number = STOP
        if written not in STOP_WORDS:
            number = self._words.setdefault(stemmer().stemWord(written), len(self._postings))
            if number == len(self._postings):
                self._postings.append(array("I"))
        self[written] = number
        return number


class Words:
    """The words of a view's rows, by slot. A slot is a place in the order of the stream; slots are given out rising."""

    def __init__(self) -> None:
        self._words: dict[str, int] = {}  # each word's number, its place in:
        self._postings: list[array[int]] = []  # the slots it stands in, rising, once for every time
        self._numbers = _Numbers(self._words, self._postings)
        self._lengths = array("I")
        self._count = 0

    def add(self, slot: int, text: str) -> None:
        """Index a text at a slot that holds none."""
        numbers = [number for number in map(self._numbers.__getitem__, _WORD.findall(plain(text))) if number != STOP]
        self._lengths.extend([0] * (slot + 1 - len(self._lengths)))
        self._lengths[slot] = len(numbers)
        postings = self._postings
        for number in numbers:
            slots = postings[number]
            if not slots or slots[-1] <= slot:
                slots.append(slot)
            else:
                slots.insert(bisect_right(slots, slot), slot)
        self._count += len(numbers)

    def remove(self, slot: int, text: str) -> None:
        """Take a text out again, as it was added."""
        found = words_of(text)
        for word in found:
            slots = self._postings[self._words[word]]
            del slots[bisect_left(slots, slot)]
        self._lengths[slot] = 0
        self._count -= len(found)
        unused = {word for word in found if not self._postings[self._words[word]]}
        for word in unused:
            del self._words[word]
        if unused:
            self._numbers.clear()  # nothing is to tell that they ever stood here

    def settle(self) -> None:
        """After a fold: drop the ways of writing, a third of the RAM, which only quicken the next text of the same fold."""
        self._numbers.clear()

    def renumber(self, slots: Slots) -> None:
        """Keep these slots only (no other holds a text), numbered 0, 1, 2 … in their order."""
        new = np.zeros(len(self._lengths), np.uint32)
        new[slots] = np.arange(len(slots), dtype=np.uint32)
        kept = [(word, self._postings[number]) for word, number in self._words.items()]
        self._words = {word: number for number, (word, _) in enumerate(kept)}
        self._postings = [array("I", new[np.frombuffer(slots, np.uint32)].tobytes()) for _, slots in kept]
        self._numbers = _Numbers(self._words, self._postings)
        self._lengths = array("I", np.frombuffer(self._lengths, np.uint32)[slots].tobytes()) if len(slots) else array("I")

    def weigh(self, words, slots, before):
        size = len(self._lengths)
        L = np.frombuffer(self._lengths, np.uint32).astype(np.float32) if size else np.zeros(0, np.float32)
        n = np.count_nonzero(L) + PRIOR_ROWS
        avg = (float(L.sum(dtype=np.float64)) + PRIOR_WORDS * PRIOR_ROWS) / n
        found = [self._postings[number] for word in words if (number := self._words.get(word)) is not None]
        alone = np.zeros(len(slots), np.float32)
        paired = alone.copy()
        has = before >= 0
        la = L[slots]
        lp = la + np.where(has, L[before], 0).astype(np.float32)
        for row in self._counts(found) if found else []:
            df = np.count_nonzero(row)
            idf = np.float32(np.log(1 + (n - df + 0.5) / (df + 0.5)) * (K1 + 1))
            c = row[slots]
            cp = c + np.where(has, row[before], 0).astype(np.float32)
            alone += idf * (c / (c + np.float32(K1 * (1 - B)) + np.float32(K1 * B / avg) * la))
            paired += idf * (cp / (cp + np.float32(K1 * (1 - B)) + np.float32(K1 * B / (2 * avg)) * lp))
        return Matches(alone, paired)

    def nearest(self, words, count):
        slots = np.arange(len(self._lengths))
        a = self.weigh(words, slots, np.full(len(slots), -1)).alone
        o = np.argsort(-a, kind="stable")[:count]
        return o[a[o] > 0]

    def match(self, words: Sequence[str], slots: Slots) -> Matches:
        """The BM25 weights of the words in each of `slots`: all that hold a text, rising."""
        lengths = np.frombuffer(self._lengths, np.uint32)[slots].astype(np.float32) if len(slots) else np.zeros(0, np.float32)
        alone, paired = _Weights(lengths), _Weights(with_previous(lengths))
        found = [self._postings[number] for word in words if (number := self._words.get(word)) is not None]
        everything = len(slots) == len(self._lengths)
        at_once = max(1, COUNTS_AT_ONCE // max(1, len(self._lengths)))
        for begin in range(0, len(found), at_once):
            counts = self._counts(found[begin : begin + at_once])
            counts = counts if everything else counts[:, slots]
            alone.add(counts)
            paired.add(with_previous(counts))
        return Matches(alone.sums, paired.sums)

    def _counts(self, found: Sequence["array[int]"]) -> Floats:
        """How often each of some words stands in each slot: a row a word."""
        size = len(self._lengths)
        places = np.concatenate([np.frombuffer(postings, np.uint32) for postings in found]).astype(np.int64)
        places += np.repeat(np.arange(len(found)) * size, [len(postings) for postings in found])
        return np.bincount(places, minlength=len(found) * size).astype(np.float32).reshape(len(found), size)

    def dump(self, slots: Slots) -> list[list[tuple[str, int]]]:
        """The words of every slot with their counts, for comparing two views."""
        found: dict[int, dict[str, int]] = {int(slot): {} for slot in slots}
        for word, number in self._words.items():
            for slot in self._postings[number]:
                found[slot][word] = found[slot].get(word, 0) + 1
        return [sorted(words.items()) for words in found.values()]

    def size_bytes(self) -> int:
        """About how much RAM the index takes."""
        return 4 * (self._count + len(self._lengths)) + 220 * len(self._postings)


class _Weights:
    """BM25 over rows of these lengths, some words at a time."""

    def __init__(self, lengths: Floats) -> None:
        self._rows = len(lengths) + PRIOR_ROWS
        average = (float(lengths.sum(dtype=np.float64)) + PRIOR_WORDS * PRIOR_ROWS) / self._rows
        self._norm = np.float32(K1 * (1 - B)) + np.float32(K1 * B / average) * lengths
        self.sums: Floats = np.zeros(len(lengths), np.float32)

    def add(self, counts: Floats) -> None:
        """Add what words weigh that stand `counts` times in each row; one row of `counts` a word."""
        holding = np.count_nonzero(counts, axis=1)
        rarity = np.log(1 + (self._rows - holding + 0.5) / (holding + 0.5)) * (K1 + 1)
        weights = counts / (counts + self._norm)
        weights *= rarity.astype(np.float32)[:, None]
        for row in weights:  # one by one: the sum must not depend on how many there are at once
            self.sums += row


def with_previous(values: Floats) -> Floats:
    """Each value plus the one before it in its row."""
    sums = values.copy()
    sums[..., 1:] += values[..., :-1]
    return sums
