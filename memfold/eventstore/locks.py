"""Lock files of this process: `flock`, which the kernel undoes on kill -9, and leases counted per folder.

Called by `embedded` alone. `LOCKS` is the one instance a process has: a lease is the process's, whatever part of it asks.
"""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


class Locks:
    """The lock files this process has open, and its leases: one per folder, counted. Counts change under the start lock."""

    def __init__(self) -> None:
        self._open: set[int] = set()
        self._leases: dict[Path, tuple[int, int]] = {}
        self._watches_forks = False

    @contextlib.contextmanager
    def held(self, path: Path) -> Iterator[None]:
        """Hold `path` alone, waiting for it."""
        descriptor = self._locked(path, fcntl.LOCK_EX)
        try:
            yield
        finally:
            self._unlock(descriptor)

    @contextlib.contextmanager
    def inheritable(self, path: Path) -> Iterator[int]:
        """Hold `path` alone; processes that inherit the descriptor go on holding it afterwards."""
        descriptor = self._locked(path, fcntl.LOCK_EX)
        try:
            yield descriptor
        finally:
            self._close(descriptor)

    def free(self, path: Path) -> bool:
        """Whether nobody holds `path`, not even shared."""
        try:
            self._unlock(self._locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    def take_lease(self, folder: Path) -> None:
        """Take the shared lock of a folder's users, or count one more."""
        descriptor, count = self._leases.get(folder) or (self._locked(folder / "lease.lock", fcntl.LOCK_SH), 0)
        self._leases[folder] = (descriptor, count + 1)

    def drop_lease(self, folder: Path, *, all_of_them: bool = False) -> None:
        """Count one less; the last gives the lock back."""
        descriptor, count = self._leases.pop(folder, (-1, 0))
        if count > 1 and not all_of_them:
            self._leases[folder] = (descriptor, count - 1)
        elif count:
            self._unlock(descriptor)

    def _locked(self, path: Path, how: int) -> int:
        self._watch_forks()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        self._open.add(descriptor)
        with contextlib.ExitStack() as undo:
            undo.callback(self._close, descriptor)
            fcntl.flock(descriptor, how)
            undo.pop_all()
        return descriptor

    def _unlock(self, descriptor: int) -> None:
        # Said aloud, because closing would not do: a child that was forked this moment still has the file open.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        self._close(descriptor)

    def _close(self, descriptor: int) -> None:
        self._open.discard(descriptor)
        os.close(descriptor)

    def _watch_forks(self) -> None:
        if not self._watches_forks:
            self._watches_forks = True
            os.register_at_fork(after_in_child=self._let_go)

    def _let_go(self) -> None:
        """In a forked child: the locks are the parent's. Closing leaves them to it; keeping them would outlive it."""
        for descriptor in self._open:
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._open.clear()
        self._leases.clear()


LOCKS = Locks()
