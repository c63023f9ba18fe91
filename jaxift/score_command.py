"""`jaxift score`: log-probabilities of options after contexts, from a file of requests into a parquet file."""

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import tyro
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from jaxift.artifacts import digest, versions, writable_folder
from jaxift.config import MeshConfig, Seam
from jaxift.errors import UserError, printable
from jaxift.parallel import hosts, meeting

if TYPE_CHECKING:  # what brings JAX or transformers is imported where it is used: a wrong flag need not wait for it
    from etils import epath

    from jaxift.models.weights import LanguageModel
    from jaxift.scoring.engine import Statistics
    from jaxift.scoring.job import Job
    from jaxift.scoring.requests import Score
    from jaxift.scoring.store import Facts, ScoreStore

LINE_SECONDS = 30.0  # between two lines of progress where there is no terminal


@dataclasses.dataclass(frozen=True)
class ScoreFile:
    """Log-probability of each option after its context, exactly as a full forward pass gives it, a row an option.

    A run that was stopped goes on with the same command, and ends with the same bytes. Until OUT is there, its parts
    lie in OUT.parts. On several hosts (see jaxift --help) OUT is on a path that they share.
    """

    requests: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="REQUESTS.jsonl")]
    """A request a line: {"id": "...", "context": "...", "options": ["...", ...]}; options follow verbatim."""
    out: Annotated[str, tyro.conf.arg(aliases=["-o"], metavar="OUT.parquet")]
    """The parquet file to write: id, option, logprob, num_tokens, num_bytes, num_chars, is_greedy."""
    model: str
    """A Hugging Face or orbax folder, a Hub id, or an address such as gs://bucket/model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in, and what the weights are held in."""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    bos: Literal["auto", "always", "never"] = "auto"
    """Begin sequences with BOS: where the tokenizer would, always, never."""
    seam: Seam = "lm-eval"
    """How a context and an option become tokens; see docs/scoring.md."""
    tokens: tyro.conf.FlagCreatePairsOff[bool] = False
    """Also write token_logprobs: the log-probability of each token of an option."""
    shard: str = "1/1"
    """I/N: score the I-th (from 1) of N equal shares of the requests, into OUT-0000I-of-0000N.parquet. Any reader of
    parquet takes the shares' folder as one table."""
    max_positions: int | None = None
    """Shortens the model's length limit."""
    batch_tokens: int | None = None
    """Tokens that go through the model at once; by default what suits the device."""
    profile: str | None = None
    """A folder into which a trace of the scoring is written, for TensorBoard or Perfetto."""
    overwrite: tyro.conf.FlagCreatePairsOff[bool] = False
    """Replace OUT, and parts of another run that was not finished."""


KINDS = {"score": ScoreFile}


def main(verb: ScoreFile, console: Console) -> int:
    """Scores a file of requests and returns the exit code."""
    from jaxift.models.checksum import checksum
    from jaxift.models.weights import load
    from jaxift.parallel.mesh import joint_mesh
    from jaxift.scoring.rows import write_scores

    if hosts.process_index():
        console = Console(quiet=True)
    started = time.monotonic()
    out, job = meeting.on_every_process(lambda: _prepared(verb))
    settings = [job.facts, _cut(verb), str(out), verb.overwrite, verb.tokens]
    meeting.same_everywhere("model, requests and settings", digest(settings))
    said = {**job.facts, "--tokens": int(verb.tokens)}
    _is_done(out, said, verb.overwrite)  # what can be refused is refused before the weights are loaded
    mesh = joint_mesh(verb.mesh)
    _claimed(out, job.facts, verb)
    model = load(verb.model, mesh, verb.dtype, bos=verb.bos, seam=verb.seam, max_positions=verb.max_positions)
    weights = {"weights": checksum(model.decoder)}
    said, store = {**said, **weights}, _claimed(out, {**job.facts, **weights}, verb)
    if _is_done(out, said, verb.overwrite):
        meeting.on_first_process(store.remove)
        _say(console, f"{out}: {len(job.asked.ids)} requests done before")
        return 0
    scores, took = _scored(model, job, store, verb, console)

    def finish() -> None:
        record = {"tokenizer policy": job.tokenizer, "versions": versions()}
        write_scores(out, job.asked.ids, job.asked.requests, scores, facts=said, record=record, with_tokens=verb.tokens)
        store.remove()

    meeting.barrier("all parts read", hosts.WORK_TIMEOUT)  # by every process, before the first one removes them
    meeting.on_first_process(finish)
    options, seconds = sum(len(score.num_tokens) for score in scores), time.monotonic() - started
    _say(console, f"{out}: {len(scores):,} requests, {options:,} options in {seconds:.1f} s; {took}")
    return 0


def _prepared(verb: ScoreFile) -> "tuple[epath.Path, Job]":
    """Where the rows go, and the requests: what can be refused before the weights are loaded."""
    from jaxift.scoring.job import prepare

    if verb.batch_tokens is not None and verb.batch_tokens < 1:
        raise UserError(f"--batch-tokens {verb.batch_tokens}: give a number from 1")
    shard = _shard(verb.shard)
    out = _out_path(verb.out, verb.requests, shard)
    return out, prepare(
        verb.requests,
        verb.model,
        dtype=verb.dtype,
        bos=verb.bos,
        seam=verb.seam,
        max_positions=verb.max_positions,
        shard=shard,
    )


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,5})/(\d{1,5})", text)
    number, shards = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= shards:
        raise UserError(f"--shard {text}: give I/N, the I-th of N shares, counted from 1: 1/4, 2/4, 3/4 or 4/4")
    return number, shards


def _out_path(text: str, requests: str, shard: tuple[int, int]) -> "epath.Path":
    """Where the rows go: into a file of its own for each shard."""
    from etils import epath

    path = epath.Path(text)
    try:
        is_folder = path.is_dir()
    except ImportError as error:
        raise UserError(f"-o {text}: {error}; for gs:// install jaxift[gcs]") from None
    if is_folder:
        raise UserError(f"-o {text}: is a folder; give a file")
    if path.exists() and epath.Path(requests).exists() and path.resolve() == epath.Path(requests).resolve():
        raise UserError(f"-o {text}: is the file of requests; give another one")
    number, shards = shard
    return path if shards == 1 else path.parent / f"{path.stem}-{number:05d}-of-{shards:05d}{path.suffix}"


def _cut(verb: ScoreFile) -> dict[str, str | int | None]:
    """What the parts of a run depend on beyond what its scores do."""
    return {
        "--mesh": "x".join(str(size) for size in verb.mesh.model_dump().values()),
        "--batch-tokens": verb.batch_tokens,
        "versions": digest(versions()),
    }


def _is_done(out: "epath.Path", facts: "Facts", overwrite: bool) -> bool:
    """Whether `out` holds these very scores; another file there is refused unless it may be replaced."""
    from jaxift.scoring.rows import read_facts
    from jaxift.scoring.store import differences

    found = read_facts(out) if out.exists() else {}
    meeting.same_everywhere(f"what stands at {out} (is it on a path that all processes share?)", digest(found))
    if overwrite or found == {}:
        return False
    if found is None:
        raise UserError(f"{out}: is there, and no file of scores; choose another -o, or give --overwrite")
    if other := differences(found, facts):
        raise UserError(f"{out}: holds scores with another {', '.join(other)}; choose another -o, or give --overwrite")
    return True


def _claimed(out: "epath.Path", facts: "Facts", verb: ScoreFile) -> "ScoreStore":
    """The folder of parts beside `out`; refused where it holds another run's, or is not the same for all processes."""
    from jaxift.scoring.store import ScoreStore

    folder = out.parent / f"{out.name}.parts"
    store = ScoreStore(folder, {**facts, **_cut(verb)}, hosts.process_index(), hosts.process_count(), verb.overwrite)
    meeting.on_first_process(lambda: _claim(store, verb))
    # what is behind an address is the same for all, and has no folders that could be looked for
    if store.processes > 1 and "://" not in verb.out and not meeting.everywhere(np.array([folder.is_dir()])).all():
        raise UserError(f"{folder}: is not seen by every process; give an -o on a path that all share")
    return store


def _claim(store: "ScoreStore", verb: ScoreFile) -> None:
    """Asks for what may be refused before there is work to lose."""
    store.check()
    writable_folder(store.folder.parent, "-o")
    if verb.profile is not None:
        writable_folder(verb.profile, "--profile")
    if store.processes > 1:
        writable_folder(store.folder, "-o")


@contextlib.contextmanager
def _profiled(folder: str | None) -> Iterator[None]:
    """Writes a trace of what runs inside."""
    import jax

    with contextlib.nullcontext() if folder is None else jax.profiler.trace(folder):
        yield


@contextlib.contextmanager
def _shown(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Shows progress in tokens: a bar on a terminal, a line now and then elsewhere."""
    told_at, told = time.monotonic(), 0

    def tell(done: int, total: int) -> None:
        nonlocal told_at, told
        bars.update(bar, completed=done, total=total)
        seconds = time.monotonic() - told_at
        if not console.is_terminal and seconds > LINE_SECONDS:
            speed = (done - told) / seconds  # of late: what was done before counts at once
            left = f"{(total - done) / speed:,.0f} s left" if speed else "waiting"
            _say(console, f"score: {done / total:.0%} of {total:,} tokens, {speed:,.0f} tokens/s, {left}")
            told_at, told = time.monotonic(), done

    columns = (TextColumn("score"), BarColumn(), TaskProgressColumn(), _Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("score", total=None)
        yield tell


class _Speed(ProgressColumn):
    """Tokens a second, of late."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:,.0f} tokens/s" if task.speed else "")


def _scored(
    model: "LanguageModel", job: "Job", store: "ScoreStore", verb: ScoreFile, console: Console
) -> "tuple[list[Score], str]":
    """Scores of the token requests, parts that are there read and not made again; and what it took, in words."""
    from jaxift.scoring.engine import score_tokens

    reports: list[Statistics] = []
    with _profiled(verb.profile), _shown(console) as progress:
        scores = score_tokens(
            model.decoder, job.encoded.requests, model.mesh, dtype=model.dtype, batch_tokens=verb.batch_tokens,
            store=store, progress=progress, report=reports.append,
        )  # fmt: skip
    return job.encoded.gather(scores), _told(reports[0])


def _told(took: "Statistics") -> str:
    useful = took.useful_tokens / took.fed_tokens
    speed = (took.fed_tokens - took.resumed_tokens) / max(took.seconds, 1e-9)
    return (
        f"{took.asked_tokens:,} tokens asked, {took.fed_tokens:,} fed ({useful:.0%} useful), {speed:,.0f} a second; "
        f"{took.programs} programs compiled in {took.compile_seconds:.1f} s"
    )


def _say(console: Console, line: str) -> None:
    console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
