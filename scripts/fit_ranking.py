"""Fit the weights of the learned ranker on conversations with questions whose answers are known, and write weights.txt.

Every question is asked of its own conversation as a recall asks it: all turns are ranked by the fixed mix, the best of them
become candidates, and the weights are those under which the turns that answer are likeliest to be drawn from the candidates
(conditional logit, with a penalty on large weights). Each conversation is used four times: as it is; cut into sentences, so
that the weights hold for short turns and for several of one speaker in a row; asked in words that nobody has said, so that they
do not lean on words alone; and a few turns of it only, so that they hold where little has been said. Then a scale and a bias
are set, so that scores mean the same for every query.

What is told of it is measured on conversations that were left out of the fit, one after the other. The conversations are
those of LoCoMo (Maharana et al. 2024, CC BY-NC 4.0), which are not shipped.
"""

import argparse
import json
import random
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memfold.embedding import Embedder
from memfold.minilm import MiniLMEmbedder, StaticEmbedder
from memfold.projections import features, learned, ranking
from memfold.projections.fold import text_of
from memfold.projections.learned import Weights
from memfold.projections.places import Places
from memfold.projections.search import Ranked, looked_at
from memfold.projections.times import fit, preferred
from memfold.projections.words import LookedUp, Words, asked_for, plain_words

ROOT = Path(__file__).parents[1]
DATA = ROOT.parent / "shared" / "data" / "locomo-dev.json"
CATEGORIES = (1, 2, 3, 4)  # the evidence of category 5 is a lure
CANDIDATES, CANDIDATES_FITTED = 100, 100
LEAST_PENALTY = 1e-6
PENALTY = 3e-3  # on the squares of the weights, of features scaled to a deviation of 1
BEST = features.WITHOUT_MEANING.index("best")
STEPS_MAX = 50
SMALL = 2, 12  # turns of a session that has just begun
STRANGE_EVERY = 6  # of the other conversations' questions, one in so many
SHARES = {True: 0.98, False: 0.02}  # how much the questions that have an answer count, and those that have none
DEPTHS = (5, 10, 20)

Array = NDArray[np.float64]


class Turn(NamedTuple):
    """Something said: the name of the turn it is of."""

    name: str
    speaker: str
    content: str
    at: datetime


class Asked(NamedTuple):
    """A question, and the names of the turns that answer it."""

    text: str
    answers: frozenset[str]


class Chat(NamedTuple):
    """A conversation and what is asked about it."""

    name: str
    turns: list[Turn]
    questions: list[Asked]


class Case(NamedTuple):
    """A question as the ranker sees it: the features of the candidates, a row each, which turn each is of, what is wanted."""

    chat: str
    table: NDArray[np.float32]
    turns: list[str]
    wanted: frozenset[str]
    of: str = ""


# --- conversations ------------------------------------------------------------------------------------------------------------


def chats(path: Path) -> list[Chat]:
    """The conversations in a file laid out as LoCoMo's."""
    found = []
    for sample in json.loads(path.read_text("utf-8")):
        turns = list(turns_of(sample["conversation"]))
        known = {turn.name for turn in turns}
        asked = [Asked(each["question"], answers(each, known)) for each in sample["qa"] if each["category"] in CATEGORIES]
        found.append(Chat(sample["sample_id"], turns, [each for each in asked if each.answers]))
    return found


def turns_of(conversation: dict[str, Any]) -> Iterator[Turn]:
    """The turns of a conversation, a second apart within each of its sessions."""
    for name, said in conversation.items():
        if re.fullmatch(r"session_\d+", name):
            begun = datetime.strptime(conversation[f"{name}_date_time"], "%I:%M %p on %d %B, %Y").replace(tzinfo=UTC)
            for number, turn in enumerate(said):
                caption = f" [shared image: {turn['blip_caption']}]" if turn.get("blip_caption") else ""
                yield Turn(turn["dia_id"], turn["speaker"], turn["text"] + caption, begun + timedelta(seconds=number))


def answers(question: dict[str, Any], known: set[str]) -> frozenset[str]:
    """The turns that answer a question; none if they do not exist."""
    return frozenset(set(re.findall(r"D\d+:\d+", " ".join(question["evidence"]))) & known)


def in_sentences(chat: Chat) -> Chat:
    """The same conversation with a turn for every sentence; any sentence of a turn that answers will do."""
    cut = re.compile(r"(?<=[.!?])\s+(?=[A-Z\[\"'])")
    turns = [turn._replace(content=each) for turn in chat.turns for each in cut.split(turn.content) if each.strip()]
    return chat._replace(turns=turns)


# --- what the ranker sees -----------------------------------------------------------------------------------------------------


class Index:
    """A conversation as a view holds it."""

    def __init__(self, chat: Chat, vectors: NDArray[np.float32] | None) -> None:
        self.chat = chat
        self.words, self.places = Words(), Places()
        texts = [text_of(turn.content, turn.speaker) for turn in chat.turns]
        for row, (turn, text) in enumerate(zip(chat.turns, texts, strict=True)):
            at = int(turn.at.timestamp() * 1e6) + row
            self.words.add(row, text)
            facts = bytes(features.text_facts(turn.content))
            self.places.take(row, session=0, position=row, speaker=turn.speaker, occurred_at=at, importance=0.5, facts=facts)
        self.words.settle()
        self.vectors = vectors

    def case(
        self,
        question: str,
        vector: NDArray[np.float32] | None,
        wanted: frozenset[str] = frozenset(),
        *,
        other_words: bool = False,
    ) -> Case:
        """What the ranker sees when a question is asked here, or asked in words that nobody has said."""
        rows = self.places.all()
        similarities = None if self.vectors is None or vector is None else self.vectors @ vector
        words = [f"unsaid {word}" for word in asked_for(question)] if other_words else asked_for(question)
        looked_up = self.words.look_up(words)
        spans = preferred(question, max(turn.at for turn in self.chat.turns), self.chat.turns[0].at, self.chat.turns[-1].at)
        occurred_at = self.places.occurred_at(rows.slots)
        evidence = ranking.Evidence(
            before=rows.before,
            after=rows.after,
            similarities=similarities,
            matches=self.words.weigh(looked_up, rows.slots, self.places.before(rows.slots)),
            named=self.places.named(plain_words(question), rows.slots),
            when=fit(spans, occurred_at) if spans else None,
            importance=np.zeros(0, np.float32),
            age_days=np.zeros(0, np.float32),
        )
        mix = ranking.score(evidence, ranking.Preferences())
        best = np.argsort(-mix.mixed, kind="stable")[:CANDIDATES]
        known = self._known(looked_up, Ranked(rows, evidence, mix, best))
        given = features.features(question, known)
        names = features.WITHOUT_MEANING if similarities is None else features.WITH_MEANING
        table = np.column_stack([given[name] for name in names])
        return Case(self.chat.name, table, [self.chat.turns[row].name for row in best], wanted)

    def _known(self, looked_up: LookedUp, ranked: Ranked) -> features.Known:
        echoes, usual, best = None, (0.0, 1.0), ranked.best
        if ranked.known.similarities is not None and self.vectors is not None:
            weights = features.echo_weights(ranked.mix.mixed[best])
            echoes = self.vectors[best] @ (weights @ self.vectors[best[: len(weights)]])
            usual = features.usual(ranked.known.similarities)
        return looked_at(ranked, self.places, self.words, looked_up, usual=usual, echoes=echoes)


# --- fitting ------------------------------------------------------------------------------------------------------------------


class Draws:
    """Cases laid end to end: how likely what is right is drawn from the candidates of each, or from none of them.

    None of them is right where nothing is wanted, and is the last row of each case: its features are 0, and so is the one that
    is 1 for all others, whose weight is the bias.
    """

    def __init__(self, cases: Sequence[Case], scale: Array) -> None:
        tables = [np.pad(case.table[:CANDIDATES_FITTED] / scale, ((0, 0), (0, 1)), constant_values=1) for case in cases]
        self.table = np.concatenate([np.pad(table, ((0, 1), (0, 0))) for table in tables])
        sizes = np.array([len(table) + 1 for table in tables])
        self.starts = np.cumsum(sizes) - sizes
        self.case = np.repeat(np.arange(len(cases)), sizes)
        share = {kind: each / sum(bool(case.wanted) == kind for case in cases) for kind, each in SHARES.items()}
        right: list[tuple[int, int, float]] = []  # a row, which of the answers it is one of, how much that counts
        self.shares = np.array([share[bool(case.wanted)] for case in cases])
        number = 0
        for start, case, each in zip(self.starts, cases, self.shares, strict=True):
            answers = rows_of(case)
            for rows in answers:
                right += [(start + row, number, each / len(answers)) for row in rows]
                number += 1
        self.rows, self.answer, self.weight = (np.array(each) for each in zip(*right, strict=True))
        self.firsts = np.concatenate([[0], np.flatnonzero(np.diff(self.answer)) + 1])

    def drawn(self, weights: Array) -> tuple[Array, Array, float]:
        """How likely each row is drawn, how likely each answer is, and the loss."""
        sums = self.table @ weights
        odds = np.exp(sums - np.maximum.reduceat(sums, self.starts)[self.case])
        likely = odds / np.add.reduceat(odds, self.starts)[self.case]
        answered = np.add.reduceat(likely[self.rows], self.firsts)
        loss = -float(np.sum(self.weight[self.firsts] * np.log(answered + 1e-300)))
        return likely, answered, loss + PENALTY / 2 * float(weights @ weights)

    def step(self, weights: Array, likely: Array, answered: Array) -> Array:
        """Newton's step, with the part of the curvature that cannot be negative (of several rows that answer, any will do)."""
        shared = likely * self.shares[self.case]
        slope = shared.copy()
        np.subtract.at(slope, self.rows, self.weight * likely[self.rows] / answered[self.answer])
        means = np.add.reduceat(self.table * likely[:, None], self.starts)
        curvature = (self.table * shared[:, None]).T @ self.table - (means * self.shares[:, None]).T @ means
        return np.linalg.solve(curvature + PENALTY * np.eye(len(weights)), self.table.T @ slope + PENALTY * weights)


def rows_of(case: Case) -> list[list[int]]:
    """Of each answer among the candidates the rows that give it; behind the last candidate stands that there is none."""
    names = case.turns[:CANDIDATES_FITTED]
    if not case.wanted:
        return [[len(names)]]
    return [[row for row, name in enumerate(names) if name == each] for each in sorted(case.wanted & set(names))]


def fitted(cases: Sequence[Case]) -> Array:
    """The weights under which what is right is likeliest to be drawn."""
    cases = [case for case in cases if rows_of(case)]
    scale = np.concatenate([case.table[:CANDIDATES_FITTED] for case in cases]).std(axis=0, dtype=np.float64) + 1e-6
    draws = Draws(cases, scale)
    draws.table[:, BEST] = 0  # the same for all candidates
    weights = np.zeros(len(scale) + 1)
    likely, answered, loss = draws.drawn(weights)
    for _ in range(STEPS_MAX):
        step, size = draws.step(weights, likely, answered), 1.0
        while (after := draws.drawn(weights - size * step))[2] > loss and size > 1e-3:
            size /= 2
        gained, weights = loss - after[2], weights - size * step
        likely, answered, loss = after
        if gained < 1e-6:
            break
    return weights[:-1] / scale


def calibrated(weights: Array, own: Sequence[Case], strange: Sequence[Case], best: int) -> tuple[float, Array]:
    """A bias and the weights made so that the logistic function of the sum is .75 for the best row of a question that has an
    answer, and .25 for that of a strange one, in the median.

    First the weight of `best`, which is the same for all candidates of a query and so changes no order, is set so that the
    highest sum tells the questions that have an answer from the strange ones.
    """
    tops = np.array([[(case.table @ weights).max(), case.table[0, best], 1] for case in (*own, *strange)])
    answered = np.arange(len(tops)) < len(own)
    sums, best_weight, _ = logistic(tops, answered, np.where(answered, 1 / len(own), 1 / len(strange)))
    weights = weights + np.eye(len(weights))[best] * best_weight / max(sums, 1e-3)
    high, low = (float(np.median([(case.table @ weights).max() for case in cases])) for cases in (own, strange))
    scale = 2 * np.log(3) / max(high - low, 1e-3)
    return float(-scale * (high + low) / 2), weights * scale


def logistic(inputs: Array, labels: NDArray[np.bool_], shares: Array) -> Array:
    """Logistic regression by Newton's method, with a penalty that only matters where nothing contradicts larger weights."""
    found = np.zeros(inputs.shape[1])
    shares = shares / shares.sum()
    for _ in range(STEPS_MAX):
        likely = (1 + np.tanh(inputs @ found / 2)) / 2
        curvature = (inputs * (shares * likely * (1 - likely))[:, None]).T @ inputs + LEAST_PENALTY * np.eye(len(found))
        step = np.linalg.solve(curvature, inputs.T @ (shares * (likely - labels)) + LEAST_PENALTY * found)
        found -= np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return found


# --- measuring ----------------------------------------------------------------------------------------------------------------


def figures(order: Sequence[str], wanted: frozenset[str]) -> list[float]:
    """r@5, r@10, r@20 and NDCG@10 of turns, best first; a turn counts where it first stands."""
    ranks = [rank for rank, name in enumerate(order[: max(DEPTHS)]) if name in wanted and name not in order[:rank]]
    recalls = [sum(rank < depth for rank in ranks) / len(wanted) for depth in DEPTHS]
    gain = sum(1 / np.log2(rank + 2) for rank in ranks if rank < 10)
    return [*recalls, gain / sum(1 / np.log2(rank + 2) for rank in range(min(10, len(wanted))))]


def first(order: Sequence[str], wanted: frozenset[str]) -> bool:
    """Whether the best of a few answers."""
    return bool(order) and order[0] in wanted


def ordered(case: Case, weights: Array) -> list[str]:
    """The candidates' turns, best first."""
    return [case.turns[row] for row in np.argsort(-(case.table @ weights), kind="stable")]


def left_out(cases: Sequence[Case]) -> Iterator[tuple[str, Array]]:
    """Each conversation, and the weights fitted on all others."""
    for name in dict.fromkeys(case.chat for case in cases):
        yield name, fitted([case for case in cases if name not in (case.chat, case.of)])


def auc(own: Sequence[float], strange: Sequence[float]) -> float:
    """How often one of `own` is above one of `strange`; equals count half."""
    above = np.subtract.outer(np.array(own), np.array(strange))
    return float(np.mean((above > 0) + 0.5 * (above == 0)))


# --- the whole ----------------------------------------------------------------------------------------------------------------


def indexed(chat: Chat, embedder: Embedder | None) -> Index:
    """A conversation as a view holds it."""
    return Index(chat, embedder.encode([text_of(turn.content, turn.speaker) for turn in chat.turns]) if embedder else None)


def piece(index: Index, asked: Asked, rand: random.Random) -> Index:
    """A few turns in a row, among them one that answers: a session that has just begun."""
    at = rand.choice([place for place, turn in enumerate(index.chat.turns) if turn.name in asked.answers])
    size = rand.randint(*SMALL)
    begin = max(0, at - rand.randrange(size))
    part = slice(begin, begin + size)
    chat = index.chat._replace(turns=index.chat.turns[part])
    return Index(chat, None if index.vectors is None else index.vectors[part])


class Section(NamedTuple):
    """All cases of one section: of the conversations as they are, cut into sentences, asked in other words (none without
    vectors), of a few turns only, and asked what they cannot know.

    The strange questions are those of the other conversations, and the same with the conversation's own names put in.
    """

    plain: list[Case]
    cut: list[Case]
    other: list[Case]
    small: list[Case]
    strange: list[Case]
    renamed: list[Case]


def section(found: Sequence[Chat], embedder: Embedder | None) -> Section:
    """Everything asked of everything, with one embedder or by words alone."""
    asked = {each.text for chat in found for each in chat.questions}
    vectors = dict(zip(sorted(asked), embedder.encode(sorted(asked)), strict=True)) if embedder else {}
    plain, cut = ([indexed(each(chat), embedder) for chat in found] for each in (lambda chat: chat, in_sentences))
    strange = [
        (index, each, other)
        for index in plain
        for other in found
        if other is not index.chat
        for each in other.questions[::STRANGE_EVERY]
    ]
    put = [renamed(each.text, speakers(other), speakers(index.chat)) for index, each, other in strange]
    put_vectors = embedder.encode(put) if embedder else [None] * len(put)
    rand = random.Random(1)  # noqa: S311 - the same pieces every time
    of_own = [(index, each) for index in plain for each in index.chat.questions]
    return Section(
        [index.case(each.text, vectors.get(each.text), each.answers) for index, each in of_own],
        [index.case(each.text, vectors.get(each.text), each.answers) for index in cut for each in index.chat.questions],
        [index.case(each.text, vectors[each.text], each.answers, other_words=True) for index, each in of_own if vectors],
        [piece(index, each, rand).case(each.text, vectors.get(each.text), each.answers) for index, each in of_own],
        [index.case(each.text, vectors.get(each.text))._replace(of=other.name) for index, each, other in strange],
        [
            index.case(text, vector)._replace(of=other.name)
            for (index, _, other), text, vector in zip(strange, put, put_vectors, strict=True)
        ],
    )


def speakers(chat: Chat) -> list[str]:
    """Who speaks, the first first."""
    return list(dict.fromkeys(turn.speaker for turn in chat.turns))


def renamed(question: str, theirs: Sequence[str], ours: Sequence[str]) -> str:
    """A question about other people, asked about ours."""
    names = dict(zip(theirs, ours, strict=True))
    return re.sub(rf"\b({'|'.join(map(re.escape, names))})\b", lambda found: names[found[0]], question)


def measured(name: str, found: Section) -> list[str]:
    """What the ranker does for conversations that it was not fitted on, and the fixed mix for the same: lines of a table."""
    fixed, ours, cut, tops = [], [], [], {"own": [], "strange": [], "renamed": []}
    other_fixed, other, small_fixed, small = [], [], [], []
    for chat, raw in left_out([case for each in found for case in each]):
        known = Section(*([case for case in each if chat not in (case.chat, case.of)] for each in found))
        bias, weights = calibrated(raw, known.plain, [*known.strange, *known.renamed], BEST)
        here = {what: [case for case in getattr(found, what) if case.chat == chat] for what in Section._fields}
        fixed += [figures(case.turns, case.wanted) for case in here["plain"]]
        ours += [figures(ordered(case, weights), case.wanted) for case in here["plain"]]
        cut += [figures(ordered(case, weights), case.wanted) for case in here["cut"]]
        other_fixed += [figures(case.turns, case.wanted) for case in here["other"]]
        other += [figures(ordered(case, weights), case.wanted) for case in here["other"]]
        small_fixed += [first(case.turns, case.wanted) for case in here["small"]]
        small += [first(ordered(case, weights), case.wanted) for case in here["small"]]
        for kind, what in (("own", "plain"), ("strange", "strange"), ("renamed", "renamed")):
            tops[kind] += [float((case.table @ weights).max()) + bias for case in here[what]]
    told = [("fixed mix", fixed), ("learned", ours), ("learned, in sentences", cut)]
    told += [("fixed, in other words", other_fixed), ("learned, other words", other)] if other else []
    lines = [f"[{name}] {what:<22} " + " ".join(f"{value:.3f}" for value in np.mean(each, axis=0)) for what, each in told]
    lines.append(f"[{name}] first of a few turns answers: mix {np.mean(small_fixed):.3f}, learned {np.mean(small):.3f}")
    lines[1] += f"  AUC {auc(tops['own'], tops['strange']):.3f}, names put in {auc(tops['own'], tops['renamed']):.3f}"
    return lines


def weights_of(name: str, found: Section) -> Weights:
    """The weights of a section, fitted on all conversations."""
    weights = fitted([case for each in found for case in each])
    bias, weights = calibrated(weights, found.plain, [*found.strange, *found.renamed], BEST)
    return Weights(bias, dict(zip(learned.SECTIONS[name], weights.tolist(), strict=True)))


def main() -> None:
    """Fit, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--path", type=Path, default=DATA, help="conversations with questions, laid out as LoCoMo's")
    parser.add_argument("--to", type=Path, default=learned.SHIPPED, help="the file to write")
    options = parser.parse_args()
    if not options.path.exists():
        sys.exit(f"Nothing was fitted: the conversations are not at {options.path} (CC BY-NC 4.0, not shipped).")
    found = chats(options.path)
    lines, weights = [], {}
    for name, embedder in (("meaning", MiniLMEmbedder()), ("static", StaticEmbedder()), ("words", None)):
        cases = section(found, embedder)
        told = measured(name, cases)
        print(*told, sep="\n", flush=True)
        lines += told
        weights[name] = weights_of(name, cases)
    options.to.write_text(learned.written(weights, [*heading(options.path, found), *lines]), "utf-8")


def heading(path: Path, found: Sequence[Chat]) -> list[str]:
    """What the head of the file says of how it was made."""
    names = ", ".join(chat.name for chat in found)
    return [
        "The weights of the learned ranker; docs/recall.md says what the features mean. Written by scripts/fit-ranking:",
        f"fitted on {path.name}: {names}; {sum(len(chat.questions) for chat in found)} questions, {CANDIDATES} candidates each",
        "What follows is measured on each conversation with weights fitted on the others: r@5, r@10, r@20, NDCG@10.",
        "",
    ]


if __name__ == "__main__":
    main()
