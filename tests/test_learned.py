"""The learned ranker: what its features say, how its weights are read, how a score is explained, how weights are fitted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from memfold import RankingFileError
from memfold.minilm import StaticEmbedder
from memfold.projections import features, learned, ranking
from memfold.projections.features import FACTS, WITH_MEANING, WITHOUT_MEANING, echo_weights, text_facts
from memfold.projections.places import Places
from memfold.projections.search import Ranked, looked_at
from memfold.projections.words import Words, asked_for, plain_words

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "scripts" / "fit_ranking.py"
HOUR = 3_600_000_000

CHAT = [
    ("Ann", "Hello Bob, how are you?", 0),
    ("Bob", "Fine. I adopted a puppy last week!", 1),
    ("Ann", "What is the puppy called?", 2),
    ("Bob", "Rex. My sister in Vienna has three puppies.", 3),
    ("Ann", "Rex is a good name.", HOUR * 30),
    ("Bob", "We walk by the river every morning", HOUR * 30 + 1),
    ("Cleo", "Nothing new here", HOUR * 30 + 2),
]


def known(query, chat=CHAT, *, candidates=None, meaning=True, fits=None):
    """Everything there is to know about a chat, and about some of its rows as candidates."""
    words, places = Words(), Places()
    for row, (speaker, content, at) in enumerate(chat):
        words.add(row, f"{speaker}: {content}")
        facts = bytes(text_facts(content))
        places.take(row, session=0, position=row, speaker=speaker, occurred_at=at, importance=0.5, facts=facts)
    rows = places.all()
    vectors = StaticEmbedder().encode([f"{speaker}: {content}" for speaker, content, _ in chat])
    similarities = vectors @ StaticEmbedder().encode([query])[0] if meaning else None
    evidence = ranking.Evidence(
        before=rows.before,
        after=rows.after,
        similarities=similarities,
        matches=words.weigh(words.look_up(asked_for(query)), rows.slots, places.before(rows.slots)),
        named=places.named(plain_words(query), rows.slots),
        when=None,
        importance=np.zeros(0, np.float32),
        age_days=np.zeros(0, np.float32),
    )
    mix = ranking.score(evidence, ranking.Preferences())
    candidates = np.arange(len(chat)) if candidates is None else np.array(candidates)
    likes = np.argsort(-mix.mixed, kind="stable")
    weights = echo_weights(mix.mixed[likes])
    echoes = vectors[candidates] @ (weights @ vectors[likes[: len(weights)]]) if meaning else None
    usual = (0.0, 1.0) if similarities is None else (float(similarities.mean()), float(similarities.std()))
    ranked = Ranked(rows, evidence, mix, candidates)
    found = looked_at(ranked, places, words, words.look_up(asked_for(query)), usual=usual, echoes=echoes)
    return found._replace(fits=fits)


def found(query, **options):
    return features.features(query, known(query, **options))


def scores(query, section="meaning", **options):
    return learned.score(learned.shipped()[section], found(query, **options))


# --- what a text is like ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fact", "value"),
    [
        ("How are you?", "asks", 1),
        ('She said "really?"', "asks", 1),
        ("Do you like it? [shared image: a cake]", "asks", 1),
        ("How are you? I am fine.", "asks", 0),
        ("I went yesterday.", "time", 1),
        ("We met last week.", "time", 1),
        ("It was in June 2021.", "time", 1),
        ("on the 3rd", "time", 1),
        ("The last straw, next to this one.", "time", 0),
        ("On Fridays.", "time", 1),
        ("in 1999", "time", 1),
        ("room 2", "time", 0),
        ("She has three cats.", "number", 1),
        ("It cost 20 pounds.", "number", 1),
        ("None of it.", "number", 0),
        ("the 2nd one", "number", 0),
        ("", "number", 0),
        ("x?[" * 100_000, "asks", 0),
        ("I lost my keys, and we are late.", "first_person", 3),
        ("You lost your keys.", "first_person", 0),
        ("My aunt lives in Vienna.", "names", 1),
        ("Hello there. Nothing here! Is it?", "names", 0),
        ("with Ann, Bob, Cleo and Dora at NASA", "names", 3),
    ],
)
def test_facts_of_a_text(text, fact, value):
    facts = text_facts(text)
    assert len(facts) == len(FACTS)
    assert facts[FACTS.index(fact)] == value
    assert len(bytes(facts)) == len(FACTS)


# --- features -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("meaning", [True, False])
@pytest.mark.parametrize("query", ["When did Bob adopt a puppy?", "how many puppies", "", "???", "the of and", "wölfe 日本"])
def test_every_feature_is_one_small_number_a_candidate(query, meaning):
    given = found(query, meaning=meaning)
    assert set(given) == set(WITH_MEANING if meaning else WITHOUT_MEANING)
    for name, values in given.items():
        assert values.shape == (len(CHAT),), name
        assert values.dtype == np.float32, name
        assert np.isfinite(values).all(), name
        assert np.abs(values).max() < 10, name


def test_a_row_looks_the_same_whoever_else_is_a_candidate():
    every = found("What is Bob's puppy called?")
    for some in ([3], [5, 1], [6, 0, 3, 2]):
        few = found("What is Bob's puppy called?", candidates=some)
        for name, values in few.items():
            np.testing.assert_allclose(values, every[name][some], atol=1e-6, err_msg=name)


def test_the_words_of_a_question_may_stand_in_the_rows_around():
    given = found("puppy name Rex Vienna")
    assert given["covered"][1] < given["covered_wide"][1] == given["covered"][3] < 1
    assert given["covered"][0] == 0 < given["covered_wide"][0] == given["covered"][1]
    assert given["covered_wide"][6] == given["covered"][4]
    assert found("puppy name", chat=[("Ann", "puppy", 0), ("Bob", "name", 1)])["covered_wide"].tolist() == [1, 1]


def test_what_stands_near_a_good_row_is_told_so_eight_rows_far():
    chat = [("Ann", "nothing", row) for row in range(30)]
    chat[15] = ("Ann", "the ornithopter of Leonardo, his ornithopter", 15)
    near = found("Leonardo's ornithopter", chat=chat, meaning=False)["near"]
    assert np.flatnonzero(near).tolist() == [*range(7, 15), *range(16, 24)]


def test_a_pause_parts_what_was_said_before_from_what_was_said_after():
    chat = [(who, text, row) for row, (who, text, _) in enumerate(CHAT)]
    assert found("puppy", chat=chat)["words_before"][4] > 0
    assert found("puppy")["words_before"][4] == 0
    assert found("puppy")["covered_wide"][4] == 0


def test_who_speaks_and_whom_the_query_names():
    given = found("Where does Bob walk?")
    assert given["named"].tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert given["named_personal"][5] > 0 == given["named_personal"][0]
    assert not found("Where is the walk?")["named"].any()


def test_what_was_asked_just_before_is_answered():
    given = found("puppy called")
    assert given["answers"][3] > 0
    assert given["answers"][2] == 0
    assert given["own_words"][3] == 0
    said_on = [("Bob", "About the puppy", 0), ("Bob", "called Rex", 1)]
    assert found("puppy", chat=said_on)["own_words"][1] > 0


def test_a_time_is_missed_only_where_a_time_is_asked_for():
    assert found("When did Bob adopt it?")["no_time"].tolist() == [1, 0, 1, 1, 1, 1, 1]
    assert not found("Whom did Bob adopt?")["no_time"].any()
    assert found("How many puppies are there?")["no_number"][3] == 0 < found("How many puppies are there?")["no_number"][1]
    assert not found("Which puppies are there?")["no_number"].any()
    fits = np.linspace(0, 1, len(CHAT), dtype=np.float32)
    np.testing.assert_allclose(found("in May", fits=fits)["other_time"], 1 - fits)


def test_the_answer_is_found_by_every_section():
    for section, meaning in (("meaning", True), ("static", True), ("words", False)):
        total = scores("What is Bob's puppy called?", section, meaning=meaning).total
        assert np.argmax(total) == 3, section
        assert ((total > 0) & (total < 1)).all()


def test_where_nothing_is_known_nothing_is_likely():
    assert scores("submarine engine repair manual").total.max() < 0.05
    assert scores("").total.max() < 0.05
    one = [("Ann", "Hello", 0)]
    assert scores("submarine", chat=one).total.shape == (1,)


def test_echoes_are_weighed_by_what_the_mix_says():
    weights = echo_weights(np.array([1.0, 1.0, 0.5], np.float32))
    assert weights.sum() == pytest.approx(1)
    assert weights[0] == weights[1] > 10 * weights[2]
    assert len(echo_weights(np.ones(50, np.float32))) == features.ECHOES_OF


# --- a score and its parts ----------------------------------------------------------------------------------------------------


def test_the_parts_of_a_score_add_up_to_it():
    told = scores("What is Bob's puppy called?")
    for row in range(len(CHAT)):
        score, parts = told.of(row)
        assert score == pytest.approx(float(told.total[row]))
        assert sum(parts.values()) == pytest.approx(score, abs=1e-6)
        assert set(parts) == {"usual", *WITH_MEANING}


def test_a_row_of_which_nothing_is_known_scores_what_is_usual():
    weights = learned.Weights(-2.0, {"words": 3.0})
    told = learned.score(weights, {"words": np.array([0, 1], np.float32)})
    usual = 1 / (1 + np.exp(2))
    assert told.of(0) == (pytest.approx(usual), pytest.approx({"usual": usual, "words": 0}))
    score, parts = told.of(1)
    assert score == pytest.approx(1 / (1 + np.exp(-1)))
    assert parts == pytest.approx({"usual": usual, "words": score - usual})


def test_preferences_add_to_the_score_and_to_its_parts():
    given = found("puppy")
    weights = learned.shipped()["meaning"]
    plain = learned.score(weights, given)
    liked = learned.score(weights, given, {"recency": np.linspace(0, 1, len(CHAT), dtype=np.float32)})
    assert liked.total[0] == plain.total[0]
    assert (liked.total[1:] > plain.total[1:]).all()
    assert liked.of(6)[1]["recency"] > 0


# --- files of weights ---------------------------------------------------------------------------------------------------------


def test_what_was_written_is_read_again():
    text = learned.SHIPPED.read_text("utf-8")
    weights = learned.parse(text)
    assert weights == learned.shipped()
    assert learned.parse(learned.written(weights, ["made", "by hand"])) == weights
    assert learned.written(weights, []).strip() == text[text.index("\n[meaning]") :].strip()


def changed(pattern, put):
    return re.sub(pattern, put, learned.SHIPPED.read_text("utf-8"), count=1, flags=re.MULTILINE)


@pytest.mark.parametrize(
    ("text", "missing", "unknown"),
    [
        (changed(r"^near .*\n", ""), ("near",), ()),
        (changed(r"^near ", "nearer "), ("near",), ("nearer",)),
        (changed(r"^bias .*\n", ""), ("bias",), ()),
        (changed(r"^\[static\]", "[other]"), ("static",), ("other",)),
        ("", ("meaning", "static", "words"), ()),
    ],
)
def test_weights_for_other_features_are_refused_by_name(tmp_path, text, missing, unknown):
    path = tmp_path / "mine.txt"
    path.write_text(text, "utf-8")
    with pytest.raises(RankingFileError) as caught:
        learned.load(path)
    assert (caught.value.missing, caught.value.unknown) == (missing, unknown)
    assert str(path) in str(caught.value)
    assert "scripts/fit-ranking" in str(caught.value)


@pytest.mark.parametrize("line", ["near 1 2", "near", "near nan", "near inf", "near one", "[meaning]", "[]extra", "words 1"])
def test_a_line_that_says_nothing_or_says_it_twice_is_refused(line):
    text = f"{learned.SHIPPED.read_text('utf-8')}\n{line}\n"
    with pytest.raises(RankingFileError, match="line"):
        learned.parse(text, "mine")


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "none", tmp_path, tmp_path / "bytes"):
        with pytest.raises(RankingFileError, match="cannot be read"):
            learned.load(path)


# --- fitting ------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def fit_ranking(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import fit_ranking

    yield fit_ranking
    sys.modules.pop("fit_ranking")


def test_weights_that_were_planted_are_found(fit_ranking):
    chance = np.random.default_rng(7)
    planted = np.array([0.0, 2.0, -1.0, 0.5])  # the first is `best`, the same for all candidates
    cases = []
    for number in range(1_000):
        table = chance.normal(size=(30, 4)).astype(np.float32)
        table[:, 0] = 0.7
        drawn = int(np.argmax(table @ planted + chance.gumbel(size=30)))
        turns = [f"{number}:{row}" for row in range(30)]
        cases.append(fit_ranking.Case("chat", table, turns, frozenset({turns[drawn]})))
    strange = [fit_ranking.Case("chat", chance.normal(size=(30, 4)).astype(np.float32), ["x"] * 30, frozenset())]
    found = fit_ranking.fitted([*cases, *strange])
    np.testing.assert_allclose(found, planted, atol=0.15)


def test_probabilities_are_as_often_right_as_they_say(fit_ranking):
    chance = np.random.default_rng(11)
    inputs = np.column_stack([chance.normal(size=20_000), np.ones(20_000)])
    labels = chance.random(20_000) < 1 / (1 + np.exp(-(1.5 * inputs[:, 0] - 2)))
    np.testing.assert_allclose(fit_ranking.logistic(inputs, labels, np.ones(20_000)), [1.5, -2], atol=0.1)


def conversation(number):
    """A tiny conversation laid out as LoCoMo's, with questions."""
    things = ["kite", "violin", "bakery", "canoe", "lantern", "orchid", "telescope", "scarf"]
    names = [("Ann", "Bob"), ("Cleo", "Dora"), ("Emil", "Fay")][number]
    session = [
        {"dia_id": f"D1:{at}", "speaker": names[at % 2], "text": f"I told you about the {thing} number {number} of my aunt."}
        for at, thing in enumerate(things, 1)
    ]
    asked = [
        {"question": f"What did {names[at % 2]} say of a {thing}?", "evidence": [f"D1:{at}"], "category": 4}
        for at, thing in enumerate(things, 1)
    ]
    return {
        "sample_id": f"tiny-{number}",
        "conversation": {"session_1": session, "session_1_date_time": "1:56 pm on 8 May, 2023"},
        "qa": [*asked, {"question": "Nobody?", "evidence": ["D9:9"], "category": 1}],
    }


def run_script(path, to):
    command = [sys.executable, str(SCRIPT), "--path", str(path), "--to", str(to)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_the_same_conversations_give_the_same_file_to_the_byte(tmp_path):
    (tmp_path / "chats.json").write_text(json.dumps([conversation(number) for number in range(3)]))
    made = []
    for name in ("one.txt", "two.txt"):
        told = run_script(tmp_path / "chats.json", tmp_path / name)
        assert told.returncode == 0, told.stderr
        assert "[meaning] learned" in told.stdout
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]
    assert "24 questions" in made[0].decode()
    assert set(learned.load(tmp_path / "one.txt")) == set(learned.SECTIONS)


def test_without_conversations_nothing_is_written(tmp_path):
    told = run_script(tmp_path / "none.json", tmp_path / "weights.txt")
    assert told.returncode == 1
    assert "Nothing was fitted" in told.stderr
    assert not (tmp_path / "weights.txt").exists()
