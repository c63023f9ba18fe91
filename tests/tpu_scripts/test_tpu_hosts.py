"""On the hosts commands arrive word by word, outlive the connection, run once, and take secrets from the manager."""

import subprocess
from collections.abc import Callable

import pytest
from fake_cloud import Cloud, records
from test_tpu_cycle import KINDS, STUDY, WHERE

SETTINGS = WHERE | KINDS["v5e-16"][2]
NASTY = [
    "run",
    'it\'s "$(touch x)".yaml',
    "`touch x`",
    "a;touch x",
    "a && b | c > d",
    "*",
    "~",
    "$HOME",
    "\\",
    "é",
    "",
    "  two  ",
    "!!",
    "-",
]


@pytest.fixture
def ready(cloud: Cloud) -> Cloud:
    """A TPU that is there and set up."""
    for script in ("create.sh", "create.sh", "create.sh", "setup.sh"):
        assert cloud.run(script, **SETTINGS).code == 0
    cloud.put("coming")
    cloud.put("state", "ACTIVE\n")
    return cloud


def ran(cloud: Cloud) -> list[list[list[str]]]:
    return [records(host / "jaxift_calls") if (host / "jaxift_calls").exists() else [] for host in cloud.hosts()]


def test_every_word_arrives_as_it_was_written(ready: Cloud):
    assert ready.run("run.sh", "--env", "WORDS=a  $(touch x) 'b'", "--", *NASTY, **SETTINGS).code == 0
    ready.let_go()
    assert ran(ready) == [[NASTY]] * 4
    assert [path for host in ready.hosts() for path in host.rglob("x")] == []
    assert all("\nWORDS=a  $(touch x) 'b'\n" in (host / "jaxift_env").read_text() for host in ready.hosts())
    assert all((host / "jaxift_env").read_text().startswith(f"{host}/jaxift/src\n") for host in ready.hosts())


def test_a_leading_jaxift_is_the_command_itself(ready: Cloud):
    assert ready.run("run.sh", "--", "jaxift", *STUDY[1:], **SETTINGS).code == 0
    ready.let_go()
    assert ran(ready) == [[list(STUDY[1:])]] * 4


def test_a_secret_is_in_the_environment_of_the_command_and_nowhere_else(ready: Cloud):
    secret = "hf_" + "S3cr3t" * 6
    ready.put("secrets/my-hf", secret)
    assert ready.run("run.sh", "--secret", "HF_TOKEN=my-hf", *STUDY, **SETTINGS).code == 0
    ready.let_go()
    assert all(f"\nHF_TOKEN={secret}\n" in (host / "jaxift_env").read_text() for host in ready.hosts())
    asked = [call for call in ready.calls() if call[0] == "host-gcloud"]
    assert (
        asked
        == [["host-gcloud", "secrets", "versions", "access", "latest", "--secret=my-hf", "--project=my-project"]] * 4
    )
    assert secret not in str(ready.calls())
    kept = [
        path for path in ready.home.parent.rglob("*") if path.is_file() and path.name not in ("jaxift_env", "my-hf")
    ]
    assert [path for path in kept if secret.encode() in path.read_bytes()] == []


def test_a_secret_that_cannot_be_read_ends_the_command_before_it_starts(ready: Cloud):
    assert ready.run("run.sh", "--secret", "HF_TOKEN=none", *STUDY, **SETTINGS).code == 0
    ready.let_go()
    assert ran(ready) == [[]] * 4
    assert ready.run("status.sh", **SETTINGS).out.count(" exit 2\n") == 4
    assert "secret none cannot be read" in ready.run("logs.sh", **SETTINGS).out


def test_the_command_outlives_the_connection_and_runs_once(ready: Cloud):
    ready.put("hold")
    assert ready.run("run.sh", *STUDY, **SETTINGS).code == 0  # comes back although the command goes on
    ready.wait_for("jaxift_calls")
    assert ready.run("status.sh", **SETTINGS).out.count(" running\n") == 4
    assert ready.run("run.sh", *STUDY, **SETTINGS).code == 0
    ready.let_go()
    assert ran(ready) == [[list(STUDY[1:])]] * 4
    assert ready.run("status.sh", **SETTINGS).out.count(" exit 0\n") == 4


def test_another_command_does_not_start_beside_it(ready: Cloud):
    ready.put("hold")
    ready.run("run.sh", *STUDY, **SETTINGS)
    ready.wait_for("jaxift_calls")
    said = ready.run("run.sh", "--", "run", "other.yaml", **SETTINGS)
    assert said.code == 1
    assert said.out.count("busy with another command") == 4
    said = ready.run("setup.sh", "--python", "3.13", **SETTINGS)
    assert said.code == 1
    assert said.out.count("busy: a command runs") == 4


def test_where_it_runs_on_some_hosts_alone_all_start_together(ready: Cloud):
    ready.put("hold")
    ready.run("run.sh", *STUDY, **SETTINGS)
    ready.wait_for("jaxift_calls")
    first = ready.hosts()[0]
    pid = (first / "jaxift/run/pid").read_text().strip()
    subprocess.run(["kill", "-KILL", "--", f"-{pid}"], check=True)
    assert ready.run("status.sh", **SETTINGS).out.splitlines()[1:] == [
        "jaxift-host 0-0 exit 137", *(f"jaxift-host 0-{worker} running" for worker in (1, 2, 3))
    ]  # fmt: skip
    said = ready.run("run.sh", *STUDY, **SETTINGS)
    assert said.code == 0
    assert said.out.count(" started\n") == 4
    assert said.out.count(" exit 143\n") == 3
    ready.let_go()
    assert ran(ready) == [[list(STUDY[1:])] * 2] * 4


def test_what_does_not_hear_is_killed(ready: Cloud):
    ready.put("hold")
    ready.run("run.sh", *STUDY, **SETTINGS)
    ready.wait_for("jaxift_calls")
    host = ready.hosts()[0]
    deaf = (host / "jaxift/venv/bin/jaxift").read_text().replace("trap 'exit 143' TERM", "trap '' TERM")
    assert ready.run("stop.sh", **SETTINGS).code == 0
    (host / "jaxift/venv/bin/jaxift").write_text(deaf)
    ready.run("run.sh", *STUDY, **SETTINGS)
    script = ["env", f"HOME={host}", "bash", str(host / "jaxift_on_host.sh"), "stop", "0.2"]
    said = subprocess.run(script, capture_output=True, text=True, check=True)
    assert said.stdout.endswith("exit 137\n")


def test_a_host_that_does_not_answer_is_missed(ready: Cloud):
    ready.put("unreachable/0-2")
    for script, arguments in (("status.sh", ()), ("run.sh", STUDY), ("setup.sh", ())):
        said = ready.run(script, *arguments, **SETTINGS)
        assert said.code == 1
        assert "3 of 4 hosts answered" in said.err
    assert ran(ready) == [[]] * 4  # nothing starts where not all can


def test_to_install_again_changes_nothing_and_another_source_does(ready: Cloud):
    def installed() -> list[int]:
        return [(host / "uv_calls").read_text().count("pip install") for host in ready.hosts()]

    assert ready.run("setup.sh", **SETTINGS).out.count("installed before") == 4
    assert installed() == [1] * 4
    assert "[tpu,gcs]" in (ready.hosts()[0] / "uv_calls").read_text()
    (ready.checkout / "pyproject.toml").write_text("[project]\nname = 'newer'\n")
    assert ready.run("setup.sh", **SETTINGS).out.count(" installed\n") == 4
    assert installed() == [2] * 4


def test_before_setup_it_is_said_what_is_missing(cloud: Cloud):
    for _ in range(3):
        cloud.run("create.sh", **SETTINGS)
    said = cloud.run("run.sh", *STUDY, **SETTINGS)
    assert said.code == 1
    assert "needs setup.sh" in said.err


def test_logs_of_one_host_and_of_all_as_files(ready: Cloud):
    ready.run("run.sh", *STUDY, **SETTINGS)
    ready.let_go()
    assert ready.run("logs.sh", "--worker", "2", **SETTINGS).out.count("[0-2] jaxift says hello from 0-2") == 1
    assert ready.run("logs.sh", **SETTINGS).out.count("says hello") == 4
    assert ready.run("logs.sh", "--to", "my logs", **SETTINGS).code == 0
    files = {path.name: path.read_text() for path in (ready.home / "my logs").iterdir()}
    assert {name: text.count(f"hello from {name[:3]}\n") for name, text in files.items()} == {
        f"0-{n}.log": 1 for n in range(4)
    }


def test_a_checkout_without_git_is_refused(make_cloud: Callable[..., Cloud], ready: Cloud):
    subprocess.run(["rm", "-rf", ready.checkout / ".git"], check=True)
    said = ready.run("setup.sh", **SETTINGS)
    assert said.code == 2
    assert "is no git checkout" in said.err
    assert said.err.count("\n") == 1


def test_a_queued_resource_of_another_type_is_not_taken_for_ours(ready: Cloud):
    said = ready.run("resume.sh", *STUDY, **(SETTINGS | {"TPU_TYPE": "v5litepod-32"}))
    assert said.code != 0
    assert "exists and is v5litepod-16" in said.err
    assert ready.run("delete.sh", **(SETTINGS | {"TPU_TYPE": "v5litepod-32"})).code == 0
    assert ready.hosts() == []


def test_what_cannot_be_listed_is_not_taken_for_gone(ready: Cloud):
    ready.put("logged_out")
    before = len(ready.calls())
    for script, arguments in (("create.sh", ()), ("resume.sh", STUDY), ("delete.sh", ()), ("status.sh", ())):
        said = ready.run(script, *arguments, **SETTINGS)
        assert said.code == 1
        assert "cannot be listed" in said.err
    assert {call[4] for call in ready.calls()[before:]} == {"list"}
