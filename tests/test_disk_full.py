"""A disk that fills up: acknowledged memories stay, the rest is refused with a typed error, and room brings the store back."""

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from memfold import MemoryStore, Settings, StoreUnavailable


def mounted(folder: Path, size: str, *options: str) -> bool:
    mount = shutil.which("mount")
    if mount is None or os.geteuid() != 0:
        return False
    command = [mount, "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture
def small_disk(tmp_path):
    if not mounted(tmp_path, "130m"):
        pytest.skip("only root can mount a small disk, and not everywhere")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_full_disk_loses_nothing_and_room_brings_the_store_back(small_disk):
    store = MemoryStore(small_disk / "store", settings=Settings(connect_timeout_s=5))
    acknowledged = set()
    with pytest.raises(StoreUnavailable) as caught:
        for _ in range(1000):
            batch = [os.urandom(1500).hex() for _ in range(200)]
            acknowledged |= {memory.id for memory in store.remember_many(batch, session_id="s")}
    assert caught.value.outcome in ("unknown", "not_written")
    assert acknowledged

    assert mounted(small_disk, "400m", "remount")
    deadline = time.monotonic() + 60
    while True:
        try:
            acknowledged.add(store.remember("there is room", session_id="s").id)
            break
        except StoreUnavailable:
            assert time.monotonic() < deadline
            time.sleep(0.2)

    found = {memory.id for memory in store.find("s", limit=10_000).memories}
    assert acknowledged <= found
    # A batch whose outcome nobody knew is there as a whole or not at all.
    assert len(found - acknowledged) in (0, 200)
    store.close()
    with MemoryStore(small_disk / "store") as again:
        assert {memory.id for memory in again.find("s", limit=10_000).memories} == found
