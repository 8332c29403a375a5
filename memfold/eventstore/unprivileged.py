"""As whom PostgreSQL runs: it refuses to be root, and memfold is root in most containers.

Ordinary users run it as themselves. Root runs it in a user namespace, where files stay root's; where that is not allowed, as
a user that exists already and can reach every folder it needs. The way taken is kept in `run-as`, because the data belongs to
it from then on. No user is ever made, and no folder that is not memfold's own ever changes hands or mode. Called by
`embedded`, which holds the start lock.
"""

import os
import pwd
import shutil
import stat
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec

from memfold.errors import EmbeddedServerError
from memfold.settings import child_environment

NAMESPACE = "user-namespace"
SELF = "self"
OWN_FILES = {"start.lock", "lease.lock", "server.lock", "server.log", "run-as", "pg", "pg.new", "master.key"}
# Inside a namespace root must appear as some user that /etc/passwd knows (initdb asks for the name); which one is no matter,
# so a name that slim images have as well comes first.
ALIASES = ("daemon", "postgres", "nobody")
USERS = ("postgres", "nobody")


class Runner(msgspec.Struct, frozen=True, kw_only=True):
    """A way to run PostgreSQL's programs. `uid` and `gid` own the server's files; with `switch` they are not ours."""

    name: str
    uid: int
    gid: int
    switch: bool = False
    prefix: tuple[str, ...] = ()

    def run(
        self, command: Sequence[str | Path], *, folder: Path = Path("/"), inherited: Iterable[int] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Run `command` in `folder` to its end and return what it said. Only the descriptors in `inherited` are handed on."""
        return subprocess.run(
            [*self.prefix, *map(str, command)],
            cwd=folder,
            env=child_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            pass_fds=tuple(inherited),
            user=self.uid if self.switch else None,
            group=self.gid if self.switch else None,
            extra_groups=[] if self.switch else None,
        )

    def barred_from(self, folder: Path) -> Path | None:
        """The outermost of `folder` and its parents that this way cannot enter; None if it can reach the folder."""
        # Asked of the kernel, as the one who will run: modes alone know nothing of ACLs and lost capabilities.
        script = 'for f do [ -x "$f" ] || { printf %s "$f"; exit 1; }; done'
        answer = self.run(["/bin/sh", "-c", script, "sh", *reversed(folder.parents), folder])
        return Path(answer.stdout) if answer.returncode else None

    def own(self, path: Path) -> None:
        """Hand an own file or folder of ours, no symbolic link, to the one who will run."""
        if not self.switch:
            return
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            os.fchown(descriptor, self.uid, self.gid)
        finally:
            os.close(descriptor)


def runner_for(folder: Path, binaries: Path) -> Runner:
    """The recorded way if `folder` has data, else the first that can reach `folder` and `binaries`.

    Raises:
        EmbeddedServerError: there is none; names each way and what bars it.
    """
    recorded = recorded_way(folder) if (folder / "pg").exists() else None
    bars: list[str] = []
    for name, runner in _ways():
        if recorded not in (None, name):
            continue
        bar = _bar(runner, folder, binaries)
        if runner is not None and bar is None:
            return runner
        bars.append(f"{name}: {bar}")
    raise _no_way(folder, recorded, bars)


def recorded_way(folder: Path) -> str | None:
    """The way in which the server of `folder` was set up; None if there is none yet."""
    try:
        return (folder / "run-as").read_text("utf-8").strip() or None
    except (FileNotFoundError, NotADirectoryError):
        return None


def namespaces_allowed(prefix: Sequence[str]) -> bool:
    """Whether this machine lets us make a user namespace, found out by making one."""
    try:
        return subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def _ways() -> Iterator[tuple[str, Runner | None]]:
    """Each way by name, best first; None for one that this machine does not offer."""
    if os.geteuid() != 0:
        yield SELF, Runner(name=SELF, uid=os.geteuid(), gid=os.getegid())
        return
    yield NAMESPACE, _namespace()
    for name in USERS:
        yield f"user {name}", _existing_user(name)


def _namespace() -> Runner | None:
    alias = next(filter(None, map(_account, ALIASES)), None)
    if alias is None:
        return None
    prefix = (shutil.which("unshare") or "unshare", "-U", f"--map-user={alias.pw_uid}", f"--map-group={alias.pw_gid}")
    return Runner(name=NAMESPACE, uid=0, gid=os.getegid(), prefix=prefix) if namespaces_allowed(prefix) else None


def _existing_user(name: str) -> Runner | None:
    account = _account(name)
    if account is None:
        return None
    return Runner(name=f"user {name}", uid=account.pw_uid, gid=account.pw_gid, switch=True)


def _account(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


def _bar(runner: Runner | None, folder: Path, binaries: Path) -> str | None:
    """What keeps `runner` from running the server of `folder`; None if nothing does."""
    if runner is None:
        return "not possible here"
    try:
        barred = runner.barred_from(folder.parent) or runner.barred_from(binaries) or _bar_of_folder(runner, folder)
    except (PermissionError, subprocess.SubprocessError):
        return "this process may not become it"
    return f"cannot enter {barred}" if barred else None


def _bar_of_folder(runner: Runner, folder: Path) -> Path | None:
    if runner.switch and runner.barred_from(folder) and _all_ours(folder):
        _let_in(runner, folder)
    return runner.barred_from(folder)


def _all_ours(folder: Path) -> bool:
    """Whether `folder` belongs to us and nothing is in it but what memfold put there."""
    names = {entry.name for entry in folder.iterdir() if not entry.name.startswith(".master.key.")}
    return folder.stat().st_uid == os.geteuid() and names <= OWN_FILES


def _let_in(runner: Runner, folder: Path) -> None:
    """Let the server's group, and nobody else, pass through the folder without reading or writing it."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    os.chown(folder, -1, runner.gid)
    folder.chmod((mode & ~0o070) | 0o010)


def _no_way(folder: Path, recorded: str | None, bars: list[str]) -> EmbeddedServerError:
    if recorded is None:
        return EmbeddedServerError(
            str(folder),
            f"PostgreSQL does not run as root, and no other way is open ({'; '.join(bars)})",
            "run memfold as an ordinary user, allow user namespaces, put the folder where that user can reach it, "
            "or give the URL of a PostgreSQL server",
        )
    return EmbeddedServerError(
        str(folder),
        f"its server was set up to run as {recorded!r}, which is not possible now ({'; '.join(bars) or 'you are another'})",
        "run memfold as before; or chown -R the folder pg to the user who shall run it, and delete the file run-as",
    )
