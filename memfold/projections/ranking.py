"""From hits to recollections: one pure function that says how good each is.

A score must mean the same for every query, so it is not scaled by the best hit. BM25 weights have no upper end; they are
mapped to [0, 1) by w / (w + HALF), which keeps their order.
"""

from collections.abc import Iterable

from memfold.model import Recollection
from memfold.projections.view import Hit

HALF = 6.0  # the BM25 weight that scores 0.5: about what two rare words of a query bring in a conversation of 500 turns


def recollections(hits: Iterable[Hit], *, min_score: float) -> list[Recollection]:
    """Hits as recollections, in the same order, without those below `min_score`."""
    scored = ((hit, hit.words / (hit.words + HALF)) for hit in hits)
    return [Recollection(memory=hit.memory, score=score, parts={"words": score}) for hit, score in scored if score >= min_score]
