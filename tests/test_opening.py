"""Opening and closing: where the key comes from, and that the embedded server does not outlive its last user."""

import os
import subprocess
import sys

import pytest

from memfold import KeyUnavailable, MemoryStore
from memfold.eventstore import embedded

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
