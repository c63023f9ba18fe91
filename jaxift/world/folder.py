"""Writes a base model as a Hugging Face folder: config, weights, word-level tokenizer."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing

from jaxift.models.config import DecoderConfig
from jaxift.models.decoder import Decoder
from jaxift.models.export import write_weights
from jaxift.world.words import SPECIALS


def save_folder(decoder: Decoder, ids: dict[str, int], out: Path) -> None:
    """Write config, weights and tokenizer into the folder `out`, which `transformers` loads."""
    out.mkdir(parents=True, exist_ok=True)
    write_weights(decoder, out)
    save_tokenizer(ids, out)
    (out / "config.json").write_text(json.dumps(hf_config(decoder.config, ids), indent=2) + "\n", encoding="utf-8")


def save_tokenizer(ids: dict[str, int], out: Path) -> None:
    """Write the word-level tokenizer: one token a word, split at whitespace, `<bos>` before the first."""
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    tokenizer.post_processor = TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])])
    tokenizer.add_special_tokens(list(SPECIALS))
    tokenizer.save(str(out / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>",
        "unk_token": "<unk>", "model_max_length": 256, "clean_up_tokenization_spaces": False,
    }  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def hf_config(config: DecoderConfig, ids: dict[str, int]) -> dict[str, object]:
    """Describe the model as a Hugging Face Llama."""
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size, "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads, "head_dim": config.head_dim, "hidden_act": "silu",
        "max_position_embeddings": config.max_positions, "rope_theta": config.pattern[0].rope.theta,
        "rope_scaling": None, "rms_norm_eps": config.norm_eps, "tie_word_embeddings": config.tie_embeddings,
        "attention_bias": False, "mlp_bias": False, "torch_dtype": "float32", "pad_token_id": ids["<pad>"],
        "bos_token_id": ids["<bos>"], "eos_token_id": ids["<eos>"],
    }  # fmt: skip
