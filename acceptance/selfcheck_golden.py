"""The golden log-probabilities of `jaxift selfcheck`, by a plain forward in NumPy float64, without a line of jaxift.

    python acceptance/selfcheck_golden.py            # compares the committed values with what it computes
    python acceptance/selfcheck_golden.py --write    # writes them, where the model or the requests have changed

One text after another, no cache, no batch: RMSNorm, rotary positions by halves, causal attention, SwiGLU, tied head.
The exit code is 1 where a committed value is off by more than 1e-9.
"""

import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from tokenizers import Tokenizer

PACKAGE = Path(__file__).resolve().parents[1] / "jaxift"
MODEL, GOLDEN = PACKAGE / "world" / "model", PACKAGE / "selfcheck" / "golden.json"


def main() -> int:
    told = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = golden(told["requests"])
    if "--write" in sys.argv[1:]:
        rows = [{**request, "logprobs": row} for request, row in zip(told["requests"], found, strict=True)]
        GOLDEN.write_text(json.dumps({"requests": rows}, indent=1) + "\n", encoding="utf-8")
        return 0
    off = max(
        float(np.abs(np.subtract(request["logprobs"], row)).max())
        for request, row in zip(told["requests"], found, strict=True)
    )
    print(f"{sum(map(len, found))} options, largest difference {off:.1e}")
    return int(off > 1e-9)


def golden(requests: list[dict]) -> list[list[float]]:
    """The log-probability of each option of each request."""
    config = json.loads((MODEL / "config.json").read_text())
    weights = {name: array.astype(np.float64) for name, array in load_file(MODEL / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    rows = []
    for request in requests:
        start = len(tokenizer.encode(request["context"]).ids)  # <bos> included
        row = []
        for option in request["options"]:
            ids = tokenizer.encode(request["context"] + option).ids
            logits = forward(config, weights, ids)
            shifted = logits - logits.max(-1, keepdims=True)
            logprobs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
            row.append(float(sum(logprobs[place - 1, ids[place]] for place in range(start, len(ids)))))
        rows.append(row)
    return rows


def forward(config: dict, weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    """Logits [T, V] of a Llama whose key heads are as many as its heads and whose head is its embedding."""
    heads, size, eps = config["num_attention_heads"], config["head_dim"], config["rms_norm_eps"]
    assert heads == config["num_key_value_heads"]
    assert config["tie_word_embeddings"]
    length = len(ids)
    angles = np.arange(length)[:, None] * config["rope_theta"] ** (-np.arange(0, size, 2) / size)
    mask = np.where(np.tri(length, dtype=bool), 0.0, -np.inf)
    x = weights["model.embed_tokens.weight"][ids]
    for layer in range(config["num_hidden_layers"]):
        w = {
            name.removeprefix(f"model.layers.{layer}.").removesuffix(".weight"): array
            for name, array in weights.items()
            if name.startswith(f"model.layers.{layer}.")
        }
        normed = rms_norm(x, w["input_layernorm"], eps)
        q, k, v = ((normed @ w[f"self_attn.{name}_proj"].T).reshape(length, heads, size) for name in "qkv")
        q, k = rotated(q, angles), rotated(k, angles)
        scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(size) + mask
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        shares /= shares.sum(-1, keepdims=True)
        x = x + np.einsum("hts,shd->thd", shares, v).reshape(length, -1) @ w["self_attn.o_proj"].T
        normed = rms_norm(x, w["post_attention_layernorm"], eps)
        gate = normed @ w["mlp.gate_proj"].T
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ w["mlp.up_proj"].T)) @ w["mlp.down_proj"].T
    return rms_norm(x, weights["model.norm.weight"], eps) @ weights["model.embed_tokens.weight"].T


def rms_norm(x: np.ndarray, scale: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * scale


def rotated(x: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """Each head's two halves turned against each other by the position's angles [T, D/2]."""
    cos, sin = (function(angles)[:, None, :] for function in (np.cos, np.sin))
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


if __name__ == "__main__":
    sys.exit(main())
