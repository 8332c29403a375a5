"""Words and postings, against counting by hand; and that nothing keeps what was taken out."""

import gc
from collections import Counter
from functools import cache
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memfold.projections import postings, words
from memfold.projections.words import Words, words_of

LETTERS = ["tea", "milk", "cats", "door", "codes", "München", "東京", "the", "running"]
TEXTS = st.lists(st.sampled_from(LETTERS), max_size=8).map(" ".join)
QUERY = ["tea", "cat", "code", "東", "run", "nothing"]


counts_of = cache(lambda text: Counter(words_of(text)))


class ByHand:
    """What `Words` promises, said once more over a dict of slot and text, in the same precision."""

    def __init__(self) -> None:
        self.texts: dict[int, str] = {}

    def counts(self, slot):
        return counts_of(self.texts.get(slot, ""))

    def weight(self, asked, slot, before=None):
        """As float32, and the words' weights added in the order they are asked for."""
        f = np.float32
        all_counts = [counts_of(text) for text in self.texts.values()]
        both = self.counts(slot) + self.counts(before)
        rows = len(self.texts) + 100
        average = (1 if before is None else 2) * (sum(counts.total() for counts in all_counts) + 1_300) / rows
        norm = f(1.2 * 0.25) + f(1.2 * 0.75 / average) * f(both.total())
        total = f(0)
        for word in asked:
            holding = sum(word in counts for counts in all_counts)
            rarity = f(np.log(1 + (rows - holding + 0.5) / (holding + 0.5)) * 2.2)
            total += f(both[word]) / (f(both[word]) + norm) * rarity
        return total

    def nearest(self, asked, count):
        weights = {slot: self.weight(asked, slot) for slot in self.texts}
        best = sorted((slot for slot, weight in weights.items() if weight > 0), key=lambda slot: (-weights[slot], slot))
        return best[:count]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.integers(0, 25), TEXTS),
        st.tuples(st.just("remove"), st.integers(0, 25)),
        st.tuples(st.just("settle")),
        st.tuples(st.just("ask")),
        st.tuples(st.just("renumber")),
    ),
    max_size=60,
)


@pytest.fixture(params=[64, 0])
def small(request, monkeypatch):
    """What thousands of rows do, a dozen does: sorted early, merged often, few weighed one by one, words of equal hashes."""
    monkeypatch.setattr(words, "FRESH_WORDS", 6)
    monkeypatch.setattr(words, "FOLDED_AT_ONCE", 20)
    monkeypatch.setattr(words, "COUNTS_AT_ONCE", 60)
    monkeypatch.setattr(words, "SMALL", 4)
    monkeypatch.setattr(words, "GROUPS", 1)
    monkeypatch.setattr(words, "MANY", 1)
    monkeypatch.setattr(words, "FEW", request.param)
    monkeypatch.setattr(postings, "_HASH", 0x1)


def follow(first, steps) -> tuple[Words, ByHand]:
    real, model = Words(), ByHand()
    for slot, text in enumerate(first):
        real.add(slot, text)
        model.texts[slot] = text
    for step, *arguments in steps:
        if step == "add":
            slot, text = arguments
            if slot in model.texts:
                real.remove(slot, model.texts[slot])
            real.add(slot, text)
            model.texts[slot] = text
        elif step == "remove" and arguments[0] in model.texts:
            real.remove(arguments[0], model.texts.pop(arguments[0]))
        elif step == "settle":
            real.settle()
        elif step == "ask":
            assert real.nearest(real.look_up(["tea"]), 3).tolist() == model.nearest(["tea"], 3)
        elif step == "renumber":
            kept = sorted(model.texts)
            real.renumber(np.array(kept, np.int64))
            model.texts = {new: model.texts[old] for new, old in enumerate(kept)}
    return real, model


@pytest.mark.usefixtures("small")
@settings(max_examples=200, deadline=None)
@given(first=st.lists(TEXTS, max_size=20), steps=STEPS, asked=st.permutations(QUERY), rand=st.randoms(use_true_random=False))
def test_whatever_happened_before_words_weigh_what_counting_by_hand_says(first, steps, asked, rand):
    real, model = follow(first, steps)
    slots = rand.sample(sorted(model.texts), rand.randrange(len(model.texts) + 1))
    before = [rand.choice([-1, *(other for other in model.texts if other != slot)]) for slot in slots]

    found = real.weigh(real.look_up(asked), np.array(slots, np.int64), np.array(before, np.int64))

    assert found.alone.tolist() == [model.weight(asked, slot) for slot in slots]
    assert found.paired.tolist() == [model.weight(asked, slot, other) for slot, other in zip(slots, before, strict=True)]
    assert real.nearest(real.look_up(asked), 4).tolist() == model.nearest(asked, 4)
    assert real.nearest(real.look_up(asked), 100).tolist() == model.nearest(asked, 100)
    assert real.dump(np.array(sorted(model.texts))) == [sorted(model.counts(slot).items()) for slot in sorted(model.texts)]


def everything_in(thing: object) -> bytes:
    """All strings, bytes and arrays that an object holds, or what it holds holds."""
    seen, found, todo = set(), [], [thing]
    while todo:
        each = todo.pop()
        if id(each) in seen or isinstance(each, type | ModuleType):
            continue
        seen.add(id(each))
        if isinstance(each, dict):
            todo += each  # strings that are keys are not told as referents
        if isinstance(each, str):
            found.append(each.encode())
        elif isinstance(each, bytes | bytearray | np.ndarray):
            found.append(bytes(each))
        todo += gc.get_referents(each)
    return b"\0".join(found)


@pytest.mark.parametrize("also", [0, 30, 3_000])
@pytest.mark.parametrize("before", ["nothing", "settled", "asked"])
def test_no_trace_of_a_word_is_left_when_the_last_row_that_holds_it_goes(also, before):
    index = Words()
    secrets = {slot: f"Zanzibar{slot} zanzibar plover{slot % 3}" for slot in range(0, 60, 5)}
    for slot in range(also + 60):
        index.add(slot, secrets.get(slot, f"tea {slot}"))
    if before != "nothing":
        index.settle()
    if before == "asked":
        index.look_up(["tea"])
    assert b"zanzibar15" in everything_in(vars(index))

    for slot, text in secrets.items():
        index.remove(slot, text)
    index.settle()

    left = everything_in(vars(index))
    assert b"tea" in left
    assert b"anzibar" not in left
    assert b"plover" not in left


def test_between_folds_no_word_is_kept_as_it_was_written():
    index = Words()
    index.add(0, "running")
    index.settle()

    assert b"run" in everything_in(vars(index))
    assert b"running" not in everything_in(vars(index))


def test_the_hash_of_a_word_goes_with_it():
    vocabulary, _ = postings.vocabulary_of([f"word{number}" for number in range(50)])
    ordered = vocabulary.words()
    erased = (7, 8, 6, 0, 49, 20)
    for number in erased:
        vocabulary.erase(number)

    hashes = vocabulary._hashes.tolist()
    assert not {hash(ordered[number]) & 0xFFFFFFFF for number in erased} & set(hashes)
    assert hashes == sorted(hashes)
    assert [vocabulary.find(word) for word in ordered] == [
        -1 if number in (7, 8, 6, 0, 49, 20) else number for number in range(50)
    ]


def test_what_was_said_of_a_row_that_is_gone_cannot_be_read_from_the_words_that_others_share():
    index = Words()
    for slot in range(300):
        index.add(slot, "tea milk plover" if slot == 40 else f"tea {slot}" if slot % 2 else f"milk {slot}")
    index.settle()
    index.look_up(["tea"])
    assert 40 in np.concatenate([segment.slots for segment in index._segments])
    index.remove(40, "tea milk plover")

    for segment in index._segments:
        assert 40 not in segment.slots


def test_a_word_that_stands_very_often_in_a_text_is_counted_in_full():
    index = Words()
    index.add(0, "tea " * 70_000)
    index.add(1, "tea " * 300 + "milk")
    index.look_up(["tea"])

    assert index.dump(np.arange(2)) == [[("tea", 70_000)], [("milk", 1), ("tea", 300)]]
    index.remove(0, "tea " * 70_000)
    index.renumber(np.array([1]))
    assert index.dump(np.arange(1)) == [[("milk", 1), ("tea", 300)]]


@pytest.mark.parametrize("count", [1, 3, 40, 5_000])
def test_the_largest_values_are_found_lower_places_first(count):
    values = np.random.default_rng(1).integers(0, 50, 4_000).astype(np.float32)
    expected = sorted(np.flatnonzero(values).tolist(), key=lambda at: (-values[at], at))[:count]

    assert words.largest(values, count).tolist() == expected


@pytest.mark.parametrize("sizes", [[], [5], [100, 70, 20, 4], [100, 60, 40], [100, 20, 90], [3, 1, 2], [100, 6, 4], [8, 1]])
def test_segments_stay_larger_than_all_behind_them_and_the_small_ones_are_one(sizes, monkeypatch):
    monkeypatch.setattr(words, "SMALL", 10)
    begin = words.merge_from(sizes)

    left = [*sizes[:begin], sum(sizes[begin:])] if begin < len(sizes) else sizes
    assert all(size > sum(left[at + 1 :]) for at, size in enumerate(left))
    assert sum(size <= 10 for size in left) <= 1
    assert begin == len(sizes) or begin == 0 or sizes[begin - 1] > max(10, sum(sizes[begin:]))
