"""Rotary position embedding (Su et al. 2021) and the ways in which it is stretched to longer texts."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


@dataclasses.dataclass(frozen=True)
class Linear:
    """Positions divided by `factor` (Chen et al. 2023)."""

    factor: float

    def stretch(self, wavelengths: np.ndarray, theta: float) -> np.ndarray:
        """Frequencies [dim / 2] after scaling."""
        frequencies = 1 / wavelengths
        return frequencies / np.float32(self.factor)


@dataclasses.dataclass(frozen=True)
class Llama3:
    """Long wavelengths divided by `factor`, short ones kept, those between interpolated (Llama 3.1)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int

    def stretch(self, wavelengths: np.ndarray, theta: float) -> np.ndarray:
        """Frequencies [dim / 2] after scaling."""
        frequencies = 1 / wavelengths
        turns = self.original_max_positions * frequencies / (2 * math.pi)  # rotations over the original length
        kept = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        kept = np.clip(kept, 0.0, 1.0).astype(np.float32)
        return (1 - kept) * frequencies / np.float32(self.factor) + kept * frequencies


@dataclasses.dataclass(frozen=True)
class Yarn:
    """Frequencies interpolated by how often they turn, and attention scores raised (Peng et al. 2023)."""

    factor: float
    original_max_positions: int
    attention_factor: float
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True

    def stretch(self, wavelengths: np.ndarray, theta: float) -> np.ndarray:
        """Frequencies [dim / 2] after scaling."""
        frequencies = 1 / wavelengths
        half = len(frequencies)
        low, high = (self._index(turns, half, theta) for turns in (self.beta_fast, self.beta_slow))
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, 2 * half - 1)
        ramp = (np.arange(half, dtype=np.float32) - low) / (high - low if high != low else 0.001)
        divided = np.clip(ramp, 0, 1).astype(np.float32)
        return divided * frequencies / np.float32(self.factor) + (1 - divided) * frequencies

    def _index(self, turns: float, half: int, theta: float) -> float:
        """The (fractional) frequency that turns so many times over the original length."""
        return half * math.log(self.original_max_positions / (turns * 2 * math.pi)) / math.log(theta)


@dataclasses.dataclass(frozen=True)
class LongRope:
    """Each frequency divided by a factor of its own, and attention scores raised (Ding et al. 2024)."""

    factors: tuple[float, ...]
    attention_factor: float

    def stretch(self, wavelengths: np.ndarray, theta: float) -> np.ndarray:
        """Frequencies [dim / 2] after scaling."""
        return 1 / (np.array(self.factors, np.float32) * wavelengths)


@dataclasses.dataclass(frozen=True)
class Rope:
    """How positions turn the first `dim` dimensions of a head, halves against each other (Hugging Face layout)."""

    dim: int
    theta: float = 10000.0
    scaling: Linear | Llama3 | Yarn | LongRope | None = None

    def __post_init__(self) -> None:
        """Raises ValueError where dimensions cannot be turned in pairs."""
        if self.dim < 2 or self.dim % 2:
            raise ValueError(f"{self.dim} rotary dimensions cannot be turned in pairs")

    def frequencies(self) -> np.ndarray:
        """Radians a position, float32 [dim / 2]."""
        # powers in float64, rounded once: an ulp here is seen in the logits of long texts
        exponents = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        wavelengths = (np.float64(self.theta) ** exponents).astype(np.float32)
        return 1 / wavelengths if self.scaling is None else self.scaling.stretch(wavelengths, self.theta)

    def rotation(self, positions_BT: Int[Array, "B T"]) -> tuple[Float[Array, "B T R"], Float[Array, "B T R"]]:
        """Cosine and sine of every position's angles, R = dim / 2, times the attention factor where there is one."""
        # float32 angles: bfloat16 has 8 bits of mantissa and would turn position 257 into 256
        angles_BTR = positions_BT.astype(jnp.float32)[..., None] * self.frequencies()
        amplitude = getattr(self.scaling, "attention_factor", 1.0)
        return jnp.cos(angles_BTR) * amplitude, jnp.sin(angles_BTR) * amplitude


def rotate(
    x_BTNH: Float[Array, "B T N H"], rotation: tuple[Float[Array, "B T R"], Float[Array, "B T R"]]
) -> Float[Array, "B T N H"]:
    """Turns the first 2 R dimensions of each head by `Rope.rotation`; the others pass."""
    cos, sin = (part[:, :, None] for part in rotation)
    R, H = cos.shape[-1], x_BTNH.shape[-1]
    # cut before they are converted: the other way round TPUs move whole heads in float32 into another order
    *halves, rest = jnp.split(x_BTNH, [R, 2 * R], axis=-1)
    first, second = (half.astype(jnp.float32) for half in halves)
    turned = [(first * cos - second * sin).astype(rest.dtype), (second * cos + first * sin).astype(rest.dtype)]
    return jnp.concatenate(turned if H == 2 * R else [*turned, rest], axis=-1)


def yarn_attention_factor(factor: float, scale: float = 1.0) -> float:
    """YaRN's attention factor at a length factor (Peng et al. 2023, equation 22)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def longrope_attention_factor(factor: float, original_max_positions: int) -> float:
    """LongRoPE's attention factor at a length factor (Ding et al. 2024)."""
    return 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original_max_positions))
