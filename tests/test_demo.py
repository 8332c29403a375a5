"""The demo tells a true story, and leaves nothing behind."""

import os
import re
import subprocess
import sys
from pathlib import Path

DEMO = Path(__file__).parents[1] / "examples" / "demo.py"


def test_the_demo_keeps_its_promises_and_leaves_nothing_behind(tmp_path):
    environment = os.environ | {"TMPDIR": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, str(DEMO)], capture_output=True, text=True, timeout=120, env=environment, check=False
    )

    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stderr == ""
    assert "220 turns" in found.stdout
    assert "coriander" in found.stdout
    assert "5150" in found.stdout
    assert re.search(r"\b0 hits", found.stdout)
    assert "lost: 0 of 25" in found.stdout
    assert list(tmp_path.glob("memfold-demo-*")) == []
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert str(tmp_path) not in running
