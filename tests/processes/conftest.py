"""The long forms run with --soak only: `scripts/soak`. A server of their own, because they kill it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from memfold.eventstore import embedded


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
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
