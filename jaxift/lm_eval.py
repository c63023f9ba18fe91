"""jaxift as a model of lm-evaluation-harness: `--model jaxift`, registered when this module is imported.

Token ids, windows, truncation and stop texts are those of the harness' own `hf` model (0.4.13, decoder-only), so that
the same command with either gives the same results. Needs no torch.
"""

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jinja2
from flax import nnx

from jaxift.errors import UserError

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError as missing:
    raise UserError(f"lm-eval cannot be imported ({missing}); pip install 'jaxift[lm-eval]'") from None

from jaxift.config import MeshConfig
from jaxift.models.sampling import end_tokens, generate_tokens, stop_tokens
from jaxift.models.weights import load
from jaxift.parallel.mesh import configured_mesh
from jaxift.scoring.engine import score_tokens
from jaxift.scoring.requests import Request, TokenRequest, encode_requests

KNOWN = ("pretrained", "dtype", "max_length", "add_bos_token", "data", "fsdp", "tensor", "batch_tokens")
MAX_GEN_TOKS = 256
GENERATED_TOKENS = 4096
BOS = {None: "auto", True: "always", False: "never"}
# what the harness' tasks set to the value that changes nothing
NEUTRAL = {"num_beams": 1, "repetition_penalty": 1.0, "top_k": 0, "num_return_sequences": 1}

Pair = tuple[tuple[int, ...], tuple[int, ...]]
Requests = list[Any]
"""Instances of the harness: their `args` are (context, continuation), (text,) or (context, generation_kwargs)."""
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How one group of prompts is continued."""

    max_gen_toks: int
    temperature: float
    top_p: float
    until: tuple[str, ...]


@register_model("jaxift")
class JaxiftLM(TemplateLM):
    """A language model of jaxift, as the harness calls it.

    model_args: `pretrained` (see `jaxift.load`), `dtype`, `max_length` (shortens the model's limit), `add_bos_token`,
    `data`, `fsdp`, `tensor` (sizes of the device mesh), `batch_tokens`. The harness' `batch_size` and `device`
    (it names cuda:0 by itself) are not used: what goes through the model at a time is counted in tokens, and JAX takes
    its fastest platform, or that of JAX_PLATFORMS.
    """

    def __init__(
        self,
        pretrained: str = "",
        dtype: str = "float32",
        max_length: int | None = None,
        add_bos_token: bool | None = None,
        data: int = 1,
        fsdp: int = 1,
        tensor: int = 1,
        batch_tokens: int | None = None,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ):
        super().__init__()
        del batch_size, max_batch_size, device
        _check_arguments(pretrained, add_bos_token, {"max_length": max_length, "batch_tokens": batch_tokens}, unknown)
        try:
            sizes = MeshConfig(data=data, fsdp=fsdp, tensor=tensor)
        except ValueError as error:
            raise UserError(f"model_args: data={data}, fsdp={fsdp}, tensor={tensor} is no mesh ({error})") from None
        self.model = load(pretrained, configured_mesh(sizes), dtype, bos=BOS[add_bos_token], max_positions=max_length)
        # chat templates write BOS themselves; the harness takes it as it is
        self.encoder = dataclasses.replace(self.model.tokenizer, own_bos="keep")
        self.tokenizer = self.model.tokenizer.backend
        self.batch_tokens = batch_tokens

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        if self.encoder.eos is None:
            raise UserError("the tokenizer has no end-of-sequence token; name one in its tokenizer_config.json")
        return self.encoder.eos

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: BOS or else end-of-sequence."""
        return self.eot_token_id if self.encoder.prefix is None else self.encoder.prefix

    @property
    def max_length(self) -> int:
        """The longest sequence that the model reads, in tokens."""
        return self.model.config.max_positions

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's name in the harness' caches of requests."""
        return str(self.model.folder).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids of a text, with BOS as `add_bos_token` has it, or with none where `add_special_tokens` is False."""
        if add_special_tokens is False:
            return self.tokenizer.encode(string, add_special_tokens=False)
        return self.encoder.encode(string)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the text that the tokenizer's template makes of it; the system role dropped if refused."""

        def rendered(messages: list[dict[str, str]]) -> str:
            text = self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
            return str(text)

        try:
            return rendered(chat_history)
        except jinja2.TemplateError:
            return rendered([message for message in chat_history if message["role"] != "system"])

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "model_num_parameters": sum(leaf.size for leaf in jax.tree.leaves(nnx.state(self.model.decoder))),
            "model_dtype": str(self.model.dtype),
            "model_sha": self.model.fingerprint,
            "tokenizer_policy": self.encoder.describe(),
        }

    def loglikelihood(self, requests: Requests, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether greedy decoding would say it."""
        asked = [request.args for request in requests]
        by_context: dict[str, list[int]] = {}
        for number, (context, _) in enumerate(asked):
            by_context.setdefault(context, []).append(number)
        grouped = [
            Request(context, tuple(asked[number][1] for number in numbers)) for context, numbers in by_context.items()
        ]
        encoded = encode_requests(self.encoder, grouped)
        pairs: list[Pair] = [((), ())] * len(asked)
        for numbers, places in zip(by_context.values(), encoded.places, strict=True):
            for number, (request, option) in zip(numbers, places, strict=True):
                pairs[number] = encoded.requests[request].context, encoded.requests[request].options[option]
        answers = self._score(pairs, disable_tqdm)
        for args, answer in zip(asked, answers, strict=True):
            self.cache_hook.add_partial("loglikelihood", args, answer)
        return answers

    def loglikelihood_rolling(self, requests: Requests, disable_tqdm: bool = False) -> list[float]:
        """Log-probability of each whole text, in windows of the model's length, every token predicted once.

        Where the tokenizer adds BOS, it stands twice before the first window, as in the harness' `hf` model.
        """
        windows: list[Pair] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, context_len=1):
                context, predicted = make_disjoint_window(window)
                windows.append((tuple(context), tuple(predicted)))
                owners.append(number)
        totals = [0.0] * len(requests)
        for owner, (logprob, _) in zip(owners, self._score(windows, disable_tqdm), strict=True):
            totals[owner] += logprob
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], disable_tqdm: bool = False, **_: Any
    ) -> list[tuple[float, bool]]:
        return self._score([(tuple(context), tuple(option)) for _, context, option in requests], disable_tqdm)

    def _score(self, pairs: Sequence[Pair], disable_tqdm: bool) -> list[tuple[float, bool]]:
        """Scores pairs of token ids, cut from the left to the model's length; pairs of one context go together."""
        by_context: dict[tuple[int, ...], list[int]] = {}
        for number, (context, option) in enumerate(pairs):
            kept = self.max_length + 1 - len(option)  # the last token is scored, not read
            if kept < 1:
                raise UserError(f"a continuation has {len(option)} tokens, but the model's limit is {self.max_length}")
            by_context.setdefault(context[-kept:], []).append(number)
        requests = [
            TokenRequest(context, tuple(pairs[number][1] for number in numbers))
            for context, numbers in by_context.items()
        ]
        with _progress("loglikelihoods", disable_tqdm) as progress:
            scores = score_tokens(
                self.model.decoder, requests, self.model.mesh,
                dtype=self.model.dtype, batch_tokens=self.batch_tokens, progress=progress,
            )  # fmt: skip
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        for numbers, score in zip(by_context.values(), scores, strict=True):
            for number, logprob, greedy in zip(numbers, score.logprobs, score.is_greedy, strict=True):
                answers[number] = float(logprob), bool(greedy)
        return answers

    def generate_until(self, requests: Requests, disable_tqdm: bool = False) -> list[str]:
        """What the model writes after each prompt, up to the first stop text; prompts are cut from the left to fit."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(json.dumps(request.args[1], sort_keys=True, default=str), []).append(number)
        texts = [""] * len(requests)
        for numbers in groups.values():
            arguments = requests[numbers[0]].args[1]
            prompts = [requests[number].args[0] for number in numbers]
            written = self._continue(prompts, self._sampling(arguments), numbers, disable_tqdm)
            for number, prompt, text in zip(numbers, prompts, written, strict=True):
                texts[number] = text
                self.cache_hook.add_partial("generate_until", (prompt, arguments), text)
        return texts

    def _sampling(self, arguments: Mapping[str, Any]) -> Sampling:
        """A task's generation_kwargs; raises UserError where one of them would be ignored."""
        settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(arguments), MAX_GEN_TOKS))
        end = str(self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False))
        until = handle_stop_sequences(settings.pop("until"), eos=end)
        temperature = float(settings.pop("temperature", 0.0)) * bool(settings.pop("do_sample"))
        limit, top_p = settings.pop("max_gen_toks"), float(settings.pop("top_p", 1.0))
        ignored = {name: value for name, value in settings.items() if value is not None and NEUTRAL.get(name) != value}
        if ignored:
            raise UserError(f"generation_kwargs {ignored} are not supported; leave them out")
        if limit >= self.max_length:
            raise UserError(f"max_gen_toks {limit} leaves no room for a prompt; the model's limit is {self.max_length}")
        return Sampling(limit, temperature, top_p, tuple(each for each in until if each))

    def _continue(
        self, prompts: Sequence[str], sampling: Sampling, seeds: Sequence[int], disable_tqdm: bool
    ) -> list[str]:
        room = self.max_length - sampling.max_gen_toks
        ids = [(self.encoder.encode(prompt) or [self.prefix_token_id])[-room:] for prompt in prompts]
        with _progress("generate_until", disable_tqdm) as progress:
            found = generate_tokens(
                self.model.decoder, ids, self.model.mesh, max_new_tokens=sampling.max_gen_toks,
                temperature=sampling.temperature, top_p=sampling.top_p, seeds=seeds,
                end_tokens=end_tokens(self.model), stop_tokens=stop_tokens(self.model, sampling.until),
                dtype=self.model.dtype, batch_tokens=self.batch_tokens or GENERATED_TOKENS, progress=progress,
            )  # fmt: skip
        # decoded by themselves, as the harness does: in some tokenizers that drops a space before the first word
        texts = [str(self.tokenizer.decode(list(tokens), skip_special_tokens=True)) for tokens in found]
        return [postprocess_generated_text(text, list(sampling.until), None) for text in texts]


def _check_arguments(
    pretrained: str, add_bos_token: object, counts: Mapping[str, object], unknown: Mapping[str, Any]
) -> None:
    if unknown:
        raise UserError(f"model_args: {', '.join(sorted(unknown))} unknown; known are {', '.join(KNOWN)}")
    if not pretrained:
        raise UserError("model_args: pretrained is missing; give pretrained=DIR")
    if add_bos_token not in BOS:
        raise UserError(f"model_args: add_bos_token={add_bos_token} is neither True nor False")
    for name, count in counts.items():
        if count is not None and (type(count) is not int or count < 1):
            raise UserError(f"model_args: {name}={count} is no number of tokens; give a whole number from 1")


@contextlib.contextmanager
def _progress(label: str, disabled: bool) -> Iterator[Progress]:
    """A bar of the harness' kind, as the callback that our functions take."""
    with tqdm(desc=label, disable=disabled) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def main(arguments: Sequence[str]) -> int:
    """Hands a command line over to the harness' own, in which `--model jaxift` is then known."""
    from lm_eval.__main__ import cli_evaluate

    before, sys.argv = sys.argv, ["lm-eval", *arguments]
    try:
        cli_evaluate()
    finally:
        sys.argv = before
    return 0
