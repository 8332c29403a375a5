"""Policies: what they inherit, how they look as JSON, and which make no sense."""

from datetime import timedelta
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memfold.errors import PolicyError
from memfold.policies import DAY, DEFAULT, Effective, Fading, Keep, Policies, Policy, Retention, Windows, dump, resolved
from memfold.rules import CHECKS, SECTIONS, Contradiction, contradictions, policy

ID = "0190b6a8-7c3e-7c3e-8000-000000000001"

# --- inheritance -------------------------------------------------------------------------------------------------------------


def test_what_nobody_says_is_the_default():
    assert resolved() == Effective() == Policies().of("any")
    assert policy({}) == Policy()
    assert policy(DEFAULT) == DEFAULT


def test_the_session_goes_before_the_category_and_that_before_the_tenant():
    days = {
        name: Policy(windows=Windows(older_than=each * DAY)) for each, name in enumerate(("tenant", "category", "session"), 1)
    }
    found = Policies(days["tenant"], {"chat": days["category"]}, days["session"])
    assert found.of("chat").windows.older_than == 3 * DAY
    found = Policies(days["tenant"], {"chat": days["category"]}, Policy(fading=Fading(enabled=True)))
    assert (found.of("chat").windows.older_than, found.of("other").windows.older_than) == (2 * DAY, DAY)
    assert found.of(None).fading.enabled


def test_a_section_is_inherited_as_a_whole_but_retention_value_by_value():
    tenant = Policy(windows=Windows(memories_max=20), retention=Retention(max_age=30 * DAY, session_memories_max=100))
    found = Policies(tenant, session=Policy(windows=Windows(memories_min=2), retention=Retention(session_memories_max=50)))
    assert found.of(None).windows == Windows(memories_min=2)
    assert found.of(None).retention == Retention(max_age=30 * DAY, session_memories_max=50)


def test_a_category_lives_as_long_as_the_most_specific_policy_says():
    tenant = Policy(retention=Retention(max_age=30 * DAY, ttl={"note": DAY, "chat": 2 * DAY}))
    own = {"chat": Policy(retention=Retention(max_age=3 * DAY))}
    found = Policies(tenant, own)
    assert [found.of(name).retention.max_age / DAY for name in ("note", "chat", "other", None)] == [1, 3, 30, 30]
    found = Policies(tenant, own, Policy(retention=Retention(max_age=4 * DAY)))
    assert found.of("note").retention.max_age == 4 * DAY


def test_categories_nobody_knows_share_what_holds_for_them():
    found = Policies(Policy(), {"chat": Policy()})
    assert found.of("a") is found.of("b") is found.of(None)
    assert found.of("chat") is found.of("chat")


def test_a_pin_is_known_in_any_spelling_of_its_id():
    keep = policy({"keep": {"memory_ids": [ID.upper(), ID.replace("-", "")]}}).keep
    assert keep.memory_ids == (ID,)
    assert keep.protects(UUID(ID).bytes, 0.5, None, ())
    assert not keep.protects(bytes(16), 0.5, None, ())


# --- as JSON -----------------------------------------------------------------------------------------------------------------

WORDS = st.lists(st.text("abc", min_size=1, max_size=3), max_size=3, unique=True).map(tuple)
DAYS = st.timedeltas(timedelta(seconds=1), 1_000 * DAY)
POLICIES = st.builds(
    Policy,
    windows=st.none()
    | st.builds(Windows, enabled=st.booleans(), older_than=DAYS, memories_max=st.integers(4, 99), target=st.floats(0.1, 0.9)),
    keep=st.none() | st.builds(Keep, importance_min=st.none() | st.floats(0, 1), tags=WORDS, newest=st.integers(0, 9)),
    retention=st.none() | st.builds(Retention, ttl=st.dictionaries(st.text("abc", min_size=1), DAYS, max_size=3)),
    fading=st.none() | st.builds(Fading, enabled=st.booleans(), half_life=DAYS, strength_min=st.floats(0.01, 0.99)),
)


@given(POLICIES)
def test_what_is_shown_is_what_can_be_given(value):
    shown = msgspec.json.decode(msgspec.json.encode(dump(value)))
    assert policy(shown) == policy(value) == value
    assert all(set(shown[name]) == set(SECTIONS[name].__struct_fields__) for name in shown)


def test_what_holds_is_shown_with_every_value():
    shown = dump(Policies().of(None))
    assert set(shown) == set(SECTIONS)
    assert shown["windows"]["older_than"] == "P1D"
    assert shown["windows"]["pause"] == "PT4H"
    assert policy(shown) == DEFAULT


def test_every_field_is_checked():
    assert {name: set(fields) for name, fields in CHECKS.items()} == {
        name: set(section.__struct_fields__) for name, section in SECTIONS.items()
    }


# --- what makes no sense -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (None, "policy"),
        ("P7D", "policy"),
        ([], "policy"),
        ({"window": {}}, "policy"),
        ({"windows": []}, "windows"),
        ({"windows": {"older": "P1D"}}, "windows"),
        ({"windows": {"enabled": 1}}, "windows.enabled"),
        ({"windows": {"older_than": "-P1D"}}, "windows.older_than"),
        ({"windows": {"older_than": "7 days"}}, "windows.older_than"),
        ({"windows": {"older_than": 7}}, "windows.older_than"),
        ({"windows": {"older_than": None}}, "windows.older_than"),
        ({"windows": {"older_than": timedelta.max}}, "windows.older_than"),
        ({"windows": {"older_than": "P99999999999999999D"}}, "windows.older_than"),
        ({"windows": {"pause": "PT0S"}}, "windows.pause"),
        ({"windows": {"memories_min": 1}}, "windows.memories_min"),
        ({"windows": {"memories_min": True}}, "windows.memories_min"),
        ({"windows": {"memories_min": 2.5}}, "windows.memories_min"),
        ({"windows": {"memories_min": 13}}, "windows.memories_min"),
        ({"windows": {"memories_max": 10**9}}, "windows.memories_max"),
        ({"windows": {"tokens_max": 0}}, "windows.tokens_max"),
        ({"windows": {"target": 0}}, "windows.target"),
        ({"windows": {"target": 1}}, "windows.target"),
        ({"windows": {"target": float("nan")}}, "windows.target"),
        ({"windows": {"target": float("inf")}}, "windows.target"),
        ({"windows": {"target": "0.25"}}, "windows.target"),
        ({"windows": {"target": 10**400}}, "windows.target"),
        ({"windows": {"target": 0.001}}, "windows.target"),
        ({"windows": {"depth_max": 0}}, "windows.depth_max"),
        ({"keep": {"importance_min": 1.5}}, "keep.importance_min"),
        ({"keep": {"importance_min": float("nan")}}, "keep.importance_min"),
        ({"keep": {"categories": "fact"}}, "keep.categories"),
        ({"keep": {"categories": [""]}}, "keep.categories"),
        ({"keep": {"tags": [None]}}, "keep.tags"),
        ({"keep": {"tags": ["x" * 257]}}, "keep.tags"),
        ({"keep": {"tags": ["\ud800"]}}, "keep.tags"),
        ({"keep": {"memory_ids": ["one"]}}, "keep.memory_ids"),
        ({"keep": {"memory_ids": [7]}}, "keep.memory_ids"),
        ({"keep": {"memory_ids": [ID] * 10_001}}, "keep.memory_ids"),
        ({"keep": {"newest": -1}}, "keep.newest"),
        ({"retention": {"max_age": "PT0S"}}, "retention.max_age"),
        ({"retention": {"ttl": ["P1D"]}}, "retention.ttl"),
        ({"retention": {"ttl": {"note": "P1M"}}}, "retention.ttl.note"),
        ({"retention": {"ttl": {"": "P1D"}}}, "retention.ttl"),
        ({"retention": {"ttl": {7: "P1D"}}}, "retention.ttl"),
        ({"retention": {"session_memories_max": 0}}, "retention.session_memories_max"),
        ({"retention": {"user_bytes_max": "1GB"}}, "retention.user_bytes_max"),
        ({"fading": {"half_life": "PT0S"}}, "fading.half_life"),
        ({"fading": {"strength_min": 0}}, "fading.strength_min"),
        (Policy(windows=Windows(target=2.0)), "windows.target"),
        (Policy(windows=Keep()), "windows"),
        ({"windows": {1: 2}}, "windows"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_with_the_path_to_the_fault(value, path):
    with pytest.raises(PolicyError) as refused:
        policy(value)
    assert refused.value.path == path
    assert str(refused.value).startswith(f"{path} ")
    assert "`" not in str(refused.value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"windows": {}, "retention": {"max_age": "PT12H"}}, "retention.max_age"),
        ({"windows": {"memories_min": 6}, "retention": {"session_memories_max": 5}}, "retention.session_memories_max"),
        ({"keep": {"newest": 21}, "retention": {"session_memories_max": 20}}, "keep.newest"),
        ({"keep": {"newest": 21}, "retention": {"user_memories_max": 20}}, "keep.newest"),
        ({"keep": {"categories": ["fact"]}, "retention": {"ttl": {"fact": "P9D"}}}, "retention.ttl.fact"),
        ({"retention": {"session_bytes_max": 9, "user_bytes_max": 8}}, "retention.session_bytes_max"),
    ],
)
def test_a_policy_that_contradicts_itself_is_refused(value, path):
    with pytest.raises(PolicyError) as refused:
        policy(value)
    assert refused.value.path == path


@pytest.mark.parametrize(
    "value",
    [
        {"windows": {"enabled": False}, "retention": {"max_age": "PT12H"}},
        {"windows": {}, "retention": {"ttl": {"scratch": "PT1H"}}},
        {"keep": {"newest": 20}, "retention": {"session_memories_max": 20}},
        {"windows": {"older_than": "PT0S", "memories_min": 2.0}},
        {"windows": None, "keep": {"importance_min": None}},
    ],
)
def test_what_only_looks_odd_is_kept(value):
    assert isinstance(policy(value), Policy)


@pytest.mark.parametrize(
    ("owner", "retention", "path"),
    [
        ("session", {"ttl": {"note": "P1D"}}, "retention.ttl"),
        ("category", {"ttl": {"note": "P1D"}}, "retention.ttl"),
        ("session", {"user_memories_max": 9}, "retention.user_memories_max"),
        ("category", {"session_bytes_max": 9}, "retention.session_bytes_max"),
    ],
)
def test_some_things_are_others_to_say(owner, retention, path):
    assert policy({"retention": retention}, "tenant")
    with pytest.raises(PolicyError) as refused:
        policy({"retention": retention}, owner)
    assert refused.value.path == path


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["P1D", ID]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.data())
def test_whatever_is_given_is_a_policy_or_a_policy_error(data):
    section = data.draw(st.sampled_from(sorted(SECTIONS)))
    field = data.draw(st.sampled_from(SECTIONS[section].__struct_fields__))
    value = {section: {field: data.draw(JSON)}}
    try:
        found = policy(value)
    except PolicyError as error:
        assert error.path.startswith(section)
    else:
        assert policy(dump(found)) == found


# --- policies that meet ------------------------------------------------------------------------------------------------------


def test_contradictions_between_policies_are_told():
    assert contradictions(Policies()) == []
    found = contradictions(Policies(policy({"retention": {"max_age": "PT12H"}})))
    assert [(each.category, each.path) for each in found] == [(None, "retention.max_age")]
    session = policy({"retention": {"session_memories_max": 10}}, "session")
    assert [each.path for each in contradictions(Policies(session=session))] == ["keep.newest"]


def test_contradictions_of_a_category_are_told_once():
    tenant = policy({"keep": {"categories": ["fact"]}})
    own = {"fact": policy({"retention": {"max_age": "P9D"}}, "category"), "chat": policy({"retention": {"max_age": "PT1H"}})}
    (found,) = contradictions(Policies(tenant, own))
    assert isinstance(found, Contradiction)
    assert (found.category, found.path) == ("fact", "retention.max_age")
