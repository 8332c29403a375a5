"""kill -9 of consolidators and of who remembers, at any moment and line: nothing lost, doubled, half, or kept though forgotten.

Two workers consolidate, some of them with summarizers that fail, while another process remembers, updates, forgets and
restores. It writes down each call before it begins and each answer once it has it, in a file that survives it. For all of them
a second is a day. At last everything is held against the file.
"""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memfold import MemoryStore, Settings
from memfold.audit.verify import verify
from memfold.consolidator.summarizer import Summary
from memfold.errors import MemfoldError
from memfold.minilm import static_embedder
from memfold.policies import Fading, Keep, Policy, Windows

SESSIONS = ["a", "b", "c"]
POLICY = Policy(
    windows=Windows(memories_min=3, memories_max=6, pause=timedelta(hours=2)),
    keep=Keep(newest=4),
    fading=Fading(enabled=True, half_life=timedelta(days=5_000)),
)
MASTER_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
TOKEN = re.compile(r"k\d+x\d+")
LINES_MAX = 40_000  # of the consolidator that a worker gets to run before it dies


class QuickClock:
    """A day each second, since a moment of `time.time`."""

    def __init__(self, begins):
        self.begins = begins

    def __call__(self):
        return datetime(2030, 1, 1, tzinfo=UTC) + (time.time() - self.begins) * timedelta(days=1)


class Tokens:
    """Says which memories a window tells of, as far as it has room; fails now and then, if told to."""

    name = "tokens"

    def __init__(self, rand=None):
        self.rand = rand

    def summarize(self, window):
        if self.rand:
            time.sleep(self.rand.uniform(0, 0.03))
            kind = self.rand.random()
            if kind < 0.05:
                raise OSError("down")
            if kind < 0.1:
                return self.rand.choice([None, Summary(""), Summary("x" * 1_000_000), Summary("k", None)])
        found = [token for source in window.sources for token in TOKEN.findall(source.content)]
        return Summary(" ".join(found[: max(1, len(found) // 2)]))


def open_store(url, tenant, begins, summarizer):
    return MemoryStore(
        url,
        tenant=tenant,
        master_key=MASTER_KEY,
        settings=Settings(pool_connections_max=8),
        embedder=static_embedder(),
        summarizer=summarizer,
        clock=QuickClock(begins),
    )


# --- the processes ----------------------------------------------------------------------------------------------------------


def nursery(url: str, tenant: str, begins: float, journal: str) -> None:
    """Bear a process for each line that is read, with everything imported, and say its id."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    import memfold.api.consolidating
    import memfold.projections.vectors  # noqa: F401

    for line in sys.stdin:
        role, seed = line.split()
        pid = os.fork()
        if pid == 0:
            roles = {"works": works, "dies": dies, "remembers": remembers}
            try:
                roles[role](url, tenant, begins, journal, random.Random(int(seed)))
            finally:
                os._exit(1)
        print(pid, flush=True)


def works(url, tenant, begins, journal, rand):
    """Consolidate until killed, all that is due or one session, as a cron job might at the same time."""
    store = open_store(url, tenant, begins, Tokens(rand))
    while True:
        try:
            store.consolidate(rand.choice([None, None, *SESSIONS]), until_idle=rand.random() < 0.7)
        except MemfoldError as error:
            note(journal, worker=type(error).__name__)
        except BaseException as error:
            note(journal, broken=repr(error)[:2_000])
            raise
        time.sleep(rand.uniform(0, 0.05))


def dies(url, tenant, begins, journal, rand):
    """The same, and die at some line of the consolidator."""
    left = int(LINES_MAX ** rand.random())

    def line(frame, event, _):
        nonlocal left
        if event == "line":
            left -= 1
            if left <= 0:
                os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame, event, _):
        return line if "/memfold/consolidator/" in frame.f_code.co_filename else None

    sys.settrace(call)
    works(url, tenant, begins, journal, rand)


def remembers(url, tenant, begins, journal, rand):
    store, number, known = open_store(url, tenant, begins, Tokens()), 0, {session_id: [] for session_id in SESSIONS}
    for session_id in SESSIONS:
        known[session_id] = [memory.id for memory in everything(store, session_id) if memory.category != "summary"]
    while True:
        number += 1
        token = f"k{os.getpid() % 100_000}{time.time_ns() // 1_000_000 % 10_000_000}x{number}"
        try:
            act(store, journal, rand, token, known)
        except MemfoldError as error:
            note(journal, token=token, failed=type(error).__name__)
        time.sleep(rand.uniform(0, 0.12))


def act(store, journal, rand, token, known):
    session_id = rand.choice(SESSIONS)
    own, kind = known[session_id], rand.random()
    if kind < 0.12 and own:
        memory_id = own.pop(rand.randrange(len(own)))
        note(journal, token=token, begins="forget", ids=[memory_id])
        store.forget(memory_id)
        note(journal, token=token, done="forget")
    elif kind < 0.22 and own:
        memory_id = rand.choice(own)
        note(journal, token=token, begins="update", ids=[memory_id])
        store.update(memory_id, content=f"{token} is what it says since")
        note(journal, token=token, done="update")
    elif kind < 0.26:
        summaries = [each.id for each in store.find(session_id, limit=1_000).memories if each.category == "summary"]
        if summaries and kind < 0.24:
            store.restore(rand.choice(summaries))
        elif summaries:
            store.forget(rand.choice(summaries))
    elif kind < 0.263 or len(own) > 400:
        note(journal, token=token, begins="forget", ids=list(own))
        store.forget_session(session_id)
        note(journal, token=token, done="forget")
        own.clear()
    else:
        count = rand.choice([1, 1, 2, 5])
        note(journal, token=token, begins="remember", session=session_id)
        items = [
            {"content": f"{token}{place} and what else was said then", "importance": rand.choice([0.01, 0.5, 0.5, 0.5, 0.95])}
            for place in range(count)
        ]
        made = store.remember_many(items, session_id=session_id, user_id="u")
        note(journal, token=token, done="remember", ids=[memory.id for memory in made], session=session_id)
        own += [memory.id for memory in made]


def note(journal, **line):
    file = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, json.dumps(line).encode() + b"\n")
    os.close(file)


# --- the reckoning ----------------------------------------------------------------------------------------------------------


def everything(store, session_id):
    found, cursor = [], None
    while True:
        page = store.find(session_id, limit=1_000, cursor=cursor, include_archived=True)
        found += page.memories
        if (cursor := page.cursor) is None:
            return found


def hold_against(store, journal):
    """Compare what was acknowledged with what is there; returns what was counted."""
    notes = [json.loads(line) for line in Path(journal).read_bytes().split(b"\n")[:-1]]
    assert [line["broken"] for line in notes if "broken" in line] == []
    ended = store.consolidate(until_idle=True)
    assert ended.stopped is None
    memories = {memory.id: memory for session_id in SESSIONS for memory in everything(store, session_id)}
    begun = {line["token"]: line for line in notes if "begins" in line}
    done = {line["token"]: line for line in notes if "done" in line}
    doomed = {each for line in begun.values() if line["begins"] == "forget" for each in line["ids"]}
    gone = {each for token, line in done.items() if line["done"] == "forget" for each in begun[token]["ids"]}
    remembered = [line for line in done.values() if line["done"] == "remember"]

    assert [each for line in remembered for each in line["ids"] if each not in doomed and each not in memories] == [], "lost"
    assert gone & memories.keys() == set()

    facts = [event for event in store.events() if event.type == "MemoriesRestored" and event.data]
    restored = {each for event in facts for each in event.data.memory_ids}
    summaries = {each.id: [below.id for below in store.sources(each.id)] for each in memories.values() if is_summary(each)}
    above = Counter(source for sources in summaries.values() for source in sources)
    # A summary that is archived itself comes back alone, beside the one that was made from it.
    excused = {each for each in summaries if each in restored}
    doubled = [each for each, count in above.items() if count > 1 and each not in excused]
    assert doubled == []
    texts = Counter(tuple(sorted(sources)) for sources in summaries.values())
    assert all(count == 1 for count in texts.values()), "two summaries of the same"
    for memory in memories.values():
        if memory.status == "archived" and memory.importance > 0.01:  # the others fade
            assert above[memory.id], "archived, and nothing stands for it"
    token_of = {each: line["token"] + str(place) for line in remembered for place, each in enumerate(line["ids"])}
    forgotten = {token_of[each] for each in gone & token_of.keys()}
    forgotten |= {token for token, line in begun.items() if line["begins"] == "update" and gone >= set(line["ids"])}
    for each in summaries:
        assert forgotten.isdisjoint(TOKEN.findall(memories[each].content)), "a summary of something that was forgotten"
    before = None
    for event in store.events():
        assert event.data is None or forgotten.isdisjoint(TOKEN.findall(repr(getattr(event.data, "content", ""))))
        if before is not None and before.type == "WindowCompressed":
            assert (event.type, event.version) == ("MemoriesArchived", before.version + 1), "half a summary"
        before = event
    assert verify(store._database, store._keyring, 2**62).findings == []
    compare_directory(store, memories)
    return {
        "remembered": sum(len(line["ids"]) for line in remembered),
        "forgotten": len(gone),
        "living": len(memories),
        "summaries": len(summaries),
        "deepest": max([depth(each, summaries) for each in summaries], default=0),
        "made": sum(event.type == "WindowCompressed" for event in store.events()),
    }


def is_summary(memory):
    return memory.category == "summary"


def depth(memory_id, summaries):
    return 1 + max((depth(source, summaries) for source in summaries[memory_id]), default=0) if memory_id in summaries else 0


def compare_directory(store, memories):
    consolidating = store._consolidating
    consolidating.projector.catch_up(time.monotonic() + 30)
    for session_id in SESSIONS:
        ref = store._keyring.find_session(session_id)
        counts = ref and consolidating.directory.session(ref.stream)
        mine = [memory for memory in memories.values() if memory.session_id == session_id]
        if counts:
            assert counts.memories == sum(memory.category != "summary" for memory in mine)
            assert counts.summaries == sum(memory.category == "summary" for memory in mine)
            assert counts.archived == sum(memory.status == "archived" for memory in mine)


class Family:
    """The processes of a loop, born by a nursery."""

    def __init__(self, url, tenant, begins, journal, rand):
        self.rand = rand
        code = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import test_consolidation_kills as home; "
        code += f"home.nursery({url!r}, {tenant!r}, {begins!r}, {str(journal)!r})"
        self.nursery = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.pids: dict[str, int] = {}

    def bear(self, name):
        role = "remembers" if name == "writer" else self.rand.choice(["works", "dies"])
        self.nursery.stdin.write(f"{role} {self.rand.randrange(2**31)}\n")
        self.nursery.stdin.flush()
        self.pids[name] = int(self.nursery.stdout.readline())

    def lives(self, name):
        try:
            os.kill(self.pids[name], 0)
        except ProcessLookupError:
            return False
        return True

    def kill(self, name):
        if self.lives(name):
            os.kill(self.pids[name], signal.SIGKILL)
        while self.lives(name):
            time.sleep(0.002)

    def close(self):
        for name in self.pids:
            self.kill(name)
        self.nursery.communicate()


def kill_loop(server_url, tenant, journal, rand, *, kills, patience=(0.05, 1.2), every=50, until=None):
    begins = time.time()
    store = open_store(server_url, tenant, begins, Tokens())
    store.set_policy(POLICY)
    family = Family(server_url, tenant, begins, journal, rand)
    killed = by_themselves = 0
    names = ["first worker", "second worker", "writer"]
    try:
        for name in names:
            family.bear(name)
        time.sleep(2)
        while killed < kills and (until is None or time.monotonic() < until):
            time.sleep(rand.uniform(*patience))
            dead = [name for name in names if not family.lives(name)]
            by_themselves += len(dead)
            victim = rand.choice(["first worker", "second worker"] * 2 + ["writer"])
            if not dead:
                family.kill(victim)
                dead = [victim]
            killed += len(dead)
            for name in dead:
                family.bear(name)
            if killed % every == 0:
                for name in names:
                    family.kill(name)
                print(killed, hold_against(store, journal), flush=True)
                for name in names:
                    family.bear(name)
        for name in names:
            family.kill(name)
        return {"kills": killed, "at a line": by_themselves, **hold_against(store, journal)}
    finally:
        family.close()
        store.close()


def test_kills_of_consolidators_lose_and_double_nothing(server_url, tenant, tmp_path, rand):
    print(kill_loop(server_url, tenant, tmp_path / "journal", rand, kills=10, patience=(0.05, 0.6)))


@pytest.mark.soak
def test_a_thousand_kills_of_consolidators_lose_and_double_nothing(server_url, tenant, tmp_path, rand, capsys):
    with capsys.disabled():
        print(kill_loop(server_url, tenant, tmp_path / "journal", rand, kills=1_000))
