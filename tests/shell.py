"""memfold's commands as tests call them: in a process of their own, or in this one."""

import json
import os
import subprocess
import sys

from typer.testing import CliRunner

from memfold.api import cli


class Shell:
    """Runs `python -m memfold` on a target."""

    def __init__(self, target, **environment):
        self.target = str(target)
        clean = {name: value for name, value in os.environ.items() if not name.startswith("MEMFOLD_")}
        self.environment = clean | {"MEMFOLD_TARGET": self.target, "TZ": "Europe/Berlin", **environment}

    def start(self, *arguments, **streams):
        command = [sys.executable, "-m", "memfold", *map(str, arguments)]
        streams = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
        return subprocess.Popen(command, env=self.environment, **streams)

    def run(self, *arguments, exits=0, typed=None):
        """Run a command to its end; its standard output, or what it said on standard error if it was to fail."""
        with self.start(*arguments, stdin=subprocess.DEVNULL if typed is None else subprocess.PIPE) as process:
            out, err = process.communicate(typed, timeout=60)
        assert process.returncode == exits, err.decode()
        assert b"Traceback" not in err
        return (err if exits else out).decode()

    def json(self, *arguments):
        return json.loads(self.run(*arguments, "--json"))

    def here(self, *arguments, exits=0, typed=None):
        """As `run`, but in this process, which has imported everything already."""
        runner = CliRunner(env={"MEMFOLD_TARGET": self.target, "MEMFOLD_MASTER_KEY": None})
        result = runner.invoke(cli.app, [*map(str, arguments)], input=typed, prog_name="memfold")
        assert result.exit_code == exits, result.output
        return result.stderr if exits else result.stdout

    def json_here(self, *arguments):
        return json.loads(self.here(*arguments, "--json"))
