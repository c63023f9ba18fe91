"""A made-up study's run directory: what the stages before analysis would have written, with no model."""

import numpy as np

from jaxift.config import BASE, SPLITS, Cell, StudyConfig

ARMS = ("HAR", "INC", "SELF")
SKILL = {BASE: 0.6, "HAR": 1.6, "INC": 0.4, "SELF": 1.2}
SIZES = {"train": 30, "homo": 90, "id": 70, "ood": 110}


def make_config(domains=("medicine", "history"), seeds=(0, 1), resamples=200, prompt="paper", **fields):
    source = {"path": "questions.jsonl"}
    return StudyConfig.model_validate(
        {
            "name": "made-up",
            "model": {"path": "models/<script>alert(1)</script>|`x`"},
            "domains": [{"name": name} | {split: [source] for split in ("dev", *SPLITS)} for name in domains],
            "seeds": seeds,
            "probe": {"prompt": prompt},
            "analyze": {"resamples": resamples},
            **fields,
        }
    )


def all_cells(config):
    cells = []
    for domain in config.domains:
        cells.append(Cell(domain.name, BASE))
        cells += [Cell(domain.name, arm, seed) for arm in config.build.arms for seed in config.seeds]
    return cells


def answer(rng, row_id, gold, options, skill):
    """A row of scores: Gumbel noise, and `skill` for the true option."""
    scores = rng.gumbel(size=options)
    scores[gold] += skill
    scores -= np.log(np.exp(scores).sum())
    probs, pred = np.exp(scores), int(scores.argmax())
    return {
        "id": row_id,
        "subject": "anything",
        "gold": gold,
        "scores": scores.tolist(),
        "probs": probs.tolist(),
        "pred": pred,
        "pred_prob": float(probs[pred]),
        "gold_prob": float(probs[gold]),
        "correct": pred == gold,
    }


def write_study(run, config, cells):
    """Probe, scores and arm manifests of a study whose arms differ as SKILL says; OOD is one set for all domains."""
    for domain in config.domains:
        for split, size in SIZES.items():
            name = "shared" if split == "ood" else domain.name
            draw = np.random.default_rng([size, len(name)])
            items = [(f"{name}-{split}-{n}", int(draw.integers(2)), int(draw.integers(2, 6))) for n in range(size)]
            rng = np.random.default_rng([size, *domain.name.encode()])
            rows = [answer(rng, *item, 1.0) for item in items]
            texts = [{"question": f"{row['id']} <b>?", "options": [str(n) for n in row["probs"]]} for row in rows]
            if split == "ood":
                texts = [{"question": row["id"], "options": ["x"] * len(row["probs"])} for row in rows]
            run.write_rows(f"probe/{domain.name}/{split}.parquet", [r | t for r, t in zip(rows, texts, strict=True)])
            for cell in [cell for cell in cells if cell.domain == domain.name and split != "train"]:
                rng = np.random.default_rng([size, *cell.id.encode()])
                rows = [answer(rng, *item, SKILL.get(cell.arm, 0.8)) for item in items]
                run.write_rows(f"cells/{cell.id}/scores/{split}.parquet", rows[::-1])
                if cell.arm != BASE:
                    taught = [{"answer": row["gold"] if cell.arm != "SELF" else 1, "base_pred": 1} for row in rows]
                    rows = [row | more for row, more in zip(rows, taught, strict=True)]
                    run.write_rows(f"cells/{cell.id}/scores/trained.parquet", rows)
        for seed in config.seeds:
            arms = {arm: {"items": 20, "letters": {"A": 15, "B": 5}} for arm in ARMS}
            run.finish(f"arms/{domain.name}/s{seed}", "key", [], arms=arms, qualifying={"HAR": 25, "INC": 20})
