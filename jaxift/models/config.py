"""Shape and constants of a decoder."""

import dataclasses
from typing import Literal

from jaxift.models.rope import Rope


@dataclasses.dataclass(frozen=True)
class Span:
    """What one layer's attention sees: everything before, or the last `window` positions; and its rotary embedding."""

    rope: Rope
    window: int | None = None


MATRICES = ("q", "k", "v", "o", "gate", "up", "down")
"""A layer's matrices, by the names that adapters are asked for."""


@dataclasses.dataclass(frozen=True)
class LoraShape:
    """Low-rank adapters in every layer: their rank, what their product is multiplied with, and the adapted matrices."""

    rank: int
    scale: float
    targets: tuple[str, ...] = MATRICES


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Shape and constants of a decoder; fields are named for what they do, not for the family that has them."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    pattern: tuple[Span, ...]
    """Attention of layer i is `pattern[i % len(pattern)]`."""
    max_positions: int = 2048
    tie_embeddings: bool = False
    norm: Literal["rms", "layer"] = "rms"
    norm_eps: float = 1e-5
    norm_unit_offset: bool = False
    """Norms multiply by 1 + scale."""
    norm_placement: Literal["before", "after", "around"] = "before"
    """Where attention and MLP are normalised: their input, their output, or both."""
    qk_norm: Literal["head", "all"] | None = None
    """Queries and keys normalised before rotation: each head by itself, or all heads together."""
    parallel_residual: bool = False
    """Attention and MLP read the same stream, and both are added to it."""
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    gated_mlp: bool = True
    activation: Literal["silu", "gelu", "gelu_tanh"] = "silu"
    embedding_scale: float | None = None
    query_scale: float | None = None
    """What attention scores are multiplied with; None: 1 / sqrt(head_dim)."""
    attention_soft_cap: float | None = None
    logit_soft_cap: float | None = None
    vocab_padding: int = 0
    """Rows added to embedding and head, so that they divide over a mesh; their logits are next to minus infinity."""
    lora: LoraShape | None = None
    """Adapters beside the layers' matrices."""
    family: str = "llama"
    """Whose tensor names its checkpoints use; the decoder does not look at it."""

    def __post_init__(self) -> None:
        """Raises ValueError where layers or heads cannot be grouped, or heads hold less than is rotated."""
        if not 0 < len(self.pattern) <= self.num_layers:
            raise ValueError(f"a pattern of {len(self.pattern)} does not fit into {self.num_layers} layers")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        rotated = max(span.rope.dim for span in self.pattern)
        if rotated > self.head_dim:
            raise ValueError(f"{rotated} rotary dimensions do not fit into head_dim {self.head_dim}")

    @property
    def groups(self) -> int:
        """How often the attention pattern is repeated in full; `remainder` layers follow."""
        return self.num_layers // len(self.pattern)

    @property
    def remainder(self) -> tuple[Span, ...]:
        """Attention of the layers after the last full pattern."""
        return self.pattern[: self.num_layers % len(self.pattern)]

    @property
    def attention_scale(self) -> float:
        """What attention scores are multiplied with before the softmax."""
        return self.head_dim**-0.5 if self.query_scale is None else self.query_scale
