"""What `from memfold import …` promises."""

import inspect
import re
import subprocess
import sys

import pytest

import memfold
from memfold import AsyncMemoryStore, MemoryStore, errors

VERBS = [
    *("remember", "remember_many", "update", "forget", "forget_session", "forget_user", "forget_where"),
    *("consolidate", "set_policy", "policy", "policies", "parked", "retry_parked", "sources", "derived_from", "restore"),
    *("work", "status"),
    *("get", "find", "count", "recall", "context", "history", "sessions", "stats", "events", "flush", "close"),
]


def test_every_exported_name_can_be_had_and_the_list_is_sorted():
    assert all(getattr(memfold, name) is not None for name in memfold.__all__)
    assert memfold.__all__ == sorted(memfold.__all__, key=lambda name: (not name.isupper(), name))


def test_every_error_is_exported():
    named = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.MemfoldError)]
    assert set(named) <= set(memfold.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = memfold.nothing


@pytest.mark.parametrize("verb", VERBS)
def test_the_async_store_has_the_same_verb(verb):
    ours, theirs = getattr(MemoryStore, verb), getattr(AsyncMemoryStore, verb)
    one, other = inspect.signature(ours), inspect.signature(theirs)
    assert [(p.name, p.kind, p.default) for p in one.parameters.values()] == [
        (p.name, p.kind, p.default) for p in other.parameters.values()
    ]
    assert ours.__doc__ == theirs.__doc__
    assert inspect.iscoroutinefunction(theirs) or inspect.isasyncgenfunction(theirs)


def test_both_stores_are_opened_with_the_same_arguments():
    assert (
        inspect.signature(MemoryStore.__init__).parameters.keys()
        == inspect.signature(AsyncMemoryStore.__init__).parameters.keys()
    )


def test_every_public_verb_is_on_the_list():
    public = {name for name, value in vars(MemoryStore).items() if inspect.isfunction(value) and not name.startswith("_")}
    assert public == set(VERBS)


def test_every_verb_says_what_a_caller_may_count_on():
    for verb in VERBS:
        assert len(getattr(MemoryStore, verb).__doc__ or "") > 40, verb


def test_importing_memfold_loads_nothing_heavy():
    heavy = ["sqlalchemy", "psycopg", "alembic", "cryptography", "typer", "rich", "apscheduler", "msgspec", "sqlite3", "openai"]
    code = f"import sys, memfold; print([name for name in {heavy} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_version_is_that_of_the_package():
    from importlib.metadata import version

    assert version("memfold") == memfold.__version__
    assert re.fullmatch(r"\d+\.\d+\.\d+", memfold.__version__)
