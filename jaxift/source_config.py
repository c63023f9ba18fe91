"""The frozen types that say where questions are read from; validation, no behaviour."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Scalar = str | int | float | bool

MmluSubjects = Literal[
    "all", "medicine", "history", "engineering", "jurisprudence", "law",
    "not medicine", "not history", "not engineering", "not jurisprudence", "not law",
]  # fmt: skip
"""Subjects of MMLU: those of a domain of the study, or all others; law is a part of jurisprudence."""
XiezhiPart = Literal["train", "dev", "test"]
SourceFormat = Literal["auto", "jsonl", "csv", "parquet", "datasets", "tfds", "mmlu_csv", "xiezhi"]
Header = Literal["domain", "subject", "subject_after_space"]


class Frozen(BaseModel):
    """A configuration value: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Fields(Frozen):
    """Names of a source's columns; a dot goes into a nested one (choices.text)."""

    id: str = "id"
    """Unique id of a question; where the column is absent, the row number serves."""
    question: str = "question"
    options: str | tuple[str, ...] = "options"
    """A column that holds a list of 2 to 26 texts, or a column for each option (the last of them may be empty)."""
    answer: str = "answer"
    """Index of the true option, its letter, or its text."""
    labels: str = ""
    """A column that lists the options' own names, where the answer is one of these (choices.label)."""
    subject: str = "subject"
    """Optional."""
    explanation: str = "explanation"
    """Optional: why the true answer is true; what HAR and INC are trained to say after it."""
    context: str = "context"
    """Optional: the knowledge that the question needs, for contextualised arms."""


class Xiezhi(Frozen):
    """A part of the study's split of one Xiezhi source."""

    domain: Literal["Engineering", "History", "Science", "Jurisprudence"]
    """What an item's labels must hold."""
    part: XiezhiPart


class QuestionSource(Frozen):
    """Where questions are read from."""

    path: str
    """A file or folder, relative to the study's data_dir; a dataset's Hub id (owner/name); or tfds:NAME, where NAME is
    that of a prepared dataset, or the folder of one."""
    format: SourceFormat = "auto"
    """auto: by the path's ending (.jsonl, .csv with a header, .parquet) or its tfds:. datasets: a Hugging Face dataset,
    by Hub id or local folder. mmlu_csv: no header; question, options..., letter; a file, or a folder of
    SUBJECT_SPLIT.csv. xiezhi: a raw source of the benchmark, JSONL of question, labels, answer, and options one a line;
    see `xiezhi`."""
    split: str = ""
    """Of datasets and tfds: the split to read."""
    subset: str = ""
    """Of datasets: the configuration's name."""
    fields: Fields = Fields()
    answers: Literal["auto", "index", "index_from_1", "letter", "text"] = "auto"
    """What the answers are; auto takes a number for an index from 0, a text for an option's own or else its letter, and
    refuses what could be two of these."""
    where: dict[str, Scalar] = {}
    """Keep the rows that have these values in these columns."""
    nonempty: tuple[str, ...] = ()
    """Keep the rows that have a text in these columns."""
    explanations: str = ""
    """A JSONL file of objects with `id` and `explanation`, which replace those of the source."""
    header: Header = "domain"
    """What a prompt's header says the questions are about: the domain, or each question's subject, underscores as
    spaces (after one more space, as the paper's release does for MMLU). Demonstrations are those of the same header."""
    subjects: MmluSubjects = "all"
    """Of a folder of MMLU, the files of these subjects."""
    xiezhi: Xiezhi | None = None
    """Which items of a Xiezhi source."""
    shuffle_seed: int | None = None
    """Shuffle before `limit` by this seed; none keeps the file's order."""
    limit: Count | None = None
    """Keep the first so many."""

    @property
    def kind(self) -> SourceFormat:
        """The format, told from the path where it is auto; still auto where the path does not tell."""
        if self.format != "auto":
            return self.format
        if self.path.startswith("tfds:"):
            return "tfds"
        endings: dict[str, SourceFormat] = {"jsonl": "jsonl", "csv": "csv", "parquet": "parquet"}
        return endings.get(self.path.rsplit(".", 1)[-1].lower(), "auto")

    @model_validator(mode="after")
    def _fits_its_format(self) -> "QuestionSource":
        kind = self.kind
        if kind == "auto":
            raise ValueError(
                f"{self.path}: the ending does not tell the format; set format to jsonl, csv, parquet, datasets, "
                "mmlu_csv or xiezhi, or write tfds:NAME"
            )
        if (kind == "xiezhi") != (self.xiezhi is not None):
            raise ValueError(f"{self.path}: format xiezhi and the key xiezhi (domain, part) go together")
        if self.subjects != "all" and kind != "mmlu_csv":
            raise ValueError(f"{self.path}: subjects are chosen from a folder of format mmlu_csv")
        if (kind in ("datasets", "tfds")) != bool(self.split):
            raise ValueError(f"{self.path}: the key split goes with the formats datasets and tfds, which need it")
        if self.subset and kind != "datasets":
            raise ValueError(f"{self.path}: the key subset goes with the format datasets alone")
        if kind in ("mmlu_csv", "xiezhi") and self.fields != Fields():
            raise ValueError(f"{self.path}: the format {kind} has its own columns; remove fields")
        return self
