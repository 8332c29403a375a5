"""The part of memory that goes into a prompt: which of the memories found are in it. How they read is told in `layout`.

The best come first, each with the turn it cannot be understood without, as long as they fit; what is too long for the room that
is left is passed over. Every line is counted once, and the counts are added up. A tokenizer need not be additive, so the whole
text is counted in the end, and the last to come are taken out again until it fits.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from itertools import groupby
from typing import NamedTuple

from memfold.errors import InvalidQuery
from memfold.model import Context, Memory, Recollections
from memfold.projections import layout
from memfold.projections.counting import Count
from memfold.projections.layout import Entry, Key
from memfold.validation import LIMIT_MAX

Neighbours = Callable[[str], tuple[Memory | None, Memory | None]]

AT_A_TIME = 16  # memories are counted: few in vain
LEAST_TOKENS = 12  # fewer make no memory, with its share of a heading
MISSES_MAX = 8  # in a row: what would still fit after so many is short rather than good
VERY_SHORT, SHORT = 24, 72  # characters
FAR = timedelta(days=1)  # who answers later answers something else
_POINTS_BACK = re.compile(
    r"\W*(yes|yeah|yep|no|nope|not|sure|exactly|absolutely|definitely|right|true|ok|okay|thanks|it|its|that|those|these|this|they)\b",
    re.IGNORECASE,
)
ASKED = ("?", "？", "؟")
_SENTENCES = re.compile(r"[^.!?？؟]*[.!?？؟]+|[^.!?？؟]+$")
_WORD = re.compile(r"\w")


def assemble(found: Recollections, neighbours: Neighbours, *, max_tokens: int, count: Count) -> Context:
    """The best of the memories found, laid out to be read, in at most `max_tokens` tokens as `count` has them.

    `neighbours` gives the memories before and after one in its session; None where there is none, or none that may be seen.

    Raises:
        InvalidQuery: not one of them fits; it says how many tokens the shortest needs.
    """
    memories = [hit.memory for hit in found]
    draft = _Draft(max_tokens, count, apart=len({memory.session_id for memory in memories}) > 1)
    for begin in range(0, len(memories), AT_A_TIME):
        if not draft.take(memories[begin : begin + AT_A_TIME], neighbours):
            break
    answer = draft.finished()
    return Context(
        text=answer.text,
        tokens=answer.tokens,
        max_tokens=max_tokens,
        memory_ids=tuple(one.memory.id for one in answer.ordered),
        groups={name: tuple(one.memory for one in some) for name, some in groupby(answer.ordered, lambda one: one.group)},
        too_long=draft.too_long(),
        position=found.position,
        model=found.model,
        withheld=found.withheld,
    )


def wanted(max_tokens: int) -> int:
    """How many memories to look for: as many as could fit, if they are short."""
    return min(LIMIT_MAX, max(AT_A_TIME, max_tokens // LEAST_TOKENS))


def needs_before(content: str) -> bool:
    """Whether a turn says little without the one before: it is very short, or short and begins with yes, no, it, that …"""
    return len(content) <= VERY_SHORT or (len(content) <= SHORT and _POINTS_BACK.match(content) is not None)


def needs_after(content: str) -> bool:
    """Whether a turn says little without the one after: it ends with a question, and half of it or more is asked."""
    sentences = [sentence for sentence in _SENTENCES.findall(content) if _WORD.search(sentence)]
    asked = [len(sentence) for sentence in sentences if sentence.endswith(ASKED)]
    return bool(asked) and sentences[-1].endswith(ASKED) and 2 * sum(asked) >= sum(map(len, sentences))


def companions(memory: Memory, neighbours: Neighbours) -> list[Memory]:
    """The turns by somebody else that one cannot be understood without, at most the one before and the one after."""
    if layout.group_of(memory) != "conversation":
        return []
    needs = needs_before(memory.content), needs_after(memory.content)
    if not any(needs):
        return []
    around = zip(needs, neighbours(memory.id), strict=True)
    return [other for needed, other in around if needed and other and _talk(memory, other)]


def _talk(memory: Memory, other: Memory) -> bool:
    """Whether two turns, one of them right after the other, are of two people who talk."""
    near = abs(other.occurred_at - memory.occurred_at) < FAR
    return near and layout.group_of(other) == "conversation" and _who(other) != _who(memory)


def _who(memory: Memory) -> str | None:
    return memory.speaker or memory.role


class _Answer(NamedTuple):
    """What is in, in reading order; its text, and how many tokens that has."""

    ordered: list[Entry]
    text: str
    tokens: int


class _Draft:
    """What is in so far, and the tokens that are left."""

    def __init__(self, max_tokens: int, count: Count, *, apart: bool) -> None:
        self._max_tokens = max_tokens
        self._count = count
        self._apart = apart
        self._entries: dict[str, Entry] = {}  # of all that was looked at, neighbours too; not those without words
        self._costs: dict[Key, int] = {}  # tokens of every line of theirs
        self._picks: list[list[Entry]] = []  # best first, each with what came with it
        self._in: set[Key] = set()
        self._looked_at: list[str] = []
        self._misses = 0
        self._frame = count([layout.FRAME])[0]
        self._rest = max_tokens - self._frame

    def take(self, memories: Sequence[Memory], neighbours: Neighbours) -> bool:
        """Add those of the next best that fit; return whether it is worth going on."""
        self._looked_at += [memory.id for memory in memories]
        offers = [[memory, *companions(memory, neighbours)] for memory in memories if memory.id not in self._in]
        self._look_at(memory for offer in offers for memory in offer)
        for first, *others in offers:
            if self._misses == MISSES_MAX:
                return False
            if first.id in self._entries and first.id not in self._in:
                fits = self._add([first, *others]) or self._add([first])
                self._misses = 0 if fits or not self._picks else self._misses + 1
        return True

    def finished(self) -> _Answer:
        """As much of what was added as really fits, or else the shortest memory.

        Raises:
            InvalidQuery: that does not fit either.
        """
        while self._picks:
            answer = self._laid_out(one for pick in self._picks for one in pick)
            if answer.tokens <= self._max_tokens:
                return answer
            self._drop(answer.tokens - self._max_tokens)
        return self._shortest() if self._found() else _Answer([], "", 0)

    def too_long(self) -> tuple[str, ...]:
        """Those found that would not fit even alone; of those looked at."""
        return tuple(one.memory.id for one in self._found() if self._alone(one) > self._max_tokens)

    def _found(self) -> list[Entry]:
        return [self._entries[name] for name in self._looked_at if name in self._entries]

    def _look_at(self, memories: Iterable[Memory]) -> None:
        new = (layout.entry(memory, apart=self._apart) for memory in memories if memory.id not in self._entries)
        lines: dict[Key, str] = {}
        for one in new:
            if one.line:
                self._entries[one.memory.id] = one
                lines |= one.lines
        unknown = lines.keys() - self._costs.keys()
        self._costs.update(zip(unknown, self._count([lines[key] for key in unknown]), strict=True))

    def _add(self, memories: Iterable[Memory]) -> bool:
        entries = [self._entries[memory.id] for memory in memories if memory.id in self._entries]
        new = {key for one in entries for key in one.lines} - self._in
        cost = self._sum(new)
        if cost > self._rest:
            return False
        self._picks.append([one for one in entries if one.memory.id in new])
        self._in |= new
        self._rest -= cost
        return True

    def _drop(self, excess: int) -> None:
        """Take the last to come out again until about as many tokens are gone; one at least."""
        while self._picks and excess > 0:
            excess -= max(1, self._sum(one.memory.id for one in self._picks.pop()))

    def _shortest(self) -> _Answer:
        answer = self._laid_out([min(self._found(), key=self._alone)])
        if answer.tokens > self._max_tokens:
            problem = f"is {self._max_tokens:,}: the shortest memory found needs {answer.tokens:,}, so give at least as many"
            raise InvalidQuery("max_tokens", problem)
        return answer

    def _alone(self, one: Entry) -> int:
        return self._frame + self._sum(one.lines)

    def _sum(self, keys: Iterable[Key]) -> int:
        return sum(self._costs[key] for key in keys)

    def _laid_out(self, entries: Iterable[Entry]) -> _Answer:
        ordered = layout.in_order(entries)
        text = layout.text_of(ordered)
        return _Answer(ordered, text, self._count([text])[0])
