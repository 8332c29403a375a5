"""Opening and closing: where the key comes from, and that the embedded server does not outlive its last user."""

import os
import subprocess
import sys
import uuid
from functools import partial

import alembic.command
import psycopg
import pytest
from conftest import MASTER_KEY

from memfold import KeyUnavailable, MemoryStore
from memfold.eventstore import embedded, migrating
from memfold.minilm import static_embedder

LEAVES_WITHOUT_CLOSING = """
import sys
from memfold import MemoryStore
store = MemoryStore(sys.argv[1])
store.remember("tea", session_id="s")
"""


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "store"
    embedded.stop(tmp_path / "store", force=True)


def run(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=True)


def test_a_program_that_ends_without_closing_stops_the_server(folder):
    found = run(LEAVES_WITHOUT_CLOSING, folder)
    assert found.stderr == ""
    assert not embedded.status(folder).running
    with MemoryStore(folder) as store:
        assert store.count("s") == 1


def test_a_folder_whose_key_file_is_gone_is_refused_and_gets_no_new_key(folder):
    with MemoryStore(folder) as store:
        store.remember("tea", session_id="s")
    key = (folder / "master.key").read_bytes()
    (folder / "master.key").unlink()
    with pytest.raises(KeyUnavailable, match="is missing"):
        MemoryStore(folder)
    assert not (folder / "master.key").exists()
    descriptor = os.open(folder / "master.key", os.O_WRONLY | os.O_CREAT, 0o600)
    os.write(descriptor, key)
    os.close(descriptor)
    with MemoryStore(folder) as store:
        assert store.count("s") == 1


def test_the_environment_names_the_target_and_the_key(folder, monkeypatch):
    monkeypatch.setenv("MEMFOLD_TARGET", str(folder))
    monkeypatch.setenv("MEMFOLD_MASTER_KEY", "A" * 43)
    with MemoryStore() as store:
        store.remember("tea", session_id="s")
    assert not (folder / "master.key").exists()
    with MemoryStore(folder, master_key=bytes(32)) as store:
        assert store.count("s") == 1
    monkeypatch.setenv("MEMFOLD_MASTER_KEY", "B" * 43)
    with pytest.raises(KeyUnavailable):
        MemoryStore(folder)


def test_a_database_of_the_first_schema_is_brought_up_to_date_and_keeps_what_it_holds(server_url, monkeypatch):
    with psycopg.connect(server_url, autocommit=True) as owner:
        name = f"first_{uuid.uuid4().hex}"
        owner.execute(f"CREATE DATABASE {name}")
    url = server_url.replace("/postgres?", f"/{name}?")
    with psycopg.connect(url, autocommit=True) as owner, monkeypatch.context() as patch:
        patch.setattr(migrating, "HEAD", "0001")
        patch.setattr("alembic.command.upgrade", partial(upgrade_to, "0001", alembic.command.upgrade))
        migrating.migrate(url)
        assert owner.execute("SELECT version_num FROM memfold.alembic_version").fetchone() == ("0001",)
        assert owner.execute("SELECT to_regclass('memfold.checkpoints')").fetchone() == (None,)

    with MemoryStore(url, master_key=MASTER_KEY, embedder=static_embedder()) as store:
        store.remember("tea", session_id="s")
        store.flush(30)
        assert store.recall("tea", session_id="s")[0].memory.content == "tea"
    with psycopg.connect(url) as owner:
        assert owner.execute("SELECT version_num FROM memfold.alembic_version").fetchone() == (migrating.HEAD,)


def upgrade_to(revision, upgrade, config, _):
    upgrade(config, revision)


OPENS_AND_RECALLS = """
import sys
from memfold import MemoryStore
class Given:
    name = "given"
    def encode(self, texts):
        import numpy
        return numpy.eye(1, 8, dtype=numpy.float32).repeat(len(texts), axis=0)
with MemoryStore(sys.argv[1], master_key=sys.argv[2], tenant=sys.argv[3], embedder=Given()) as store:
    assert store.recall("tea", session_id="s")[0].memory.content == "tea"
    print([name for name in sys.argv[4:] if name in sys.modules])
"""


def test_a_store_that_is_up_to_date_is_opened_and_asked_without_what_migrates_shows_or_embeds(make_store, server_url, tenant):
    make_store().remember("tea", session_id="s")
    heavy = ["alembic", "sqlalchemy", "typer", "rich", "onnxruntime", "tokenizers"]
    assert run(OPENS_AND_RECALLS, server_url, MASTER_KEY, tenant, *heavy).stdout == "[]\n"
