"""What summarizers have charged, kept by tenant, day and model; and whether there is anything left to spend.

Every call is recorded, also one whose answer was of no use. The caps are looked at before a window is handed out, so a run
stops politely, with nothing half done; what a cap can be overrun by is one window. Days are those of UTC.
"""

from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import NamedTuple

from memfold.consolidator.summarizer import Usage
from memfold.eventstore.append import fetch
from memfold.eventstore.database import Database
from memfold.settings import Settings

SPEND = "SELECT memfold.spend(%s, %s, %s, %s, %s, %s, %s)"
SPENT = """
SELECT coalesce(sum(prompt_tokens), 0)::bigint AS prompt_tokens,
    coalesce(sum(completion_tokens), 0)::bigint AS completion_tokens,
    coalesce(sum(cost), 0)::double precision AS cost, coalesce(sum(calls), 0)::bigint AS calls
FROM memfold.spending WHERE tenant_id = %s AND day BETWEEN %s AND %s"""


STOPPED = "it was asked to stop"


class Caps(NamedTuple):
    """What may be spent, by one run of the consolidator and by one tenant in a day; None is no limit."""

    tokens_a_run: int | None = None
    tokens_a_day: int | None = None
    cost_a_day: float | None = None


def caps_of(settings: Settings) -> Caps:
    """The caps that the operator has set."""
    return Caps(settings.llm_tokens_a_run_max, settings.llm_tokens_a_day_max, settings.llm_cost_a_day_max)


def reached(caps: Caps, run: Usage, day: Usage) -> str | None:
    """Which cap is reached, in words; None if there is something left under each."""
    if caps.tokens_a_run is not None and run.tokens >= caps.tokens_a_run:
        return f"this run has spent {run.tokens:,} tokens of {caps.tokens_a_run:,}"
    if caps.tokens_a_day is not None and day.tokens >= caps.tokens_a_day:
        return f"{day.tokens:,} tokens of {caps.tokens_a_day:,} are spent today"
    if caps.cost_a_day is not None and day.cost >= caps.cost_a_day:
        return f"{day.cost:.2f} of {caps.cost_a_day:.2f} are spent today"
    return None


class Spending:
    """What one run spends in the name of a tenant; for one thread."""

    def __init__(
        self,
        database: Database,
        tenant: int,
        caps: Caps,
        clock: Callable[[], datetime],
        go_on: Callable[[], bool] = lambda: True,
    ) -> None:
        self.run = Usage()
        self._database = database
        self._tenant = tenant
        self._caps = caps
        self._clock = clock
        self._go_on = go_on

    def allows(self) -> bool:
        """Whether another window may be summarized."""
        return self.stopped() is None

    def stopped(self) -> str | None:
        """Why no other window may be summarized, in words; None if one may."""
        return reached(self._caps, self.run, self.today()) if self._go_on() else STOPPED

    def record(self, model: str, usage: Usage) -> None:
        """Keep what a summarizer of this name has charged; what costs nothing is not kept."""
        if usage == Usage():
            return
        self.run = self.run.plus(usage)
        parameters = (self._tenant, _day(self._clock()), model, *usage)
        # If the connection is lost, it is added again, and perhaps counted twice: that errs on the side of the purse.
        self._database.read(lambda connection: fetch(connection, SPEND, parameters))

    def today(self) -> Usage:
        """What this tenant has spent today, in this run and in others."""
        today = _day(self._clock())
        return spent(self._database, self._tenant, since=today, until=today)


def spent(database: Database, tenant: int, *, since: date, until: date) -> Usage:
    """What a tenant has spent on these days, both of them included, over all models."""
    row = database.row(SPENT, (tenant, since, until))
    return Usage(row.prompt_tokens, row.completion_tokens, row.cost, row.calls)


def _day(now: datetime) -> date:
    return now.astimezone(UTC).date()
