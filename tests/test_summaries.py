"""Summaries in the log and in views: they stand for their sources, die with any of them, and can be undone."""

import random

import psycopg
import pytest
from summarizing import summarize

from memfold import MemoryForgotten, MemoryNotFound
from memfold.audit.verify import verify
from memfold.eventstore.append import Verdict
from memfold.projections.rebuild import rebuild

TURNS = [f"{who} tells about {what}" for who in ("Anna", "Bob") for what in ("tea", "trains", "a violin", "Oslo", "her cat")]


@pytest.fixture
def turns(store):
    return [memory.id for memory in store.remember_many(TURNS, session_id="s", user_id="u")]


def ids(found):
    return [memory.id for memory in getattr(found, "memories", found)]


def assert_same_when_folded_anew(store, session_id="s"):
    """The live views, and a store that opens now, say the same."""
    store.flush(30)
    found = rebuild(store._database, store._keyring, store._views, store._embeddings, session_id, vectors=False)
    assert found is None or found.same
    assert verify(store._database, store._keyring, 2**62).findings == []


def test_a_summary_stands_for_its_sources(store, turns):
    summary = summarize(store, turns[:5], "Anna: tea, trains, Oslo")
    assert ids(store.find("s", order="oldest")) == [*turns[5:], summary]
    assert store.count("s") == 6
    assert store.count("s", include_archived=True) == 11
    assert ids(store.sources(summary)) == turns[:5]
    assert {memory.status for memory in store.sources(summary)} == {"archived"}
    assert ids(store.derived_from(turns[0])) == [summary]
    assert store.sources(turns[0]) == store.derived_from(turns[9]) == []
    memory = store.get(summary)
    assert (memory.category, memory.status, memory.version, memory.content) == (
        "summary",
        "active",
        1,
        "Anna: tea, trains, Oslo",
    )
    assert store.get(turns[0]).status == "archived"
    assert [change.type for change in store.history(summary)] == ["compressed"]
    assert_same_when_folded_anew(store)


def test_recall_finds_the_summary_or_what_is_behind_it(store, turns):
    summary = summarize(store, turns[:5], "Anna speaks of a violin")
    assert ids(hit.memory for hit in store.recall("violin", session_id="s", limit=20)) != []
    assert not set(ids(hit.memory for hit in store.recall("violin", session_id="s", limit=20))) & set(turns[:5])
    found = store.recall("Anna tells about a violin", session_id="s", include_archived=True, limit=20)
    assert found[0].memory.id == turns[2]
    assert summary in ids(hit.memory for hit in found)
    assert ids(store.sources(summary, query="a violin", limit=1)) == [turns[2]]
    for scope in ({"user_id": "u"}, {"session_ids": ["s", "t"]}, {}):
        wide = ids(hit.memory for hit in store.recall("violin", limit=20, **scope))
        assert summary in wide
        assert not set(wide) & set(turns[:5])
        assert store.count(**scope) == 6
        assert store.count(**scope, include_archived=True) == 11
        assert turns[2] in ids(hit.memory for hit in store.recall("violin", limit=20, include_archived=True, **scope))


def test_filters_look_at_what_is_shown(store, turns):
    summarize(store, turns[:5])
    hits = store.recall("tea", session_id="s", where={"category": {"$exists": False}}, limit=20)
    assert set(ids(hit.memory for hit in hits)) <= set(turns[5:])
    assert store.count("s", where={"status": "archived"}) == 0
    assert store.count("s", where={"status": "archived"}, include_archived=True) == 5
    assert len(store.forget_where("s", {"status": "archived"}).memory_ids) == 5
    assert store.count("s", include_archived=True) == 5


@pytest.mark.parametrize("whole", [True, False], ids=["by the summary", "by the memories"])
def test_restoring_leaves_what_was_there_before(store, turns, whole):
    store.recall("tea", session_id="s")
    before = store.find("s", order="oldest"), store.recall("tea", session_id="s", limit=20, explain=True)
    with store._views.session("s") as view:
        rows = view.dump(store._embeddings.encoder.name)
    summary = summarize(store, turns[2:8])
    came = store.restore(summary if whole else [*turns[2:5], *turns[5:8]])
    assert ids(came) == turns[2:8]
    assert {memory.status for memory in came} == {"active"}
    if not whole:
        assert ids(store.sources(summary)) == turns[2:8]
        store.restore(summary)
    assert store.restore(turns[0]) == []
    assert store.find("s", order="oldest").memories == before[0].memories
    assert store.recall("tea", session_id="s", limit=20, explain=True) == before[1]
    with store._views.session("s") as view:
        memories, past, words, vectors = view.dump(store._embeddings.encoder.name)
    assert [memories, words, vectors] == [rows[0], rows[2], rows[3]]
    assert [change for change in past if change[0].hex() != summary.replace("-", "")] == rows[1]
    assert [change.type for change in store.history(summary)] == ["compressed", "restored"]
    with pytest.raises(MemoryNotFound):
        store.get(summary)
    assert_same_when_folded_anew(store)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("place", [0, 4])
def test_forgetting_one_source_ends_every_summary_of_it(store, make_store, server_url, turns, depth, place):
    others = summarize(store, turns[5:8], "others")
    made, below = [], turns[:5]
    for _ in range(depth):
        made.append(summarize(store, below, f"secret gist {len(made)}"))
        below = [made[-1]]
    other = make_store()
    assert made[-1] in ids(other.find("s"))
    store.forget(turns[place])
    for each in (store, other, make_store()):
        assert set(ids(each.find("s", limit=100))) == {*turns[:5], *turns[8:], others} - {turns[place]}
        assert each.recall("secret gist", session_id="s", include_archived=True, where={"category": "summary"}, limit=9) != []
        assert not any(
            "secret" in hit.memory.content for hit in each.recall("secret gist", session_id="s", include_archived=True)
        )
        for summary in made:
            with pytest.raises(MemoryForgotten):
                each.get(summary)
            assert [change.memory for change in each.history(summary)] == [None]
        assert not any("secret" in repr(event.data.content) for event in each.events() if hasattr(event.data, "content"))
        assert_same_when_folded_anew(each)
    with psycopg.connect(server_url) as connection:
        left = connection.execute(
            """SELECT count(p.sealed), count(v.sealed), max(length(k.wrapped)), min(cardinality(k.sources))
               FROM memfold.events e LEFT JOIN memfold.payloads p USING (tenant_id, position)
               LEFT JOIN memfold.embeddings v USING (tenant_id, position)
               LEFT JOIN memfold_keys.keys k USING (tenant_id, position) WHERE e.memory_id = ANY(%s::uuid[])""",
            (made,),
        ).fetchone()
    assert left == (0, 0, 0, 1 if depth > 1 else 5)


def test_the_key_of_a_summary_opens_to_nobody_without_all_its_sources(store, turns, server_url):
    """Also if its own rows are put back as they were: nothing but the sources' keys wraps its key."""
    summary = summarize(store, turns[:5])
    rows = "SELECT position, wrapped FROM memfold_keys.keys WHERE wrap_kind = 3 AND sources IS NOT NULL AND tenant_id = %s"
    payload = "SELECT position, sealed FROM memfold.payloads WHERE tenant_id = %s AND position = %s"
    with psycopg.connect(server_url, autocommit=True) as owner:
        ((position, wrapped),) = owner.execute(rows, (store._keyring.tenant,)).fetchall()
        sealed = owner.execute(payload, (store._keyring.tenant, position)).fetchone()[1]
        store.forget(turns[3])
        owner.execute("UPDATE memfold_keys.keys SET wrapped = %s WHERE position = %s", (wrapped, position))
        owner.execute("INSERT INTO memfold.payloads VALUES (%s, %s, %s)", (store._keyring.tenant, position, sealed))
        assert next(event for event in store.events() if event.position == position).data is None
        assert summary not in ids(store.find("s", include_archived=True))


def test_a_summary_can_be_forgotten_and_what_it_stood_for_comes_back(store, turns):
    summary = summarize(store, turns[:5])
    above = summarize(store, [summary, turns[5]])
    store.forget(summary)
    assert set(ids(store.find("s"))) == set(turns)
    for gone in (summary, above):
        with pytest.raises(MemoryForgotten):
            store.get(gone)
    assert_same_when_folded_anew(store)


def test_a_summary_that_was_undone_can_still_be_forgotten(store, turns):
    summary = summarize(store, turns[:5], "secret gist")
    store.restore(summary)
    assert store.history(summary)[0].memory.content == "secret gist"
    assert store.forget(summary).keys_deleted == 1
    assert [change.memory for change in store.history(summary)] == [None, None, None]
    assert_same_when_folded_anew(store)


def test_what_was_undone_is_unreadable_too_when_a_source_is_forgotten(store, make_store, turns):
    summary = summarize(store, turns[:5], "secret gist")
    store.restore(summary)
    store.forget(turns[0])
    for each in (store, make_store()):
        assert [change.memory for change in each.history(summary)] == [None, None]
        assert_same_when_folded_anew(each)


def test_undoing_a_summary_undoes_those_above_it(store, turns):
    first, second = summarize(store, turns[:3]), summarize(store, turns[3:6])
    above = summarize(store, [first, second])
    assert ids(store.find("s", order="oldest"))[-1] == above
    assert ids(store.restore(first)) == [first]
    assert set(ids(store.find("s"))) == {first, above, *turns[6:]}
    assert ids(store.restore(first)) == [*turns[:3], second]
    assert set(ids(store.find("s"))) == {*turns[:3], second, *turns[6:]}
    assert_same_when_folded_anew(store)


def test_an_answer_of_the_past_has_what_was_active_then(store, turns):
    before = store.events().__iter__()
    position = [event.position for event in before][-1]
    summary = summarize(store, turns[:5], "gist")
    between = store.recall("gist", session_id="s").position
    store.restore(summary)
    assert store.count("s", as_of=position) == 10
    assert store.count("s", as_of=between) == 6
    assert store.get(summary, as_of=between).content == "gist"
    store.forget(turns[0])
    assert store.count("s", as_of=between) == 9
    assert store.find("s", as_of=between).withheld == 1


def test_the_log_refuses_a_summary_of_what_moved_on(store, turns):
    with store._views.session("s") as view:
        version = view.version
    store.forget(turns[0])
    assert summarize(store, turns[1:4], version=version) is Verdict.CONFLICT
    assert summarize(store, turns[1:4], key="once") != Verdict.CONFLICT
    assert summarize(store, turns[5:7], key="once") is Verdict.DUPLICATE


def test_an_updated_source_does_not_end_its_summary_and_an_updated_summary_dies_with_it(store, make_store, turns):
    summary = summarize(store, turns[:5], "gist")
    store.update(turns[0], content="Anna tells about coffee")
    assert store.get(turns[0]).status == "archived"
    assert store.count("s") == 6
    changed = store.update(summary, content="secret gist", importance=0.9)
    assert (changed.version, changed.category) == (2, "summary")
    assert store.recall("secret gist", session_id="s")[0].memory.id == summary
    assert_same_when_folded_anew(store)
    store.forget(turns[4])
    for each in (store, make_store()):
        assert [change.memory for change in each.history(summary)] == [None, None]
        assert not any("secret" in repr(event.data.content) for event in each.events() if hasattr(event.data, "content"))
        assert_same_when_folded_anew(each)


def test_histories_drawn_at_random_fold_alike_and_leave_no_summary_of_what_was_forgotten(make_store, rand: random.Random):
    store, other = make_store(), make_store()
    said = {}
    for number in range(30):
        memory = store.remember(f"number {number} of {rand.randrange(10)}", session_id="s")
        said[memory.id] = {memory.id}
    for step in range(80):
        living = [memory.id for memory in store.find("s", include_archived=True, limit=1000).memories]
        active = [memory.id for memory in store.find("s", limit=1000).memories]
        choice = rand.random()
        if choice < 0.35 and len(active) > 2:
            sources = rand.sample(active, rand.randint(1, min(5, len(active))))
            made = summarize(store, sources, f"gist {step}", key=str(step))
            said[made] = set().union(*(said[each] for each in sources))
        elif choice < 0.6 and living:
            gone = rand.choice(living)
            store.forget(gone)
            said = {each: of for each, of in said.items() if each != gone and gone not in of}
        elif choice < 0.75 and living:
            store.restore(rand.sample(living, min(len(living), 2)))
        elif choice < 0.9 and living:
            store.update(rand.choice(living), content=f"changed {step}")
        else:
            memory = store.remember(f"later {step}", session_id="s")
            said[memory.id] = {memory.id}
        if rand.random() < 0.3:
            other.recall("gist", session_id="s")
            other.recall("gist")
        now = store.find("s", include_archived=True, limit=1000).memories
        assert {memory.id for memory in now} <= set(said)
        assert set(ids(other.find(limit=1000))) == set(ids(store.find("s", limit=1000)))
    assert_same_when_folded_anew(store)
    assert_same_when_folded_anew(other)
    queries = ["gist", "changed", "number 3"]
    fresh = make_store()
    for query in queries:
        for scope in ({"session_id": "s"}, {}, {"session_id": "s", "include_archived": True}):
            expected = [(hit.memory, hit.score) for hit in fresh.recall(query, limit=100, ranking="fixed", **scope)]
            for each in (store, other):
                assert [(hit.memory, hit.score) for hit in each.recall(query, limit=100, ranking="fixed", **scope)] == expected


def test_a_summary_of_what_was_said_is_ranked_as_conversation(store):
    said = store.remember_many([{"content": text, "speaker": text.split()[0]} for text in TURNS], session_id="s")
    for begin in (0, 5):
        summarize(store, ids(said)[begin : begin + 5], f"{said[begin].speaker}: tea; trains; a violin", key=str(begin))
    hits = store.recall("What does Anna play?", session_id="s", explain=True)
    assert all("usual" in hit.parts for hit in hits)  # the learned ranker was asked
    assert hits[0].memory.content.startswith("Anna")
    facts = store.remember_many(TURNS, session_id="facts")
    summarize(store, ids(facts)[:5], "Anna: tea", key="facts")
    assert all("usual" not in hit.parts for hit in store.recall("tea", session_id="facts", explain=True))


def test_who_is_named_in_a_summary_counts_as_who_speaks(store):
    said = store.remember_many([{"content": "It was lovely there", "speaker": who} for who in ("Anna", "Bob")], session_id="s")
    summaries = {
        who: summarize(store, [each.id], f"{who}: lovely", key=who) for who, each in zip(("Anna", "Bob"), said, strict=True)
    }
    store.remember("Nobody says anything", session_id="s", speaker="Anna")
    hits = {hit.memory.id: hit.parts for hit in store.recall("Anna", session_id="s", ranking="fixed", explain=True)}
    assert hits[summaries["Anna"]]["speaker"] > 0
    assert hits.get(summaries["Bob"], {}).get("speaker", 0) == 0


def test_the_ranker_forgets_who_spoke_with_the_memory(store):
    said = store.remember_many([{"content": text, "speaker": "Anna"} for text in TURNS[:3]], session_id="s")
    facts = store.remember_many(TURNS[3:7], session_id="s")
    summary = summarize(store, ids(said)[:2], "Anna: tea", key="1")

    def is_conversation():
        with store._views.session("s") as view:
            return view.is_conversation

    assert not is_conversation()  # three of seven
    store.forget(facts[0].id)
    assert is_conversation()  # three of six; two of them archived
    store.forget(said[0].id)
    assert not is_conversation()  # two of five; the summary is gone
    store.update(facts[1].id, speaker="Bob")
    assert is_conversation()
    with pytest.raises(MemoryForgotten):
        store.get(summary)


def test_counts_tell_summaries_from_memories(store, turns):
    summary = summarize(store, turns[:5])
    store.remember("one more", session_id="s", category="fact")
    for stats in (store.stats("s"), store.stats()):
        assert (stats.memories, stats.summaries, stats.archived, stats.forgotten) == (11, 1, 5, 0)
        assert (stats.tokens_before, stats.tokens_after, stats.compression_ratio) == (100, 10, 0.1)
        assert stats.growth == ()
    stats = store.stats("s", days=2, details=True)
    assert sum(day.events for day in stats.growth) == 13
    assert all(day.bytes > 0 for day in stats.growth)
    assert {name: each.memories for name, each in stats.categories.items()} == {"": 10, "fact": 1, "summary": 1}
    assert stats.categories["fact"].bytes == len("one more")
    store.forget(summary)
    stats = store.stats("s")
    assert (stats.memories, stats.summaries, stats.archived, stats.forgotten) == (11, 0, 0, 0)
    assert (stats.tokens_before, stats.compression_ratio) == (0, None)
    assert store.sessions().sessions[0].memories == 11


def test_limits_near_their_end_are_told(store, turns):
    store.set_policy({"keep": {"newest": 2}, "retention": {"session_memories_max": 12}})
    assert store.stats("s", details=True).near_limits == ("session_memories_max",)
    store.set_policy({"keep": {"newest": 2}, "retention": {"session_memories_max": 13}})
    assert store.stats("s", details=True).near_limits == ()


def test_what_a_recall_refreshes_counts_from_there(store, turns):
    found = store.recall("violin", session_id="s", refresh=True, limit=2)
    with store._views.session("s") as view:
        assert set(view.lineage(view.stream).refreshed) == {bytes.fromhex(hit.memory.id.replace("-", "")) for hit in found}
    assert [event.type for event in store.events()][-1] == "MemoriesRefreshed"
    assert store.recall("violin", session_id="s", limit=2) == found
    assert_same_when_folded_anew(store)


def test_what_a_user_may_hold_is_kept_over_all_sessions(make_store):
    store = make_store()
    for session in ("one", "two"):
        store.remember_many([f"{session} {number}" for number in range(6)], session_id=session, user_id="u")
    store.remember_many(["other"] * 20, session_id="three", user_id="v")
    store.set_policy({"keep": {"newest": 1}, "retention": {"user_memories_max": 8}, "windows": {"enabled": False}})
    dry = store.consolidate(dry_run=True)
    assert sum(len(session.expired) for session in dry.sessions if session.session_id != "three") == 4
    store.consolidate()
    assert (store.count(user_id="u"), store.count("one"), store.count("two")) == (8, 2, 6)
    assert store.count(user_id="v") == 8
    store.set_policy({"keep": {"newest": 1}, "retention": {"user_bytes_max": 12}, "windows": {"enabled": False}})
    store.consolidate()
    assert (store.count("one"), store.count("two")) == (1, 1)


def said_in(context):
    return [memory.content for group in context.groups.values() for memory in group]


def test_a_context_brings_what_was_said_in_the_place_of_a_summary(store):
    said = store.remember_many([{"content": text, "speaker": text.split()[0]} for text in TURNS], session_id="s", user_id="u")
    low = summarize(store, ids(said)[:4], "Anna: tea", key="low")
    top = summarize(store, [low, said[4].id], "Anna: much", key="top")
    asked = "What did Anna say about a violin?"
    assert TURNS[2] in said_in(store.context(asked, session_id="s", max_tokens=300))
    assert TURNS[2] in said_in(store.context(asked, user_id="u", max_tokens=300))
    assert said_in(store.context(asked, session_id="s", max_tokens=50))[0] == TURNS[2]
    assert said_in(store.context(asked, session_id="s", max_tokens=1_000))[0] == "Anna: much"
    assert not set(TURNS[:5]) & set(said_in(store.context(asked, max_tokens=300)))  # of the whole tenant: summaries only
    after = said_in(store.context(asked, session_id="s", where={"speaker": "Bob"}, max_tokens=300))
    assert after
    assert set(after) <= set(TURNS[5:])
    store.forget(said[2].id)
    now = said_in(store.context(asked, session_id="s", max_tokens=300))
    assert TURNS[2] not in now
    assert not {"Anna: tea", "Anna: much"} & set(now)
    assert store.sources(said[0].id) == []
    with pytest.raises(MemoryForgotten):
        store.get(top)


def test_a_context_of_the_past_looks_behind_the_summaries_of_then(store, turns):
    before = store.stats().position
    summarize(store, turns[:5], "Anna: tea")
    then = store.stats().position
    store.forget(turns[0])
    for moment in (before, then):
        found = said_in(store.context("Anna tells about a violin", session_id="s", as_of=moment, max_tokens=300))
        assert TURNS[2] in found
        assert TURNS[0] not in found


def test_a_view_that_knew_a_summary_learns_at_once_that_it_was_changed_and_died(store, make_store, turns):
    summary, other = summarize(store, turns[:3]), make_store()
    assert summary in ids(other.find("s"))
    store.update(summary, content="secret gist")
    store.forget(turns[0])
    for scope in ({"session_id": "s"}, {"user_id": "u"}):
        assert set(ids(other.find(**scope))) == set(turns[1:])
    assert [change.memory for change in other.history(summary)] == [None, None]
    assert_same_when_folded_anew(other)
