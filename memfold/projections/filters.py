r"""The `where` of `find`, `recall` and `forget_where`: a filter in the manner of MongoDB, compiled to an SQLite condition.

    {"category": "fact", "importance": {"$gte": 0.5}, "$or": [{"tags": "tea"}, {"source": {"$in": ["chat", "mail"]}}]}

**Fields** are `category`, `role`, `speaker`, `status`, `tags`, `importance` and `occurred_at`. Everything else is a key of
the metadata: `"source"` or `"metadata.source"`, and `"metadata.a.b"` for the `b` inside the object `a`. Dots do not lead
into arrays. Before a dot that belongs to the key stands a backslash, and so before a backslash that stands before a dot
or another backslash: `r"metadata.a\.b"`.

**Operators** are `$eq $ne $gt $gte $lt $lte $in $nin $exists $contains $not` inside a field and `$and $or $not` around
filters. Several fields, or several operators of one field, must all hold; a bare value means `$eq`. `$ne`, `$nin` and
`$not` are the exact opposites of what they deny, so they hold for a memory without the field. None equals a missing
value; a metadata key that holds null is there for `$exists`, and null for `$eq`.

**Arrays** (tags, and arrays in the metadata) match when one of their elements does; `$eq` also takes a list that equals
the whole array. `$contains` asks an array for an element and a string for a part, minding case. No tags is a missing field.

**Kinds** do not mix: numbers compare with numbers, strings with strings by code point, booleans with booleans, and an
aware `datetime` with `occurred_at` or with metadata strings that are ISO 8601 with an offset. Objects and arrays are equal
as JSON, whatever the order of keys.

Every leaf is true or false, never NULL, so that a NOT cannot lose rows. All that a caller wrote, keys too, is bound. Keys
and numbers inside JSON are compared by the functions in `FUNCTIONS`, not by SQLite: its JSON paths cannot name every key
(a quote ends the label, escapes are compared as written), and it does not promise to read a float to the last bit.
"""

import operator
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain
from math import isfinite
from typing import Any, NamedTuple, Protocol

import msgspec

from memfold.errors import FilterError

DEPTH_MAX = 32
LEAVES_MAX = 500
LIST_MAX = 1000
# All values of a filter together: each may be a bound variable, of which SQLite has 32766; the rest is for the caller.
VALUES_MAX = 20_000
# A key stands in error messages and is walked for every row.
KEY_CHARACTERS_MAX = 1000

Bound = str | int | float


class Condition(NamedTuple):
    """An SQL expression in parentheses that is 1 or 0 for every row of `memories`, and the values of its `?` in order."""

    sql: str
    values: tuple[Bound, ...]

    def __repr__(self) -> str:
        return f"Condition({self.sql!r}, {len(self.values)} values)"


ALL = Condition("(1)", ())
"""What an empty filter compiles to."""


def compile_filter(where: Mapping[str, Any]) -> Condition:
    """Return the condition that holds for exactly the memories `where` describes. An empty filter holds for all.

    The connection that runs it must know `FUNCTIONS`.

    Raises:
        FilterError: the filter is malformed or too large; `path` leads there, and no value is in the message.
    """
    part = _compiled(where)
    return Condition(f"({part.sql})", part.values)


def is_empty(where: Mapping[str, Any]) -> bool:
    """Say whether `where` asks nothing of a memory: `{}`, and what comes down to it, such as `{"source": {"$nin": []}}`.

    Whoever destroys by filter asks this first. A filter that asks something every memory happens to answer is not empty.

    Raises:
        FilterError: as `compile_filter`.
    """
    return _compiled(where) == _TRUE


def as_time(value: object) -> int | None:
    """Microseconds since 1970 (UTC) of an ISO 8601 string with an offset; None for anything else."""
    if not isinstance(value, str):
        return None
    try:
        return _microseconds(datetime.fromisoformat(value))
    except ValueError:
        return None


def has(document: str, path: str) -> bool:
    """SQL: is there a value, be it null, at `path` (a JSON array of keys) in the JSON `document`?"""
    return _found(document, path) is not msgspec.UNSET


def texts(document: str, path: str, times: int) -> str:
    """SQL: a JSON array of everything the value at `path` may equal, as `_canonical` writes it: itself and its elements.

    A missing value is null. With `times`, strings that are a time appear as that too. The comparison itself is left to
    SQLite's IN, which looks a value up in a tree instead of reading a thousand operands for each row.
    """
    return _encode(_texts(_candidates(document, path), bool(times))).decode()


def compares(document: str, path: str, name: str, operand: str) -> bool:
    """SQL: does the value at `path`, or an element of it, stand in the order `name` to `operand`, being of its kind?"""
    candidates: Iterable[object] = _candidates(document, path)
    if operand.startswith(_TIME_MARK):
        candidates = map(as_time, candidates)
    limit = _decode(operand.removeprefix(_TIME_MARK))
    ordered = _ORDERS[name]
    return any(_same_kind(candidate, limit) and ordered(candidate, limit) for candidate in candidates)


def contains(document: str, path: str, operand: str) -> bool:
    """SQL: is `operand` an element of the array at `path`, or a part of the string there?"""
    found = _found(document, path)
    if isinstance(found, list):
        return operand in _texts(found, operand.startswith(_TIME_MARK))
    return isinstance(found, str) and operand.startswith('"') and _decode(operand) in found


FUNCTIONS: tuple[tuple[str, int, Callable[..., str | bool]], ...] = (
    ("memfold_has", 2, has),
    ("memfold_texts", 3, texts),
    ("memfold_compares", 4, compares),
    ("memfold_contains", 3, contains),
)
"""Name, number of arguments and callable, for `connection.create_function(…, deterministic=True)`."""


class _Place(NamedTuple):
    """A place in the filter: what a fault is reported with, and what has been counted so far in the whole filter."""

    path: str
    depth: int
    counts: Counter[str]

    def key(self, name: str) -> "_Place":
        return self._replace(path=f"{self.path}.{name}" if self.path else name)

    def item(self, index: int) -> "_Place":
        return self._replace(path=f"{self.path}[{index}]")

    def inside(self) -> "_Place":
        if self.depth >= DEPTH_MAX:
            raise self.fault(f"is nested more than {DEPTH_MAX} levels deep")
        return self._replace(depth=self.depth + 1)

    def tally(self, what: str, maximum: int) -> None:
        self.counts[what] += 1
        if self.counts[what] > maximum:
            raise self.fault(f"the filter has more than {maximum} {what}")

    def fault(self, problem: str) -> FilterError:
        return FilterError(self.path, problem)


class _Part(NamedTuple):
    """A piece of SQL. `height` is how much of SQLite's parser stack its parentheses take; `either` marks a bare OR."""

    sql: str
    values: tuple[Bound, ...] = ()
    height: int = 0
    either: bool = False


_TRUE = _Part("1")
_FALSE = _Part("0")
_Operand = tuple[object, _Place]


class _Field(Protocol):
    """What can be asked of a field. Operands come unchecked, with their place."""

    def one_of(self, operands: Sequence[_Operand]) -> _Part: ...
    def compares(self, name: str, operand: object, at: _Place) -> _Part: ...
    def contains(self, operand: object, at: _Place) -> _Part: ...
    def exists(self) -> _Part: ...


def _compiled(where: object) -> _Part:
    return _filter(where, _Place("", 0, Counter()), wanted=True)


# A denial is carried down to the leaves (`wanted`) instead of being written as NOT (…): SQLite's parser has a stack of 100,
# and 19 nested denials overflow it.
def _filter(where: object, at: _Place, *, wanted: bool) -> _Part:
    inner = at.inside()
    clauses = [_clause(key, value, inner, wanted=wanted) for key, value in _items(where, inner)]
    if not clauses:
        at.tally("conditions", LEAVES_MAX)
    return _joined(clauses, every=wanted)


def _clause(key: str, value: object, parent: _Place, *, wanted: bool) -> _Part:
    at = parent.key(key)
    if key == "$not":
        return _filter(value, at, wanted=not wanted)
    if key in ("$and", "$or"):
        parts = [_filter(item, place, wanted=wanted) for item, place in _filters(value, at)]
        return _joined(parts, every=wanted == (key == "$and"))
    if key.startswith("$"):
        raise at.fault("is no operator around filters; these are $and, $or, $not")
    return _asked(_field(key, at), value, at, wanted=wanted)


def _filters(value: object, at: _Place) -> list[_Operand]:
    items = _listed(value, at)
    if not items:
        raise at.fault("takes at least one filter")
    return items


def _asked(field: _Field, value: object, at: _Place, *, wanted: bool) -> _Part:
    if isinstance(value, Mapping):
        return _operators(field, value, at, wanted=wanted)
    return _leaf(field, "$eq", value, at, wanted=wanted)


def _operators(field: _Field, value: object, at: _Place, *, wanted: bool) -> _Part:
    operators = _items(value, at)
    if not operators:
        raise at.fault("takes a value or an operator, not an empty object")
    if not all(name.startswith("$") for name, _ in operators):
        # Which keys these are is not said: they are most likely part of a value.
        raise at.fault('takes no object as it is: name its keys with dots ("a.b"), or compare all of it with $eq')
    parts = [_operator(field, name, operand, at.key(name), wanted=wanted) for name, operand in operators]
    return _joined(parts, every=wanted)


def _operator(field: _Field, name: str, operand: object, at: _Place, *, wanted: bool) -> _Part:
    if name == "$not":
        return _operators(field, operand, at.inside(), wanted=not wanted)
    if name in _DENIALS:
        return _leaf(field, _DENIALS[name], operand, at, wanted=not wanted)
    if name in _OPERATORS:
        return _leaf(field, name, operand, at, wanted=wanted)
    known = ", ".join((*_OPERATORS, *_DENIALS, "$not"))
    raise at.fault(f"is no operator of a field; these are {known}")


def _leaf(field: _Field, name: str, operand: object, at: _Place, *, wanted: bool) -> _Part:
    at.tally("conditions", LEAVES_MAX)
    part = _OPERATORS[name](field, name, operand, at)
    return part if wanted else _denied(part)


def _equals(field: _Field, _: str, operand: object, at: _Place) -> _Part:
    return field.one_of([(operand, at)])


def _in(field: _Field, _: str, operand: object, at: _Place) -> _Part:
    operands = _listed(operand, at)
    return field.one_of(operands) if operands else _FALSE


def _compares(field: _Field, name: str, operand: object, at: _Place) -> _Part:
    return field.compares(name, operand, at)


def _contains(field: _Field, _: str, operand: object, at: _Place) -> _Part:
    return field.contains(operand, at)


def _exists(field: _Field, _: str, operand: object, at: _Place) -> _Part:
    if not isinstance(operand, bool):
        raise at.fault(f"takes True or False, not {_type(operand)}")
    return field.exists() if operand else _denied(field.exists())


_ORDERS: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}
_OPERATORS: dict[str, Callable[[_Field, str, object, _Place], _Part]] = {
    "$eq": _equals,
    **dict.fromkeys(_ORDERS, _compares),
    "$in": _in,
    "$exists": _exists,
    "$contains": _contains,
}
_DENIALS = {"$ne": "$eq", "$nin": "$in"}


def _denied(part: _Part) -> _Part:
    """The opposite of a leaf, which is never NULL."""
    if part in (_TRUE, _FALSE):
        return _FALSE if part == _TRUE else _TRUE
    return part._replace(sql=f"NOT {part.sql}")


def _joined(parts: Iterable[_Part], *, every: bool) -> _Part:
    """`parts` with AND (`every`) or OR between them, without those that make no difference."""
    neutral, decisive = (_TRUE, _FALSE) if every else (_FALSE, _TRUE)
    # The deepest first: an open parenthesis at the beginning leaves the least on the parser's stack. Among equals,
    # columns go before JSON, which costs ten times as much to ask.
    rest = sorted({part: None for part in parts if part != neutral}, key=lambda part: (-part.height, "memfold_" in part.sql))
    if decisive in rest:
        return decisive
    if len(rest) < 2:
        return rest[0] if rest else neutral
    return _chain([_closed(part) for part in rest] if every else rest, every=every)


def _closed(part: _Part) -> _Part:
    """`part` as it may stand beside an AND."""
    return _Part(f"({part.sql})", part.values, part.height + 1) if part.either else part


def _chain(parts: Sequence[_Part], *, every: bool) -> _Part:
    sql = (" AND " if every else " OR ").join(part.sql for part in parts)
    values = tuple(chain.from_iterable(part.values for part in parts))
    height = max(parts[0].height, 2 + max(part.height for part in parts[1:]))
    return _Part(sql, values, height, either=not every)


class _Column(NamedTuple):
    """A plain column. `bound` checks an operand and turns it into what SQLite compares, None for NULL."""

    name: str
    bound: Callable[[object, _Place], Bound | None]
    is_text: bool = False

    def one_of(self, operands: Sequence[_Operand]) -> _Part:
        bound = [self.bound(operand, at) for operand, at in operands]
        known = tuple(value for value in bound if value is not None)
        if not known:
            return _Part(f"{self.name} IS NULL")
        return _Part(f"coalesce({self.name} IN ({_marks(known)}), {int(len(known) < len(bound))})", known)

    def compares(self, name: str, operand: object, at: _Place) -> _Part:
        bound = self.bound(operand, at)
        if bound is None:
            raise at.fault("takes a string, not None")
        return _Part(f"coalesce({self.name} {_SYMBOLS[name]} ?, 0)", (bound,))

    def contains(self, operand: object, at: _Place) -> _Part:
        if not self.is_text:
            raise at.fault("asks for a part of a text, which this field is not")
        return _Part(f"coalesce(instr({self.name}, ?) > 0, 0)", (_string(operand, at),))

    def exists(self) -> _Part:
        return _Part(f"{self.name} IS NOT NULL")


class _Tags:
    """The tags: a JSON array of strings, where the empty one counts as missing."""

    def one_of(self, operands: Sequence[_Operand]) -> _Part:
        return _one_of("tags", (), [self._wanted(operand, at) for operand, at in operands])

    def compares(self, name: str, operand: object, at: _Place) -> _Part:  # noqa: ARG002
        raise at.fault("tags have no order; ask them $eq, $ne, $in, $nin, $contains or $exists")

    def contains(self, operand: object, at: _Place) -> _Part:
        return _one_of("tags", (), [_canonical(_string(operand, at))])

    def exists(self) -> _Part:
        return _denied(_one_of("tags", (), [_canonical([])]))

    def _wanted(self, operand: object, at: _Place) -> str:
        if isinstance(operand, list | tuple):
            return _canonical([_string(item, place) for item, place in _listed(operand, at)])
        return _canonical([] if operand is None else _string(operand, at))


class _Metadata(NamedTuple):
    """The metadata at `path`."""

    path: tuple[str, ...]

    def one_of(self, operands: Sequence[_Operand]) -> _Part:
        return _one_of("metadata", self.path, [_operand_text(operand, at) for operand, at in operands])

    def compares(self, name: str, operand: object, at: _Place) -> _Part:
        if isinstance(operand, bool) or not isinstance(operand, int | float | str | datetime):
            raise at.fault(f"takes a number, a string or a datetime, not {_type(operand)}")
        return self._asks("compares", name, _operand_text(operand, at))

    def contains(self, operand: object, at: _Place) -> _Part:
        return self._asks("contains", _operand_text(operand, at))

    def exists(self) -> _Part:
        return self._asks("has")

    def _asks(self, function: str, *values: str) -> _Part:
        bound = (_canonical(list(self.path)), *values)
        return _Part(f"memfold_{function}(metadata, {_marks(bound)})", bound)


def _one_of(column: str, path: tuple[str, ...], wanted: list[str]) -> _Part:
    times = int(any(text.startswith(_TIME_MARK) for text in wanted))
    found = f"json_each(memfold_texts({column}, ?, {times}))"
    values = (_canonical(list(path)), *wanted)
    return _Part(f"EXISTS (SELECT 1 FROM {found} WHERE value IN ({_marks(wanted)}))", values)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))


_SYMBOLS = {"$gt": ">", "$gte": ">=", "$lt": "<", "$lte": "<="}


def _field(key: str, at: _Place) -> _Field:
    if key in _FIELDS:
        return _FIELDS[key]
    path = _names(key)
    if path[0] == "metadata":
        path = path[1:]
    if not path:
        raise at.fault('needs a key behind it, as in "metadata.source"')
    return _Metadata(path)


def _names(key: str) -> tuple[str, ...]:
    """The names between the dots of `key`."""
    names = [""]
    for piece in _PIECE.findall(key):
        if piece == ".":
            names.append("")
        else:
            names[-1] += piece[-1]
    return tuple(names)


_PIECE = re.compile(r"\\[\\.]|.", re.DOTALL)


def _items(value: object, at: _Place) -> list[tuple[str, object]]:
    """The entries of an object whose keys are fit to stand in a path."""
    if not isinstance(value, Mapping):
        raise at.fault(f"takes an object, not {_type(value)}")
    for key in value:
        if not isinstance(key, str):
            raise at.fault(f"has a key that is no string, but {_type(key)}")
        if len(key) > KEY_CHARACTERS_MAX:
            raise at.fault(f"has a key of more than {KEY_CHARACTERS_MAX} characters")
        if _UNSTORABLE.search(key):
            raise at.fault("has a key with a NUL or a lone surrogate")
    return list(value.items())


def _listed(value: object, at: _Place) -> list[_Operand]:
    if not isinstance(value, list | tuple):
        raise at.fault(f"takes a list, not {_type(value)}")
    if len(value) > LIST_MAX:
        raise at.fault(f"takes at most {LIST_MAX} values")
    return [(item, at.item(index)) for index, item in enumerate(value)]


def _text(value: object, at: _Place) -> str | None:
    if value is not None and not isinstance(value, str):
        raise at.fault(f"takes a string or None, not {_type(value)}")
    return None if value is None else _string(value, at)


def _string(value: object, at: _Place) -> str:
    at.tally("values", VALUES_MAX)
    if not isinstance(value, str):
        raise at.fault(f"takes a string, not {_type(value)}")
    if _UNSTORABLE.search(value):
        raise at.fault("takes no string with a NUL or a lone surrogate")
    return str.__str__(value)


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def _number(value: object, at: _Place) -> int | float:
    at.tally("values", VALUES_MAX)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise at.fault(f"takes a number, not {_type(value)}")
    if isinstance(value, float):
        if not isfinite(value):
            raise at.fault("takes no infinity and no NaN")
        return float(value)
    if not -(2**63) <= value < 2**63:
        raise at.fault("takes no integer beyond 64 bits")
    return int(value)


def _time(value: object, at: _Place) -> int:
    at.tally("values", VALUES_MAX)
    time = _microseconds(value) if isinstance(value, datetime) else as_time(value)
    if time is None:
        raise at.fault(
            f"takes a datetime with a time zone or an ISO 8601 string with an offset; this {_type(value)} is neither"
        )
    return time


_FIELDS: dict[str, _Field] = {
    "category": _Column("category", _text, is_text=True),
    "role": _Column("role", _text, is_text=True),
    "speaker": _Column("speaker", _text, is_text=True),
    "status": _Column("status", _text, is_text=True),
    "importance": _Column("importance", _number),
    "occurred_at": _Column("occurred_at", _time),
    "tags": _Tags(),
}


def _operand_text(value: object, at: _Place) -> str:
    """A value to be compared with metadata, as `texts` writes what it finds."""
    return _time_text(_time(value, at)) if isinstance(value, datetime) else _canonical(_json(value, at))


def _json(value: object, at: _Place) -> object:
    """A checked copy of a JSON value. Inside of it the path stays where it is: its keys are values."""
    if isinstance(value, Mapping):
        inner = _room_for(value, at)
        return {_string(key, inner): _json(item, inner) for key, item in value.items()}
    if isinstance(value, list | tuple):
        inner = _room_for(value, at)
        return [_json(item, inner) for item in value]
    if isinstance(value, str):
        return _string(value, at)
    if value is None or isinstance(value, bool):
        at.tally("values", VALUES_MAX)
        return value
    if isinstance(value, int | float):
        return _number(value, at)
    raise at.fault(f"takes no {_type(value)} here")


def _room_for(value: Mapping[Any, Any] | Sequence[Any], at: _Place) -> _Place:
    at.tally("values", VALUES_MAX)
    if len(value) > LIST_MAX:
        raise at.fault(f"takes at most {LIST_MAX} values")
    return at.inside()


def _type(value: object) -> str:
    return type(value).__name__


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# No JSON text begins like this.
_TIME_MARK = "@"


def _microseconds(time: datetime) -> int | None:
    # Subtracting is exact and safe up to both ends of the calendar, which astimezone() and timestamp() are not.
    return None if time.utcoffset() is None else (time - _EPOCH) // timedelta(microseconds=1)


def _time_text(time: int) -> str:
    return f"{_TIME_MARK}{time}"


_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder(order="deterministic").encode


def _canonical(value: object) -> str:
    """JSON in which equal values look alike: sorted keys, and whole numbers without a fraction, as in 1 for 1.0."""
    return _encode(_normal(value, DEPTH_MAX)).decode()


def _normal(value: object, room: int) -> object:
    if isinstance(value, float):
        return int(value) if value.is_integer() else value
    if not isinstance(value, dict | list):
        return value
    if not room:
        # No operand has an array or object this deep, so any will do to differ from all of them.
        return []
    if isinstance(value, dict):
        return {key: _normal(item, room - 1) for key, item in value.items()}
    return [_normal(item, room - 1) for item in value]


def _found(document: str, path: str) -> Any:
    """The value at `path`, or UNSET."""
    found = _decode(document)
    for key in _decode(path):
        if not isinstance(found, dict) or key not in found:
            return msgspec.UNSET
        found = found[key]
    return found


def _candidates(document: str, path: str) -> list[Any]:
    """The value at `path`, None if missing, and its elements if it is an array."""
    found = _found(document, path)
    if isinstance(found, list):
        return [found, *found]
    return [None if found is msgspec.UNSET else found]


def _texts(candidates: Sequence[object], times: bool) -> list[str]:
    """Each candidate as `_canonical` writes it and, with `times`, as the time it may be."""
    found = [_canonical(candidate) for candidate in candidates]
    if times:
        found += [_time_text(time) for time in map(as_time, candidates) if time is not None]
    return found


def _same_kind(value: object, other: object) -> bool:
    return (_is_number(value) and _is_number(other)) or (isinstance(value, str) and isinstance(other, str))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
