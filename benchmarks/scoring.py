"""How fast options are scored, beside lm-evaluation-harness' `hf` model and a loop over full prompts, in one run.

    python benchmarks/scoring.py --model DIR --data DATA [--quick] [--full] [--dtype float32] [--questions 24]
        [--subjects nutrition astronomy] [--alone]

For each of six MMLU subjects from long to short prompts (5-shot), then zero-shot chat prompts, then requests that
share nothing, in turns: the harness on seeded random questions, its best of several batch sizes; ours on the whole
subject, the shared prefix and the tokenising counted, compiling apart; one full prompt at a time in torch, as the
study's authors do it. All take every core. Seconds a question are weighted by the questions of MMLU: each of its
subjects counts for the measured one that is nearest in length. `--full` measures all of MMLU for us and extrapolates
the others along the prompts' length. Efficiency: the FLOPs of distinct tokens (no padding, no recomputation) a
second, over those of 2048-cubed matmuls in this process (median of 5, before and after each set). Without torch or
lm-eval ours is measured alone. The last line is JSON.
"""

import argparse
import dataclasses
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata, util
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import asked, chat, drawn, hf_model, mmlu, subjects, unshared

import jaxift
from jaxift.scoring.requests import Request

SUBJECTS = (
    "high_school_european_history", "professional_medicine", "high_school_statistics", "nutrition", "astronomy",
    "high_school_geography",
)  # fmt: skip
CHAT_SUBJECTS = ("high_school_geography", "nutrition", "professional_medicine", "anatomy")
BATCH_SIZES = (1, 4, 16)
LOOPED = 8  # questions of a set that the loop is timed on
LONG = 600  # tokens beyond which the largest of them is not tried: one prompt fills the cores


@dataclasses.dataclass(frozen=True)
class Ours:
    """What a run of ours took; seconds without compiling."""

    questions: int
    seconds: float
    compile_seconds: float
    useful_flops: float
    forward_seconds: float
    useful_fraction: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="the folder that holds mmlu and instructions")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--questions", type=int, default=24, help="random questions a set for the others")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="two subjects, few questions: to try the script")
    parser.add_argument("--full", action="store_true", help="all questions of MMLU, for us")
    parser.add_argument("--alone", action="store_true", help="ours alone")
    parser.add_argument("--subjects", nargs="+", help="these subjects of MMLU alone, and no other requests")
    options = parser.parse_args()
    if options.quick:
        options.questions = 4
    bench = Bench(options)
    print(f"{os.cpu_count()} cores, {bench.stack}, {options.dtype}", flush=True)
    sets = {name: bench.measure(name, *requests) for name, requests in _sets(options).items()}
    result = {"benchmark": "scoring", **_summary(options, sets, bench), "sets": sets}
    if options.full:
        result["mmlu"] = bench.whole_mmlu(sets)
        print(json.dumps(result["mmlu"]), flush=True)
    print(json.dumps(result))


def _sets(options: argparse.Namespace) -> dict[str, tuple[list[Request], list[Request]]]:
    """Name -> what we are asked, and what the others are."""
    data, count, seed, few = options.data, options.questions, options.seed, 12 if options.quick else None
    found = {}
    for subject in options.subjects or (SUBJECTS[-2:] if options.quick else SUBJECTS):
        requests = mmlu(data, subject)[:few]
        found[f"mmlu_{subject}"] = requests, drawn(requests, count, seed)
    if options.subjects:
        return found
    requests = [request for subject in CHAT_SUBJECTS for request in chat(data, subject)[:few]]
    found["chat"] = requests, drawn(requests, 4 * count, seed)
    requests = drawn(unshared(data), 4 * count, seed)
    found["unshared"] = requests, requests
    return found


class Bench:
    """The models, loaded once, and what is measured with them."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.model = jaxift.load(options.model, dtype=options.dtype)
        has_others = util.find_spec("torch") and util.find_spec("lm_eval") and not options.alone
        self.theirs = hf_model(options.model, options.dtype) if has_others else None
        packages = ("jax", "torch", "transformers", "lm_eval") if has_others else ("jax",)
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
        self.stack = f"Python {platform.python_version()}, {versions}"

    def measure(self, name: str, requests: Sequence[Request], few: Sequence[Request]) -> dict[str, Any]:
        """One set: the others and ours in turns; seconds a question, ratios, efficiency."""
        rates = [self.matmul_flops()]
        found: dict[str, Any] = {"questions": len(requests), "tokens": self.mean_tokens(requests)}
        if self.theirs is not None:
            found |= self.harness(few, BATCH_SIZES[:2] if found["tokens"] > LONG else BATCH_SIZES)
        ours = self.ours(requests)
        rates.append(self.matmul_flops())
        if self.theirs is not None and len(few[0].options) > 1:
            found["loop_s"] = self.loop(few[:LOOPED])
        found |= {
            "ours_s": ours.seconds / ours.questions,
            "compile_s": ours.compile_seconds,
            "useful_fraction": ours.useful_fraction,
            "efficiency": ours.useful_flops / ours.forward_seconds / statistics.mean(rates),
            "matmul_gflops": statistics.mean(rates) / 1e9,
        }
        for other in ("hf", "loop"):
            if f"{other}_s" in found:
                found[f"{other}_ratio"] = found[f"{other}_s"] / found["ours_s"]
        print(name, json.dumps(found), flush=True)
        return found

    def ours(self, requests: Sequence[Request]) -> Ours:
        """Scores all of them, tokenising and planning counted."""
        told: list[Any] = []
        started = time.perf_counter()
        jaxift.score(self.model, requests, report=told.append)
        took, [run] = time.perf_counter() - started, told
        return Ours(
            questions=len(requests),
            seconds=took - run.compile_seconds,
            compile_seconds=run.compile_seconds,
            useful_flops=run.useful_flops,
            forward_seconds=run.seconds,
            useful_fraction=run.useful_tokens / run.fed_tokens,
        )

    def harness(self, requests: Sequence[Request], sizes: Sequence[int]) -> dict[str, Any]:
        """The harness' own `loglikelihood`, at the batch size that was quickest on some of them."""
        trial = {size: self._timed(requests[: max(sizes)], size) for size in sizes}
        best = min(trial, key=lambda size: trial[size])
        return {
            "hf_s": self._timed(requests, best) / len(requests),
            "hf_batch_size": best,
            "hf_questions": len(requests),
        }

    def _timed(self, requests: Sequence[Request], batch_size: int) -> float:
        self.theirs.batch_size_per_gpu = batch_size
        calls = asked(requests)
        return _seconds(lambda: self.theirs.loglikelihood(calls, disable_tqdm=True))

    def loop(self, requests: Sequence[Request]) -> float:
        """Seconds a question of one full prompt at a time: logits at the end, those of the letters kept."""
        import torch

        tokenizer, model = self.theirs.tokenizer, self.theirs.model
        letters = torch.tensor([tokenizer(option).input_ids[-1] for option in requests[0].options])

        def run() -> None:
            with torch.no_grad():
                for request in requests:
                    logits = model(**tokenizer(request.context, return_tensors="pt")).logits
                    logits[0, -1, letters].softmax(-1).tolist()

        return _seconds(run) / len(requests)

    def matmul_flops(self) -> float:
        """FLOP/s of a 2048-cubed matmul of the dtype in use, median of 5."""
        a, b = (jax.random.normal(jax.random.key(key), (2048, 2048), jnp.dtype(self.options.dtype)) for key in (0, 1))
        multiply = jax.jit(jnp.matmul)
        multiply(a, b).block_until_ready()
        return 2 * 2048**3 / statistics.median(_seconds(lambda: multiply(a, b).block_until_ready()) for _ in range(5))

    def mean_tokens(self, requests: Sequence[Request]) -> float:
        """Tokens of a context, in the mean of some of them."""
        some = requests[:: max(1, len(requests) // 16)]
        return statistics.mean(len(self.model.tokenizer.encode(request.context)) for request in some)

    def whole_mmlu(self, sets: dict[str, Any]) -> dict[str, Any]:
        """All questions of MMLU: ours measured, in one run; the others extrapolated along the prompts' length."""
        by_subject = {subject: mmlu(self.options.data, subject) for subject in subjects(self.options.data)}
        ours = self.ours([request for requests in by_subject.values() for request in requests])
        found = {
            "questions": ours.questions,
            "ours_s": ours.seconds,
            "compile_s": ours.compile_seconds,
            "useful_fraction": ours.useful_fraction,
        }
        measured = sorted((each["tokens"], each) for name, each in sets.items() if name.startswith("mmlu_"))
        for other in ("hf_s", "loop_s"):
            if other in measured[0][1]:
                known = [tokens for tokens, _ in measured], [each[other] for _, each in measured]
                total = sum(
                    len(requests) * _between(self.mean_tokens(requests), *known) for requests in by_subject.values()
                )
                found[f"{other}_extrapolated"] = total
        return found


def _between(tokens: float, known: Sequence[float], seconds: Sequence[float]) -> float:
    """Seconds of a prompt of so many tokens: linear between those measured, proportional outside."""
    if not known[0] <= tokens <= known[-1]:
        nearest = 0 if tokens < known[0] else -1
        return seconds[nearest] * tokens / known[nearest]
    return float(np.interp(tokens, known, seconds))


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _summary(options: argparse.Namespace, sets: dict[str, Any], bench: Bench) -> dict[str, Any]:
    """Ratios over the measured subjects, each weighted by the questions of MMLU for which it stands."""
    measured = {name: each for name, each in sets.items() if name.startswith("mmlu_")}
    weights = dict.fromkeys(measured, 0)
    for subject in subjects(options.data):
        requests = mmlu(options.data, subject)
        tokens = bench.mean_tokens(requests)
        nearest = min(measured, key=lambda name: abs(np.log(measured[name]["tokens"] / tokens)))
        weights[nearest] += len(requests)
    seconds = {
        key: sum(weights[name] * each[key] for name, each in measured.items()) / sum(weights.values())
        for key in ("ours_s", "hf_s", "loop_s")
        if all(key in each for each in measured.values())
    }
    found: dict[str, Any] = {
        "baseline": "lm-eval hf, best batch size" if "hf_s" in seconds else None,
        "ratio": seconds["hf_s"] / seconds["ours_s"] if "hf_s" in seconds else None,
        "loop_ratio": seconds["loop_s"] / seconds["ours_s"] if "loop_s" in seconds else None,
        **{f"{name}_ratio": sets[name].get("hf_ratio") for name in ("chat", "unshared") if name in sets},
        "efficiency": min(each["efficiency"] for each in measured.values()),
        "useful_fraction": min(each["useful_fraction"] for each in measured.values()),
        "weighted": seconds,
        "weights": weights,
    }
    facts = {"stack": bench.stack, "dtype": options.dtype, "cores": os.cpu_count(), "questions": options.questions}
    return found | facts | {"seed": options.seed, "quick": options.quick}


if __name__ == "__main__":
    main()
