"""The demo tells a true story, and leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"
WIDTH = 100


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """The demo, run once in a pipe: what it wrote, and the temporary folder it had."""
    folder = tmp_path_factory.mktemp("demo")
    environment = os.environ | {"TMPDIR": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    found = subprocess.run(
        [sys.executable, str(DEMO)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stderr == ""
    return found.stdout, folder


def test_the_demo_shows_that_the_meaning_finds_what_the_words_do_not(told):
    answers = best_answers(told[0])

    assert "pork" in answers["Who avoids ham and bacon?"]
    assert "frozen bottle" in answers["How do you cool an overheated amphibian?"]
    assert len(answers) >= 10
    for answer in answers.values():
        assert re.match(r"0\.\d\d \d\d (Aug|Sep|Oct) \d\d:\d\d (Nora|Jonas|Ilse|Emil|Iris)\b", answer)


def test_the_demo_shows_what_a_score_is_made_of(told):
    parts = {name: float(share) for name, share in re.findall(r"^    (\w+) +([+-]0\.\d\d)$", told[0], re.MULTILINE)}
    (score,) = re.findall(r"^    score +(0\.\d\d)  the sum of all \d+$", told[0], re.MULTILINE)

    assert len(parts) == 6
    assert [abs(share) for share in parts.values()] == sorted((abs(share) for share in parts.values()), reverse=True)
    assert float(score) > 0.5


def test_the_demo_asks_the_past_and_makes_a_context(told):
    text = " ".join(told[0].split())
    assert "<memories>" in text
    assert "</memories>" in text
    assert re.search(r"as_of=\d+ ", text)


def test_the_demo_updates_forgets_survives_a_crash_and_replays(told):
    text = " ".join(told[0].split())

    assert "It remembers 220 turns" in text
    assert "and now 0 are" in text
    assert "v2 16 Sep 08:05 Nora Alarm code for the studio is 9902" in text
    assert "get() raises MemoryForgotten" in text
    assert len(re.findall(r"\b0 hits in [\d,]+ files", text)) == 2
    assert re.search(r"lost 0 of \d+ acknowledged", text)
    assert "older 219 of 219 memories are as they were" in text
    assert "recall 7 of 7 questions have the same best answer" in text
    assert "the same as the store's" in text


def test_the_demo_consolidates_and_undoes_it(told):
    text = " ".join(told[0].split())
    assert re.search(r"consolidate\(\): \d\d summaries of [\d,]+ tokens", text)
    assert "the session is as it was" in text


def test_the_demo_fits_its_lines(told):
    lines = told[0].splitlines()

    assert max(len(line) for line in lines) <= WIDTH
    assert not re.search(r"\x1b", told[0])  # in a pipe


def test_the_demo_leaves_nothing_behind(told):
    _, folder = told

    assert list(folder.glob("memfold-demo-*")) == []
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert str(folder) not in running


def best_answers(text):
    """The first line of the first answer to each question, without the blanks; of a question asked twice, the last."""
    found = re.findall(r"^  (\S[^\n]*\?)  [\d.]+ ms[^\n]*\n    (0\.\d\d [^\n]*(?:\n {29}[^\n]*)*)", text, re.MULTILINE)
    return {query: " ".join(answer.split()) for query, answer in found}


def test_the_example_of_consolidation_ends_as_it_began(tmp_path):
    environment = os.environ | {"XDG_RUNTIME_DIR": str(tmp_path)}
    environment = {name: value for name, value in environment.items() if not name.startswith("MEMFOLD_")}
    command = [sys.executable, str(DEMO.parent / "consolidation.py"), "--folder", str(tmp_path / "store")]

    found = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, check=False)

    assert (found.returncode, found.stderr) == (0, ""), found.stdout + found.stderr
    planned, before = map(int, re.findall(r"planned: +(\d+) windows (\d+) tokens", found.stdout.replace(",", ""))[0])
    after = int(re.findall(r"tokens are (\d+) now", found.stdout.replace(",", ""))[0])
    assert planned > 1
    assert after <= before * 0.27
    assert "the session is as it was" in found.stdout
