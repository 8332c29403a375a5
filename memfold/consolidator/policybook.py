"""The policies of a tenant, as its own stream has them: set by events, folded here."""

import threading
from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from memfold.errors import Contended
from memfold.events import NUMBERS, PolicySet
from memfold.eventstore import reader
from memfold.eventstore.append import Committer, Request, Verdict
from memfold.eventstore.codec import open_event, seal_event
from memfold.eventstore.database import Database
from memfold.eventstore.keyring import NOBODY, Keyring
from memfold.policies import Policies, Policy
from memfold.projections.fold import memory_id_text

SET = NUMBERS[PolicySet]


class Set(NamedTuple):
    """What was set: the tenant's policy, those of categories, those of sessions by stream; and at which version last."""

    version: int
    tenant: Policy | None
    categories: dict[str, Policy]
    sessions: dict[str, Policy]

    def of(self, stream: bytes) -> Policies:
        """What holds in a session."""
        return Policies(self.tenant, self.categories, self.sessions.get(memory_id_text(stream)))


class PolicyBook:
    """Reads and sets the policies of one tenant. Safe for several threads."""

    def __init__(self, database: Database, keyring: Keyring, committer: Committer, *, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._keyring = keyring
        self._committer = committer
        self._clock = clock
        self._seen = 0
        self._set = Set(0, None, {}, {})
        self._lock = threading.Lock()

    def read(self) -> Set:
        """The policies as of now."""
        keyring = self._keyring
        with self._lock:
            for row in reader.read_stream(self._database, keyring.tenant, keyring.tenant_stream, self._seen):
                self._seen = row.version
                if row.type_number == SET:
                    event = open_event(row, tenant=keyring.tenant, wrapping=keyring.tenant_key)
                    self._set = folded(self._set, event, row.version) if isinstance(event, PolicySet) else self._set
            return self._set

    def write(self, policy: Policy | None, *, stream: bytes | None = None, category: str | None = None) -> None:
        """Set a policy, or take it away: of a session's stream, of a category, or of the tenant."""
        keyring, key = self._keyring, self._keyring.tenant_key
        event = PolicySet(policy=policy, stream=memory_id_text(stream) if stream else None, category=category)
        sealed = seal_event(event, tenant=keyring.tenant, stream=keyring.tenant_stream, memory_id=None, wrapping=key)
        answer = self._committer.append(Request(keyring.tenant_stream, NOBODY, key.version, self._clock(), [sealed]))
        if answer.verdict is not Verdict.ACCEPTED:
            raise Contended(1)


def folded(before: Set, event: PolicySet, version: int) -> Set:
    """What is set after an event."""
    if event.stream is not None:
        return before._replace(version=version, sessions=_with(before.sessions, event.stream, event.policy))
    if event.category is not None:
        return before._replace(version=version, categories=_with(before.categories, event.category, event.policy))
    return before._replace(version=version, tenant=event.policy)


def _with(policies: dict[str, Policy], name: str, policy: Policy | None) -> dict[str, Policy]:
    kept = {each: value for each, value in policies.items() if each != name}
    return kept if policy is None else {**kept, name: policy}
