"""The command line as people and scripts meet it: real processes on one embedded folder, and options read in this process."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import psycopg
import pytest
from conftest import MASTER_KEY
from shell import Shell
from typer.testing import CliRunner

from memfold import MemoryStore
from memfold.api import cli, doctor, rendering
from memfold.eventstore import embedded
from memfold.settings import Environment, Settings

NOBODY = "01a1fca0-b8bf-71ee-aa42-d184c3a406c8"


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """A shell on a folder of this module. A store of ours is open there, so that the server runs and commands are quick."""
    folder = tmp_path_factory.mktemp("cli") / "store"
    server = embedded.attach(folder)
    shell = Shell(folder)
    shell.url = server.url
    with MemoryStore(folder) as shell.store:
        yield shell
    server.release()
    assert not embedded.status(folder).running


@pytest.fixture
def terminal():
    """Both ends of a terminal: ours, and the one a command sits at."""
    ours, theirs = pty.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def examine(place, *, key=MASTER_KEY, clock=lambda: datetime.now(UTC), **settings):
    environment = Environment(master_key=key, target=None, runtime_folder=None)
    return {check.name: check for check in doctor.examine(place, environment, Settings(**settings), clock)}


def verdicts(checks):
    return {check.verdict for check in checks.values()}


# -- the life of a memory ----------------------------------------------------------------------------------------------


def test_a_memory_is_remembered_recalled_changed_and_forgotten(shell):
    told = shell.json("remember", "the door code is 4711", "--session", "porter", "--tag", "door", "--tag", "code")
    assert (told["content"], told["tags"], told["user_id"]) == ("the door code is 4711", ["door", "code"], "porter")

    found = shell.json("recall", "which code opens the door?", "--session", "porter")
    assert [hit["memory"]["id"] for hit in found["recollections"]] == [told["id"]]
    assert found["position"] > 0

    changed = shell.json("update", told["id"], "--content", "the door code is 4712", "--clear", "tags", "--expected-version", 1)
    assert (changed["version"], changed["content"], changed["tags"]) == (2, "the door code is 4712", [])
    assert shell.json("get", told["id"]) == changed
    page = shell.json_here("find", "--session", "porter")
    assert (page["memories"], page["cursor"], page["withheld"]) == ([changed], None, 0)

    erasure = shell.json("forget", told["id"], "--reason", "user_request")
    assert (erasure["memory_ids"], erasure["keys_deleted"], erasure["reason"]) == ([told["id"]], 2, "user_request")

    assert [change["type"] for change in shell.json("history", told["id"])] == ["remembered", "updated", "forgotten"]
    log = [json.loads(line) for line in shell.run("log", "--session", "porter", "--json").splitlines()]
    assert [event["type"] for event in log] == ["MemoryRemembered", "MemoryUpdated", "MemoryForgotten"]
    assert [event["data"] for event in log[:2]] == [None, None]
    after = log[0]["position"]
    assert shell.here("log", "--session", "porter", "--after", after, "--limit", 1).split("\t")[1] == "MemoryUpdated"
    assert shell.json("stats", "--session", "porter") | {"position": 0} == {
        **{"sessions": 1, "users": 1, "memories": 0, "forgotten": 1, "events": 3, "position": 0},
        **{"database_bytes": None, "views": 0, "view_bytes": 0},
        **{"embedder": "all-MiniLM-L6-v2-int8", "embedding_lag": 0},
        **{"query_hit_rate": None, "recall_hit_rate": None},
        **{"summaries": 0, "archived": 0, "tokens_before": 0, "tokens_after": 0, "compression_ratio": None},
        **{"growth": [], "categories": {}, "near_limits": []},
    }
    (today,) = shell.json_here("stats", "--session", "porter", "--days", 1)["growth"]
    assert today["events"] == 3
    for verb in ("get", "update"):
        options = ["--content", "x"] if verb == "update" else []
        said = json.loads(shell.here(verb, told["id"], *options, "--json", exits=3))
        assert said["error"] == "MemoryForgotten"


def test_words_come_from_standard_input_and_the_id_alone_goes_out(shell):
    memory_id = shell.here("remember", "-", "--session", "piped", typed="two\nlines ü\n".encode()).strip()

    assert shell.store.get(memory_id).content == "two\nlines ü"
    assert "not UTF-8" in shell.here("remember", "-", "--session", "piped", typed=b"\xff", exits=2)


def test_a_time_without_an_offset_is_of_the_local_zone(shell):
    told = shell.json("remember", "paint", "--session", "times", "--occurred-at", "2026-09-03T10:30")
    assert told["occurred_at"] == "2026-09-03T08:30:00Z"

    bounds = ["--after", "2026-09-03T10:30", "--before", "2026-09-03T10:30:01"]
    assert len(shell.json("find", "--session", "times", *bounds)["memories"]) == 1


def test_pages_say_where_they_go_on(shell):
    for number in range(3):
        shell.store.remember(f"note {number}", session_id="pages", user_id="nora")

    first = shell.json_here("find", "--session", "pages", "--limit", 2, "--order", "oldest")
    rest = shell.json_here("find", "--session", "pages", "--limit", 2, "--order", "oldest", "--cursor", first["cursor"])

    assert [memory["content"] for memory in first["memories"] + rest["memories"]] == ["note 0", "note 1", "note 2"]
    assert rest["cursor"] is None
    assert [session["session_id"] for session in shell.json_here("sessions", "--user", "nora")["sessions"]] == ["pages"]


def test_a_pipe_gets_one_line_a_row_and_nothing_a_terminal_would_obey(shell):
    shell.store.remember("tab\there\nand \x1b[31mred\u202e [b]x[/b]", session_id="plain")

    (line,) = shell.here("find", "--session", "plain").splitlines()

    assert line.split("\t")[-1] == r"tab here and \x1b[31mred\u202e [b]x[/b]"


def test_a_terminal_gets_a_table_that_shows_words_as_they_are(shell, terminal):
    shell.store.remember("mind the \x1b[31m [red]gap[/red]", session_id="table")

    ours, theirs = terminal
    with shell.start("find", "--session", "table", stdout=theirs) as process:
        process.wait(60)
    shown = os.read(ours, 65536).decode()

    assert r"mind the \x1b[31m [red]gap[/red]" in shown
    assert "content" in shown.splitlines()[0]


# -- forgetting asks first ---------------------------------------------------------------------------------------------


def test_forgetting_a_session_asks_on_a_terminal_and_needs_a_yes(shell, terminal):
    shell.store.remember("gone soon", session_id="asked")
    ours, theirs = terminal

    for answer, status, left in (b"n\n", 1, 1), (b"yes\n", 0, 0):
        os.write(ours, answer)
        with shell.start("forget", "--session", "asked", stdin=theirs) as process:
            _, said = process.communicate(timeout=60)
        assert process.returncode == status
        assert b"Forget session 'asked' with 1 memory, for good?" in said
        assert shell.store.count("asked") == left


def test_where_nobody_can_be_asked_yes_must_be_said(shell):
    for category in ("fact", "fact", "mood"):
        shell.store.remember("x", session_id="bulk", user_id="ned", category=category)

    assert "--yes" in shell.here("forget", "--user", "ned", exits=2)
    some = shell.json_here("forget", "--session", "bulk", "--where", '{"category": "fact"}', "--yes")
    everything = shell.json_here("forget", "--user", "ned", "--yes")

    assert (some["scope"], len(some["memory_ids"])) == ("filter", 2)
    assert (everything["scope"], len(everything["memory_ids"])) == ("user", 1)
    assert shell.store.sessions("ned").sessions == []


def test_an_interrupted_question_forgets_nothing(shell, terminal):
    shell.store.remember("still here", session_id="interrupted")

    with shell.start("forget", "--session", "interrupted", stdin=terminal[1]) as process:
        while process.stderr.read(1) != b"]":
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)

    assert process.returncode == 130
    assert shell.store.count("interrupted") == 1


# -- what goes wrong ---------------------------------------------------------------------------------------------------


def test_what_is_not_there_has_an_exit_status_of_its_own(shell):
    assert "there is no memory" in shell.here("get", NOBODY, exits=3)
    assert json.loads(shell.here("history", NOBODY, "--json", exits=3)).keys() == {"error", "message"}


def test_a_refusal_is_one_line(shell):
    memory_id = shell.store.remember("x", session_id="refusals").id

    said = shell.here("update", memory_id, "--content", "y", "--expected-version", 7, exits=1)

    assert said.startswith("memfold: memory")
    assert said.count("\n") == 1
    assert "where at $nor" in shell.here("find", "--session", "refusals", "--where", '{"$nor": []}', exits=1)


def test_a_reader_that_went_away_is_no_traceback(shell):
    shell.store.remember("x" * 200_000, session_id="long")

    with shell.start("find", "--session", "long", "--json") as process:
        process.stdout.close()
        said = process.stderr.read()

    assert (process.returncode, said) == (141, b"")


def test_a_full_disk_under_the_answer_is_one_line(shell):
    with open("/dev/full", "wb") as full, shell.start("log", stdout=full) as process:
        said = process.stderr.read().decode()

    assert process.wait() == 1
    assert said == "memfold: the answer could not be written: No space left on device\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["find", "--session", "s", "--where", '{"secret words'], ["'--where'", "JSON"]),
        (["find", "--session", "s", "--where", "[1]"], ["'--where'", "no object"]),
        (["find", "--session", "s", "--before", "yesterday"], ["'--before'", "ISO 8601"]),
        (["find", "--session", "s", "--limit", "0"], ["'--limit'"]),
        (["find", "--session", "s", "--order", "best"], ["'--order'", "newest"]),
        (["find", "--as-of", "soon"], ["'--as-of'", "ISO 8601"]),
        (["remember", "x", "--session", "s", "--metadata", "[" * 2000], ["'--metadata'"]),
        (["remember", "x", "--session", "s", "--metadata", '{"n": NaN}'], ["'--metadata'"]),
        (["remember", "x", "--session", "s", "--importance", "2"], ["'--importance'"]),
        (["remember", "x", "--session", "s", "--occurred-at", "0001-01-01T00:00"], ["'--occurred-at'"]),
        (["update", NOBODY], ["--content"]),
        (["update", NOBODY, "--role", "user", "--clear", "role"], ["--clear", "role"]),
        (["update", NOBODY, "--clear", "content"], ["'--clear'"]),
        (["forget"], ["name one thing"]),
        (["forget", NOBODY, "--session", "s"], ["name one thing"]),
        (["forget", "--user", "u", "--where", "{}"], ["--where", "--session"]),
        (["forget", "--user", "u", "--reason", "gdpr", "--yes"], ["--reason"]),
        (["log", "--after", "-1"], ["'--after'"]),
        (["stop", "--target", "postgresql://user:secret@nowhere/db"], ["--target", "embedded"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_wrong_options_are_named_and_nothing_is_opened(monkeypatch, tmp_path, arguments, expected):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    monkeypatch.setenv("MEMFOLD_TARGET", str(tmp_path / "never"))

    result = CliRunner().invoke(cli.app, arguments)

    assert result.exit_code == 2, result.output
    assert all(part in result.output for part in expected), result.output
    assert "secret" not in result.output
    assert not (tmp_path / "never").exists()


def test_options_common_to_all_stand_before_or_behind_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("MEMFOLD_TARGET", "elsewhere://")
    for arguments in (["--json", "--target", str(tmp_path), "status"], ["status", "--target", str(tmp_path), "--json"]):
        found = json.loads(CliRunner().invoke(cli.app, arguments).output)
        assert (found["running"], found["folder"]) == (False, str(tmp_path.resolve()))
    assert CliRunner().invoke(cli.app, ["status"]).exit_code == 1


def test_help_is_quick_and_speaks_of_times_and_exit_statuses():
    def helped():
        begun = time.monotonic()
        out = subprocess.run([sys.executable, "-m", "memfold", "--help"], capture_output=True, text=True, check=True).stdout
        return time.monotonic() - begun, out

    taken = [helped() for _ in range(3)]

    assert min(seconds for seconds, _ in taken) < 0.5
    assert "time zone" in taken[0][1]
    assert "Exit status" in taken[0][1]


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from memfold.api import cli;"
        "print([name for name in ('psycopg', 'sqlalchemy', 'cryptography', 'sqlite3') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_every_answer_of_the_store_has_a_layout():
    assert rendering.clean("a\tb\nc \x07\x9b\u2066") == "a\tb\nc \\x07\\x9b\\u2066"
    with pytest.raises(KeyError):
        rendering.lay_out(object())


# -- looking after it --------------------------------------------------------------------------------------------------


def test_a_healthy_store_passes_every_check(shell):
    report = shell.json_here("doctor")

    assert report["ok"]
    assert {check["verdict"] for check in report["checks"]} == {"ok"}, report
    assert {"triggers", "grants", "master key", "settled position", "clock"} <= {check["name"] for check in report["checks"]}
    assert shell.here("doctor").splitlines()[0].startswith("ok   programs: PostgreSQL")


def test_an_empty_folder_is_examined_without_setting_anything_up(tmp_path):
    checks = examine(tmp_path / "new")

    assert verdicts(checks) == {"ok", "warn"}
    assert not (tmp_path / "new").exists()


def test_a_wrong_or_missing_master_key_is_found(shell):
    folder = Path(shell.target)

    assert examine(folder)["master key"].verdict == "fail"  # MASTER_KEY is not the one in the folder
    assert examine(folder, key=None)["master key"].verdict == "ok"
    assert examine(shell.url, key=None)["master key"].verdict == "fail"
    assert "base64url" in examine(shell.url, key="short")["master key"].found


def test_a_writer_in_flight_that_holds_back_the_settled_position_is_named(shell):
    with psycopg.connect(shell.url, application_name="psql") as writer:
        writer.execute("LOCK TABLE memfold.events IN ROW EXCLUSIVE MODE")
        writer.execute("SELECT nextval('memfold.position')")
        pid = writer.info.backend_pid
        check = examine(Path(shell.target), key=None, settle_timeout_s=0.2)["settled position"]
        writer.rollback()

    assert check.verdict == "fail"
    assert f"pid {pid} (psql)" in check.found
    assert examine(Path(shell.target), key=None)["settled position"].verdict == "ok"


@pytest.mark.parametrize(
    ("damage", "repair", "name", "said"),
    [
        (
            "ALTER TABLE memfold.events DISABLE TRIGGER events_immutable",
            "ALTER TABLE memfold.events ENABLE TRIGGER events_immutable",
            *("triggers", "events_immutable"),
        ),
        (
            "ALTER ROLE postgres SET session_replication_role = replica",
            "ALTER ROLE postgres RESET session_replication_role",
            *("triggers", "session_replication_role"),
        ),
        (
            "GRANT UPDATE (digest) ON memfold.events TO memfold_app",
            "REVOKE UPDATE (digest) ON memfold.events FROM memfold_app",
            *("grants", "UPDATE ON memfold.events.digest TO memfold_app"),
        ),
        (
            "GRANT EXECUTE ON FUNCTION memfold.destroy TO memfold_app",
            "REVOKE EXECUTE ON FUNCTION memfold.destroy FROM memfold_app",
            *("grants", "EXECUTE ON memfold.destroy TO memfold_app"),
        ),
        (
            "GRANT DELETE ON memfold_keys.keys TO PUBLIC",
            "REVOKE DELETE ON memfold_keys.keys FROM PUBLIC",
            *("grants", "DELETE ON memfold_keys.keys TO PUBLIC"),
        ),
        (
            "REVOKE SELECT ON memfold.sessions FROM memfold_app",
            "GRANT SELECT ON memfold.sessions TO memfold_app",
            *("grants", "memfold_app lacks SELECT ON memfold.sessions"),
        ),
        (
            "ALTER SEQUENCE memfold.position CACHE 10",
            "ALTER SEQUENCE memfold.position CACHE 1",
            *("positions", "CACHE 10"),
        ),
        (
            "UPDATE memfold.alembic_version SET version_num = '9999'",
            "UPDATE memfold.alembic_version SET version_num = '0007'",
            *("schema", "9999"),
        ),
    ],
)
def test_a_log_that_was_tampered_with_fails_its_check(shell, damage, repair, name, said):
    with psycopg.connect(shell.url, autocommit=True) as owner:
        owner.execute(damage)
        try:
            checks = examine(Path(shell.target), key=None)
        finally:
            owner.execute(repair)

    assert [check.name for check in checks.values() if check.verdict == "fail"] == [name]
    assert said in checks[name].found
    assert checks[name].advice


def test_a_login_without_the_role_relies_on_triggers_alone(shell):
    with psycopg.connect(shell.url, autocommit=True) as owner:
        owner.execute("CREATE ROLE plain LOGIN")
        owner.execute("GRANT USAGE ON SCHEMA memfold, memfold_keys TO plain")
        owner.execute("GRANT SELECT ON memfold.alembic_version TO plain")
        check = examine(shell.url.replace("postgres@", "plain@"))["application role"]
        owner.execute("DROP OWNED BY plain; DROP ROLE plain")

    assert check.verdict == "warn"
    assert "triggers alone" in check.found
    assert check.advice == "GRANT memfold_app TO plain"


def test_a_clock_that_is_off_is_a_warning(shell):
    check = examine(Path(shell.target), key=None, clock=lambda: datetime(2020, 1, 1, tzinfo=UTC))["clock"]
    assert check.verdict == "warn"


def test_a_database_without_memfold_is_no_failure(shell):
    with psycopg.connect(shell.url, autocommit=True) as owner:
        owner.execute("CREATE DATABASE empty")
        checks = examine(shell.url.replace("/postgres?", "/empty?"))
        owner.execute("DROP DATABASE empty WITH (FORCE)")

    assert checks["schema"].verdict == "warn"
    assert "fail" not in verdicts(checks)


def test_a_server_that_cannot_be_reached_is_reported_without_its_password(tmp_path):
    shell = Shell(f"postgresql://user:secret@/db?host={tmp_path}")

    with shell.start("status", "--json") as process:
        out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert json.loads(out)["reachable"] is False
    report = json.loads(shell.start("doctor", "--json").communicate(timeout=60)[0])
    assert (report["ok"], len(report["checks"])) == (False, 1)
    assert "secret" not in f"{out!r} {err!r} {report}"


def test_status_of_a_url_names_the_server(shell):
    found = Shell(shell.url, MEMFOLD_MASTER_KEY=MASTER_KEY).json("status")
    assert found["reachable"]
    assert found["version"] == embedded.status(Path(shell.target)).version
    assert found["login"] == "postgres"


def test_stop_leaves_a_server_alone_that_others_use_unless_forced(shell):
    assert shell.json_here("status")["running"]
    assert "other processes still use the server" in shell.run("stop", exits=1)

    assert shell.json("stop", "--force") == {"stopped": True}

    assert shell.json_here("stop") == {"stopped": False}
    assert not shell.json_here("status")["running"]
    assert shell.here("version").startswith("memfold: ")
