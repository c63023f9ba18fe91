"""Writes a random Llama of a wanted size as a Hugging Face folder: bfloat16, several safetensors files, an index."""

import json
from pathlib import Path

import numpy as np

DATA_SEED = 0
SHAPES = {"full": {"num_hidden_layers": 20, "vocab_size": 32000}, "quick": {"num_hidden_layers": 2, "vocab_size": 4000}}


def config(size: str) -> dict:
    """TinyLlama's layer; 20 layers of it make 2.0 GB, 2 with a small vocabulary 0.2 GB."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 2048, "intermediate_size": 5632,
        "num_attention_heads": 32, "num_key_value_heads": 4, "head_dim": 64, "max_position_embeddings": 2048,
        "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", **SHAPES[size],
    }  # fmt: skip


def tensor_shapes(fields: dict) -> dict[str, tuple[int, ...]]:
    """Name -> shape of every tensor, in a checkpoint's usual order."""
    D, F, V = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    K = fields["num_key_value_heads"] * fields["head_dim"]
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (V, D)}
    for layer in range(fields["num_hidden_layers"]):
        own = {
            "input_layernorm": (D,), "mlp.down_proj": (D, F), "mlp.gate_proj": (F, D), "mlp.up_proj": (F, D),
            "post_attention_layernorm": (D,), "self_attn.k_proj": (K, D), "self_attn.o_proj": (D, D),
            "self_attn.q_proj": (D, D), "self_attn.v_proj": (K, D),
        }  # fmt: skip
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in own.items()}
    return {**shapes, "model.norm.weight": (D,), "lm_head.weight": (V, D)}


def write(folder: Path, size: str, files: int = 4) -> list[Path]:
    """Writes config, index and `files` weight files of about equal size; returns the weight files."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = config(size)
    (folder / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    shapes = tensor_shapes(fields)
    total = sum(2 * int(np.prod(shape)) for shape in shapes.values())
    groups: list[dict[str, tuple[int, ...]]] = [{} for _ in range(files)]
    done = 0
    for name, shape in shapes.items():
        groups[min(done * files // total, files - 1)][name] = shape
        done += 2 * int(np.prod(shape))
    names = [f"model-{number + 1:05d}-of-{files:05d}.safetensors" for number in range(files)]
    weight_map = {name: file for file, group in zip(names, groups, strict=True) for name in group}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    rng = np.random.default_rng(DATA_SEED)
    for file, group in zip(names, groups, strict=True):
        _write_file(folder / file, group, rng)
    return [folder / name for name in names]


def _write_file(path: Path, shapes: dict[str, tuple[int, ...]], rng: np.random.Generator) -> None:
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            bits = rng.integers(0, 1 << 16, int(np.prod(shape)), np.uint16)
            # sign and mantissa as drawn, exponents of numbers between 2^-7 and 2^-3
            file.write(((bits & 0x81FF) | 0x3C00).tobytes())
