"""Models to mutate, and their parameters put together again in another way."""

import jax
import numpy as np
from flax import nnx
from parity_cases import TOLERANCE

from jaxift.models.decoder import abstract_decoder

MARGIN = 10 * TOLERANCE
"""What a wrong port differs by at least."""
REFERENCES = {
    "mistral": "mistral GQA untied yarn",
    "linear": "llama GQA tied linear",
    "llama3": "llama GQA untied llama3",
    "yarn": "llama GQA untied yarn",
    "yarn betas": "llama yarn with betas, mscale and no truncation",
    "longrope": "llama longrope, unscaled range",
    "llama biases": "llama attention and mlp bias, wide heads, theta 5e5",
    "qwen2": "qwen2 window from layer 1 on",
    "qwen3": "qwen3 MHA untied default",
    "gemma": "gemma MHA untied default",
    "gemma2": "gemma2 GQA tied linear",
    "gemma3": "gemma3_text pattern of three, two layers left",
    "olmo2": "olmo2 GQA tied linear",
    "phi3": "phi3 MQA untied, part of the head rotated",
    "neox": "gpt_neox MHA untied default",
    "neox sequential": "gpt_neox sequential residual",
}


def parameters(ours):
    """Path -> NumPy array of every parameter."""
    return {path: np.asarray(variable[...]) for path, variable in nnx.to_flat_state(nnx.state(ours.decoder))}


def rebuilt(ours, config, changed=None):
    """The same parameters, but for the `changed`, in a decoder of a config; what it does not have is left out."""
    values = parameters(ours) | (changed or {})
    graph, abstract = nnx.split(abstract_decoder(config, ours.mesh))

    def place(path, variable):
        layout = jax.NamedSharding(ours.mesh, variable.get_value().sharding.spec)
        return variable.replace(jax.device_put(np.ascontiguousarray(values[path]), layout))

    return nnx.merge(graph, nnx.map_state(place, abstract))
