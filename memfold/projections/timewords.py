"""The words of time: a text becomes one letter a token, its kind, and what the token is worth.

`times` looks for times in the string of letters: "on 8 May, 2023" reads `gnm,Y`, "on the third of July" `gdrOM`. The kinds:

| kind | tokens | worth |
|---|---|---|
| `I` `X` `J` | 2023-05-08; 05/08/2023; 2023-05 | its numbers |
| `Y` `E` `j` | 2023 or '23; 1990s; 90s | the year |
| `n` `c` | a number up to 999; "one" to "twelve", "couple", "few" | the number |
| `o` `r` | 3rd; "third" | the number |
| `M` `m` | a month; one that may also be a verb or a name (may, march, june) | 1 to 12 |
| `w` `v` | a weekday; short, so maybe another word (sun, sat) | 0 to 6 |
| `u` `k` `h` | day, week, month …; weekend; half | the unit, and how many |
| `p` `s` `H` | morning; summer; Christmas | its name |
| `q` | Q3 | the number |
| `R` | yesterday, today, tonight, tomorrow | days from now |
| `L` `P` `T` `N` | last; past; this; next | |
| `A` `B` `F` `S` `U` | ago; before; after; since; until | |
| `b` `f` `t` `&` | between; from; to, or a dash; and | |
| `e` | early, mid, late | 0, 1, 2 |
| `i` `g` `G` | in, during; on, at, over; for | |
| `d` `a` `D` `O` `z` | the; a; my; of; every | |
| `%` | what is counted in large numbers, as people in "2000 people" | |
| `,` `.` `x` | comma; other signs; any other word | |
"""

import re

TEXT_CHARS_MAX = 1000  # a page of text as a query is told by its first lines

Value = str | int | tuple[str | int, ...] | None

# A token of a named kind is what its group is named; any other is looked up.
_TOKEN = re.compile(
    r"""(?P<I>[0-9]{4}(?:-[0-9]{1,2}-[0-9]{1,2}|/[0-9]{1,2}/[0-9]{1,2}|\.[0-9]{1,2}\.[0-9]{1,2})(?![0-9]))
    |(?P<X>[0-9]{1,2}(?:-[0-9]{1,2}-|/[0-9]{1,2}/|\.[0-9]{1,2}\.)[0-9]{4}(?![0-9])|[0-9]{1,2}/[0-9]{1,2}/[0-9]{2}(?![0-9]))
    |(?P<J>[0-9]{4}-[0-9]{2}(?![0-9-]))
    |(?P<Y>(?:19|20)[0-9]{2}(?!\w)|['’][0-9]{2}(?!\w))
    |(?P<E>(?:19|20)[0-9]0s(?!\w))
    |(?P<j>[0-9]0s(?!\w))
    |(?P<o>[0-9]{1,2}(?:st|nd|rd|th)(?!\w))
    |(?P<n>[0-9]{1,3}(?!\w))
    |(?P<q>q[1-4](?!\w))
    |new\ year(?:['’]?s)?(?:\ (?:eve|day))?(?!\w)|christmas\ (?:eve|day)(?!\w)|valentine(?:['’]?s)?(?:\ day)?(?!\w)
    |independence\ day(?!\w)
    |(?:jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\.(?=\ ?[0-9])
    |[^\W_]+
    |[^\w\s'’]""",
    re.VERBOSE,
)
# The cheap look that ends the search in most queries: a digit, or the letters some word of time begins with.
_CUE = re.compile(
    r"[0-9]|\b(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun|yesterday|today|tonight|tomorrow"
    r"|last|past|previous|this|current|next|coming|ago\b|week|(?:summer|winter|spring|autumn|fall)\b"
    r"|christmas|xmas|new year|easter|thanksgiving|halloween|valentine|independence day)"
)

# In their order, each worth one more than the one before it.
_COUNTED = {
    "m": (1, "january february march april may june july august september october november december"),
    "w": (0, "monday tuesday wednesday thursday friday saturday sunday"),
    "v": (0, "mon tue wed thu fri sat sun"),
    "c": (1, "one two three four five six seven eight nine ten eleven twelve"),
    "r": (1, "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth"),
}
# "m", but never taken for anything else.
_UNMISTAKABLE = "february feb july september sept october oct november nov december"
_PLAIN = {
    "L": "last previous",
    "P": "past",
    "T": "this current",
    "N": "next coming",
    "A": "ago",
    "B": "before",
    "F": "after",
    "S": "since",
    "U": "until till by",
    "b": "between",
    "f": "from",
    "t": "to through - – —",
    "&": "and &",
    "i": "in during within throughout around",
    "g": "on at over",
    "G": "for",
    "d": "the",
    "a": "a an",
    "D": "my our his her their your",
    "O": "of",
    "z": "every each",
    "%": "people persons users dollars euros pounds miles km meters metres steps words times calories points percent items %",
    ",": ",",
}
_UNITS = "minute hour day week month quarter year decade"
_PARTS = "morning afternoon evening night"
_HOLIDAYS = "christmas easter thanksgiving halloween"
_OTHERS: dict[str, dict[str, Value]] = {
    "v": {"tues": 1, "thur": 3, "thurs": 3},
    "c": {"couple": 2, "few": 3, "several": 5},
    "k": {"weekend": ("weekend", 1), "weekends": ("weekend", 1)},
    "h": {"half": ("half", 1)},
    "u": {"nights": ("day", 1), "fortnight": ("week", 2), "fortnights": ("week", 2)},
    "s": {"spring": "spring", "summer": "summer", "autumn": "autumn", "fall": "autumn", "winter": "winter"},
    "R": {"yesterday": -1, "today": 0, "tonight": 0, "tomorrow": 1},
    "e": {"early": 0, "beginning": 0, "start": 0, "mid": 1, "middle": 1, "late": 2, "end": 2},
    "H": {
        "xmas": "christmas",
        "christmas day": "christmas",
        "christmas eve": "christmas eve",
        "independence day": "independence day",
    },
}


def _lexicon() -> dict[str, tuple[str, Value]]:
    words: dict[str, tuple[str, Value]] = {}
    for kind, (first, names) in _COUNTED.items():
        words |= {name: (kind, number) for number, name in enumerate(names.split(), first)}
    for name in _COUNTED["m"][1].split():
        words[name[:3]] = words[name]
    words["sept"] = words["sep"]
    words |= {name: ("M", words[name][1]) for name in _UNMISTAKABLE.split()}
    words |= {name + ".": worth for name, worth in words.items() if worth[0] in "mM"}
    words |= {name: (kind, None) for kind, names in _PLAIN.items() for name in names.split()}
    words |= {name + end: ("u", (name, 1)) for name in _UNITS.split() for end in ("", "s")}
    words |= {name: ("p", name) for name in _PARTS.split()}
    words |= {name: ("H", name) for name in _HOLIDAYS.split()}
    return words | {name: (kind, worth) for kind, table in _OTHERS.items() for name, worth in table.items()}


_LEXICON = _lexicon()
_WORD: tuple[str, Value] = ("x", None)
_SIGN: tuple[str, Value] = (".", None)


def read(text: str) -> tuple[str, list[Value]]:
    """The kinds of a text's tokens, a letter each, and what each is worth; ("", []) if it holds no word of time."""
    text = text[:TEXT_CHARS_MAX].lower()
    if _CUE.search(text) is None:
        return "", []
    found = [_token(match.lastgroup, match[0]) for match in _TOKEN.finditer(text)]
    return "".join([kind for kind, _ in found]), [worth for _, worth in found]


def _token(kind: str | None, token: str) -> tuple[str, Value]:
    if kind is not None:
        return kind, _number(kind, token)
    return _LEXICON.get(token) or (_other(token) if token[0].isalnum() else _SIGN)


def _number(kind: str, token: str) -> Value:
    """What a token of digits is worth."""
    if kind in "IXJ":
        return tuple(map(int, re.split("[-/.]", token))) + ((int("." in token),) if kind == "X" else ())
    digits = int(token.strip("'’stndrhq"))
    if (kind == "Y" and digits < 100) or kind == "j":
        return digits + (2000 if digits < (70 if kind == "Y" else 30) else 1900)
    return digits


def _other(token: str) -> tuple[str, Value]:
    """A word that is not in the list as it stands: the holidays that are written in many ways."""
    if token.startswith("new year"):
        return "H", "new year's eve" if token.endswith("eve") else "new year"
    return ("H", "valentine's day") if token.startswith("valentine") else _WORD
