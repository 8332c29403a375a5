"""The times a query speaks of, as a soft preference: "what did we plan last week?" prefers what occurred then.

`preferred` finds the times in a query's words; `fit` says how near to them each memory occurred. English only. What cannot be
read is no time; nothing raises. A query is read in two steps: `timewords` turns its tokens into letters, and patterns over
those letters find the times, whose forms `timeforms` knows. It is called on every recall, and most queries name no time.

Tokens that are a time only at times ("may", "march", "june", "sun", "2000") need another word beside them that makes them one.
"""

import re
from datetime import UTC, datetime, timedelta, tzinfo
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfold.projections import periods
from memfold.projections.periods import Period
from memfold.projections.timeforms import FORMS, Clock, Time, Tokens, in_year
from memfold.projections.timewords import Value, read

YEARS_MAX = 10  # of a time whose year is not said
SPANS_MAX = 16
OPEN = timedelta(days=365)  # how far "before May" reaches if nobody says where memories begin
BEFORE_MIN, AFTER_MIN, AFTER = timedelta(days=2), timedelta(days=7), 2
OTHER_READING = 0.5  # 05/08/2023 is the 8th of May, or else the 5th of August

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


class Span(NamedTuple):
    """A time that is preferred: from `begin` up to, and without, `end`, both in UTC; `weight` in (0, 1]."""

    begin: datetime
    end: datetime
    weight: float = 1.0


def preferred(query: str, now: datetime, first: datetime | None = None, last: datetime | None = None) -> tuple[Span, ...]:
    """The times a query speaks of, in the order of its words; none if it speaks of none. At most SPANS_MAX.

    Days, weeks and "ago" are counted from `now`, in its time zone (UTC if it has none). `first` and `last` are when the oldest
    and newest memories in question occurred: a time without its year ("in May") then means every such time between them, else
    the latest that has begun. Where a day is said, words like "last Friday" are counted from it, not from `now`, so they are
    left out.
    """
    kinds, worths = read(query)
    if not kinds:
        return ()
    zone = now.tzinfo or UTC
    try:
        clock = Clock(now.replace(tzinfo=None), _wall(first, zone), _wall(last, zone))
    except OverflowError:
        return ()
    found = [one for match in islice(_TIME.finditer(kinds), SPANS_MAX) for one in _spoken(match, worths, clock)]
    if any(one.form in DAYS for one in found):
        found = [one for one in found if one.form not in RELATIVE]
    spans = [_span(one.period, zone, one.weight) for one in found]
    return tuple(dict.fromkeys(span for span in spans if span is not None))[:SPANS_MAX]


def fit(spans: tuple[Span, ...], occurred_at_micros: NDArray[np.int64]) -> NDArray[np.float32]:
    """How well each moment (microseconds since 1970, UTC) fits the best of some spans, in [0, 1]; 0 if there are none.

    Inside a span that is its weight. Before its begin it halves with every length of the span, at least 2 days; after its end
    with every two lengths, at least 7 days, for what happened is often told days later.
    """
    best = np.zeros(len(occurred_at_micros), np.float32)
    at = occurred_at_micros.astype(np.float64)
    for span in spans:
        begin, end = (span.begin - _EPOCH) // _MICROSECOND, (span.end - _EPOCH) // _MICROSECOND
        before, after = _halving(span)
        outside = np.maximum(np.maximum((begin - at) / before, (at - end) / after), 0)
        np.maximum(best, span.weight * np.exp2(-outside), out=best, casting="same_kind")
    return best


def _halving(span: Span) -> tuple[int, int]:
    """In how many microseconds the fit halves before a span, and after it."""
    length = span.end - span.begin
    return max(length, BEFORE_MIN) // _MICROSECOND, max(AFTER * length, AFTER_MIN) // _MICROSECOND


class _Spoken(NamedTuple):
    """A time as it is meant, and its form: the name of its pattern."""

    period: Period
    form: str
    weight: float = 1.0


def _wall(at: datetime | None, zone: tzinfo) -> datetime | None:
    if at is None:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return at.astimezone(zone).replace(tzinfo=None)


def _span(period: Period, zone: tzinfo, weight: float) -> Span | None:
    try:
        begin, end = (at.replace(tzinfo=zone).astimezone(UTC) for at in period)
    except (ValueError, OverflowError):
        return None
    return Span(begin, end, weight) if begin < end else None


# ------------------------------------------------------------------------------------------------ what the letters say

_YEAR = "(?:[,O]?Y)"
_CUE = "(?:(?<=[ifSUBFbeO])|(?<=[ifSUBFeO]d))"  # a word that makes a time of the next
_CUE_DAY = "(?:(?<=[ifSUBFbeLTNOgt])|(?<=[ifSUBFbeOgt]d))"
_CUE_FEAST = "(?:(?<=[ifSUBFbeOgG])|(?<=[ifSUBFeOgG]d))"
_ENDS = "(?=[.,t&]|$)"


def _patterns(cue: str, cue_day: str, cue_feast: str) -> dict[str, str]:
    """What each form of a time looks like in letters; the longest forms first."""
    return {
        "iso": "I",
        "numeric": "X",
        "iso_month": "J",
        "days": f"d?[no][t&]d?[no]O?[mM]{_YEAR}?|[mM]d?[no][t&]d?[no](?![%mM]){_YEAR}?",
        "day": f"d?oO?[mM]{_YEAR}?|d?rO[mM]{_YEAR}?|nO?M{_YEAR}?|{cue_day}nO?m{_YEAR}?|nO?m(?:{_YEAR}|{_ENDS})"
        f"|[mM]d?o{_YEAR}?|Md?n(?!%){_YEAR}?|mn(?:{_YEAR}|{_ENDS})|{cue_day}mn(?!%){_YEAR}?",
        "recent_month": f"[LN][mM](?!{_YEAR})|TM(?!{_YEAR})|Tm{_ENDS}",
        "month": f"[mM]{_YEAR}|M|{cue}m|m(?=t[mM])",
        "quarter": "q[,O]?Y|Yq|q",
        "recent_yearly": f"[LTN][sH](?!{_YEAR})",
        "season": f"s{_YEAR}|{cue}s",
        "holiday": f"H{_YEAR}|{cue_feast}H",
        "before_last": "[uk]BL",
        "rolling": "[LPN]a?[nc]O?u|Pu",
        "around": "[LTN][uk](?!O)",
        "ago": "(?:a?[nc]O?|(?<!h)a)[uk]A",
        "relative_day": "Rp?",
        "part_of_day": "[LT]p",
        "weekday": f"(?:[LTN]|(?<!z))wp?|[LTN]v(?:p|{_ENDS})|(?<=[SUBFfgb])vp?",
        "weekend": "(?<=[gSBFie]d)k",
        "decade": "E|(?<=id)j",
        "year": "(?:(?<=[ifSUBFbeOu])|(?<=[BFSUet]d))Y(?!%)|(?<=[dD])Y(?=x)|(?<=Y[&,])Y",
        "day_of_month": f"(?<=gd)o{_ENDS}",
    }


_STRICT = _patterns(_CUE, _CUE_DAY, _CUE_FEAST)
_LOOSE = _patterns("", "", "") | {"weekday": "[LTN]?[wv]p?", "weekend": "k", "decade": "[Ej]", "year": "Y", "day_of_month": "o"}
_ONE = "|".join(_STRICT.values())
_TWO = "|".join(pattern for form, pattern in _LOOSE.items() if form != "day_of_month")  # after "from May to", "between May and"
_TIME = re.compile(
    "(?P<offset>(?:L|a?[nc]O?|a)?[ukw][BF]d?)?"  # two weeks before, the Sunday after
    "(?P<limit>[BFSU]d?)?"
    "(?P<both>bd?)?"
    "(?P<inside>(?:[orL][ukh]|(?<![ncLPTNorh])[uk])Od?)?"  # the second week of, the week of
    "(?P<edge>e[Oti]?d?)?"
    f"(?P<one>{_ONE})"
    f"(?:(?:[tU]|(?(both)&|(?!)))(?P<two>{_TWO}))?"
)
_FORM = re.compile("|".join(f"(?P<{form}>{pattern})" for form, pattern in _LOOSE.items()))
_YEAR_AHEAD = re.compile("(?:[,&]{1,2}(?:d?[no]O?)?[mM](?:d?[no])?){1,3}[,O]?Y")  # in May and July 2023

DAYS = {"iso", "numeric", "days", "day"}
RELATIVE = set(FORMS) - DAYS - {"iso_month", "month", "quarter", "season", "holiday", "year", "decade"}


def _spoken(match: re.Match[str], worths: list[Value], clock: Clock) -> list[_Spoken]:
    """What one match means; nothing if the calendar has no such time."""
    try:
        return _meant(match, worths, clock)
    except (ValueError, OverflowError):
        return []


def _meant(match: re.Match[str], worths: list[Value], clock: Clock) -> list[_Spoken]:
    form, one = _said(match, "one", worths, clock)
    found = _range(one, _said(match, "two", worths, clock)[1], clock) if match["two"] else []
    found = found or _occurrences(one, clock)
    for name, change in _CHANGES.items():
        if match[name] and (name == "limit" or not match["two"]):
            tokens = Tokens(match[name], worths[match.start(name) : match.end(name)])
            found = [period for before in found if (period := change(before, tokens, clock)) is not None]
    if match["limit"]:
        found = found[-1:]
    others = [_Spoken(one.other, form, OTHER_READING)] if one.other and len(match[0]) == 1 else []
    return [_Spoken(period, form) for period in found] + others


def _said(match: re.Match[str], group: str, worths: list[Value], clock: Clock) -> tuple[str, Time]:
    """The form of a time, and what it says."""
    begin, end = match.span(group)
    form = _FORM.fullmatch(match.string, begin, end)
    assert form is not None
    assert form.lastgroup is not None
    time = FORMS[form.lastgroup](Tokens(match.string[begin:end], worths[begin:end]), clock)
    if time.year is None and (ahead := _YEAR_AHEAD.match(match.string, end)):
        time = time._replace(year=Tokens("Y", worths[ahead.end() - 1 : ahead.end()]).number("Y"))
    return form.lastgroup, time


# ------------------------------------------------------------------------------------------------ which years are meant


def _occurrences(time: Time, clock: Clock) -> list[Period]:
    """The period in the year that is said, or in all years that may be meant, in their order."""
    if time.year is not None:
        return [time.of_year(time.year)]
    found = []
    if clock.first is not None and clock.last is not None:
        years = range(max(clock.first.year - 1, clock.last.year - YEARS_MAX), clock.last.year + 1)
        periods = [period for year in years if (period := in_year(time, year)) is not None]
        found = [period for period in periods if period.begin <= clock.last and clock.first < period.end]
    return found or _latest(time, clock.now)


def _latest(time: Time, now: datetime) -> list[Period]:
    """The period in the latest year in which it has begun. A leap day may be eight years ago."""
    for year in range(now.year, now.year - 9, -1):
        period = in_year(time, year)
        if period is not None and period.begin <= now:
            return [period]
    return []


def _range(one: Time, two: Time, clock: Clock) -> list[Period]:
    """From the begin of one to the end of the other, which says the year for both, or follows the first; else none."""
    if two.year is None and one.year is not None:
        begin, end = one.of_year(one.year).begin, two.of_year(one.year).end
        return [Period(begin, end if end > begin else two.of_year(one.year + 1).end)]
    found = []
    for last in _occurrences(two, clock):
        year = last.begin.year if one.year is None else one.year
        begin = one.of_year(year).begin
        found.append(Period(begin if begin < last.end else one.of_year(year - 1).begin, last.end))
    return [period for period in found if period.begin < period.end]


# ------------------------------------------------------------------------------------------------ what the words around it do


def _edge(whole: Period, tokens: Tokens, _clock: Clock) -> Period:
    return periods.third(whole, tokens.number("e") or 0)


def _inside(whole: Period, tokens: Tokens, _clock: Clock) -> Period | None:
    """Of "the second week of" a time, or "the week of" a day."""
    name, _ = tokens.unit()
    number = -1 if tokens.has("L") else tokens.number("or")
    return periods.unit(name, whole.begin) if number is None else periods.part(whole, name, number)


def _limited(period: Period, tokens: Tokens, clock: Clock) -> Period:
    """Of "before", "until", "since" or "after" a time. What would be empty is the time itself."""
    if tokens.has("BU"):
        end = period.begin if tokens.has("B") else period.end
        begin = clock.first if clock.first is not None and clock.first < end else end - OPEN
        return Period(begin, end)
    begin = period.begin if tokens.has("S") else period.end
    return Period(begin, clock.now) if begin < clock.now else period


def _offset(anchor: Period, tokens: Tokens, _clock: Clock) -> Period:
    """Of "two weeks before" or "the Sunday after" a time."""
    before = tokens.has("B")
    weekday = tokens.number("w")
    if weekday is not None:
        return periods.weekday_before(anchor.begin, weekday) if before else periods.weekday_after(anchor.end, weekday)
    if tokens.has("k"):
        saturday = periods.weekday_before(anchor.begin, 5) if before else periods.weekday_after(anchor.end, 5)
        return periods.days(saturday.begin, 2)
    name, size = tokens.unit()
    count = (tokens.number("nc") or 1) * size
    if before:
        return Period(periods.shifted(anchor.begin, name, -count), periods.shifted(anchor.begin, name, 1 - count))
    return Period(periods.shifted(anchor.end, name, count - 1), periods.shifted(anchor.end, name, count))


# In this order: "by the end of the second week of May".
_CHANGES = {"inside": _inside, "edge": _edge, "offset": _offset, "limit": _limited}
