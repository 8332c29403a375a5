"""The summarizer that needs no model of language: it picks what the sources themselves say.

Sentences are cut into clauses, English ones shortened as headlines are (`sentences`), and those clauses are picked, one after
the other, that add most for what they cost in tokens. What a clause adds is what it says that no picked one says yet: the words
that it covers, those counting more that are names, numbers or times or that the window often uses, and how much nearer the
window's other clauses are now to a picked one, by their vectors. Both sums are monotone and submodular (the more is picked, the
less another one adds), so that a greedy choice comes near the best there is, and nothing is said twice.

Lin and Bilmes 2011 (submodular coverage, chosen by scaled cost), Gillick and Favre 2009 (coverage of words); novelty as in
Carbonell and Goldstein 1998 follows from what is covered.
"""

import re
from bisect import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from memfold.consolidator.sentences import LINES, Piece, is_english, pieces_of
from memfold.consolidator.summarizer import CONTROL, Source, Summary, Window
from memfold.embedding import Vectors
from memfold.projections.layout import one_line
from memfold.projections.tokens import STOP_WORDS, stemmer, written_words

# By LoCoMo's conversations, as benchmarks/extractive.py asks them; none of these is sharp.
KEY, CHATTER = 3.0, 0.2  # what a name, a number or a time counts, and a word that says little; any other word counts 1
NEARNESS = 0.1  # what the coverage by vectors counts beside that by words
COST_POWER = 0.7  # 1: the most per token; 0: the most
LABEL_CHARACTERS_MAX = 40

_NAME = re.compile(r"(?<![.!?:\"'“])\s([A-Z][a-z]+|[A-Z]{2,})")
_TIMES = frozenset(
    re.findall(
        r"\S+",
        """yesterday today tonight tomorrow ago weekend morning evening week month year summer winter spring autumn birthday
    monday tuesday wednesday thursday friday saturday sunday january february march april june july august september october
    november december""",
    )
)
# What is said again and again in any conversation, beside the stop words.
_CHATTER = frozenset(
    re.findall(
        r"\S+",
        """hey hi hello wow whoa yeah yes yep no nope ok okay oh ah aw haha lol thanks thank please sorry welcome
    cool great awesome amazing nice good sure sounds glad happy love really definitely absolutely totally exactly
    just too very lot lots much more some all one thing things stuff like kind get got getting know see saw go going went
    come think thought feel feeling felt make makes made keep let want need say said tell told look looking looks try
    time day always never ever also not now up out about even still way back well take bet must may might
    don didn doesn isn wasn ain re ve ll m d t quite bit here something anything everything hope forward""",
    )
)
# A line of a summary, when summaries are summarized: its day, who said it, what.
_LINE = re.compile(r"(?:\[([0-9]{4}-[0-9]{2}-[0-9]{2})\] )?(?:([^\W\d_][\w.'’-]*(?: [\w.'’-]+){0,2}): )?(.*)", re.DOTALL)


class Encoder(Protocol):
    """Makes a unit vector of each text."""

    def encode(self, texts: Sequence[str]) -> Vectors: ...


class Clause(NamedTuple):
    """What can be picked: a piece of what somebody (nobody: "") said on some day, and which source it is from."""

    source: int
    label: str
    day: str
    piece: Piece


class ExtractiveSummarizer:
    """Says a window in its own words. The same window becomes the same summary, to the byte.

    `encoder` makes vectors of clauses, `count` counts the tokens of a text. A summary never has more than `target_tokens` by
    `count`; it is empty only if there is nothing to be seen in the window, or if not even a character fits.
    """

    name = "extractive-1"

    def __init__(self, encoder: Encoder, count: Callable[[str], int]) -> None:
        self._encoder = encoder
        self._count = count

    def summarize(self, window: Window) -> Summary:
        """What the window says, in reading order: a line for each who speaks in turn, with the day if there are several.

        Raises:
            EmbedderFailed: the encoder did.
            SettingsError: `count` did.
        """
        clauses = clauses_of(window.sources)
        if not clauses:
            text = " ".join(_plain(source.content) for source in window.sources)
            return Summary(self._beginning(" ".join(text.split()), window.target_tokens))
        gains = _Gains(clauses, self._encoder.encode([clause.piece.text for clause in clauses]))
        first = gains.best(np.ones(len(clauses)), np.ones(len(clauses), bool)) or 0
        picked = self._picked(clauses, gains, window.target_tokens)
        while picked and self._count(text_of(clauses, picked)) > window.target_tokens:
            picked.pop()  # the last one added least
        if picked:
            return Summary(text_of(clauses, picked))
        return Summary(self._beginning(clauses[first].piece.text, window.target_tokens))

    def _picked(self, clauses: Sequence[Clause], gains: "_Gains", target_tokens: int) -> list[int]:
        """Which clauses to pick, in the order of picking."""
        costs = _Costs(clauses, self._count)
        picked: list[int] = []
        left = target_tokens
        while True:
            cost = costs.of_each(sorted(picked))
            best = gains.best(cost, _but(cost <= left, picked))
            if best is None and picked:  # the costs were estimates: what is left of the target in truth?
                estimated, left = left, target_tokens - self._count(text_of(clauses, picked))
                best = gains.best(cost, _but(cost <= left, picked)) if left > estimated else None
            if best is None:
                return picked
            left -= int(cost[best])
            picked.append(best)
            gains.pick(best)

    def _beginning(self, text: str, target_tokens: int) -> str:
        """As many words from a text's beginning as fit; of the first word as many characters, if it does not."""
        word_ends = [match.start() for match in re.finditer(r"\s|\Z", text)]
        for ends in (word_ends, range(1, len(text))):
            fitting = bisect(ends, False, key=lambda end: self._count(text[:end]) > target_tokens)
            for end in reversed(ends[:fitting]):
                if text[:end].strip() and self._count(text[:end]) <= target_tokens:
                    return text[:end].strip()
        return ""


def clauses_of(sources: Sequence[Source]) -> list[Clause]:
    """What can be picked of some sources, in reading order."""
    english = is_english(" ".join(source.content for source in sources))
    return [
        Clause(number, label, day, piece)
        for number, source in enumerate(sources)
        for label, day, text in _said(source)
        for piece in pieces_of(text, english=english)
    ]


def text_of(clauses: Sequence[Clause], picked: Sequence[int]) -> str:
    """The picked clauses as a summary, in reading order."""
    several_days = _several_days(clauses)
    lines: list[str] = []
    shown = ""
    before = -1
    for at in sorted(picked):
        source, label, day, piece = clauses[at]
        last = clauses[before]
        text = piece.text.removeprefix("and ")
        if before < 0 or (label, day) != (last.label, last.day):
            dated = f"[{day}] " if several_days and day != shown else ""
            lines.append(f"{dated}{label}: {text}" if label else f"{dated}{text}")
            shown = day
        elif before == at - 1 and (source, piece.sentence) == (last.source, last.piece.sentence):
            lines[-1] += f"{last.piece.end} {piece.text}"
        else:
            lines[-1] += f"{' ' if last.piece.text.endswith('?') else '; '}{text}"
        before = at
    return "\n".join(lines)


def _several_days(clauses: Sequence[Clause]) -> bool:
    """Whether days have to be told: the day of a window's last source is the summary's own."""
    return len({clause.day for clause in clauses}) > 1


def _said(source: Source) -> Iterator[tuple[str, str, str]]:
    """Who said what on which day, line by line; of a source without a speaker, which may be a summary, as its lines tell."""
    label, day = _label(source.speaker or ""), source.occurred_at.date().isoformat()
    for line in LINES.split(source.content):
        text = _plain(line).strip()
        if label:
            yield label, day, text
        elif told := _LINE.fullmatch(text):
            day = told[1] if told[1] and _is_day(told[1]) else day
            yield told[2] or "", day, told[3]


def _but(chosen: NDArray[np.bool_], left_out: Sequence[int]) -> NDArray[np.bool_]:
    chosen[list(left_out)] = False
    return chosen


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _label(speaker: str) -> str:
    return _plain(one_line(speaker.replace(":", " ")))[:LABEL_CHARACTERS_MAX].strip()


def _plain(text: str) -> str:
    """A text without control characters and halves of characters, which no summary may hold."""
    return CONTROL.sub("", text).encode("utf-8", "ignore").decode()


class _Costs:
    """What each clause would add to the tokens of a summary, nearly: a tokenizer may join what meets."""

    def __init__(self, clauses: Sequence[Clause], count: Callable[[str], int]) -> None:
        lines = list(dict.fromkeys((clause.label, clause.day) for clause in clauses))
        labels = {label: count(f"{label}:") if label else 0 for label, _ in lines}
        self._tokens = np.array([count(clause.piece.text) for clause in clauses])
        self._label = np.array([labels[clause.label] for clause in clauses])
        self._line = np.array([lines.index((clause.label, clause.day)) for clause in clauses])
        self._day = np.unique([clause.day for clause in clauses], return_inverse=True)[1]
        self._day_tokens = count(f"[{clauses[0].day}]") if _several_days(clauses) else 0

    def of_each(self, picked: Sequence[int]) -> NDArray[np.int64]:
        """Of each clause, when these are picked already: itself, what parts it from others, its speaker, its day."""
        if not picked:
            first: NDArray[np.int64] = self._tokens + self._label + self._day_tokens
            return first
        chosen = np.array(picked)
        at = np.searchsorted(chosen, np.arange(len(self._tokens)))
        before, after = chosen[np.maximum(at - 1, 0)], chosen[np.minimum(at, len(chosen) - 1)]
        of_before = np.where(at > 0, self._line[before], -1)
        of_after = np.where(at < len(chosen), self._line[after], -2)
        joins = (self._line == of_before) | (self._line == of_after)
        parts = ~joins & (of_before == of_after)  # what is parted by it needs its speaker once more
        new_day = ~np.isin(self._day, self._day[chosen])
        cost: NDArray[np.int64] = self._tokens + 1 + np.where(joins, 0, self._label)
        cost += np.where(parts, self._label[after] + 1, 0) + np.where(new_day, self._day_tokens, 0)
        return cost


class _Gains:
    """What each clause would add to what the picked ones say."""

    def __init__(self, clauses: Sequence[Clause], vectors: Vectors) -> None:
        self._held = _words(clauses)
        self._worth = _worths(clauses, self._held)
        self._holders: dict[str, list[int]] = {word: [] for word in self._worth}
        for at, words in enumerate(self._held):
            for word in words:
                self._holders[word].append(at)
        self._new = np.array([sum(self._worth[word] for word in words) for words in self._held])
        self._says_something = self._new > 0 if self._new.any() else ~np.isnan(self._new)
        # Rounded, so that the last bits of a sum, which differ between machines, decide nothing.
        self._likeness = np.round(np.maximum(vectors @ vectors.T, 0), 3)
        share = (self._new + 1e-6) / (self._new + 1e-6).sum()
        self._share = share.astype(np.float32)
        self._nearest = np.zeros(len(clauses), np.float32)
        self._nearer = self._share @ self._likeness

    def best(self, cost: NDArray[np.int64] | NDArray[np.float64], fits: NDArray[np.bool_]) -> int | None:
        """The clause that adds most for its cost, of equals the first; None if none that fits adds anything."""
        gain = (self._new + NEARNESS * np.maximum(self._nearer, 0)) / np.maximum(cost, 1) ** COST_POWER
        told = np.round(np.where(fits & self._says_something, gain, 0), 6)
        at = int(np.argmax(told))
        return at if told[at] > 0 else None

    def pick(self, at: int) -> None:
        """From now on, what this clause says is said."""
        for word in self._held[at]:
            self._new[self._holders[word]] -= self._worth[word]
            self._holders[word] = []
        nearest = np.maximum(self._nearest, self._likeness[:, at])
        moved = np.flatnonzero(nearest > self._nearest)
        like, share = self._likeness[moved], self._share[moved]
        had, have = self._nearest[moved, None], nearest[moved, None]
        self._nearer -= share @ (np.maximum(like - had, 0) - np.maximum(like - have, 0))
        self._nearest = nearest


def _words(clauses: Sequence[Clause]) -> list[dict[str, str]]:
    """Of each clause its words as they are indexed, and a way each is written; the names of speakers do not count."""
    names = [name for label in dict.fromkeys(clause.label for clause in clauses) for name in written_words(label)]
    unsaid = STOP_WORDS.union(names, (name[:length] for name in names for length in range(3, len(name))))  # "Mel" is Melanie
    stem = stemmer().stemWord
    return [{stem(word): word for word in written_words(clause.piece.text) if word not in unsaid} for clause in clauses]


def _worths(clauses: Sequence[Clause], held: Sequence[dict[str, str]]) -> dict[str, float]:
    """Of each word its share in what the window says: by its kind, and in how many clauses it stands."""
    names = {name.lower() for clause in clauses for name in _NAME.findall(clause.piece.text)}
    kinds: dict[str, float] = {}
    for words in held:
        for stem, word in words.items():
            kinds[stem] = max(kinds.get(stem, 0), _kind(word, names))
    often = Counter(stem for words in held for stem in words)
    total = sum(kind * often[stem] for stem, kind in kinds.items())
    return {stem: kind * often[stem] / total for stem, kind in kinds.items()}


def _kind(word: str, names: set[str]) -> float:
    if word in _CHATTER:
        return CHATTER
    return KEY if word in names or word in _TIMES or any(map(str.isdecimal, word)) else 1.0
