"""Whether a checkpoint can be written to a folder or bucket as tuning writes it, and comes back bit for bit."""

import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxift.artifacts import writable_folder
from jaxift.errors import UserError
from jaxift.parallel import hosts, meeting
from jaxift.selfcheck.lines import Line
from jaxift.tuning.checkpoint import Checkpoints, restore_params

NAME = "checkpoint"
COLUMNS = 1024


def lines(mesh: Mesh, bucket: str | None, megabytes: int) -> list[Line]:
    """One line: how fast a checkpoint of that size was written and read; nothing of it stays."""
    if bucket is None and hosts.process_count() > 1:
        return [Line(NAME, "told", "not checked: give --bucket a path that all hosts share")]
    with _folder(bucket) as folder:
        return [_round_trip(mesh, folder, bucket or "a temporary folder", megabytes)]


@contextmanager
def _folder(bucket: str | None) -> Iterator[epath.Path]:
    """A new folder of one name for all processes, which is removed whatever happens; UserError where it is refused."""
    base = bucket or tempfile.mkdtemp(prefix="jaxift-selfcheck-")
    token = meeting.exchange("selfcheck folder", secrets.token_hex(6).encode())[0].decode()
    try:
        folder = meeting.on_every_process(lambda: _opened(base)) / f"jaxift-selfcheck-{token}"
        meeting.on_first_process(lambda: _begun(folder))
        if "://" not in base and not meeting.everywhere(np.array([folder.is_dir()])).all():
            raise UserError(f"--bucket {base}: is not seen by every host; give a path that all share")
        try:
            yield folder
        finally:
            meeting.barrier("selfcheck: the checkpoint was read")
            meeting.on_first_process(lambda: _removed(folder))
    finally:
        if bucket is None:
            shutil.rmtree(base, ignore_errors=True)


def _opened(base: str) -> epath.Path:
    path = epath.Path(base)
    try:
        # of a bucket only its files exist
        missing = "://" not in base and not path.is_dir()
    except (OSError, ImportError) as error:
        raise UserError(f"--bucket {base}: {error}; give a folder or a bucket") from None
    if missing:
        raise UserError(f"--bucket {base}: is no folder; make it first")
    return path


def _begun(folder: epath.Path) -> None:
    try:
        writable_folder(folder, "--bucket")
    except UserError:
        raise
    except Exception as error:  # what a store raises where one is not permitted is its own
        raise UserError(
            f"--bucket {folder.parent}: cannot be written ({' '.join(str(error).split())[:160]}); "
            "give this account the right to create, read and delete objects there"
        ) from None


def _removed(folder: epath.Path) -> None:
    with suppress(FileNotFoundError):
        folder.rmtree()


def _round_trip(mesh: Mesh, folder: epath.Path, where: str, megabytes: int) -> Line:
    made = _arrays(mesh, megabytes)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(made))
    started = time.perf_counter()
    with Checkpoints(folder / "steps", "selfcheck") as checkpoints:
        checkpoints.save(made, None, [{"loss": 0.0}])
    written = time.perf_counter()
    found = restore_params(folder / "steps", made)
    jax.block_until_ready(found)
    read = time.perf_counter()
    speeds = {"written": size / (written - started) / 1e6, "read": size / (read - written) / 1e6}
    text = f"{size / 1e6:.0f} MB to {where}: written at {speeds['written']:.0f} MB/s, read at {speeds['read']:.0f} MB/s"
    good = same_bits(made, found)
    text += ", bit for bit" if good else "; what came back is not what was written: do not store checkpoints there"
    return Line(NAME, "good" if good else "bad", text, {"bytes": size, "MB/s": speeds})


def same_bits(first: Any, second: Any) -> bool:
    """Whether two trees of arrays hold the same bits."""
    return bool(_same(jax.tree.leaves(first), jax.tree.leaves(second)))


@jax.jit
def _same(first: list[jax.Array], second: list[jax.Array]) -> jax.Array:
    bits = {2: jnp.uint16, 4: jnp.uint32}
    pairs = [[jax.lax.bitcast_convert_type(x, bits[x.dtype.itemsize]) for x in pair]
             for pair in zip(first, second, strict=True)]  # fmt: skip
    return jnp.stack([(one == other).all() for one, other in pairs]).all()


def _arrays(mesh: Mesh, megabytes: int) -> nnx.State:
    """Random parameters of that size in two types, spread over all devices of the mesh."""
    rows = max(1, megabytes * 10**6 // (6 * COLUMNS * mesh.size)) * mesh.size
    layout = NamedSharding(mesh, PartitionSpec(tuple(mesh.axis_names)))

    def make() -> dict[str, jax.Array]:
        values = jax.random.normal(jax.random.key(0), (rows, COLUMNS))
        return {"float32": values, "bfloat16": values.astype(jnp.bfloat16)}

    made = jax.jit(make, out_shardings=layout)()
    return nnx.State({name: nnx.Param(value) for name, value in made.items()})
