"""The frozen types of a study's configuration: validation, no behaviour."""

import dataclasses
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, Field, ValidationError, model_validator

from jaxift.arms import Arm, canonical, parse_arm
from jaxift.errors import UserError
from jaxift.source_config import Count, Frozen, QuestionSource

TEST_SETS = ("homo", "id", "ood")
SPLITS = ("train", *TEST_SETS)

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
ArmName = Annotated[str, AfterValidator(canonical)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


Seam = Literal["lm-eval", "joint", "separate", "isolated"]
"""How a context and what continues it become tokens.

`lm-eval`: the context's trailing whitespace moves to the continuation, since tokenizers join a space to the next word;
the context is tokenised alone, and the continuation is what the whole text has beyond that many tokens (as
lm-evaluation-harness 0.4.13 does for decoder-only models). `joint`: the whole text is tokenised, nothing moved, and
split after as many tokens as the context has alone. `separate`: each alone, the continuation as a text that follows
another. `isolated`: the context alone, and of an answer letter the last token that it has as a text of its own (the
release of Ren et al. 2024; with SentencePiece it can be another token than the one that follows `Answer:`).
"""

BASE = "BASE"  # the arm name of the untuned model, evaluated like every cell


@dataclasses.dataclass(frozen=True)
class Cell:
    """One evaluated model of a study: a domain, an arm (or BASE) and a seed (None for BASE)."""

    domain: str
    arm: str
    seed: int | None = None

    @property
    def id(self) -> str:
        """Name of its folder under cells/; what it is stands in its cell.json."""
        return f"{self.domain}-{self.arm}" + ("" if self.seed is None else f"-s{self.seed}")

    @property
    def checkpoints(self) -> str:
        """Folder of its checkpoints, relative to the run directory."""
        return f"cells/{self.id}/checkpoints"


class DomainConfig(Frozen):
    """One study domain: the pool that arms are drawn from, and its three test sets."""

    name: Name
    words: str = ""
    """How the prompt's header calls the domain; empty: its name."""
    train: tuple[QuestionSource, ...] = ()
    """The pool; not needed where build.released has the arms."""
    dev: tuple[QuestionSource, ...] = ()
    """Few-shot demonstrations; needed where probe.shots > 0."""
    homo: tuple[QuestionSource, ...]
    """Held-out questions of the training source."""
    id: tuple[QuestionSource, ...]
    """Other questions of the same domain."""
    ood: tuple[QuestionSource, ...]
    """Questions of other domains."""
    overlap: Literal["refuse", "drop"] = "refuse"
    """What becomes of training questions that are also tested on or are demonstrations. Demonstrations that are tested
    on are refused too, or with drop counted and kept. Compared by text and options without case and punctuation."""
    repeats: Literal["keep", "drop"] = "keep"
    """What becomes of training questions that stand there before under another id; the paper's release keeps them."""

    @property
    def called(self) -> str:
        """How prompts call the domain."""
        return self.words or self.name


class ModelConfig(Frozen):
    """The base model."""

    path: str
    """A Hugging Face folder, an `owner/name` of the Hub, a URL (gs://...), or a folder made by `jaxift convert`."""
    max_positions: Count | None = None
    """Longest text in tokens, up to the model's own limit, which is the default."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Computation type of scoring and tuning; norms, softmax and loss stay float32, and so do the tuned weights."""
    bos: Literal["auto", "always", "never"] = "auto"
    """Begin with the BOS token: auto does what the tokenizer itself would."""
    seam: Seam = "lm-eval"
    """How a prompt and its answer become tokens; isolated reads letters as the paper's release does."""


class MeshConfig(Frozen):
    """How many devices each mesh axis has."""

    cell: Count = 1
    """Models of a stack that is tuned and evaluated in one program; where there is one model, rows of a batch."""
    data: Count = 1
    """Rows of a batch."""
    fsdp: Count = 1
    """Rows of a batch, and the weights' embedding dimension."""
    tensor: Count = 1
    """Heads, MLP and vocabulary."""


class ProbeConfig(Frozen):
    """How the base model's knowledge is read out; evaluation uses the same read-out, zero-shot."""

    prompt: Literal["paper", "paper_bare_turn", "cloze", "world"] = "paper"
    """A pair of templates (probe and instruction) from data/prompts.py; paper_bare_turn has no header and no closing
    `Answer:` in the user's turn."""
    chat: Literal["study", "model"] = "study"
    """Around an instruction: the study's own conversation, or the chat template of the model's tokenizer."""
    formulation: Literal["mcf", "cf"] = "mcf"
    """mcf: the probability of the option's letter. cf: of the option's own text."""
    normalization: Literal["sum", "per_token", "per_byte", "per_char"] = "sum"
    """What a CF score is divided by."""
    shots: Annotated[int, Field(ge=0)] = 5
    """Demonstrations before each probed question."""
    demonstration_seed: Annotated[int, Field(ge=0)] = 42
    """Python's random shuffles the dev questions by it; the first `shots` serve every question of the domain."""
    rotations: bool = False
    """Average the training pool's probabilities over all rotations of the options, against position bias."""
    prior_questions: Annotated[int, Field(ge=0)] = 0
    """Ask so many training questions in all rotations, and divide the preference for places that they show out of the
    answers to all others, asked once (PriDe); 0 corrects nothing."""
    draws: Count = 1
    """Ask the training pool with so many draws of demonstrations (by demonstration_seed and the seeds after it)."""
    samples: Annotated[int, Field(ge=0)] = 0
    """Answers sampled per training question, over its draws and rotations, to tell weak knowledge from none."""
    sample_temperature: Positive = 0.5
    threshold: Share = 0.5
    """Belief counts as knowledge only above this probability of the predicted option."""


class GeneralConfig(Frozen):
    """General instructions that are mixed into every arm."""

    path: str
    """A JSON list, or JSONL, of objects with instruction, input and output; relative to the study's data_dir."""
    share: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    """How many, for each item of an arm."""


class ExplainConfig(Frozen):
    """How the base model explains answers, where arms need that; temperature and the like are the paper's."""

    temperature: NonNegative = 0.7
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.8
    max_new_tokens: Count = 256
    """A text that has not come to its end by then is over-long: its item is left out of the arms that need it."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 0


class BuildConfig(Frozen):
    """How instruction sets are built from the probe."""

    arms: tuple[ArmName, ...] = ("HAR", "INC", "SELF")
    """Names as HAR, INC+context or SELF@0.4, see jaxift/arms.py."""
    cap: Count | None = None
    """Largest number of items an arm; all arms of a domain have equal size."""
    minimum: Count = 1
    """A domain with fewer qualifying items an arm is refused."""
    response_format: Literal["letter", "option", "letter_and_option"] = "letter_and_option"
    """What the model is trained to answer."""
    explanations: bool = False
    """Train on an explanation after the answer: the source's own for the true answer, the base model's for its own."""
    explain: ExplainConfig = ExplainConfig()
    context: Literal["context", "explanation"] = "context"
    """What +context puts before a question: its field context, or its explanation."""
    context_when: Literal["training", "always"] = "training"
    """Whether the tuned models of +context are evaluated without contexts, or with those that test questions have."""
    draw: Literal["random", "first"] = "random"
    """How items are drawn from those that qualify: by the study's seed, or the first ones of the probe's order."""
    refusal: str = "I am not sure about the answer to this question."
    """What REFUSAL trains on."""
    general: GeneralConfig | None = None
    """General instructions, the same in the same places of every arm."""
    released: str = ""
    """A folder made by `jaxift import-release`, relative to the study's data_dir: its arms are taken as they are,
    instead of being drawn."""

    @property
    def parsed(self) -> tuple[Arm, ...]:
        """What the arms' names say."""
        return tuple(parse_arm(name) for name in self.arms)


class ChainPart(Frozen):
    """One part of an optimizer: a function of optax, by its name, and what it is called with."""

    name: str
    options: dict[str, float | bool | str] = Field(default_factory=dict)


class LoraConfig(Frozen):
    """Low-rank adapters (Hu et al. 2021) that are tuned instead of the weights."""

    rank: Annotated[int, Field(ge=0)] = 0
    """0 tunes all weights instead."""
    alpha: Positive = 32.0
    """The adapters' product is multiplied with alpha / rank."""
    targets: tuple[Literal["q", "k", "v", "o", "gate", "up", "down"], ...] = ("q", "k", "v", "o", "gate", "up", "down")
    """Which of each layer's matrices have one."""


class TuneConfig(Frozen):
    """Fine-tuning, of all weights unless `lora.rank` says otherwise; the defaults are the paper's for LLaMA-2."""

    learning_rate: Positive = 2e-5
    """Peak of the schedule."""
    epochs: Count = 3
    batch_size: Count = 256
    """Global number of examples an optimizer step."""
    warmup: Share = 0.03
    """Share of the steps before the peak; cosine to zero afterwards."""
    weight_decay: NonNegative = 0.0
    beta1: Share = 0.9
    beta2: Share = 0.999
    epsilon: Positive = 1e-8
    chain: tuple[ChainPart, ...] = ()
    """Another optimizer than AdamW, such as [{name: sgd, options: {momentum: 0.9}}]; the learning rate is that of the
    schedule, and clipping stays before it."""
    clip_norm: Positive = 1.0
    """Largest global gradient norm."""
    max_length: Count = 2048
    """Longest example in tokens."""
    too_long: Literal["refuse", "truncate"] = "refuse"
    """What becomes of longer ones; truncate cuts them at the end, as the paper's trainer did."""
    lora: LoraConfig = LoraConfig()
    kl: NonNegative = 0.0
    """Weight of the divergence KL(tuned || base) at the response tokens, in nats beside the cross-entropy."""
    mask_perplexity: Positive | None = None
    """Response tokens that the base model finds more perplexing than this are not learned."""
    skip_spikes: NonNegative = 0.0
    """Leave out a step whose loss is so many times the mean of those before it; 0 leaves out none."""
    packing: bool = True
    """Put several examples into a row, each attending to itself alone: the same numbers, less padding."""
    micro_tokens: Count | None = None
    """Tokens of one model that go through a device at once; a step's gradients are summed over as many parts as it
    needs. By default what suits the device."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but products with weights, or layers (a third more work)."""
    checkpoint_every: Annotated[int, Field(ge=0)] | None = None
    """Optimizer steps between resumable checkpoints; 0 saves the end alone. By default about ten minutes' worth."""
    keep: Count = 2
    """Resumable checkpoints that are kept while a cell is tuned."""
    export: bool = False
    """Also write what was tuned as others read it, in cells/ID/model: a Hugging Face folder, or with lora the adapter
    in PEFT's layout."""
    export_every: Count | None = None
    """Also write the model as it is after every so many steps, in steps/N beside it: to see when what was fitted."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard, in tensorboard/ID."""
    wandb: str = ""
    """Also log the metrics to Weights & Biases, a run a cell, in the project of this name (install jaxift[wandb])."""


ON_THE_WAY = {"checkpoint_every", "keep", "micro_tokens", "packing", "remat", "tensorboard", "wandb"}
"""Settings of tuning that change nothing of what comes out, up to rounding."""


class AnalyzeConfig(Frozen):
    """Intervals of the analysis."""

    resamples: Annotated[int, Field(ge=100)] = 1000
    """Bootstrap resamples."""
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    seed: Annotated[int, Field(ge=0)] = 0


class StudyConfig(Frozen):
    """A study: base model, domains, arms and seeds. One YAML file holds one."""

    name: Name
    run_dir: str = ""
    """Where everything is written, a local path or gs://; empty: runs/NAME."""
    data_dir: str = "."
    """Folder that the question sources' paths are relative to."""
    model: ModelConfig
    mesh: MeshConfig = MeshConfig()
    domains: tuple[DomainConfig, ...]
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    """Each seed draws its own items and orders its own batches."""
    probe: ProbeConfig = ProbeConfig()
    build: BuildConfig = BuildConfig()
    tune: TuneConfig = TuneConfig()
    analyze: AnalyzeConfig = AnalyzeConfig()
    memory_per_device: Positive | None = None
    """GiB that tuning may take on each device; by default what the device says it has, on CPU half of the RAM."""
    batch_tokens: Count | None = None
    """Tokens a forward pass when scoring; by default what suits the devices."""

    @model_validator(mode="after")
    def _consistent(self) -> "StudyConfig":
        for field, values in (
            ("domains", [domain.name for domain in self.domains]),
            ("seeds", self.seeds),
            ("build.arms", self.build.arms),
        ):
            if not values:
                raise ValueError(f"{field} is empty; name at least one")
            if len(set(values)) != len(values):
                raise ValueError(f"{field} has a value twice: {list(values)}")
        for domain in self.domains:
            for split in TEST_SETS if self.build.released else SPLITS:
                if not getattr(domain, split):
                    raise ValueError(f"domain {domain.name} has no {split} source; name at least one file")
            if self.probe.shots and not domain.dev:
                raise ValueError(f"domain {domain.name} has no dev source, but probe.shots is {self.probe.shots}")
        self._read_outs_fit()
        return self

    def _read_outs_fit(self) -> None:
        if (self.probe.formulation == "cf") != (self.probe.prompt == "cloze"):
            raise ValueError(
                f"probe.formulation {self.probe.formulation} does not go with probe.prompt {self.probe.prompt}: "
                "cf reads option texts after the prompt cloze, mcf letters after the others"
            )
        if self.probe.formulation == "cf" and self.build.response_format != "option":
            raise ValueError("probe.formulation cf reads option texts; set build.response_format to option")
        if self.probe.formulation == "mcf" and self.build.response_format == "option":
            raise ValueError("probe.formulation mcf reads letters; set build.response_format to one with the letter")
        if self.probe.prior_questions and (self.probe.rotations or self.probe.formulation == "cf"):
            raise ValueError(
                "probe.prior_questions corrects letters asked once: set probe.rotations false, formulation mcf"
            )
        if self.probe.chat == "model" and self.probe.prompt == "world":
            raise ValueError("probe.chat model does not go with probe.prompt world, which is no conversation")
        if self.model.seam == "isolated" and self.probe.formulation == "cf":
            raise ValueError("model.seam isolated reads letters; it does not go with probe.formulation cf")
        for arm in self.build.parsed:
            if self.probe.formulation == "cf" and (arm.has("balanced") or arm.has("shuffled")):
                raise ValueError(
                    f"build.arms: {arm.name} moves options, which probe.prompt cloze does not list; remove it"
                )
            if arm.has("unexplained") and not self.build.explanations:
                raise ValueError(f"build.arms: {arm.name} is {arm.plain} itself; set build.explanations true")

    @property
    def run_path(self) -> str:
        """The run directory, with the default filled in."""
        return self.run_dir or f"runs/{self.name}"


def describe(error: ValidationError, source: str) -> str:
    """All of a validation error's findings in one line that names file and field."""
    findings = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        message = (
            "is not a known key; remove it or check its spelling" if item["type"] == "extra_forbidden" else item["msg"]
        )
        findings.append(f"{field}: {message}" if field else message.removeprefix("Value error, "))
    return f"{source}: " + "; ".join(findings)


def parse_study(text: str, source: str) -> StudyConfig:
    """Reads a study from YAML text; raises UserError naming `source` and the field."""
    return _validated(_mapping(text, source), source)


def _mapping(text: str, source: str) -> dict[str, Any]:
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{source}: not valid YAML: {error}") from None
    if not isinstance(data, dict):
        raise UserError(f"{source}: a study is a mapping of keys, see configs/ for examples")
    return data


def _validated(data: dict[str, Any], source: str) -> StudyConfig:
    try:
        return StudyConfig.model_validate(data)
    except ValidationError as error:
        raise UserError(describe(error, source)) from None


def load_study(path: str | Path) -> StudyConfig:
    """Reads a study's YAML file; raises UserError naming file and field.

    The key `extends` names another file, relative to this one, whose keys hold where this one has none; of a mapping
    (`model`, `tune`), its own keys.
    """
    return _validated(_extended(Path(path), ()), str(path))


def _extended(path: Path, before: tuple[Path, ...]) -> dict[str, Any]:
    """A YAML file's mapping laid over that of the file which it extends."""
    if path in before:
        raise UserError(f"{path}: extends itself; remove the key extends")
    if not path.is_file():
        raise UserError(f"{path}: no such configuration file; see configs/ for examples")
    try:
        data = _mapping(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as text: {error}") from None
    if "extends" not in data:
        return data
    extended = _extended(path.parent / str(data.pop("extends")), (*before, path))
    for key, value in data.items():
        whole = isinstance(value, dict) and isinstance(extended.get(key), dict)
        extended[key] = {**extended[key], **value} if whole else value
    return extended


def dump_study(config: StudyConfig) -> str:
    """The resolved study as YAML that `load_study` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
