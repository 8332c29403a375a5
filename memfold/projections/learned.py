"""The learned ranker: how well each candidate answers, as a weighted sum of `features`; its weights come from a text file.

    [meaning]            with the store's embedder
    bias -4.1
    covered 1.25
    …

`[static]` is for the static model answering alone, `[words]` for no vectors at all. What stands behind a # is a comment.
scripts/fit-ranking writes such a file; memfold comes with one, `weights.txt`.

The sum goes through the logistic function, so a score lies in (0, 1) and means the same for every query.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from memfold.errors import RankingFileError
from memfold.projections.features import WITH_MEANING, WITHOUT_MEANING
from memfold.projections.words import Floats

SHIPPED = Path(__file__).parent / "weights.txt"
BIAS = "bias"
SECTIONS = {"meaning": WITH_MEANING, "static": WITH_MEANING, "words": WITHOUT_MEANING}
PREFERENCE = 2.0  # what a preference of weight 1 adds to the sum


class Weights(NamedTuple):
    """The weights of one section: of each feature, in the order of the code, and what is added whatever is found."""

    bias: float
    of: dict[str, float]


class Learned(NamedTuple):
    """The score of every candidate, in (0, 1), and the parts of the sum that it comes from."""

    total: Floats
    bias: float
    parts: dict[str, Floats]

    def of(self, candidate: int) -> tuple[float, dict[str, float]]:
        """The score of a candidate, and the parts that add up to it.

        `usual` is what a row scores of which nothing is known; what the features add to that is shared out among them as they
        add to the sum, so a part can be below 0.
        """
        score, usual = float(self.total[candidate]), _logistic(self.bias)
        given = {name: float(part[candidate]) for name, part in self.parts.items()}
        added = math.fsum(given.values())
        slope = (score - usual) / added if abs(added) > 1e-6 else usual * (1 - usual)
        return score, {"usual": usual} | {name: value * slope for name, value in given.items()}


def score(weights: Weights, found: Mapping[str, Floats], preferred: Mapping[str, Floats] | None = None) -> Learned:
    """How likely each candidate answers. `preferred` are what preferences give it, by name: their weights times 0 to 1."""
    parts = {name: np.float32(weight) * found[name] for name, weight in weights.of.items()}
    parts |= {name: np.float32(PREFERENCE) * given for name, given in (preferred or {}).items()}
    logits = np.full(len(found["words"]), weights.bias, np.float32)
    for part in parts.values():
        logits += part
    total: Floats = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return Learned(total, weights.bias, parts)


@cache
def shipped() -> dict[str, Weights]:
    """The weights that come with memfold, by section."""
    return load(SHIPPED)


def load(path: Path) -> dict[str, Weights]:
    """The weights in a file, by section.

    Raises:
        RankingFileError: it cannot be read, or is not made for the features that this memfold knows.
    """
    try:
        return parse(path.read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RankingFileError(str(path), f"cannot be read ({type(error).__name__})") from error


def parse(text: str, path: str = "the text") -> dict[str, Weights]:
    """The weights in the text of such a file, by section; `path` is named in errors.

    Raises:
        RankingFileError: as `load`.
    """
    found: dict[str, dict[str, float]] = {}
    section: dict[str, float] | None = None
    for number, line in enumerate(text.splitlines(), 1):
        told = line.partition("#")[0].split()
        if len(told) == 1 and told[0].startswith("[") and told[0].endswith("]") and told[0][1:-1] not in found:
            section = found[told[0][1:-1]] = {}
        elif len(told) == 2 and section is not None and told[0] not in section and _is_number(told[1]):
            section[told[0]] = float(told[1])
        elif told:
            raise RankingFileError(path, f"line {number} is neither a new [section] nor a new name with a number")
    _check(path, "sections", found, SECTIONS)
    for name, features in SECTIONS.items():
        _check(path, f"names in [{name}]", found[name], (BIAS, *features))
    return {name: Weights(found[name][BIAS], {each: found[name][each] for each in SECTIONS[name]}) for name in SECTIONS}


def written(weights: Mapping[str, Weights], comments: Sequence[str]) -> str:
    """The text of a file of weights, with these lines of comment at its head."""
    lines = [f"# {line}".rstrip() for line in comments]
    for name, section in weights.items():
        lines += ["", f"[{name}]", f"{BIAS} {section.bias:.4f}"]
        lines += [f"{each} {weight:.4f}" for each, weight in section.of.items()]
    return "\n".join(lines) + "\n"


def _check(path: str, what: str, given: Mapping[str, object], known: Mapping[str, object] | Sequence[str]) -> None:
    missing, unknown = [name for name in known if name not in given], [name for name in given if name not in known]
    if missing or unknown:
        raise RankingFileError(path, f"does not have the {what} that this memfold knows", missing=missing, unknown=unknown)


def _is_number(word: str) -> bool:
    try:
        return math.isfinite(float(word))
    except ValueError:
        return False


def _logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value))
