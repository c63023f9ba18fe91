"""The rows of a source, whatever it is kept in: JSONL, CSV and parquet files, Hugging Face datasets, TFDS.

Each comes with a text that names it in messages, and its number from 1.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxift.errors import UserError
from jaxift.source_config import QuestionSource

Row = dict[str, Any]
Rows = Iterator[tuple[int, str, Row]]


def source_rows(source: QuestionSource, data_dir: str) -> Rows:
    """The rows of a source that has named columns; raises UserError naming the file, and the row where there is one."""
    path = epath.Path(data_dir) / source.path
    match source.kind:
        case "csv":
            return csv_rows(path)
        case "parquet":
            return parquet_rows(path)
        case "datasets":
            return _numbered(f"{source.path} [{source.split}]", _datasets(source, path))
        case "tfds":
            return _numbered(f"{source.path} [{source.split}]", _tfds(source, data_dir))
        case _:
            return jsonl_rows(path)


def read_text(path: epath.Path) -> str:
    """A file's UTF-8 text; raises UserError where there is none."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: no such file; check the source's path and --data-dir") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text: {error}") from None


def jsonl_rows(path: epath.Path) -> Rows:
    """The objects of a JSONL file; numbers are those of its lines."""
    # not splitlines(): a JSON string may hold U+2028 and the like, which are no line ends of JSONL
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # nested too deep, or numbers too long
            raise UserError(f"{where}: not valid JSON ({error}); write one object a line") from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: holds {type(row).__name__}, not an object; write one object a line")
        yield number, where, row


def csv_rows(path: epath.Path) -> Rows:
    """The rows of a CSV file whose first row names the columns; all values are texts."""
    reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = reader.fieldnames or ()
        if twice := [name for name in names if list(names).count(name) > 1]:
            raise UserError(f"{path}: the header names {twice[0]!r} twice; give each column a name of its own")
        for number, row in enumerate(reader, 1):
            where = f"{path}: row {number}"
            if None in row or None in row.values():
                raise UserError(
                    f"{where}: has another number of values than the header has columns; quote values that hold commas"
                )
            yield number, where, row
    except csv.Error as error:
        raise UserError(f"{path}: line {reader.line_num}: not valid CSV ({error})") from None


def parquet_rows(path: epath.Path) -> Rows:
    """The rows of a parquet file."""
    try:
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{path}: no such file; check the source's path and --data-dir") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"{path}: cannot be read as parquet: {error}") from None
    return _numbered(str(path), iter(table.to_pylist()))


def _numbered(name: str, rows: Iterator[Row]) -> Rows:
    for number, row in enumerate(rows, 1):
        yield number, f"{name}: row {number}", row


def _datasets(source: QuestionSource, path: epath.Path) -> Iterator[Row]:
    """A split of a Hugging Face dataset: a folder that `save_to_disk` wrote, one of data files, or one of the Hub."""
    import datasets  # imported here: it takes a second, and few studies need it

    datasets.disable_progress_bars()
    local = path.is_dir()
    try:
        if local and any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
            found: Any = datasets.load_from_disk(str(path))
            if isinstance(found, datasets.DatasetDict):
                found = found[source.split]
            elif found.split is not None and str(found.split) != source.split:
                raise ValueError(f"it holds the split {found.split}")
        else:
            found = datasets.load_dataset(
                str(path) if local else source.path, source.subset or None, split=source.split
            )
    except Exception as error:  # of many kinds: the Hub's, the file readers', and bare ones of datasets
        raise UserError(
            f"{source.path}: split {source.split} cannot be read by datasets: {_told(error)}; check path, subset, "
            "split and --data-dir"
        ) from None
    return iter(found)


def _tfds(source: QuestionSource, data_dir: str) -> Iterator[Row]:
    """A split of a prepared TFDS dataset in ArrayRecord or another format of random access; needs no TensorFlow."""
    import tensorflow_datasets as tfds  # imported here: it takes seconds, and few studies need it

    name = source.path.removeprefix("tfds:")
    folder = epath.Path(data_dir) / name
    try:
        builder: Any = tfds.builder_from_directory(folder) if folder.is_dir() else tfds.builder(name)
        found = builder.as_data_source(split=source.split)
    except Exception as error:  # of many kinds: not found, not prepared, another file format
        raise UserError(
            f"{source.path}: split {source.split} cannot be read by tensorflow-datasets: {_told(error)}; "
            "prepare it with file_format array_record, and check name and split"
        ) from None
    return (_plain(row) for row in found)


def _told(error: Exception) -> str:
    """What an error of another package says, which can be pages or nothing."""
    return str(error)[:200] or type(error).__name__


def _plain(value: Any) -> Any:
    """NumPy values and bytes as what JSON would hold."""
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list):
        return [_plain(each) for each in value]
    return value.decode() if isinstance(value, bytes) else value
