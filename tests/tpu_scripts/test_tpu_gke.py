"""The JobSet: its fields are those of the CRD, its words arrive as written; and what kubectl and xpk are asked."""

import re
import shlex
import subprocess
from typing import Any

import pytest
import yaml
from fake_cloud import Cloud
from jobset_schema import JobSet, PodSpec, SecretKeyRef, ValueFrom
from pydantic import ValidationError
from test_tpu_cycle import STUDY

SETTINGS = {"TPU_NAME": "my-study", "TPU_TYPE": "v5litepod-16", "IMAGE": "us-docker.pkg.dev/p/r/jaxift:1"}
BY_NODE_POOL = {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}
CLUSTER = {"KUBE_CONTEXT": "gke_p_z_c", "NAMESPACE": "studies"}
XPK = {"CLUSTER": "my-cluster", "PROJECT": "my-project", "ZONE": "us-west4-a"}
NASTY = [
    "run",
    'it\'s "$(touch x)"',
    "$(HOME)",
    "$$(HOME)",
    "$$$",
    "\\n",
    "@ENV@",
    "@COMMAND@",
    "é",
    "",
    "&",
    "- a: b",
    "#",
    "{}",
]


def rendered(cloud: Cloud, *arguments: str, **settings: str) -> JobSet:
    said = cloud.run("gke.sh", "render", *arguments, *(() if "--" in arguments else STUDY), **(SETTINGS | settings))
    assert said.code == 0, said
    assert "@" not in said.out.split("apiVersion")[1]
    return JobSet.model_validate(yaml.safe_load(said.out))


def pod(jobset: JobSet) -> PodSpec:
    return jobset.spec.replicatedJobs[0].template.spec.template.spec


def expanded(text: str, variables: dict[str, str]) -> str:
    """What Kubernetes makes of $(NAME) and $$ (EnvVar.value in the API's reference)."""

    def put(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else variables.get(match[1], match[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", put, text)


@pytest.mark.parametrize(
    ("kind", "slices", "accelerator", "topology", "hosts", "chips"),
    [("v5litepod-16", 1, "tpu-v5-lite-podslice", "4x4", 4, 4), ("v5litepod-8", 1, "tpu-v5-lite-podslice", "2x4", 1, 8),
     ("v5litepod-256", 1, "tpu-v5-lite-podslice", "16x16", 64, 4), ("v5p-128", 1, "tpu-v5p-slice", "4x4x4", 16, 4),
     ("v5p-8", 1, "tpu-v5p-slice", "2x2x1", 1, 4), ("v6e-16", 2, "tpu-v6e-slice", "4x4", 4, 4),
     ("v6e-1", 1, "tpu-v6e-slice", "1x1", 1, 1)],
)  # fmt: skip
def test_a_slice_is_a_job_and_a_host_a_pod(kind, slices, accelerator, topology, hosts, chips, cloud: Cloud):
    jobset = rendered(cloud, TPU_TYPE=kind, NODE_COUNT=str(slices))
    (job,) = jobset.spec.replicatedJobs
    assert (job.replicas, job.template.spec.completions, job.template.spec.parallelism) == (slices, hosts, hosts)
    assert job.template.spec.completionMode == "Indexed"
    assert pod(jobset).nodeSelector == {
        "cloud.google.com/gke-tpu-accelerator": accelerator, "cloud.google.com/gke-tpu-topology": topology,
    }  # fmt: skip
    (container,) = pod(jobset).containers
    assert container.resources.limits == container.resources.requests == {"google.com/tpu": chips}
    assert jobset.metadata.annotations == BY_NODE_POOL


def test_preemptions_restart_everything_and_refused_input_does_not(cloud: Cloud):
    jobset = rendered(cloud, "--max-restarts", "7", SPOT="true")
    job = jobset.spec.replicatedJobs[0].template.spec
    assert (jobset.spec.failurePolicy.maxRestarts, job.backoffLimit) == (7, 0)
    (final,), (rule,) = job.podFailurePolicy.rules, jobset.spec.failurePolicy.rules
    assert (final.action, final.onExitCodes.operator, final.onExitCodes.values) == ("FailJob", "In", [1, 2])
    assert final.onExitCodes.containerName == pod(jobset).containers[0].name
    assert (rule.action, rule.onJobFailureReasons) == ("FailJobSet", ["PodFailurePolicy"])
    assert pod(jobset).nodeSelector["cloud.google.com/gke-spot"] == "true"
    assert [toleration.key for toleration in pod(jobset).tolerations] == ["cloud.google.com/gke-spot"]
    assert rendered(cloud).spec.failurePolicy.maxRestarts == 100
    assert pod(rendered(cloud)).tolerations == []


def test_every_word_arrives_as_it_was_written(cloud: Cloud):
    value = "a  $(HOME) $$ '\"\\ @ENV@ @COMMAND@"
    jobset = rendered(cloud, "--env", f"WORDS={value}", "--secret", "HF_TOKEN=hf:token", "--", *NASTY)
    (container,) = pod(jobset).containers
    known = {"HOME": "/root", "WORDS": "?", "touch x": "?"}
    assert [expanded(word, known) for word in container.command] == ["jaxift", *NASTY]
    words, token = container.env
    assert expanded(words.value or "", known) == value
    assert token.valueFrom == ValueFrom(secretKeyRef=SecretKeyRef(name="hf", key="token"))
    assert container.command != ["jaxift", *NASTY]  # what is not doubled would be replaced


def change(manifest: Any, *path: str | int, to: Any) -> None:
    for step in path[:-1]:
        manifest = manifest[step]
    manifest[path[-1]] = to


@pytest.mark.parametrize(
    ("path", "to"),
    [(("apiVersion",), "jobset.x-k8s.io/v1alpha1"), (("spec", "failurePolicy", "rules", 0, "action"), "Fail"),
     (("spec", "failurePolicy", "maxRestart"), 3),
     (("spec", "failurePolicy", "rules", 0, "onJobFailureReasons"), ["Preempted"]),
     (("spec", "replicatedJobs", 0, "template", "spec", "completions"), "4"), (("metadata", "name"), "My_Study")],
)  # fmt: skip
def test_the_schema_refuses_what_the_cluster_would(path: tuple[str | int, ...], to: Any, cloud: Cloud):
    manifest = rendered(cloud).model_dump(exclude_none=True)
    JobSet.model_validate(manifest)
    change(manifest, *path, to=to)
    with pytest.raises(ValidationError):
        JobSet.model_validate(manifest)


@pytest.mark.parametrize(
    ("arguments", "settings", "part"),
    [(("--topology", "4x8"), {}, "has 32 chips, v5litepod-16 has 16"),
     ((), {"TPU_TYPE": "v5p-1536"}, "JAXIFT_TOPOLOGY is not set"), (("--secret", "HF_TOKEN=hf"), {}, "SECRET:KEY"),
     ((), {"IMAGE": "a b"}, "a\\ b"), ((), {"IMAGE": "$(id)"}, "IMAGE"), (("--zone", "x"), {}, "--zone"),
     (("--env", "HF_TOKEN=x"), {}, "--secret HF_TOKEN=ID"), ((), {"NAMESPACE": "A"}, "NAMESPACE")],
)  # fmt: skip
def test_what_makes_no_manifest_is_refused(arguments, settings, part: str, cloud: Cloud):
    said = cloud.run("gke.sh", "render", *arguments, *STUDY, **(SETTINGS | settings))
    assert (said.code, said.out, said.err.count("\n")) == (2, "", 1)
    assert part in said.err
    assert cloud.calls() == []


def test_an_uncommon_topology_can_be_given(cloud: Cloud):
    assert pod(rendered(cloud, "--topology", "4x4x48", TPU_TYPE="v5p-1536")).nodeSelector[
        "cloud.google.com/gke-tpu-topology"
    ] == "4x4x48"  # fmt: skip


def test_what_kubectl_is_asked(cloud: Cloud):
    manifest = cloud.home / ".cache/jaxift/tpu/my-study/jobset.yaml"
    for verb, arguments in (("apply", STUDY), ("status", ()), ("delete", ())):
        dry = cloud.run("gke.sh", verb, "--dry-run", *arguments, **(SETTINGS | CLUSTER))
        before = len(cloud.calls())
        assert cloud.run("gke.sh", verb, *arguments, **(SETTINGS | CLUSTER)).code == 0
        assert [shlex.split(line) for line in dry.out.splitlines()] == cloud.calls()[before:]
    where = ["kubectl", "--context=gke_p_z_c", "--namespace=studies"]
    assert cloud.calls() == [
        [*where, "apply", f"--filename={manifest}"],
        [*where, "get", "jobset", "my-study", "--ignore-not-found"],
        [*where, "get", "pods", "--selector=jobset.sigs.k8s.io/jobset-name=my-study", "--output=wide"],
        [*where, "delete", "jobset", "my-study", "--ignore-not-found"],
    ]
    assert yaml.safe_load(manifest.read_text())["metadata"] == {
        "name": "my-study", "namespace": "studies",
        "annotations": BY_NODE_POOL,
    }  # fmt: skip


def test_what_xpk_is_asked(cloud: Cloud):
    arguments = ("create", "--env", "A=b c", "--node-count", "2", "--", *NASTY)
    dry = cloud.run("xpk.sh", "create", "--dry-run", *arguments[1:], **(SETTINGS | XPK))
    assert (dry.code, cloud.calls()) == (0, [])
    assert cloud.run("xpk.sh", *arguments, **(SETTINGS | XPK)).code == 0
    assert shell_words(dry.out) == cloud.calls()[0]
    assert cloud.run("xpk.sh", "delete", **(SETTINGS | XPK)).code == 0
    created, deleted = cloud.calls()[-2:]
    where = ["--workload=my-study", "--cluster=my-cluster", "--project=my-project", "--zone=us-west4-a"]
    assert created[:-1] == [
        "xpk", "workload", "create", *where, "--tpu-type=v5litepod-16", "--num-slices=2",
        "--docker-image=us-docker.pkg.dev/p/r/jaxift:1", "--max-restarts=100", "--restart-on-exit-codes=3",
        "--env=A=b c",
    ]  # fmt: skip
    assert deleted == ["xpk", "workload", "delete", *where]
    # xpk puts the command into a bash -c of the container, after Kubernetes' replacements
    command = expanded(created[-1].removeprefix("--command="), {"HOME": "/root", "touch x": "?"})
    assert shell_words(command) == ["jaxift", *NASTY]
    said = cloud.run("xpk.sh", "create", "--secret", "A=b:c", *STUDY, **(SETTINGS | XPK))
    assert (said.code, said.err.count("\n")) == (2, 1)


def shell_words(command: str) -> list[str]:
    done = subprocess.run(["bash", "-c", f"printf '%s\\0' {command}"], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]
