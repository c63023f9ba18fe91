"""What runs of one program have in common: the examples, the shape of all batches, the compiled step, the waves."""

import dataclasses
import functools
import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import nnx
from jax.sharding import Mesh

from jaxift.artifacts import digest
from jaxift.config import ON_THE_WAY, TuneConfig
from jaxift.errors import UserError
from jaxift.models.adapters import adapted, new_adapters
from jaxift.models.buckets import check_tokens
from jaxift.models.config import DecoderConfig, LoraShape
from jaxift.models.decoder import laid_out, query_blocks
from jaxift.models.flops import pair_flops, token_flops
from jaxift.models.layer import LoraParam
from jaxift.models.stack import ModelStack, abstract, device_bytes, put, spread
from jaxift.models.weights import LanguageModel
from jaxift.parallel.compiled import Compiled, described
from jaxift.parallel.mesh import CELL, batch_shards, filled, sharding, stacked
from jaxift.tuning.batches import Example, Plan, Shape, choose_shape, encode_examples, row_unit
from jaxift.tuning.checkpoint import restore_params
from jaxift.tuning.optimizers import learning_rates, optimizer
from jaxift.tuning.step import CellState, Recipe, Shared, first_state, train_step
from jaxift.tuning.waves import StepMemory, peak_bytes

MICRO_TOKENS = {"cpu": 1024}
"""Tokens of one model that a device takes at once; a platform that is not named takes the default."""
DEFAULT_MICRO_TOKENS = 8192
LONGEST_ROW = 4096
UNROLLED_FLOPS = 3e13
"""On CPU deep stacks are unrolled where a job has more to do: that takes longer to compile, and a tenth less a step."""
PAIR_COST = 3
"""What attention's operations cost, against those of products with matrices."""
BY_MODEL = {"learning_rate", "epochs", "batch_size", "warmup"}
"""Settings in which models of one program may differ."""
_compiled = Compiled(8)


@dataclasses.dataclass(frozen=True)
class Job:
    """One model to be tuned on (prompt, response) pairs, the loss on the responses alone.

    With `folder`, checkpoints are written there, and an interrupted run with the same data and settings goes on from
    them. `weights` is what each pair counts, by default 1; `ids` names the pairs in messages.
    """

    name: str
    pairs: Sequence[tuple[str, str]]
    config: TuneConfig = dataclasses.field(default_factory=TuneConfig)
    seed: int = 0
    folder: epath.PathLike | None = None
    weights: Sequence[float] = ()
    ids: Sequence[str] = ()

    @property
    def program(self) -> str:
        """Hash of the settings that its program depends on; jobs that agree in it are tuned together."""
        return digest(self.config.model_dump(exclude=BY_MODEL))


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A job's examples and learning rates."""

    job: Job
    plan: Plan
    rates: np.ndarray
    key: str
    """Hash of everything that the run's course depends on; only a run with the same key is resumed."""
    at_limit: int
    """Examples that fill the length limit."""


def prepare(model: LanguageModel, job: Job) -> Prepared:
    """Encodes a job's examples; raises UserError where they, or its settings, cannot be tuned on."""
    config = job.config
    if not job.pairs:
        raise UserError(f"{job.name}: there is no example to tune on")
    longest = min(config.max_length, model.config.max_positions)
    examples = encode_examples(model.tokenizer, job.pairs, longest, config.too_long == "truncate", job.weights)
    for example in examples:
        check_tokens(example.tokens, model.config.vocab_size)
    if config.mask_perplexity is not None:
        examples = masked(model, examples, config.mask_perplexity)
    if not any(not example.weights or any(example.weights) for example in examples):
        raise UserError(f"{job.name}: no token counts in the loss; give weights above 0, or raise tune.mask_perplexity")
    plan = Plan(examples, config.batch_size, config.epochs, job.seed)
    rates = learning_rates(config, plan.steps)
    if not rates.any():
        raise UserError(
            f"{plan.steps} optimizer step is all warm-up, at rate 0; raise tune.epochs or set tune.warmup 0"
        )
    at_limit = sum(len(example.tokens) == longest for example in examples)
    return Prepared(job, plan, rates, run_key(model, examples, config, job.seed), at_limit)


def masked(model: LanguageModel, examples: Sequence[Example], limit: float) -> list[Example]:
    """Examples in which response tokens that the model finds more perplexing than `limit` count nothing."""
    from jaxift.scoring.engine import score_tokens  # imported here: it is of use to few runs
    from jaxift.scoring.requests import TokenRequest

    requests = [
        TokenRequest(example.tokens[: example.start], (example.tokens[example.start :],)) for example in examples
    ]
    found = score_tokens(model.decoder, requests, model.mesh, dtype=model.dtype)
    result = []
    for example, score in zip(examples, found, strict=True):
        counts = np.array(example.weights or (1.0,) * example.scored)
        counts[-score.token_logprobs[0] > math.log(limit)] = 0
        result.append(dataclasses.replace(example, weights=tuple(counts.tolist())))
    return result


def run_key(model: LanguageModel, examples: Sequence[Example], config: TuneConfig, seed: int) -> str:
    """Hash of everything that a run's course depends on."""
    data = [dataclasses.astuple(example) for example in examples]
    course = config.model_dump(exclude={*ON_THE_WAY, "export"})
    shape = dataclasses.asdict(dataclasses.replace(model.config, vocab_padding=0))
    return digest([data, course, seed, str(model.dtype), shape, model.fingerprint])


@dataclasses.dataclass(frozen=True)
class Group:
    """Jobs that are tuned by one program, in as many waves as it takes."""

    model: LanguageModel
    """Untuned, on the mesh of the cells, with new adapters where these are what is tuned."""
    config: TuneConfig
    jobs: Sequence[Prepared]
    shape: Shape
    recipe: Recipe
    shared: Shared
    compile_seconds: dict[int, float] = dataclasses.field(default_factory=dict)
    """What the program of so many cells took."""

    def first_params(self, seed: int) -> nnx.State:
        """The parameters that are tuned, before the first step: float32, and none of the model's own arrays."""
        if self.model.config.lora is not None:
            return new_adapters(self.model.config, seed, self.model.mesh)
        with jax.set_mesh(self.model.mesh):
            return jax.tree.map(lambda x: jnp.array(x, jnp.float32, copy=True), nnx.state(self.model.decoder))

    def first_state(self, seed: int) -> CellState:
        """A cell before its first step."""
        return first_state(self.recipe.optimizer, self.first_params(seed))

    def stack(self, cells: int) -> CellState:
        """A stack of equal cells before their first step."""
        return spread(self.first_state(0), cells)

    def described(self, cells: int) -> tuple:
        """Shapes and layouts of what a step takes, for a stack of `cells`."""
        mesh, shape = self.model.mesh, self.shape
        stack = _copies(self.described_state, cells, mesh)

        def array(sizes: tuple[int, ...], dtype: type, *names: str | None) -> jax.ShapeDtypeStruct:
            layout = jax.NamedSharding(mesh, jax.P(CELL, *sharding(mesh, *names).spec))
            return jax.ShapeDtypeStruct((cells, *sizes), dtype, sharding=layout)

        rows = (shape.micro, shape.rows, shape.length), (None, "batch", None)
        places = (shape.micro, shape.shards, shape.slots), (None, "batch", None)
        batch = [array(rows[0], jnp.int32, *rows[1]) for _ in range(3)]
        batch += [array(places[0], dtype, *places[1]) for dtype in (jnp.int32, jnp.int32, jnp.float32)]
        micro = jax.ShapeDtypeStruct((), jnp.int32, sharding=jax.NamedSharding(mesh, jax.P()))
        return stack, abstract(self.shared), array((), jnp.float32), array((), jnp.bool_), micro, tuple(batch)

    @functools.cached_property
    def described_state(self) -> CellState:
        """Shapes and layouts of a cell between steps."""
        with jax.set_mesh(self.model.mesh):
            state = jax.eval_shape(functools.partial(first_state, self.recipe.optimizer), tuned_arrays(self.model))
        return laid_out(state, self.model.mesh)

    def program(self, cells: int) -> "jax.stages.Compiled":
        """The compiled step of a stack."""
        started = time.perf_counter()
        with jax.set_mesh(self.model.mesh):
            described_arrays = self.described(cells)
            step = jax.jit(functools.partial(train_step, self.recipe), donate_argnums=0)
            program = _compiled.get(
                (self.recipe, self.model.mesh, described(described_arrays)),
                lambda: step.lower(*described_arrays).compile(),
            )
        self.compile_seconds.setdefault(cells, time.perf_counter() - started)
        return program

    def memory(self, cells: int) -> StepMemory:
        """What the step of a stack takes on each device."""
        program = self.program(cells)
        stack, shared, *_, batch = self.described(cells)
        weights = device_bytes(stack.params)
        return StepMemory(
            weights=weights,
            moments=device_bytes(stack) - weights,
            shared=device_bytes(shared),
            gradients=weights,
            batches=device_bytes(batch),
            total=peak_bytes(program, self.model.mesh.devices.flat[0].platform),
        )


def group(model: LanguageModel, jobs: Sequence[Prepared]) -> Group:
    """Brings jobs of one program together; `model` is on the mesh of the cells."""
    config, mesh = jobs[0].job.config, model.mesh
    reference_graph, reference = nnx.split(model.decoder) if config.kl else (None, None)
    model = with_adapters(model, config)
    graph = nnx.graphdef(model.decoder)
    frozen = frozen_part(model)
    platform = mesh.devices.flat[0].platform
    plans = [each.plan for each in jobs]
    recipe = Recipe(
        graph, reference_graph, optimizer(config), model.dtype, config.remat, config.kl, config.skip_spikes,
        _longest(plans, platform), platform == "cpu" and _flops(model.config, jobs) > UNROLLED_FLOPS,
    )  # fmt: skip
    shape = shape_of(plans, config, model.config, batch_shards(mesh), platform)
    return Group(model, config, jobs, shape, recipe, Shared(frozen, reference))


def shape_of(plans: Sequence[Plan], settings: TuneConfig, config: DecoderConfig, shards: int, platform: str) -> Shape:
    """The shape of a program's batches, on a mesh whose batch axis has so many shards."""
    pair_cost = PAIR_COST * pair_flops(config) * config.num_layers / token_flops(config)
    longest = _longest(plans, platform)

    def row_cost(length: int) -> float:
        blocks = query_blocks(length, longest, platform)
        return length + pair_cost * sum((end - start) * (end - first) for first, start, end in blocks)

    return choose_shape(
        plans,
        packing=settings.packing,
        micro_tokens=settings.micro_tokens or MICRO_TOKENS.get(platform, DEFAULT_MICRO_TOKENS),
        shards=shards,
        limit=LONGEST_ROW,
        row_cost=row_cost,
        unit=row_unit(platform),
    )


def _longest(plans: Sequence[Plan], platform: str) -> int:
    """Tokens of the longest example that go through the model, as a multiple of what rows are."""
    unit = row_unit(platform)
    return -(-max(example.fed for plan in plans for example in plan.examples) // unit) * unit


def _flops(config: DecoderConfig, jobs: Sequence[Prepared]) -> int:
    """Operations of the longest of the jobs, about."""
    tokens = max(each.plan.epochs * sum(example.fed for example in each.plan.examples) for each in jobs)
    return 3 * token_flops(config) * tokens


def with_adapters(model: LanguageModel, config: TuneConfig) -> LanguageModel:
    """The model with new adapters where these are what is tuned."""
    lora = config.lora
    return adapted(model, LoraShape(lora.rank, lora.alpha / lora.rank, lora.targets), seed=0) if lora.rank else model


def tuned_arrays(model: LanguageModel) -> nnx.State:
    """Shapes and layouts of what is tuned, float32: the adapters where there are some."""
    params = nnx.state(model.decoder, nnx.Param if model.config.lora is None else LoraParam)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding), params)


def described_stack(model: LanguageModel, cells: int) -> nnx.State:
    """Shapes and layouts of what is tuned, of a stack of models."""
    return _copies(laid_out(tuned_arrays(model), model.mesh), cells, model.mesh)


def _copies(tree: Any, cells: int, mesh: Mesh) -> Any:
    def copies(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        layout = jax.NamedSharding(mesh, stacked(x.sharding.spec))
        return jax.ShapeDtypeStruct((cells, *x.shape), x.dtype, sharding=layout)

    return jax.tree.map(copies, tree)


def frozen_part(model: LanguageModel) -> nnx.State | None:
    """The parameters beside adapters, which are not tuned."""
    if model.config.lora is None:
        return None
    _, _, frozen = nnx.split(model.decoder, LoraParam, ...)
    return frozen


def restored_stack(model: LanguageModel, folders: Sequence[epath.PathLike]) -> ModelStack:
    """Tuned models, from the folders of their checkpoints.

    `model` is on the cells' mesh, `with_adapters` where these were tuned. Raises UserError where a folder holds no
    checkpoint, or it is damaged.
    """
    params = tuned_arrays(model)
    with jax.set_mesh(model.mesh):
        stack = spread(restore_params(folders[0], params), filled(len(folders), model.mesh))
        for index, folder in enumerate(folders[1:], 1):
            stack = put(stack, jnp.int32(index), restore_params(folder, params))
    return ModelStack(model, stack, frozen_part(model), len(folders))
