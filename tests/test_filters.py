"""Filters against a second, slower reading of the same rules, and against everything a caller may get wrong.

The oracle below looks at Python dicts and knows nothing of SQL or JSON; where the two disagree, one of them is wrong.
"""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing
from datetime import UTC, date, datetime, timedelta, timezone
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfold.errors import FilterError, InvalidQuery
from memfold.projections import filters
from memfold.projections.filters import FUNCTIONS, Condition, as_time, compile_filter, is_empty

TABLE = """
CREATE TABLE memories (row INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, content TEXT NOT NULL, role TEXT, speaker TEXT,
  category TEXT, importance REAL NOT NULL, tags TEXT NOT NULL, metadata TEXT NOT NULL, occurred_at INTEGER NOT NULL,
  created_at INTEGER NOT NULL, updated_at INTEGER NOT NULL, version INTEGER NOT NULL, status TEXT NOT NULL)
"""
NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)
BLANK: dict[str, Any] = {
    "role": None,
    "speaker": None,
    "category": None,
    "importance": 0.5,
    "tags": [],
    "metadata": {},
    "occurred_at": NOON,
    "status": "active",
}


def memory(**fields: Any) -> dict[str, Any]:
    return {**BLANK, **fields}


def about(**metadata: Any) -> dict[str, Any]:
    return memory(metadata=metadata)


def connected(memories: list[dict[str, Any]]) -> sqlite3.Connection:
    connection = sqlite3.connect(":memory:")
    for name, arguments, function in FUNCTIONS:
        connection.create_function(name, arguments, function, deterministic=True)
    connection.execute(TABLE)
    insert = "INSERT INTO memories VALUES (?, ?, 'x', ?, ?, ?, ?, ?, ?, ?, 0, 0, 1, ?)"
    connection.executemany(insert, [stored(row, memory) for row, memory in enumerate(memories)])
    return connection


def stored(row: int, memory: dict[str, Any]) -> tuple[Any, ...]:
    texts = (memory["role"], memory["speaker"], memory["category"])
    documents = (msgspec.json.encode(memory[name]).decode() for name in ("tags", "metadata"))
    time = (memory["occurred_at"] - datetime(1970, 1, 1, tzinfo=UTC)) // MICROSECOND
    return row, row.to_bytes(8, "big"), *texts, memory["importance"], *documents, time, memory["status"]


def answers(where: Any, memories: list[dict[str, Any]]) -> list[bool]:
    """What the compiled filter says of each memory, having checked that it is exactly 0 or 1."""
    condition = compile_filter(where)
    with closing(connected(memories)) as connection:
        found = [
            value for (value,) in connection.execute(f"SELECT {condition.sql} FROM memories ORDER BY row", condition.values)
        ]
        selected = {row for (row,) in connection.execute(f"SELECT row FROM memories WHERE {condition.sql}", condition.values)}
    assert all(type(value) is int and value in (0, 1) for value in found)
    assert selected == {row for row, value in enumerate(found) if value}
    return [bool(value) for value in found]


def holds(where: Any, one: dict[str, Any]) -> bool:
    return answers(where, [one])[0]


# -- the oracle --------------------------------------------------------------------------------------------------------

MISSING = object()
METADATA_KEYS = {
    "source": ["source"],
    "metadata.source": ["source"],
    "a": ["a"],
    "metadata.a.b": ["a", "b"],
    "b": ["b"],
    "c": ["c"],
    r"metadata.a\.b": ["a.b"],
    "metadata.importance": ["importance"],
}
NAMES = sorted({name for names in METADATA_KEYS.values() for name in names})


def expected(where: Mapping[str, Any], memory: dict[str, Any]) -> bool:
    return all(expected_clause(key, value, memory) for key, value in where.items())


def expected_clause(key: str, value: Any, memory: dict[str, Any]) -> bool:
    if key == "$and":
        return all(expected(item, memory) for item in value)
    if key == "$or":
        return any(expected(item, memory) for item in value)
    if key == "$not":
        return not expected(value, memory)
    operators = value if isinstance(value, dict) else {"$eq": value}
    return expected_field(key, field_value(key, memory), operators)


def field_value(key: str, memory: dict[str, Any]) -> Any:
    if key in BLANK and key != "metadata":
        value = memory[key]
        return MISSING if value is None or value == [] else value
    value = memory["metadata"]
    for name in METADATA_KEYS[key]:
        value = value.get(name, MISSING) if isinstance(value, dict) else MISSING
    return value


def expected_field(key: str, value: Any, operators: dict[str, Any]) -> bool:
    return all(expected_operator(key, value, name, operand) for name, operand in operators.items())


def expected_operator(key: str, value: Any, name: str, operand: Any) -> bool:
    negative = {"$ne": "$eq", "$nin": "$in"}
    if name in negative:
        return not expected_operator(key, value, negative[name], operand)
    if name == "$not":
        return not expected_field(key, value, operand)
    if name == "$exists":
        return (value is not MISSING) == operand
    if name == "$in":
        return any(equal(value, as_operand(key, item)) for item in operand)
    operand = as_operand(key, operand)
    if name == "$eq":
        return equal(value, operand)
    if name == "$contains":
        return any(same(item, operand) for item in value) if isinstance(value, list) else is_part(operand, value)
    return any(ordered(name, item, operand) for item in (value if isinstance(value, list) else [value]))


def as_operand(key: str, operand: Any) -> Any:
    if key == "tags" and operand in (None, [], ()):
        return None
    return datetime.fromisoformat(operand) if key == "occurred_at" and isinstance(operand, str) else operand


def equal(value: Any, operand: Any) -> bool:
    value = None if value is MISSING else value
    return same(value, operand) or (isinstance(value, list) and any(same(item, operand) for item in value))


def same(value: Any, operand: Any) -> bool:
    if isinstance(operand, datetime):
        return when(value) == operand
    if kind(value) != kind(operand):
        return False
    if isinstance(operand, dict):
        return value.keys() == operand.keys() and all(same(value[key], operand[key]) for key in operand)
    if isinstance(operand, list):
        return len(value) == len(operand) and all(map(same, value, operand))
    return bool(value == operand)


def ordered(name: str, value: Any, operand: Any) -> bool:
    if isinstance(operand, datetime):
        value = when(value)
    if value is None or kind(value) != kind(operand):
        return False
    return bool({"$gt": value > operand, "$gte": value >= operand, "$lt": value < operand, "$lte": value <= operand}[name])


def is_part(operand: Any, value: Any) -> bool:
    return isinstance(value, str) and isinstance(operand, str) and operand in value


def when(value: Any) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            return None
    return value if isinstance(value, datetime) and value.tzinfo else None


def kind(value: Any) -> str:
    kinds = {bool: "boolean", int: "number", float: "number", str: "string", datetime: "time", list: "array", dict: "object"}
    return kinds.get(type(value), "null")


# -- random memories and filters ---------------------------------------------------------------------------------------

BERLIN = timezone(timedelta(hours=2))
WORDS = ["", "a", "A", "ab", "b", "ä", "'", '"', "%", "\\", "😀", "1", "true", "null", "[]", "@0", "x') OR 1 --"]
TIMES = [NOON, NOON.astimezone(BERLIN), NOON + MICROSECOND, NOON - timedelta(days=9), datetime.min.replace(tzinfo=UTC)]
TIME_WORDS = [time.isoformat() for time in TIMES] + ["2024-01-01T12:00:00Z", "2024-01-01T12:00:00", "2024-01-01"]
NUMBERS = [0, 1, 1.0, -0.0, 0.5, 0.1, 0.1 + 0.2, 0.3, 2**53, 2**53 + 1, 2.0**53, 2**63 - 1, -(2**63), 1e308, 5e-324]
texts = st.sampled_from(WORDS + TIME_WORDS)
numbers = st.sampled_from(NUMBERS)
scalars = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b"]), inner),
    max_leaves=5,
)
memories = st.fixed_dictionaries(
    {
        "role": st.none() | texts,
        "speaker": st.none() | texts,
        "category": st.none() | texts,
        "importance": st.sampled_from([0.0, 0.1, 0.3, 0.1 + 0.2, 0.5, 1.0]),
        "tags": st.lists(texts, max_size=3),
        "metadata": st.fixed_dictionaries({}, optional=dict.fromkeys(NAMES, values)),
        "occurred_at": st.sampled_from(TIMES),
        "status": st.sampled_from(["active", "archived"]),
    }
)


def operations(equals: Any, orders: Any = None, contains: Any = None) -> Any:
    """Objects of operators whose operands come from the three strategies."""
    leaves = {"$eq": equals, "$ne": equals, "$in": st.lists(equals, max_size=4), "$nin": st.lists(equals, max_size=4)}
    if orders is not None:
        leaves |= dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), orders)
    if contains is not None:
        leaves["$contains"] = contains
    leaf = st.fixed_dictionaries({}, optional=leaves | {"$exists": st.booleans()}).filter(bool)
    denied = st.recursive(leaf, lambda inner: st.fixed_dictionaries({"$not": inner}), max_leaves=2)
    return denied | equals.filter(lambda value: not isinstance(value, dict))


times = st.sampled_from(TIMES)
text_operations = operations(st.none() | texts, texts, texts)
metadata_operations = operations(values | times, numbers | texts | times, values | times)
CLAUSES = [
    st.tuples(st.sampled_from(["role", "speaker", "category", "status"]), text_operations),
    st.tuples(st.just("importance"), operations(numbers, numbers)),
    st.tuples(st.just("occurred_at"), operations(times | st.sampled_from(TIME_WORDS[:6]), times)),
    st.tuples(st.just("tags"), operations(st.none() | texts | st.lists(texts, max_size=3), None, texts)),
    *[st.tuples(st.sampled_from(sorted(METADATA_KEYS)), metadata_operations)] * 4,
]


@st.composite
def clauses(draw):
    # A function of its own because the repr of all of it is long enough for hypothesis to warn.
    return draw(draw(st.sampled_from(CLAUSES)))


leaf_filters = st.lists(clauses(), max_size=3).map(dict)


def around(inner: Any) -> Any:
    several = st.lists(inner, min_size=1, max_size=3)
    optional = {"$and": several, "$or": several, "$not": inner}
    return st.builds(lambda one, other: one | other, st.fixed_dictionaries({}, optional=optional), leaf_filters)


where_filters = st.recursive(leaf_filters, around, max_leaves=6)
simple = st.sampled_from(
    [{"a": 1}, {"b": {"$ne": 1}}, {"c": {"$not": {"$ne": 1}}}, {"a": 1, "c": {"$nin": [1]}}, {}, {"b": {"$in": []}}]
)
TRUTHS = [about(**{name: 1 for i, name in enumerate("abc") if row >> i & 1}) for row in range(8)]


def branches(inner: Any) -> Any:
    several = st.lists(inner, min_size=1, max_size=3)
    return st.sampled_from(["$and", "$or"]).flatmap(
        lambda word: st.fixed_dictionaries({word: several})
    ) | st.fixed_dictionaries({"$not": inner})


@settings(max_examples=300, deadline=None)
@given(where=st.recursive(simple, branches, max_leaves=12))
def test_and_or_and_not_obey_their_truth_tables(where):
    assert answers(where, TRUTHS) == [expected(where, memory) for memory in TRUTHS]


@settings(max_examples=500, deadline=None)
@given(where=where_filters, stock=st.lists(memories, min_size=4, max_size=8))
def test_a_filter_finds_what_its_rules_say(where, stock):
    assert answers(where, stock) == [expected(where, memory) for memory in stock]


# Small enough to try everything with everything: the neighbours that a careless comparison would mix up.
POOL: list[Any] = [None, False, True, 0, 1, 1.0, -0.0, 0.5, "", "0", "1", "a", "A", "ab", "true", "null", "[]", "@0"]
POOL += ["2024-01-01T12:00:00Z", "2024-01-01T14:00:00+02:00", "2024-01-01T12:00:00", "1970-01-01T00:00:00Z"]
POOL += [[], [None], [0], [True], ["a"], ["ab", "a"], ["a", "ab"], [["a"]], [1, "2024-01-01T12:00:00Z"], ["A", []]]
POOL += [{}, {"a": 1}, {"a": True}, {"a": None}, {"b": 1, "a": 1}, {"a": [1.0]}, [{"a": 1}]]
OPERATORS = ["$eq", "$ne", "$gt", "$gte", "$lt", "$lte", "$in", "$nin", "$contains"]


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_on_metadata_agrees_with_its_rules_for_every_pair(name):
    stock = [about(), *(about(a=value) for value in POOL)]
    for operand in [*POOL, NOON, NOON.astimezone(BERLIN)]:
        if name[:3] in ("$gt", "$lt") and kind(operand) not in ("number", "string", "time"):
            continue
        where = {"a": {name: [operand, "x"] if name in ("$in", "$nin") else operand}}
        assert answers(where, stock) == [expected(where, memory) for memory in stock], where


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_on_a_column_agrees_with_its_rules_for_every_pair(name):
    words = [None, *(value for value in POOL if isinstance(value, str))]
    stock = [memory(category=word, tags=[word, "b"] if word else []) for word in words]
    for word in words:
        if word is None and name in ("$gt", "$gte", "$lt", "$lte", "$contains"):
            continue
        operator = {name: [word, "x"] if name in ("$in", "$nin") else word}
        keys = ["category"] if name[:3] in ("$gt", "$lt") else ["category", "tags"]
        for where in ({key: operator} for key in keys):
            assert answers(where, stock) == [expected(where, memory) for memory in stock], where


@settings(max_examples=100, deadline=None)
@given(value=st.floats(allow_nan=False, allow_infinity=False), other=st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_read_to_the_last_bit(value, other):
    stock = [about(n=value)]

    assert answers({"n": value}, stock) == [True]
    assert answers({"n": {"$gt": other}}, stock) == [value > other]
    assert answers({"n": other}, stock) == [value == other]


@settings(max_examples=200, deadline=None)
@given(name=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12))
def test_every_key_can_be_reached(name):
    key = "metadata." + name.replace("\\", r"\\").replace(".", r"\.")

    assert answers({key: 1}, [about(**{name: 1}), about(**{name + "x": 1}), about()]) == [True, False, False]


# -- keys --------------------------------------------------------------------------------------------------------------

STRANGE = ['"', "'", "$", "[0]", "$[0]", '$."a"', " ", "", "?", ";", "é", "🙂", "a\nb", "a\n", '"]', "%", "--", "x\\", "\u2028"]


@pytest.mark.parametrize("name", STRANGE)
def test_a_strange_key_is_only_a_key(name):
    key = "metadata." + name.replace("\\", r"\\").replace(".", r"\.")
    stock = [about(**{name: "here"}), about(**{"else": "here"}), about()]

    assert answers({key: "here"}, stock) == [True, False, False]
    assert answers({key: {"$exists": True}}, stock) == [True, False, False]
    assert answers({key + ".in": "here"}, [about(**{name: {"in": "here"}}), *stock]) == [True, False, False, False]


@pytest.mark.parametrize(
    ("key", "names"),
    [
        ("a.b", ["a", "b"]),
        (r"a\.b", ["a.b"]),
        (r"a\\.b", ["a\\", "b"]),
        (r"a\\\.b", ["a\\.b"]),
        (r"a\b.c", ["a\\b", "c"]),
        ("a\\", ["a\\"]),
        (r"a\.", ["a."]),
        (r"\..x", [".", "x"]),
        ("", [""]),
        (".", ["", ""]),
        ("a.", ["a", ""]),
        ("metadata.metadata", ["metadata"]),
        (r"metadata\.x", ["metadata.x"]),
        ("metadata.category", ["category"]),
        ("metadata.$x", ["$x"]),
        ("category.x", ["category", "x"]),
        ("content", ["content"]),
    ],
)
def test_dots_lead_inwards_and_a_backslash_keeps_them(key, names):
    value: Any = 7
    for name in reversed(names):
        value = {name: value}

    assert answers({key: 7}, [memory(metadata=value), memory()]) == [True, False]


def test_the_repr_of_a_condition_shows_no_value():
    condition = compile_filter({"hush": "hush", "tags": "hush"})

    assert "hush" not in repr(condition)
    assert repr(condition).endswith(", 4 values)")


def test_dots_do_not_lead_into_arrays():
    assert not holds({"a.b": 1}, about(a=[{"b": 1}]))
    assert not holds({"a.0": 1}, about(a=[1]))


@pytest.mark.parametrize("word", ["x') OR 1=1 --", "'; DROP TABLE memories; --", "?", "?1", ":a", "') UNION SELECT 1 --", '"'])
def test_words_are_never_read_as_sql(word):
    where = {"category": word, "tags": word, word: word, f"metadata.{word}": {"$in": [word], "$contains": word}}
    condition = compile_filter(where)
    plain = compile_filter({"category": "k", "tags": "k", "k": "k", "metadata.k": {"$in": ["k"], "$contains": "k"}})

    assert condition.sql == plain.sql
    assert answers(where, [memory(category=word, tags=[word], metadata={word: word}), memory()]) == [True, False]


# -- what the rules say, one by one ------------------------------------------------------------------------------------


@pytest.mark.parametrize("operators", [{"$ne": "x"}, {"$nin": ["x"]}, {"$not": {"$eq": "x"}}, {"$not": {"$contains": "x"}}])
@pytest.mark.parametrize("key", ["category", "source", "tags"])
def test_denials_hold_for_a_missing_field(key, operators):
    assert holds({key: operators}, memory())


def test_none_is_missing_or_null():
    stock = [about(), about(a=None), about(a=[None]), about(a=0), about(a=False), about(a="null"), about(a={})]

    assert answers({"a": None}, stock) == [True, True, True, False, False, False, False]
    assert answers({"a": {"$exists": True}}, stock) == [False, True, True, True, True, True, True]
    assert answers({"category": None}, [memory(), memory(category="")]) == [True, False]
    assert answers({"category": {"$in": [None, "a"]}}, [memory(), memory(category="a"), memory(category="b")]) == [
        True,
        True,
        False,
    ]
    assert answers({"tags": None}, [memory(), memory(tags=[""])]) == [True, False]


def test_true_is_not_one():
    stock = [about(a=1), about(a=1.0), about(a=True), about(a="1"), about(a=[True]), about(a={"x": True})]

    assert answers({"a": 1}, stock) == [True, True, False, False, False, False]
    assert answers({"a": True}, stock) == [False, False, True, False, True, False]
    assert answers({"a": {"$gte": 0}}, stock) == [True, True, False, False, False, False]
    assert answers({"a": {"$eq": {"x": 1}}}, stock) == [False] * 6


def test_tags_match_by_element_and_lists_by_order():
    stock = [memory(tags=["a", "b"]), memory(tags=["b", "a"]), memory(tags=["a"]), memory(tags=["ab"]), memory()]

    assert answers({"tags": "a"}, stock) == [True, True, True, False, False]
    assert answers({"tags": {"$contains": "a"}}, stock) == [True, True, True, False, False]
    assert answers({"tags": ["a", "b"]}, stock) == [True, False, False, False, False]
    assert answers({"tags": ("a", "b")}, stock) == [True, False, False, False, False]
    assert answers({"tags": {"$in": ["ab", "x"]}}, stock) == [False, False, False, True, False]
    assert answers({"tags": {"$nin": ["ab", "b"]}}, stock) == [False, False, True, False, True]
    assert answers({"tags": {"$exists": True}}, stock) == [True, True, True, True, False]
    assert answers({"tags": []}, stock) == [False, False, False, False, True]


def test_objects_are_equal_whatever_the_order_of_their_keys():
    stock = [about(a={"x": 1, "y": [1.0, {"z": None}]}), about(a={"y": [1, {}], "x": 1}), about(a=[{"x": 1}])]

    assert answers({"a": {"$eq": {"y": [1, {"z": None}], "x": 1.0}}}, stock) == [True, False, False]
    assert answers({"a": {"$eq": {"x": 1}}}, stock) == [False, False, True]
    assert answers({"a": {"$contains": {"x": 1}}}, stock) == [False, False, True]


def test_contains_minds_case_and_takes_no_wildcards():
    stock = [memory(category="50% Tea_"), memory(category="tea"), memory()]

    assert answers({"category": {"$contains": "Tea"}}, stock) == [True, False, False]
    assert answers({"category": {"$contains": "%"}}, stock) == [True, False, False]
    assert answers({"category": {"$contains": ""}}, stock) == [True, True, False]
    assert answers({"a": {"$contains": "e"}}, [about(a="tea"), about(a=["e"]), about(a=["tea"]), about(a=5)]) == [1, 1, 0, 0]


def test_times_compare_by_the_microsecond_across_zones():
    where = {"$gt": NOON.astimezone(BERLIN)}
    stamps = ["2024-01-01T12:00:00.000001Z", "2024-01-01T14:00:00+02:00", "2024-01-01T23:59:59", "tomorrow", 9e99, None]

    assert answers({"occurred_at": where}, [memory(), memory(occurred_at=NOON + MICROSECOND)]) == [False, True]
    assert answers({"at": where}, [about(at=stamp) for stamp in stamps]) == [True, False, False, False, False, False]
    assert holds({"occurred_at": "2024-01-01T14:00:00+02:00"}, memory())
    assert holds({"at": NOON}, about(at="2024-01-01T14:00:00+02:00"))
    assert holds({"at": {"$in": ["x", NOON]}}, about(at=["y", "2024-01-01T14:00:00+02:00"]))
    assert not holds({"at": "2024-01-01T12:00:00Z"}, about(at="2024-01-01T14:00:00+02:00"))


@pytest.mark.parametrize(
    "zone", [UTC, timezone(timedelta(hours=14)), timezone(-timedelta(hours=23, minutes=59)), ZoneInfo("Asia/Tokyo")]
)
def test_the_ends_of_the_calendar_do_not_overflow(zone):
    for time in (datetime.min.replace(tzinfo=zone), datetime.max.replace(tzinfo=zone)):
        assert holds({"occurred_at": {"$gte": time}}, memory()) == (time.year == 1)
        assert holds({"at": time}, about(at=time.isoformat()))
        assert holds({"at": {"$lte": time}}, about(at=time.isoformat()))


@pytest.mark.parametrize(
    "text", ["", "x", "2024-01-01", "2024-01-01T00:00:00", "24:00", "0000-01-01T00:00:00Z", "\ud800", 5, None, NOON]
)
def test_as_time_is_none_for_what_is_no_time(text):
    assert as_time(text) is None


def test_as_time_counts_microseconds():
    assert as_time("1970-01-01T01:00:00.000007+01:00") == 7
    assert as_time("1969-12-31T23:59:59.999999Z") == -1


def test_subclasses_of_plain_types_count_as_these():
    word = Enum("word", {"TEA": "tea"}, type=str)
    number = IntEnum("number", {"ONE": 1})

    assert holds(MappingProxyType({"category": word.TEA, "n": number.ONE}), memory(category="tea", metadata={"n": 1}))
    assert holds({"a": word.TEA, "b": {"$in": (number.ONE,)}}, about(a="tea", b=1))


def test_integers_of_any_size_are_compared_exactly():
    big = 2**63 - 1
    stock = [about(n=big), about(n=float(2**63)), about(n=2**63), about(n=10**30)]

    assert answers({"n": big}, stock) == [True, False, False, False]
    assert answers({"n": float(2**63)}, stock) == [False, True, True, False]
    assert answers({"n": {"$gt": big}}, stock) == [False, True, True, True]


def test_an_empty_list_holds_nothing():
    assert answers({"category": {"$in": []}}, [memory(), memory(category="a")]) == [False, False]
    assert answers({"source": {"$nin": []}}, [memory(), about(source="a")]) == [True, True]


def test_a_document_deeper_than_any_filter_is_still_compared():
    deep = nested(600, lambda inner: [inner], 1)

    assert answers({"a": {"$eq": []}}, [about(a=deep), about(a=[])]) == [False, True]
    assert holds({"a": {"$exists": True}}, about(a=deep))


# -- empty filters -----------------------------------------------------------------------------------------------------

EMPTY = [{}, {"$and": [{}]}, {"$or": [{}, {"a": 1}]}, {"a": {"$nin": []}}, {"$not": {"a": {"$in": []}}}, {"$not": {"$not": {}}}]


@pytest.mark.parametrize("where", EMPTY)
def test_a_filter_that_asks_nothing_is_empty(where):
    assert is_empty(where)
    assert compile_filter(where) == Condition("(1)", ())
    assert holds(where, memory())


@pytest.mark.parametrize(
    "where", [{"a": 1}, {"$not": {}}, {"a": {"$in": []}}, {"$and": [{}, {"a": None}]}, {"tags": {"$exists": False}}]
)
def test_a_filter_that_asks_something_is_not_empty(where):
    assert not is_empty(where)


def test_is_empty_refuses_what_is_no_filter():
    with pytest.raises(FilterError):
        is_empty({"$and": []})


# -- malformed filters -------------------------------------------------------------------------------------------------

SECRET = "hush-4711"
NAIVE = datetime(2024, 4, 7, 11)


class Odd:
    def __repr__(self) -> str:
        return SECRET


def malformed() -> Iterator[tuple[Any, str]]:
    for where in (None, [], SECRET, 4711, [("a", 1)], Odd()):
        yield where, ""
    for key in (1, None, b"a", ("a",), "a\0", "\ud800", "k" * 1001):
        yield {key: SECRET}, ""
        yield {"$and": [{}, {key: SECRET}]}, "$and[1]"
        yield {"a": {key: SECRET}}, "a"
    for key in ("$eq", "$gt", "$nor", "$", "$AND", "$contains"):
        yield {key: SECRET}, key
    for key in ("$and", "$or"):
        for value in ([], (), None, {}, SECRET, {"a": SECRET}, {SECRET}):
            yield {key: value}, key
        yield {key: [{"a": 1}, SECRET]}, f"{key}[1]"
        yield {key: [{}] * 1001}, key
    for value in (None, [], SECRET, 1, [{}]):
        yield {"$not": value}, "$not"
        yield {"importance": {"$not": value}}, "importance.$not"
    yield {"$or": [{"$not": {"$and": [{"category": 4711}]}}]}, "$or[0].$not.$and[0].category"
    yield {"$and": [{}, {"importance": {"$gt": SECRET}}]}, "$and[1].importance.$gt"
    yield from malformed_operators()
    yield from malformed_columns()
    yield from malformed_values()


def malformed_operators() -> Iterator[tuple[Any, str]]:
    for field in ("category", "importance", "occurred_at", "tags", "source", "metadata.a"):
        for key in ("$regex", "$", "$GT", "$and", "$or"):
            yield {field: {key: SECRET}}, f"{field}.{key}"
        yield {field: {}}, field
        yield {field: {"$not": {}}}, f"{field}.$not"
        yield {field: {SECRET: SECRET}}, field
        yield {field: {"$exists": True, SECRET: 1}}, field
        for value in (None, 1, 0, "true", []):
            yield {field: {"$exists": value}}, f"{field}.$exists"
        for name in ("$in", "$nin"):
            for value in (None, SECRET, 4711, {}, {SECRET}, iter([SECRET])):
                yield {field: {name: value}}, f"{field}.{name}"
            yield {field: {name: [None] * 1001}}, f"{field}.{name}"
    for value in (SECRET, None, {"a": SECRET}, {"$eq": {"a": SECRET}}):
        yield {"metadata": value}, "metadata"


def malformed_columns() -> Iterator[tuple[Any, str]]:
    for field in ("category", "role", "speaker", "status"):
        for value in (4711, 4711.5, True, [SECRET], NAIVE, NOON, b"4711", Odd()):
            yield {field: value}, field
            yield {field: {"$ne": value}}, f"{field}.$ne"
            yield {field: {"$in": ["a", value]}}, f"{field}.$in[1]"
            yield {field: {"$lt": value}}, f"{field}.$lt"
            yield {field: {"$contains": value}}, f"{field}.$contains"
        yield {field: {"$eq": {"a": SECRET}}}, f"{field}.$eq"
        yield {field: {"$gt": None}}, f"{field}.$gt"
        yield {field: {"$contains": None}}, f"{field}.$contains"
    for value in (
        SECRET,
        None,
        True,
        [4711],
        NOON,
        Odd(),
        4711 * 10**40,
        2**63,
        -(2**63) - 1,
        float("nan"),
        float("inf"),
        -float("inf"),
    ):
        yield {"importance": value}, "importance"
        yield {"importance": {"$gte": value}}, "importance.$gte"
        yield {"importance": {"$nin": [0.5, value]}}, "importance.$nin[1]"
    for value in (SECRET, None, True, 4711, [NOON], NAIVE, date(2024, 4, 7), "2024-01-01", "2024-01-01T00:00:00", ""):
        yield {"occurred_at": value}, "occurred_at"
        yield {"occurred_at": {"$lt": value}}, "occurred_at.$lt"
        yield {"occurred_at": {"$in": [NOON, value]}}, "occurred_at.$in[1]"
    for field in ("importance", "occurred_at"):
        yield {field: {"$contains": SECRET}}, f"{field}.$contains"
    for value in (4711, True, NOON, b"4711"):
        yield {"tags": value}, "tags"
        yield {"tags": [SECRET, value]}, "tags[1]"
        yield {"tags": {"$contains": value}}, "tags.$contains"
        yield {"tags": {"$in": [SECRET, value]}}, "tags.$in[1]"
    yield {"tags": {"$eq": {"a": SECRET}}}, "tags.$eq"
    yield {"tags": {"$contains": None}}, "tags.$contains"
    yield {"tags": {"$contains": [SECRET]}}, "tags.$contains"
    for name in ("$gt", "$gte", "$lt", "$lte"):
        yield {"tags": {name: SECRET}}, f"tags.{name}"


def malformed_values() -> Iterator[tuple[Any, str]]:
    for value in (f"{SECRET}\0", f"{SECRET}\ud800", "\udfff"):
        for field in ("category", "tags", "source"):
            yield {field: value}, field
            yield {field: {"$in": ["a", value]}}, f"{field}.$in[1]"
            yield {field: {"$contains": value}}, f"{field}.$contains"
        yield {"a": {"$eq": {value: 1}}}, "a.$eq"
        yield {"a": {"$eq": {SECRET: [value]}}}, "a.$eq"
    for value in (
        Odd(),
        b"4711",
        {4711},
        NAIVE,
        date(2024, 4, 7),
        4711j,
        2**63,
        -(2**63) - 1,
        float("nan"),
        float("inf"),
        range(3),
    ):
        yield {"a": value}, "a"
        yield {"a": [1, value]}, "a"
        yield {"a": {"$in": [SECRET, value]}}, "a.$in[1]"
        yield {"a": {"$eq": {SECRET: value}}}, "a.$eq"
        yield {"a": {"$contains": value}}, "a.$contains"
        yield {"a": {"$gt": value}}, "a.$gt"
    for value in (None, True, [4711], {"a": SECRET}):
        yield {"a": {"$lt": value}}, "a.$lt"
    yield {"a": [NOON]}, "a"
    yield {"a": {"$eq": {1: SECRET}}}, "a.$eq"
    yield {"a": {"$eq": [0] * 1001}}, "a.$eq"
    yield {"a": {"$contains": dict.fromkeys(map(str, range(1001)))}}, "a.$contains"


@pytest.mark.parametrize(("where", "path"), [*malformed()], ids=lambda value: "")
def test_a_malformed_filter_is_refused_with_the_way_to_the_fault(where, path):
    with pytest.raises(FilterError) as caught:
        compile_filter(where)

    message = str(caught.value)
    assert caught.value.path == path
    assert caught.value.argument == "where"
    assert isinstance(caught.value, InvalidQuery)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    assert "4711" not in message
    message.encode()


def test_an_unknown_operator_is_told_the_known_ones():
    with pytest.raises(FilterError, match=r"\$eq, \$gt, \$gte, \$lt, \$lte, \$in, \$exists, \$contains, \$ne, \$nin, \$not"):
        compile_filter({"importance": {"$above": 1}})
    with pytest.raises(FilterError, match=r"\$and, \$or, \$not"):
        compile_filter({"$nor": []})


# -- bounds ------------------------------------------------------------------------------------------------------------


def nested(depth: int, wrap: Any, inner: Any) -> Any:
    for _ in range(depth):
        inner = wrap(inner)
    return inner


WRAPS = {
    "$not": lambda inner: {"$not": inner},
    "$and": lambda inner: {"$and": [inner]},
    "$or": lambda inner: {"category": "x", "$or": [{"a": 1}, inner]},
    "$or $and": lambda inner: {"$or": [{"a": 1}, {"b": 1}, {"$not": {"$and": [{"c": 1}, inner]}}]},
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_ten_thousand_levels_are_refused_and_not_tried(wrap):
    with pytest.raises(FilterError, match="32 levels"):
        compile_filter(nested(10_000, wrap, {"a": 1}))


def test_ten_thousand_levels_inside_a_field_or_a_value_are_refused():
    for where in (
        {"a": nested(10_000, WRAPS["$not"], {"$eq": 1})},
        {"a": {"$eq": nested(10_000, lambda inner: [inner], 1)}},
        {"a": {"$contains": nested(10_000, lambda inner: {"x": inner}, 1)}},
    ):
        with pytest.raises(FilterError, match="32 levels") as caught:
            compile_filter(where)
        assert caught.value.path.startswith("a.$")


def test_a_filter_that_contains_itself_is_refused():
    where: dict[str, Any] = {}
    where["$and"] = [where, where]
    value: list[Any] = []
    value += [value, value]

    for endless in (where, {"a": value}, {"a": {"$in": [value]}}):
        with pytest.raises(FilterError):
            compile_filter(endless)


def test_values_shared_over_and_over_are_counted_each_time():
    value: list[Any] = [1] * 1000
    for _ in range(5):
        value = [value] * 1000

    with pytest.raises(FilterError, match="20000 values"):
        compile_filter({"a": {"$eq": value}})


def test_the_depth_is_bounded_at_32():
    assert holds(nested(31, WRAPS["$and"], {"a": 1}), about(a=1))
    assert holds({"a": nested(31, WRAPS["$not"], {"$ne": 1})}, about(a=1))
    assert holds({"a": nested(31, lambda inner: [inner], 1)}, about(a=nested(31, lambda inner: [inner], 1)))
    for where in (
        nested(32, WRAPS["$and"], {"a": 1}),
        {"a": nested(32, WRAPS["$not"], {"$ne": 1})},
        {"a": nested(32, lambda inner: [inner], 1)},
    ):
        with pytest.raises(FilterError, match="32 levels"):
            compile_filter(where)


LEAVES = [
    lambda i: {"category": {"$nin": [None, f"x{i}"]}},
    lambda i: {f"a{i}": {"$ne": NOON}},
    lambda i: {"tags": {"$ne": f"x{i}"}},
    lambda i: {f"a{i}": {"$not": {"$gt": 1}}},
]


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("word", ["$and", "$or"])
def test_the_number_of_conditions_is_bounded_at_500(word, leaf):
    assert holds({word: [leaf(i) for i in range(500)]}, memory(category="y"))
    with pytest.raises(FilterError, match="more than 500 conditions"):
        compile_filter({word: [leaf(i) for i in range(501)]})


def test_empty_filters_count_too():
    with pytest.raises(FilterError, match="more than 500 conditions"):
        compile_filter({"$and": [{"$or": [{}] * 100}] * 6})


def test_lists_are_bounded_at_1000_values_and_all_of_them_at_20000():
    thousand = [f"v{i}" for i in range(1000)]

    for field in ("category", "tags", "source"):
        where = {"$and": [{field: {"$in": [*thousand[1:], f"w{i}"]}} for i in range(20)]}
        assert holds(where, memory(category="v1", tags=["v1"], metadata={"source": "v1"}))
        with pytest.raises(FilterError, match="more than 20000 values"):
            compile_filter({"$and": [where, {field: "x"}]})


def bushy(leaves: int, depth: int, leaf: Any) -> dict[str, Any]:
    """A filter with an AND and an OR on every level that first grows deep and then as wide on its left as on its right.

    Of all shapes this takes the most of the parser's stack.
    """
    if depth == 1 or leaves < 3:
        return leaf(leaves)
    half = leaves // 2 if leaves > 2 ** (depth // 2) else 1
    return {"$or": [bushy(half, depth - 1, leaf), bushy(leaves - half - 1, depth - 1, leaf)], "role": None}


@pytest.mark.parametrize("leaf", LEAVES)
@pytest.mark.parametrize("leaves", [40, 70, 100, 200, 500])
def test_sqlite_takes_the_largest_and_deepest_filters(leaves, leaf):
    assert runs_inside_a_query(bushy(leaves, 31, leaf))


@pytest.mark.parametrize(("name", "depth"), [("$not", 31), ("$and", 31), ("$or", 31), ("$or $and", 10)])
def test_sqlite_takes_chains_of_the_greatest_depth(name, depth):
    assert runs_inside_a_query(nested(depth, WRAPS[name], {"a": {"$ne": 1}}))
    with pytest.raises(FilterError, match="32 levels"):
        compile_filter(nested(depth + 1, WRAPS[name], {"a": {"$ne": 1}}))


def runs_inside_a_query(where: Any) -> bool:
    """Whether SQLite takes the condition behind another one, inside a subquery and more parentheses than views use."""
    condition = compile_filter(where)
    inner = "(" * 10 + condition.sql + ")" * 10
    query = f"SELECT row FROM memories WHERE row IN (SELECT row FROM memories WHERE (importance >= 0) AND {inner})"
    with closing(connected([memory()])) as connection:
        connection.execute(query, condition.values).fetchall()
    return True


def test_the_bounds_leave_the_caller_room_for_variables():
    assert filters.VALUES_MAX + 2 * filters.LEAVES_MAX < 32_766 - 1000
