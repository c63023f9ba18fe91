"""Build: the intervention arms of one domain, drawn from what the probe found. No JAX."""

from typing import Any

from etils import epath

from jaxift.arms import Pool
from jaxift.artifacts import RunDirectory, digest
from jaxift.config import DomainConfig, StudyConfig
from jaxift.data.release import read_imported
from jaxift.errors import UserError
from jaxift.intervention.arms import Drawn, Item, Words, arm_items
from jaxift.intervention.explanations import texts
from jaxift.intervention.facts import arm_facts, distances
from jaxift.intervention.general import draw_general, interleave, read_general
from jaxift.intervention.pools import Pools, Row, Written, draw, imported_pools, imported_texts, pools


def build(
    config: StudyConfig, run: RunDirectory, domain: DomainConfig, seed: int, wrapper: str = ""
) -> tuple[list[str], dict[str, Any]]:
    """Writes arms/DOMAIN/sSEED/ARM.jsonl, all of equal size; returns the files and the facts for the manifest.

    What the arms are: `jaxift.arms`; arms of one pool have the same items in the same order, and all arms the same
    general instructions at the same places (Ren et al. 2024, section 3). `wrapper` is the conversation around an
    instruction where it is not the study's own. Raises UserError where too few items qualify.
    """
    found = _released(config, domain, seed) if config.build.released else _probed(config, run, domain, seed)
    drawn, written, facts = found
    words = Words(domain.called, wrapper, written)
    made = {arm.name: arm_items(config, arm, drawn, words) for arm in config.build.parsed}
    [size] = {len(items) for items in made.values()}
    cap = config.build.cap
    general = _general(config, size, seed, wrapper)
    if cap is not None and size < cap:
        facts["note"] = f"{size} items an arm, fewer than build.cap {cap}: more do not qualify"
    files = []
    for arm, items in made.items():
        made[arm] = interleave(items, general, seed)
        files.append(f"arms/{domain.name}/s{seed}/{arm}.jsonl")
        run.write_jsonl(files[-1], made[arm])
    arms = {arm: arm_facts(items) for arm, items in made.items()}
    return files, {"arms": arms, "distances": distances(arms), "seed": seed, **facts}


def _probed(
    config: StudyConfig, run: RunDirectory, domain: DomainConfig, seed: int
) -> tuple[Drawn, Written, dict[str, Any]]:
    """The rows that a seed draws from the probe, what the base wrote, and what is to be told of both."""
    rows = run.read_rows(f"probe/{domain.name}/train.parquet")
    explained = f"explanations/{domain.name}.parquet"
    found = run.read_rows(explained) if run.exists(explained) else []
    written = texts(found)
    qualified = pools(rows, config.probe.threshold, config.build, written)
    size = _size(config, domain, qualified)
    drawn: dict[Pool, list[Row]] = {
        pool: draw(members, size, seed, pool, config.build.draw) for pool, members in qualified.rows.items()
    }
    counts = {pool: len(members) for pool, members in qualified.rows.items()}
    made_from = {"probe": digest(rows), "explanations": digest(found)}
    facts = {"qualifying": {**counts, "probed": len(rows)}, "left_out": qualified.left_out, "made_from": made_from}
    return Drawn(drawn, qualified.rows["HAR"], seed), written, facts


def _size(config: StudyConfig, domain: DomainConfig, qualified: Pools) -> int:
    settings, largest = config.build, qualified.largest(config.build.parsed)
    if largest < settings.minimum:
        raise UserError(
            f"domain {domain.name}: only {_told(qualified)} above probability {config.probe.threshold}, "
            f"{settings.minimum} needed; lower build.minimum (the largest size is {largest}) or probe.threshold, mend "
            "what is missing, or probe more questions"
        )
    return largest if settings.cap is None else min(largest, settings.cap)


def _told(qualified: Pools) -> str:
    """How many items qualify, and why others do not."""
    told = []
    names: dict[Pool, str] = {"HAR": "harmonious", "INC": "incompatible", "ALL": "probed"}
    for pool, name in names.items():
        left = [f"{count} more, {reason}" for reason, count in qualified.left_out[pool].items()]
        if pool != "ALL" or left:
            told.append(f"{len(qualified.rows[pool])} {name} items" + (f" ({'; '.join(left)})" if left else ""))
    return " and ".join(told)


def _released(config: StudyConfig, domain: DomainConfig, seed: int) -> tuple[Drawn, Written, dict[str, Any]]:
    """The rows of imported arms as they are: nothing is drawn."""
    found = read_imported(epath.Path(config.data_dir) / config.build.released, domain.name)
    qualified = imported_pools(found, config.build)
    for pool, reasons in qualified.left_out.items():
        if reasons:
            raise UserError(
                f"{config.build.released}: domain {domain.name}: of the items for {pool}, {reasons}; remove the arms "
                "that need it from build.arms"
            )
    size = _size(config, domain, qualified)
    drawn: dict[Pool, list[Row]] = {pool: members[:size] for pool, members in qualified.rows.items()}
    drawn["ALL"] = draw(qualified.rows["ALL"], size, seed, "ALL")
    counts = {pool: len(members) for pool, members in qualified.rows.items()}
    facts = {
        "qualifying": {**counts, "probed": counts["ALL"]},
        "left_out": {},
        "made_from": {"released": digest(found)},
    }
    return Drawn(drawn, qualified.rows["HAR"], seed), imported_texts(found), facts


def _general(config: StudyConfig, size: int, seed: int, wrapper: str) -> list[Item]:
    settings = config.build.general
    if settings is None:
        return []
    path = epath.Path(config.data_dir) / settings.path
    return draw_general(read_general(path, wrapper), round(settings.share * size), seed, str(path))
