"""How large the report's page is and how fast it opens: all of MMLU and 16 models, with answers drawn at random.

    python benchmarks/report_page.py --data DATA [--quick]

DATA holds mmlu/{dev,test}. Writes the run directory of a study of four domains with three arms (their ID sets are
MMLU's subjects of the domain, OOD all others), analyses and reports it, and opens the page in headless Chromium
(Debian's chromium and chromium-driver, extra `browser`) until the questions are shown; best of three. Also times the
metrics of 14,042 questions for 100 cells. The last line is JSON: ratio is the page's bytes over the 15 MB allowed.
"""

import argparse
import json
import os
import shutil
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxift.analysis.scored import Scored, beside_base
from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, TEST_SETS, Cell, StudyConfig
from jaxift.data.questions import Question
from jaxift.data.sources import read_domain
from jaxift.stages.analyze import analyze
from jaxift.stages.report import report

DOMAINS = ("medicine", "history", "engineering", "jurisprudence")
ARMS = ("HAR", "INC", "SELF")
LIMIT = 15e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder with mmlu/")
    parser.add_argument("--quick", action="store_true", help="300 questions a test set")
    options = parser.parse_args()
    config = study(options.data, 300 if options.quick else None)
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(folder)
        cells = write(run, config)
        started = time.perf_counter()
        analyze(config, run, cells)
        analyzed = time.perf_counter()
        report(config, run, cells)
        seconds = {"analyze": analyzed - started, "report": time.perf_counter() - analyzed}
        page = Path(folder) / "report.html"
        size = page.stat().st_size
        seconds["open"] = opened(page)
    questions, seconds["metrics of 100 cells"] = metrics(1_000 if options.quick else 14_042)
    print(f"{len(cells)} models; page {size / 1e6:.1f} MB; " + ", ".join(f"{k} {v:.2f} s" for k, v in seconds.items()))
    stack = {name: metadata.version(name) for name in ("numpy", "scipy", "matplotlib")}
    found = {
        "benchmark": "report page", "ratio": size / LIMIT, "baseline": "15 MB, opened within 3 s", "bytes": size,
        "models": len(cells), "questions": questions, "seconds": seconds, "stack": stack, "dtype": "float64",
        "cores": os.cpu_count(), "quick": options.quick,
    }  # fmt: skip
    print(json.dumps(found))


def study(data: Path, limit: int | None) -> StudyConfig:
    """Four domains whose held-out questions are MMLU's own development ones."""

    def source(name: str, **more: Any) -> list[dict[str, Any]]:
        return [{"path": f"mmlu/{name}", "format": "mmlu_csv", "limit": limit, **more}]

    domains = [
        {
            "name": name, "overlap": "drop", "train": source("dev"), "dev": source("dev"), "homo": source("dev"),
            "id": source("test", subjects=name), "ood": source("test", subjects=f"not {name}"),
        }
        for name in DOMAINS
    ]  # fmt: skip
    return StudyConfig.model_validate(
        {"name": "size", "model": {"path": "none"}, "domains": domains, "data_dir": str(data), "seeds": [0]}
    )


def write(run: RunDirectory, config: StudyConfig) -> list[Cell]:
    """The probe's and all models' answers; returns the models."""
    rng, cells = np.random.default_rng(0), []
    for domain in config.domains:
        questions = read_domain(domain, config.data_dir, pool=False)
        mine = [Cell(domain.name, BASE), *(Cell(domain.name, arm, 0) for arm in ARMS)]
        cells += mine
        for test_set in TEST_SETS:
            asked = questions[test_set]
            texts = [{"question": each.question, "options": list(each.options)} for each in asked]
            rows = [answer(rng, each, 1.0) | text for each, text in zip(asked, texts, strict=True)]
            run.write_rows(f"probe/{domain.name}/{test_set}.parquet", rows)
            for cell in mine:
                run.write_rows(f"cells/{cell.id}/scores/{test_set}.parquet", [answer(rng, each, 0.7) for each in asked])
    return cells


def answer(rng: np.random.Generator, question: Question, skill: float) -> dict[str, Any]:
    """A row of scores: Gumbel noise, and `skill` for the true option."""
    scores = rng.gumbel(size=len(question.options))
    scores[question.answer] += skill
    probs = np.exp(scores) / np.exp(scores).sum()
    pred = int(probs.argmax())
    return {
        "id": question.id, "subject": question.subject, "gold": question.answer, "scores": scores.tolist(),
        "probs": probs.tolist(), "pred": pred, "pred_prob": float(probs[pred]),
        "gold_prob": float(probs[question.answer]), "correct": pred == question.answer,
    }  # fmt: skip


def opened(page: Path) -> float:
    """Seconds from asking for the page until its first questions are shown."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    found = []
    for _ in range(3):
        driver.get("about:blank")
        started = time.perf_counter()
        driver.get(f"file://{page}")
        assert driver.execute_script("return document.querySelectorAll('#questions > li').length") == 10
        found.append(time.perf_counter() - started)
    driver.quit()
    return min(found)


def metrics(questions: int) -> tuple[int, float]:
    """Seconds that all metrics of 100 cells take."""
    rng = np.random.default_rng(0)

    def scored() -> Scored:
        scores = rng.gumbel(size=(questions, 4))
        log_probs = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
        gold, pred = rng.integers(0, 4, questions), log_probs.argmax(axis=1)
        return Scored(log_probs, pred, gold, pred == gold)

    base, tuned = scored(), [scored() for _ in range(100)]
    started = time.perf_counter()
    for each in tuned:
        beside_base(base, each, 0.5)
    return questions, time.perf_counter() - started


if __name__ == "__main__":
    main()
