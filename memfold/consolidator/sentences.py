"""How a text is cut into pieces that can be picked, and what of a piece can go unsaid: pure functions, for any text.

A sentence ends at a line's end, at a full stop, question or exclamation mark that white space follows, or at one that is
written without spaces (。！？). It does not end within "3.5", "example.org/a.html" or "J. R. Smith", nor behind "Dr.".
What stands in square brackets at the end of a line, as the caption of an image, is a sentence of its own. Sentences are cut
into clauses of a few words at least; what is still too long is cut between words, else anywhere.
"""

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

PIECE_CHARACTERS_MAX = 240  # about fifty tokens
CLAUSE_WORDS_MIN = 4
ENGLISH_SHARE = 0.15  # of the words of a text in English; other languages have a few of them by chance

# A mark with what closes behind it; white space must follow those that also stand within words and numbers.
_END = re.compile(r"[.!?…؟।]+[\"'”’»)\]*_]*(?=\s)|[。！？｡]+[」』”’）]*")
_CAPTION = re.compile(r"\s\[[^\[\]]*\]\Z")
LINES = re.compile(r"[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]+")
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        """al approx apt asst ave bldg blvd ca capt cf col comm corp dept dr ed eds eg esp est etc ex fig gen gov hon hr ie inc
    jr lt ltd maj mr mrs ms mt no nos nr op pp pres prof rep rev sen sgt sr st tel univ vol vs
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thur thurs fri sat sun""",
    )
)
_LAST_WORD = re.compile(r"(?:^|[\s(\[\"'“‘])([^\s(\[\"'“‘]+)\.\Z")
_ITEM = re.compile(r"[0-9]{1,3}|[a-zA-Z]")
_CLAUSE = re.compile(r"(?<=[;:,—–])\s+|(?<=[、；，：])|\s(?=[-–—]\s)|\s(?=(?:and|but|so|because|which|where|when|while)\s)")
_ENDING = re.compile(r"[\s.!,;:…。、；，：-]+\Z")
_CODE = re.compile(r"[{}=<>|\\`_;]|://|\w\(")
_NO_WORD = re.compile(r"[\W_]+")

_ENGLISH = frozenset(re.findall(r"\S+", "the and to of you my it that is with for have this but are i a was in"))
# What an English headline leaves out: articles, forms of be, and what is said for emphasis or to keep a conversation going.
_UNSAID = frozenset(
    re.findall(
        r"\S+",
        """a an the is are was were be been it's that's there's
    hey hi hello wow whoa yeah yep yes ok okay oh ah aw aww haha lol um uh
    really very just totally definitely absolutely actually basically literally super also""",
    )
)
_UNSAID_FIRST = _UNSAID | frozenset(("i", "i'm", "i've", "well", "so", "anyway"))  # the line says who speaks
_NEGATION = re.compile(r"(?:not|no|never|nor|neither|cannot|without|.+n['’]t)\Z", re.IGNORECASE)


class Piece(NamedTuple):
    """A part of a text that can be picked: its words, the mark behind them, and the number of its sentence."""

    text: str
    end: str
    sentence: int


def pieces_of(text: str, *, english: bool) -> list[Piece]:
    """The pieces of a text in order, each with a letter or a digit in it; what is written in English is shortened."""
    found = []
    for number, sentence in enumerate(sentences_of(text)):
        for clause in clauses_of(sentence):
            words = _trimmed(shortened(clause) if english else clause)
            end = _ENDING.search(words)
            body = words[: end.start()] if end else words
            if _NO_WORD.sub("", body):
                found.append(Piece(body, words[len(body) :].strip(), number))
    return found


def sentences_of(text: str) -> list[str]:
    """The sentences of a text in order, none empty; white space becomes one space."""
    return [sentence for line in LINES.split(text) for sentence in _sentences(" ".join(line.split()))]


def _sentences(line: str) -> Iterator[str]:
    if caption := _CAPTION.search(line):
        yield from _sentences(line[: caption.start()])
        yield caption[0].strip()
        return
    begin = 0
    for end in _END.finditer(line):
        sentence = line[begin : end.end()].strip()
        if sentence and not _goes_on(sentence, line[end.end() : end.end() + 9].lstrip()):
            yield sentence
            begin = end.end()
    if rest := line[begin:].strip():
        yield rest


def _goes_on(sentence: str, rest: str) -> bool:
    """Whether a sentence goes on behind the mark that it ends with."""
    word = _LAST_WORD.search(sentence)
    if word is None:
        return sentence.endswith(("...", "…")) and rest[:1].islower()
    last = word[1].replace(".", "")
    if word.start(1) == 0 and _ITEM.fullmatch(last):
        return True  # the "1." of a list
    is_initial = len(last) == 1 and last.isalpha() and last != "I"
    is_short = "." in word[1] and len(last) < 5 and last.isalpha()  # e.g., U.S., p.m.
    return is_initial or is_short or last.lower() in _ABBREVIATIONS or rest[:1].islower()


def clauses_of(sentence: str) -> list[str]:
    """A sentence as clauses of CLAUSE_WORDS_MIN words or more, if it has as many; none longer than PIECE_CHARACTERS_MAX."""
    found: list[str] = []
    begin = 0
    for cut in (*(match.end() for match in _CLAUSE.finditer(sentence)), len(sentence)):
        clause = sentence[begin:cut].strip()
        is_enough = clause.count(" ") + 1 >= CLAUSE_WORDS_MIN or len(clause) > PIECE_CHARACTERS_MAX // 4
        if clause and (is_enough or cut == len(sentence)):
            found.append(clause)
            begin = cut
    return [piece for long in found for piece in _short_enough(long)]


def _short_enough(clause: str) -> Iterator[str]:
    while len(clause) > PIECE_CHARACTERS_MAX:
        space = clause.rfind(" ", PIECE_CHARACTERS_MAX // 4, PIECE_CHARACTERS_MAX)
        cut = space if space > 0 else PIECE_CHARACTERS_MAX
        yield clause[:cut].rstrip()
        clause = clause[cut:].lstrip()
    if clause:
        yield clause


def is_english(text: str) -> bool:
    """Whether a text is written in English, by its most frequent words."""
    words = text.lower().split()
    return sum(map(_ENGLISH.__contains__, words)) >= max(1, ENGLISH_SHARE * len(words))


def shortened(clause: str) -> str:
    """An English clause as a headline says it (Dorr, Zajic and Schwartz 2003); a line of code stays as it is.

    Left out is what stands in lower case or first. What follows a negation stays: "not just" is something else than "not".
    """
    if _CODE.search(clause):
        return clause
    kept: list[str] = []
    before = ""
    for word in clause.split(" "):
        plain = _plain(word)
        unsaid = plain in (_UNSAID if kept else _UNSAID_FIRST) and (not kept or word[:1].islower())
        if not unsaid or _NEGATION.match(before):
            kept.append(word)
        elif word.endswith("?") and kept:
            kept[-1] += "?"
        before = plain
    return " ".join(kept)


def _plain(word: str) -> str:
    return word.lower().replace("’", "'").strip("\"'“”‘().,!?;:…-–—*")


def _trimmed(text: str) -> str:
    """A text without the emoji and the signs of a list around it."""
    begin, end = 0, len(text)
    while begin < end and _is_ornament(text[begin]):
        begin += 1
    while begin < end and _is_ornament(text[end - 1]):
        end -= 1
    return text[begin:end]


def _is_ornament(character: str) -> bool:
    return character.isspace() or character in "*•-–—" or unicodedata.category(character) in {"So", "Sk", "Cf", "Cn", "Co"}
