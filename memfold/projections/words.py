"""Any text as a full-text query: words joined by OR, and nothing else.

FTS5 has a query language; none of it reaches it from here. Every word is quoted, so that `NEAR`, `*`, `"` or a column
name are just text, and words are taken by the same rule as the tokenizer's (letters and digits).
"""

import re

TERMS_MAX = 64  # FTS5 scores every row that any word matches; a page of text as a query is told by its first words

_WORD = re.compile(r"[^\W_]+")


def match_expression(query: str) -> str:
    """The FTS5 expression for `query`: at most TERMS_MAX distinct words, in order; empty if it holds no word."""
    words = dict.fromkeys(word.lower() for word in _WORD.findall(query))
    return " OR ".join(f'"{word}"' for word in list(words)[:TERMS_MAX])
