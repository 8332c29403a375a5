"""Any text as a full-text query: words joined by OR, and nothing else.

FTS5 has a query language; none of it reaches it from here. Every word is quoted, so that `NEAR`, `*`, `"` or a column
name are just text, and words are taken by the same rule as the tokenizer's (letters and digits).
"""

import re

TERMS_MAX = 64  # FTS5 scores every row that any word matches; a page of text as a query is told by its first words

_WORD = re.compile(r"[^\W_]+")

# Words that say nothing of what is looked for. A query of nothing else is searched as it stands.
STOP_WORDS = frozenset(
    _WORD.findall(
        """a about an and any are as at be been but by can could did do does for from had has have he her him
        his how i if in into is it its me my of on or our s she so t than that the their them then there these
        they this to us was we were what when where which who whom whose why will with would you your"""
    )
)


def match_expression(query: str) -> str:
    """The FTS5 expression for `query`: at most TERMS_MAX distinct words, in order; empty if it holds no word.

    English stop words are dropped, unless there is nothing else.
    """
    words = list(dict.fromkeys(word.lower() for word in _WORD.findall(query)))
    telling = [word for word in words if word not in STOP_WORDS] or words
    return " OR ".join(f'"{word}"' for word in telling[:TERMS_MAX])
