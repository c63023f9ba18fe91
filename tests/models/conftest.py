"""Comparison of logits with torch, and a table of how near each family came to it at the end of a run."""

import numpy as np
import pytest
from parity_cases import named
from rebuilding import REFERENCES

import jaxift

NOTES = pytest.StashKey[dict[str, list[float]]]()


@pytest.fixture(scope="session")
def note_difference(pytestconfig):
    """Keeps a family's largest |Δlogit| of one case for the table at the end of the run."""
    notes = pytestconfig.stash.setdefault(NOTES, {})

    def note(family, difference):
        notes.setdefault(family, []).append(float(difference))

    return note


@pytest.fixture(scope="session")
def torch_logits():
    """Logits of every position of a torch model: (model, tokens [B, T]) -> NumPy float32 [B, T, V]."""
    torch = pytest.importorskip("torch", reason="torch is not installed; parity needs it")

    def run(model, tokens):
        with torch.no_grad():
            return model(input_ids=torch.tensor(np.asarray(tokens))).logits.float().numpy()

    return run


@pytest.fixture(scope="session")
def difference(torch_logits, all_logits):
    """Largest absolute difference of logits: (torch model, decoder, mesh, length) -> float."""

    def measure(model, decoder, mesh, length=128, **options):
        vocabulary = decoder.config.vocab_size
        tokens = np.random.default_rng(1).integers(4, vocabulary, (256 // length or 1, length))
        found = all_logits(decoder, mesh, tokens, **options)[..., :vocabulary]
        return np.abs(torch_logits(model, tokens) - found).max()

    return measure


@pytest.fixture(scope="session")
def reference(make_torch, tmp_path_factory):
    """Name in REFERENCES -> (torch model, ours, length), each built once."""
    known = {}

    def get(name):
        if name not in known:
            case, folder = named(REFERENCES[name]), tmp_path_factory.mktemp("reference")
            model = make_torch(folder, case.family, **case.fields)
            known[name] = model, jaxift.load(folder, max_positions=case.max_positions), case.length
        return known[name]

    return get


def pytest_terminal_summary(terminalreporter, config):
    notes = config.stash.get(NOTES, {})
    if notes:
        terminalreporter.section("parity with torch: largest |Δlogit|, float32")
        terminalreporter.write_line("| family | cases | max \\|Δlogit\\| |\n|---|---:|---:|")
        for family, differences in notes.items():
            terminalreporter.write_line(f"| {family} | {len(differences)} | {max(differences):.1e} |")
