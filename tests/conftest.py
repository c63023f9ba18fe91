"""What every test shares: eight CPU devices, no network, checked shapes, and a tiny model written to a folder."""

import json
import os
from pathlib import Path

# before anything imports JAX or transformers
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import jax
import jaxtyping
import pytest
from hypothesis import settings

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# shape annotations are checked under pytest alone
jaxtyping.install_import_hook(["jaxift.models", "jaxift.scoring", "jaxift.tuning"], "beartype.beartype")

# the same cases on every machine and run; a compilation takes longer than hypothesis' deadline
settings.register_profile("jaxift", deadline=None, derandomize=True, database=None)
settings.load_profile("jaxift")


def pytest_configure(config):
    # flax annotates its State with typing.Hashable, which beartype finds old-fashioned
    config.addinivalue_line("filterwarnings", "ignore::beartype.roar.BeartypeDecorHintPep585DeprecationWarning")


SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
MESHES = {"1x1x1": (1, 1, 1), "8x1x1": (8, 1, 1), "4x1x2": (4, 1, 2), "2x2x2": (2, 2, 2)}
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


@pytest.fixture(scope="session")
def make_folder():
    """Writes a randomly initialised tiny Llama as a Hugging Face folder: (path, seed, tokenizer options, config fields)."""

    def make(folder, *, seed=0, adds_bos=True, eos="<eos>", **fields):
        from jaxift.models.decoder import init_decoder
        from jaxift.models.families import decoder_config
        from jaxift.models.weights import export
        from jaxift.parallel.mesh import make_mesh

        folder.mkdir(parents=True, exist_ok=True)
        config = {**TINY, **fields}
        (folder / "config.json").write_text(json.dumps(config))
        write_tokenizer(folder, adds_bos=adds_bos, eos=eos)
        return export(init_decoder(decoder_config(config, "tiny"), seed, make_mesh()), folder, source=folder)

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
