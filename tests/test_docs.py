"""The documents are true: their code runs, their commands exist, their links lead somewhere, and nothing public is left out."""

import inspect
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

import memfold
from memfold import AsyncMemoryStore, MemoryStore, Settings, errors, events, model, policies, rules, validation
from memfold.api.cli import app
from memfold.eventstore import embedded
from memfold.projections import filters, words

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "memfold"
README = ROOT / "README.md"
DOCS = [README, *sorted((ROOT / "docs").glob("*.md"))]
PROSE = [*DOCS, ROOT / "CHANGELOG.md", ROOT / "examples" / "README.md"]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")

COMMANDS = typer.main.get_command(app)


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def text_of(path: Path) -> str:
    return path.read_text("utf-8")


def blocks(path: Path, *languages: str) -> list[tuple[int, str]]:
    """The code blocks of a document, each with the line its code begins at."""
    text = text_of(path)
    return [(text.count("\n", 0, found.start(2)) + 1, found[2]) for found in FENCE.finditer(text) if found[1] in languages]


def shell_lines() -> list[Any]:
    return [
        pytest.param(line, id=f"{name_of(path)}: {line}")
        for path in DOCS
        for _, code in blocks(path, "sh", "console")
        for line in (raw.removeprefix("$ ").partition(" # ")[0].strip() for raw in code.splitlines())
        if line
    ]


def mentioned(name: str, *paths: Path) -> bool:
    """Whether a document names it in backticks or in code, as a whole word."""
    word = re.compile(rf"(?<![\w./]){re.escape(name)}(?![\w/])")
    return any(
        word.search(code)
        for path in paths or DOCS
        for code in [
            *re.findall(r"`([^`\n]+)`", FENCE.sub("", text_of(path))),
            *(code for _, code in blocks(path, "python", "sh")),
        ]
    )


def section(path: Path, title: str) -> str:
    """What stands under a heading, up to the next heading of the same depth or less."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", text_of(path), re.MULTILINE | re.DOTALL)
    assert found, f"{name_of(path)} has no section {title!r}"
    return found[2]


# --- code ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`MemoryStore()` opens an embedded store of this test's own, as it would on a machine where nothing is set."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEMFOLD_TARGET", str(tmp_path / "store"))
    monkeypatch.delenv("MEMFOLD_MASTER_KEY", raising=False)
    yield
    for folder in (path.parent for path in tmp_path.glob("*/pg")):
        embedded.LOCKS.drop_lease(folder, all_of_them=True)
        embedded.stop(folder, force=True)


@pytest.mark.usefixtures("own_store")
@pytest.mark.parametrize("path", [path for path in DOCS if blocks(path, "python")], ids=name_of)
def test_the_python_of_a_document_runs_from_top_to_bottom(path, capsys):
    namespace: dict[str, Any] = {"__name__": "a_document"}
    for line, code in blocks(path, "python"):
        exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)
    if path == README:
        said = capsys.readouterr().out
        for words_of_it in ("Anna drinks green tea", "['remembered', 'updated']", "2 keys destroyed"):
            assert words_of_it in said


@pytest.mark.parametrize("line", shell_lines())
def test_a_command_line_in_a_document_can_be_typed(line):
    if line.startswith("scripts/"):
        assert (ROOT / shlex.split(line)[0]).exists(), f"there is no {line}"
    elif line.startswith("memfold"):
        parse(shlex.split(line)[1:])
    else:
        assert line.split()[0] in ("python", "export"), f"nobody checks {line!r}"


def parse(arguments: list[str]) -> None:
    """Parse a command line as memfold would, without running the command."""
    group = COMMANDS.make_context("memfold", list(arguments))
    name, command, rest = COMMANDS.resolve_command(group, [*group._protected_args, *group.args])
    assert command is not None
    with command.make_context(name, rest, parent=group):
        pass


@pytest.mark.parametrize("name", sorted(COMMANDS.commands))
def test_every_command_has_help(name):
    context = COMMANDS.make_context("memfold", [name])
    assert len(COMMANDS.commands[name].get_help(context)) > 40


def test_sql_in_the_documents_runs(store):
    for path in DOCS:
        for _, code in blocks(path, "sql"):
            for statement in re.sub(r"--.*", "", code).split(";"):
                if statement.strip():
                    store._database.rows(statement)


# --- nothing is left out -----------------------------------------------------------------------------------------------------


def public_errors() -> list[str]:
    return [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, errors.MemfoldError)]


def verbs() -> list[str]:
    return [name for name, value in vars(MemoryStore).items() if inspect.isfunction(value) and not name.startswith("_")]


API = ROOT / "docs" / "api.md"


@pytest.mark.parametrize("name", memfold.__all__)
def test_every_public_name_is_in_the_api(name):
    assert mentioned(name, API) or f"**{name}**" in text_of(API)


@pytest.mark.parametrize("name", public_errors())
def test_every_error_says_what_to_do_in_the_table(name):
    if name == "MemfoldError":
        return
    row = re.search(rf"^\| `{name}`.*\|.*\|.*\|$", section(API, "Errors"), re.MULTILINE)
    assert row, f"{name} has no row"
    for fact in inspect.signature(getattr(errors, name).__init__).parameters:
        assert fact == "self" or f"`{fact}`" in row[0] or f"`{fact}=" in row[0], f"{name}.{fact}"


@pytest.mark.parametrize("name", Settings.__struct_fields__)
def test_every_setting_is_listed_with_its_default(name):
    assert f"| `{name}` | {getattr(Settings(), name)} |" in section(API, "Settings")


CONSOLIDATION = ROOT / "docs" / "consolidation.md"


def test_every_value_of_a_policy_is_listed_with_its_default():
    listed: dict[str, dict[str, str]] = {}
    row = re.compile(r"^\| (?:`(\w+)` )?\| (`[^|]+) \| ([^|]+) \|", re.MULTILINE)
    for name, fields, defaults in row.findall(section(CONSOLIDATION, "Policies")):
        own = listed.setdefault(name or list(listed)[-1], {})
        told, names = defaults.split(", "), re.findall(r"`(\w+)`", fields)
        own |= dict(zip(names, told if len(told) == len(names) else told * len(names), strict=True))
    actual = policies.dump(policies.Effective())
    assert listed == {name: {field: shown(value) for field, value in values.items()} for name, values in actual.items()}


def shown(value: object) -> str:
    if isinstance(value, tuple | dict):
        return ", ".join(value) or "none"
    return value if isinstance(value, str) else json.dumps(value)


def test_the_policies_in_the_documents_make_sense():
    found = [rules.policy(json.loads(code)) for _, code in blocks(CONSOLIDATION, "json")]
    assert found


@pytest.mark.parametrize("name", [name for name in verbs() if name != "close"])
def test_every_verb_has_a_section_with_its_signature_as_it_is(name):
    text = section(API, name)
    stated = re.search(rf"`{name}\((.*?)\)(?: -> [^`]+)?`", text, re.DOTALL)
    assert stated, f"no signature of {name}"
    said = [argument.partition("=") for argument in re.sub(r"\s+", " ", stated[1]).split(", ") if argument not in ("", "*")]
    actual = [
        parameter for parameter in inspect.signature(getattr(MemoryStore, name)).parameters.values() if parameter.name != "self"
    ]
    assert [argument for argument, _, _ in said] == [parameter.name for parameter in actual]
    for (argument, _, default), parameter in zip(said, actual, strict=True):
        if parameter.default not in (inspect.Parameter.empty, msgspec.UNSET):
            assert default.replace('"', "'") == repr(parameter.default), argument


@pytest.mark.parametrize("name", verbs())
def test_every_verb_is_in_the_readme(name):
    assert mentioned(name, README)


def structs() -> list[Any]:
    found = [value for value in vars(model).values() if isinstance(value, type) and issubclass(value, model.Discreet)]
    return [pytest.param(struct, id=struct.__name__) for struct in found if struct is not model.Discreet]


@pytest.mark.parametrize("struct", structs())
def test_every_field_of_every_answer_is_listed(struct):
    text = section(API, "What comes back")
    own = text[text.index(f"**{struct.__name__}**") :]
    own = own[: own.index("\n**", 1) if "\n**" in own[1:] else len(own)]
    for field in struct.__struct_fields__:
        assert f"`{field}`" in own, field


@pytest.mark.parametrize("name", ["position", "model", "withheld"])
def test_every_attribute_of_recollections_is_listed(name):
    assert hasattr(model.Recollections([], position=0), name)
    assert f"`{name}`" in section(API, "What comes back")


LIMITS = {
    "Limits": [
        value for name, value in vars(validation).items() if name.endswith("_MAX") and name not in ("INTEGER_MAX", "WAIT_S_MAX")
    ],
    "Filters": [filters.DEPTH_MAX, filters.LEAVES_MAX, filters.LIST_MAX, filters.VALUES_MAX, filters.KEY_CHARACTERS_MAX],
    "recall": [words.TERMS_MAX],
}


@pytest.mark.parametrize(("title", "limit"), [(title, limit) for title, limits in LIMITS.items() for limit in limits])
def test_every_limit_is_named(title, limit):
    assert re.search(rf"(?<![\d,]){limit:,}(?![\d,])", section(API, title))


@pytest.mark.parametrize("operator", [*filters._OPERATORS, *filters._DENIALS, "$not", "$and", "$or"])
def test_every_operator_of_a_filter_is_explained(operator):
    assert f"`{operator}`" in section(API, "Filters")


@pytest.mark.parametrize("field", filters._FIELDS)
def test_every_field_of_a_filter_is_named(field):
    assert f"`{field}`" in section(API, "Filters")


@pytest.mark.parametrize("number", events.TYPES)
def test_every_event_type_is_in_the_log_with_its_number(number):
    assert f"| {number} | `{events.TYPES[number].__name__}` |" in text_of(ROOT / "docs" / "log.md")


@pytest.mark.parametrize(
    "table",
    [
        "events",
        "payloads",
        "embeddings",
        "checkpoints",
        "spending",
        "heads",
        "sessions",
        "idempotency",
        "erasures",
        "directory",
        "windows",
        "agenda",
        "parked",
    ],
)
def test_every_table_and_column_is_in_the_log(table):
    columns_of(f"memfold.{table}")


@pytest.mark.parametrize("table", ["master", "tenants", "users", "keys"])
def test_every_table_and_column_of_the_keyring_is_in_the_log(table):
    columns_of(f"memfold_keys.{table}")


def columns_of(table: str) -> None:
    from memfold.eventstore.schema import metadata

    row = re.search(rf"^\| `{re.escape(table)}` .*$", text_of(ROOT / "docs" / "log.md"), re.MULTILINE)
    assert row, table
    for column in metadata.tables[table].columns:
        assert f"`{column.name}`" in row[0] or column.name == "singleton", column.name


@pytest.mark.parametrize("name", ["probe_server", "probe_log", "refuse_transaction_pooling"])
def test_every_check_at_start_is_in_the_log(name):
    from memfold.eventstore import database

    assert callable(getattr(database, name))
    assert f"`{name}`" in text_of(ROOT / "docs" / "log.md")


MODULES = [path for pattern in ("*.py", "*.sql") for path in sorted(PACKAGE.rglob(pattern))]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_every_module_has_a_line_in_the_architecture(path):
    assert f"\n| `{path.relative_to(PACKAGE).as_posix()}` |" in text_of(ROOT / "docs" / "architecture.md")


def test_every_module_in_the_architecture_exists():
    listed = re.findall(r"^\| `([\w/]+\.(?:py|sql))` \|", text_of(ROOT / "docs" / "architecture.md"), re.MULTILINE)
    assert sorted(listed) == sorted(path.relative_to(PACKAGE).as_posix() for path in MODULES)


@pytest.mark.parametrize("name", sorted(COMMANDS.commands))
def test_every_command_is_in_the_readme(name):
    assert f"`{name}`" in section(README, "The command line")


def test_every_variable_of_the_environment_is_in_the_readme_or_the_api():
    for name in re.findall(r'environ\.get\("(\w+)"\)', text_of(PACKAGE / "settings.py")):
        assert mentioned(name, README, API), name


def test_both_stores_are_in_the_api():
    assert mentioned(MemoryStore.__name__, API)
    assert mentioned(AsyncMemoryStore.__name__, API)


def test_every_document_is_reached_from_the_readme():
    linked = {target.partition("#")[0] for target in LINK.findall(text_of(README))}
    assert {name_of(path) for path in DOCS[1:]} <= linked


def test_every_document_that_the_code_speaks_of_exists():
    for path in [*MODULES, *(ROOT / "scripts").iterdir()]:
        for name in re.findall(r"docs/\w+\.md", text_of(path)):
            assert (ROOT / name).exists(), f"{path} speaks of {name}"


# --- links -------------------------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The anchors of a document's headings, made as the usual viewers make them."""
    headings = re.findall(r"^(?:> )?#+ (.*)$", FENCE.sub("", text_of(path)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    ("path", "target"),
    [
        pytest.param(path, target, id=f"{name_of(path)}: {target}")
        for path in PROSE
        for target in dict.fromkeys(LINK.findall(FENCE.sub("", text_of(path))))
        if "://" not in target
    ],
)
def test_a_link_leads_somewhere(path, target):
    file, _, anchor = target.partition("#")
    found = (path.parent / file).resolve() if file else path
    assert found.is_relative_to(ROOT)
    assert found.exists(), f"there is no {file}"
    assert not anchor or anchor in anchors(found), f"{file} has no heading #{anchor}"
