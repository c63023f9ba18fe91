"""Published configs at full size: parameter counts, tensor names and layout, without any weights."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

from jaxift.models.decoder import abstract_decoder
from jaxift.models.families import decoder_config, normal_name, weight_table
from jaxift.parallel.mesh import make_mesh

CONFIGS = Path(__file__).parent / "configs"
# Of Gemma 3 27B the text decoder, without its vision tower and projector.
PARAMETERS = {
    "gemma-2-9b": 9_241_705_984,
    "gemma-3-1b": 999_885_952,
    "gemma-3-27b": 27_009_346_304,
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.2-1b": 1_235_814_400,
    "mistral-7b-v0.1": 7_241_732_096,
    "olmo-2-7b": 7_298_617_344,
    "phi-3-mini-4k": 3_821_079_552,
    "pythia-12b": 11_846_072_320,
    "qwen2.5-7b": 7_615_616_512,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
}
MESHES = {"fsdp 8": (1, 8, 1), "fsdp 4 x tensor 2": (1, 4, 2), "tensor 8": (1, 1, 8)}
# Heads that cannot be dealt out evenly: 28 query and 4 key heads over 8, 4 query heads and 1 key head over 2 or 8.
INDIVISIBLE = {("qwen2.5-7b", "tensor 8"), ("gemma-3-1b", "fsdp 4 x tensor 2"), ("gemma-3-1b", "tensor 8")}
MATRICES = {"embedding", "head", "q", "k", "v", "o", "gate", "up", "down"}


def published(name):
    return json.loads((CONFIGS / f"{name}.json").read_text())


def shapes(config, mesh):
    """Path -> shape with sharding of every parameter."""
    state = nnx.state(abstract_decoder(config, mesh))
    return {path: variable.get_value() for path, variable in nnx.to_flat_state(state)}


def test_every_config_has_a_count():
    assert {path.stem for path in CONFIGS.glob("*.json")} == set(PARAMETERS)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("name", PARAMETERS)
def test_real_size_is_laid_out_over_eight_devices(name, mesh):
    config = decoder_config(published(name), name)
    if (name, mesh) in INDIVISIBLE:
        tensor = MESHES[mesh][2]
        assert config.num_kv_heads % tensor
        with pytest.raises(ValueError, match="divi"):
            shapes(config, make_mesh(*MESHES[mesh]))
        return
    found = shapes(config, make_mesh(*MESHES[mesh]))
    assert sum(math.prod(leaf.shape) for leaf in found.values()) == PARAMETERS[name]
    matrices = {path: leaf for path, leaf in found.items() if path[-1] in MATRICES}
    # all but the norms and biases is matrices
    assert sum(math.prod(leaf.shape) for leaf in matrices.values()) > 0.999 * PARAMETERS[name]
    for path, leaf in matrices.items():
        assert math.prod(leaf.sharding.shard_shape(leaf.shape)) * 8 == math.prod(leaf.shape), path


@pytest.mark.parametrize("name", PARAMETERS)
def test_tensors_are_those_of_transformers(name):
    torch = pytest.importorskip("torch", reason="torch is not installed; parity needs it")
    import transformers

    hf = published(name)
    config = transformers.AutoConfig.for_model(**hf)
    text_only = hf["model_type"] != "gemma3"
    model_type = transformers.AutoModelForCausalLM if text_only else transformers.AutoModelForImageTextToText
    with torch.device("meta"):
        tensors = model_type.from_config(config).state_dict()
    if hf["model_type"] == "gpt_neox":  # its name on disk
        tensors["embed_out.weight"] = tensors.pop("lm_head.weight")
    theirs = {normal_name(tensor, hf): tuple(value.shape) for tensor, value in tensors.items()}
    ours = decoder_config(hf, name)
    theirs = {tensor: shape for tensor, shape in theirs.items() if tensor}
    if ours.tie_embeddings:
        del theirs["lm_head.weight"]
    table = weight_table(ours).values()
    assert {tensor: weight.shape for weight in table for tensor in weight.names} == theirs
    # parameters that share a tensor take all of it
    taken = dict.fromkeys(theirs, 0)
    for weight in table:
        for tensor in weight.names:
            taken[tensor] += weight.ours(np.broadcast_to(np.int8(0), weight.shape)).size
    assert taken == {tensor: math.prod(shape) for tensor, shape in theirs.items()}
