"""When jobs run: at intervals or by cron expressions, one after the other in the thread that asks. The door of APScheduler.

A job that is due several times over, because the one before it took long or the machine slept, runs once. So it does when the
clock was set, forward or back: an interval begins anew, and only a cron expression goes by what the clock says.
"""

import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from apscheduler.executors.debug import DebugExecutor
from apscheduler.schedulers.base import BaseScheduler
from apscheduler.triggers.cron import CronTrigger
from apscheduler.triggers.interval import IntervalTrigger

from memfold.errors import SettingsError

Schedule = timedelta | str | None
"""An interval, a cron expression of five fields in the machine's time zone, or None: not at all."""

INTERVALS = timedelta(seconds=0.05), timedelta(days=366)
UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
SPAN = re.compile(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smhd])")
JUMP_S = 1.0  # by which a clock is set before we take notice


def parsed(name: str, given: object) -> Schedule:
    """The schedule that is meant by a number of seconds, a timedelta, "60s", "5m", a cron expression, or None or "off".

    Raises:
        SettingsError: it is none of these.
    """
    if given is None or given == "off":
        return None
    if isinstance(given, str) and not SPAN.fullmatch(given.strip()):
        return _cron(name, given)
    least, most = INTERVALS
    interval = _interval(given)
    if interval is None or not least <= interval <= most:
        raise SettingsError(
            name,
            "is no schedule: give seconds, an interval such as 60s, 5m or 2h (at most 366 days), a cron expression, or off",
        )
    return interval


def _interval(given: object) -> timedelta | None:
    if isinstance(given, timedelta):
        return given
    if isinstance(given, str) and (found := SPAN.fullmatch(given.strip())):
        return timedelta(**{UNITS[found[2]]: float(found[1])}) if float(found[1]) < 1e9 else None
    if isinstance(given, int | float) and not isinstance(given, bool) and 0 < given < 1e9:
        return timedelta(seconds=given)
    return None


def _cron(name: str, expression: str) -> str:
    try:
        CronTrigger.from_crontab(expression)
    except (ValueError, LookupError):
        raise SettingsError(
            name, "is neither an interval such as 60s, 5m or 2h nor a cron expression such as '0 3 * * *'"
        ) from None
    return expression


class _InThisThread(BaseScheduler):  # type: ignore[misc]
    """A scheduler without a thread: it runs what is due when it is asked to."""

    def wakeup(self) -> None:
        """Nobody sleeps here."""

    def shutdown(self, wait: bool = True) -> None:
        """Stop for good."""
        super().shutdown(wait)

    def run_due(self) -> float | None:
        """Run what is due; seconds until there is more, None for never."""
        wait_s: float | None = self._process_jobs()
        return wait_s


class Ticker:
    """Runs functions by their schedules, those with an interval at once for the first time. For one thread."""

    def __init__(self, runs: Mapping[str, Callable[[], None]], schedules: Mapping[str, Schedule]) -> None:
        self._schedules = {name: schedule for name, schedule in schedules.items() if schedule is not None and name in runs}
        # A job that comes late is run all the same: what is due is derived, so no tick is worth less for being late.
        defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._scheduler = _InThisThread(executors={"default": DebugExecutor()}, job_defaults=defaults)
        for name, schedule in self._schedules.items():
            first = {"next_run_time": _now()} if isinstance(schedule, timedelta) else {}
            self._scheduler.add_job(runs[name], _trigger(schedule), id=name, **first)
        self._offset_s = _offset_s()
        self._scheduler.start()

    def run_due(self) -> float | None:
        """Run what is due; return after how many seconds to ask again, None if nothing ever will be."""
        offset_s = _offset_s()
        if abs(offset_s - self._offset_s) > JUMP_S:
            self._begin_anew()
        self._offset_s = offset_s
        return self._scheduler.run_due()

    def _begin_anew(self) -> None:
        """The clock was set. Left alone, APScheduler would wait until it is there again, or count all it missed."""
        now = _now()
        for name, schedule in self._schedules.items():
            was_missed = self._scheduler.get_job(name).next_run_time <= now
            self._scheduler.reschedule_job(name, trigger=_trigger(schedule))
            if was_missed or isinstance(schedule, timedelta):
                self._scheduler.modify_job(name, next_run_time=now)

    def next_in(self) -> dict[str, timedelta]:
        """How long it is until each runs next."""
        now = _now()
        return {job.id: job.next_run_time - now for job in self._scheduler.get_jobs() if job.next_run_time}

    def close(self) -> None:
        """Stop for good."""
        self._scheduler.shutdown()


def _trigger(schedule: Schedule) -> Any:
    if isinstance(schedule, timedelta):
        return IntervalTrigger(seconds=schedule.total_seconds(), timezone=UTC)
    return CronTrigger.from_crontab(schedule)


def _now() -> datetime:
    return datetime.now(UTC)


def _offset_s() -> float:
    """How far the clock that can be set is ahead of the one that cannot."""
    return _now().timestamp() - time.monotonic()
