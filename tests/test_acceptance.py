"""The scripts that are run by hand, on a small model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_real_questions_have_the_scores_that_lm_eval_gives_them(shared_data):
    """A model whose 512 tokens cut most of the prompts."""
    pytest.importorskip("lm_eval", reason="lm-eval is not installed")
    pytest.importorskip("torch", reason="torch is not installed; lm-eval's hf model needs it")
    model = shared_data / "models" / "stories260K"
    arguments = ["--questions", "2", "--texts", "2", "--window", "128", "--subjects", "astronomy"]
    done = subprocess.run(
        [sys.executable, "acceptance/lm_eval_exactness.py", model, shared_data, *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["passed"]
    assert found["sets"]["arc_easy"]["options"] == 32
    assert found["rolling"]["windows"] > found["rolling"]["texts"] == 2
