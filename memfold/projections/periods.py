"""The calendar that people speak in: days, weeks, months, seasons and holidays as periods of time.

A `Period` is half-open, and in the asker's own wall time, without a zone. Weeks begin on Monday; seasons are the three whole
months of the northern half of the world; a holiday is one day, as the United States keep it. A time that no calendar has
(31 February, year 0) raises ValueError or OverflowError; `times` takes that for no time at all.
"""

from datetime import date, datetime, time, timedelta
from typing import NamedTuple

DAY = timedelta(days=1)
SIZES = {"minute": timedelta(minutes=1), "hour": timedelta(hours=1), "day": DAY, "week": 7 * DAY, "weekend": 7 * DAY}
MONTHS = {"month": 1, "quarter": 3, "half": 6, "year": 12, "decade": 120}
SEASONS = {"spring": 3, "summer": 6, "autumn": 9, "winter": 12}
FIXED = {"christmas": (12, 25), "christmas eve": (12, 24), "new year's eve": (12, 31), "new year": (1, 1)} | {
    "valentine's day": (2, 14),
    "halloween": (10, 31),
    "independence day": (7, 4),
}
HOURS = {"morning": (5, 12), "afternoon": (12, 18), "evening": (17, 24), "night": (18, 30)}


class Period(NamedTuple):
    """From `begin` up to, and without, `end`."""

    begin: datetime
    end: datetime


def midnight(at: date) -> datetime:
    """The begin of a day."""
    return datetime.combine(at, time())


def days(begin: date, count: int = 1) -> Period:
    """Whole days from one on."""
    return Period(midnight(begin), midnight(begin) + count * DAY)


def months(year: int, month: int, count: int = 1) -> Period:
    """Whole months from one on; `month` may lie outside 1 to 12, and is then one of another year."""
    return Period(_month(12 * year + month - 1), _month(12 * year + month - 1 + count))


def _month(number: int) -> datetime:
    return datetime(number // 12, number % 12 + 1, 1)


def season(year: int, name: str) -> Period:
    """A season; the winter of a year begins in it."""
    return months(year, SEASONS[name], 3)


def holiday(year: int, name: str) -> Period:
    """The day of a holiday; Easter lasts from Friday to Monday."""
    if name == "easter":
        return days(easter(year) - 2 * DAY, 4)
    if name == "thanksgiving":
        return days(date(year, 11, 22) + timedelta(days=(3 - date(year, 11, 22).weekday()) % 7))
    return days(date(year, *FIXED[name]))


def easter(year: int) -> date:
    """Easter Sunday of the Gregorian calendar (Meeus, Jones and Butcher, 1876)."""
    a, b, c = year % 19, year // 100, year % 100
    h = (19 * a + b - b // 4 - (b - (b + 8) // 25 + 1) // 3 + 15) % 30
    k = (32 + 2 * (b % 4) + 2 * (c // 4) - h - c % 4) % 7
    m = (a + 11 * h + 22 * k) // 451
    return date(year, (h + k - 7 * m + 114) // 31, (h + k - 7 * m + 114) % 31 + 1)


def unit(name: str, at: datetime, steps: int = 0) -> Period:
    """The calendar's minute, hour, day, week, weekend, month … that holds a moment, or the one `steps` later."""
    if name in MONTHS:
        size = MONTHS[name]
        return months(0, ((12 * at.year + at.month - 1) // size + steps) * size + 1, size)
    if name in ("week", "weekend"):
        monday = midnight(at.date()) + (7 * steps - at.weekday()) * DAY
        return Period(monday + (5 * DAY if name == "weekend" else 0 * DAY), monday + 7 * DAY)
    begin = (
        midnight(at.date())
        if name == "day"
        else at.replace(minute=at.minute if name == "minute" else 0, second=0, microsecond=0)
    )
    return Period(begin + steps * SIZES[name], begin + (steps + 1) * SIZES[name])


def shifted(at: datetime, name: str, steps: int) -> datetime:
    """A moment some units earlier or later; the last day of the month stands for one it does not have."""
    if name in SIZES:
        return at + steps * SIZES[name]
    month = months(at.year, at.month + steps * MONTHS[name])
    return min(month.begin + (at - _month(12 * at.year + at.month - 1)), month.end - DAY)


def weekday_before(at: datetime, weekday: int) -> Period:
    """The latest day of that name that ended at or before a moment."""
    yesterday = midnight(at.date()) - DAY
    return days(yesterday - timedelta(days=(yesterday.weekday() - weekday) % 7))


def weekday_after(at: datetime, weekday: int) -> Period:
    """The first day of that name that begins at or after a moment's day."""
    today = midnight(at.date())
    return days(today + timedelta(days=(weekday - today.weekday()) % 7))


def hours(day: datetime, part: str) -> Period:
    """The morning, afternoon, evening or night of a day; a night ends on the next."""
    begin, end = HOURS[part]
    return Period(day + timedelta(hours=begin), day + timedelta(hours=end))


def part(whole: Period, name: str, number: int) -> Period | None:
    """The first, second … (1, 2 …) or last (-1) unit inside a period; None if it has none such.

    Weeks are counted from the period's own begin.
    """
    if name == "weekend":
        begin = weekday_after(whole.begin, 5).begin if number > 0 else weekday_before(whole.end, 5).begin
        begin += 7 * DAY * (number - 1 if number > 0 else 0)
        found = Period(begin, begin + 2 * DAY)
    elif name == "half":
        middle = whole.begin + (whole.end - whole.begin) / 2
        found = Period(whole.begin, middle) if number == 1 else Period(middle, whole.end)
    elif number > 0:
        found = Period(shifted(whole.begin, name, number - 1), shifted(whole.begin, name, number))
    else:
        found = Period(shifted(whole.end, name, -1), whole.end)
    return found if whole.begin <= found.begin < whole.end else None


def third(whole: Period, number: int) -> Period:
    """The early (0), middle (1) or late (2) third of a period."""
    size = (whole.end - whole.begin) / 3
    return Period(whole.begin + number * size, whole.begin + (number + 1) * size)
