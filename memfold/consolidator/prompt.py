"""What a language model is asked, as a pure function of the window; its words stand in `prompt.txt`.

What a memory says goes in as data: fenced, one line a memory, as `layout` writes them, unable to leave its line or to close
the fence. That a model heeds the fence nobody can promise: that is why its answer is only ever text.
"""

from functools import cache
from itertools import groupby
from pathlib import Path

from memfold.consolidator.summarizer import Source, Window
from memfold.projections import layout

FILE = Path(__file__).parent / "prompt.txt"
WORDS_A_TOKEN = 0.75
WORDS_MIN = 10


def messages(window: Window) -> list[dict[str, str]]:
    """The messages of a chat: the rules, then the window's memories within their fence."""
    rules, question = _parts()
    words = str(max(WORDS_MIN, int(window.target_tokens * WORDS_A_TOKEN)))
    # The memories go in last: nothing is replaced in what they say.
    asked = question.replace("{words}", words).replace("{memories}", fenced(window))
    return [{"role": "system", "content": rules.replace("{words}", words)}, {"role": "user", "content": asked}]


def fenced(window: Window) -> str:
    """The memories of a window, in order, each day's under its date."""
    parts = [layout.OPENING]
    for day, sources in groupby(window.sources, lambda source: source.occurred_at.date()):
        parts.append(layout.day_line(("", "", day)))
        parts += map(_line, sources)
    return "".join(parts) + layout.CLOSING


def _line(source: Source) -> str:
    label = layout.label_from(source.speaker)
    words = layout.one_line(source.content)
    return f"- {label}: {words}\n" if label else f"- {words}\n"


@cache
def _parts() -> tuple[str, str]:
    rules, _, question = FILE.read_text("utf-8").partition("\n---\n")
    return rules.strip(), question.strip()
