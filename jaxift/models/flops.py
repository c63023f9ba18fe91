"""How much arithmetic a forward pass is: counted from the shapes, since compilers count a loop's body once."""

import collections
from collections.abc import Callable, Sequence

from jaxift.models.config import DecoderConfig


def token_flops(config: DecoderConfig) -> int:
    """Floating-point operations of one token in all layers' matrices, attention's products and the LM head left out."""
    D, F, N, K, H = (
        config.hidden_size,
        config.intermediate_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
    )
    matrices = 2 * D * N * H + 2 * D * K * H + (3 if config.gated_mlp else 2) * D * F
    return 2 * matrices * config.num_layers


def pair_flops(config: DecoderConfig) -> int:
    """Operations of one query and key in all heads of one layer: the score, and the value that it weighs."""
    return 4 * config.num_heads * config.head_dim


def attention_flops(config: DecoderConfig, pairs: Callable[[int | None], int]) -> int:
    """Operations of attention in all layers, from the query-key pairs that a layer with such a window has."""
    windows = collections.Counter(
        config.pattern[layer % len(config.pattern)].window for layer in range(config.num_layers)
    )
    return pair_flops(config) * sum(layers * pairs(window) for window, layers in windows.items())


def head_flops(config: DecoderConfig) -> int:
    """Operations of the LM head at one place."""
    return 2 * config.hidden_size * config.vocab_size


def tuning_flops(config: DecoderConfig, lengths: Sequence[int], scored: int) -> int:
    """Operations of a forward and a backward pass over texts of these lengths, of which so many tokens are scored.

    A backward pass takes twice a forward pass; with adapters once and a little, which is not counted.
    """

    def pairs(window: int | None) -> int:
        inside = (min(length, window or length) for length in lengths)
        return sum(
            near * (near + 1) // 2 + (length - near) * near for near, length in zip(inside, lengths, strict=True)
        )

    passes = 3 if config.lora is None else 2
    forward = token_flops(config) * sum(lengths) + attention_flops(config, pairs) + head_flops(config) * scored
    return passes * forward
