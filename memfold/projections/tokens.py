"""What a text's words are.

A word is a run of letters and digits, in lower case, without accents, English ones stemmed (Porter 1980); a character of a
script that is written without spaces is a word by itself. English stop words are neither kept nor asked for.
"""

import re
import threading
import unicodedata
from typing import Any

import Stemmer

TERMS_MAX = 64  # a page of text as a query is told by its first words

_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"  # Thai, Lao, Burmese, Chinese, Japanese, Korean
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W_{_UNSPACED}]+")
_ASCII = "".join(chr(code).lower() if chr(code).isalnum() else " " for code in range(128))
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
    return [word for word in written_words(text) if word not in STOP_WORDS]


def written_words(text: str) -> list[str]:
    """The words of a text, in order, with stop words, unstemmed."""
    if text.isascii():
        return text.translate(_ASCII).split()  # as _WORD finds them, in a third of the time
    return _WORD.findall(plain(text))


def asked_for(query: str) -> list[str]:
    """The distinct words of a query, in order, at most TERMS_MAX; none if it holds nothing but stop words."""
    return list(dict.fromkeys(words_of(query)))[:TERMS_MAX]


def plain(text: str) -> str:
    """A text in lower case and without accents."""
    text = text.lower()
    if text.isascii():
        return text
    return unicodedata.normalize("NFKC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text)))
