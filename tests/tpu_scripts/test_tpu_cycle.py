"""From create to delete, with a preemption between: what gcloud is asked is what golden/ holds, word by word.

A golden file is a quoted command a line, folders as $CHECKOUT and $HOME. Where a change is meant, the failure shows it.
"""

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_cloud import HERE, Cloud

STUDY = ("--", "run", "configs/study.yaml", "--run-dir", "gs://bucket/run")
WHERE = {"TPU_NAME": "my-study", "PROJECT": "my-project"}
ACCOUNT = "tpu@my-project.iam.gserviceaccount.com"
IAP = {"SSH": "iap"}
KINDS = {
    "v5e-16": (1, 4, {"TPU_TYPE": "v5litepod-16", "ZONE": "us-west4-a", "SPOT": "true"}),
    "v5p-128": (1, 16, {"TPU_TYPE": "v5p-128", "ZONE": "us-east5-a", "SERVICE_ACCOUNT": ACCOUNT}),
    "v6e-16-two-slices": (2, 4, {"TPU_TYPE": "v6e-16", "ZONE": "us-east5-b", "NODE_COUNT": "2", "SPOT": "true"} | IAP),
}  # fmt: skip


def whole_cycle(cloud: Cloud, settings: dict[str, str]) -> None:
    """Every script once, in the order of use; all must end well."""

    def must(script: str, *arguments: str) -> str:
        said = cloud.run(script, *arguments, **settings)
        assert said.code == 0, said
        return said.out

    cloud.put("hold")
    must("create.sh")
    must("create.sh")  # is there: nothing is done
    must("create.sh")
    must("setup.sh")
    must("status.sh")
    must("run.sh", *STUDY)
    cloud.wait_for("jaxift_calls")
    must("run.sh", *STUDY)  # runs: nothing is done
    assert must("status.sh").count(" running") == len(cloud.hosts())
    cloud.preempt()
    cloud.put("hold")
    must("resume.sh", *STUDY)
    cloud.wait_for("jaxift_calls")
    must("logs.sh", "--worker", "0", "--lines", "20")
    must("stop.sh")
    cloud.let_go()
    must("delete.sh")
    assert must("delete.sh") == ""


def as_golden(cloud: Cloud) -> str:
    folders = {str(cloud.checkout): "$CHECKOUT", str(cloud.home): "$HOME"}
    return "".join(shlex.join(renamed(word, folders) for word in call) + "\n" for call in cloud.calls())


def renamed(word: str, folders: dict[str, str]) -> str:
    for folder, name in folders.items():
        word = word.replace(folder, name)
    return word


@pytest.mark.parametrize("kind", ["v5e-16", pytest.param("v5p-128", marks=pytest.mark.slow), "v6e-16-two-slices"])
def test_a_whole_cycle_asks_what_the_golden_file_says(kind: str, make_cloud: Callable[..., Cloud]):
    nodes, workers, settings = KINDS[kind]
    cloud = make_cloud(nodes=nodes, workers=workers)
    whole_cycle(cloud, WHERE | settings)
    assert as_golden(cloud).splitlines() == (HERE / "golden" / f"{kind}.sh").read_text().splitlines()
    assert not (cloud.fake / "cost_not_said").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_golden_files_hold_a_cycle(kind: str):
    lines = [shlex.split(line) for line in (HERE / "golden" / f"{kind}.sh").read_text().splitlines()]
    verbs = [line[4] for line in lines]
    assert verbs.count("create") == 2
    assert verbs.count("delete") == 2
    deleted = verbs.index("delete")
    assert verbs.index("create") < verbs.index("scp") < deleted < verbs.index("create", deleted)
    slices, flags = KINDS[kind][0], {flag for line in lines for flag in line if flag.startswith("--node-")}
    assert any(flag.startswith("--node-count=") for flag in flags) == (slices > 1)
    assert all("--project=my-project" in line and any(flag.startswith("--zone=") for flag in line) for line in lines)


def test_what_is_sent_to_the_hosts_is_what_git_tracks_and_nothing_else(cloud: Cloud, tmp_path: Path):
    settings = WHERE | KINDS["v5e-16"][2]
    (tmp_path / "my study.yaml").write_text("name: mine\n")
    (cloud.checkout / "pyproject.toml").write_text("[project]\nname = 'changed'\n")  # not committed
    cloud.run("create.sh", **settings)
    said = cloud.run("setup.sh", "--copy", str(tmp_path / "my study.yaml"), **settings)
    assert said.code == 0, said
    source = cloud.hosts()[0] / "jaxift/src"
    assert "changed" in (source / "pyproject.toml").read_text()
    assert (source / "my study.yaml").read_text() == "name: mine\n"
    assert not (source / "untracked.key").exists()


def quote(path: Path) -> str:
    return shlex.quote(str(path))


AT_HAND = WHERE | KINDS["v5e-16"][2]


def test_the_same_files_make_the_same_archive_wherever_the_script_is_called(cloud: Cloud, make_cloud):
    other, archives = make_cloud(), []
    (other.checkout / "pyproject.toml").touch()
    for each in (cloud, other):
        each.environment["CDPATH"] = f"{other.home}:{each.checkout}"
        done = each.execute(
            ["bash", "-c", f"cd {quote(each.checkout)} && bash tpu_scripts/pack.sh {quote(each.home / 'a b/c.tar.gz')}"]
        )
        assert (done.code, done.out) == (0, "")
        said = each.execute(
            ["bash", "-c", f"cd {quote(each.checkout)} && bash tpu_scripts/status.sh --dry-run"], **AT_HAND
        )
        assert (said.code, said.err) == (0, "")
        archives.append((each.home / "a b/c.tar.gz").read_bytes())
    assert archives[0] == archives[1]


@pytest.mark.slow
def test_gclouds_own_parser_accepts_every_command(tmp_path: Path):
    # /usr/bin/gcloud, with an empty configuration and environment: it stops where it would need a login, after parsing
    gcloud = shutil.which("gcloud", path="/usr/bin:/usr/local/bin:/snap/bin")
    if gcloud is None:
        pytest.skip("the Google Cloud SDK is not installed")

    def answer(arguments: list[str]) -> str:
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "CLOUDSDK_CONFIG": str(tmp_path / "gcloud"),
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1", "CLOUDSDK_CORE_CHECK_GCE_METADATA": "false",
        }  # fmt: skip
        done = subprocess.run(
            [gcloud, *arguments], env=environment, capture_output=True, text=True, timeout=100, check=False
        )
        return done.stderr

    lines = {line for path in (HERE / "golden").glob("*.sh") for line in path.read_text().splitlines()}
    # one of each kind: a verb with its flags, whatever their values
    kinds = {tuple(word.split("=")[0] for word in shlex.split(line)): shlex.split(line)[1:] for line in sorted(lines)}
    assert len(kinds) >= 6
    for command in kinds.values():
        assert "do not currently have an active account" in answer(command), command
    assert "unrecognized arguments" in answer([*next(iter(kinds.values())), "--node-counts=2"])
