"""Each form of a time in words, and the period it means.

`times` finds a time and the name of its form; here that form's tokens become a `Time`. A time that no calendar has raises
ValueError or OverflowError.
"""

from collections.abc import Callable
from datetime import date, datetime
from typing import NamedTuple

from memfold.projections import periods
from memfold.projections.periods import DAY, Period
from memfold.projections.timewords import Value


class Clock(NamedTuple):
    """When it is, and from when to when there are memories, in the asker's wall time."""

    now: datetime
    first: datetime | None
    last: datetime | None


class Time(NamedTuple):
    """A time as it is said: the period it is in each year, the year if it follows from the words or now, a second reading."""

    of_year: Callable[[int], Period]
    year: int | None = None
    other: Period | None = None


class Tokens(NamedTuple):
    """The tokens of one time."""

    kinds: str
    worths: list[Value]

    def get(self, kinds: str) -> Value:
        """What the first token of one of these kinds is worth."""
        return next((worth for kind, worth in zip(self.kinds, self.worths, strict=True) if kind in kinds), None)

    def numbers(self, kinds: str) -> list[int]:
        """What every token of these kinds is worth, of those that are worth a number."""
        pairs = zip(self.kinds, self.worths, strict=True)
        return [worth for kind, worth in pairs if kind in kinds and isinstance(worth, int)]

    def number(self, kinds: str) -> int | None:
        """The first of them."""
        return next(iter(self.numbers(kinds)), None)

    def has(self, kinds: str) -> bool:
        """Is a token of one of these kinds among them?"""
        return any(kind in self.kinds for kind in kinds)

    def name(self, kinds: str) -> str:
        """What the first token of one of these kinds stands for."""
        return str(self.get(kinds))

    def unit(self) -> tuple[str, int]:
        """The unit among them, and how many of it one is."""
        found = self.get("ukh")
        assert isinstance(found, tuple)
        return str(found[0]), int(found[1])


def in_year(time: Time, year: int) -> Period | None:
    """The period a time is in in a year; None if that year has none."""
    try:
        return time.of_year(year)
    except (ValueError, OverflowError):
        return None


def _fixed(period: Period) -> Time:
    return Time(lambda _: period, period.begin.year)


def _iso(tokens: Tokens, _clock: Clock) -> Time:
    year, month, day = _numbers(tokens)
    return _fixed(periods.days(date(year, month, day)))


def _iso_month(tokens: Tokens, _clock: Clock) -> Time:
    year, month = _numbers(tokens)
    return _fixed(periods.months(year, date(year, month, 1).month))


def _numeric(tokens: Tokens, _clock: Clock) -> Time:
    """05/08/2023: the month first, and as a second reading the day first, which dots mean."""
    one, two, year, dots = _numbers(tokens)
    year += 2000 if year < 100 else 0
    orders = [(two, one)] if dots else [(one, two), (two, one)]
    readings = list(dict.fromkeys(day for order in orders if (day := _day_of(year, *order)) is not None))
    if not readings:
        raise ValueError(tokens.worths)
    return _fixed(readings[0])._replace(other=readings[1] if len(readings) > 1 else None)


def _day_of(year: int, month: int, day: int) -> Period | None:
    try:
        return periods.days(date(year, month, day))
    except (ValueError, OverflowError):
        return None


def _numbers(tokens: Tokens) -> tuple[int, ...]:
    found = tokens.worths[0]
    assert isinstance(found, tuple)
    return tuple(number for number in found if isinstance(number, int))


def _day(tokens: Tokens, _clock: Clock) -> Time:
    month, day = tokens.number("mM") or 0, tokens.number("nor") or 0
    return Time(lambda year: periods.days(date(year, month, day)), tokens.number("Y"))


def _days(tokens: Tokens, _clock: Clock) -> Time:
    month, (begin, end) = tokens.number("mM") or 0, tokens.numbers("no")
    if begin > end:
        raise ValueError(tokens.worths)
    return Time(lambda year: _through(date(year, month, begin), date(year, month, end)), tokens.number("Y"))


def _through(begin: date, last: date) -> Period:
    return Period(periods.midnight(begin), periods.midnight(last) + DAY)


def _month(tokens: Tokens, _clock: Clock) -> Time:
    month = tokens.number("mM") or 0
    return Time(lambda year: periods.months(year, month), tokens.number("Y"))


def _quarter(tokens: Tokens, _clock: Clock) -> Time:
    month = 3 * (tokens.number("q") or 0) - 2
    return Time(lambda year: periods.months(year, month, 3), tokens.number("Y"))


def _season(tokens: Tokens, _clock: Clock) -> Time:
    name = tokens.name("s")
    return Time(lambda year: periods.season(year, name), tokens.number("Y"))


def _holiday(tokens: Tokens, _clock: Clock) -> Time:
    name = tokens.name("H")
    return Time(lambda year: periods.holiday(year, name), tokens.number("Y"))


def _year(tokens: Tokens, _clock: Clock) -> Time:
    return _fixed(periods.months(tokens.number("Y") or 0, 1, 12))


def _decade(tokens: Tokens, _clock: Clock) -> Time:
    return _fixed(periods.months(tokens.number("Ej") or 0, 1, 120))


def _recent(tokens: Tokens, clock: Clock) -> Time:
    """Last, this or next May, summer or Christmas."""
    make = (_month if tokens.has("mM") else _season if tokens.has("s") else _holiday)(tokens, clock).of_year
    found = [
        period for year in range(clock.now.year - 2, clock.now.year + 3) if (period := in_year(Time(make), year)) is not None
    ]
    if tokens.has("L"):
        return _fixed(max(period for period in found if period.end <= clock.now))
    if tokens.has("N"):
        return _fixed(min(period for period in found if period.begin > clock.now))
    holding = [period for period in found if period.begin <= clock.now < period.end]
    return _fixed(holding[0] if holding else make(clock.now.year))


def _before_last(tokens: Tokens, clock: Clock) -> Time:
    name, size = tokens.unit()
    return _fixed(periods.unit(name, clock.now, -2 * size))


def _rolling(tokens: Tokens, clock: Clock) -> Time:
    """The last, past or next two weeks: counted to the moment."""
    name, size = tokens.unit()
    count = (tokens.number("nc") or 1) * size
    ends = (clock.now, periods.shifted(clock.now, name, count if tokens.has("N") else -count))
    return _fixed(Period(min(ends), max(ends)))


def _around(tokens: Tokens, clock: Clock) -> Time:
    """Last, this or next week, month, weekend: as the calendar has them."""
    name, size = tokens.unit()
    if size > 1:
        return _rolling(tokens, clock)
    if name == "minute" or (name == "day" and not tokens.has("T")):
        raise ValueError(tokens.worths)  # the last minute, the last day: of something
    steps = -1 if tokens.has("L") else int(tokens.has("N"))
    if name == "weekend":
        this = periods.unit(name, clock.now)
        steps += int(steps < 0 and this.end <= clock.now) - int(steps > 0 and clock.now < this.begin)
    return _fixed(periods.unit(name, clock.now, steps))


def _ago(tokens: Tokens, clock: Clock) -> Time:
    """The calendar's day, week, month … that holds the moment so long ago."""
    name, size = tokens.unit()
    return _fixed(periods.unit(name, periods.shifted(clock.now, name, -size * (tokens.number("nc") or 1))))


def _relative_day(tokens: Tokens, clock: Clock) -> Time:
    return _fixed(_part_of(periods.unit("day", clock.now, tokens.number("R") or 0), tokens))


def _part_of_day(tokens: Tokens, clock: Clock) -> Time:
    return _fixed(_part_of(periods.unit("day", clock.now, -1 if tokens.has("L") else 0), tokens))


def _part_of(day: Period, tokens: Tokens) -> Period:
    return periods.hours(day.begin, tokens.name("p")) if tokens.has("p") else day


def _weekday(tokens: Tokens, clock: Clock) -> Time:
    """The latest Monday up to today; last: before today; next: after today; this: of this week."""
    weekday, today = tokens.number("wv") or 0, periods.unit("day", clock.now)
    if tokens.has("T"):
        day = periods.weekday_after(periods.unit("week", clock.now).begin, weekday)
    elif tokens.has("N"):
        day = periods.weekday_after(today.end, weekday)
    else:
        day = periods.weekday_before(today.begin if tokens.has("L") else today.end, weekday)
    return _fixed(_part_of(day, tokens))


def _weekend(_tokens: Tokens, clock: Clock) -> Time:
    """The latest weekend that has begun."""
    this = periods.unit("weekend", clock.now)
    return _fixed(this if this.begin <= clock.now else periods.unit("weekend", clock.now, -1))


def _day_of_month(tokens: Tokens, clock: Clock) -> Time:
    day = tokens.number("o") or 0
    month = periods.unit("month", clock.now, 0 if day <= clock.now.day else -1).begin
    return _fixed(periods.days(month.date().replace(day=day)))


FORMS: dict[str, Callable[[Tokens, Clock], Time]] = {
    "iso": _iso,
    "numeric": _numeric,
    "iso_month": _iso_month,
    "days": _days,
    "day": _day,
    "recent_month": _recent,
    "month": _month,
    "quarter": _quarter,
    "recent_yearly": _recent,
    "season": _season,
    "holiday": _holiday,
    "before_last": _before_last,
    "rolling": _rolling,
    "around": _around,
    "ago": _ago,
    "relative_day": _relative_day,
    "part_of_day": _part_of_day,
    "weekday": _weekday,
    "weekend": _weekend,
    "decade": _decade,
    "year": _year,
    "day_of_month": _day_of_month,
}
