"""What a question is about: one session, several, all of a user's, or the whole tenant; as it stands now, or as it stood.

`AsOf` is a position of the log or a time. A stream's times never run backwards, so either cuts every stream at one place.
"""

from datetime import datetime
from typing import NamedTuple

from memfold.eventstore.codec import Row

AsOf = int | datetime


class Scope(NamedTuple):
    """The sessions of these names, or all of this user's; with neither, the whole tenant's.

    `archived`: what is archived is searched too.
    """

    sessions: tuple[str, ...] | None = None
    user: str | None = None
    as_of: AsOf | None = None
    archived: bool = False

    @property
    def session(self) -> str | None:
        """The one session this is about, if it is one."""
        return self.sessions[0] if self.sessions and len(self.sessions) == 1 else None

    def holds(self, row: Row) -> bool:
        """Whether an event had happened by the time this scope looks at."""
        if self.as_of is None:
            return True
        return row.position <= self.as_of if isinstance(self.as_of, int) else row.recorded_at <= self.as_of


def session_scope(session_id: str, *, archived: bool = False) -> Scope:
    """The scope of one session."""
    return Scope((session_id,), archived=archived)
