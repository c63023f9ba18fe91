"""Bad input is refused in one line with exit code 2, before anything is called; costs are said before they arise."""

import pytest
from fake_cloud import Cloud
from test_tpu_cycle import KINDS, STUDY, WHERE

SETTINGS = WHERE | KINDS["v5e-16"][2]
ALL = ("create.sh", "setup.sh", "run.sh", "resume.sh", "watch.sh", "status.sh", "stop.sh", "logs.sh", "delete.sh")
IMAGE = {"IMAGE": "us-docker.pkg.dev/p/r/jaxift:1", "KUBE_CONTEXT": "gke_p_z_c", "CLUSTER": "my-cluster"}
TOKEN = "hf_" + "a" * 34
NAMES = ("$(touch x)", "a;touch x", "a b", "a'b", 'a"b', "--force", "-x", "A", "", "a\nb", "é", "a" * 41, "../a", "a-")


def one_line(cloud: Cloud, said, *parts: str) -> None:
    assert said.code == 2, said
    assert said.err.count("\n") == 1, said.err
    assert said.err.endswith("\n")
    assert [part for part in parts if part not in said.err] == []
    assert cloud.calls() == []
    assert not (cloud.home / "x").exists()


@pytest.mark.parametrize("script", ALL)
def test_with_nothing_set_the_first_that_is_missing_is_named(script: str, cloud: Cloud):
    one_line(cloud, cloud.run(script), "JAXIFT_TPU_NAME is not set", "--tpu-name", "--env-file")


@pytest.mark.parametrize(
    "arguments", [("gke.sh", "apply"), ("xpk.sh", "create"), ("gke.sh", "delete"), ("xpk.sh", "delete")]
)
def test_nor_do_the_cluster_scripts_run(arguments: tuple[str, ...], cloud: Cloud):
    one_line(cloud, cloud.run(*arguments), "JAXIFT_TPU_NAME is not set")


@pytest.mark.parametrize("left_out", SETTINGS.keys() - {"SPOT"})
def test_each_missing_setting_is_named(left_out: str, cloud: Cloud):
    given = {name: value for name, value in SETTINGS.items() if name != left_out}
    one_line(cloud, cloud.run("create.sh", **given), f"JAXIFT_{left_out} is not set")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("script", ["create.sh", "delete.sh"])
def test_hostile_names_are_refused_as_flags(script: str, name: str, cloud: Cloud):
    one_line(
        cloud,
        cloud.run(script, "--tpu-name", name, **{k: v for k, v in SETTINGS.items() if k != "TPU_NAME"}),
        "--tpu-name",
    )


@pytest.mark.parametrize(
    ("setting", "value"),
    [(setting, "$(touch x)") for setting in (*SETTINGS, "SERVICE_ACCOUNT", "NETWORK", "RUNTIME_VERSION", "NODE_COUNT")]
    + [("PRICE_PER_CHIP_HOUR", "1; system(\"touch x\")"), ("NODE_COUNT", "0"), ("NODE_COUNT", "x[$(touch x)]"),
       ("TPU_TYPE", "v5p-12"), ("TPU_TYPE", "v5p-99999"), ("TPU_TYPE", "v5litepod-3"), ("TPU_TYPE", "v4-8"),
       ("TPU_TYPE", "v6e-016"), ("SSH", "telnet"), ("ZONE", "us-west4"), ("PROJECT", "short")],
)  # fmt: skip
def test_hostile_settings_are_refused_as_variables_and_in_a_file(setting: str, value: str, cloud: Cloud):
    one_line(cloud, cloud.run("create.sh", **(SETTINGS | {setting: value})))
    rest = {name: given for name, given in SETTINGS.items() if name != setting}
    (cloud.home / "my tpu.env").write_text(f"# mine\n\nJAXIFT_{setting}={value}")
    one_line(cloud, cloud.run("create.sh", "--env-file", "my tpu.env", **rest))


def test_a_settings_file_is_read_and_never_executed(cloud: Cloud):
    for line in ("touch x", "JAXIFT_TPU_NAMES=a", "export JAXIFT_ZONE=us-west4-a", "PATH=/evil", "JAXIFT_$(touch x)=1"):
        (cloud.home / "tpu.env").write_text(f"{line}\n")
        one_line(cloud, cloud.run("create.sh", "--env-file", "tpu.env", **SETTINGS), "tpu.env:1")
    one_line(cloud, cloud.run("create.sh", "--env-file", "none.env", **SETTINGS), "none.env")


def test_flags_win_over_variables_and_those_over_the_file(cloud: Cloud):
    (cloud.home / "tpu.env").write_text(
        "JAXIFT_TPU_NAME=of-file\nJAXIFT_ZONE=eu-west4-b\nJAXIFT_PROJECT=of-the-file\nJAXIFT_IMAGE=i\n"
    )
    given = {"ENV_FILE": "tpu.env", "TPU_NAME": "of-variable", "ZONE": "us-east5-a", "TPU_TYPE": "v6e-8"}
    said = cloud.run("create.sh", "--dry-run", "--tpu-name=of-flag", **given)
    assert said.code == 0, said
    created = said.out.splitlines()[-1]
    assert " create of-flag " in created
    assert created.endswith("--project=of-the-file --zone=us-east5-a")


@pytest.mark.parametrize("script", ALL)
def test_unknown_flags_are_refused(script: str, cloud: Cloud):
    one_line(
        cloud,
        cloud.run(
            script, "--zones", "x", *(STUDY if script in ("run.sh", "resume.sh", "watch.sh") else ()), **SETTINGS
        ),
        "--zones",
    )
    assert cloud.run(script, "stray", *STUDY, **SETTINGS).code == 2


@pytest.mark.parametrize(
    ("arguments", "part"),
    [((), "no command"), (("--",), "no command"), (("--", "jaxift"), "no command"),
     (("--", "run", "c.yaml", "--run-dir", "/tmp/run"), "share no disk"),
     (("--", "run", "c.yaml", "--run-dir=run"), "share no disk"),
     (("--", "run", "a\nb"), "control character"), (("--env", "A=a\tb", *STUDY), "control character"),
     (("--env", "HF_TOKEN=abc", *STUDY), "--secret HF_TOKEN=ID"), (("--env", "WANDB_API_KEY=abc", *STUDY), "--secret"),
     (("--env", "A b=c", *STUDY), "NAME="), (("--env", "A", *STUDY), "NAME="),
     (("--secret", "A=$(id)", *STUDY), "secret's id"), (("--", "run", "--token", TOKEN), "looks like a token"),
     (("--env", f"A={TOKEN}", *STUDY), "looks like a token"),
     (("--secret", f"HF_TOKEN={TOKEN}", *STUDY), "looks like a token")],
)  # fmt: skip
@pytest.mark.parametrize("script", ["run.sh", "resume.sh"])
def test_commands_that_cannot_arrive_or_hold_secrets_are_refused(script: str, arguments, part: str, cloud: Cloud):
    said = cloud.run(script, *arguments, **SETTINGS)
    one_line(cloud, said, part)
    assert TOKEN not in said.err


@pytest.mark.parametrize(
    "arguments",
    [("--env", "TOKENIZERS_PARALLELISM=false", *STUDY), ("--", "run", "uhf_0123456789abcdefg"),
     ("--env", "MONKEY=1", *STUDY), ("--", "run", "gs://bucket/hf_models/run")],
)  # fmt: skip
def test_what_only_resembles_a_secret_is_taken(arguments: tuple[str, ...], cloud: Cloud):
    said = cloud.run("run.sh", "--dry-run", *arguments, **SETTINGS)
    assert (said.code, said.err) == (0, "")


def test_one_host_may_keep_its_run_directory(cloud: Cloud):
    said = cloud.run(
        "run.sh", "--dry-run", "--", "run", "c.yaml", "--run-dir", "/tmp/run", **(SETTINGS | {"TPU_TYPE": "v6e-8"})
    )
    assert said.code == 0, said


@pytest.mark.parametrize(
    ("kind", "chips"), [("v5litepod-16", 16), ("v5p-128", 64), ("v6e-16", 16), ("v5p-8", 4), ("v5litepod-1", 1)]
)
def test_the_cost_is_said_in_chip_hours_and_in_money_at_the_users_price_alone(kind: str, chips: int, cloud: Cloud):
    settings = SETTINGS | {"TPU_TYPE": kind, "NODE_COUNT": "2"}
    said = cloud.run("create.sh", "--dry-run", **settings)
    assert f"= {2 * chips} chips: {2 * chips} chip-hours per hour" in said.err
    assert "price" not in said.err
    assert not set(said.err) & set("$€£")
    said = cloud.run("create.sh", "--dry-run", "--price-per-chip-hour", "1.25", **settings)
    assert f"at your price of 1.25 a chip-hour {2 * chips * 1.25:.2f} per hour" in said.err


@pytest.mark.parametrize(
    "arguments", [("create.sh",), ("resume.sh", *STUDY), ("gke.sh", "apply", *STUDY), ("xpk.sh", "create", *STUDY)]
)
def test_the_cost_is_said_before_the_first_call_that_costs(arguments: tuple[str, ...], cloud: Cloud):
    assert cloud.run(*arguments, **(SETTINGS | IMAGE)).code == 0
    assert cloud.calls()
    assert not (cloud.fake / "cost_not_said").exists()


def test_help_needs_nothing(cloud: Cloud):
    for script in (*ALL, "gke.sh", "xpk.sh"):
        said = cloud.run(script, "--help")
        assert (said.code, said.err) == (0, "")
        assert said.out.startswith(script)
