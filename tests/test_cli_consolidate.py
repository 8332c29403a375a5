"""Consolidating from the command line, as people and cron meet it: on one embedded folder, mostly in this process."""

import json
import os
import pty
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from shell import Shell
from typer.testing import CliRunner

from memfold import MemoryStore
from memfold.api import cli, rendering
from memfold.eventstore import embedded
from memfold.minilm import static_embedder

NOBODY = "01a1fca0-b8bf-71ee-aa42-d184c3a406c8"
AT_ONCE = {"windows": {"older_than": "PT0S", "pause": "PT0.000001S", "memories_max": 12, "target": 0.25}, "keep": {"newest": 0}}
WINDOWS = 2  # of `talk`


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder whose server runs as long as this module."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    server = embedded.attach(folder)
    yield folder
    server.release()


@pytest.fixture
def shell(folder, tenant):
    """A shell and an open store of a tenant of this test's own; what is remembered is due at once."""
    shell = Shell(folder)
    shell.tenant = tenant
    with MemoryStore(folder, tenant=tenant, embedder=static_embedder()) as shell.store:
        yield shell


def here(shell, *arguments, **options):
    return shell.here("--tenant", shell.tenant, *arguments, **options)


def json_here(shell, *arguments, **options):
    return json.loads(here(shell, "--json", *arguments, **options))


def talk(store, session_id="talk", turns=24):
    """A conversation that becomes two windows."""
    said = [f"On day {day} Anna sailed {day} miles off Oslo, and Ben mended the {day}th sail." for day in range(turns)]
    return store.remember_many([{"content": each, "speaker": "Anna"} for each in said], session_id=session_id)


def everything(store, session_id="talk"):
    return store.find(session_id, order="oldest", limit=1_000).memories


# -- consolidating -----------------------------------------------------------------------------------------------------


def test_a_conversation_is_consolidated_looked_into_and_restored(shell):
    before = talk(shell.store)
    here(shell, "policy", "set", "-", typed=json.dumps(AT_ONCE).encode())

    done = json_here(shell, "consolidate")
    summaries = [window["summary_id"] for window in done["sessions"][0]["windows"]]
    assert (len(summaries), done["windows_count"], done["failed_count"], done["stopped"]) == (WINDOWS, WINDOWS, 0, None)
    assert 0 < done["tokens_after"] <= done["tokens_before"] * 0.25
    assert "contradictions" not in done
    assert "Anna" not in json.dumps(done)

    listed = {memory["id"] for memory in json_here(shell, "find", "--session", "talk")["memories"]}
    assert listed == set(summaries)
    assert len(json_here(shell, "find", "--session", "talk", "--include-archived")["memories"]) == 24 + WINDOWS
    found = json_here(shell, "recall", "the 7th sail", "--session", "talk", "--include-archived", "--refresh")
    assert {hit["memory"]["status"] for hit in found["recollections"]} == {"active", "archived"}
    log = here(shell, "log", "--session", "talk").splitlines()
    assert log[-1].split("\t")[1] == "MemoriesRefreshed"
    assert "day 7 " in here(shell, "context", "Anna on day 7", "--session", "talk", "--include-archived")

    sources = json_here(shell, "sources", summaries[0])
    assert [source["id"] for source in sources] == [memory.id for memory in before[:12]]
    (best,) = json_here(shell, "sources", summaries[0], "--query", "the 7th sail", "--limit", 1)
    assert best["id"] == before[7].id
    assert [memory["id"] for memory in json_here(shell, "derived-from", before[7].id)] == summaries[:1]
    assert here(shell, "derived-from", summaries[0]) == ""

    back = json_here(shell, "restore", *summaries)
    assert [memory["id"] for memory in back] == [memory.id for memory in before]
    assert everything(shell.store) == before


def test_a_dry_run_says_what_would_be_done_and_does_nothing(shell):
    before = talk(shell.store)
    shell.store.set_policy(AT_ONCE | {"retention": {"session_bytes_max": 2_000}})
    position = shell.store.stats().position

    rows = [line.split("\t") for line in here(shell, "consolidate", "--dry-run").splitlines()]
    words = [line.split("\t") for line in here(shell, "consolidate", "--dry-run", "--summaries").splitlines()]
    told = json_here(shell, "consolidate", "--session", "talk", "--dry-run")

    assert [row[:3] for row in rows] == [
        ["talk", "summary of level 1", "12"],
        ["talk", "summary of level 1", "12"],
        ["talk", "near its limit", "24"],
    ]
    assert all(int(row[4]) <= int(row[3]) * 0.25 and not row[5] for row in rows[:WINDOWS])
    assert all("Anna" in row[5] for row in words[:WINDOWS])
    assert (told["dry_run"], told["windows_count"], told["contradictions"]) == (True, WINDOWS, [])
    assert told["sessions"][0]["windows"][0]["memory_ids"] == [memory.id for memory in before[:12]]
    assert (everything(shell.store), shell.store.stats().position) == (before, position)


def test_what_is_said_beside_the_table_stands_on_standard_error(shell):
    talk(shell.store)
    shell.store.set_policy(AT_ONCE)

    def noted(*arguments):
        environment = {"MEMFOLD_TARGET": shell.target, "MEMFOLD_MASTER_KEY": None}
        return CliRunner(env=environment).invoke(cli.app, ["--tenant", shell.tenant, "consolidate", *arguments]).stderr

    assert noted("--session", "nowhere") == "memfold: there is no such session\n"
    assert "24 memories would become 2 summaries" in noted("--dry-run")
    assert "24 memories became 2 summaries" in noted()
    assert noted("--until-idle") == "memfold: nothing is due\n"


def test_policies_that_contradict_one_another_are_named(shell):
    shell.store.set_policy({"retention": {"max_age": "P30D"}})
    shell.store.remember("x", session_id="slow")
    shell.store.set_policy({"windows": {"older_than": "P60D"}}, session_id="slow")

    (found,) = json_here(shell, "consolidate", "--dry-run")["contradictions"]

    assert (found["category"], found["path"]) == (None, "retention.max_age")


def test_fading_and_expiry_are_told_by_number(shell):
    talk(shell.store, turns=4)
    shell.store.set_policy({"windows": {"enabled": False}, "keep": {"newest": 0}, "retention": {"session_memories_max": 3}})
    shell.store.set_policy({"fading": {"enabled": True, "half_life": "PT0.000001S"}, "keep": {"newest": 0}}, session_id="talk")

    rows = [line.split("\t")[:3] for line in here(shell, "consolidate").splitlines()]

    assert [row for row in rows if row[1] != "near its limit"] == [["talk", "faded", "3"], ["talk", "expired", "1"]]
    assert shell.store.count("talk") == 0
    assert shell.store.count("talk", include_archived=True) == 3


def test_a_terminal_sees_the_progress_and_a_table(shell):
    talk(shell.store)
    shell.store.set_policy(AT_ONCE)
    ours, theirs = pty.openpty()

    with shell.start("--tenant", shell.tenant, "consolidate", stdout=theirs, stderr=theirs) as process:
        assert process.wait(60) == 0
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(theirs)

    assert "1 sessions" in shown
    assert "summaries: 2" in shown
    assert "24 memories became 2 summaries" in shown


# -- what fails --------------------------------------------------------------------------------------------------------


class Refusing(BaseHTTPRequestHandler):
    """An endpoint that does not know the key."""

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        self.send_response(401)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def refusing_endpoint(monkeypatch):
    server = ThreadingHTTPServer(("127.0.0.1", 0), Refusing)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("MEMFOLD_LLM_MODEL", "nobody")
    monkeypatch.setenv("MEMFOLD_LLM_BASE_URL", f"http://127.0.0.1:{server.server_port}/v1")
    monkeypatch.setenv("MEMFOLD_LLM_API_KEY", "sk-secret")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.usefixtures("refusing_endpoint")
def test_a_window_that_fails_is_parked_with_its_reason_until_somebody_asks_for_it(shell):
    before = talk(shell.store)
    shell.store.set_policy(AT_ONCE)
    assert json_here(shell, "parked") == []

    said = here(shell, "consolidate", exits=1)
    assert "2 windows failed: the summarizer " in said
    assert "sk-secret" not in said
    assert everything(shell.store) == before

    parked = json_here(shell, "parked")
    assert [(each["job"], each["session_id"], each["attempts"]) for each in parked] == [("consolidate", "talk", 1)] * 2
    assert all(each["next_at"] is None and "401" in each["reason"] for each in parked)
    row = here(shell, "parked").splitlines()[0].split("\t")
    assert (row[:2], row[3]) == (["consolidate", "talk"], "1")

    assert json_here(shell, "consolidate")["failed_count"] == 0  # nobody is asked again
    assert json_here(shell, "parked", "--retry") == {"retried": 2}
    here(shell, "consolidate", exits=1)
    assert len(json_here(shell, "parked")) == 2


def test_what_is_not_there_has_its_exit_status(shell):
    for command in (["sources", NOBODY], ["derived-from", NOBODY], ["restore", NOBODY]):
        assert "there is no memory" in here(shell, *command, exits=3)


@pytest.mark.parametrize(
    ("arguments", "typed", "expected"),
    [
        (["consolidate", "--summaries"], None, ["for --summaries: ", "--dry-run"]),
        (["policy", "set"], None, ["for FILE: ", "set"]),
        (["policy", "show", "policy.json"], None, ["for FILE: ", "set"]),
        (["policy", "set", "-"], b"[1]", ["for FILE: ", "no object"]),
        (["policy", "set", "-"], b'{"secret words', ["for FILE: ", "JSON"]),
        (["policy", "set", "-"], b"\xff", ["for FILE: ", "UTF-8"]),
        (["policy", "set", "/nowhere/policy.json"], None, ["for FILE: ", "cannot be read"]),
        (["policy", "set", "-", "--session", "s", "--category", "fact"], b"{}", ["for --category: ", "--session"]),
        (["policy", "unset", "--session", "s", "--category", "fact"], None, ["for --category: ", "--session"]),
        (["policy", "forget"], None, ["show", "unset"]),
        (["sources", NOBODY, "--limit", "0"], None, ["'--limit'"]),
        (["restore"], None, ["ID"]),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else None,
)
def test_wrong_options_are_named_and_nothing_is_opened(monkeypatch, tmp_path, arguments, typed, expected):
    monkeypatch.setenv("MEMFOLD_TARGET", str(tmp_path / "never"))

    result = CliRunner().invoke(cli.app, arguments, input=typed)

    assert result.exit_code == 2, result.output
    assert all(part in result.output for part in expected), result.output
    assert "secret" not in result.output
    assert not (tmp_path / "never").exists()


# -- policies ----------------------------------------------------------------------------------------------------------


def test_a_policy_is_set_shown_and_taken_away_again(shell, tmp_path):
    shell.store.remember("x", session_id="short")
    file = tmp_path / "policy.json"
    file.write_text('{"windows": {"older_than": "P7D"}}')
    default = json_here(shell, "policy")
    assert default["set"] == {"tenant": None, "categories": {}, "sessions": {}}

    whole = json_here(shell, "policy", "set", file)
    assert (whole["effective"]["windows"]["older_than"], whole["set"]["tenant"]["windows"]["older_than"]) == ("P7D", "P7D")

    for option, name in (("--session", "short"), ("--category", "fact")):
        text = f'{{"windows": {{"older_than": "PT{len(name)}H"}}}}'
        own = json_here(shell, "policy", "set", "-", option, name, typed=text.encode())
        assert own["effective"]["windows"]["older_than"] == f"PT{len(name)}H"
    assert own["set"]["sessions"] == {}
    everything = json_here(shell, "policy")["set"]
    assert (list(everything["sessions"]), list(everything["categories"])) == (["short"], ["fact"])

    assert json_here(shell, "policy", "unset", "--session", "short")["effective"] == whole["effective"]
    json_here(shell, "policy", "unset", "--category", "fact")
    assert json_here(shell, "policy", "unset") == default
    assert json.loads(here(shell, "policy", "show")) == default  # without --json too, on several lines


def test_a_policy_that_makes_no_sense_is_one_line_and_changes_nothing(shell):
    bad = b'{"windows": {"older_than": "a week"}}'

    said = here(shell, "policy", "set", "-", typed=bad, exits=1)

    assert said.startswith("memfold: windows.older_than is no duration")
    assert said.count("\n") == 1
    assert json.loads(here(shell, "--json", "policy", "set", "-", typed=bad, exits=1))["error"] == "PolicyError"
    assert "names no session" in here(shell, "policy", "--session", "nowhere", exits=1)
    assert json_here(shell, "policy")["set"]["tenant"] is None


def test_lists_of_every_kind_have_a_layout():
    assert rendering.lay_out([]).rows == []
    with pytest.raises(KeyError):
        rendering.lay_out([object()])
