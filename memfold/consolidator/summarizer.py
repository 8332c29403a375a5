"""What a summarizer is handed and hands back, and what is made of it before anybody believes it.

A summarizer sees exactly the memories that are recorded as the summary's sources, and nothing else.
"""

import math
import re
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple, Protocol, runtime_checkable

from memfold.errors import SummarizerFailed
from memfold.validation import CONTENT_BYTES_MAX

COUNT_MAX = 2**31 - 1  # tokens, and calls, that one window may be charged


class Source(NamedTuple):
    """A memory to be summarized: who said what when, and its vector by the store's embedder, if that was at hand."""

    memory_id: str
    content: str
    speaker: str | None
    occurred_at: datetime
    vector: object | None = None


class Window(NamedTuple):
    """Memories of one session, in reading order, that are to become at most `target_tokens` tokens."""

    sources: tuple[Source, ...]
    target_tokens: int


class Usage(NamedTuple):
    """What a summarizer charged: tokens read and written, the price, in the currency of its prices, and the calls."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    calls: int = 0

    @property
    def makes_sense(self) -> bool:
        """Whether a number that nobody has vouched for may be added up."""
        counts = (self.prompt_tokens, self.completion_tokens, self.calls)
        return all(isinstance(count, int) and 0 <= count <= COUNT_MAX for count in counts) and (
            isinstance(self.cost, int | float) and math.isfinite(self.cost) and self.cost >= 0
        )

    @property
    def tokens(self) -> int:
        """Read and written together."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: "Usage") -> "Usage":
        """Both together."""
        return Usage(
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
            self.cost + other.cost,
            self.calls + other.calls,
        )


class Summary(NamedTuple):
    """What a window became."""

    text: str
    usage: Usage = Usage()


@runtime_checkable
class Summarizer(Protocol):
    """Says a window in fewer words."""

    @property
    def name(self) -> str:
        """Stands in the log with every summary, such as "extractive-1" or "llm:gpt-5-mini"."""
        ...

    def summarize(self, window: Window) -> Summary:
        """The window in at most its `target_tokens` tokens.

        Raises:
            SummarizerFailed: it could not; `retry` says whether another try later may help.
        """
        ...


CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ud800-\udfff\ufeff]")
SPACES = re.compile(r"[ \t]+")


def cleaned(name: str, summary: object, window: Window, count: Callable[[str], int]) -> Summary:
    """A summary that may be stored: plain text without control characters, in fewer tokens than its sources.

    Raises:
        SummarizerFailed: there is nothing left, or it is not shorter than its sources.
    """
    if not isinstance(summary, Summary) or not isinstance(summary.text, str):
        raise SummarizerFailed(name, "returned no Summary", retry=False)
    if not isinstance(summary.usage, Usage) or not summary.usage.makes_sense:
        raise SummarizerFailed(name, "returned a Usage that makes no sense", retry=False)
    if len(summary.text) > CONTENT_BYTES_MAX:  # before anything else is done with it
        raise SummarizerFailed(name, "returned more than a memory may hold", retry=True)
    lines = (SPACES.sub(" ", line).strip() for line in CONTROL.sub("", summary.text).splitlines())
    text = "\n".join(line for line in lines if line)
    if not text:
        raise SummarizerFailed(name, "returned an empty summary", retry=True)
    if len(text.encode()) > CONTENT_BYTES_MAX:
        raise SummarizerFailed(name, "returned more than a memory may hold", retry=True)
    before = sum(count(source.content) for source in window.sources)
    if count(text) >= before:
        raise SummarizerFailed(name, "returned a summary that is not shorter than its sources", retry=True)
    return summary._replace(text=text)
