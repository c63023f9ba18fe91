"""Tables of what a study was made of and what it took, from the manifests of its units."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxift.reporting.tables import Row, Table, percent


def cost_table(costs: Mapping[str, Mapping[str, Any]]) -> Table:
    """What each stage took, from `costs.stage_costs`; empty without any."""
    rows = []
    for stage, found in costs.items():
        busy = found["seconds"].get("step", 0.0)
        rate = f"{found['flops'] / busy / 1e9:,.1f}" if busy else "–"
        used = "–" if not found["peak"] or not busy else f"{found['flops'] / busy / found['peak']:.0%}"
        others = sum(found["seconds"].values()) - busy
        values = (f"{busy:,.1f}", f"{others:,.1f}", f"{found['tokens']:,.0f}", f"{found['places']:,.0f}")
        rows.append(Row(f"{stage} ({found['units']})", (*values, f"{found['flops']:.2e}", rate, used)))
    header = (
        "stage (units)", "computing, s", "compiling and else, s", "tokens asked for", "places computed", "useful FLOPs",
        "useful GFLOP/s", "of the peak",
    )  # fmt: skip
    devices = sorted({f"{found['devices']} {found['device']}, {found['dtype']}" for found in costs.values()})
    caption = (
        f"What it took, on {'; '.join(devices)}. Tokens are those of whole prompts, places what went through the "
        "model, with shared parts computed once and padding; of what was interrupted, the last run."
    )
    return Table("costs", caption, header, (("", tuple(rows)),))


def arms_tables(manifests: Mapping[tuple[str, int], Mapping[str, Any]]) -> list[Table]:
    """What the arms hold, from their manifests by (domain, seed): items, styles and letters; empty without any."""
    if not manifests:
        return []
    groups: dict[str, list[Row]] = {}
    letters: dict[str, dict[str, int]] = {}
    styles: dict[str, list[tuple[float, ...]]] = {}
    for (domain, seed), manifest in manifests.items():
        sizes = {arm: facts["items"] for arm, facts in manifest["arms"].items()}
        shown = ", ".join(f"{arm} {size}" for arm, size in sizes.items())
        qualifying = (str(manifest["qualifying"][arm]) for arm in ("HAR", "INC"))
        groups.setdefault(domain, []).append(Row(f"seed {seed}", (*qualifying, shown)))
        for arm, facts in manifest["arms"].items():
            for letter, count in facts.get("letters", {}).items():
                letters.setdefault(arm, {}).setdefault(letter, 0)
                letters[arm][letter] += count
            items = max(facts["items"], 1)
            own = facts.get("trained_on_own_answer", 0) / items
            style = (facts.get("mean_confidence", 0.0), own, facts.get("explained", 0) / items, facts.get("general", 0))
            styles.setdefault(arm, []).append(style)
    header = ("domain", "qualify for HAR", "qualify for INC", "items drawn")
    shown_groups = tuple((domain, tuple(rows)) for domain, rows in groups.items())
    tables = [Table("arms", "Questions that qualify for the arms, and how many were drawn.", header, shown_groups)]
    return [*tables, _styles_table(styles), *([_letters_table(letters)] if letters else [])]


def _styles_table(styles: Mapping[str, Sequence[tuple[float, ...]]]) -> Table:
    """How sure the base was of an arm's items, and in which style they are answered."""
    rows = []
    for arm, found in styles.items():
        confidence, own, explained, general = (sum(column) / len(found) for column in zip(*found, strict=True))
        rows.append(Row(arm, (percent(confidence), percent(own), percent(explained), f"{general:.0f}")))
    caption = (
        "What the arms' items are like, over all domains and seeds: how sure the base was, and what is trained on."
    )
    header = ("arm", "base's confidence, %", "its own answer, %", "explained, %", "general instructions")
    return Table("styles", caption, header, (("", tuple(rows)),))


def _letters_table(letters: Mapping[str, Mapping[str, int]]) -> Table:
    """Where the trained answers stand among the options, per arm."""
    names: Sequence[str] = sorted({letter for counts in letters.values() for letter in counts})
    rows = []
    for arm in sorted(letters):
        counts = letters[arm]
        total = max(sum(counts.values()), 1)
        rows.append(Row(arm, tuple(percent(counts.get(letter, 0) / total) for letter in names)))
    caption = "Position of the answer trained on, % of an arm's items over all domains and seeds."
    return Table("letters", caption, ("arm", *names), (("", tuple(rows)),))
