"""Counting tokens, and holding whoever counts them to it."""

from collections.abc import Callable, Sequence

from memfold.errors import SettingsError
from memfold.minilm import default_count_tokens

CountTokens = Callable[[str], int]
Count = Callable[[Sequence[str]], list[int]]  # the tokens of each text


class TokenCounter:
    """How many tokens texts have: by the given function, else by the tokenizer that comes with memfold.

    Raises:
        SettingsError: what was given cannot be called.
    """

    def __init__(self, count_tokens: CountTokens | None = None) -> None:
        if count_tokens is not None and not callable(count_tokens):
            problem = f"is {type(count_tokens).__name__}: give a function from a text to its number of tokens"
            raise SettingsError("count_tokens", problem)
        self._count_tokens = count_tokens

    def one(self, text: str) -> int:
        """The tokens of a text. Raises as what `for_one_text` returns."""
        return self.for_one_text()([text])[0]

    def for_one_text(self) -> Count:
        """A counter for one text in the making: its lines alone, and then together.

        With the default tokenizer no line is counted twice: the tokens of a text are those of its lines and breaks. It holds
        the lines as long as it lives. What it returns raises SettingsError if the given function raises, or returns no whole
        number of 0 or more; ModelFileError if the default tokenizer cannot be loaded.
        """
        given = self._count_tokens
        if given is not None:
            return lambda texts: [_checked(given, text) for text in texts]
        known: dict[str, int] = {}

        def count(texts: Sequence[str]) -> list[int]:
            lines = [text.split("\n") for text in texts]
            new = list({line for some in lines for line in some} - known.keys())
            known.update(zip(new, default_count_tokens().of_lines(new), strict=True))
            return [sum(known[line] for line in some) + len(some) - 1 for some in lines]

        return count


def _checked(count_tokens: CountTokens, text: str) -> int:
    try:
        tokens = count_tokens(text)
    except Exception as error:
        raise SettingsError("count_tokens", f"raised {type(error).__name__}: give a function that counts any text") from error
    if isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0:
        raise SettingsError("count_tokens", f"returned {type(tokens).__name__}: give a function that returns 0 or more")
    return tokens
