"""What the verbs of a store promise, one behaviour a test."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from memfold import (
    IdempotencyConflict,
    InvalidQuery,
    MemoryForgotten,
    MemoryNotFound,
    NewMemory,
    SessionOwnerConflict,
    Settings,
    SettingsError,
    StoreClosed,
    VersionConflict,
)
from memfold.minilm import static_embedder

T0 = datetime(2026, 3, 1, 12, tzinfo=UTC)


def contents(memories):
    return [memory.content for memory in memories]


def test_a_remembered_memory_has_what_it_was_given(store):
    when = datetime(2026, 3, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    memory = store.remember(
        "the door code is 4711",
        session_id="porter",
        user_id="anna",
        role="user",
        speaker="Anna",
        category="fact",
        importance=0.9,
        tags=["door", "code", "door"],
        metadata={"source": {"kind": "chat"}},
        occurred_at=when,
    )

    assert store.get(memory.id) == memory
    assert (memory.session_id, memory.user_id, memory.version, memory.status) == ("porter", "anna", 1, "active")
    assert memory.tags == ("door", "code")
    assert memory.occurred_at == when
    assert memory.occurred_at.tzinfo is UTC
    assert memory.created_at == memory.updated_at


def test_a_memory_occurred_when_it_was_created_unless_told_otherwise(store):
    memory = store.remember("now", session_id="s")
    assert memory.occurred_at == memory.created_at


def test_the_clock_is_the_stores_and_never_runs_backwards_in_a_session(make_store):
    times = iter([T0, T0, T0 - timedelta(hours=1), T0 - timedelta(hours=1), T0 + timedelta(hours=1), T0 + timedelta(hours=1)])
    store = make_store(clock=lambda: next(times, T0))
    created = [store.remember(str(number), session_id="s").created_at for number in range(4)]
    assert created == sorted(created)
    assert created[0] == T0


def test_a_memory_is_recalled_by_its_words_in_any_form(store):
    store.remember("We are moving to the new studio in May", session_id="s")
    store.remember("The cat sleeps", session_id="s")

    found = store.recall("when did they move studios?", session_id="s")

    assert contents(hit.memory for hit in found)[0] == "We are moving to the new studio in May"
    assert 0 < found[0].score <= 1
    assert found[0].parts == {}
    store.remember("Ann: and the dog barks", session_id="t", speaker="Ann")
    mixed = {"meaning", "words", "neighbours", "speaker"}
    for query, session, some in (("move studios", "s", mixed), ("which dog barks?", "t", {"meaning", "words", "usual"})):
        (best, *_) = store.recall(query, session_id=session, explain=True)
        assert set(best.parts) >= some
        assert sum(best.parts.values()) == pytest.approx(best.score, abs=1e-5)
    assert found.position > 0
    assert (found.model, found.withheld) == (static_embedder().name, 0)


def test_scores_never_increase_and_min_score_cuts(store):
    store.remember_many([f"tea {'green ' * (number % 5)}number {number}" for number in range(50)], session_id="s")
    found = store.recall("green tea", session_id="s", limit=50)
    scores = [hit.score for hit in found]
    assert scores == sorted(scores, reverse=True)
    assert len(store.recall("green tea", session_id="s", limit=50, min_score=scores[10])) >= 11
    assert all(hit.score >= scores[10] for hit in store.recall("green tea", session_id="s", limit=50, min_score=scores[10]))


def test_a_match_in_a_session_of_one_memory_counts(store):
    store.remember("I'm allergic to peanuts", session_id="s")
    assert store.recall("peanuts", session_id="s")[0].score > 0.2


@pytest.mark.parametrize(
    "query", ['NEAR/3 "', "a AND", "content:tea", "tea*", "(((", '"', "tea'--", "-tea", "^tea", "{tea}", "NOT"]
)
def test_no_character_of_a_query_is_special(store, query):
    store.remember("tea and near and not content", session_id="s")
    store.recall(query, session_id="s")


def test_a_query_that_says_nothing_finds_nothing(store):
    store.remember("tea", session_id="s")
    assert store.recall("?!…", session_id="s") == []


def test_a_very_long_query_is_answered(store):
    store.remember("tea", session_id="s")
    assert len(store.recall("tea " * 25_000, session_id="s")) == 1


def test_the_speaker_counts_as_a_word(store):
    store.remember("I like tea", session_id="s", speaker="Jonas")
    assert len(store.recall("Jonas", session_id="s")) == 1


def test_recall_obeys_where_and_times(store):
    for day in range(5):
        store.remember(f"tea on day {day}", session_id="s", occurred_at=T0 + timedelta(days=day), metadata={"day": day})
    found = store.recall(
        "tea", session_id="s", after=T0 + timedelta(days=1), before=T0 + timedelta(days=4), where={"day": {"$ne": 2}}
    )
    assert sorted(hit.memory.metadata["day"] for hit in found) == [1, 3]


def test_recall_sees_what_another_store_just_remembered(make_store):
    one, other = make_store(), make_store()
    for number in range(20):
        one.remember(f"word{number}", session_id="s")
        assert other.recall(f"word{number}", session_id="s")[0].memory.content == f"word{number}"


def test_an_update_changes_only_what_is_given_and_none_clears(store):
    memory = store.remember(
        "tea", session_id="s", role="user", category="drink", tags=["hot"], metadata={"a": 1}, importance=0.9
    )

    changed = store.update(memory.id, content="green tea", category=None, importance=None, tags=None, metadata={"b": 2})

    assert (changed.content, changed.role, changed.category, changed.importance) == ("green tea", "user", None, 0.5)
    assert (changed.tags, changed.metadata, changed.version) == ((), {"b": 2}, 2)
    assert changed.created_at == memory.created_at
    assert store.get(memory.id) == changed
    assert store.recall("green", session_id="s")[0].memory == changed


def test_updated_words_are_found_and_old_ones_are_not(store):
    memory = store.remember("the code is 4711", session_id="s")
    store.update(memory.id, content="the code is 9902")
    assert all(hit.parts["words"] == 0 for hit in store.recall("4711", session_id="s", ranking="fixed", explain=True))
    assert store.recall("9902", session_id="s", ranking="fixed", explain=True)[0].parts["words"] > 0


def test_an_update_of_nothing_appends_nothing(store):
    memory = store.remember("tea", session_id="s")
    assert store.update(memory.id) == memory
    assert store.stats("s").events == 1


def test_an_update_at_a_stale_version_is_refused(store):
    memory = store.remember("tea", session_id="s")
    store.update(memory.id, content="green tea", expected_version=1)
    with pytest.raises(VersionConflict) as caught:
        store.update(memory.id, content="black tea", expected_version=1)
    assert (caught.value.expected, caught.value.actual) == (1, 2)
    assert store.get(memory.id).content == "green tea"


def test_history_lists_every_version(store):
    memory = store.remember("one", session_id="s")
    store.update(memory.id, content="two")
    store.update(memory.id, content="three")

    history = store.history(memory.id)

    assert [(change.version, change.type, change.memory.content) for change in history] == [
        (1, "remembered", "one"),
        (2, "updated", "two"),
        (3, "updated", "three"),
    ]
    assert [change.position for change in history] == sorted(change.position for change in history)


def test_a_forgotten_memory_is_gone_everywhere(store):
    memory = store.remember("the door code is 4711", session_id="s")
    store.update(memory.id, content="the door code is 9902")

    erasure = store.forget(memory.id, reason="user_request")

    with pytest.raises(MemoryForgotten):
        store.get(memory.id)
    with pytest.raises(MemoryForgotten):
        store.update(memory.id, content="again")
    assert store.recall("door code", session_id="s") == []
    assert store.find("s").memories == []
    assert store.count("s") == 0
    assert [(change.version, change.type, change.memory) for change in store.history(memory.id)] == [
        (1, "remembered", None),
        (2, "updated", None),
        (3, "forgotten", None),
    ]
    assert (erasure.memory_ids, erasure.keys_deleted, erasure.reason) == ((memory.id,), 2, "user_request")
    assert [event.data for event in store.events(session_id="s")][:2] == [None, None]


def test_forgetting_twice_returns_the_first_erasure(store):
    memory = store.remember("tea", session_id="s")
    first = store.forget(memory.id, reason="user_request")
    assert store.forget(memory.id) == first
    assert store.forget(memory.id, reason="other") == first


def test_a_store_that_never_saw_the_memory_answers_the_same(make_store):
    one, other = make_store(tenant="one"), make_store(tenant="other")
    for number in range(30):
        for store in (one, other):
            store.remember(f"tea {number} with {'milk' if number % 3 else 'lemon'}", session_id="s", occurred_at=T0)
        if number % 4 == 0:
            one.forget(one.remember(f"secret tea milk {number}", session_id="s", occurred_at=T0).id)
    for query in ("tea", "milk", "lemon tea", "secret", "7"):
        answers = [
            [(hit.memory.content, hit.score) for hit in store.recall(query, session_id="s", limit=50)] for store in (one, other)
        ]
        assert answers[0] == answers[1]


def test_a_forgotten_session_is_empty_and_its_name_means_a_new_one(store):
    old = store.remember("old", session_id="s", user_id="anna")

    erasure = store.forget_session("s")

    assert (erasure.scope, erasure.memory_ids, erasure.keys_deleted) == ("session", (old.id,), 1)
    assert store.forget_session("s") == erasure
    assert store.find("s").memories == []
    assert store.recall("old", session_id="s") == []
    assert store.count("s") == 0
    assert store.sessions().sessions == []
    with pytest.raises(MemoryForgotten):
        store.get(old.id)
    assert store.forget(old.id) == erasure
    assert [change.type for change in store.history(old.id)] == ["remembered"]

    new = store.remember("new", session_id="s", user_id="bert")
    assert contents(store.find("s").memories) == ["new"]
    assert new.user_id == "bert"
    assert store.forget_session("s") != erasure


def test_a_forgotten_user_takes_every_session_along(make_store):
    store, other_process = make_store(), make_store()
    for number in range(3):
        store.remember(f"of anna {number}", session_id=f"s{number}", user_id="anna")
    kept = store.remember("of bert", session_id="b", user_id="bert")
    assert other_process.count("s1") == 1

    erasure = store.forget_user("anna")

    assert (erasure.scope, erasure.keys_deleted, len(erasure.memory_ids)) == ("user", 3, 3)
    assert store.forget_user("anna") == erasure
    assert [session.session_id for session in store.sessions().sessions] == ["b"]
    assert store.sessions("anna").sessions == []
    assert other_process.count("s1") == 0
    assert store.get(kept.id) == kept
    other_process.remember("a new life", session_id="s1", user_id="anna")
    assert contents(store.find("s1").memories) == ["a new life"]


def test_forget_where_forgets_what_matches_and_nothing_else(store):
    store.remember_many(
        [{"content": f"m{number}", "tags": ["odd"] if number % 2 else []} for number in range(6)], session_id="s"
    )
    erasure = store.forget_where("s", {"tags": "odd"})
    assert (erasure.scope, erasure.keys_deleted) == ("filter", 3)
    assert sorted(contents(store.find("s").memories)) == ["m0", "m2", "m4"]
    assert store.forget_where("s", {"tags": "odd"}).memory_ids == ()


def test_forgetting_what_never_was_destroys_nothing(store):
    for erasure in (store.forget_session("x"), store.forget_user("x"), store.forget_where("x", {"role": "user"})):
        assert (erasure.position, erasure.keys_deleted, erasure.memory_ids) == (None, 0, ())


def test_a_session_belongs_to_the_user_of_its_first_remember(store):
    store.remember("a", session_id="s", user_id="anna")
    with pytest.raises(SessionOwnerConflict):
        store.remember("b", session_id="s", user_id="bert")
    assert store.remember("c", session_id="s").user_id == "anna"
    assert store.remember("d", session_id="t").user_id == "t"


def test_find_pages_through_everything_once_in_both_orders(store):
    store.remember_many(
        [{"content": str(number), "occurred_at": T0 + timedelta(minutes=number // 3)} for number in range(50)], session_id="s"
    )
    for order, expected in (("oldest", range(50)), ("newest", reversed(range(50)))):
        seen, cursor = [], None
        while True:
            page = store.find("s", order=order, limit=7, cursor=cursor)
            seen += contents(page.memories)
            if (cursor := page.cursor) is None:
                break
        assert seen == [str(number) for number in expected]


def test_find_is_half_open(store):
    for hour in range(4):
        store.remember(str(hour), session_id="s", occurred_at=T0 + timedelta(hours=hour))
    page = store.find("s", after=T0 + timedelta(hours=1), before=T0 + timedelta(hours=3), order="oldest")
    assert contents(page.memories) == ["1", "2"]


def test_a_cursor_of_another_order_is_refused(store):
    store.remember_many(["a", "b"], session_id="s")
    cursor = store.find("s", limit=1).cursor
    for bad in (cursor, "nonsense", "", "AAAA"):
        with pytest.raises(InvalidQuery, match="cursor"):
            store.find("s", order="oldest", cursor=bad)


def test_count_counts(store):
    store.remember_many([{"content": "a", "importance": 0.9}, {"content": "b", "importance": 0.1}], session_id="s")
    assert store.count("s") == 2
    assert store.count("s", where={"importance": {"$gt": 0.5}}) == 1
    assert store.count("nobody") == 0


def test_remember_many_takes_strings_dicts_and_new_memories_in_order(store):
    items = ["a", {"content": "b", "name": "Bo"}, NewMemory(content="c", importance=0.25)]
    memories = store.remember_many(items, session_id="s")
    assert [(memory.content, memory.speaker, memory.importance) for memory in memories] == [
        ("a", None, 0.5),
        ("b", "Bo", 0.5),
        ("c", None, 0.25),
    ]
    assert contents(store.find("s", order="oldest").memories) == ["a", "b", "c"]
    assert store.remember_many([], session_id="s") == []


def test_the_same_key_and_content_returns_the_first_answer(store):
    first = store.remember("tea", session_id="s", metadata={"a": 1, "b": 2}, idempotency_key="k")
    store.update(first.id, content="green tea")
    assert store.remember("tea", session_id="s", metadata={"b": 2, "a": 1}, idempotency_key="k") == first
    assert store.count("s") == 1
    assert store.remember("tea", session_id="other", idempotency_key="k").id != first.id


def test_the_same_key_with_other_content_is_a_conflict(store):
    store.remember("tea", session_id="s", idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        store.remember("coffee", session_id="s", idempotency_key="k")
    with pytest.raises(IdempotencyConflict):
        store.remember_many(["tea", "coffee"], session_id="s", idempotency_key="k")


def test_the_key_of_a_forgotten_memory_says_so(store):
    memory = store.remember("tea", session_id="s", idempotency_key="k")
    store.forget(memory.id)
    with pytest.raises(MemoryForgotten):
        store.remember("tea", session_id="s", idempotency_key="k")


def test_the_key_of_a_batch_is_of_the_whole_batch(store):
    first = store.remember_many(["a", "b", "c"], session_id="s", idempotency_key="k")
    assert store.remember_many(["a", "b", "c"], session_id="s", idempotency_key="k") == first
    with pytest.raises(IdempotencyConflict):
        store.remember_many(["a", "b"], session_id="s", idempotency_key="k")
    store.forget(first[1].id)
    with pytest.raises(MemoryForgotten):
        store.remember_many(["a", "b", "c"], session_id="s", idempotency_key="k")


def test_an_update_with_a_key_happens_once(store):
    memory = store.remember("tea", session_id="s")
    first = store.update(memory.id, content="green tea", expected_version=1, idempotency_key="k")
    store.update(memory.id, content="black tea")
    assert store.update(memory.id, content="green tea", expected_version=1, idempotency_key="k") == first
    assert store.get(memory.id).content == "black tea"
    with pytest.raises(IdempotencyConflict):
        store.update(memory.id, content="white tea", idempotency_key="k")
    other = store.remember("coffee", session_id="s")
    with pytest.raises(IdempotencyConflict):
        store.update(other.id, content="green tea", idempotency_key="k")


def test_an_unknown_memory_is_not_found(store):
    for call in (store.get, store.forget, store.history, lambda id: store.update(id, content="x")):
        for unknown in ("01a1fc89-66f1-76ed-b78f-c52c2f92bfff", "no id", "", None, 7):
            with pytest.raises(MemoryNotFound):
                call(unknown)


def test_tenants_do_not_see_each_other(make_store):
    one, other = make_store(tenant="one-x"), make_store(tenant="other-x")
    memory = one.remember("tea", session_id="s")
    assert other.count("s") == 0
    assert list(other.events()) == []
    with pytest.raises(MemoryNotFound):
        other.get(memory.id)


def test_events_are_ordered_and_resumable_at_any_position(store):
    memories = store.remember_many([str(number) for number in range(10)], session_id="a", user_id="u")
    store.remember("b", session_id="b")
    store.update(memories[0].id, content="changed")
    store.forget(memories[1].id)

    events = list(store.events())

    positions = [event.position for event in events]
    assert positions == sorted(set(positions))
    assert [event.type for event in events][-3:] == ["MemoryRemembered", "MemoryUpdated", "MemoryForgotten"]
    for position in [0, *positions]:
        assert [event.position for event in store.events(position)] == [other for other in positions if other > position]
        assert [event.position for event in store.events(position, session_id="b")] == [
            p for p in positions[10:11] if p > position
        ]
    assert events[1].data is None
    assert events[0].data.content == "0"
    assert {event.session_id for event in events} == {"a", "b"}
    assert [event.version for event in store.events(session_id="a")] == list(range(1, 13))


def test_sessions_are_listed_newest_first_in_pages(store):
    for number in range(7):
        store.remember_many(["x"] * (number + 1), session_id=f"s{number}", user_id=f"u{number % 2}")
    seen, cursor = [], None
    while True:
        page = store.sessions(limit=3, cursor=cursor)
        seen += page.sessions
        if (cursor := page.cursor) is None:
            break
    assert [session.session_id for session in seen] == [f"s{number}" for number in reversed(range(7))]
    assert [session.memories for session in seen] == list(reversed(range(1, 8)))
    assert {session.session_id for session in store.sessions("u1").sessions} == {"s1", "s3", "s5"}
    assert store.sessions("nobody").sessions == []


def test_stats_count(store):
    memories = store.remember_many(["a", "b", "c"], session_id="s", user_id="u")
    store.remember("d", session_id="t", user_id="u")
    store.forget(memories[0].id)
    everything, one = store.stats(), store.stats("s")
    assert (everything.sessions, everything.users, everything.memories, everything.forgotten, everything.events) == (
        2,
        1,
        3,
        1,
        5,
    )
    assert (one.sessions, one.memories, one.forgotten, one.events, one.database_bytes) == (1, 2, 1, 4, None)
    assert everything.database_bytes > 0
    assert store.stats("unknown").events == 0


def test_a_closed_store_says_so_and_closing_twice_is_harmless(make_store):
    store = make_store()
    store.close()
    store.close()
    with pytest.raises(StoreClosed):
        store.count("s")


def test_no_repr_shows_words_or_names(store):
    secret = "xyzzy"
    memory = store.remember(secret, session_id=secret, user_id=secret, speaker=secret, tags=[secret], metadata={secret: secret})
    store.update(memory.id, content=secret + " again")
    shown = [memory, store.recall(secret, session_id=secret), store.find(secret), store.history(memory.id), store.sessions()]
    shown += [store, list(store.events()), [event.data for event in store.events()], NewMemory(content=secret)]
    for value in shown:
        assert secret not in repr(value)
        assert secret not in str(value)


def test_importance_and_recency_count_only_where_the_settings_say_so(make_store):
    texts = [
        {"content": "tea is in the cupboard", "importance": 0.2, "occurred_at": T0 - timedelta(days=90)},
        {"content": "tea is in the cupboard", "importance": 0.9, "occurred_at": T0 - timedelta(days=60)},
        {"content": "tea is in the cupboard", "importance": 0.4, "occurred_at": T0 - timedelta(days=1)},
    ]
    plain = make_store(clock=lambda: T0)
    for number, text in enumerate(texts):
        plain.remember_many([text], session_id=f"s{number}", user_id="u")

    def order(store):
        found = [(store.recall("tea", session_id=f"s{number}")[0].score, number) for number in range(3)]
        return [number for _, number in sorted(found, key=lambda each: (-each[0], each[1]))]

    assert order(plain) == [0, 1, 2]
    assert order(make_store(clock=lambda: T0, settings=Settings(importance_weight=0.5, pool_connections_max=8))) == [1, 2, 0]
    recent = make_store(clock=lambda: T0, settings=Settings(recency_weight=0.5, pool_connections_max=8))
    assert order(recent) == [2, 1, 0]
    for ranking in ("learned", "fixed"):
        (hit,) = recent.recall("tea", session_id="s2", ranking=ranking, explain=True)
        assert hit.parts["recency"] > 0
        assert sum(hit.parts.values()) == pytest.approx(hit.score, abs=1e-5)


@pytest.mark.parametrize("setting", ["importance_weight", "recency_weight", "recency_half_life_days"])
def test_a_weight_below_zero_is_refused(setting):
    with pytest.raises(SettingsError) as caught:
        Settings(**{setting: -0.1})
    assert caught.value.name == setting
