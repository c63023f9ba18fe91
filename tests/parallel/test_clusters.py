"""What is taken for a cluster, by JAX's own classes in made-up environments; nothing asks the network."""

import jax
import pytest
from jax._src import clusters
from jax._src.clusters import cloud_tpu_cluster

from jaxift.errors import UserError
from jaxift.parallel import hosts
from jaxift.parallel.clusters import HINTS, Place, detected, hinted

SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[003-006],other", "SLURM_NTASKS": "4", "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "4",
}  # fmt: skip
GKE = {"TPU_WORKER_HOSTNAMES": "localhost,127.0.0.1", "TPU_WORKER_ID": "1", "TPU_SKIP_MDS_QUERY": "true"}


@pytest.fixture
def environment(monkeypatch):
    """Sets variables in place of all that a cluster would set; nothing may ask for a name or a page."""
    for name in (
        *HINTS,
        *SLURM,
        *GKE,
        "KUBERNETES_SERVICE_HOST",
        "TPU_SKIP_MDS_QUERY",
        "MEGASCALE_COORDINATOR_ADDRESS",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("jaxift.parallel.clusters.PCI_VENDORS", "/nowhere/*")
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", False)
    monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: pytest.fail(f"asked the metadata for {key}"))

    def put(variables, on_tpu=False, metadata=None):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", on_tpu)
        if metadata is not None:
            monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", lambda key: (metadata[key], 200))

    return put


def test_a_laptop_is_one_process_and_jax_is_not_asked(environment, monkeypatch):
    monkeypatch.setattr("jaxift.parallel.hosts.detected", lambda timeout: pytest.fail("asked"))
    assert not hinted()
    hosts.initialize()
    assert hosts.process_count() == 1


def test_slurm_tells_its_tasks(environment):
    environment(SLURM)
    assert hinted()
    assert detected(1) == Place("slurm", f"node003:{4097 % 4096 + 65535 - 4096 + 1}", 4, 2)


@pytest.mark.parametrize("changed", [{"SLURM_NTASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "1"}])
def test_one_task_of_slurm_is_one_process(environment, changed):
    environment(SLURM | changed)
    found = detected(1)
    assert found is not None
    assert found.processes == 1
    hosts.initialize()
    hosts.initialize("auto")
    assert not jax.distributed.is_initialized()


def test_a_slurm_allocation_without_a_step_is_no_cluster(environment):
    environment({name: value for name, value in SLURM.items() if name in ("SLURM_JOB_ID", "SLURM_NTASKS")})
    assert hinted()
    assert detected(1) is None


def test_gke_tells_its_workers_and_slices(environment):
    environment(GKE, on_tpu=True, metadata={"tpu-env": ""})
    assert detected(1) == Place("gketpu", "localhost:8482", 2, 1)
    slices = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2"}
    environment({"MEGASCALE_COORDINATOR_ADDRESS": "127.0.0.1", **slices}, on_tpu=True)
    assert detected(1) == Place("gketpu", "127.0.0.1:8482", 6, 5)


def test_a_pod_of_gke_without_chips_is_no_tpu_worker(environment):
    environment(GKE)
    assert detected(1) is None


@pytest.mark.parametrize(
    ("endpoints", "place"),
    [
        ("127.0.0.1", Place("gcetpu", "", 1, 0)),
        ("uid:0:127.0.0.1,uid:1:10.0.0.2", Place("gcetpu", "127.0.0.1:8482", 2, 1)),
    ],
)
def test_a_cloud_tpu_vm_asks_its_metadata(environment, endpoints, place):
    metadata = {
        "agent-worker-number": str(place.process), "worker-network-endpoints": endpoints, "tpu-env": "ZONE: 'z'\n",
    }  # fmt: skip
    environment({}, on_tpu=True, metadata=metadata)
    assert detected(1) == place


def test_chips_on_the_bus_are_worth_asking_about(environment, monkeypatch, tmp_path):
    monkeypatch.undo()
    for name in HINTS:
        monkeypatch.delenv(name, raising=False)
    for vendor, found in (("0x8086", False), ("0x1ae0", True)):
        device = tmp_path / vendor / "sys/bus/pci/devices/0000:00:04.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        assert hinted({}, str(tmp_path / vendor)) == found


def test_a_pod_for_interactive_work_is_one_process(environment):
    environment({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert not hinted()
    assert detected(1) is None


def test_a_cluster_that_does_not_say_enough_is_refused(environment, monkeypatch):
    environment(SLURM | {"SLURM_PROCID": "two"})
    with pytest.raises(UserError, match=r"cluster slurm is detected, but .*'two'.*--coordinator none"):
        detected(1)
    with pytest.raises(UserError, match="is detected"):
        hosts.initialize()
    hosts.initialize("none")
    assert not jax.distributed.is_initialized()


def test_auto_demands_a_cluster(environment):
    with pytest.raises(UserError, match="--coordinator auto: no cluster is detected"):
        hosts.initialize("auto")


def test_every_cluster_of_jax_is_known():
    """A class that JAX adds may need a hint of its own: this fails then."""
    known = {"Ompi", "Slurm", "Mpi4py", "BaseTpu", "GkeTpu", "GceTpu", "K8s"}
    assert {each.__name__.removesuffix("Cluster") for each in clusters.ClusterEnv._cluster_types} <= known
