"""The times a query speaks of, and how well a memory's time fits them."""

import json
import re
from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from memfold.projections.periods import easter
from memfold.projections.times import SPANS_MAX, Span, fit, preferred

NOW = datetime(2024, 5, 15, 14, 30, tzinfo=UTC)  # a Wednesday

SPOKEN = [
    # days
    ("notes of 2023-05-08", "2023-05-08 2023-05-09"),
    ("notes of 2023/5/8", "2023-05-08 2023-05-09"),
    ("logged 2023-05-08T10:00:00Z", "2023-05-08 2023-05-09"),
    ("notes of 8.5.2023", "2023-05-08 2023-05-09"),
    ("notes of 25/12/2023", "2023-12-25 2023-12-26"),
    ("notes of 12/25/23", "2023-12-25 2023-12-26"),
    ("What did they say on 8 May, 2023?", "2023-05-08 2023-05-09"),
    ("What did they say on May 8, 2023?", "2023-05-08 2023-05-09"),
    ("what did they say on the 8th of may 2023", "2023-05-08 2023-05-09"),
    ("What did Tim start on December 1,2023?", "2023-12-01 2023-12-02"),
    ("Who came on Sept. 5 2022?", "2022-09-05 2022-09-06"),
    ("the fire of the third of June 2023", "2023-06-03 2023-06-04"),
    ("What happened on 8 May?", "2024-05-08 2024-05-09"),
    ("What did they give him on Aug 15th?", "2023-08-15 2023-08-16"),
    ("Whom did I meet on 29 February?", "2024-02-29 2024-03-01"),
    ("Who came on the 3rd?", "2024-05-03 2024-05-04"),
    ("Who came on the 20th?", "2024-04-20 2024-04-21"),
    ("What did they see from 3 to 9 July 2023?", "2023-07-03 2023-07-10"),
    ("the trip of July 3-9, 2023", "2023-07-03 2023-07-10"),
    ("Where was John between August 11 and August 15 2023?", "2023-08-11 2023-08-16"),
    ("What did I buy yesterday?", "2024-05-14 2024-05-15"),
    ("what is on today", "2024-05-15 2024-05-16"),
    ("Am I free tomorrow?", "2024-05-16 2024-05-17"),
    ("What broke the day before yesterday?", "2024-05-13 2024-05-14"),
    ("What was planned for three days ago?", "2024-05-12 2024-05-13"),
    ("Where were we two nights ago?", "2024-05-13 2024-05-14"),
    # parts of days
    ("What did I eat this morning?", "2024-05-15T05 2024-05-15T12"),
    ("What did I read last night?", "2024-05-14T18 2024-05-15T06"),
    ("What did I read yesterday evening?", "2024-05-14T17 2024-05-15"),
    ("What did we do on Friday night?", "2024-05-10T18 2024-05-11T06"),
    ("What did you tell me two hours ago?", "2024-05-15T12 2024-05-15T13"),
    # weekdays and weekends
    ("Whom did I meet last Friday?", "2024-05-10 2024-05-11"),
    ("Whom did I meet on Wednesday?", "2024-05-15 2024-05-16"),
    ("Whom did I meet last Wednesday?", "2024-05-08 2024-05-09"),
    ("Whom will I meet this Friday?", "2024-05-17 2024-05-18"),
    ("Whom will I meet next Wednesday?", "2024-05-22 2024-05-23"),
    ("Whom did I meet on sat?", "2024-05-11 2024-05-12"),
    ("What was in the Monday meeting?", "2024-05-13 2024-05-14"),
    ("What did he do at the weekend?", "2024-05-11 2024-05-13"),
    ("What did he do last weekend?", "2024-05-11 2024-05-13"),
    ("What will he do this weekend?", "2024-05-18 2024-05-20"),
    ("What did he do two weekends ago?", "2024-05-04 2024-05-06"),
    ("What did they show on the Sunday before October 25, 2022?", "2022-10-23 2022-10-24"),
    ("Where was she last weekend before April 10, 2023?", "2023-04-08 2023-04-10"),
    # weeks
    ("What did she do last week?", "2024-05-06 2024-05-13"),
    ("What did she do this week?", "2024-05-13 2024-05-20"),
    ("What will she do next week?", "2024-05-20 2024-05-27"),
    ("What did she do the week before last?", "2024-04-29 2024-05-06"),
    ("Who called two weeks ago?", "2024-04-29 2024-05-06"),
    ("Who called a couple of weeks ago?", "2024-04-29 2024-05-06"),
    ("Who called a fortnight ago?", "2024-04-29 2024-05-06"),
    ("Who called in the past week?", "2024-05-08T14:30 2024-05-15T14:30"),
    ("Where was John in the last 10 days?", "2024-05-05T14:30 2024-05-15T14:30"),
    ("Who called in the week of June 5, 2023?", "2023-06-05 2023-06-12"),
    ("Where was Tim in the second week of November 2023?", "2023-11-08 2023-11-15"),
    ("Where was Tim in the last week of June 2023?", "2023-06-24 2023-07-01"),
    ("Where was Tim the week before 16 November 2023?", "2023-11-09 2023-11-16"),
    ("Which puppy did she get two weeks before August 11, 2023?", "2023-07-28 2023-08-04"),
    ("What did we do the day after Christmas 2023?", "2023-12-26 2023-12-27"),
    # months
    ("What happened in May 2023?", "2023-05-01 2023-06-01"),
    ("what happened in may '23", "2023-05-01 2023-06-01"),
    ("the bill of 2023-05", "2023-05-01 2023-06-01"),
    ("What happened in May?", "2024-05-01 2024-06-01"),
    ("What happened in June?", "2023-06-01 2023-07-01"),
    ("our July plans", "2023-07-01 2023-08-01"),
    ("What did we do last month?", "2024-04-01 2024-05-01"),
    ("What did I buy two months ago?", "2024-03-01 2024-04-01"),
    ("What did we do last May?", "2023-05-01 2023-06-01"),
    ("What did we do last April?", "2024-04-01 2024-05-01"),
    ("What happened in early June 2023?", "2023-06-01 2023-06-11"),
    ("What happened in mid-June 2023?", "2023-06-11 2023-06-21"),
    ("What happened at the end of June 2023?", "2023-06-21 2023-07-01"),
    ("Was the first half of September 2022 good?", "2022-09-01 2022-09-16"),
    ("What happened between May and July 2023?", "2023-05-01 2023-08-01"),
    ("What happened from November 2022 to January?", "2022-11-01 2023-02-01"),
    ("the November to January log", "2023-11-01 2024-02-01"),
    # quarters, seasons, years
    ("What were the Q3 2023 goals?", "2023-07-01 2023-10-01"),
    ("What were the goals of the third quarter of 2023?", "2023-07-01 2023-10-01"),
    ("What did we sell last quarter?", "2024-01-01 2024-04-01"),
    ("Where did they go in the summer of 2022?", "2022-06-01 2022-09-01"),
    ("Where did they go last summer?", "2023-06-01 2023-09-01"),
    ("Where did they go in winter?", "2023-12-01 2024-03-01"),
    ("Where did they go in fall 2022?", "2022-09-01 2022-12-01"),
    ("Which books did she read in 2022?", "2022-01-01 2023-01-01"),
    ("What are my 2023 goals?", "2023-01-01 2024-01-01"),
    ("What did John do last year?", "2023-01-01 2024-01-01"),
    ("Where did she live 4 years ago?", "2020-01-01 2021-01-01"),
    ("Where did she live a decade ago?", "2010-01-01 2020-01-01"),
    ("What music was there in the 1990s?", "1990-01-01 2000-01-01"),
    ("What music was there in the 80s?", "1980-01-01 1990-01-01"),
    # holidays
    ("Where was Tim on Christmas 2022?", "2022-12-25 2022-12-26"),
    ("What did I get for Christmas?", "2023-12-25 2023-12-26"),
    ("Where were we on New Year's Eve?", "2023-12-31 2024-01-01"),
    ("Who cooked last Thanksgiving?", "2023-11-23 2023-11-24"),
    ("Who came at Easter?", "2024-03-29 2024-04-02"),
    ("What did he write on Valentine's Day?", "2024-02-14 2024-02-15"),
    # open at one end
    ("What changed since March?", "2024-03-01 2024-05-15T14:30"),
    ("What changed since last week?", "2024-05-06 2024-05-15T14:30"),
    ("What changed after May 2023?", "2023-06-01 2024-05-15T14:30"),
    ("What did he plan before Christmas?", "2022-12-25 2023-12-25"),
    ("How often had he won by July 10, 2022?", "2021-07-11 2022-07-11"),
    # a said day is the one that counts
    ("What did Joanna finish last Friday on 23 January, 2022?", "2022-01-23 2022-01-24"),
    ("What was his issue last week,as mentioned on November 6, 2023?", "2023-11-06 2023-11-07"),
]

TIMELESS = [
    "",
    "What may I eat?",
    "May I come in?",
    "How can this may be true?",
    "Did the soldiers march on the capital?",
    "Who wants to march?",
    "What did April say to June?",
    "What is the second thing she said?",
    "What takes a second?",
    "Who sat in the sun?",
    "Who last sat in this chair?",
    "What did Mon say to Sat about port 2022?",
    "What is the name of John's one-year-old child?",
    "How many people run a 5K charity race?",
    "Did 2000 people come to the fair?",
    "What came of the 2000 people in the hall?",
    "How long does the spring of the clock hold?",
    "Who will fall?",
    "Did I pay $2023 or 2,023 dollars?",
    "Which half may I have?",
    "What happened in the last minute of the match?",
    "What does she do on Mondays?",
    "What does she do every Monday?",
    "When is Melanie's birthday?",
    "What year did John start surfing?",
    "Which day suits her?",
    "What is on the 15th floor?",
    "Is 1/2 more than 3/8?",
    "the long past of this house",
    "the march of the penguins",
    "version 1.2.3 of 10.0.0.1",
]

NO_SUCH_TIME = [
    "on 31 February 2023",
    "on February 30",
    "2023-13-45",
    "0000-00-00",
    "99/99/9999",
    "in 99999",
    "in year 0",
    "on the 99th",
    "on 29 February 2023",
    "999 decades ago",
    "the past 999 decades",
]


def ends(spans):
    return [(span.begin, span.end) for span in spans]


def at(text):
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(("query", "expected"), SPOKEN, ids=[query for query, _ in SPOKEN])
def test_a_time_in_a_query_is_found(query, expected):
    begin, end = expected.split()

    assert preferred(query, NOW) == (Span(at(begin), at(end), 1.0),)


@pytest.mark.parametrize(("query", "expected"), SPOKEN, ids=[query for query, _ in SPOKEN])
def test_case_does_not_matter(query, expected):
    assert preferred(query.upper(), NOW) == preferred(query.lower(), NOW) == preferred(query, NOW)


@pytest.mark.parametrize("query", TIMELESS)
def test_other_meanings_of_such_words_are_no_time(query):
    assert preferred(query, NOW) == ()


@pytest.mark.parametrize("query", NO_SUCH_TIME)
def test_a_time_that_no_calendar_has_is_none(query):
    assert preferred(query, NOW) == ()


def test_a_day_of_two_readings_is_both_the_american_first():
    assert preferred("on 05/08/2023", NOW) == (
        Span(at("2023-05-08"), at("2023-05-09"), 1.0),
        Span(at("2023-08-05"), at("2023-08-06"), 0.5),
    )


def test_several_times_are_several_spans():
    assert ends(preferred("Did we meet in May or on 3 June 2022?", NOW)) == [
        (at("2024-05-01"), at("2024-06-01")),
        (at("2022-06-03"), at("2022-06-04")),
    ]
    assert ends(preferred("What did we do in May and July 2022?", NOW)) == [
        (at("2022-05-01"), at("2022-06-01")),
        (at("2022-07-01"), at("2022-08-01")),
    ]
    assert ends(preferred("What did we do in 2021 and 2022?", NOW)) == [
        (at("2021-01-01"), at("2022-01-01")),
        (at("2022-01-01"), at("2023-01-01")),
    ]


def test_there_are_only_so_many_spans():
    assert len(preferred(" and ".join(f"on {day} July 2023" for day in range(1, 31)), NOW)) == SPANS_MAX


def test_a_year_that_is_not_said_is_every_year_of_the_memories():
    first, last = at("2020-08-01"), at("2023-05-10")

    assert ends(preferred("What happened in May?", NOW, first, last)) == [
        (at(f"{year}-05-01"), at(f"{year}-06-01")) for year in (2021, 2022, 2023)
    ]
    assert ends(preferred("in winter", NOW, at("2022-01-05"), at("2022-06-01"))) == [(at("2021-12-01"), at("2022-03-01"))]
    assert ends(preferred("from November to January", NOW, at("2022-01-05"), at("2022-12-01"))) == [
        (at("2021-11-01"), at("2022-02-01"))
    ]


def test_a_time_outside_the_memories_is_the_latest_before_now():
    assert ends(preferred("What happened in March?", NOW, at("2023-05-01"), at("2023-08-01"))) == [
        (at("2024-03-01"), at("2024-04-01"))
    ]


def test_before_reaches_back_to_the_first_memory():
    assert ends(preferred("before June 2023", NOW, at("2020-01-02"), at("2024-01-01"))) == [
        (at("2020-01-02"), at("2023-06-01"))
    ]


def test_days_are_those_of_the_asker():
    tokyo = timezone(timedelta(hours=9))

    spans = preferred("yesterday", datetime(2024, 5, 15, 3, tzinfo=tokyo))

    assert ends(spans) == [(at("2024-05-13T15:00"), at("2024-05-14T15:00"))]
    assert ends(preferred("yesterday", datetime(2024, 5, 15))) == [(at("2024-05-14"), at("2024-05-15"))]


@pytest.mark.parametrize("day", ["1818-03-22", "1961-04-02", "2000-04-23", "2024-03-31", "2038-04-25", "2049-04-18"])
def test_easter_is_when_the_almanac_says(day):
    assert easter(int(day[:4])).isoformat() == day


def test_a_page_of_text_is_read_at_its_begin_only():
    assert preferred("word " * 10_000 + "yesterday", NOW) == ()


# --------------------------------------------------------------------------------------------------------------- anything

WORDS = re.findall(r"\S+", " ".join([query for query, _ in SPOKEN] + TIMELESS + NO_SUCH_TIME))
MOMENTS = st.datetimes(timezones=st.none() | st.just(UTC) | st.just(timezone(timedelta(hours=-11))))
RANGES = st.tuples(MOMENTS | st.none(), MOMENTS | st.none())


def check(spans):
    assert len(spans) <= SPANS_MAX
    for span in spans:
        assert span.begin < span.end
        assert span.begin.tzinfo is span.end.tzinfo is UTC
        assert 0 < span.weight <= 1
    fitting = fit(spans, np.array([-(2**63), 0, 1_700_000_000_000_000, 2**63 - 1], np.int64))
    assert np.isfinite(fitting).all()


@settings(deadline=None)
@given(st.lists(st.sampled_from(WORDS), max_size=12).map(" ".join), MOMENTS, RANGES)
def test_no_words_of_time_raise(query, now, scope):
    check(preferred(query, now, *scope))


@settings(deadline=None)
@given(st.text(max_size=60), MOMENTS, RANGES)
def test_no_text_raises(query, now, scope):
    check(preferred(query, now, *scope))


# -------------------------------------------------------------------------------------------------------------------- fit

DAY_MICROS = 86_400_000_000


def micros(moment):
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def days_from(moment, *days):
    return np.array([micros(moment) + int(day * DAY_MICROS) for day in days], np.int64)


def test_a_day_tolerates_the_days_around_it_and_more_after_than_before():
    span = preferred("on 8 May 2023", NOW)

    got = fit(span, days_from(at("2023-05-08"), -2, -1, 0, 0.99, 2, 8, 40))

    assert got.dtype == np.float32
    assert got == pytest.approx([0.5, 0.707, 1, 1, 0.906, 0.5, 0.021], abs=0.001)


def test_a_longer_time_tolerates_more():
    span = preferred("in April 2023", NOW)  # 30 days

    assert fit(span, days_from(at("2023-04-01"), -30, 0, 29.9, 90)) == pytest.approx([0.5, 1, 1, 0.5], abs=0.001)


def test_the_best_span_counts_and_no_span_fits_nothing():
    spans = (Span(at("2023-05-08"), at("2023-05-09"), 1.0), Span(at("2023-08-05"), at("2023-08-06"), 0.5))

    assert fit(spans, days_from(at("2023-05-08"), 0)) == pytest.approx([1])
    assert fit(spans, days_from(at("2023-08-05"), 0)) == pytest.approx([0.5])
    assert fit((), days_from(NOW, 0, 1)).tolist() == [0, 0]
    assert fit(spans, np.zeros(0, np.int64)).shape == (0,)


YEARS = st.datetimes(datetime(1980, 1, 1), datetime(2060, 1, 1), timezones=st.just(UTC))


@settings(deadline=None)
@given(
    YEARS,
    st.timedeltas(timedelta(microseconds=1), timedelta(days=4000)),
    arrays.arrays(np.int64, 20, elements=st.integers(0, 2**52)),
)
def test_fit_is_1_inside_and_falls_the_further_outside(begin, length, moments):
    span = Span(begin, begin + length)
    moments = np.sort(moments)

    got = fit((span,), moments)

    inside = (moments >= micros(span.begin)) & (moments < micros(span.end))
    before, after = moments < micros(span.begin), moments >= micros(span.end)
    assert (got[inside] == 1).all()
    assert ((got >= 0) & (got <= 1)).all()
    assert (np.diff(got[before]) >= 0).all()
    assert (np.diff(got[after]) <= 0).all()


def test_times_of_real_questions_lie_near_their_evidence(locomo):
    """Of LoCoMo's questions that speak of a time, as asked the day after the last turn."""
    better = []
    for sample in json.loads(locomo.read_text()):
        said = turns(sample["conversation"])
        moments = np.array([micros(moment) for moment in said.values()], np.int64)
        first, last = min(said.values()), max(said.values())
        for question in sample["qa"]:
            evidence = [turn for turn in re.findall(r"D\d+:\d+", " ".join(question["evidence"])) if turn in said]
            spans = preferred(question["question"], last + timedelta(days=1), first, last)
            if spans and evidence:
                fitting = dict(zip(said, fit(spans, moments), strict=True))
                better.append(max(fitting[turn] for turn in evidence) > np.median(list(fitting.values())))

    assert len(better) >= 120
    assert np.mean(better) >= 0.8


def turns(conversation):
    """When each turn was said, by its id."""
    said = {}
    for name in [name for name in conversation if re.fullmatch(r"session_\d+", name)]:
        begun = datetime.strptime(conversation[f"{name}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
        said |= {turn["dia_id"]: begun + timedelta(seconds=number) for number, turn in enumerate(conversation[name])}
    return said
