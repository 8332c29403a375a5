"""Stores that consolidate within a test: a clock that is told the time, and summarizers that say little and count."""

import random
import threading
from datetime import UTC, datetime, timedelta

from memfold.consolidator.summarizer import Summary, Usage
from memfold.policies import Keep, Policy, Windows

START = datetime(2030, 1, 1, 9, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
POLICY = Policy(windows=Windows(memories_min=3, memories_max=5, depth_max=1), keep=Keep(newest=2))
WORDS = [
    "tea",
    "trains",
    "violins",
    "Oslo",
    "cats",
    "rain",
    "bread",
    "maps",
    "salt",
    "lamps",
    "boats",
    "wool",
    "chess",
    "pears",
]


class Clock:
    """Says the time that it was told, a second later each time it is asked."""

    def __init__(self, now=START):
        self.now = now
        self._lock = threading.Lock()

    def __call__(self):
        with self._lock:
            self.now += timedelta(seconds=1)
            return self.now

    def on(self, by):
        self.now += by


class Brief:
    """The first words of every memory; remembers what it saw, and does something `meanwhile`, once, if told to."""

    name = "brief-1"

    def __init__(self, meanwhile=None):
        self.seen = []
        self.meanwhile = meanwhile

    def summarize(self, window):
        self.seen.append(window)
        meanwhile, self.meanwhile = self.meanwhile, None
        if meanwhile:
            meanwhile(window)
        words = [" ".join(source.content.split()[:2]) for source in window.sources]
        return Summary("; ".join(words), Usage(10, 5, 0.25, 1))

    @property
    def calls(self):
        return len(self.seen)


class Saying:
    """Answers with whatever it is given, or raises it."""

    name = "saying"

    def __init__(self, answer):
        self.answer = answer
        self.calls = 0

    def summarize(self, window):
        self.calls += 1
        answer = self.answer(window) if callable(self.answer) else self.answer
        if isinstance(answer, BaseException):
            raise answer
        return answer


def sentence(number, rand=None):
    """A memory of about a dozen tokens that begins with its number."""
    rand = rand or random.Random(number)
    return f"turn{number} speaks of {' and '.join(rand.sample(WORDS, 5))}"


def talk(store, count, session_id="s", user_id="u", start=0):
    """Remember so many turns; return their ids."""
    items = [sentence(start + number) for number in range(count)]
    return [memory.id for memory in store.remember_many(items, session_id=session_id, user_id=user_id)]


def ids(found):
    return [memory.id for memory in getattr(found, "memories", found)]
