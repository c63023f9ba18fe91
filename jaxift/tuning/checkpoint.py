"""Checkpoints of one model's tuning run: parameters, all else that a step needs, the metrics so far, and checksums.

A step is trusted only when what it gives back has the sums that were taken before it was written; otherwise the one
before it is used, and it is said so. The folder's marker names the run: steps of another one are removed.
"""

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from flax import nnx

from jaxift.artifacts import digest
from jaxift.errors import UserError
from jaxift.models.checksum import leaf_sums
from jaxift.models.stack import abstract
from jaxift.parallel.hosts import WORK_TIMEOUT, of_another_host
from jaxift.parallel.meeting import barrier, everywhere, on_first_process

MARKER = "jaxift_run_key.txt"
Metrics = dict[str, float]
Saved = tuple[nnx.State, Any, list[Metrics]]


class Checkpoints:
    """An orbax CheckpointManager over one folder; use as a context manager, so that writes are finished on leaving.

    `keep` are the newest resumable steps that stay. `warn` is told, in a line, what was damaged.
    """

    def __init__(
        self, folder: epath.PathLike, key: str, keep: int = 2, warn: Callable[[str], None] = lambda line: None
    ):
        self.folder, self.key, self.warn = epath.Path(folder).resolve(), key, warn  # orbax takes absolute paths alone
        logging.getLogger("absl").setLevel(logging.CRITICAL)  # orbax reports every step of every write, errors twice
        on_first_process(self._discard_others)
        self.manager = _manager(self.folder, keep)
        self._written: int | None = self.manager.latest_step()
        self._begun: int | None = None

    def __enter__(self) -> "Checkpoints":
        """Nothing to do: the manager is open."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Waits for writes under way, then closes; where something else went wrong, that is what is raised."""
        try:
            self.wait()
        except UserError:
            if kind is None:
                raise
        finally:
            with contextlib.suppress(Exception):  # what went wrong was told above, and is told again here
                self.manager.close()

    def _discard_others(self) -> None:
        """Removes checkpoints of a run with another key (other data, other settings), and never anything else."""
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self.folder / MARKER
        if not marker.exists() and any(self.folder.iterdir()):
            raise UserError(f"{self.folder}: holds other files than checkpoints; give an empty or new folder")
        known = marker.read_text() if marker.exists() else None
        for path in self.folder.iterdir():
            # a step's folder, or what an interrupted write left of one
            step, *unfinished = path.name.split(".")
            if path.is_dir() and step.isdigit() and (unfinished or known != self.key):
                path.rmtree()
        if known != self.key:
            marker.write_text(self.key)

    def save(self, params: nnx.State, rest: Any | None, metrics: list[Metrics]) -> None:
        """Starts writing the state after `len(metrics)` steps; without `rest` it is the result, and alone stays.

        The arrays must not be donated before `wait`. Raises UserError where an earlier write failed.
        """
        self.wait()
        step = len(metrics)
        trees = {"params": nnx.to_pure_dict(params)} | ({} if rest is None else {"rest": _leaves(rest)})
        told = {"steps": metrics, "sums": {name: np.asarray(leaf_sums(tree)).tolist() for name, tree in trees.items()}}
        items: dict[str, Any] = {name: ocp.args.StandardSave(tree) for name, tree in trees.items()}
        items["record"] = ocp.args.JsonSave({**told, "digest": digest(told)})
        self._begun = step
        try:
            self.manager.save(step, args=ocp.args.Composite(**items), force=True)
            if rest is None:
                self.manager.wait_until_finished()
                for other in self.manager.all_steps():
                    if other != step:
                        self.manager.delete(other)
        except Exception as error:
            self._failed(error)

    def wait(self) -> None:
        """Returns when what was begun is written; raises UserError where it could not be."""
        try:
            self.manager.wait_until_finished()
        except Exception as error:
            self._failed(error)
        self._written, self._begun = (self._written if self._begun is None else self._begun), None

    def _failed(self, error: Exception) -> None:
        if of_another_host(error):
            raise error
        step, self._begun = self._begun, None
        for path in self.folder.glob(f"{step}.*"):
            with contextlib.suppress(OSError):  # parts of it may still be written; the next run removes it
                path.rmtree()
        before = "there is none before it" if self._written is None else f"that of step {self._written} is whole"
        raise UserError(
            f"{self.folder}: the checkpoint of step {step} cannot be written ({_reason(error)}), {before}; "
            "make room, and run the same command again"
        ) from None

    def restore(self, params: nnx.State, rest: Any) -> Saved | None:
        """The newest whole step's parameters, rest (None where it is the result) and metrics, or None where none is.

        `params` and `rest` are arrays, or descriptions of arrays, with the shapes and layouts that are wanted.
        """
        for step in sorted(self.manager.all_steps(), reverse=True):
            found, reason = _restored(self.manager, self.folder, step, params, rest)
            if everywhere(np.array([found is not None]), WORK_TIMEOUT).all():
                return found
            self.warn(f"{self.folder}: the checkpoint of step {step} is damaged ({reason}); it is left out")
            on_first_process(lambda step=step: (self.folder / str(step)).rmtree())
            barrier("damaged checkpoint removed", WORK_TIMEOUT)
            self.manager.reload()
        self._written = None
        return None


def restore_params(folder: epath.PathLike, params: nnx.State) -> nnx.State:
    """Reads the parameters of a finished run onto the shardings of the given ones.

    Raises UserError where there are none, or where they are damaged.
    """
    folder = epath.Path(folder).resolve()
    with _manager(folder, None) as manager:
        step = manager.latest_step()
        if step is None:
            raise UserError(f"{folder}: holds no checkpoint; run `jaxift tune` again")
        found, reason = _restored(manager, folder, step, params, None)
    if found is None:
        raise UserError(f"{folder / str(step)}: is damaged ({reason}); remove it and run `jaxift tune` again")
    return found[0]


def _manager(folder: epath.Path, keep: int | None) -> ocp.CheckpointManager:
    return ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True))


def _restored(
    manager: ocp.CheckpointManager, folder: epath.Path, step: int, params: nnx.State, rest: Any | None
) -> tuple[Saved | None, str]:
    """A step where it is whole, or None and why it is not."""
    wanted = {"params": abstract(nnx.to_pure_dict(params))}
    if rest is not None and (folder / str(step) / "rest").exists():
        wanted["rest"] = abstract(_leaves(rest))
    items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
    try:
        found = manager.restore(step, args=ocp.args.Composite(record=ocp.args.JsonRestore(), **items))
        told = found["record"]
        if told.pop("digest") != digest(told) or len(told["steps"]) != step:
            return None, "its metrics are not those that were written"
        if rest is not None and ("rest" in told["sums"]) != ("rest" in wanted):
            return None, "a part of it is missing"
        for name in wanted:
            if np.asarray(leaf_sums(found[name])).tolist() != told["sums"][name]:
                return None, f"its {'parameters' if name == 'params' else 'moments'} are not those that were written"
    except Exception as error:  # orbax and its stores raise anything at a byte that is not what it was
        return None, _reason(error)
    filled = jax.tree.map(lambda x: x, params)
    nnx.replace_by_pure_dict(filled, found["params"])
    if "rest" in wanted:
        leaves = [found["rest"][name] for name in sorted(found["rest"])]
        rest = jax.tree.unflatten(jax.tree.structure(rest), leaves)
    else:
        rest = None
    return (filled, rest, told["steps"]), ""


def _leaves(tree: Any) -> dict[str, Any]:
    """A tree's leaves by number: optax's named tuples need not survive the way through files."""
    return {f"{index:04d}": leaf for index, leaf in enumerate(jax.tree.leaves(tree))}


def _reason(error: Exception) -> str:
    """The start of what orbax says, of which there may be pages."""
    text = " ".join(str(error).split()) or type(error).__name__
    if "No space left" in text or "ENOSPC" in text or "RESOURCE_EXHAUSTED" in text:
        return "the disk is full"
    return text[:160]
