"""Scores on disk while they are made: a folder of parts, so that a run that was stopped goes on where it was.

A part is one parquet file a process, an option a row. It says in its metadata which run it belongs to and what it
should hold; a part that is cut short, damaged or of another run counts as not there.
"""

import dataclasses
import hashlib
import itertools
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxift.artifacts import digest, versions
from jaxift.errors import UserError
from jaxift.scoring.requests import TokenRequest

SCORES_VERSION = 2  # raised when scores of the same model, tokens and settings may come out as other numbers
_METADATA = b"jaxift.scores"
SEEN_SECONDS = 60.0  # until what another process has written is seen
_SUFFIX = ".parquet"

Facts = Mapping[str, str | int | None]


@dataclasses.dataclass(frozen=True)
class Answers:
    """What was found for some options, an entry an option; `options` are running numbers over all requests' options."""

    options: np.ndarray
    """int64 [n]"""
    num_tokens: np.ndarray
    """int32 [n]"""
    token_logprobs: np.ndarray
    """float32 [num_tokens.sum()], options one after another"""
    is_greedy: np.ndarray
    """bool [n]"""


@dataclasses.dataclass(frozen=True)
class ScoreStore:
    """The parts of one run. `facts` are what its scores depend on, by the names that a user is told where they differ.

    Each of `processes` writes its own files and reads those of all. With `afresh`, parts of another run are no reason
    to stop: they count as not there.
    """

    folder: epath.Path
    facts: Facts
    process: int = 0
    processes: int = 1
    afresh: bool = False

    def for_plan(self, plan: str) -> "ScoreStore":
        """The same store for the parts of one plan; `plan` is a hash of how they are cut and of all token ids.

        Raises UserError as `check` does, so that work done under another plan is not thrown away unasked.
        """
        store = dataclasses.replace(self, facts={**self.facts, "plan": plan})
        store.check()
        return store

    def check(self) -> None:
        """Raises UserError where the folder holds whole parts of a run with other facts."""
        if self.afresh or not self.folder.is_dir():
            return
        for path in sorted(self.folder.iterdir()):
            table = _table(path) if path.name.endswith(_SUFFIX) else None
            if table is not None and (other := differences(_said(table).get("facts", {}), self._all_facts)):
                raise UserError(
                    f"{self.folder}: holds results of a run that was not finished with another {', '.join(other)}; "
                    "finish that one, choose another -o, or give --overwrite to start afresh"
                )

    def finished(self, parts: int) -> np.ndarray:
        """Which parts [parts] of this process are there, whole and of this run."""
        return np.array([self._load(part, self.process) is not None for part in range(parts)], bool)

    def write(self, part: int, answers: Answers) -> None:
        """Puts a part in place; raises UserError where it cannot be written."""
        said = {"facts": self._all_facts, "part": part, "process": self.process, "content": _content(answers)}
        offsets = np.concatenate([[0], np.cumsum(answers.num_tokens)]).astype(np.int32)
        table = pa.table(
            {
                "option": np.asarray(answers.options, np.int64),
                "num_tokens": np.asarray(answers.num_tokens, np.int32),
                "is_greedy": np.asarray(answers.is_greedy, bool),
                "token_logprobs": pa.ListArray.from_arrays(offsets, np.asarray(answers.token_logprobs, np.float32)),
            },
            metadata={_METADATA: json.dumps(said, sort_keys=True)},
        )
        write_table(self._path(part, self.process), table)

    def read(self, part: int) -> Answers:
        """A part of all processes together, in their order; raises UserError where one is not there."""
        found = list(self._loaded(part))
        columns = [field.name for field in dataclasses.fields(Answers)]
        return Answers(*(np.concatenate([getattr(answers, name) for answers in found]) for name in columns))

    def remove(self) -> None:
        """Removes the folder and all parts."""
        self.folder.rmtree(missing_ok=True)

    @property
    def _all_facts(self) -> Facts:
        # a file of one process of two holds half of a part
        return {**self.facts, "number of processes": self.processes}

    def _path(self, part: int, process: int) -> epath.Path:
        return self.folder / f"part-{part:05d}.p{process}{_SUFFIX}"

    def _loaded(self, part: int) -> Iterator[Answers]:
        for process in range(self.processes):
            answers, deadline = self._load(part, process), time.monotonic() + SEEN_SECONDS
            while answers is None and process != self.process and time.monotonic() < deadline:
                time.sleep(0.2)  # a shared folder may show what another host wrote a moment later
                answers = self._load(part, process)
            if answers is None:
                path = self._path(part, process)
                raise UserError(f"{path}: is gone or was damaged meanwhile; run the same command again")
            yield answers

    def _load(self, part: int, process: int) -> Answers | None:
        """A part of a process where it is whole and of this run."""
        table = _table(self._path(part, process))
        if table is None:
            return None
        said = _said(table)
        expected = {"facts": dict(self._all_facts), "part": part, "process": process}
        if {name: said.get(name) for name in expected} != expected:
            return None
        try:
            lists = table.column("token_logprobs").combine_chunks()
            answers = Answers(
                options=table.column("option").to_numpy(),
                num_tokens=table.column("num_tokens").to_numpy(),
                token_logprobs=lists.flatten().to_numpy(),
                is_greedy=table.column("is_greedy").to_numpy(),
            )
        except (KeyError, ValueError, AttributeError):  # of other columns or types
            return None
        return answers if said.get("content") == _content(answers) else None


def unit_store(
    folder: epath.Path, key: str, mesh: Mapping[str, int], process: int = 0, processes: int = 1
) -> ScoreStore:
    """The parts of a stage's unit of work, made on a mesh of these sizes; those of another unit count as not there."""
    facts = {"unit": key, "mesh": str(dict(mesh)), "versions": digest(versions())}
    return ScoreStore(folder, facts, process, processes, afresh=True)


def digest_tokens(requests: Sequence[TokenRequest]) -> str:
    """Hash of all token ids and of where each context and option ends; ten million take less than a second."""
    texts = [text for request in requests for text in (request.context, *request.options)]
    counts = np.fromiter((len(request.options) for request in requests), np.int64, len(requests))
    lengths = np.fromiter(map(len, texts), np.int64, len(texts))
    tokens = np.fromiter(itertools.chain.from_iterable(texts), np.int32, int(lengths.sum()))
    return _hash(counts, lengths, tokens)


def differences(found: Facts, expected: Facts) -> list[str]:
    """Names of the expected facts that are otherwise in `found`."""
    return [name for name, value in expected.items() if found.get(name) != value]


def write_table(path: epath.Path, table: pa.Table) -> None:
    """Writes a parquet file whole: under another name first, where the file system can rename.

    The same table gives the same bytes. Raises UserError where it cannot be written.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=1 << 20)
    remote = "://" in str(path)  # an object of a store appears when it is whole
    partial = path if remote else path.parent / f".{path.name}.{os.getpid()}.partial"  # readers of parquet pass it over
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(sink.getvalue().to_pybytes())
        if not remote:
            partial.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error}); give a path with room, and run again") from None


def _table(path: epath.Path) -> pa.Table | None:
    """A parquet file's content, or None where it is no whole parquet file."""
    try:
        return pq.read_table(pa.BufferReader(path.read_bytes()))
    except (OSError, pa.ArrowException):
        return None


def _said(table: pa.Table) -> dict:
    """What a part says of itself; empty where it is no part."""
    try:
        said = json.loads((table.schema.metadata or {})[_METADATA])
    except (KeyError, ValueError):
        return {}
    return said if isinstance(said, dict) else {}


def _content(answers: Answers) -> str:
    return _hash(
        np.asarray(answers.options, np.int64),
        np.asarray(answers.num_tokens, np.int32),
        np.asarray(answers.token_logprobs, np.float32),
        np.asarray(answers.is_greedy, bool),
    )


def _hash(*arrays: np.ndarray) -> str:
    total = hashlib.sha256()
    for array in arrays:
        total.update(f"{array.dtype.str}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()[:24]
