"""Checkpoints of one tuning run: parameters, AdamW moments, the step, and the key of what is being trained."""

import logging
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from jaxift.errors import UserError

MARKER = "jaxift_run_key.txt"


class Checkpoints:
    """An orbax CheckpointManager over one folder; use as a context manager, so that writes are finished on leaving."""

    def __init__(self, folder: epath.PathLike, key: str):
        self.folder, self.key = epath.Path(folder).resolve(), key  # orbax takes absolute paths alone
        logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports every step of every write
        self._discard_others()
        self.manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=1, create=True)
        )

    def __enter__(self) -> "Checkpoints":
        """Nothing to do: the manager is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Waits for writes under way, then closes."""
        self.manager.wait_until_finished()
        self.manager.close()

    def _discard_others(self) -> None:
        """Removes checkpoints of a run with another key (other data, other settings), and never anything else."""
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.folder / MARKER
        if not marker.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder}: holds other files than checkpoints; give an empty or new folder")
        if marker.exists() and marker.read_text() != self.key:
            for path in self.folder.iterdir():
                # a step's folder, or what an interrupted write left of one
                if path.is_dir() and path.name.split(".")[0].isdigit():
                    path.rmtree()
        marker.write_text(self.key)

    @property
    def latest(self) -> int | None:
        """Optimizer steps of the newest complete checkpoint, or None."""
        return self.manager.latest_step()

    def save(self, params: nnx.State, moments: Any | None, metrics: list[dict[str, float]]) -> None:
        """Starts writing the state after `len(metrics)` steps; without `moments` it is a result."""
        items = {
            "params": ocp.args.StandardSave(nnx.to_pure_dict(params)),
            "metrics": ocp.args.JsonSave({"steps": metrics}),
        }
        if moments is not None:
            items["moments"] = ocp.args.StandardSave(_leaves(moments))
        self.manager.save(len(metrics), args=ocp.args.Composite(**items))
        if jax.default_backend() == "cpu":
            # elsewhere save() returns with a copy made; here it may read the very buffers that the next step donates
            self.manager.wait_until_finished()

    def restore(self, params: nnx.State, moments: Any) -> tuple[nnx.State, Any, list[dict[str, float]]]:
        """Reads the newest parameters, moments (as given where it is a result) and metrics onto the given shardings."""
        step = self.manager.latest_step()
        items = {
            "params": ocp.args.StandardRestore(_abstract(nnx.to_pure_dict(params))),
            "metrics": ocp.args.JsonRestore(),
        }
        if (self.folder / str(step) / "moments").exists():
            items["moments"] = ocp.args.StandardRestore(_abstract(_leaves(moments)))
        found = self.manager.restore(step, args=ocp.args.Composite(**items))
        if "moments" in items:
            leaves = [found["moments"][name] for name in sorted(found["moments"])]
            moments = jax.tree.unflatten(jax.tree.structure(moments), leaves)
        return _filled(params, found["params"]), moments, found["metrics"]["steps"]


def restore_params(folder: epath.PathLike, params: nnx.State) -> nnx.State:
    """Reads the newest parameters of a finished run onto the shardings of the given ones.

    Raises UserError where there are none.
    """
    with ocp.CheckpointManager(epath.Path(folder).resolve()) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{folder}: holds no checkpoint; run `jaxift tune` again")
        wanted = ocp.args.StandardRestore(_abstract(nnx.to_pure_dict(params)))
        return _filled(params, manager.restore(step, args=ocp.args.Composite(params=wanted))["params"])


def _leaves(tree: Any) -> dict[str, jax.Array]:
    """A tree's leaves by number: optax's named tuples need not survive the way through files."""
    return {f"{index:04d}": leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _filled(params: nnx.State, values: dict[str, Any]) -> nnx.State:
    filled = jax.tree.map(lambda x: x, params)
    nnx.replace_by_pure_dict(filled, values)
    return filled
