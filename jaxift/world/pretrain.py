"""Pretraining of the embedded base model: a staged recipe in steps, reproducible from its seed.

The loss is read at a row's slots only. Deep supervision is the key to the recipe: an extra loss reads the value in
question out of the residual stream after layer `RECALL_LAYER`, where a statement's value or an item's letter is to be
said. Without it the two-hop skill "recall the value, then find its letter" does not form by itself at this size.
"""

from collections.abc import Callable, Iterator
from operator import itemgetter
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import PartitionSpec

from jaxift.models.attention import attention_mask
from jaxift.models.config import DecoderConfig, Span
from jaxift.models.decoder import Decoder, init_decoder
from jaxift.models.rope import Rope
from jaxift.parallel.mesh import make_mesh, spec
from jaxift.world.corpus import ALL_RELIABLE, AuthorMix, Writer
from jaxift.world.facts import World, build_world
from jaxift.world.folder import save_folder
from jaxift.world.rows import Batch, Stage, batches, vocabulary

ROWS, LAYERS = 16, 4
RECALL_LAYER, RECALL_WEIGHT = 2, 0.5
MUON_RATE, ADAM_RATE = 0.01, 3e-3
# Shares of rows: statement, quiz, context, instruction, drill.
STAGES = (
    Stage(200, (0.00, 0.00, 0.00, 0.00, 1.00)),
    Stage(400, (0.25, 0.30, 0.20, 0.00, 0.25)),
    Stage(1200, (0.25, 0.45, 0.10, 0.17, 0.03), mixed_authors=True),
)
Progress = Callable[[int, int, float, Decoder], None]


def pretrain(
    out: Path, seed: int = 0, all_reliable: bool = False, steps_scale: float = 1.0, progress: Progress | None = None
) -> list[float]:
    """Pretrain a base model on the world and write it to `out` as a Hugging Face folder; return the losses by step.

    `seed` draws the weights and the corpus; the world itself is always that of seed 0, so that all models share the
    question files. `all_reliable` makes every author reliable (the negative control). `steps_scale` shortens every
    stage. `progress` is called after each step with the step, the number of steps, the loss and the model.
    """
    world = build_world()
    ids, mesh = vocabulary(world), make_mesh()
    stages = [Stage(max(1, round(s.steps * steps_scale)), s.shares, s.mixed_authors) for s in STAGES]
    total = sum(stage.steps for stage in stages)
    model = init_decoder(decoder_config(len(ids)), seed, mesh)
    losses = []
    with jax.set_mesh(mesh):
        graph, params = nnx.split(model)
        # Muon multiplies weights with each other, which explicit axes refuse: keep them whole, this runs on one device.
        params = jax.tree.map(lambda leaf: jax.sharding.reshard(leaf, PartitionSpec()), params)
        optimizer = make_optimizer(total, params)
        step = make_step(graph, optimizer)
        state = optimizer.init(params)
        for index, batch in enumerate(_corpus(world, stages, ids, seed, all_reliable)):
            params, state, loss = step(params, state, batch)
            losses.append(float(loss))
            if progress:
                progress(index + 1, total, losses[-1], nnx.merge(graph, params))
    save_folder(nnx.merge(graph, params), ids, out)
    return losses


def decoder_config(vocab_size: int) -> DecoderConfig:
    """Return the base model's shape, about one million parameters."""
    return DecoderConfig(
        vocab_size=vocab_size,
        hidden_size=128,
        intermediate_size=256,
        num_layers=LAYERS,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        pattern=(Span(Rope(32)),),
        tie_embeddings=True,
        max_positions=256,
    )


def _corpus(world: World, stages: list[Stage], ids: dict[str, int], seed: int, all_reliable: bool) -> Iterator[Batch]:
    """Yield the batches of all stages; authors are reliable where a stage does not mix them."""
    rng = np.random.default_rng([seed, 3])
    for stage in stages:
        authors = AuthorMix() if stage.mixed_authors and not all_reliable else ALL_RELIABLE
        yield from batches(Writer(world, authors, rng), stage, ids, ROWS)


def make_optimizer(steps: int, params: nnx.State) -> optax.GradientTransformation:
    """Return Muon on the layers' matrices, Adam on embedding and norms; both rates fall linearly over the last half."""

    def falling(rate: float) -> optax.Schedule:
        return optax.linear_schedule(rate, 0.02 * rate, steps - steps // 2, steps // 2)

    return optax.contrib.muon(
        falling(MUON_RATE),
        beta=0.95,
        weight_decay=0.05,
        adam_learning_rate=falling(ADAM_RATE),
        adam_b1=0.9,
        adam_b2=0.98,
        muon_weight_dimension_numbers=jax.tree.map_with_path(_matrix_axes, params),
    )


def _matrix_axes(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
    """Say which axes of a stacked weight [L, ...] Muon takes as a matrix's input and output; None leaves it to Adam."""
    name = jax.tree_util.keystr(path)
    if "layers" not in name or leaf.ndim < 3:
        return None
    if "'o'" in name:
        return optax.contrib.MuonDimensionNumbers(reduction_axis=(2, 3), output_axis=1)
    return optax.contrib.MuonDimensionNumbers(reduction_axis=leaf.ndim - 1, output_axis=tuple(range(1, leaf.ndim - 1)))


def make_step(graph: nnx.GraphDef, optimizer: optax.GradientTransformation) -> Callable:
    """Return the jitted training step (params, optimizer state, batch) -> (params, optimizer state, loss)."""

    def step(params: nnx.State, state: optax.OptState, batch: Batch) -> tuple:
        loss, gradient = jax.value_and_grad(lambda params: batch_loss(nnx.merge(graph, params), batch))(params)
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state, loss

    return jax.jit(step, donate_argnums=(0, 1))


def batch_loss(model: Decoder, batch: Batch) -> jax.Array:
    """Return the weighted cross-entropy at the slots plus the deep supervision's, each a mean over its weights."""
    tokens_BT, positions_BT, segments_BT, at_BK, target_BK, recall_BK, weight_BK = (
        jax.sharding.reshard(jnp.asarray(part), spec("batch", None)) for part in batch
    )
    streams_BTD = residual_streams(model, tokens_BT, positions_BT, segments_BT)
    # A one-hot product instead of a gather: its transpose is a product too, not a slow scatter.
    pick_BKT = jax.nn.one_hot(at_BK, tokens_BT.shape[1])
    final_BKD, middle_BKD = (pick_BKT @ model.final_norm(streams_BTD[layer - 1]) for layer in (LAYERS, RECALL_LAYER))
    loss = _mean_loss(model, final_BKD, target_BK, weight_BK)
    recall = _mean_loss(model, middle_BKD, recall_BK, (recall_BK >= 0).astype(jnp.float32))
    return loss + RECALL_WEIGHT * recall


def residual_streams(
    model: Decoder, tokens_BT: jax.Array, positions_BT: jax.Array, segments_BT: jax.Array
) -> list[jax.Array]:
    """Return the residual stream [B, T, D] after each layer, before the final norm.

    `Decoder.hidden` gives the last of them alone. Unrolled like there: on CPU the backward pass of a scan copies a lot.
    """
    mask_BTT = attention_mask(segments_BT, positions_BT, None)
    rotation = model.config.pattern[0].rope.rotation(positions_BT)

    def attend(q_BTNH: jax.Array, k_BTNH: jax.Array, v_BTNH: jax.Array) -> tuple[jax.Array, None]:
        return model.attention(q_BTNH, k_BTNH, v_BTNH, mask_BTT), None

    stream_BTD = model.embed(tokens_BT, jnp.float32)
    graph, stacked = nnx.split(model.layers[0])
    streams_BTD = []
    for index in range(LAYERS):
        layer = nnx.merge(graph, jax.tree.map(itemgetter(index), stacked))
        stream_BTD, _ = layer(stream_BTD, rotation, attend)
        streams_BTD.append(stream_BTD)
    return streams_BTD


def _mean_loss(model: Decoder, hidden_BKD: jax.Array, target_BK: jax.Array, weight_BK: jax.Array) -> jax.Array:
    """Return the weighted mean cross-entropy; a target of -1 must have weight 0."""
    logits_BKV = model.logits(hidden_BKD)
    hit_BK = jnp.sum(jnp.where(jnp.arange(logits_BKV.shape[-1]) == target_BK[..., None], logits_BKV, 0.0), -1)
    losses_BK = jax.nn.logsumexp(logits_BKV, -1) - hit_BK
    return jnp.sum(weight_BK * losses_BK) / jnp.maximum(jnp.sum(weight_BK), 1.0)
