"""Where this process stands among others, as the cluster's environment says: Cloud TPU, GKE, Slurm, MPI, Kubernetes.

JAX's own cluster classes are asked, and only where something hints at a cluster: elsewhere neither JAX is imported nor
the network touched.
"""

import dataclasses
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxift.errors import UserError

HINTS = (
    "SLURM_JOB_ID", "OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "JOB_COMPLETION_INDEX", "JAX_FORCE_TPU_INIT",
    "TPU_WORKER_HOSTNAMES", "TPU_PROCESS_ADDRESSES", "TPU_PROCESS_ADDRESSES_PATH",
)  # fmt: skip
GOOGLE = "0x1ae0"
"""The vendor of TPU chips on the PCI bus (https://pci-ids.ucw.cz/read/PC/1ae0)."""
PCI_VENDORS = "/sys/bus/pci/devices/*/vendor"


@dataclasses.dataclass(frozen=True)
class Place:
    """One process of a cluster: its number from 0, how many there are, and the address of the first."""

    cluster: str
    coordinator: str
    processes: int
    process: int


def hinted(environment: Mapping[str, str] = os.environ, root: str = "/") -> bool:
    """Whether it is worth asking JAX; true on every cluster that it knows, on other machines rarely."""
    if any(name in environment for name in HINTS):
        return True
    for path in Path(root).glob(PCI_VENDORS.lstrip("/")):
        try:
            if path.read_text(encoding="ascii").strip() == GOOGLE:
                return True
        except (OSError, ValueError):
            continue
    return False


def detected(timeout: float) -> Place | None:
    """Where this process stands, also as the only one of its cluster; None where no cluster is found.

    Raises UserError where there is one, but it does not say what is needed.
    """
    with warnings.catch_warnings():  # what JAX's classes warn of is none of a user's concern who asked for nothing
        warnings.simplefilter("ignore")
        return _asked(timeout)


def _asked(timeout: float) -> Place | None:
    env = _cluster()
    if env is None:
        return None
    name = env.name or env.__name__
    try:
        processes = 1 if _alone() else env.get_process_count()
        if processes == 1:
            return Place(name, "", 1, 0)
        process = env.get_process_id()
        address = env.get_coordinator_address(
            timeout_secs=int(timeout), override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
        )
    except Exception as error:  # of any kind: the classes read variables, files and metadata servers
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(
            f"the cluster {name} is detected, but does not say where its processes are ({reason}); "
            "give --coordinator, --processes and --process, or --coordinator none"
        ) from None
    return Place(name, address, processes, process)


def _cluster() -> Any:
    """JAX's class for the cluster that this process runs on, as `jax.distributed.initialize` would choose it."""
    from jax._src import clusters  # not public; what initialize() itself asks

    for env in clusters.ClusterEnv._cluster_types:
        if env.opt_in_only_method or (env is clusters.K8sCluster and not _is_indexed_job()):
            continue
        if env.is_env_present():
            return env
    return None


def _is_indexed_job() -> bool:
    """Whether a pod of Kubernetes is one of several that know their number; a pod for interactive work is not."""
    return "JOB_COMPLETION_INDEX" in os.environ


def _alone() -> bool:
    """Whether a Slurm step has one task, whatever the allocation around it has: a shell within `salloc`."""
    return os.environ.get("SLURM_STEP_NUM_TASKS") == "1"
