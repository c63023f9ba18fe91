"""How fast models are tuned, beside TRL's SFTTrainer, and many cells in one program beside one after another.

    python benchmarks/tuning.py throughput --model DIR --data DATA [--set study alpaca] [--steps 6] [--quick]
    python benchmarks/tuning.py cells [--quick]

`throughput`: full fine-tuning in float32 of one model on 960 (prompt, response) pairs, the loss on responses alone, in
batches of 16; the first steps of it, after one that is not timed, in turns: TRL with padding (its default) and with
packing, each at the settings that were its best (see trl_baseline.py), and ours. Tokens are those of the examples, each
counted once; compiling and loading do not count.
Sets: `study` are multiple-choice questions in the study's own conversation with letter and option as answer, `alpaca`
are general instructions with long answers. Efficiency: useful FLOPs (of those tokens, no padding, no recomputation) a
second, over those of 2048-cubed matmuls in this process (median of 5 before and after each turn).

`cells`: the demo's cells of one seed, tuned and evaluated end to end with what that needs of starting, loading and
compiling: a process each, one after another in one process, and all in one program; each way with a cache of programs
of its own that is empty before. The last line is JSON.
"""

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import jaxift
from jaxift.config import TuneConfig
from jaxift.data.prompts import instruction_prompt, response
from jaxift.data.questions import Question
from jaxift.models.flops import tuning_flops
from jaxift.tuning.loop import Job, plan_waves
from jaxift.tuning.watch import Watch

HERE = Path(__file__).parent
BATCH = 16
PAIRS = 960
"""What a run is to go through, of which the first steps are timed."""
TRL = {
    "padding": ["--micro-batch", "2", "--optimizer", "adamw_torch_fused"],
    "packing": ["--micro-batch", "1", "--length", "512", "--optimizer", "adamw_torch_fused"],
}
"""What was fastest for short examples on two cores, among micro-batches of 1 to 16 and packs of 128 to 1024 tokens; its
trainer scores every position, and computes the logits again in the backward pass, which no setting changes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("throughput", "cells"))
    parser.add_argument("--model", help="a Hugging Face folder")
    parser.add_argument("--data", type=Path, help="the folder with arc/ and instructions/")
    parser.add_argument("--set", nargs="+", choices=("study", "alpaca"), default=["study", "alpaca"])
    parser.add_argument("--steps", type=int, default=6, help="optimizer steps of a turn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--alone", action="store_true", help="without TRL")
    parser.add_argument("--quick", action="store_true", help="one short turn; fewer cells")
    options = parser.parse_args()
    if options.quick:
        options.steps, options.rounds = 2, 1
    found = throughput(options) if options.what == "throughput" else cells(options)
    stack = {name: metadata.version(name) for name in ("jax", "flax")}
    print(
        json.dumps({**found, "stack": stack, "dtype": options.dtype, "cores": os.cpu_count(), "quick": options.quick})
    )


def pairs_of(name: str, data: Path, count: int) -> list[tuple[str, str]]:
    """(prompt, response) pairs of a set."""
    if name == "alpaca":
        rows = json.loads((data / "instructions" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
        return [("\n".join(filter(None, (row["instruction"], row["input"]))) + "\n", row["output"]) for row in rows][
            :count
        ]
    lines = (data / "arc" / "arc_easy_train.jsonl").read_text(encoding="utf-8").splitlines()
    found = []
    for row in map(json.loads, lines):
        if len(row["choices"]) == 4:
            question = Question(row["id"], row["question"], tuple(row["choices"]), row["answer"])
            prompt = instruction_prompt("paper", "science", question)
            found.append((prompt, response("paper", question, question.answer, "letter_and_option")))
    return found[:count]


def throughput(options: argparse.Namespace) -> dict[str, Any]:
    model = jaxift.load(options.model, dtype=options.dtype, param_dtype="float32")
    sets = {}
    for name in options.set:
        sets[name] = measure(options, model, name)
        print(name, json.dumps(sets[name], indent=1), flush=True)
    worst = {
        key: min((each[key] for each in sets.values() if each.get(key)), default=None)
        for key in ("packing_ratio", "padding_ratio", "efficiency")
    }
    return {"benchmark": "tuning", "ratio": worst["packing_ratio"], "baseline": "TRL SFTTrainer, packing", **worst,
            "sets": sets}  # fmt: skip


def measure(options: argparse.Namespace, model: Any, name: str) -> dict[str, Any]:
    pairs = pairs_of(name, options.data, PAIRS)
    longest = max(len(model.tokenizer.encode(prompt + answer)) + 2 for prompt, answer in pairs)
    turns: dict[str, list[dict[str, Any]]] = {"ours": [], "padding": [], "packing": []}
    matmul = []
    with tempfile.NamedTemporaryFile("w", suffix=".jsonl", encoding="utf-8") as file:
        file.writelines(json.dumps({"prompt": prompt, "response": answer}) + "\n" for prompt, answer in pairs)
        file.flush()
        for _ in range(options.rounds):
            for mode in () if options.alone else ("padding", "packing"):
                turns[mode].append(trl(options, name, mode, file.name, longest))
            matmul += matmul_flops()
            turns["ours"].append(ours(options, model, pairs))
            matmul += matmul_flops()
    speeds = {way: [each["tokens_per_second"] for each in found] for way, found in turns.items() if found}
    flops, best = statistics.median(each["flops"] for each in turns["ours"]), statistics.median(matmul)
    last = turns["ours"][-1]
    return {
        "pairs": len(pairs),
        "tokens_per_second": {way: statistics.median(found) for way, found in speeds.items()},
        "by_turn": speeds,
        **{
            f"{way}_ratio": statistics.median(speeds["ours"]) / statistics.median(found)
            for way, found in speeds.items()
            if way != "ours"
        },
        "efficiency": flops / best,
        "matmul_gflops": best / 1e9,
        "useful_gflops": flops / 1e9,
        "useful_places": last["useful_places"],
        "shape": last["shape"],
        "memory": last["memory"],
        "losses": {way: found[-1]["losses"] for way, found in turns.items() if found},
        "peak_rss_mib": {way: found[-1]["peak_rss_mib"] for way, found in turns.items() if found and way != "ours"},
    }


def ours(options: argparse.Namespace, model: Any, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """The first steps of a run of one epoch over all pairs, of which the very first is not counted."""
    config = TuneConfig(learning_rate=1e-5, epochs=1, batch_size=BATCH, warmup=0.03)
    [wave] = plan_waves(model, [Job("one", pairs, config)])
    clock, shape, plan = Clock(options.steps + 1), wave.group.shape, wave.members[0].plan
    with contextlib.suppress(EOFError):
        wave.execute(clock)
    # steps are told when the next one is dispatched: between two tellings lies one step
    steps = [[plan.examples[index] for index in plan.members(step)] for step in range(1, options.steps + 1)]
    taken = clock.told[-1] - clock.told[0]
    examples = [example for step in steps for example in step]
    tokens = sum(example.fed for example in examples)
    parts = sum(plan.batch(step, shape, packing=True).micro for step in range(1, options.steps + 1))
    scored = sum(example.scored for example in examples)
    return {
        "tokens_per_second": tokens / taken,
        "flops": tuning_flops(model.config, [example.fed for example in examples], scored) / taken,
        "losses": clock.losses,
        "useful_places": tokens / (parts * shape.rows * shape.length),
        "shape": {"micro": shape.micro, "rows": shape.rows, "length": shape.length, "slots": shape.slots},
        "memory": wave.memory.told,
        "peak_rss_mib": None,
    }


class Clock(Watch):
    """When each step was told; ends the run after so many, by EOFError."""

    def __init__(self, steps: int):
        self.steps, self.told, self.losses = steps, [], []

    def step(self, name: str, metrics: dict[str, float]) -> None:
        self.told.append(time.perf_counter())
        self.losses.append(metrics["loss"])
        if len(self.told) == self.steps:
            raise EOFError


def trl(options: argparse.Namespace, name: str, mode: str, data: str, longest: int) -> dict[str, Any]:
    """TRL's trainer in a process of its own."""
    length = [] if mode == "packing" and longest <= 512 else ["--length", str(longest)]
    command = [
        sys.executable, str(HERE / "trl_baseline.py"), "--model", options.model, "--data", data, "--mode", mode,
        "--batch-size", str(BATCH), "--steps", str(options.steps), "--warmup-steps", "1", *TRL[mode], *length,
    ]  # fmt: skip
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    return json.loads(done.stdout.splitlines()[-1])


def matmul_flops() -> list[float]:
    """FLOP/s of five large matmuls."""
    size = 2048
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(x, x))
    found = []
    for _ in range(5):
        started = time.perf_counter()
        jax.block_until_ready(product(x, x))
        found.append(2 * size**3 / (time.perf_counter() - started))
    return found


RUN = """
import sys
from rich.console import Console
from jaxift.cli import *
from jaxift.console import Reporter
from jaxift.config import load_study
from jaxift.study import Study
os.environ["JAX_COMPILATION_CACHE_DIR"] = sys.argv[2]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"
config = load_study(sys.argv[1] + "/study.yaml").model_copy(update={"run_dir": sys.argv[1]})
for only in sys.argv[3:] or [""]:
    Study(config, [only] if only else ["*-s*"]).execute(("tune", "evaluate"), Reporter(Console(quiet=True)))
"""


def cells(options: argparse.Namespace) -> dict[str, Any]:
    from jaxift.config import load_study
    from jaxift.units import cells as all_cells

    seconds: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / "start"
        command = [
            sys.executable,
            "-m",
            "jaxift",
            "demo",
            "--run-dir",
            str(start),
            "--seeds",
            "0",
            "--only",
            "medicine-HAR-s0",
        ]
        subprocess.run(command, check=True, capture_output=True)
        shutil.rmtree(start / "cells")
        names = [cell.id for cell in all_cells(load_study(start / "study.yaml")) if cell.seed is not None]
        names = names[:3] if options.quick else names
        ways = {"a process each": [[name] for name in names], "one after another": [names], "one program": [[]]}
        if options.quick:
            ways["one program"] = [["medicine-*-s0"]]
        for way, processes in ways.items():
            run = Path(folder) / way.replace(" ", "-")
            shutil.copytree(start, run)
            started = time.perf_counter()
            for only in processes:
                arguments = [str(run), str(Path(folder) / f"{run.name}-cache"), *only]
                subprocess.run([sys.executable, "-c", RUN, *arguments], check=True, cwd=HERE.parent)
            seconds[way] = time.perf_counter() - started
            print(f"{way}: {seconds[way]:.1f} s for {len(names)} cells", flush=True)
    together = seconds["one program"]
    return {
        "benchmark": "tuning cells",
        "cells": len(names),
        "seconds": seconds,
        "ratio": seconds["a process each"] / together,
        "baseline": "a process a cell",
        "one_after_another_ratio": seconds["one after another"] / together,
    }


if __name__ == "__main__":
    main()
