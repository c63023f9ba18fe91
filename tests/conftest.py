"""What every test shares: eight CPU devices, no network, checked shapes, and a tiny model written to a folder."""

import gc
import json
import os
import subprocess
from pathlib import Path

# before anything imports JAX or transformers
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # nothing outside the test's folders

import jax
import jaxtyping
import pytest
from hypothesis import settings

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# shape annotations are checked under pytest alone
jaxtyping.install_import_hook(["jaxift.models", "jaxift.scoring", "jaxift.tuning"], "beartype.beartype")

# tracing makes many objects that live long: the collector, which looks at them again and again, takes 6 % of the time
gc.set_threshold(100_000, 50, 100)

# the same cases on every machine and run; a compilation takes longer than hypothesis' deadline
settings.register_profile("jaxift", deadline=None, derandomize=True, database=None)
settings.load_profile("jaxift")


def pytest_configure(config):
    # flax annotates its State with typing.Hashable, which beartype finds old-fashioned
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MESHES = {"1x1x1": (1, 1, 1), "1x1x2": (1, 1, 2), "8x1x1": (8, 1, 1), "4x1x2": (4, 1, 2), "2x2x2": (2, 2, 2)}
SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = (*"ABCDE", *"0123456789", *(f"w{number}" for number in range(45)))
TINY = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
    "max_position_embeddings": 64, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32",
}  # fmt: skip


def write_tokenizer(folder, *, adds_bos=True, eos="<eos>"):
    """A word-level tokenizer over SPECIALS and WORDS, 64 tokens, split at whitespace."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing

    ids = {word: index for index, word in enumerate((*SPECIALS, *WORDS))}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if adds_bos:
        tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"pad_token": "<pad>", "bos_token": "<bos>", "unk_token": "<unk>"} | ({"eos_token": eos} if eos else {})
    fields = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named}
    (folder / "tokenizer_config.json").write_text(json.dumps(fields))


def write_weights(folder, config, seed, dtype="float32"):
    """Random weights under their Hugging Face names; no norm or bias is neutral, so that a forgotten one shows."""
    import ml_dtypes
    import numpy as np
    from safetensors.numpy import save_file

    from jaxift.models.families import weight_table

    rng, tensors = np.random.default_rng(seed), {}
    dtype = np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)
    for path, weight in weight_table(config).items():
        for name in weight.names:
            if name in tensors:
                continue  # a fused tensor of several parameters
            # Gemma's norms scale by 1 + w
            low, high = (-0.5, 0.5) if config.norm_unit_offset else (0.5, 1.5)
            values = rng.uniform(low, high, weight.shape) if "scale" in path else rng.normal(0, 0.2, weight.shape)
            tensors[name] = values.astype(dtype)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="session")
def make_folder():
    """Writes a random tiny model, by default a Llama, as a Hugging Face folder; keywords replace fields of its config.

    A field set to ... is left out.
    """

    def make(folder, *, seed=0, adds_bos=True, eos="<eos>", dtype="float32", **fields):
        from jaxift.models.families import decoder_config

        folder.mkdir(parents=True, exist_ok=True)
        config = {name: value for name, value in {**TINY, "torch_dtype": dtype, **fields}.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(config))
        write_tokenizer(folder, adds_bos=adds_bos, eos=eos)
        write_weights(folder, decoder_config(config, "tiny"), seed, dtype)
        return folder

    return make


@pytest.fixture(scope="session")
def tiny_folder(make_folder, tmp_path_factory):
    """One tiny model folder that no test writes to."""
    return make_folder(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_model(tiny_folder):
    """The tiny model on one device."""
    import jaxift

    return jaxift.load(tiny_folder)


@pytest.fixture(scope="session")
def meshes():
    """Name -> a mesh (data x fsdp x tensor) of up to eight CPU devices."""
    from jaxift.parallel.mesh import make_mesh

    return {name: make_mesh(*shape) for name, shape in MESHES.items()}


@pytest.fixture(scope="session")
def shared_data():
    """The folder of real questions and models that tests use where it is at hand."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"{SHARED_DATA} is absent")
    return SHARED_DATA


@pytest.fixture(scope="session")
def smollm2_folder(tmp_path_factory):
    """SmolLM2-135M-Instruct as a Hugging Face folder: named by the environment, or made by a tool."""
    given = os.environ.get("JAXIFT_SMOLLM2")
    folder = Path(given) if given else tmp_path_factory.mktemp("smollm2") / "model"
    tool = Path(__file__).resolve().parents[2] / "shared" / "tools" / "get_smollm2"
    if not (folder / "model.safetensors").is_file():
        if not tool.is_file():
            pytest.skip(f"{folder} holds no model (set JAXIFT_SMOLLM2) and {tool} is absent")
        done = subprocess.run([str(tool), str(folder)], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{tool} failed: {done.stderr.strip()[-200:]}")
    return folder


@pytest.fixture(scope="session")
def make_torch():
    """Writes a random torch model of a family (a `model_type`) as transformers does, with a tokenizer, and returns it.

    Wide weights (initializer_range 0.1), biases that are not zero and norm scales that are not neutral: with the usual
    initialisation a wrong port passes.
    """
    torch = pytest.importorskip("torch", reason="torch is not installed; parity needs it")
    import transformers

    def make(folder, family="llama", *, seed=0, **fields):
        config = transformers.AutoConfig.for_model(family, initializer_range=0.1, **fields)
        multimodal = family == "gemma3"
        model_type = transformers.AutoModelForImageTextToText if multimodal else transformers.AutoModelForCausalLM
        torch.manual_seed(seed)
        model = model_type.from_config(config, attn_implementation="eager").eval()
        # Gemma's norms scale by 1 + w
        low, high = (-0.5, 0.5) if family.startswith("gemma") else (0.5, 1.5)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.1)
                elif "norm" in name:
                    parameter.uniform_(low, high)
        model.save_pretrained(folder)
        write_tokenizer(folder)
        return model

    return make


@pytest.fixture(scope="session")
def all_logits():
    """Logits of every position of a decoder: (decoder, mesh, tokens [B, T], ...) -> NumPy [B, T, V].

    A test that changes the decoder's code names its `program`, so that it is not answered by the unchanged one.
    """
    import functools

    import numpy as np
    from flax import nnx

    from jaxift.parallel.mesh import sharding

    @functools.partial(jax.jit, static_argnames=("graph", "dtype", "program"))
    def forward(graph, state, tokens, positions, segments, dtype, program):
        decoder = nnx.merge(graph, state)
        return decoder.logits(decoder.hidden(tokens, positions, segments, dtype=dtype))

    def run(decoder, mesh, tokens, segments=None, positions=None, dtype=np.float32, program="as it is"):
        tokens = np.asarray(tokens, np.int32)
        segments = np.ones_like(tokens) if segments is None else segments
        positions = np.broadcast_to(np.arange(tokens.shape[1]), tokens.shape) if positions is None else positions
        hosted = [np.asarray(x, np.int32) for x in (tokens, positions, segments)]
        arrays = jax.device_put(hosted, sharding(mesh, "batch", None))
        with jax.set_mesh(mesh), jax.default_matmul_precision("highest"):
            return np.asarray(forward(*nnx.split(decoder), *arrays, np.dtype(dtype), program))

    return run
