"""A dry run runs nothing, and what it prints does, when run by a shell, exactly what the script does."""

import pytest
from fake_cloud import Cloud
from test_tpu_cycle import KINDS, WHERE

SETTINGS = WHERE | KINDS["v5e-16"][2]
NASTY = (
    "--",
    "run",
    'it\'s "$(touch $HOME/x)" `id`.yaml',
    "--only",
    "*-INC-*",
    "a;b|c&d",
    "~",
    "é",
    "",
    "--run-dir",
    "gs://b/r r",
)
CASES = {
    "create.sh": (False, ()),
    "setup.sh": (True, ()),
    "run.sh": (True, ("--env", "A=b c", "--secret", "HF_TOKEN=hf", *NASTY)),
    "status.sh": (True, ()),
    "stop.sh": (True, ()),
    "logs.sh": (True, ()),
    "logs.sh into files": (True, ("--to", "logs")),
    "delete.sh": (True, ()),
    "resume.sh": (False, ("--env", "A=$(touch $HOME/x)", *NASTY)),
}  # fmt: skip


def prepared(cloud: Cloud, there: bool) -> int:
    """Brings the cloud to where the script finds what it needs; returns how many calls that took."""
    cloud.put("secrets/hf", "from the manager")
    if there:
        for script in ("create.sh", "create.sh", "create.sh", "setup.sh"):
            assert cloud.run(script, **SETTINGS).code == 0
        cloud.put("coming")
        cloud.put("state", "ACTIVE\n")
    return len(cloud.calls())


@pytest.mark.parametrize("case", CASES)
def test_a_dry_run_runs_nothing_and_prints_what_would_run(case: str, make_cloud):
    script, (there, arguments) = case.split()[0], CASES[case]
    real, dry = make_cloud(), make_cloud()
    before = prepared(real, there)
    assert real.run(script, *arguments, **SETTINGS).code == 0
    real.let_go()
    assert prepared(dry, there) == before
    said = dry.run(script, "--dry-run", *arguments, **SETTINGS)
    assert said.code == 0, said
    assert len(dry.calls()) == before, "a dry run called something"
    executed = dry.execute(["bash", "-euc", said.out])
    assert executed.code == 0, (said, executed)
    dry.let_go()
    folders = str(real.checkout.parent), str(dry.checkout.parent)
    asked = [[word.replace(folders[1], folders[0]) for word in call] for call in dry.calls()[before:]]
    # waiting looks as often as it takes; that is all that may differ
    assert without_waiting(asked) == without_waiting(real.calls()[before:])
    assert [path for path in (real.home / "x", dry.home / "x") if path.exists()] == []


def without_waiting(calls: list[list[str]]) -> list[list[str]]:
    return [call for index, call in enumerate(calls) if index == 0 or call != calls[index - 1]]
