"""The extractive summarizer: within its tokens whatever the text, only words of its sources, the same every time."""

import re
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfold.consolidator.extractive import ExtractiveSummarizer
from memfold.consolidator.sentences import PIECE_CHARACTERS_MAX, clauses_of, is_english, sentences_of, shortened
from memfold.consolidator.summarizer import CONTROL, Source, Summarizer, Window, cleaned
from memfold.embedding import Encoder
from memfold.minilm import default_count_tokens, static_embedder
from memfold.projections.layout import one_line

DAY = datetime(2023, 5, 8, 13, 56, tzinfo=UTC)
CHAT = [
    ("Melanie", "Hey Caroline! How have you been?"),
    ("Caroline", "Hi Mel! I went to the LGBTQ support group yesterday and it was really powerful."),
    ("Melanie", "Wow, that's so great! Thanks for telling me."),
    ("Caroline", "On 12 June I start as a counselor at the Lakeside clinic in Denver, for $3,200 a month."),
    ("Melanie", "I'm not just painting these days, I adopted a dog named Oscar."),
    ("Caroline", "Awesome! You are so kind. That sounds good."),
]


def count(text: str) -> int:
    return default_count_tokens()(text)


def summarizer() -> ExtractiveSummarizer:
    return ExtractiveSummarizer(Encoder(static_embedder()), count)


def window(*said: tuple[str | None, str], tokens: int, apart: timedelta = timedelta(minutes=1)) -> Window:
    sources = (Source(str(number), text, speaker, DAY + number * apart) for number, (speaker, text) in enumerate(said))
    return Window(tuple(sources), tokens)


def summary(*said: tuple[str | None, str], tokens: int, apart: timedelta = timedelta(minutes=1)) -> str:
    return summarizer().summarize(window(*said, tokens=tokens, apart=apart)).text


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text))


texts = st.one_of(
    st.text(max_size=300),
    st.text(alphabet="ab. ,;?!:[]\n-–'“”。日本語🎉👩‍👧()\u200b\ud800{}=1", max_size=300),
    st.lists(st.sampled_from([text for _, text in CHAT]), max_size=6).map(" ".join),
)
speakers = st.one_of(st.none(), st.sampled_from(["Melanie", "Caroline"]), st.text(max_size=60))


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(speakers, texts), min_size=1, max_size=8), st.integers(0, 80), st.sampled_from([1, 60 * 24]))
def test_a_summary_of_any_texts_keeps_within_its_tokens_and_adds_no_word(said, tokens, minutes):
    asked = window(*said, tokens=tokens, apart=timedelta(minutes=minutes))

    text = summarizer().summarize(asked).text

    assert count(text) <= tokens or text == ""
    assert text == summarizer().summarize(asked).text
    assert CONTROL.search(text) is None
    known = "".join(f"{CONTROL.sub('', content)} {one_line((speaker or '').replace(':', ' '))} " for speaker, content in said)
    known += " ".join(source.occurred_at.date().isoformat() for source in asked.sources)
    for word in words(text):
        assert word in CONTROL.sub("", known.encode("utf-8", "ignore").decode())


@settings(max_examples=200, deadline=None)
@given(texts)
def test_cutting_loses_nothing_but_white_space(text):
    clauses = [clause for sentence in sentences_of(text) for clause in clauses_of(sentence)]

    assert "".join("".join(clauses).split()) == "".join(re.sub("[\x1c-\x1e]", "", text).split())
    assert all(0 < len(clause) <= PIECE_CHARACTERS_MAX for clause in clauses)


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("Dr. Smith paid 3.5 euros. J. R. Ewing did not!", ["Dr. Smith paid 3.5 euros.", "J. R. Ewing did not!"]),
        ("See https://a.org/b.html?c=d. Then go.", ["See https://a.org/b.html?c=d.", "Then go."]),
        ("She left at 5 p.m. on Monday.", ["She left at 5 p.m. on Monday."]),
        ("1. Buy milk.\n2. Buy eggs.", ["1. Buy milk.", "2. Buy eggs."]),
        ("他来了。她走了！", ["他来了。", "她走了！"]),
        ("Look! [shared image: a dog. On a hill]", ["Look!", "[shared image: a dog. On a hill]"]),
        ("Well... maybe not. “Yes.” So be it", ["Well... maybe not.", "“Yes.”", "So be it"]),
        (" \n\t", []),
    ],
)
def test_sentences_end_where_they_end(text, sentences):
    assert sentences_of(text) == sentences


@pytest.mark.parametrize(
    ("clause", "headline"),
    [
        ("I was really happy with the dog", "happy with dog"),
        ("I don't really like it", "don't really like it"),
        ("not just a friend", "not just friend"),
        ("my sister and I went home", "my sister and I went home"),
        ("for is_open in the_list: yield it", "for is_open in the_list: yield it"),
    ],
)
def test_headlines_keep_what_turns_their_meaning(clause, headline):
    assert shortened(clause) == headline


def test_only_english_is_shortened():
    german = "Ich war gestern in der Stadt, an der Brücke, und habe die Katze gesehen"

    assert not is_english(german)
    assert summary(("Jonas", german), tokens=100) == f"Jonas: {german}"


def test_names_numbers_and_dates_are_preferred_and_pleasantries_left_out():
    text = summary(*CHAT, tokens=30)

    assert "12 June" in text
    assert "Wow" not in text
    assert "Awesome" not in text


def test_the_summary_is_an_implementation_that_survives_cleaning():
    asked = window(*CHAT, tokens=30)
    found = summarizer().summarize(asked)

    assert isinstance(summarizer(), Summarizer)
    assert cleaned("extractive-1", found, asked, count) == found


def test_each_speaks_in_a_line_in_reading_order():
    lines = summary(*CHAT, tokens=70).splitlines()

    speakers = [line.split(": ")[0] for line in lines]
    assert set(speakers) == {"Melanie", "Caroline"}
    assert all(one != next_ for one, next_ in pairwise(speakers))
    assert [text for text in ("support group", "12 June", "Oscar") if text in " ".join(lines)] == [
        "support group",
        "12 June",
        "Oscar",
    ]


def test_nothing_is_said_twice():
    text = summary(*[("Nora", "The door code of the cellar in Lisbon is 4711.")] * 12, tokens=120)

    assert text.count("4711") == 1


def test_days_are_told_where_there_are_several():
    said = [("Nora", "I bought a red bicycle yesterday."), ("Nora", "The bicycle was stolen in Porto today.")]

    assert "[" not in summary(*said, tokens=60)
    assert summary(*said, tokens=60, apart=timedelta(days=3)).splitlines() == [
        "[2023-05-08] Nora: bought red bicycle yesterday",
        "[2023-05-11] Nora: bicycle stolen in Porto today",
    ]


def test_summaries_of_summaries_keep_speakers_and_days():
    first = summary(*CHAT, tokens=60, apart=timedelta(days=1))
    second = summary((None, first), (None, "[2023-06-01] Melanie: Oscar ran away to Boulder"), tokens=45)

    assert re.search(r"\[2023-05-\d\d\] Caroline: ", second)
    assert "[2023-06-01] Melanie: Oscar ran away" in second


@pytest.mark.parametrize(
    "text", ["word" * 5_000, "word " * 5_000, "字" * 5_000, "🎉" * 500, "x = {a: [b, c]};\n" * 200, "well, " * 2_000]
)
@pytest.mark.parametrize("tokens", [1, 3, 20])
def test_what_has_no_sentences_still_gives_something(text, tokens):
    found = summary(("Nora", text), tokens=tokens)

    assert count(found) <= tokens
    assert found or count(text.split()[0][0]) > tokens


def test_a_counter_that_counts_otherwise_is_kept_to():
    letters = ExtractiveSummarizer(Encoder(static_embedder()), len)

    text = letters.summarize(window(*CHAT, tokens=90)).text

    assert 40 < len(text) <= 90


def test_nothing_becomes_nothing():
    assert summary(("Nora", " \n "), (None, ""), tokens=10) == ""
    assert summary(*CHAT, tokens=0) == ""
