"""The fields of a JobSet (v1alpha2) that the manifest uses, strictly: what is not named here is refused.

After config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of https://github.com/kubernetes-sigs/jobset, commit
01078527ec4383c3d7289b5af3e0a788324e14ec, and its webhook's list of reasons.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Rule(Strict):
    name: str = Field(pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")
    action: Literal["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"]
    onJobFailureReasons: list[
        Literal[
            "BackoffLimitExceeded",
            "DeadlineExceeded",
            "FailedIndexes",
            "MaxFailedIndexesExceeded",
            "PodFailurePolicy",
        ]
    ]


class FailurePolicy(Strict):
    maxRestarts: int = Field(ge=0)
    rules: list[Rule]


class OnExitCodes(Strict):
    containerName: str
    operator: Literal["In", "NotIn"]
    values: list[int] = Field(min_length=1, max_length=255)


class PodFailureRule(Strict):
    action: Literal["FailJob", "FailIndex", "Ignore", "Count"]
    onExitCodes: OnExitCodes


class PodFailurePolicy(Strict):
    rules: list[PodFailureRule]


class SecretKeyRef(Strict):
    name: str
    key: str


class ValueFrom(Strict):
    secretKeyRef: SecretKeyRef


class Variable(Strict):
    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")
    value: str | None = None
    valueFrom: ValueFrom | None = None


class Port(Strict):
    containerPort: int = Field(ge=1, le=65535)


class Resources(Strict):
    requests: dict[Literal["google.com/tpu"], int]
    limits: dict[Literal["google.com/tpu"], int]


class Container(Strict):
    name: str
    image: str
    command: list[str]
    env: list[Variable]
    ports: list[Port]
    resources: Resources


class Toleration(Strict):
    key: str
    operator: Literal["Equal", "Exists"]
    value: str
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"]


class PodSpec(Strict):
    restartPolicy: Literal["Never"]  # a podFailurePolicy allows no other
    serviceAccountName: str
    nodeSelector: dict[str, str]
    tolerations: list[Toleration]
    containers: list[Container]


class PodTemplate(Strict):
    spec: PodSpec


class JobSpec(Strict):
    backoffLimit: int = Field(ge=0)
    completionMode: Literal["Indexed", "NonIndexed"]
    completions: int = Field(ge=1)
    parallelism: int = Field(ge=0)
    podFailurePolicy: PodFailurePolicy
    template: PodTemplate


class JobTemplate(Strict):
    spec: JobSpec


class ReplicatedJob(Strict):
    name: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    replicas: int = Field(ge=1)
    template: JobTemplate


class JobSetSpec(Strict):
    failurePolicy: FailurePolicy
    replicatedJobs: list[ReplicatedJob]


class Metadata(Strict):
    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    namespace: str
    annotations: dict[str, str]


class JobSet(Strict):
    apiVersion: Literal["jobset.x-k8s.io/v1alpha2"]
    kind: Literal["JobSet"]
    metadata: Metadata
    spec: JobSetSpec
