"""Chats from files: what a line means, and what becomes of a file that is broken, interrupted, imported again or grown."""

import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from conftest import MASTER_KEY
from typer.testing import CliRunner

from memfold import InvalidMemory, SessionOwnerConflict
from memfold.api import cli, importing
from memfold.api.importing import BadLine, Importer, Line, to_message


def line(**fields):
    return json.dumps(fields).encode()


def message(**fields):
    return to_message(line(**{"session": "s", "content": "hello"} | fields))


def chat(count, session="chat", **fields):
    """A file of so many messages, numbered from 0."""
    return b"".join(line(session=session, content=f"message {number}", **fields) + b"\n" for number in range(count))


def run(store, data, **options):
    return Importer(store, **options).run(io.BytesIO(data))


def contents(store, session="chat"):
    found, cursor = [], None
    while True:
        page = store.find(session, order="oldest", limit=10_000, cursor=cursor)
        found += [memory.content for memory in page.memories]
        if not (cursor := page.cursor):
            return found


def numbered(count):
    return [f"message {number}" for number in range(count)]


@pytest.fixture(params=[7, 10_000])
def window_lines(request, monkeypatch):
    """Files are small in tests, so windows and batches are too; and, to compare, as they are."""
    monkeypatch.setattr(importing, "WINDOW_LINES", request.param)
    monkeypatch.setattr(importing, "BATCH_LINES", min(request.param, 3))


# --- a line ------------------------------------------------------------------------------------------------------------------


def test_a_chat_message_becomes_a_memory():
    found = to_message(line(role="user", content="I moved to Oslo", name="Nora"), session="s")

    assert (found.session, found.user) == ("s", None)
    assert (found.memory.content, found.memory.role, found.memory.speaker) == ("I moved to Oslo", "user", "Nora")
    assert not found.memory.metadata


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"text": "hi"}, "hi"),
        ({"message": "hi"}, "hi"),
        ({"message": {"role": "user", "content": "hi"}, "timestamp": "2026-09-03T10:30:00Z"}, "hi"),
        ({"content": [{"type": "text", "text": "one"}, {"type": "image_url", "image_url": {}}, "two"]}, "one\ntwo"),
        ({"content": [{"type": "input_text", "text": "one"}, {"type": "thinking", "text": "no"}]}, "one"),
        ({"role": "user", "parts": [{"text": "gemini"}]}, "gemini"),
        ({"content": None, "text": "hi"}, "hi"),
        ({"content": "  kept as it is\n"}, "  kept as it is\n"),
    ],
)
def test_the_words_are_found_under_the_names_that_people_use(fields, expected):
    assert to_message(line(**fields), session="s").memory.content == expected


@pytest.mark.parametrize(
    "fields",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "x"}]},
        {"role": "assistant", "tool_calls": [{"id": "x"}]},
        {"role": "assistant", "function_call": {"name": "x"}},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": " \n"},
        {"role": "user", "content": []},
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
    ],
)
def test_a_message_without_words_is_none(fields):
    assert to_message(line(**fields)) is None


def test_fields_of_our_own_are_taken_as_they_are_and_unknown_keys_become_metadata():
    given = {"category": "fact", "importance": 0.9, "tags": ["a"], "metadata": {"source": "mail"}, "author": "Jonas"}
    found = message(**given, source="ignored: metadata says it", model="m", id=7, refusal=None, note="").memory

    assert (found.category, found.importance, found.tags, found.speaker) == ("fact", 0.9, ["a"], "Jonas")
    assert found.metadata == {"source": "mail", "model": "m", "id": 7}


def test_of_two_spellings_the_second_is_metadata_and_nothing_is_lost():
    found = message(text="other", created_at="2026-09-03", timestamp=1_700_000_000).memory

    assert found.content == "hello"
    assert found.occurred_at == datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
    assert found.metadata == {"text": "other", "created_at": "2026-09-03"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("2026-09-03T10:30:00+02:00", datetime(2026, 9, 3, 8, 30, tzinfo=UTC)),
        ("2026-09-03T08:30:00Z", datetime(2026, 9, 3, 8, 30, tzinfo=UTC)),
        ("2026-09-03 10:30", datetime(2026, 9, 3, 1, 30, tzinfo=UTC)),  # in Tokyo
        (1_700_000_000, datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (1_700_000_000.25, datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)),
        (1_700_000_000_250, datetime(2023, 11, 14, 22, 13, 20, 250_000, tzinfo=UTC)),
        ("1700000000", datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)),
        (0, datetime(1970, 1, 1, tzinfo=UTC)),
    ],
)
@pytest.mark.parametrize("field", ["occurred_at", "timestamp", "created_at"])
def test_times_are_iso_or_unix_seconds_or_milliseconds(monkeypatch, field, given, expected):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        assert message(**{field: given}).memory.occurred_at == expected
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize("name", ["session", "session_id", "conversation_id", "thread_id", "sessionId"])
def test_a_line_names_its_session_unless_it_is_given(name):
    raw = line(content="x", **{name: 42})

    assert to_message(raw).session == "42"
    assert to_message(raw, session="given").session == "given"
    assert to_message(raw, session="given").memory.metadata == {name: 42}


def test_a_line_names_its_user_unless_it_is_given():
    raw = line(content="x", session="s", user_id="nora")

    assert to_message(raw).user == "nora"
    assert to_message(raw, user="given").user == "given"


@pytest.mark.parametrize(
    ("raw", "field", "said"),
    [
        (b'{"content": "secret', "line", "is no JSON"),
        (b"secret", "line", "is no JSON"),
        (b'{"content": "secret \xff"}', "line", "not UTF-8"),
        (b'{"content": "secret \\ud83d"}', "line", "is no JSON"),
        (b'{"content": "secret", "x": 1e999}', "line", "is no JSON"),
        (b'{"x": ' + b"[" * 100_000, "line", "nested too deeply"),
        (b'[{"content": "secret"}]', "line", "jq -c '.[]'"),
        (b'"secret"', "line", "no object"),
        (b"7", "line", "no object"),
        (line(session="s"), "content", "is missing"),
        (line(messages=[{"content": "secret"}]), "content", "jq -c '.messages[]'"),
        (line(session="s", content=7), "content", "is int"),
        (line(session="s", content={"secret": 1}), "content", "is dict"),
        (line(session="s", content=[7]), "content", "holds int"),
        (line(session="s", content="secret" * 50_000), "content", "300,000 bytes"),
        (line(session="s", content="x" * (5 << 20)), "line", "4,194,304 bytes"),
        (line(session="s", content="nul \0"), "content", "NUL"),
        (line(content="secret"), "session_id", "--session"),
        (line(session={"secret": 1}, content="x"), "session_id", "is dict"),
        (line(session=True, content="x"), "session_id", "is bool"),
        (line(session="s", user=["secret"], content="x"), "user_id", "is list"),
        (line(session="s", content="x", role=7), "role", "is int"),
        (line(session="s", content="x", name="secret" * 100), "speaker", "600 characters"),
        (line(session="s", content="x", importance=2), "importance", "outside"),
        (line(session="s", content="x", tags="secret"), "tags", "is str"),
        (line(session="s", content="x", metadata=["secret"]), "metadata", "is list"),
        (line(session="s", content="x", unknown="secret" * 20_000), "metadata", "bytes"),
        (line(session="s", content="x", timestamp="secret"), "occurred_at", "ISO 8601"),
        (line(session="s", content="x", timestamp=True), "occurred_at", "ISO 8601"),
        (line(session="s", content="x", timestamp=10**30), "occurred_at", "ISO 8601"),
        (line(session="s", content="x", timestamp="0001-01-01T00:00:00Z"), "occurred_at", "years"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_a_line_that_cannot_be_stored_is_refused_by_field_and_never_quoted(raw, field, said):
    with pytest.raises(InvalidMemory) as refused:
        to_message(raw)

    assert refused.value.field == field
    assert said in refused.value.problem
    assert "secret" not in str(refused.value)


# --- a file ------------------------------------------------------------------------------------------------------------------


def test_lines_are_counted_as_editors_do_and_end_in_any_way():
    data = b"\xef\xbb\xbfone\r\n\n" + b"x" * (importing.LINE_BYTES_MAX + 5_000_000) + b"\nfour"

    found = list(importing.read_lines(io.BytesIO(data)))

    assert [(each.number, each.raw[:4]) for each in found] == [(1, b"one"), (2, b""), (3, b"xxxx"), (4, b"four")]


def test_a_file_that_breaks_off_in_the_reading_is_told_with_its_line():
    class Broken(io.BytesIO):
        def readline(self, size):
            if found := super().readline(size):
                return found
            raise OSError(5, "Input/output error")

    with pytest.raises(InvalidMemory, match="file cannot be read behind line 3: Input/output error"):
        list(importing.read_lines(Broken(chat(3))))


def test_windows_take_little_memory_however_long_the_file_is():
    endless = (Line(number, b"x" * 100_000) for number in range(1, 10**9))

    first = next(importing.windows(endless))

    assert sum(len(each.raw) for each in first) < importing.WINDOW_BYTES + 100_000


@pytest.mark.usefixtures("window_lines")
def test_a_file_is_stored_in_order_session_by_session(store):
    data = b"\n".join(line(session=f"s{number % 3}", content=f"message {number}", user="u") for number in range(20))

    report = run(store, b"\n" + data + b"\n\n" + line(role="assistant", content=None, tool_calls=[]))

    assert (report.lines, report.messages, report.stored, report.without_words) == (23, 20, 20, 1)
    assert report.stored_through == 23
    for session in range(3):
        assert contents(store, f"s{session}") == [f"message {number}" for number in range(session, 20, 3)]
    assert {session.user_id for session in store.sessions().sessions} == {"u"}


@pytest.mark.usefixtures("window_lines")
def test_imported_twice_a_file_adds_nothing(store):
    data = chat(20) + chat(20) + chat(5, session="other")

    first, second = run(store, data), run(store, data)

    assert (first.stored, first.already_stored) == (45, 0)
    assert (second.stored, second.already_stored, second.stored_through) == (0, 45, 45)
    assert contents(store) == numbered(20) + numbered(20)


@pytest.mark.usefixtures("window_lines")
def test_of_a_file_that_has_grown_only_what_is_new_is_added(store):
    for count, data in [(5, chat(5)[:-1]), (8, chat(8)), (8, chat(8)), (9, chat(9)), (40, chat(40)), (40, chat(40)[:-1])]:
        assert run(store, data).messages == count
        assert contents(store) == numbered(count)


@pytest.mark.usefixtures("window_lines")
def test_a_file_that_another_begins_like_is_another_file(store):
    assert run(store, chat(4)).stored == 4
    other = chat(2) + line(session="chat", content="something else") + b"\n" + chat(2)

    assert run(store, other).stored == 5
    assert run(store, other).already_stored == 5


@pytest.mark.usefixtures("window_lines")
def test_what_was_forgotten_since_does_not_come_back(store):
    run(store, chat(10))
    store.forget(store.find("chat", order="oldest", limit=2).memories[1].id)

    report = run(store, chat(12))

    assert (report.stored, report.already_stored) == (2, 10)
    assert contents(store) == [f"message {number}" for number in range(12) if number != 1]


@pytest.mark.usefixtures("window_lines")
def test_two_imports_at_once_add_nothing_twice(make_store):
    from concurrent.futures import ThreadPoolExecutor

    stores = [make_store() for _ in range(3)]
    with ThreadPoolExecutor(3) as threads:
        list(threads.map(lambda store: run(store, chat(60)), stores))

    assert contents(stores[0]) == numbered(60)


def test_an_invalid_line_ends_the_import_before_anything_of_its_stretch(store, monkeypatch):
    monkeypatch.setattr(importing, "WINDOW_LINES", 10)
    data = chat(25) + b'{"session": "chat", "content": 7}\n' + chat(25)

    report = run(store, data)

    assert report.invalid_lines == [BadLine(26, "content", "is int: give a string")]
    assert (report.stored, report.stored_through) == (20, 20)
    assert contents(store) == numbered(20)

    assert run(store, chat(25)).stored == 5
    assert contents(store) == numbered(25)


@pytest.mark.usefixtures("window_lines")
def test_invalid_lines_are_passed_over_and_named_if_asked_to(store):
    data = chat(3) + b"{\n" + chat(3) + b"\xff\n\n"

    for stored in (6, 0):
        report = run(store, data, skip_invalid=True)
        assert (report.stored, report.invalid, report.stored_through) == (stored, 2, 9)
        assert [bad.line for bad in report.invalid_lines] == [4, 8]
    assert contents(store) == numbered(3) + numbered(3)


def test_without_a_store_everything_is_checked_and_all_that_is_wrong_is_named():
    report = run(None, chat(3) + b"{\n" + chat(3) + b"[]\n")

    assert (report.dry_run, report.messages, report.stored, report.invalid) == (True, 6, 0, 2)


def test_a_session_of_two_users_is_refused_unless_one_is_named(store):
    data = chat(1) + chat(1, user="nora") + chat(1) + chat(1, user="jonas")

    report = run(store, data)
    assert [(bad.line, bad.field) for bad in report.invalid_lines] == [(4, "user_id")]
    assert run(store, data, user="family").stored == 4
    assert [memory.metadata for memory in store.find("chat", order="oldest").memories[1::2]] == [
        {"user": "nora"},
        {"user": "jonas"},
    ]
    with pytest.raises(SessionOwnerConflict):
        run(store, chat(1, user="somebody"))


def test_everything_is_embedded_when_embed_returns(store):
    run(store, chat(40))
    seen = []

    importing.embed(store, lambda made, total: seen.append((made, total)))

    assert store.stats().embedding_lag == 0
    assert seen[-1][0] == seen[-1][1] <= 40


# --- the command -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def shell(server_url, tenant):
    """Runs `memfold import` in this process, on this test's tenant."""

    def invoke(*arguments, exits=0, typed=None):
        environment = {"MEMFOLD_TARGET": server_url, "MEMFOLD_MASTER_KEY": MASTER_KEY}
        command = ["import", *map(str, arguments), "--tenant", tenant]
        result = CliRunner(env=environment).invoke(cli.app, command, input=typed, prog_name="memfold")
        assert result.exit_code == exits, result.output
        return result

    return invoke


@pytest.fixture
def start(server_url, tenant):
    """Starts `memfold import` as a process of its own, on this test's tenant."""

    def start(*arguments, **streams):
        command = [sys.executable, "-m", "memfold", "import", *map(str, arguments), "--tenant", tenant]
        environment = os.environ | {"MEMFOLD_TARGET": server_url, "MEMFOLD_MASTER_KEY": MASTER_KEY}
        return subprocess.Popen(command, env=environment, **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams)

    return start


def test_the_command_says_what_it_did(shell, store, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(chat(3))

    assert "stored: 3" in shell(path).stdout.splitlines()
    again = json.loads(shell(path, "--json").stdout)

    assert (again["stored"], again["already_stored"], again["invalid_lines"]) == (0, 3, [])
    assert contents(store) == numbered(3)


def test_the_command_reads_standard_input_and_waits_for_embeddings_if_asked(shell, store):
    report = json.loads(shell("-", "--session", "piped", "--user", "nora", "--embed", "--json", typed=chat(3)).stdout)

    assert report["stored"] == 3
    assert store.find("piped").memories[0].user_id == "nora"


def test_a_refusal_names_file_line_and_field_and_what_was_stored(shell, store, tmp_path, monkeypatch):
    monkeypatch.setattr(importing, "WINDOW_LINES", 2)
    path = tmp_path / "chat.jsonl"
    path.write_bytes(chat(2) + line(session="chat", content="secret", timestamp="secret"))

    result = shell(path, exits=1)

    assert result.stderr.startswith(f"memfold: {path}: line 3: occurred_at is no time")
    assert "before that, 2 memories were stored, among them every line up to 2" in result.stderr
    assert result.stderr.count("\n") == 1
    assert "secret" not in result.output
    said = shell(path, "--json", exits=1)
    assert json.loads(said.stderr)["error"] == "InvalidMemory"
    assert json.loads(said.stdout)["invalid_lines"][0]["line"] == 3
    assert "line 3" in shell(path, "--skip-invalid").stdout


def test_an_array_is_told_how_to_become_lines(shell):
    for data in (b'[{"content": "x"}, {"content": "y"}]', b'[\n  {"content": "x"}\n]'):
        assert "jq -c '.[]'" in shell("-", "--session", "s", typed=data, exits=1).stderr


def test_what_the_store_refuses_is_told_with_what_was_stored(shell, store):
    store.remember("mine", session_id="chat", user_id="nora")
    said = json.loads(shell("-", "--json", typed=chat(2, user="jonas"), exits=1).stderr)
    assert said["error"] == "SessionOwnerConflict"


def test_a_dry_run_opens_no_store(tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(chat(2))
    runner = CliRunner(env={"MEMFOLD_TARGET": str(tmp_path / "never"), "MEMFOLD_MASTER_KEY": None})

    assert "messages: 2" in runner.invoke(cli.app, ["import", str(path), "--dry-run"]).output
    path.write_bytes(chat(2) + b"{")
    assert runner.invoke(cli.app, ["import", str(path), "--dry-run"]).exit_code == 1
    assert not (tmp_path / "never").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["none.jsonl"], "cannot be read: No such file"), (["."], "Is a directory"), ([], "Missing argument")],
)
def test_a_file_that_cannot_be_read_is_wrong_usage(shell, arguments, said):
    assert said in shell(*arguments, exits=2).stderr
    assert "--dry-run" in shell("-", "--dry-run", "--embed", exits=2).stderr


def test_on_a_terminal_a_bar_shows_how_far_it_is(start, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(chat(1500))
    ours, theirs = pty.openpty()

    with start(path, "--json", stderr=theirs) as process:
        assert process.wait(60) == 0
    shown = os.read(ours, 65536).decode()
    os.close(ours)
    os.close(theirs)

    assert "100%" in shown
    assert re.search("1,500.*lines", shown)


def test_elsewhere_progress_is_a_plain_line_now_and_then(monkeypatch, capsys):
    from memfold.api import rendering

    monkeypatch.setattr(rendering, "LINE_EVERY_S", 0)
    with rendering.progress("imported", "lines", None, quiet=False) as look:
        look(5, 1_000)
    with rendering.progress("imported", "lines", None, quiet=True) as look:
        look(5, 1_000)

    assert capsys.readouterr().err == "memfold: 1,000 lines imported\n"


def test_an_import_that_was_killed_goes_on_where_it_was(start, store, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(chat(30_000))

    for _ in range(3):
        before = store.count("chat")
        with start(path) as process:
            while store.stats("chat").memories < min(before + 2_000, 30_000):
                assert process.poll() is None
            process.kill()
    with start(path, "--json") as process:
        report = json.loads(process.communicate(timeout=120)[0])

    assert report["stored"] > 0
    assert report["stored"] + report["already_stored"] == 30_000
    assert contents(store) == numbered(30_000)


def test_an_import_that_is_interrupted_says_how_far_it_came(start, store, tmp_path):
    path = tmp_path / "chat.jsonl"
    path.write_bytes(chat(30_000))

    with start(path) as process:
        while store.stats("chat").memories < 2_000:
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)

    assert process.returncode == 130
    assert re.search(rb"interrupted; before that, [\d,]+ memories were stored", said)
    assert b"Traceback" not in said
