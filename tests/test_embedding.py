"""What an embedder may do wrong, what may happen to stored vectors, and what recall answers all the same."""

import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from zlib import crc32

import faiss
import numpy as np
import psycopg
import pytest

from memfold import (
    CorruptEvent,
    EmbedderFailed,
    EmbeddingTimeout,
    ModelFileError,
    SentenceTransformerEmbedder,
    Settings,
    SettingsError,
    StoreUnavailable,
)
from memfold.embedding import normalized
from memfold.eventstore import arrays, derived
from memfold.minilm import MODELS, MiniLMEmbedder, StaticEmbedder, static_embedder
from memfold.projections.embeddings import CHUNK_TEXTS

STATIC = static_embedder().name
PATIENCE_S = 20


class Words:
    """A small model: each word points somewhere; the vector of a text is the sum of its words."""

    def __init__(self, name="words-16", dimension=16, slow_s=0.0):
        self.name, self.dimension, self.slow_s = name, dimension, slow_s
        self.seen = []

    def encode(self, texts):
        self.seen += texts
        time.sleep(self.slow_s * len(texts))
        return np.array([self.vector(text) for text in texts], np.float32)

    def vector(self, text):
        total = np.zeros(self.dimension)
        for word in text.lower().split():
            total += np.random.default_rng(crc32(word.encode())).normal(size=self.dimension)
        return total / (np.linalg.norm(total) or 1)


class Poisoned(Words):
    """Raises for every text with the word poison, until it is mended."""

    poison = "poison"

    def vector(self, text):
        if self.poison and self.poison in text:
            raise RuntimeError("cannot digest this")
        return super().vector(text)


class Returns(Words):
    """Does to a good answer what it is told."""

    def __init__(self, spoil):
        super().__init__("returns")
        self.spoil = spoil

    def encode(self, texts):
        return self.spoil(super().encode(texts))


def spoilt(value):
    def spoil(vectors):
        vectors[-1, -1] = value
        return vectors

    return spoil


def raising(vectors):
    raise OSError("the model's server is down")


BAD = {
    "NaN": spoilt(np.nan),
    "infinity": spoilt(np.inf),
    "too few": lambda vectors: vectors[1:],
    "too many": lambda vectors: np.vstack([vectors, vectors]),
    "a vector alone": lambda vectors: vectors[0],
    "a cube": lambda vectors: vectors[None],
    "no dimension": lambda vectors: vectors[:, :0],
    "None": lambda vectors: None,
    "a string": lambda vectors: "vectors",
    "ragged": lambda vectors: [[1.0], [1.0, 2.0]],
    "objects": lambda vectors: [[object()] * 3 for _ in vectors],
    "raises": raising,
}


@pytest.fixture
def owner(server_url):
    """A login that may do what no program of memfold may."""
    with psycopg.connect(server_url, autocommit=True) as connection:
        arrays.register(connection)
        yield connection


def vectors_of(owner, store, model=None):
    """The stored vectors of a tenant, by position."""
    query = "SELECT position, sealed FROM memfold.embeddings WHERE tenant_id = %s AND model = %s ORDER BY position"
    return dict(owner.execute(query, (store._keyring.tenant, model or store.stats().embedder)).fetchall())


def view_vectors(store, session_id, model):
    with store._views.session(session_id) as view:
        return view.dump(model)[3]


def contents(found):
    return [hit.memory.content for hit in found]


def wait_until(happened):
    end = time.monotonic() + PATIENCE_S
    while not happened():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


# --- an embedder that does not keep its word ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", BAD.values(), ids=BAD.keys())
def test_what_an_embedder_must_not_return_is_refused_and_nothing_of_it_is_stored(make_store, owner, spoil):
    embedder = Returns(spoil)
    store = make_store(embedder=embedder)
    memory = store.remember("tea with lemon", session_id="s")

    with pytest.raises(EmbedderFailed) as caught:
        store.recall("tea", session_id="s")
    assert caught.value.name == "returns"
    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == 1
    assert vectors_of(owner, store) == {}
    assert store.get(memory.id) == memory

    embedder.spoil = lambda vectors: vectors
    assert contents(store.recall("tea", session_id="s")) == ["tea with lemon"]
    store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == 0


def test_vectors_of_any_length_are_brought_to_length_one(make_store):
    plain, long = make_store(embedder=Words("plain")), make_store(embedder=Returns(lambda vectors: 1000 * vectors))
    plain.remember_many(["tea with lemon", "coffee with milk", "a dog"], session_id="s")

    expected, found = (store.recall("lemon tea", session_id="s") for store in (plain, long))

    assert contents(found) == contents(expected)
    assert [hit.score for hit in found] == pytest.approx([hit.score for hit in expected], abs=1e-3)
    assert np.linalg.norm(view_vectors(long, "s", "returns"), axis=1) == pytest.approx(1.0, abs=1e-6)


def test_vectors_of_enormous_and_of_tiny_length_are_brought_to_length_one(make_store):
    for factor in (1e25, 1e-25):
        store = make_store(embedder=Returns(lambda vectors, factor=factor: np.float32(factor) * vectors))
        store.remember("tea with lemon", session_id=f"s{factor}")
        store.recall("tea", session_id=f"s{factor}")
        assert np.linalg.norm(view_vectors(store, f"s{factor}", "returns")) == pytest.approx(1.0, abs=1e-3)


def test_an_embedder_that_changes_its_dimension_is_refused(make_store):
    embedder = Words()
    store = make_store(embedder=embedder)
    store.remember("tea with lemon", session_id="s")
    assert store.recall("tea", session_id="s").model == "words-16"

    embedder.dimension = 24
    with pytest.raises(EmbedderFailed, match="16 before"):
        store.recall("more tea", session_id="s")


def test_an_embedder_of_another_dimension_than_what_is_stored_under_its_name_is_refused(make_store, owner):
    first = make_store(embedder=Words())
    first.remember("tea with lemon", session_id="s")
    first.flush(PATIENCE_S)
    first.close()
    second = make_store(embedder=Words(dimension=24))

    with pytest.raises(EmbedderFailed, match="another name"):
        second.recall("tea", session_id="s")
    assert len(vectors_of(owner, second)) == 1


def test_an_embedder_of_another_dimension_adds_nothing_to_what_is_stored_under_its_name(make_store, owner):
    first = make_store(embedder=Words())
    first.remember("tea with lemon", session_id="s")
    first.flush(PATIENCE_S)
    first.close()
    second = make_store(embedder=Words(dimension=24))
    second.remember("coffee with milk", session_id="s")

    with pytest.raises((EmbedderFailed, EmbeddingTimeout)):
        second.flush(2)
    assert len({len(sealed) for sealed in vectors_of(owner, second).values()}) == 1


@pytest.mark.parametrize(
    "embedder",
    [
        object(),
        42,
        "all-MiniLM-L6-v2",
        lambda texts: None,
        type("NoName", (), {"encode": lambda self, texts: None})(),
        type("EmptyName", (), {"name": "", "encode": lambda self, texts: None})(),
        type("LongName", (), {"name": "n" * 201, "encode": lambda self, texts: None})(),
        type("NumberForName", (), {"name": 7, "encode": lambda self, texts: None})(),
        type("NoEncode", (), {"name": "model"})(),
        type("EncodeIsNoFunction", (), {"name": "model", "encode": 1})(),
    ],
)
def test_what_is_no_embedder_is_refused_before_anything_is_opened(make_store, embedder):
    with pytest.raises(SettingsError) as caught:
        make_store(target="postgresql://nobody@nowhere.invalid/none", embedder=embedder)
    assert caught.value.name == "embedder"


@pytest.mark.parametrize("embedder", ["", 0, False, [], type("Sized", (Words,), {"__len__": lambda self: 0})()])
def test_an_embedder_that_counts_as_false_is_not_taken_for_none(make_store, embedder):
    if isinstance(embedder, Words):
        assert make_store(embedder=embedder).stats().embedder == "words-16"
        return
    with pytest.raises(SettingsError):
        make_store(embedder=embedder)


@pytest.mark.parametrize("name", ["a\0b", "half \ud800 of a pair"])
def test_a_name_that_no_database_can_keep_is_refused(make_store, name):
    with pytest.raises(SettingsError):
        make_store(embedder=Words(name))


def test_the_class_of_an_embedder_is_no_embedder(make_store):
    with pytest.raises(SettingsError):
        make_store(embedder=StaticEmbedder)


def test_without_sentence_transformers_its_embedder_says_what_to_install(make_store):
    embedder = SentenceTransformerEmbedder("BAAI/bge-small-en-v1.5")
    with pytest.raises(SettingsError, match="pip install"):
        embedder.encode(["tea"])
    store = make_store(embedder=embedder)
    store.remember("tea", session_id="s")
    with pytest.raises(SettingsError, match="pip install"):
        store.recall("tea", session_id="s")


def test_without_sentence_transformers_flush_says_so_too(make_store):
    store = make_store(embedder=SentenceTransformerEmbedder("BAAI/bge-small-en-v1.5"))
    store.remember("tea", session_id="s")
    with pytest.raises(SettingsError, match="pip install"):
        store.flush(1)


# --- a text that the embedder fails on ----------------------------------------------------------------------------------------


def test_one_poisonous_text_holds_back_no_other_and_no_recall(make_store, owner):
    embedder = Poisoned()
    store = make_store(embedder=embedder)
    store.remember_many([f"tea number {number}" for number in range(20)], session_id="s")
    poison = store.remember("coffee with poison", session_id="s")
    store.remember_many([f"milk number {number}" for number in range(20)], session_id="s")
    store.remember("dog", session_id="t")

    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == store.stats("s").embedding_lag == 1
    assert store.stats("t").embedding_lag == 0
    assert len(vectors_of(owner, store)) == 41
    for _ in range(3):
        found = store.recall("coffee", session_id="s")
        assert found.model == STATIC
        assert found[0].memory == poison
    assert store.recall("dog", session_id="t").model == "words-16"

    embedder.poison = ""
    store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == 0
    found = store.recall("coffee", session_id="s")
    assert (found.model, found[0].memory) == ("words-16", poison)


@pytest.mark.parametrize("place", [0, CHUNK_TEXTS - 1, CHUNK_TEXTS, 20])
def test_what_a_process_failed_on_is_caught_up_by_the_next(make_store, owner, place):
    store = make_store(embedder=Poisoned())
    texts = [f"tea number {number}" for number in range(20)]
    store.remember_many([*texts[:place], "poison", *texts[place:]], session_id="s")
    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    assert len(vectors_of(owner, store)) == 20
    store.close()

    mended = make_store(embedder=Words())
    assert mended.stats().embedding_lag == 1
    mended.flush(PATIENCE_S)
    assert mended.stats().embedding_lag == 0
    assert len(vectors_of(owner, mended)) == 21
    assert mended.recall("poison", session_id="s").model == "words-16"
    # Nothing was made twice.
    assert [text for text in mended._follower._embeddings.encoder._embedder.seen if "tea" in text] == []


@pytest.mark.parametrize("poisons", [1, CHUNK_TEXTS, 3 * CHUNK_TEXTS])
def test_several_poisonous_texts_in_a_row_hold_back_no_other(make_store, owner, poisons):
    store = make_store(embedder=Poisoned())
    store.remember_many(["poison"] * poisons + ["tea"] * 20, session_id="s")
    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == poisons
    assert len(vectors_of(owner, store)) == 20


def test_a_poisonous_text_that_ends_a_page_does_not_hold_back_the_pages_after_it(make_store, owner, monkeypatch):
    monkeypatch.setattr("memfold.projections.follower.PAGE_EVENTS", CHUNK_TEXTS + 1)
    store = make_store(embedder=Poisoned())
    store.remember_many(["tea"] * CHUNK_TEXTS + ["poison"] + ["milk"] * 20, session_id="s")
    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    assert len(vectors_of(owner, store)) == CHUNK_TEXTS + 20


def test_a_poisonous_text_that_is_forgotten_is_not_given_to_the_embedder_again(make_store):
    embedder = Poisoned()
    store = make_store(embedder=embedder)
    memories = store.remember_many(["poison number one", "poison number two", "tea"], session_id="s")
    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    store.forget(memories[0].id)
    # What the thread had in hand when that was forgotten is behind it once it has seen what came later.
    store.remember("milk", session_id="s")
    wait_until(lambda: "milk" in embedder.seen)
    embedder.seen.clear()

    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    assert "poison number two" in embedder.seen
    assert "poison number one" not in embedder.seen


def test_after_the_only_poisonous_text_was_forgotten_flush_waits_for_the_others(make_store):
    embedder = Poisoned(slow_s=0.05)
    store = make_store(embedder=embedder)
    memories = store.remember_many(["poison", "tea"], session_id="s")
    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    store.forget(memories[0].id)
    for number in range(3):
        store.remember(f"milk {number}", session_id="s")
        store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == 0


def test_one_poisonous_text_does_not_let_the_log_behind_it_be_read_again_and_again(make_store, monkeypatch):
    """Each remember is a reason to look; what was embedded long ago is none."""
    store = make_store(embedder=Poisoned())
    store.remember("poison", session_id="s")
    store.remember_many([f"tea {number}" for number in range(300)], session_id="s")
    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    looked_up = []
    real = derived.stored_embeddings
    monkeypatch.setattr(derived, "stored_embeddings", lambda *args: looked_up.append(len(args[3])) or real(*args))

    for number in range(5):
        store.remember(f"milk {number}", session_id="s")
        with pytest.raises(EmbedderFailed):
            store.flush(PATIENCE_S)
    assert sum(looked_up) < 200


# --- what others do to the store while vectors are made -----------------------------------------------------------------------


def test_flush_waits_for_what_was_remembered_before_it_and_for_nothing_else(make_store):
    store = make_store(embedder=Words(slow_s=0.002))
    store.remember("tea", session_id="s")
    stop = threading.Event()

    def remember():
        while not stop.is_set():
            store.remember_many(["milk"] * 10, session_id="t")

    thread = threading.Thread(target=remember)
    thread.start()
    try:
        store.flush(2)
    finally:
        stop.set()
        thread.join()


def test_a_vector_that_could_not_be_stored_is_stored_later(make_store, server_url, owner):
    """The rows are locked by somebody until the statement gives up. What has no vector must go on counting."""
    other = make_store(embedder=Words("other"))
    store = make_store(embedder=Words(), settings=Settings(statement_timeout_s=0.5, pool_connections_max=8))
    with psycopg.connect(server_url) as holder:
        memory = other.remember("tea", session_id="s")
        position = other.history(memory.id)[0].position
        holder.execute("SELECT FROM memfold_keys.keys WHERE position = %s FOR UPDATE", (position,))
        with pytest.raises(EmbeddingTimeout):
            store.flush(1.5)
        holder.rollback()
    store.flush(PATIENCE_S)
    assert list(vectors_of(owner, store)) == [position]


def test_an_event_that_does_not_open_stops_the_embedding_of_no_other(make_store, owner):
    writer, reader = make_store(embedder=Words("other")), make_store(embedder=Words())
    broken = writer.remember("tea", session_id="s")
    writer.remember("milk", session_id="t")
    position = writer.history(broken.id)[0].position
    owner.execute("SET session_replication_role = replica")
    owner.execute("UPDATE memfold.payloads SET sealed = sealed || 'x' WHERE position = %s", (position,))

    with pytest.raises(CorruptEvent):
        reader.flush(PATIENCE_S)
    assert reader.stats().embedding_lag == 1
    assert len(vectors_of(owner, reader)) == 1


@pytest.mark.parametrize(
    ("embedder", "wait_s"),
    [
        pytest.param(Words(), 0, id="given, at once"),
        pytest.param(Words(), 10, id="given"),
        pytest.param(StaticEmbedder(), 10, id="static"),
        pytest.param(
            StaticEmbedder(),
            0,
            id="static, at once",
        ),
    ],
)
def test_the_view_of_who_made_the_vectors_equals_that_of_another_process_bit_for_bit(make_store, monkeypatch, embedder, wait_s):
    monkeypatch.setattr("memfold.projections.follower.FIRST_S", 1.0)  # so that the recall comes first
    maker, other, late = (make_store(embedder=embedder) for _ in range(3))
    texts = ["tea with lemon", "coffee with milk", "a dog", "flight to Oslo", "the door code is 4711"]
    maker.remember_many(texts, session_id="s")
    found = [maker.recall("lemon tea", session_id="s", wait_s=wait_s, explain=True)]
    maker.flush(PATIENCE_S)
    found += [store.recall("lemon tea", session_id="s", explain=True) for store in (maker, other, late)]

    maker_vectors = view_vectors(maker, "s", embedder.name)
    assert maker_vectors == view_vectors(other, "s", embedder.name) == view_vectors(late, "s", embedder.name)
    answers = [[(hit.memory.content, hit.score, hit.parts) for hit in one] for one in found if one.model == embedder.name]
    assert len(answers) >= 3
    assert answers == answers[:1] * len(answers)


def test_two_stores_of_a_tenant_with_two_models_do_not_mix_their_vectors(make_store, owner):
    one, two = make_store(embedder=Words("one")), make_store(embedder=Words("two", dimension=24))
    for store in (one, two):
        store.remember_many([f"tea from {store.stats().embedder}", "coffee with milk"], session_id="s")
        assert {hit.memory.content for hit in store.recall("tea", session_id="s")} >= {"tea from one"}
    for store in (one, two):
        store.flush(PATIENCE_S)
        found = store.recall("tea", session_id="s")
        assert found.model == store.stats().embedder
        assert set(contents(found)[:2]) == {"tea from one", "tea from two"}
        assert len(vectors_of(owner, store)) == 4
        assert store.stats().embedding_lag == 0
    store.forget_session("s")
    assert vectors_of(owner, one) == vectors_of(owner, two) == {}


# --- stored vectors that were tampered with -----------------------------------------------------------------------------------


@pytest.fixture
def embedded(make_store, owner):
    """A session whose vectors are stored, as another store finds it; and the positions."""
    store = make_store(embedder=Words())
    store.remember_many(["tea with lemon", "coffee with milk", "a dog"], session_id="s")
    store.flush(PATIENCE_S)
    return make_store(embedder=Words()), sorted(vectors_of(owner, store))


@pytest.mark.parametrize("damage", ["sealed || 'x'", "substring(sealed, 1, 20)", "''::bytea", "set_byte(sealed, 30, 1)"])
def test_a_stored_vector_that_does_not_open_is_made_anew(embedded, make_store, owner, caplog, damage):
    store, positions = embedded
    expected = [(hit.memory.id, hit.score) for hit in store.recall("lemon tea", session_id="s")]
    owner.execute(f"UPDATE memfold.embeddings SET sealed = {damage} WHERE position = %s", (positions[0],))

    fresh = make_store(embedder=Words())
    found = fresh.recall("lemon tea", session_id="s")

    assert [(hit.memory.id, hit.score) for hit in found] == expected
    assert found.model == "words-16"
    assert f"position {positions[0]} does not open" in caplog.text


@pytest.mark.parametrize("where", ["another event", "another model"])
def test_a_stored_vector_of_something_else_is_made_anew(embedded, make_store, owner, where):
    store, positions = embedded
    expected = [(hit.memory.id, hit.score) for hit in store.recall("lemon tea", session_id="s")]
    if where == "another event":
        query = """UPDATE memfold.embeddings a SET sealed = b.sealed FROM memfold.embeddings b
                   WHERE a.position = %s AND b.position = %s AND a.tenant_id = b.tenant_id"""
        owner.execute(query, positions[:2])
    else:
        other = make_store(embedder=Words("other"))
        other.flush(PATIENCE_S)
        query = """UPDATE memfold.embeddings a SET sealed = b.sealed FROM memfold.embeddings b
                   WHERE a.position = b.position AND a.model = 'words-16' AND b.model = 'other' AND a.tenant_id = b.tenant_id"""
        owner.execute(query)

    found = make_store(embedder=Words()).recall("lemon tea", session_id="s")

    assert [(hit.memory.id, hit.score) for hit in found] == expected


def test_stored_vectors_that_are_gone_are_made_anew(embedded, make_store, owner):
    store, positions = embedded
    expected = [(hit.memory.id, hit.score) for hit in store.recall("lemon tea", session_id="s")]
    owner.execute("DELETE FROM memfold.embeddings WHERE position = ANY(%s)", (positions,))

    found = make_store(embedder=Words()).recall("lemon tea", session_id="s")

    assert [(hit.memory.id, hit.score) for hit in found] == expected
    assert sorted(vectors_of(owner, store)) == positions


# --- model files --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path):
    return shutil.copytree(MODELS, tmp_path / "models")


def test_a_copy_of_the_models_is_as_good(models):
    for embedder, original in (
        (MiniLMEmbedder(models / "minilm"), MiniLMEmbedder()),
        (StaticEmbedder(models / "static"), static_embedder()),
    ):
        assert (embedder.encode(["tea with lemon"]) == original.encode(["tea with lemon"])).all()


@pytest.mark.parametrize("damage", ["missing", "altered", "emptied", "unlisted", "no list"])
@pytest.mark.parametrize(
    "name", ["minilm/model.onnx", "minilm/tokenizer.json", "static/embeddings.npy", "static/tokenizer.json"]
)
def test_a_model_file_that_is_not_the_one_shipped_is_named_and_never_loaded(make_store, models, name, damage):
    path = models / name
    if damage == "missing":
        path.unlink()
    elif damage == "altered":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "unlisted":
        sums = models / "SHA256SUMS"
        sums.write_text("".join(line for line in sums.read_text().splitlines(True) if name not in line))
    else:
        (models / "SHA256SUMS").unlink()
    kind = MiniLMEmbedder if name.startswith("minilm") else StaticEmbedder
    store = make_store(embedder=kind(models / name.split("/")[0]))
    memory = store.remember("tea with lemon", session_id="s")

    for call in (lambda: store.recall("tea", session_id="s"), lambda: store.flush(PATIENCE_S)):
        with pytest.raises(ModelFileError) as caught:
            call()
        assert (models / "SHA256SUMS" if damage == "no list" else path) == type(path)(caught.value.path)
    assert store.find("s").memories == [memory]
    assert store.stats().embedding_lag == 1


# --- recall while not everything is embedded ----------------------------------------------------------------------------------


def test_a_recall_that_does_not_wait_answers_by_the_static_model_and_says_so(make_store):
    store = make_store(embedder=Words(slow_s=0.2))
    store.remember_many(["tea with lemon", "coffee with milk"], session_id="s")

    found = store.recall("lemon", session_id="s", wait_s=0)

    assert found.model == STATIC
    assert contents(found)[0] == "tea with lemon"
    assert view_vectors(store, "s", "words-16") == []
    assert store.recall("lemon", session_id="s").model == "words-16"
    # What is no longer needed is no longer held.
    assert view_vectors(store, "s", STATIC) == []


def test_a_recall_of_a_large_session_that_is_not_embedded_answers_by_one_model_alone(make_store):
    store = make_store(embedder=Words(slow_s=0.01))
    store.remember_many([f"tea number {number}" for number in range(300)], session_id="s")
    store.recall("warm up the estimate", session_id="t")

    models = set()
    for wait_s in (0, 0.2, 0):
        how = {"session_id": "s", "limit": 300, "ranking": "fixed", "explain": True}
        found = store.recall("tea number 7", wait_s=wait_s, **how)
        models.add(found.model)
        assert len(found) == 300
        assert contents(found)[0] == "tea number 7"
        quick = make_store(embedder=static_embedder()).recall("tea number 7", **how)
        if found.model == STATIC:
            # Not a mix: the very parts that a store of the static model finds, up to the rounding of stored vectors.
            expected = {hit.memory.id: hit.parts["meaning"] for hit in quick}
            assert {hit.memory.id: hit.parts["meaning"] for hit in found} == pytest.approx(expected, abs=2e-3)
    assert STATIC in models
    # There are vectors of the static model by now, so nobody waits for the better ones.
    assert store.recall("tea number 7", session_id="s", wait_s=60).model == STATIC
    store.flush(60)
    assert store.recall("tea number 7", session_id="s").model == "words-16"


def test_a_recall_of_an_enormous_session_falls_back_to_words_alone(make_store, monkeypatch):
    monkeypatch.setattr("memfold.projections.recall.STATIC_S", 0.0)
    store = make_store(embedder=Words(slow_s=0.2))
    store.remember_many(["tea with lemon", "coffee with milk"], session_id="s")

    found = store.recall("lemon", session_id="s", wait_s=0, ranking="fixed", explain=True)

    assert found.model is None
    assert contents(found) == ["tea with lemon", "coffee with milk"][: len(found)]
    assert contents(store.recall("lemon", session_id="s", wait_s=0)) == contents(found)
    assert {hit.parts["meaning"] for hit in found} == {0.0}


def test_recalls_from_many_threads_and_processes_make_every_vector_once_in_store(make_store, owner):
    stores = [make_store(embedder=Words(slow_s=0.001)) for _ in range(3)]
    stores[0].remember_many([f"tea number {number}" for number in range(100)], session_id="s")
    with ThreadPoolExecutor(9) as pool:
        found = list(pool.map(lambda number: stores[number % 3].recall("tea number 7", session_id="s", limit=100), range(9)))
    answers = [[(hit.memory.id, hit.score) for hit in one] for one in found]
    assert answers == answers[:1] * 9
    assert len(vectors_of(owner, stores[0])) == 100


# --- what is embedded ---------------------------------------------------------------------------------------------------------


def test_an_update_that_changes_only_the_speaker_changes_what_is_found(make_store):
    store = make_store(embedder=Words())
    memory = store.remember("drinks tea", session_id="s", speaker="anna")
    store.remember("drinks tea", session_id="s", speaker="carla")
    before = store.recall("bob", session_id="s", ranking="fixed")
    store.update(memory.id, speaker="bob")
    store.flush(PATIENCE_S)

    for each in (store, make_store(embedder=Words())):
        found = each.recall("bob", session_id="s", ranking="fixed", explain=True)
        assert found[0].memory.id == memory.id
        assert found[0].score > max((hit.score for hit in before), default=0)
        assert found[0].parts["speaker"] > 0
    assert store.stats().embedding_lag == 0


def test_an_update_that_changes_only_the_importance_leaves_meaning_and_words_as_they_were(make_store):
    store = make_store(embedder=Words())
    memory = store.remember("drinks tea", session_id="s", speaker="anna")
    store.remember("coffee", session_id="s")
    before = store.recall("tea", session_id="s", explain=True)
    store.update(memory.id, importance=1.0)

    after = store.recall("tea", session_id="s", explain=True)
    assert after[0].memory.importance == 1.0
    assert [(hit.score, hit.parts) for hit in after] == [(hit.score, hit.parts) for hit in before]
    store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == 0


def test_updates_that_the_follower_sees_page_by_page_are_embedded_as_the_memory_then_stood(make_store, owner, monkeypatch):
    monkeypatch.setattr("memfold.projections.follower.PAGE_EVENTS", 2)
    writer = make_store(embedder=Words("other"))
    memory = writer.remember("drinks tea", session_id="s", speaker="anna")
    writer.remember("something else", session_id="t")
    writer.update(memory.id, content="drinks milk")
    writer.update(memory.id, speaker="bob", importance=0.9)
    writer.update(memory.id, tags=["a"])
    embedder = Words()
    store = make_store(embedder=embedder)

    store.flush(PATIENCE_S)

    assert sorted(embedder.seen) == sorted(
        ["anna: drinks tea", "something else", "anna: drinks milk", "bob: drinks milk", "bob: drinks milk"]
    )
    assert len(vectors_of(owner, store)) == 5


STRANGE = {
    "no words": "?!… — ///",
    "stop words": "the and of it",
    "emoji": "🍵🫖 👩‍👩‍👧‍👦 🇳🇴",
    "chinese": "她每天早上喝绿茶",
    "arabic": "تشرب الشاي الأخضر كل صباح",
    "russian": "она пьёт зелёный чай",
    "combining": "Zalgo\u0301\u0302\u0303\u0304 te\u0301a",
    "control": "tea\u200b\u200d\ufeff\x07\x1b[0m",
    "one letter": "a",
    "long": "tea with lemon " * 6_700,
    "long word": "t" * 100_000,
    "spaces": " \n\t ",
}


@pytest.mark.parametrize("embedder", [static_embedder(), MiniLMEmbedder()], ids=["static", "minilm"])
def test_strange_texts_are_remembered_embedded_and_asked_for_like_any_other(make_store, embedder):
    store = make_store(embedder=embedder)
    memories = store.remember_many([text for text in STRANGE.values() if text.strip()], session_id="s")
    store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == 0
    for memory in memories:
        found = store.recall(memory.content, session_id="s", limit=10_000, explain=True)
        assert found.model == embedder.name
        assert all(0 < hit.score < 1 and np.isfinite(list(hit.parts.values())).all() for hit in found)
        assert {hit.memory.id for hit in found} <= {memory.id for memory in memories}
    for text in ("chinese", "arabic", "russian", "long"):
        assert store.recall(STRANGE[text], session_id="s")[0].memory.content == STRANGE[text]


def test_ten_thousand_answers_are_ranked_in_full_and_a_filter_changes_no_score(make_store):
    store = make_store()
    words = [f"word{number}" for number in range(50)]
    store.remember_many(
        [{"content": f"tea {words[number % 50]} {number}", "tags": [f"t{number % 7}"]} for number in range(10_000)],
        session_id="s",
    )
    for ranking in ("fixed", "learned"):
        how = {"session_id": "s", "ranking": ranking, "explain": True, "wait_s": 60}
        found = store.recall("tea word7", limit=10_000, **how)
        assert len(found) == 10_000
        scores = [hit.score for hit in found]
        assert scores == sorted(scores, reverse=True)
        for limit in (1, 7, 100, 101, 500):
            assert store.recall("tea word7", limit=limit, **how) == found[:limit]

        # The filter changes no score. The learned ranker looks at those that the mix likes best, of what the filter leaves.
        of_tag = [(hit.memory.id, hit.score, hit.parts) for hit in found if hit.memory.tags == ("t3",)]
        filtered = store.recall("tea word7", where={"tags": "t3"}, limit=10_000, **how)
        same = sum(hit.memory.tags == ("t3",) for hit in found[:100]) if ranking == "learned" else len(of_tag)
        assert same > 0
        assert [(hit.memory.id, hit.score, hit.parts) for hit in filtered][: same // 2] == of_tag[: same // 2]
        assert len(filtered) == len(of_tag)
    few = store.recall("tea word7", session_id="s", where={"tags": "t3"}, limit=3, min_score=scores[0])
    assert all(hit.score >= np.float32(scores[0]) for hit in few)
    assert store.recall("tea word7", session_id="s", where={"tags": "nobody has this"}) == []
    assert store.recall("tea word7", session_id="s", min_score=1.0) == []


def test_a_session_of_which_everything_was_forgotten_answers_nothing(make_store, monkeypatch):
    monkeypatch.setattr("memfold.projections.places.EMPTY_MAX", 2)
    store, late = make_store(), make_store()
    for memory in store.remember_many(["tea"] * 6, session_id="s"):
        store.recall("tea", session_id="s")
        store.forget(memory.id)
        store.recall("tea", session_id="s")
    for each in (store, late):
        assert each.recall("tea", session_id="s") == []
        assert each.recall("tea", session_id="s", where={"tags": "a"}) == []
        assert each.count("s") == 0
    store.remember("tea again", session_id="s")
    assert contents(late.recall("tea", session_id="s")) == contents(store.recall("tea", session_id="s")) == ["tea again"]


def test_the_name_of_a_forgotten_speaker_does_not_stay_in_the_view(make_store):
    store = make_store()
    memory = store.remember("drinks tea", session_id="s", speaker="Aurelia Vandersteen")
    store.remember("drinks milk", session_id="s", speaker="Bob")
    store.recall("tea", session_id="s")
    store.forget(memory.id)
    with store._views.session("s") as view:
        held = [repr(value) for name, value in [*vars(view).items(), *vars(view.places).items()]]
        assert "Aurelia" not in "".join(held)
        assert "Bob" in "".join(held)


def test_faiss_keeps_to_one_openmp_thread_in_every_thread_that_recalls(make_store):
    store = make_store(embedder=Words())
    store.remember_many([f"tea number {number}" for number in range(50)], session_id="s")
    start = threading.Barrier(6)

    def recall(number):
        faiss.omp_set_num_threads(4)
        start.wait()
        store.recall(f"tea number {number}", session_id="s")
        return faiss.omp_get_max_threads()

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(recall, range(6))) == [1] * 6


def test_the_smallest_pool_of_connections_serves_recall_follower_and_flush(make_store):
    settings = Settings(pool_connections_max=3, append_connections=1, connect_timeout_s=5)
    store = make_store(embedder=Words(slow_s=0.001), settings=settings)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.remember(f"tea {number}", session_id=f"s{number % 3}"), range(40)))
        list(pool.map(lambda number: store.recall(f"tea {number}", session_id=f"s{number % 3}"), range(40)))
    store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == 0


def test_a_failed_follower_gives_its_turn_to_another_process(make_store, owner):
    """A process whose embedder is down must not sit on the lease while another's works."""
    failing, working = Returns(raising), Words("returns")
    store = make_store(embedder=failing)
    with ThreadPoolExecutor(4) as pool:  # so that the pool holds several connections
        list(pool.map(lambda number: store.remember(f"tea {number}", session_id=f"s{number}"), range(8)))
    with pytest.raises(EmbedderFailed):
        store.flush(PATIENCE_S)
    query = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid::bigint << 32 | objid::bigint = %s"
    label = f"memfold follower {store._keyring.tenant} {store._follower._name}"
    number = int.from_bytes(sha256(label.encode()).digest()[:8], "big", signed=True)
    wait_until(lambda: owner.execute(query, (number,)).fetchone() == (0,))
    other = make_store(embedder=working)
    other.flush(PATIENCE_S)
    assert len(vectors_of(owner, other)) == 8


def test_a_vector_is_the_same_to_the_last_bit_whatever_it_is_brought_to_length_one_with():
    vectors = np.random.default_rng(7).standard_normal((500, 96)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for given in (vectors, vectors.astype(np.float16).astype(np.float32)):
        together = normalized(given)
        for size in (1, 2, 7):
            parts = [normalized(given[begin : begin + size]) for begin in range(0, 500, size)]
            assert (np.concatenate(parts) == together).all()


def test_a_static_vector_does_not_depend_on_what_else_is_embedded_with_it(rand):
    vocabulary = ["tea", "naïve\tÄrger", "don't-stop", "東京", "\x1cx\x00y", "a,b.c", "", "😀", "\ufeffword", "ﬁsh", "w" * 120]
    texts = [" ".join(rand.choices(vocabulary, k=rand.choice([0, 1, 5, 40, 300]))) for _ in range(200)]
    embedder = StaticEmbedder()
    together = embedder.encode(texts)
    assert all((embedder.encode([text])[0] == vector).all() for text, vector in zip(texts, together, strict=True))


def test_flush_says_what_the_database_refuses(make_store, monkeypatch):
    store = make_store()
    monkeypatch.setattr(
        derived, "store_embeddings", lambda *_: (_ for _ in ()).throw(StoreUnavailable("no", outcome="not_written"))
    )
    store.remember("tea", session_id="s")
    with pytest.raises(StoreUnavailable):
        store.flush()
    monkeypatch.undo()
    store.flush(PATIENCE_S)
    assert store.stats().embedding_lag == 0
