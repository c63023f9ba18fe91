"""Writes what came out for people: `report.html` (one self-contained file), `report.md`, figures and tables as files.

Everything is recomputed from the run directory without JAX: `analysis.json`, the manifests, and for the page's browser
the probe's and cells' scores. The same input gives the same bytes.
"""

from collections.abc import Sequence

from jaxift.artifacts import RunDirectory
from jaxift.config import BASE, Cell, StudyConfig
from jaxift.reporting import page
from jaxift.reporting.costs import stage_costs
from jaxift.reporting.figures import figures
from jaxift.reporting.items import items
from jaxift.reporting.writers import FORMATS

ANALYSIS = "analysis.json"
FOLDER = "report"


def report(config: StudyConfig, run: RunDirectory, cells: Sequence[Cell]) -> list[str]:
    """Writes the report of an analysed study, complete or not; returns the files written.

    `cells` are all that the study asks for. Raises UserError where `analysis.json` is missing or damaged.
    """
    analysis = run.read_json(ANALYSIS)
    units = sorted({(cell.domain, cell.seed) for cell in cells if cell.seed is not None})
    manifests = {(domain, seed): run.manifest(f"arms/{domain}/s{seed}") for domain, seed in units}
    scored = {entry["id"] for entry in analysis["cells"]}
    probed = [domain.name for domain in config.domains if domain.name in analysis["probe"]]
    browsed = items(run, probed, [cell for cell in cells if cell.id in scored], analysis["study"]["threshold"])
    sections = page.sections(
        analysis,
        figures(analysis),
        {unit: manifest for unit, manifest in manifests.items() if manifest is not None},
        stage_costs(run, _stages(config, cells)),
    )
    files = []
    run.path(FOLDER).rmtree(missing_ok=True)  # figures and tables of another analysis are none of this one
    for section in sections:
        for figure in section.drawn:
            files += [f"{FOLDER}/{figure.name}.svg", f"{FOLDER}/{figure.name}.png"]
            svg, png = figure.files()
            run.write_text(files[-2], svg)
            run.write_bytes(files[-1], png)
        for table in (*section.tables, *section.details):
            for ending, write in FORMATS.items():
                files.append(f"{FOLDER}/{table.name}.{ending}")
                run.write_text(files[-1], write(table))
    world = config.probe.prompt == "world"
    for name, text in page.render(analysis, sections, browsed, world).items():
        run.write_text(name, text)
        files.append(name)
    return files


def _stages(config: StudyConfig, cells: Sequence[Cell]) -> dict[str, list[str]]:
    """The units that say what they took, by stage."""
    tuned = [cell for cell in cells if cell.arm != BASE]
    return {
        "probe": [f"probe/{domain.name}" for domain in config.domains],
        "tune": [f"cells/{cell.id}/tune" for cell in tuned],
        "evaluate": [f"cells/{cell.id}/evaluate" for cell in cells],
    }
