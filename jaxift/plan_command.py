"""`jaxift plan`: what a study's programs take on a TPU slice that is not here, from the TPU compiler itself."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from jaxift.config import StudyConfig
from jaxift.errors import UserError

if TYPE_CHECKING:
    from jaxift.planning.choices import Choice, Result, Site
    from jaxift.planning.programs import Compiled
    from jaxift.planning.workload import Scoring, Tuning

Work = TypeVar("Work", "Scoring", "Tuning")


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a study is planned, beside its configuration."""

    topology: str
    """A TPU slice: generation and sizes, such as v5e:4x4, v5p:4x4x4 or v6e:16x16."""
    compiled: int = 2
    """Of all ways that were found by formula, how many are compiled, for each kind of work."""
    price: float | None = None
    """What an hour of one chip costs you, in your money; without it only chip-hours are told."""


def main(config: StudyConfig, how: Plan, console: Console) -> int:
    """Plans a study and prints what was found; returns 1 where no way fits."""
    import jax

    if how.compiled < 1:
        raise UserError(f"--compiled {how.compiled}: give a number from 1")
    jax.config.update("jax_platforms", "cpu")  # the slice is described, not looked for
    jax.config.update("jax_enable_compilation_cache", False)  # its programs cannot be read back without a TPU
    from etils import epath

    from jaxift.artifacts import RunDirectory
    from jaxift.models.weights import check_config
    from jaxift.planning import scored, topology, tuned, workload
    from jaxift.planning.choices import Site
    from jaxift.units import Units

    place = topology.described(how.topology)
    units = Units(config, RunDirectory(epath.Path(config.run_path)))
    shape = check_config(config.model.path, config.model.max_positions)
    site = Site(config, place, shape)
    _say(console, f"{config.name} on {place.name}: {place.chips} chips ({place.chip.name}), {place.hosts} hosts")
    probe, probes = _largest(workload.probes(units))
    found = scored.search(site, scored.tree_of(site, probe), how.compiled)
    hours = probes * _shown(console, site, probe.name, found)
    for choice in _chosen(found):
        lanes = choice.sizes[1] * choice.sizes[2]
        _say(console, f"  take {choice.flags} --batch-tokens {choice.tokens * lanes}\n")
    fits = any(each.fits for each in found)
    tuning, tunings = _largest(workload.tunings(units))
    if tuning.cells:
        found = tuned.search(site, tuned.prepared_for(site, tuning), tuning.cells, how.compiled)
        hours += tunings * _shown(console, site, f"{tuning.name}, {tuning.cells} models", found)
        for choice in _chosen(found):
            _say(console, f"  take {choice.flags} --tune.remat {choice.remat} --tune.micro-tokens {choice.tokens}\n")
        fits = fits and any(each.fits for each in found)
        if any(each.fits for each in found):
            evaluation, evaluations = _largest(workload.evaluations(units))
            sizes = _fastest(found).choice.sizes
            name = f"{evaluation.name}, {evaluation.models} models"
            tree = scored.tree_of(site, evaluation)
            hours += evaluations * _shown(console, site, name, [scored.of_tuned(site, tree, evaluation.models, sizes)])
    chip_hours = hours * place.chips
    told = f"{hours:,.3g} hours, {chip_hours:,.3g} chip-hours"
    if how.price is not None:
        told += f", {chip_hours * how.price:,.3g} at {how.price:g} a chip-hour"
    domains = f"all {len(config.domains)} domains" if len(config.domains) > 1 else "in all"
    _say(console, f"{domains}, at worst: {told}; starting, loading and writing are not counted")
    return 0 if fits else 1


def _largest(works: "Sequence[Work]") -> "tuple[Work, float]":
    """The domain with most to do, which stands for all, and how much all are in its measure."""
    largest = max(works, key=lambda work: work.amount)
    return largest, sum(work.amount for work in works) / max(largest.amount, 1)


def _chosen(found: "list[Result]") -> "list[Choice]":
    """The way that is recommended, where one fits."""
    return [_fastest(found).choice] if any(each.fits for each in found) else []


def _fastest(found: "list[Result]") -> "Result":
    return min((each for each in found if each.fits), key=lambda each: each.times.pessimistic)


def _shown(console: Console, site: "Site", name: str, found: "list[Result]") -> float:
    """Prints what was found for one piece of work; returns the hours that the best way takes at worst."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, title=Text(name, style="bold"), title_justify="left")
    left = ("mesh", "recomputes", "program", "bound")
    for column in ("mesh", "recomputes", "at once", "program", "GiB", "seconds", "bound", "of peak", "hours"):
        table.add_column(column, justify="left" if column in left else "right", no_wrap=True)
    for each in found:
        head = [each.choice.mesh, each.choice.remat, f"{each.choice.tokens:,}"]
        tail = _of_all(site, each)
        for program in each.programs:
            table.add_row(*map(Text, (*head, *_columns(program), *tail)))
            head, tail = ["", "", ""], ["", ""]
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, width)).print(table)
    for program in (program for each in found for program in each.programs):
        _say(console, f"  {program.name}: {_details(program)}")
    return _fastest(found).times.pessimistic / 3600 if any(each.fits for each in found) else 0.0


def _columns(program: "Compiled") -> tuple[str, ...]:
    from jaxift.parallel.peaks import GIB

    size, took = f"{program.total / GIB:.2f}", program.times
    if not took:
        return program.name, size, "", "does not fit"
    return program.name, size, f"{took.optimistic:.3g} to {took.pessimistic:.3g}", took.bound


def _details(program: "Compiled") -> str:
    """Memory by its parts, what is computed and moved, and what compiling took."""
    from jaxift.planning.programs import told

    if not (program.times and program.moved):
        return _mend(program)
    took, moved = program.times, program.moved
    return (
        f"GiB {told(program.parts)}; a device computes {program.flops / 1e12:.3g} TFLOP ({took.compute:.3g} s), moves "
        f"{moved.hbm_bytes / 1e9:.3g} GB of HBM ({took.memory:.3g} s), receives {moved.received / 1e9:.3g} GB "
        f"({took.network:.3g} s); compiled in {program.seconds:.0f} s"
    )


def _of_all(site: "Site", each: "Result") -> list[str]:
    """The share of the peak that useful operations reach, and hours, of all of the work."""
    if not each.fits or not each.times.optimistic:
        return ["", ""]
    best, worst = each.utilisation(site.topology)
    hours = f"{each.times.optimistic / 3600:.3g} to {each.times.pessimistic / 3600:.3g}"
    return [f"{100 * best:.0f} to {100 * worst:.0f} %", hours]


def _mend(program: "Compiled") -> str:
    """By how much a program does not fit, and what would help."""
    from jaxift.parallel.peaks import GIB

    assert program.limit
    held = sum(program.parts.values())
    over = (program.total - program.limit) / GIB
    text = f"does not fit: takes {program.total / GIB:.2f} GiB of {program.limit / GIB:.2f}, {over:.2f} too many; "
    if held > program.limit:
        times = held / program.limit
        return (
            text
            + f"parameters alone take {held / GIB:.2f}: take a slice of {times:.1f} times the chips, or tune.lora.rank"
        )
    return text + "set fewer tune.micro_tokens or batch_tokens, tune.remat full, or take a larger slice"


def _say(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
