"""One real PostgreSQL for the whole run, started by the embedded lifecycle; every test gets a tenant of its own.

A tenant is a store of its own to everybody who has no business with the database itself, and costs milliseconds.
"""

import base64
import os
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from memfold import MemoryStore, Settings
from memfold.eventstore import embedded
from memfold.minilm import static_embedder

MASTER_KEY = base64.urlsafe_b64encode(bytes(range(32))).decode()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="run the long forms of the stress, kill and race tests")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The long forms run with --soak only: `scripts/soak`."""
    if config.getoption("--soak"):
        return
    long = [item for item in items if item.get_closest_marker("soak")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[embedded.EmbeddedServer]:
    """A PostgreSQL that this test may treat as badly as it likes."""
    server = embedded.attach(tmp_path / "server")
    yield server
    server.release()


@pytest.fixture(scope="session")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL that lives as long as the run."""
    if url := os.environ.get("MEMFOLD_TEST_URL"):
        yield url
        return
    server = embedded.attach(tmp_path_factory.mktemp("server"))
    yield server.url
    server.release()


@pytest.fixture
def tenant() -> str:
    return f"tenant-{uuid.uuid4()}"


@pytest.fixture
def make_store(server_url: str, tenant: str) -> Iterator[Callable[..., MemoryStore]]:
    """Opens stores on the shared server, by default of this test's tenant; closes them at the end.

    Their embedder is the static model, which is a hundred times quicker; tests of the other one ask for it.
    """
    stores: list[MemoryStore] = []

    def make(**options: Any) -> MemoryStore:
        options.setdefault("tenant", tenant)
        options.setdefault("master_key", MASTER_KEY)
        options.setdefault("settings", Settings(pool_connections_max=8))
        options.setdefault("embedder", static_embedder())
        stores.append(MemoryStore(options.pop("target", server_url), **options))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def store(make_store: Callable[..., MemoryStore]) -> MemoryStore:
    return make_store()


@pytest.fixture
def rand(request: pytest.FixtureRequest) -> random.Random:
    """Randomness that can be had again: the seed is shown when a test fails."""
    seed = random.SystemRandom().randrange(2**32)
    request.node.user_properties.append(("seed", seed))
    print(f"seed: {seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def locomo() -> Path:
    """LoCoMo conversations for measuring recall; skipped, and says so, where they are not to be had."""
    path = Path(__file__).parents[2] / "shared" / "data" / "locomo-dev.json"
    if not path.exists():
        pytest.skip("the LoCoMo conversations (CC BY-NC, never shipped) are not here")
    return path
