"""Bad input gets a typed error that says what to do, nothing of it is kept, and the store goes on working."""

import json
import os
from datetime import UTC, datetime

import pytest

from memfold import (
    FilterError,
    ForkedStore,
    InvalidMemory,
    InvalidQuery,
    KeyUnavailable,
    MemfoldError,
    MemoryNotFound,
    MemoryStore,
    PolicyError,
    Settings,
    SettingsError,
    StoreUnavailable,
)

SECRET = "plover-secret"

NAIVE = datetime(2026, 1, 1)


def deep(levels: int) -> object:
    value: object = 1
    for _ in range(levels):
        value = [value]
    return value


BAD_MEMORIES = {
    "empty content": {"content": ""},
    "blank content": {"content": " \n\t"},
    "a megabyte of content": {"content": "x" * 1_000_000},
    "content that is no text": {"content": 7},
    "content of bytes": {"content": b"tea"},
    "a NUL": {"content": f"{SECRET}\0"},
    "half a surrogate pair": {"content": f"{SECRET}\ud800"},
    "a NUL in a tag": {"tags": ["a\0"]},
    "a surrogate in metadata": {"metadata": {"a": "\udfff"}},
    "NaN importance": {"importance": float("nan")},
    "importance above 1": {"importance": 1.01},
    "importance below 0": {"importance": -0.01},
    "importance of text": {"importance": SECRET},
    "importance of a boolean": {"importance": True},
    "a naive datetime": {"occurred_at": NAIVE},
    "a datetime of text": {"occurred_at": "2026-01-01"},
    "a datetime before time": {"occurred_at": datetime.min.replace(tzinfo=UTC)},
    "metadata that is no object": {"metadata": [SECRET]},
    "metadata with a set": {"metadata": {"a": {SECRET}}},
    "metadata with bytes": {"metadata": {"a": b"x"}},
    "metadata with an object": {"metadata": {"a": object()}},
    "metadata with a number as key": {"metadata": {1: SECRET}},
    "metadata with NaN": {"metadata": {"a": float("nan")}},
    "metadata with an infinity": {"metadata": {"a": [float("inf")]}},
    "metadata with an integer beyond 64 bits": {"metadata": {"a": 2**63}},
    "metadata 10,000 levels deep": {"metadata": {"a": deep(10_000)}},
    "metadata of 100 kB": {"metadata": {"a": SECRET * 10_000}},
    "tags of one string": {"tags": SECRET},
    "tags of numbers": {"tags": [1]},
    "tags with None": {"tags": [None]},
    "a hundred tags": {"tags": [f"t{number}" for number in range(100)]},
    "an empty role": {"role": ""},
    "a long speaker": {"speaker": SECRET * 100},
    "a category that is no text": {"category": ["x"]},
    "an empty session name": {"session_id": ""},
    "a session name that is no text": {"session_id": 7},
    "a long session name": {"session_id": SECRET * 100},
    "an empty user name": {"user_id": ""},
    "an empty idempotency key": {"idempotency_key": ""},
    "a long idempotency key": {"idempotency_key": SECRET * 100},
}


def is_discreet(error: MemfoldError) -> bool:
    return SECRET not in str(error) and SECRET not in repr(error) and SECRET not in json.dumps(vars(error), default=repr)


@pytest.mark.parametrize("fields", BAD_MEMORIES.values(), ids=BAD_MEMORIES.keys())
def test_a_bad_memory_is_refused_and_nothing_is_stored(store, fields):
    call = {"content": SECRET, "session_id": "s"} | fields
    with pytest.raises(InvalidMemory) as caught:
        store.remember(call.pop("content"), **call)
    assert is_discreet(caught.value)
    assert store.stats().events == 0
    assert store.remember("fine", session_id="s").version == 1


BAD_ITEMS = {
    "an unknown field": {"content": "x", SECRET: 1},
    "an id": {"content": "x", "id": "7"},
    "no content": {"speaker": "x"},
    "a number": 7,
    "None": None,
    "an empty string": "",
    "both name and speaker": {"content": "x", "name": "a", "speaker": "b"},
}


@pytest.mark.parametrize("item", BAD_ITEMS.values(), ids=BAD_ITEMS.keys())
def test_one_bad_item_refuses_the_whole_batch_and_is_named(store, item):
    with pytest.raises(InvalidMemory, match="item 1") as caught:
        store.remember_many(["fine", item, "fine"], session_id="s")
    assert caught.value.index == 1
    assert is_discreet(caught.value)
    assert store.count("s") == 0


@pytest.mark.parametrize("items", ["one string", {"content": "x"}, 7, None])
def test_a_batch_must_be_a_list(store, items):
    with pytest.raises(InvalidMemory):
        store.remember_many(items, session_id="s")


def test_a_batch_has_an_end(store):
    with pytest.raises(InvalidMemory, match="10,001"):
        store.remember_many(["x"] * 10_001, session_id="s")
    with pytest.raises(InvalidMemory, match="characters"):
        store.remember_many(["x" * 200_000] * 400, session_id="s")
    assert len(store.remember_many(["x"] * 10_000, session_id="s")) == 10_000
    assert store.count("s") == 10_000


BAD_READS = {
    "limit 0": lambda store: store.recall("tea", session_id="s", limit=0),
    "limit -1": lambda store: store.find("s", limit=-1),
    "limit of a million": lambda store: store.find("s", limit=1_000_000),
    "limit True": lambda store: store.sessions(limit=True),
    "limit of text": lambda store: store.find("s", limit="ten"),
    "an empty query": lambda store: store.recall("", session_id="s"),
    "a blank query": lambda store: store.recall(" \n", session_id="s"),
    "a query that is no text": lambda store: store.recall(None, session_id="s"),
    "min_score 2": lambda store: store.recall("tea", session_id="s", min_score=2),
    "min_score NaN": lambda store: store.recall("tea", session_id="s", min_score=float("nan")),
    "wait_s below 0": lambda store: store.recall("tea", session_id="s", wait_s=-1),
    "a naive before": lambda store: store.find("s", before=NAIVE),
    "an after of text": lambda store: store.recall("tea", session_id="s", after="2026"),
    "an order that is none": lambda store: store.find("s", order="best"),
    "an empty session": lambda store: store.count(""),
    "a session that is no text": lambda store: store.find(7),
    "a position below 0": lambda store: store.events(-1),
    "a position of text": lambda store: store.events("now"),
    "a position beyond 64 bits": lambda store: store.events(2**63),
    "a cursor of something else": lambda store: store.sessions(cursor="x"),
    "an unknown operator": lambda store: store.find("s", where={"role": {"$regex": SECRET}}),
    "a filter that is none": lambda store: store.count("s", where=[SECRET]),
    "an empty filter to forget by": lambda store: store.forget_where("s", {}),
    "no filter to forget by": lambda store: store.forget_where("s", None),
}


@pytest.mark.parametrize("read", BAD_READS.values(), ids=BAD_READS.keys())
def test_a_bad_read_is_refused(store, read):
    store.remember("tea", session_id="s")
    with pytest.raises(InvalidQuery) as caught:
        read(store)
    assert is_discreet(caught.value)
    assert store.count("s") == 1


def test_a_filter_error_says_where(store):
    with pytest.raises(FilterError) as caught:
        store.find("s", where={"$and": [{"role": "user"}, {"importance": {"$gt": SECRET}}]})
    assert caught.value.path == "$and[1].importance.$gt"
    assert is_discreet(caught.value)


NOWHERE = "01a1fca0-b8bf-71ee-aa42-d184c3a406c8"
BAD_CONSOLIDATIONS = {
    "dry_run of text": ("dry_run", lambda store: store.consolidate(dry_run="yes")),
    "summaries 1": ("summaries", lambda store: store.consolidate(dry_run=True, summaries=1)),
    "until_idle None": ("until_idle", lambda store: store.consolidate(until_idle=None)),
    "progress that is no function": ("progress", lambda store: store.consolidate(progress=7)),
    "a session that is no text": ("session_id", lambda store: store.consolidate(7)),
    "an empty session": ("session_id", lambda store: store.consolidate("")),
    "a policy of a session that is no text": ("session_id", lambda store: store.set_policy({}, session_id=7)),
    "a policy of an empty category": ("category", lambda store: store.set_policy({}, category="")),
    "the policy of a category that is no text": ("category", lambda store: store.policy(category=7)),
    "sources, at most none": ("limit", lambda store: store.sources(NOWHERE, limit=0)),
    "sources for an empty query": ("query", lambda store: store.sources(NOWHERE, query=" ")),
    "sources for a query that is no text": ("query", lambda store: store.sources(NOWHERE, query=7)),
    "restore None": ("memory_ids", lambda store: store.restore(None)),
    "restore a number": ("memory_ids", lambda store: store.restore(7)),
    "restore a list": ("memory_ids", lambda store: store.restore([NOWHERE, []])),
    "restore a None": ("memory_ids", lambda store: store.restore([None])),
    "restore very much": ("memory_ids", lambda store: store.restore([NOWHERE] * 10_001)),
    "find what is archived, perhaps": ("include_archived", lambda store: store.find("s", include_archived="no")),
    "count what is archived, perhaps": ("include_archived", lambda store: store.count("s", include_archived=1)),
    "recall what is archived, perhaps": ("include_archived", lambda store: store.recall("tea", include_archived=None)),
    "context of what is archived, perhaps": ("include_archived", lambda store: store.context("tea", include_archived="")),
    "refresh 1": ("refresh", lambda store: store.recall("tea", session_id="s", refresh=1)),
    "days of text": ("days", lambda store: store.stats(days="seven")),
    "days below 0": ("days", lambda store: store.stats(days=-1)),
    "days True": ("days", lambda store: store.stats(days=True)),
    "days without end": ("days", lambda store: store.stats(days=10**9)),
}


@pytest.mark.parametrize(("argument", "call"), BAD_CONSOLIDATIONS.values(), ids=BAD_CONSOLIDATIONS.keys())
def test_a_bad_argument_about_summaries_is_named_and_nothing_is_written(store, argument, call):
    store.remember("tea", session_id="s")
    with pytest.raises(InvalidQuery) as caught:
        call(store)
    assert caught.value.argument == argument
    assert store.stats().events == 1
    assert store.policies()["tenant"] is None


BAD_POLICIES = {
    "a policy that is text": ("policy", {"policy": SECRET}),
    "a policy that is a list": ("policy", {"policy": [{}]}),
    "an unknown section": ("policy", {"policy": {SECRET: {}}}),
    "an unknown field": ("windows", {"policy": {"windows": {SECRET: 1}}}),
    "a duration of words": ("windows.older_than", {"policy": {"windows": {"older_than": SECRET}}}),
    "a window that is larger than it may be": (
        "windows.memories_min",
        {"policy": {"windows": {"memories_min": 9, "memories_max": 3}}},
    ),
    "a target of everything": ("windows.target", {"policy": {"windows": {"target": 1.0}}}),
    "a retention in which nothing gets old": (
        "retention.max_age",
        {"policy": {"windows": {"older_than": "P7D"}, "retention": {"max_age": "P1D"}}},
    ),
    "a limit of the user's in a session": (
        "retention.user_bytes_max",
        {"policy": {"retention": {"user_bytes_max": 1}}, "session_id": "s"},
    ),
    "a pin that is no id": ("keep.memory_ids", {"policy": {"keep": {"memory_ids": [SECRET]}}}),
    "of a session and of a category": ("category", {"policy": {}, "session_id": "s", "category": "fact"}),
    "of a session that is not there": ("session_id", {"policy": {}, "session_id": SECRET}),
}


@pytest.mark.parametrize(("path", "arguments"), BAD_POLICIES.values(), ids=BAD_POLICIES.keys())
def test_a_bad_policy_is_refused_with_the_path_to_the_fault(store, path, arguments):
    store.remember("tea", session_id="s")
    with pytest.raises(PolicyError) as caught:
        store.set_policy(**arguments)
    assert caught.value.path == path
    assert path in str(caught.value)
    assert is_discreet(caught.value)
    assert (store.stats().events, store.policies()) == (1, {"tenant": None, "categories": {}, "sessions": {}})


@pytest.mark.parametrize("memory_id", [NOWHERE, SECRET, ""])
@pytest.mark.parametrize("verb", ["sources", "derived_from", "restore"])
def test_an_id_of_nothing_leads_nowhere_and_brings_nothing_back(store, verb, memory_id):
    memory = store.remember("tea", session_id="s")
    with pytest.raises(MemoryNotFound):
        getattr(store, verb)([memory.id, memory_id] if verb == "restore" else memory_id)
    assert store.stats().events == 1


class Nameless:
    def summarize(self, window):
        return None


@pytest.mark.parametrize("summarizer", [7, object(), Nameless, Nameless()])
def test_a_summarizer_that_is_none_is_refused(server_url, summarizer):
    with pytest.raises(SettingsError, match="summarizer"):
        MemoryStore(server_url, master_key="A" * 43, summarizer=summarizer)


def test_an_endpoint_that_is_none_stops_those_alone_who_would_ask_it(make_store, monkeypatch):
    monkeypatch.setenv("MEMFOLD_LLM_MODEL", "small")
    monkeypatch.setenv("MEMFOLD_LLM_BASE_URL", f"ftp://{SECRET}")
    store = make_store()
    store.remember("tea", session_id="s")
    with pytest.raises(SettingsError, match="base_url must be an http") as caught:
        store.consolidate()
    assert is_discreet(caught.value)
    assert (store.stats().events, store.policies()["tenant"], store.parked()) == (1, None, [])
    assert store.status().summarizer is None


def test_what_is_not_there_is_nothing_to_do(store):
    done = store.consolidate("nowhere", until_idle=True)
    assert (done.sessions, done.stopped) == ((), None)
    assert (store.restore([]), store.parked(), store.retry_parked()) == ([], [], 0)
    assert store.stats().events == 0


@pytest.mark.parametrize("reason", ["free text with spaces", SECRET.upper(), "", "x" * 65, 7])
def test_a_reason_is_a_short_code(store, reason):
    memory = store.remember("tea", session_id="s")
    with pytest.raises(InvalidMemory, match="reason"):
        store.forget(memory.id, reason=reason)
    assert store.get(memory.id) == memory


@pytest.mark.parametrize(
    "fields", [{"content": None}, {"content": ""}, {"importance": 2}, {"metadata": 7}, {"expected_version": "1"}]
)
def test_a_bad_update_changes_nothing(store, fields):
    memory = store.remember("tea", session_id="s")
    with pytest.raises(InvalidMemory):
        store.update(memory.id, **fields)
    assert store.get(memory.id) == memory


def test_integers_of_64_bits_and_keys_with_dots_are_kept_and_found(store):
    metadata = {"big": 2**63 - 1, "small": -(2**63), "a.b": "dotted", "a": {"b": "nested"}}
    memory = store.remember("tea", session_id="s", metadata=metadata)
    assert store.get(memory.id).metadata == metadata
    assert store.count("s", where={"big": 2**63 - 1, "small": {"$lt": -(2**63) + 1}}) == 1
    assert store.count("s", where={"a.b": "nested"}) == 1
    assert store.count("s", where={"a\\.b": "dotted"}) == 1


def test_unusual_but_proper_text_is_kept_to_the_letter(store):
    for text in (
        "😀 emoji",
        "e\u0301 combined",
        "\u202eright to left",
        "tab\tand\r\nlines",
        "'; DROP TABLE memories; --",
        "\ufeffbom",
    ):
        memory = store.remember(text, session_id=text, user_id=text, speaker=text, tags=[text], metadata={text: text})
        assert store.get(memory.id).content == text
        assert store.find(text, where={"tags": text}).memories == [memory]


def test_a_wrong_master_key_is_found_before_anything_is_written(store, server_url, tenant):
    store.remember("tea", session_id="s")
    with pytest.raises(KeyUnavailable, match="master key"):
        MemoryStore(server_url, tenant=tenant, master_key="A" * 43)
    with pytest.raises(KeyUnavailable):
        MemoryStore(server_url, tenant="another", master_key="A" * 43)
    assert store.count("s") == 1


@pytest.mark.parametrize("key", ["", "short", "A" * 42, "not base64 !!!", b"12", "A" * 100])
def test_a_master_key_that_is_none_is_refused(server_url, key):
    with pytest.raises(KeyUnavailable, match=r"base64url|make one"):
        MemoryStore(server_url, master_key=key)


def test_a_url_without_a_key_says_how_to_make_one(server_url, monkeypatch):
    monkeypatch.delenv("MEMFOLD_MASTER_KEY", raising=False)
    with pytest.raises(KeyUnavailable, match="urlsafe_b64encode"):
        MemoryStore(server_url)


@pytest.mark.parametrize("key", [7, object(), ["x"]])
def test_something_that_is_no_key_service_is_refused(server_url, key):
    with pytest.raises(KeyUnavailable, match="KeyService"):
        MemoryStore(server_url, master_key=key)


@pytest.mark.parametrize("clock", [lambda: NAIVE, lambda: 7, None, 7])
def test_a_clock_that_is_none_is_refused(server_url, clock):
    with pytest.raises(SettingsError, match="clock"):
        MemoryStore(server_url, master_key="A" * 43, clock=clock)


@pytest.mark.parametrize("tenant", ["", None, 7, "x" * 1000])
def test_a_tenant_that_is_none_is_refused(server_url, tenant):
    with pytest.raises(SettingsError, match="tenant"):
        MemoryStore(server_url, tenant=tenant, master_key="A" * 43)


@pytest.mark.parametrize("target", ["mysql://x", "http://localhost", "", 7])
def test_a_target_that_is_none_is_refused(target):
    with pytest.raises(SettingsError):
        MemoryStore(target)


def test_a_server_that_is_not_there_is_unavailable():
    with pytest.raises(StoreUnavailable) as caught:
        MemoryStore("postgresql://nobody@127.0.0.1:1/none", master_key="A" * 43, settings=Settings(connect_timeout_s=2))
    assert caught.value.outcome == "not_written"


@pytest.mark.parametrize("settings", [{"view_idle_s": 0}, {"append_connections": 20}, {"retries_max": -1}])
def test_settings_that_make_no_sense_are_refused(settings):
    with pytest.raises(SettingsError):
        Settings(**settings)


def test_a_forked_child_must_open_its_own(store):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.count("s")
        except ForkedStore as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert b"open a MemoryStore of your own" in os.read(reader, 1000)
    assert store.remember("still here", session_id="s").version == 1
