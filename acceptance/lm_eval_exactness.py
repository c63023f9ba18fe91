"""Whether our scores are those of lm-evaluation-harness' own `hf` model, on the same requests, in float32.

    python acceptance/lm_eval_exactness.py MODEL DATA [--questions 24] [--seed 0]

MMLU 5-shot by letter on eight subjects from short to long prompts, ARC-Easy zero-shot by the options' own text, and
rolling text in windows. Bounds: options 2e-3; rolling text 1e-5 a token in the mean; the best option and is_greedy the
same, except where the margin is below the bound. About 20 minutes for SmolLM2-135M on two cores. The last line is JSON;
the exit code is 1 where a bound is missed.
"""

import argparse
import json
import platform
import random
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from harness import Asked, arc, asked, by_request, drawn, hf_model, mmlu, written

from jaxift.lm_eval import JaxiftLM
from jaxift.scoring.requests import Request

SUBJECTS = (
    "world_religions", "high_school_geography", "astronomy", "moral_scenarios", "professional_medicine",
    "professional_law", "high_school_us_history", "high_school_european_history",
)  # fmt: skip
OPTION_BOUND, TOKEN_BOUND = 2e-3, 1e-5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a Hugging Face folder")
    parser.add_argument("data", type=Path, help="the folder that holds mmlu, arc and instructions")
    parser.add_argument("--questions", type=int, default=24, help="of each subject; four times as many of ARC")
    parser.add_argument("--texts", type=int, default=8, help="rolling texts of some windows each")
    parser.add_argument("--window", type=int, default=1024, help="tokens of a window of rolling text")
    parser.add_argument("--subjects", nargs="+", default=SUBJECTS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    found = compare(
        options.model, options.data, options.subjects, options.questions, options.texts, options.seed, options.window
    )
    stack = f"jax {metadata.version('jax')}, torch {metadata.version('torch')}, Python {platform.python_version()}"
    print(json.dumps({"acceptance": "lm_eval_exactness", "stack": stack, "dtype": "float32", **found}))
    raise SystemExit(0 if found["passed"] else 1)


def compare(
    folder: str, data: Path, subjects: Sequence[str], questions: int, texts: int, seed: int, window: int
) -> dict[str, Any]:
    """Asks both models the same and returns the differences, by set."""
    ours, theirs = JaxiftLM(folder), hf_model(folder)
    sets = {f"mmlu_{subject}": drawn(mmlu(data, subject), questions, seed) for subject in subjects}
    sets["arc_easy"] = drawn(arc(data), 4 * questions, seed)
    found = {}
    for name, requests in sets.items():
        found[name] = _options(ours, theirs, requests)
        print(name, json.dumps(found[name]), flush=True)
    rolling = _rolling(folder, rolled(data, texts, seed, window), window)
    print("rolling", json.dumps(rolling), flush=True)
    worst = max(each["max_difference"] for each in found.values())
    passed = (
        worst <= OPTION_BOUND
        and rolling["mean_difference_a_token"] <= TOKEN_BOUND
        and all(margin <= OPTION_BOUND for each in found.values() for margin in each["margins"])
    )
    return {"passed": passed, "max_difference": worst, "bound": OPTION_BOUND, "rolling": rolling, "sets": found}


def _options(ours: JaxiftLM, theirs: Any, requests: Sequence[Request]) -> dict[str, Any]:
    """How far the scores of options are apart, and the margins of what came out otherwise."""
    found, expected = (
        by_request(requests, model.loglikelihood(asked(requests), disable_tqdm=True)) for model in (ours, theirs)
    )
    differences, argmax, greedy, margins = [], 0, 0, []
    for request, (our_scores, our_greedy), (scores, is_greedy) in zip(requests, found, expected, strict=True):
        differences.append(np.abs(our_scores - scores).max())
        if our_scores.argmax() != scores.argmax():
            argmax += 1
            margins.append(float(scores.max() - scores[our_scores.argmax()]))
        for option, ours_says, theirs_says in zip(request.options, our_greedy, is_greedy, strict=True):
            if ours_says != theirs_says:
                greedy += 1
                margins.append(greedy_margin(theirs, request.context, option))
    return {
        "requests": len(requests),
        "options": sum(len(request.options) for request in requests),
        "max_difference": float(max(differences)),
        "argmax_differs": argmax,
        "greedy_differs": greedy,
        "margins": margins,
    }


def greedy_margin(model: Any, context: str, option: str) -> float:
    """By how much the nearest token of an option is from being, or not being, the most likely one."""
    import torch

    before, after = model._encode_pair(context, option)
    tokens = torch.tensor([(before + after)[-(model.max_length + 1) :]])
    logits = model._model_call(tokens[:, :-1])[0, -len(after) :].double()
    own = logits.gather(1, tokens[0, -len(after) :, None])[:, 0]
    others = logits.scatter(1, tokens[0, -len(after) :, None], -np.inf).max(dim=1).values
    return float((own - others).abs().min())


def rolled(data: Path, count: int, seed: int, window: int) -> list[str]:
    """Texts of one to about six windows, joined from short ones."""
    parts = written(data)
    random.Random(seed).shuffle(parts)
    texts, start = [], 0
    for number in range(count):
        wanted, text = window * 4 * (number % 6 + 1) - window, []
        while start < len(parts) and sum(map(len, text)) < wanted:
            text.append(parts[start])
            start += 1
        texts.append("\n\n".join(text))
    return texts


def _rolling(folder: str, texts: Sequence[str], window: int) -> dict[str, Any]:
    """Rolling log-likelihoods of whole texts, in windows of the same length for both."""
    ours, theirs = JaxiftLM(folder, max_length=window), hf_model(folder, max_length=window)
    counts = [len(theirs.tok_encode(text)) for text in texts]
    requests = [Asked(text) for text in texts]
    found, expected = (np.array(each.loglikelihood_rolling(requests, disable_tqdm=True)) for each in (ours, theirs))
    differences = np.abs(found - expected)
    return {
        "texts": len(texts),
        "tokens": sum(counts),
        "windows": sum(-(-count // window) for count in counts),
        "mean_difference_a_token": float((differences / counts).mean()),
        "max_difference_a_token": float((differences / counts).max()),
        "max_difference": float(differences.max()),
        "bound": TOKEN_BOUND,
    }


if __name__ == "__main__":
    main()
