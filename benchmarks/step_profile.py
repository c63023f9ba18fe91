"""Where the time of a scoring step goes: one step of the packed forward, traced, its operations added up by purpose.

    python benchmarks/step_profile.py --model DIR [--prefix 932] [--item 64] [--dtype float32] [--quick]

Behind a prefix of `--prefix` tokens stand texts of `--item` tokens, packed as the scorer packs them. The traced step
runs alone, so that its operations do not overlap with another's (while scoring two run at once on CPU): thread-seconds
of each kind as a share of all. Beside them the FLOPs of the useful tokens a second over those of 2048-cubed matmuls, of
a step alone and of two at once. The last line is JSON.
"""

import argparse
import collections
import glob
import json
import os
import platform
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxift
from jaxift.models.flops import head_flops, pair_flops, token_flops
from jaxift.scoring.engine import layout
from jaxift.scoring.filling import fill, prefill_arrays
from jaxift.scoring.plan import Prefill, make_plan
from jaxift.scoring.programs import Scored, compile_plan
from jaxift.scoring.requests import TokenRequest
from jaxift.scoring.tree import build_tree

KINDS = (  # the first that fits
    ("LM head", r"D,VD->|logsumexp|take_along_axis"),
    ("MLP matrices", r"BTD,FD->BTF|BTF,DF->BTD"),
    ("attention's projections", r"BTD,XD->BTX|BTX,DX->BTD"),
    ("prefix: products", r"while/body/closed_call/while/body/.*dot_general"),
    ("prefix: softmax and merging", r"while/body/closed_call/while"),
    ("rows: products", r"dot_general"),
    ("weights out of their stack", r"while/body/jit\(dynamic_index_in_dim\)"),
    ("rows: softmax", r"closed_call/(exp|reduce_max|reduce_sum|sub|max|jit\(_where\).*)$"),
    ("heads to the front and back", r"closed_call/(transpose|broadcast_in_dim|slice)$"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--prefix", type=int, default=932)
    parser.add_argument("--item", type=int, default=64)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="a short prefix, one round: to try the script")
    options = parser.parse_args()
    if options.quick:
        options.prefix, options.rounds = 100, 1
    dtype = jnp.dtype(options.dtype)
    model = jaxift.load(options.model, dtype=options.dtype)
    call, hlo, flops, tokens = _step(model, options.prefix, options.item, dtype)
    stack = f"Python {platform.python_version()}, jax {jax.__version__}"
    print(f"{os.cpu_count()} cores, {stack}, {options.dtype}; a step of {tokens} tokens", flush=True)
    alone, twice, matmul = _speeds(call, flops, dtype, options.rounds)
    alone_share, share = alone / matmul, twice / matmul
    print(f"matmul {matmul / 1e9:.0f} GFLOP/s; of it a step alone {alone_share:.2f}, two at once {share:.2f}")
    shares = _shares(call, hlo)
    for kind, part in sorted(shares.items(), key=lambda each: -each[1]):
        print(f"{part:6.1%}  {kind}")
    print(
        json.dumps(
            {
                "benchmark": "step_profile", "ratio": share, "baseline": "2048-cubed matmul", "stack": stack,
                "dtype": options.dtype, "alone": alone_share, "prefix": options.prefix, "item": options.item,
                "tokens": tokens, "shares": shares, "quick": options.quick,
            }
        )
    )  # fmt: skip


def _step(model: Any, prefix: int, item: int, dtype: np.dtype) -> tuple[Callable[[], Any], str, float, int]:
    """Runs a full step; its HLO; the FLOPs of its useful tokens; how many tokens are fed."""
    rng, config = np.random.default_rng(0), model.decoder.config
    shots = tuple(rng.integers(0, config.vocab_size, prefix).tolist())
    asked = [
        TokenRequest((*shots, *rng.integers(0, config.vocab_size, item).tolist()), ((1,), (2,), (3,), (4,)))
        for _ in range(64)
    ]
    plan = make_plan(build_tree(asked), layout(config, model.mesh))
    programs = compile_plan(Scored.of(model.decoder, model.mesh), plan, dtype)
    step = next(piece for piece in plan.work if not isinstance(piece, Prefill))
    filled = fill(plan, step)
    with jax.set_mesh(model.mesh):
        room = programs.start()
        for piece in plan.work[: plan.work.index(step)]:
            room = programs.prefill(room, prefill_arrays(plan, piece))
    arrays = (np.array(step.depths, np.int32), filled.tokens, filled.positions, filled.reach)
    laid = (*arrays, filled.slots, filled.targets)
    items = [each.size for row in step.rows[0] for each in row]
    pairs = sum(size * step.depths[0] + size * (size + 1) / 2 for size in items)
    flops = token_flops(config) * sum(items) + head_flops(config) * len(items)
    flops += pair_flops(config) * config.num_layers * pairs
    run = programs.steps[step.shape]
    return lambda: jax.block_until_ready(programs.step(step.shape, room, laid)), run.as_text(), flops, step.shape.tokens


def _speeds(call: Callable[[], Any], flops: float, dtype: np.dtype, rounds: int) -> tuple[float, float, float]:
    """FLOP/s of a step alone, of two at once, and of a matmul, in turns; medians."""
    a = jax.random.normal(jax.random.key(0), (2048, 2048), dtype)
    multiply = jax.jit(jnp.matmul)
    with ThreadPoolExecutor(2) as pool:
        runs = call, lambda: list(pool.map(lambda _: call(), range(2))), lambda: multiply(a, a).block_until_ready()
        for run in runs:
            run()
        seconds = [[_seconds(run) for run in runs] for _ in range(rounds)]
    alone, twice, matmul = map(statistics.median, zip(*seconds, strict=True))
    return flops / alone, 2 * flops / twice, 2 * 2048**3 / matmul


def _seconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def _shares(call: Callable[[], Any], hlo: str) -> dict[str, float]:
    """Kind of operation -> its share of all thread-seconds, from a trace of one run."""
    named = dict(re.findall(r"%([\w.-]+) = .*?op_name=\"([^\"]*)\"", hlo))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            call()
        [file] = glob.glob(f"{folder}/**/*.xplane.pb", recursive=True)
        total: collections.Counter[str] = collections.Counter()
        for name, nanoseconds in _events(jax.profiler.ProfileData.from_file(file)):
            if name in named and not name.startswith(("while", "call")):
                total[_kind(named[name])] += nanoseconds
    return {kind: spent / sum(total.values()) for kind, spent in total.items()}


def _events(profile: Any) -> Iterable[tuple[str, float]]:
    lines = (line for plane in profile.planes for line in plane.lines if line.name.startswith("tf_XLA"))
    return ((event.name, event.duration_ns) for line in lines for event in line.events)


def _kind(name: str) -> str:
    return next((kind for kind, pattern in KINDS if re.search(pattern, name)), "norms, rotation, residuals, the rest")


if __name__ == "__main__":
    main()
