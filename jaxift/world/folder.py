"""Writes a base model as a Hugging Face folder: config, weights, word-level tokenizer."""

import json
from pathlib import Path

import jax
import numpy as np
from safetensors.numpy import save_file

from jaxift.models.decoder import Decoder

def save_folder(model, ids, out):
    out.mkdir(parents=True, exist_ok=True)
