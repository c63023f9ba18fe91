"""All tensors of a model folder: from its one safetensors file, or from several by their index."""

import collections
import json
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from jaxift.errors import UserError
from jaxift.models.files.safetensors_file import Tensor, read_header
from jaxift.models.files.storage import Storage, read

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = f"{WEIGHTS_FILE}.index.json"
_PICKLES = (".bin", ".pt", ".pth", ".ckpt")
_SHOWN = 5


def told(problems: list[str]) -> str:
    """Problems in one line, the first few in full."""
    rest = len(problems) - _SHOWN
    return "; ".join(problems[:_SHOWN]) + (f"; and {rest} more" if rest > 0 else "")


def weights_file(storage: Storage) -> str:
    """The file that tells which tensors there are: the only one, or the index of several.

    Raises UserError where there is neither, and says how to convert a pickle.
    """
    names = storage.sizes()
    for name in (WEIGHTS_FILE, INDEX_FILE):
        if names.get(name, -1) >= 0:
            return name
    raise UserError(f"{storage.where('').rstrip('/')}: {absent(names)}")


def absent(names: Iterable[str]) -> str:
    """What to tell of a folder of these files, none of which are weights that can be read."""
    shards = sorted(name for name in names if name.startswith("model-") and name.endswith(".safetensors"))
    if shards:
        return f"holds {shards[0]} but not {INDEX_FILE}, which tells what is where; copy it too"
    pickles = sorted(name for name in names if name.endswith(_PICKLES))
    if pickles:
        return (
            f"{pickles[0]} is a pickle, which can run code and is not loaded; convert it once, where you trust it: "
            "AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(DIR, safe_serialization=True)"
        )
    quantised = sorted(name for name in names if name.endswith(".gguf"))
    if quantised:
        return f"{quantised[0]} is GGUF, which is not read; give the model's safetensors in place of it"
    return f"holds no {WEIGHTS_FILE}; give a Hugging Face model folder"


def read_tensors(storage: Storage) -> dict[str, Tensor]:
    """Every tensor of the folder by its name there, from headers alone.

    Raises UserError where a file is damaged, or where index and files disagree; disagreements are told together.
    """
    name = weights_file(storage)
    if name == WEIGHTS_FILE:
        return read_header(storage, name)
    where, weight_map = storage.where(name), _weight_map(storage)
    files = sorted(set(weight_map.values()))
    sizes = storage.sizes()
    lacking = [f"{file} is absent" for file in files if sizes.get(file, -1) < 0]
    if lacking:
        raise UserError(f"{where}: {told(lacking)}; copy all files of the model")
    with ThreadPoolExecutor(storage.workers) as pool:
        headers = dict(zip(files, pool.map(lambda file: read_header(storage, file), files), strict=True))
    problems = _disagreements(weight_map, headers)
    if problems:
        raise UserError(f"{where}: {told(problems)}; copy all files of the model again")
    return {tensor: headers[file][tensor] for tensor, file in weight_map.items()}


def _weight_map(storage: Storage) -> dict[str, str]:
    """The index's map from tensor to file; raises UserError unless each is a plain file name."""
    where = storage.where(INDEX_FILE)
    try:
        index = json.loads(read(storage, INDEX_FILE, 0, storage.sizes()[INDEX_FILE]).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON: {error}; copy the file again") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UserError(f"{where}: has no weight_map; copy the file again")
    # a name with a folder in it could lead out of the model's own
    problems = [
        f"tensor {tensor} lies in {file!r}, which is not a safetensors file of this folder"
        for tensor, file in weight_map.items()
        if not isinstance(file, str) or not file.endswith(".safetensors") or set(file) & set("/\\:\0")
    ]
    if problems:
        raise UserError(f"{where}: {told(problems)}; use the index that came with the model")
    return weight_map


def _disagreements(weight_map: Mapping[str, str], headers: Mapping[str, Mapping[str, Tensor]]) -> list[str]:
    """Tensors that the index finds where they are not, that it does not know, and that two files hold."""
    holders = collections.defaultdict(list)
    for file, tensors in headers.items():
        for tensor in tensors:
            holders[tensor].append(file)
    return [
        *(f"tensor {name} is not in {file}" for name, file in weight_map.items() if name not in headers[file]),
        *(f"tensor {name} of {files[0]} is not listed" for name, files in holders.items() if name not in weight_map),
        *(f"tensor {name} is in {' and in '.join(files)}" for name, files in holders.items() if len(files) > 1),
    ]
