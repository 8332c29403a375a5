"""What all sessions of a user hold together, and what of it goes when that is more than may be kept."""

from collections.abc import Callable, Iterator

from memfold.audit.erasure import Forgetter
from memfold.consolidator import fading
from memfold.consolidator.looking import Seen
from memfold.consolidator.policybook import PolicyBook, Set
from memfold.eventstore.keyring import Keyring
from memfold.policies import Retention, resolved
from memfold.projections.directory import Directory

REASON = "retention"  # the code that an erasure by a policy bears

Look = Callable[[str], Seen | None]


class UserLimits:
    """Keeps users within the limits that the tenant's policy sets for each."""

    def __init__(self, keyring: Keyring, directory: Directory, forgetter: Forgetter, book: PolicyBook, look: Look) -> None:
        self._keyring = keyring
        self._directory = directory
        self._forgetter = forgetter
        self._book = book
        self._look = look

    def keep(self, *, dry_run: bool) -> Iterator[tuple[Seen, list[bytes]]]:
        """Forget the oldest unprotected memories of users that hold too much; say of each session what, or what would be."""
        book = self._book.read()
        retention = resolved(book.tenant).retention
        if retention.user_memories_max is None and retention.user_bytes_max is None:
            return
        for user in self._suspects(retention):
            yield from self._of_user(user, book, retention, dry_run=dry_run)

    def _suspects(self, retention: Retention) -> Iterator[bytes]:
        """Users who may hold too much: the directory counts memories, and what they weigh only a look tells."""
        for user, totals in self._directory.totals_by_user().items():
            most = retention.user_memories_max
            if retention.user_bytes_max is not None or (most is not None and totals.memories > most):
                yield user

    def _of_user(self, user: bytes, book: Set, retention: Retention, *, dry_run: bool) -> Iterator[tuple[Seen, list[bytes]]]:
        refs = self._keyring.sessions_of_streams(set(self._keyring.streams_of_user(user))).values()
        sessions = [seen for seen in (self._look(ref.session_id) for ref in refs) if seen]
        held = [(seen.candidates, book.of(seen.stream)) for seen in sessions]
        going = {each.memory_id for each in fading.beyond_user_limits(held, retention)}
        for seen in sessions:
            gone = [each.memory_id for each in seen.candidates if each.memory_id in going]
            if not gone:
                continue
            if dry_run or self._forgetter.these(seen.session_id, seen.stream, seen.version, gone, REASON):
                yield seen, gone  # else it was touched meanwhile: the next run decides anew
