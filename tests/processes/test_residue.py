"""Canaries: words that must not be found in any byte of the data folder, before forgetting or after."""

import base64
import json
import os
import secrets
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import psycopg
import pytest

from memfold import FilterError, IdempotencyConflict, MemoryStore, SessionOwnerConflict
from memfold.audit import residue
from memfold.eventstore import embedded
from memfold.minilm import static_embedder

PLACES = [
    *("content", "changed content", "metadata key", "metadata value", "nested value", "tag", "category", "role", "speaker"),
    *(
        "session",
        "user",
        "idempotency key",
        "query",
        "filter value",
        "filter key",
        "forgotten content",
        "refused content",
        "batch",
    ),
]


@pytest.mark.parametrize(
    "form",
    [
        lambda word: word.encode(),
        lambda word: word.encode("utf-16-le"),
        lambda word: word.encode("utf-16-be"),
        lambda word: word.encode().hex().encode(),
        lambda word: word.encode().hex().upper().encode(),
        lambda word: json.dumps(word).encode(),
        lambda word: quote(word).encode(),
        lambda word: base64.b64encode(word.encode()),
        lambda word: base64.b64encode(b"x" + word.encode() + b"tail"),
        lambda word: base64.b64encode(b"xy" + word.encode() + b"t"),
    ],
)
def test_a_planted_word_is_found_in_every_form_also_across_borders(tmp_path, monkeypatch, form):
    monkeypatch.setattr(residue, "CHUNK_BYTES", 64)
    word = "Plöver-" + secrets.token_hex(6)
    for before in range(0, 130, 7):
        (tmp_path / "file").write_bytes(b"\xfe" * before + form(word) + b"\xfe" * 50)
        assert residue.scan(tmp_path, [word]).hits, before


def test_a_word_that_is_not_there_is_not_found(tmp_path):
    (tmp_path / "file").write_bytes(secrets.token_bytes(100_000))
    found = residue.scan(tmp_path, ["plover-not-here"])
    assert (found.hits, found.files) == ([], 1)
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_scan_that_does_not_see_its_own_word_is_not_believed(tmp_path, monkeypatch):
    monkeypatch.setattr(residue, "_files", lambda folder: iter(()))
    with pytest.raises(residue.ScanFailed):
        residue.scan(tmp_path, ["plover-not-here"])


def test_a_short_canary_is_refused(tmp_path):
    with pytest.raises(ValueError, match="six"):
        residue.scan(tmp_path, ["tea"])


def test_nothing_anybody_said_is_readable_on_disk_before_or_after_forgetting(tmp_path):
    folder = tmp_path / "store"
    canary = {place: f"kx{secrets.token_hex(10)}" for place in PLACES}
    with MemoryStore(folder) as store:
        session, user = canary["session"], canary["user"]
        memory = store.remember(
            f"the code is {canary['content']} today",
            session_id=session,
            user_id=user,
            role=canary["role"],
            speaker=canary["speaker"],
            category=canary["category"],
            tags=[canary["tag"]],
            metadata={canary["metadata key"]: canary["metadata value"], "a": {"b": [canary["nested value"]]}},
            occurred_at=datetime(2026, 1, 1, tzinfo=UTC),
            idempotency_key=canary["idempotency key"],
        )
        store.update(memory.id, content=canary["changed content"], idempotency_key=canary["idempotency key"] + "2")
        forgotten = store.remember(canary["forgotten content"], session_id=session)
        store.remember_many([f"{canary['batch']} {number}" for number in range(500)], session_id=session)
        store.recall(canary["query"] + " code", session_id=session, where={canary["filter key"]: canary["filter value"]})
        with pytest.raises(FilterError):
            store.find(session, where={canary["filter key"]: {"$bad": canary["filter value"]}})
        with pytest.raises(SessionOwnerConflict):
            store.remember(canary["refused content"], session_id=session, user_id="another")
        with pytest.raises(IdempotencyConflict):
            store.remember(canary["refused content"], session_id=session, idempotency_key=canary["idempotency key"])
        # Errors of the server, which are logged: cut a connection, break a rule.
        with psycopg.connect(embedded.attach(folder).url, autocommit=True) as owner:
            with pytest.raises(psycopg.Error):
                owner.execute("DELETE FROM memfold.events")
            owner.execute(
                """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                   WHERE pid <> pg_backend_pid() AND backend_type = 'client backend'"""
            )
            store.remember(canary["batch"], session_id=session)
            owner.execute("CHECKPOINT")
            before = residue.scan(folder, canary.values())
            assert before.files > 100
            assert before.hits == []

            store.forget(forgotten.id)
            store.forget_where(session, {"role": canary["role"]})
            store.forget_session(session)
            store.forget_user(user)
            owner.execute("CHECKPOINT")
        after = residue.scan(folder, canary.values())
        assert after.hits == []
    embedded.stop(folder, force=True)
    assert residue.scan(folder, canary.values()).hits == []


class Recording:
    """The static model, and every vector it ever made: raw, as it is stored and as it is computed with."""

    name = "recording"

    def __init__(self):
        self.made = {}

    def encode(self, texts):
        vectors = static_embedder().encode(texts)
        self.made |= {text: vector for text, vector in zip(texts, vectors, strict=True) if vector.any()}
        return vectors

    def needles(self):
        for number, vector in enumerate(self.made.values()):
            half = vector.astype("<f2")
            for name, form in (("float32", vector), ("float16", half), ("rounded", half.astype("<f4"))):
                yield number, name, form.tobytes()[:32]


def vectors_in(folder, embedder):
    """Where the first 32 bytes of a vector stand in a folder; the search is believed if it finds those it planted itself."""
    needles, planted = list(embedder.needles()), folder / ".planted"
    try:
        planted.write_bytes(b"".join(needle for _, _, needle in needles))
        found, _, _ = residue._search(folder, needles)
    finally:
        planted.unlink()
    assert {(hit.canary, hit.encoding) for hit in found if hit.path == planted} == {needle[:2] for needle in needles}
    return [hit for hit in found if hit.path != planted]


def test_no_word_and_no_vector_is_readable_on_disk_before_or_after_forgetting_what_was_embedded(tmp_path):
    folder, embedder = tmp_path / "store", Recording()
    canary, speaker = f"kx{secrets.token_hex(10)}", f"kx{secrets.token_hex(10)}"
    with (
        MemoryStore(folder, embedder=embedder) as store,
        psycopg.connect(embedded.attach(folder).url, autocommit=True) as owner,
    ):
        memory = store.remember(f"she drinks green tea {canary}", session_id="s", user_id="u", speaker=speaker)
        store.remember(f"coffee with milk {canary}", session_id="s", tags=["doomed"])
        store.remember(f"he likes black coffee {canary}", session_id="s")
        store.remember(f"her flight leaves at nine {canary}", session_id="t", user_id="u")
        store.update(memory.id, content=f"she drinks black tea {canary}")
        for session in ("s", "t"):
            assert store.recall(f"who drinks tea {canary}", session_id=session).model == "recording"
        store.flush(60)
        assert len(embedder.made) == 6
        owner.execute("CHECKPOINT")
        before = residue.scan(folder, [canary, speaker])
        assert (before.files > 100, before.hits) == (True, [])
        assert vectors_in(folder, embedder) == []

        erased = []
        for forget in (
            lambda: store.forget(memory.id),
            lambda: store.forget_where("s", {"tags": "doomed"}),
            lambda: store.forget_session("s"),
            lambda: store.forget_user("u"),
        ):
            erased += forget().erased_positions
            store.recall(f"who drinks tea {canary}", session_id="s")
        assert len(set(erased)) >= 5
        query = "SELECT count(*) FROM memfold.embeddings WHERE position = ANY(%s)"
        assert owner.execute(query, (erased,)).fetchone() == (0,)
        owner.execute("CHECKPOINT")
    embedded.stop(folder, force=True)
    assert residue.scan(folder, [canary, speaker]).hits == []
    assert vectors_in(folder, embedder) == []


class TemporaryFiles:
    """Looks again and again for files in temporary folders, and for those this process opens to write, deleted ones included.

    What appears in `server` is PostgreSQL's, which may sort what is sealed there; it is read, and `readable` says whether
    `word` was in it.
    """

    def __init__(self, server, word):
        self._server, self._word, self.readable = server, word.encode(), False
        self._folders = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path.cwd()]
        self._known = self._here()
        self._stop, self.seen, self.looks = threading.Event(), set(), 0
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _watch(self):
        while not self._stop.wait(0.001):
            self.seen |= {path for path in self._here() - self._known if self._is_a_file(path)}
            for path in self._server.iterdir() if self._server.is_dir() else ():
                try:
                    self.readable = self.readable or self._word in path.read_bytes()
                except OSError:
                    continue
            self.looks += 1

    def _here(self):
        found = {path for folder in self._folders if folder.is_dir() for path in folder.iterdir()}
        for link in Path("/proc/self/fd").iterdir():
            try:
                target = link.readlink()
                info = Path("/proc/self/fdinfo", link.name).read_text()
            except OSError:
                continue
            if (
                int(info.split("flags:")[1].split()[0], 8) & (os.O_WRONLY | os.O_RDWR)
                and target.is_absolute()
                and not str(target).startswith(("/dev/", "/proc/"))
            ):
                found.add(target)
        return found

    @staticmethod
    def _is_a_file(path):
        return path.is_file() or path.name.endswith("(deleted)")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_a_temporary_file_is_seen_also_a_deleted_one(tmp_path):
    (tmp_path / "server").mkdir()
    with (
        TemporaryFiles(tmp_path / "server", "a word") as watched,
        tempfile.TemporaryFile() as deleted,
        tempfile.NamedTemporaryFile() as named,
    ):
        deleted.write(b"x")
        (tmp_path / "server" / "file").write_text("this is a word")
        looks = watched.looks
        while watched.looks < looks + 3:
            time.sleep(0.001)
    assert Path(named.name) in watched.seen
    assert any(path.name.endswith("(deleted)") for path in watched.seen)
    assert watched.readable


def sort_and_recall(tmp_path, count):
    folder, canary = tmp_path / "store", f"kx{secrets.token_hex(10)}"
    with MemoryStore(folder, embedder=static_embedder()) as store:
        for begin in range(0, count, 5_000):
            items = [
                {
                    "content": f"{canary} number {number} {'tea with lemon ' * 20}",
                    "tags": [canary],
                    "occurred_at": datetime.fromtimestamp(number * 7919 % 1_000_003, UTC),
                }
                for number in range(begin, begin + 5_000)
            ]
            store.remember_many(items, session_id="s")
        with TemporaryFiles(folder / "pg" / "base" / "pgsql_tmp", canary) as watched:
            for order in ("newest", "oldest"):
                found = store.find("s", order=order, limit=10_000, where={"tags": {"$contains": canary}})
                assert len(found.memories) == min(count, 10_000)
                assert store.find("s", order=order, limit=100, cursor=found.cursor).memories if found.cursor else True
            assert store.count("s", where={"tags": {"$contains": canary}}) == count
            found = store.recall(f"tea {canary}", session_id="s", limit=10_000, wait_s=600)
            assert len(found) == min(count, 10_000)
            assert found.model == static_embedder().name
        assert watched.looks > 10
        assert watched.seen == set()
        assert not watched.readable
        assert residue.scan(folder, [canary]).hits == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_sorting_and_recalling_a_session_makes_no_temporary_file(tmp_path):
    sort_and_recall(tmp_path, 5_000)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_sorting_and_recalling_a_session_of_a_hundred_thousand_makes_no_temporary_file(tmp_path):
    sort_and_recall(tmp_path, 100_000)
