"""The command line: parses, calls the study, and turns refused input into one line and exit code 2."""

import atexit
import contextlib
import dataclasses
import io
import itertools
import os
import re
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import tyro
from etils import epath
from pydantic import ValidationError
from rich.console import Console
from rich.measure import Measurement

from jaxift import (
    __version__,
    compare_command,
    finetune_command,
    launch,
    model_commands,
    plan_command,
    release_command,
    score_command,
    selfcheck_command,
)
from jaxift.artifacts import STUDY_FILE, RunDirectory
from jaxift.config import StudyConfig, describe, load_study, parse_study
from jaxift.console import Reporter
from jaxift.errors import HostLost, Terminated, UserError
from jaxift.parallel import compilation_cache, hosts
from jaxift.parallel.agreement import check_settings
from jaxift.parallel.meeting import on_first_process

HELP = """\
jaxift: does instruction fine-tuning teach a language model anything, or only to say what it already knows?

usage: jaxift VERB ...

  demo                 the whole study on a synthetic world and its embedded base model, in about two minutes
  run CONFIG           a whole study: what is done is skipped, what is stale is done again
  import-release DIR --out OUT
                       the arms that the paper's authors released, ready to be tuned on (--build.released)
  plan CONFIG --topology v5e:4x4
                       what fits on a TPU slice that is not here, how fast, and how many chip-hours the study takes
  selfcheck            is all well with packages, devices, mesh, scores and a bucket? one screen, exit code 0 or 1
  world VERB           the synthetic world: `pretrain` its base model, write its `questions`, `check` a model

models, each a Hugging Face or orbax folder, a Hub id (owner/name) or an address (gs://bucket/model):
  inspect MODEL        family, size, memory, and what would be refused, without loading the weights
  convert SRC DST      Hugging Face to orbax, and back
  generate MODEL       continue texts: --prompt TEXT or --prompts FILE
  score REQUESTS.jsonl -o OUT.parquet --model MODEL
                       log-probabilities of options after contexts, as fast as exactness allows; resumable
  finetune DATA.jsonl ... -o OUT --model MODEL
                       tune a copy of it on each file of prompts and responses, all in one program; with
                       --tune.lora.rank 16 adapters, instead of all weights
  lm-eval ...          lm-evaluation-harness, our model in it: --model jaxift --model_args pretrained=DIR --tasks ...

stages of a study, each of which can be run alone:
  probe CONFIG         ask the base model every question, few-shot: what does it believe?
  explain CONFIG       let the base model explain its own answers, where arms are trained on explanations
  build CONFIG         draw instruction sets that agree (HAR), disagree (INC) or self-align (SELF) with it, and controls
  tune CONFIG          fine-tune the base model on each set, one cell a domain, arm and seed
  evaluate CONFIG      ask the tuned models the held-out (HOMO), in-domain (ID) and out-of-domain (OOD) questions
  analyze CONFIG       accuracies with intervals, and how consistent their knowledge stayed
  report CONFIG        analyze, then one page with the answer, tables, figures and questions: report.html
  compare RUN RUN ...  several studies (models) side by side; -o DIR writes the tables

CONFIG is a study's YAML file (see configs/) or the directory of a started run. Every field can be overridden:
  jaxift run configs/smollm2_arc.yaml --model.path DIR --tune.learning-rate 1e-5 --seeds 0 1 2
  jaxift run CONFIG --help     lists the fields with their present values
  jaxift run CONFIG --dry-run  says what is done and what there is to do: cells, steps, tokens, disk
  jaxift tune CONFIG --only 'medicine-INC*' 'history-*-s0'      some cells alone; evaluate and run take it too

several hosts: demo, run, the stages, score, generate and finetune join by themselves what Cloud TPU, GKE, Slurm, MPI or
a Kubernetes job started them as; start the same command on all hosts. Where nothing is detected there is one process.
  --coordinator host:port --processes N --process I     joins what no cluster tells, process I (from 0) of N
  --coordinator none   never joins; --coordinator auto refuses to start where no cluster is detected
  --host-timeout S     seconds without a sign of life after which a host counts as lost (100)
  --stall-timeout S    seconds without progress after which a process ends itself, four times as many while it compiles
                       (1800; 0: never, which is the default of a process that is alone)

exit codes: 0 done, 1 selfcheck found something wrong or plan nothing that fits, 2 refused input (one line says what and
how to mend it), 3 a host is lost or stands still (one line names it; start the same command again on all hosts, it goes
on), 130 interrupted, 143 ended by SIGTERM (the same command goes on)
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # that torch is absent is as it should be
    started, line = launch.Launch(), ""
    try:
        with compilation_cache.kept():  # before JAX is imported, as it is by who joins other processes
            if arguments[:1] and arguments[0] in launch.VERBS:
                flags, arguments = launch.split(arguments)
                started.join(flags)
            code = _dispatch(arguments)
    except UserError as error:
        code, line = 2, f"error: {error}"
    except HostLost as error:
        code, line = 3, f"error: {error}"
    except KeyboardInterrupt:
        code, line = 130, "interrupted; the same command goes on where it stopped"
    except Terminated as asked:
        code, line = 143, str(asked)
    except Exception as error:
        if not started.watches:
            raise
        started.explain(error)
        traceback.print_exc()
        code, line = 1, f"stopped by {type(error).__name__}: {error}"
    if line:
        print(f"jaxift: {line}", file=sys.stderr)
    started.leave(code, line.removeprefix("error: "))
    return code


def _dispatch(arguments: list[str]) -> int:
    verb, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if verb in ("-h", "--help", "help"):
        print(HELP, end="")
    elif verb in ("-V", "--version"):
        print(f"jaxift {__version__}")
    elif verb == "demo":
        how, rest = _how(rest, "jaxift demo")
        _study(_override(_demo_config(rest, how.dry_run), rest, "jaxift demo"), None, how)
    elif verb == "world":
        from jaxift.world import commands  # imported here: a wrong verb need not wait for it

        commands.main(_parsed(commands.Verb, rest, "jaxift world", config=()), Console())
    elif verb == "lm-eval":
        from jaxift import lm_eval  # imported here: it is an extra, and brings JAX

        return lm_eval.main(rest)
    elif verb in model_commands.KINDS:
        return model_commands.main(_parsed(model_commands.KINDS[verb], rest, f"jaxift {verb}"), Console())
    elif verb == "import-release":
        release_command.main(_parsed(release_command.ImportRelease, rest, "jaxift import-release"), Console())
    elif verb == "compare":
        compare_command.main(_parsed(compare_command.Compare, rest, "jaxift compare"), Console())
    elif verb == "finetune":
        finetune_command.main(_parsed(finetune_command.Finetune, rest, "jaxift finetune", config=_VALUES), Console())
    elif verb in score_command.KINDS:
        return score_command.main(_parsed(score_command.KINDS[verb], rest, f"jaxift {verb}"), Console())
    elif verb == "plan":
        return _plan(rest)
    elif verb == "selfcheck":
        return selfcheck_command.main(_parsed(selfcheck_command.SelfCheck, rest, "jaxift selfcheck"), Console())
    elif verb in VERBS:
        how, rest = _how(rest, f"jaxift {verb}")
        _study(_configured(verb, rest), VERBS[verb], how)
    else:
        known = (*OTHERS, *model_commands.KINDS, *score_command.KINDS, *VERBS)
        raise UserError(f"unknown verb {verb!r}; known are {', '.join(known)}; see jaxift --help")
    return 0


# --tune.learning-rate for learning_rate; True/False as values, so that every field is `--name VALUE`
_VALUES = (tyro.conf.FlagConversionOff,)
OTHERS = ("demo", "world", "import-release", "lm-eval", "finetune", "compare", "plan", "selfcheck")
VERBS: dict[str, tuple[str, ...] | None] = {
    "run": None,
    **{stage: (stage,) for stage in ("probe", "explain", "build", "tune", "evaluate", "analyze")},
    "report": ("analyze", "report"),
}


@dataclasses.dataclass(frozen=True)
class How:
    """How a study's stages are run, beside what its configuration says."""

    dry_run: bool = False
    """Say what there is to do, and do nothing."""
    only: tuple[str, ...] = ()
    """Patterns of the cells to tune and evaluate."""


def _how(rest: list[str], program: str) -> tuple[How, list[str]]:
    """What is said of the running, and the arguments that are left."""
    left, only, taking = [], [], False
    for argument in rest:
        name, given, value = argument.partition("=")
        if name == "--only":
            taking = not given
            only += [value] if given else []
        elif argument.startswith("-") or argument.endswith(".yaml") or Path(argument).exists():
            taking = False
            left.append(argument)
        else:
            (only if taking else left).append(argument)
    if any(argument.partition("=")[0] == "--only" for argument in rest):
        if not only:
            raise UserError(f"{program}: --only needs at least one cell, or a pattern of cells such as '*-INC-s0'")
        if program.split()[-1] not in ("run", "tune", "evaluate", "demo"):
            raise UserError(f"{program}: --only goes with run, tune, evaluate and demo; remove it")
    return How("--dry-run" in left, tuple(only)), [argument for argument in left if argument != "--dry-run"]


def _configured(verb: str, rest: list[str]) -> StudyConfig:
    """The study that a verb's arguments name, overrides applied."""
    if rest[:1] in ([], ["-h"], ["--help"]):
        if not rest:
            raise UserError(f"jaxift {verb} needs a CONFIG: a study's YAML file or the directory of a started run")
        return _override(_demo_config([]), ["--help"], f"jaxift {verb} CONFIG")
    target, overrides = Path(rest[0]), rest[1:]
    if target.is_dir():
        config = load_study(target / STUDY_FILE).model_copy(update={"run_dir": str(target)})
    elif "://" in rest[0]:
        config = parse_study(RunDirectory.open(rest[0]).read_text(STUDY_FILE), rest[0])
        config = config.model_copy(update={"run_dir": rest[0]})
    else:
        config = load_study(target)
    return _override(config, overrides, f"jaxift {verb} {rest[0]}")


def _plan(rest: list[str]) -> int:
    """Plans a study; what is no setting of the planning is one of the study."""
    names = {f"--{field.name}" for field in dataclasses.fields(plan_command.Plan)}
    mine, left = [], []
    arguments = iter(rest)
    for argument in arguments:
        name, given, _ = argument.partition("=")
        chosen = mine if name in names else left
        chosen += [argument] if given or name not in names else [argument, *itertools.islice(arguments, 1)]
    config = _configured("plan", left)
    return plan_command.main(config, _parsed(plan_command.Plan, mine, "jaxift plan"), Console())


def _demo_config(rest: Sequence[str], dry_run: bool = False) -> StudyConfig:
    """The demo's study, its model path and question folder filled in; the questions are written into the run.

    In a dry run they are written to a folder that is removed at the end.
    """
    from jaxift.world import MODEL_DIR, write_questions

    text = resources.files("jaxift.world").joinpath("demo.yaml").read_text(encoding="utf-8")
    config = parse_study(text, "demo.yaml")
    config = config.model_copy(update={"model": config.model.model_copy(update={"path": str(MODEL_DIR)})})
    run_dir = _override(
        config, [argument for argument in rest if argument not in ("-h", "--help")], "jaxift demo"
    ).run_path
    if "-h" in rest or "--help" in rest:
        return config
    if dry_run:
        questions = tempfile.mkdtemp(prefix="jaxift-questions-")
        atexit.register(shutil.rmtree, questions, ignore_errors=True)
        write_questions(questions)
    else:
        questions = epath.Path(run_dir) / "questions"
        on_first_process(lambda: write_questions(RunDirectory.create(run_dir).root / "questions"))
    return config.model_copy(update={"data_dir": str(questions)})


def _override(config: StudyConfig, arguments: list[str], program: str) -> StudyConfig:
    """Applies `--field.name VALUE` arguments; raises UserError where one is unknown or has a bad value."""
    return _parsed(StudyConfig, arguments, program, config, _VALUES)


def _parsed(
    kind: Any, arguments: list[str], program: str, default: Any = tyro.MISSING_NONPROP, config: Any = ()
) -> Any:
    """Parses arguments into `kind` by tyro; its boxed error messages become UserErrors of one line."""
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(kind, default=default, args=arguments, prog=program, config=config)
    except ValidationError as error:
        raise UserError(describe(error, program)) from None
    except SystemExit as stop:
        if not stop.code:
            raise
        message = _one_line(errors.getvalue()).removesuffix(f"{program} --help").rstrip()
        raise UserError(f"{message}; see {program} --help") from None


def _one_line(box: str) -> str:
    """The message inside tyro's box of an error, without the frame and its hint."""
    lines = [re.sub(r"[╭╮╰╯│─]", " ", line).strip() for line in box.splitlines()]
    lines = [line for line in lines if line and not line.startswith("For full helptext")]
    text = re.sub(r"^-{5,} ", "", " ".join(lines[1:] or lines))  # a rule above what a nested type says
    return re.sub(r" \[type=.*$", "", text)  # pydantic appends its error's type, the input, and a link


def _study(config: StudyConfig, stages: tuple[str, ...] | None, how: How) -> None:
    """Runs stages of a study (None: all), then prints what came out; a dry run prints what there is to do."""
    from jaxift.study import Study
    from jaxift.units import STAGES

    console, started = Console(quiet=not hosts.is_first()), time.monotonic()
    study = Study(config, how.only)
    asked = {"stages": stages or STAGES, "--only": how.only, "--dry-run": how.dry_run}
    # where the questions lie may differ: what is in them is compared before they are asked
    check_settings("study", {**config.model_dump(mode="json", exclude={"data_dir"}), **asked})
    if how.dry_run:
        from jaxift.forecast import forecast, show  # imported here: it brings JAX, as running does

        show(forecast(study), console)
        return
    console.print(f"study {config.name} in {config.run_path}", highlight=False, markup=False)
    study.execute(stages or STAGES, Reporter(console))
    if not hosts.is_first():
        return
    if (stages or STAGES)[-1] in ("analyze", "report"):
        _print_findings(study.run, console)
    if (stages or STAGES)[-1] == "report":
        console.print(f"report: {study.run.root / 'report.html'}", highlight=False, markup=False, soft_wrap=True)
    console.print(f"{time.monotonic() - started:.1f} s in all", highlight=False)


def _print_findings(run: RunDirectory, console: Console) -> None:
    from jaxift.reporting.terminal import exp1_table

    analysis: dict[str, Any] = run.read_json("analysis.json")
    table = exp1_table(analysis)
    # as wide as it is: numbers that are cut off help nobody, on a narrow terminal or in a log
    width = Measurement.get(console, console.options.update(max_width=1000), table).maximum
    Console(width=max(console.width, width)).print(table)
