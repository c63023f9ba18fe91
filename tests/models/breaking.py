"""Changes to a copy of a model folder: functions of the folder."""

import json

from safetensors.numpy import load_file, save_file


def configured(**fields):
    """Changes fields of config.json; a field set to ... is removed."""

    def change(folder):
        path = folder / "config.json"
        config = {**json.loads(path.read_text()), **fields}
        path.write_text(json.dumps({name: value for name, value in config.items() if value is not ...}))

    return change


def reweighed(edit):
    """Changes the dictionary of tensors."""

    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        edit(tensors)
        save_file(tensors, folder / "model.safetensors")

    return change
