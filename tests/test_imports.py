"""The direction of imports: data flows one way through the layers, and what needs no JAX does not load it."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# these stand in one layer, and do not know each other
BESIDE_THE_STUDY = (
    "study", "world", "model_commands", "score_command", "release_command", "finetune_command", "compare_command",
    "lm_eval",
)  # fmt: skip
# first to last; a module imports from its own or an earlier layer
LAYERS = (
    ("errors", "progress"),
    ("arms", "source_config"),
    ("config", "artifacts"),
    ("data", "parallel", "analysis"),
    ("reporting",),
    ("intervention",),
    ("models",),
    ("scoring",),
    ("tuning",),
    ("stages",),
    ("units",),
    ("joint_units",),
    ("wave_progress",),
    ("wave_runner",),
    BESIDE_THE_STUDY,
    ("selfcheck",),
    ("selfcheck_command",),
    ("forecast", "planning"),
    ("plan_command",),
    ("launch",),
    ("cli",),
    ("__main__",),
)
# beside the layers: module -> who may import it
ASIDE = {
    "host_log": ("study", "finetune_command"),
    "console": ("console", "wave_progress", "wave_runner", "study", "finetune_command", "cli", "__main__"),
}
APART = set(itertools.permutations(BESIDE_THE_STUDY, 2))
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
JAX = {"jax", "jaxlib", "flax", "optax", "orbax", "chex", "jaxtyping"}
WITHOUT_JAX = (
    "arms", "source_config", "data.questions", "data.prompts", "data.sources", "data.release", "intervention.arms",
    "intervention.explanations", "intervention.facts", "intervention.general", "analysis.consistency",
    "analysis.calibration", "analysis.exp1", "analysis.exp4", "analysis.scored", "analysis.statistics",
    "reporting.summary", "reporting.tables", "reporting.writers", "reporting.figures", "reporting.items",
    "reporting.costs", "reporting.page", "reporting.compare", "reporting.manifest_tables", "reporting.terminal",
    "compare_command", "selfcheck_command", "plan_command", "parallel.compilation_cache", "stages.build",
    "stages.analyze", "stages.report", "config", "artifacts", "errors", "progress", "host_log", "launch",
    "parallel.hosts", "parallel.clusters", "parallel.meeting", "parallel.pace", "parallel.agreement", "console",
    "units", "joint_units", "study", "model_commands", "score_command", "release_command", "finetune_command",
    "scoring.requests", "scoring.request_file", "scoring.rows", "scoring.store",
)  # fmt: skip


def module_name(path):
    """jaxift/a/b.py -> jaxift.a.b; a package is named by its folder."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted((ROOT / "jaxift").rglob("*.py"))}


def targets(node, name):
    """Modules that an import statement names; `from package import module` names the module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        package = name if FILES[name].name == "__init__.py" else name.rpartition(".")[0]
        for _ in range(node.level - 1):
            package = package.rpartition(".")[0]
        base = f"{package}.{base}".rstrip(".")
    return [full if (full := f"{base}.{alias.name}") in FILES else base for alias in node.names]


def statements(body):
    """Statements that run when a module is imported: not those in functions or under TYPE_CHECKING."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from statements(node.orelse)
            continue
        yield node
        for field in ("body", "orelse", "finalbody"):
            yield from statements(getattr(node, field, []))
        for handler in getattr(node, "handlers", []):
            yield from statements(handler.body)


def imports(name, *, at_load):
    """What a module imports: everywhere, or only what runs when it is itself imported."""
    tree = ast.parse(FILES[name].read_text(encoding="utf-8"))
    nodes = statements(tree.body) if at_load else ast.walk(tree)
    return {target for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for target in targets(node, name)}


def room(name):
    """The part of the package that a module belongs to: jaxift.data.prompts -> data."""
    return [*name.split("."), ""][1]


def closure(name):
    """Everything outside the package that importing a module brings, by top-level name."""
    seen, queue, outside = set(), [name], set()
    while queue:
        module = queue.pop()
        if module in seen:
            continue
        seen.add(module)
        parents = [".".join(module.split(".")[:depth]) for depth in range(1, module.count(".") + 1)]
        found = imports(module, at_load=True)
        outside |= {target.split(".")[0] for target in found} - {"jaxift"}
        queue += [target for target in (*found, *parents) if target in FILES]
    return outside


def allowed(importer, imported):
    if imported in ASIDE:
        return importer in ASIDE[imported]
    if importer in ASIDE:
        return RANK[imported] == 0
    if (importer, imported) in APART:
        return False
    return RANK[imported] <= RANK[importer]


MODULES = [name for name in FILES if name != "jaxift"]


def test_every_module_has_its_layer():
    assert {room(name) for name in MODULES} <= set(RANK) | set(ASIDE)


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_from_its_own_or_an_earlier_layer(name):
    inside = {target for target in imports(name, at_load=False) if target.startswith("jaxift.")}
    wrong = sorted(target for target in inside if not allowed(room(name), room(target)))
    assert not wrong, f"{name} imports from a later layer: {', '.join(wrong)}"


@pytest.mark.parametrize("name", [name for name in MODULES if room(name) == "stages"])
def test_stage_never_imports_a_stage(name):
    stages = {target for target in imports(name, at_load=False) if room(target) == "stages"}
    assert not stages - {"jaxift.stages"}


def test_the_rules_can_fail():
    assert not allowed("models", "scoring")
    assert not allowed("scoring", "tuning")
    assert not allowed("stages", "console")
    assert not allowed("study", "world")
    assert not allowed("data", "models")
    assert allowed("tuning", "scoring")


@pytest.mark.parametrize("name", WITHOUT_JAX)
def test_module_without_jax_has_none_in_its_closure(name):
    assert not closure(f"jaxift.{name}") & JAX


def test_closure_sees_through_modules():
    assert "jax" in closure("jaxift.stages.probe")


def test_listed_modules_cover_analysis_and_reporting():
    rooms = {"analysis", "reporting"}
    assert {name.removeprefix("jaxift.") for name in MODULES if room(name) in rooms} - rooms <= set(WITHOUT_JAX)


@pytest.mark.parametrize(
    "modules",
    [("jaxift",), ("jaxift", *(f"jaxift.{name}" for name in WITHOUT_JAX))],
    ids=["package alone", "modules without JAX"],
)
def test_importing_does_not_start_jax(modules):
    code = f"import sys\nimport {', '.join(modules)}\nprint([name for name in {sorted(JAX)} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_every_public_name_resolves():
    import jaxift

    assert all(getattr(jaxift, name) is not None for name in jaxift.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = jaxift.nothing
