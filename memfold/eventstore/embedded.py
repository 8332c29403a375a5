"""The PostgreSQL that memfold brings along: found, set up, started, shared by processes, and stopped.

`attach` gives a process a running server for a folder and a lease on it; the last one to give its lease back stops the server.
Racing processes make one server, a killed process leaves nothing behind that the next `attach` does not put right, and nothing
outside the folder and a private socket folder is touched. Called by the opening of a store and by `memfold stop` and `status`.

Three files are locked with `flock`, which the kernel undoes on kill -9. `start.lock` is held by whoever starts or stops.
`lease.lock` is held shared by every process that uses the server. `server.lock` is inherited by PostgreSQL itself (and initdb),
so it is held as long as any of its processes lives, also in another container, where neither pid nor socket would tell.
"""

import contextlib
import hashlib
import os
import re
import shlex
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import msgspec
import psycopg

from memfold.errors import DataFolderVersion, EmbeddedServerError
from memfold.eventstore.binaries import find_binaries, major_version
from memfold.eventstore.locks import LOCKS
from memfold.eventstore.unprivileged import Runner, recorded_way, runner_for

SETTINGS = {
    "listen_addresses": "",
    "port": "5432",  # names the socket; said here because PGPORT would say otherwise
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "max_wal_size": "2GB",
    "max_connections": "200",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    # The log may hold no content: no statement, no parameter.
    "log_min_error_statement": "panic",
    "log_statement": "none",
    "log_parameter_max_length_on_error": "0",
    "max_prepared_transactions": "0",
}
START_S = 600  # a crash recovery is waited for, however long it takes
LEAVE_S = 60  # and a server that is going down, or an initdb whose parent was killed, for as long as that may take
SOCKET_BYTES_MAX = 103  # macOS; Linux has 107

State = Literal["ready", "coming_or_going", "unclear", "absent"]


class ServerStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What there is in a folder. `version` is the server's, or the major version of the data if no server runs."""

    running: bool
    folder: Path
    data_folder: Path
    socket_folder: Path | None
    version: str | None
    runs_as: str | None


class EmbeddedServer:
    """A lease on the running server of a folder, to be given back with `release`."""

    def __init__(self, folder: Path, socket_folder: Path, bin_dir: Path | None) -> None:
        self.folder = folder
        self.socket_folder = socket_folder
        self._bin_dir = bin_dir
        self._pid = os.getpid()
        self._released = False

    @property
    def url(self) -> str:
        """Where to connect, for libpq and everything built on it."""
        return _url(self.socket_folder)

    def release(self) -> None:
        """Give the lease back; stop the server if nobody holds another. A second call, or one in a forked child, does nothing.

        Raises:
            EmbeddedServerError: the server was to be stopped and did not stop. The lease is given back all the same.
        """
        if self._pid != os.getpid():
            return
        if not self.folder.is_dir():  # deleted under the server, which notices within a minute and ends
            self._released = True
            LOCKS.drop_lease(self.folder, all_of_them=True)
            return
        with _start_lock(self.folder):
            if not self._released:
                self._released = True
                self._leave()

    def _leave(self) -> None:
        LOCKS.drop_lease(self.folder)
        if LOCKS.free(self.folder / "lease.lock") and _settled(self.folder):
            _stop(self.folder, self._bin_dir)


def attach(folder: Path, *, runtime_folder: Path | None = None, bin_dir: Path | None = None) -> EmbeddedServer:
    """Return a lease on the server of `folder`, which is set up and started if it does not run.

    The socket goes below `runtime_folder` if that is usable, else below the folder for temporary files. `bin_dir` holds
    PostgreSQL's programs, if they are not to come from the wheel or the system.

    Raises:
        EmbeddedServerError: it cannot be set up, started or reached; says why.
        DataFolderVersion: the data was made by another major version.
    """
    folder = _resolved(folder)
    _make(folder)
    with _start_lock(folder):
        socket_folder = _settled(folder) or _start(folder, runtime_folder, bin_dir)
        LOCKS.take_lease(folder)
    return EmbeddedServer(folder, socket_folder, bin_dir)


def stop(folder: Path, *, force: bool = False, bin_dir: Path | None = None) -> bool:
    """Stop the server of `folder`; False if none was running.

    Raises:
        EmbeddedServerError: processes still use it (with `force`, it is stopped under them), or it did not stop.
    """
    folder = _resolved(folder)
    if not (folder / "pg").is_dir():
        return False
    with _start_lock(folder):
        if _ask(folder).state == "absent" and LOCKS.free(folder / "server.lock"):
            return False
        if not (force or LOCKS.free(folder / "lease.lock")):
            raise EmbeddedServerError(str(folder), "other processes still use the server", "close their stores, or force it")
        _stop(folder, bin_dir)
    return True


def status(folder: Path) -> ServerStatus:
    """Say what there is in `folder`, without changing anything."""
    folder = _resolved(folder)
    answer = _ask(folder)
    running = answer.state == "ready"
    return ServerStatus(
        running=running,
        folder=folder,
        data_folder=folder / "pg",
        socket_folder=answer.socket_folder if running else None,
        version=answer.version if running else _data_version(folder),
        runs_as=recorded_way(folder),
    )


# --- is there a server? ------------------------------------------------------------------------------------------------------


class _Answer(msgspec.Struct, frozen=True):
    state: State
    socket_folder: Path
    version: str = ""


_ABSENT = _Answer("absent", Path())
_STATES: dict[int, State] = {psycopg.pq.Ping.REJECT: "coming_or_going", psycopg.pq.Ping.NO_RESPONSE: "absent"}


def _ask(folder: Path) -> _Answer:
    """Whether a server of this very folder answers; a connection decides, never a pid."""
    socket_folder = _announced_socket_folder(folder)
    if socket_folder is None or not _private(socket_folder, folder):
        return _ABSENT
    try:
        with psycopg.connect(_url(socket_folder), autocommit=True, connect_timeout=10) as connection:
            row = connection.execute("select current_setting('data_directory'), current_setting('server_version')").fetchone()
    except psycopg.OperationalError:
        ping = psycopg.pq.PGconn.ping(_url(socket_folder).encode())
        return _Answer(_STATES.get(ping, "unclear"), socket_folder)
    # A copied folder brings the original's postmaster.pid along, and would lead us to the original's server.
    assert row is not None
    return _Answer("ready", socket_folder, row[1].split()[0]) if _same(Path(row[0]), folder / "pg") else _ABSENT


def _settled(folder: Path) -> Path | None:
    """Wait while a server is coming up or going down; its socket folder if it then runs, None if there is none."""
    begun = time.monotonic()
    while True:
        answer = _ask(folder)
        if answer.state == "ready":
            return answer.socket_folder
        if answer.state == "absent" and LOCKS.free(folder / "server.lock"):
            return None
        if time.monotonic() - begun > (START_S if answer.state == "coming_or_going" else LEAVE_S):
            raise EmbeddedServerError(
                str(folder),
                "a PostgreSQL runs here that does not answer this process",
                "if another container uses this folder, let each have its own; else see server.log, and stop it by force",
            )
        time.sleep(0.02)


def _announced_socket_folder(folder: Path) -> Path | None:
    """The socket folder that the server wrote down when it started: another process may have chosen it differently."""
    lines = _pid_file(folder)
    return Path(lines[4]) if len(lines) > 4 and lines[4] else None


def _pid_file(folder: Path) -> list[str]:
    return _lines(folder / "pg" / "postmaster.pid")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_bytes().decode("utf-8", "surrogateescape").splitlines()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _private(path: Path, folder: Path) -> bool:
    """Whether `path` is a real folder (0700) of ours, or of the user who owns the data and so runs the server."""
    try:
        found = path.lstat()
        owners = {os.geteuid(), (folder / "pg").stat().st_uid}
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid in owners and stat.S_IMODE(found.st_mode) & 0o777 == 0o700


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _url(socket_folder: Path) -> str:
    return f"postgresql://postgres@/postgres?host={quote(os.fsencode(socket_folder), safe='/')}&port={SETTINGS['port']}"


# --- starting and stopping, under the start lock -----------------------------------------------------------------------------


def _start(folder: Path, runtime_folder: Path | None, bin_dir: Path | None) -> Path:
    """Set the server up if need be, start it, and return its socket folder."""
    binaries = find_binaries(folder, bin_dir)
    _check_version(folder, binaries)
    runner = runner_for(folder, binaries)
    # Whatever runs from here on inherits this lock and keeps it, also if we are killed.
    with LOCKS.inheritable(folder / "server.lock") as lock:
        if not (folder / "pg").exists():
            _set_up(folder, binaries, runner, lock)
        socket_folder = _socket_folder(folder, runtime_folder, runner)
        _launch(folder, binaries, runner, socket_folder, lock)
    return socket_folder


def _check_version(folder: Path, binaries: Path) -> None:
    found, available = _data_version(folder), str(major_version(binaries))
    if found is not None and found != available:
        raise DataFolderVersion(str(folder), found=found, available=available)


def _set_up(folder: Path, binaries: Path, runner: Runner, lock: int) -> None:
    """Make the cluster beside its place and move it there when it is complete and on disk."""
    draft = folder / "pg.new"
    if draft.exists():
        shutil.rmtree(draft)
    draft.mkdir(mode=0o700)
    runner.own(draft)
    made = runner.run([binaries / "initdb", *_initdb_options(major_version(binaries))], folder=folder, inherited=[lock])
    if made.returncode:
        raise EmbeddedServerError(str(folder), f"initdb failed: {made.stderr.strip()[-1000:]}", "mend that and open it again")
    (folder / "run-as").write_text(runner.name + "\n", "utf-8")
    draft.rename(folder / "pg")
    _sync(folder)


def _initdb_options(major: int) -> list[str]:
    options = ["-D", "pg.new", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--data-checksums", "--no-instructions"]
    builtin = ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"] if major >= 17 else []
    return [*options, *builtin, "--locale=C.UTF-8"]


def _launch(folder: Path, binaries: Path, runner: Runner, socket_folder: Path, lock: int) -> None:
    log = folder / "server.log"
    os.close(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    runner.own(log)
    _remove_stale_pids(folder)
    logged = log.stat().st_size
    # Relative paths, because pg_ctl builds a shell command and quotes what it is given too weakly for every folder's name.
    where = ["-D", "pg", "-l", log.name, "-o", _options(socket_folder)]
    started = runner.run([binaries / "pg_ctl", "start", "-w", "-t", str(START_S), *where], folder=folder, inherited=[lock])
    if started.returncode or _ask(folder).state != "ready":
        raise EmbeddedServerError(
            str(folder), f"PostgreSQL did not start: {_log_tail(log, logged) or started.stderr.strip()}", f"see {log}"
        )


def _options(socket_folder: Path) -> str:
    """The settings as pg_ctl wants them: one string for a shell. Given here, no file in the folder can weaken them."""
    quoted = str(socket_folder).replace('"', '""')
    settings = SETTINGS | {"unix_socket_directories": f'"{quoted}"'}
    return " ".join(f"-c {shlex.quote(f'{name}={value}')}" for name, value in settings.items())


def _remove_stale_pids(folder: Path) -> None:
    """Remove lock files whose pid is by now another program's, or a zombie's, as is common where containers are killed.

    PostgreSQL would refuse to start for fear of a second server. We know better where the kernel shows what the process is:
    nobody holds server.lock, and a server, however started, has its data folder as working directory.
    """
    pid, socket_folder = (_pid_file(folder) or [""])[0], _announced_socket_folder(folder)
    process = Path("/proc", pid)
    if not pid.isdigit() or not process.exists() or _works_in(process, folder / "pg"):
        return
    socket_lock = (socket_folder or folder) / f".s.PGSQL.{SETTINGS['port']}.lock"
    # Only if it is of the same server: one whose folder was moved away may still run and use the same socket.
    if socket_folder and _private(socket_folder, folder) and _lines(socket_lock)[:1] == [pid]:
        socket_lock.unlink()
    (folder / "pg" / "postmaster.pid").unlink()


def _works_in(process: Path, folder: Path) -> bool:
    """Whether the process, alive, has this working directory; True if it is not for us to know."""
    try:
        return (process / "cwd").samefile(folder)
    except FileNotFoundError:  # a zombie has none
        return False
    except PermissionError:
        return True


def _log_tail(log: Path, begin: int) -> str:
    """The server's last words since it was started, without lines that could repeat a user's data."""
    with log.open("rb") as file:
        file.seek(begin)
        lines = file.read().decode("utf-8", "replace").splitlines()
    return " | ".join([line for line in lines if re.search(r"\b(FATAL|PANIC|LOG|HINT): ", line)][-6:])


def _stop(folder: Path, bin_dir: Path | None) -> None:
    binaries = find_binaries(folder, bin_dir)
    runner = runner_for(folder, binaries)
    socket_folder = _announced_socket_folder(folder)
    stopped = runner.run([binaries / "pg_ctl", "stop", "-w", "-t", str(START_S), "-m", "fast", "-D", "pg"], folder=folder)
    if stopped.returncode:
        raise EmbeddedServerError(
            str(folder), f"PostgreSQL did not stop: {stopped.stderr.strip()}", f"see {folder / 'server.log'}"
        )
    if socket_folder is not None and _private(socket_folder, folder):
        with contextlib.suppress(OSError):  # something else is in it: then it stays
            socket_folder.rmdir()


# --- folders -----------------------------------------------------------------------------------------------------------------


def _resolved(folder: Path) -> Path:
    return Path(os.path.realpath(folder))


def _make(folder: Path) -> None:
    with _translated(folder):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)


@contextlib.contextmanager
def _translated(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise EmbeddedServerError(
            str(folder),
            f"cannot be used ({error.strerror}: {error.filename or folder})",
            "give a folder that this process may make and write to, on a disk with room",
        ) from error


def _socket_folder(folder: Path, runtime_folder: Path | None, runner: Runner) -> Path:
    """A private folder for the socket, in the first place where it can be."""
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    for base in filter(None, (runtime_folder, Path(tempfile.gettempdir()), Path("/tmp"))):  # noqa: S108
        path = base.absolute() / f"memfold-{runner.uid}" / name
        if _usable_for_sockets(base, path, runner):
            _make_private(path.parent, folder, runner)
            _make_private(path, folder, runner)
            return path
    raise EmbeddedServerError(
        str(folder), "there is no place for a socket", "give a short runtime folder that can be written to"
    )


def _usable_for_sockets(base: Path, path: Path, runner: Runner) -> bool:
    fits = len(os.fsencode(path / ".s.PGSQL.5432")) <= SOCKET_BYTES_MAX
    plain = str(path).isprintable() and "," not in str(path)  # libpq reads a comma as the end of a host
    return fits and plain and base.is_dir() and os.access(base, os.W_OK | os.X_OK) and not runner.barred_from(base.absolute())


def _make_private(path: Path, folder: Path, runner: Runner) -> None:
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        runner.own(path)
    if not _private(path, folder):
        raise EmbeddedServerError(
            str(folder),
            f"the folder for its socket, {path}, is not a folder that only its owner can enter, or belongs to somebody else",
            "remove it, or give another runtime folder",
        )


def _data_version(folder: Path) -> str | None:
    try:
        return (folder / "pg" / "PG_VERSION").read_text("ascii").strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _start_lock(folder: Path) -> Iterator[None]:
    with _translated(folder), LOCKS.held(folder / "start.lock"):
        yield
