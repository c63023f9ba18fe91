"""What `jaxift plan` says of large models on TPU slices, and of what others measured on hardware.

    python acceptance/plan_table.py [ROWS ...] [--quick]

Needs the TPU compiler (`pip install jaxift[plan]`), no TPU. Each row is a model, a slice and a kind of work: scoring
5-shot questions (16,384 of about 120 tokens, 4 answers of a token, behind 8 prefixes of about 700), or tuning all
weights on packed texts of 2,048 tokens, `--tokens` (8,192) a device a step. `--quick` takes the first row alone.
Prints a Markdown table and ends with one line of JSON.
"""

import argparse
import datetime
import json
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np

from jaxift.config import StudyConfig
from jaxift.models.weights import check_config
from jaxift.parallel.peaks import GIB
from jaxift.planning import scored, topology, tuned
from jaxift.planning.choices import Result, Site
from jaxift.scoring.requests import TokenRequest
from jaxift.scoring.tree import build_tree
from jaxift.tuning.batches import Example, Plan
from jaxift.tuning.group import Job, Prepared
from jaxift.world import MODEL_DIR

CONFIGS = Path(__file__).resolve().parents[1] / "tests" / "models" / "configs"
ROWS = [
    (model, place, kind)
    for model, place in (
        ("llama-2-7b", "v5e:4x4"), ("mistral-7b-v0.1", "v6e:4x4"), ("qwen3-8b", "v6e:4x4"), ("llama-2-13b", "v5e:8x8"),
        ("llama-2-70b", "v5p:4x4x4"), ("llama-2-70b", "v5e:16x16"),
    )
    for kind in ("scoring", "tuning")
]  # fmt: skip
MEASURED = {
    ("llama-2-70b", "v5p:4x4x4", "tuning"): 65.4,
    ("llama-2-70b", "v5e:16x16", "tuning"): 57.0,
}
"""Of MaxText, per cent of the peak, in training on texts of 4,096 tokens (maxtext.readthedocs.io, "Optimized models
tiering": 512 chips of v5p; an older README of github.com/AI-Hypercomputer/maxtext: 256 of v5e)."""


def requests(rng: np.random.Generator) -> list[TokenRequest]:
    """Questions behind a few prefixes."""

    def text(mean: int) -> list[int]:
        return rng.integers(10, 400, rng.integers(int(0.7 * mean), int(1.3 * mean))).tolist()

    prefixes = [text(700) for _ in range(8)]
    return [TokenRequest((*prefixes[number % 8], *text(120)), ((4,), (5,), (6,), (7,))) for number in range(16384)]


def job(devices: int, tokens: int) -> Prepared:
    """Texts of 2,048 tokens, so many that every device has `tokens` a step, for ten steps."""
    batch = devices * tokens // 2048
    examples = [Example(tuple(range(10, 2058 + 1)), 1024)] * (10 * batch)
    return Prepared(Job("texts", []), Plan(examples, batch, 1, 0), np.ones(10), "", 0)


def site(model: str, place: str, folder: Path) -> Site:
    """A model of this shape, with the embedded model's tokenizer: what it makes of texts is not asked."""
    path = folder / model
    if not path.exists():
        shutil.copytree(MODEL_DIR, path, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
        shutil.copy(CONFIGS / f"{model}.json", path / "config.json")
    source = [{"path": "questions.jsonl"}]
    domain = {"name": "any"} | dict.fromkeys(("dev", "train", "homo", "id", "ood"), source)
    config = StudyConfig.model_validate(
        {"name": "plan", "model": {"path": str(path), "dtype": "bfloat16"}, "domains": [domain]}
    )
    return Site(config, topology.described(place), check_config(path))


def row(model: str, place: str, kind: str, found: list[Result], where: Site) -> dict:
    """A line of the table: the best of what was compiled."""
    fitting = [each for each in found if each.fits]
    if not fitting:
        [worst] = found
        over = max(each.total - (each.limit or 0) for each in worst.programs if not each.fits) / GIB
        return {"model": model, "slice": place, "work": kind, "fits": False, "over_gib": round(over, 2)}
    best = min(fitting, key=lambda each: each.times.pessimistic)
    program, (most, least) = best.programs[0], best.utilisation(where.topology)
    return {
        "model": model, "slice": place, "work": kind, "fits": True, "mesh": best.choice.mesh,
        "remat": best.choice.remat, "tokens": best.choice.tokens, "gib": round(program.total / GIB, 2),
        "compute": program.times.compute, "memory": program.times.memory, "network": program.times.network,
        "bound": program.times.bound, "optimistic": round(100 * most, 1), "pessimistic": round(100 * least, 1),
        "compile": round(sum(each.seconds for result in found for each in result.programs)),
        "measured": MEASURED.get((model, place, kind)),
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """Markdown."""
    columns = (
        "model", "slice", "work", "mesh", "recomputes", "tokens", "GiB a device", "compute, memory, network", "bound",
        "of peak, best to worst", "measured by others", "compiled",
    )  # fmt: skip
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for each in rows:
        start = f"| {each['model']} | {each['slice']} | {each['work']} |"
        if not each["fits"]:
            lines.append(f"{start} does not fit, {each['over_gib']} GiB too many | | | | | | | | |")
            continue
        parts = ", ".join(f"{each[name]:.3g}" for name in ("compute", "memory", "network"))
        measured = f"{each['measured']} %" if each["measured"] else ""
        lines.append(
            f"{start} {each['mesh']} | {each['remat']} | {each['tokens']:,} | {each['gib']} | {parts} s | "
            f"{each['bound']} | {each['optimistic']} to {each['pessimistic']} % | {measured} | {each['compile']} s |"
        )
    return "\n".join(lines)


def main() -> None:
    jax.config.update("jax_platforms", "cpu")  # the slices are described, not looked for
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", type=int, help="numbers of rows, from 0; default: all")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--compiled", type=int, default=1, help="of all ways that were found, how many are compiled")
    parser.add_argument("--tokens", type=int, default=8192, help="of a device in a step of tuning")
    given = parser.parse_args()
    chosen = [ROWS[0]] if given.quick else [ROWS[number] for number in given.rows or range(len(ROWS))]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model, place, kind in chosen:
            where = site(model, place, Path(folder))
            if kind == "scoring":
                tree = build_tree(requests(np.random.default_rng(0)))
                found = scored.search(where, tree, given.compiled)
            else:
                found = tuned.search(where, job(len(where.topology.devices), given.tokens), 1, given.compiled)
            rows.append(row(model, place, kind, found, where))
            print(json.dumps(rows[-1]), flush=True)
    stack = f"jax {jax.__version__}, {datetime.date.today()}"
    print(f"\n{table(rows)}\n")
    print(
        json.dumps(
            {
                "ratio": rows[0].get("pessimistic"),
                "baseline": "the chip's peak",
                "stack": stack,
                "dtype": "bfloat16",
                "rows": len(rows),
            }
        )
    )


if __name__ == "__main__":
    main()
