"""How fast TRL's SFTTrainer fine-tunes on a CPU: the other side of the benchmark of tuning, a process of its own.

    python benchmarks/trl_baseline.py --model DIR --data FILE.jsonl --mode padding --batch-size 16 --micro-batch 2
        --optimizer adamw_torch_fused
    python benchmarks/trl_baseline.py --model DIR --data FILE.jsonl --mode packing --batch-size 16 --micro-batch 1
        --length 512 --optimizer adamw_torch_fused

Full fine-tuning in float32 on pairs of plain text, the loss on the responses alone, no gradient checkpointing. The last
line, the only one on standard output, is JSON. Tokens are those fed without padding; every one of an example's counts,
the prompt's too. Time is that of the optimizer steps after the warm-up, from on_step_begin to on_step_end: neither
loading nor preparing, nor the collating of batches, which TRL does between them. An example longer than `--length` is
cut. `cpu_seconds` well below `threads` times `seconds` tells that other processes had part of the cores: such a
measurement is void, as torch's threads wait for one another (steps that got 1.0 to 1.5 of two cores took 2 to 10 times
as long). `step_seconds` shows in which step.

`padding` is TRL's default: random order, each forward pass padded to its longest row. `packing` is its strategy "bfd",
whose collator is padding-free: the packs of a forward pass become one row with `position_ids` that start anew at each
example, and no attention mask. TRL recommends flash attention for it, which needs a GPU. With sdpa transformers makes a
block-diagonal causal mask out of the `position_ids`, so that no example sees another: logits are those of the examples
alone (within 2e-5 on a small model, transformers 5.24). The mask is dense, so attention costs the square of
`--micro-batch` times `--length`. "wrapped" would cut examples in two and let them see their neighbours in the row (its
collator gives a mask of ones and no positions), and was no faster. An optimizer step takes as many packs as hold
`--batch-size` examples on average.

Measured on two cores with a Llama of 135 million parameters, 62 tokens an example, 16 examples a step, TRL 1.16, torch
2.13 (tokens a second, the better of two steps, adamw_torch; the same again differs by 10 %):

    padding, --micro-batch 1, 2, 4, 8, 16        88, 110, 100, 86, 69
    packing, --length 128, 256, 512, 1024        138, 143, 164, 137 (--micro-batch 1)

With one thread packing to 512 makes 83, with two, torch's own choice on two cores, 150. Rows of 2 x 256 and 4 x 128 are
as fast as one of 512, 2 x 512 are slower by a quarter. The fused AdamW, transformers' default, is 5 to 10 % quicker.
glibc returns the logits' memory to the system after each pass: with MALLOC_MMAP_THRESHOLD_=4294967296 and
MALLOC_TRIM_THRESHOLD_=8589934592 in the environment it was another 10 % faster. On a CPU TRL computes logits at every
position, the prompts' and padding's too, and computes them again in the backward pass; no setting changes that.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
import trl
from transformers.trainer_callback import PrinterCallback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of a prompt and a response")
    parser.add_argument("--mode", choices=("padding", "packing"), required=True)
    parser.add_argument("--batch-size", type=int, default=16, help="examples an optimizer step; on average if packing")
    parser.add_argument("--micro-batch", type=int, default=1, help="rows of a forward pass: examples, or packs")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps to time")
    parser.add_argument("--warmup-steps", type=int, default=2, help="optimizer steps before those")
    parser.add_argument("--length", type=int, default=256, help="tokens to which examples are packed or cut")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--optimizer", choices=("adamw_torch", "adamw_torch_fused"), default="adamw_torch")
    parser.add_argument("--threads", type=int, help="torch's, if not its own choice")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.mode == "padding" and options.batch_size % options.micro_batch:
        parser.error("--micro-batch must divide --batch-size")
    if options.threads:
        torch.set_num_threads(options.threads)
    print(json.dumps(run(options)))


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Trains as told; what it took."""
    datasets.disable_progress_bars()
    transformers.logging.disable_progress_bar()
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    pairs = read_pairs(options.data)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Counting(
            model=options.model,
            args=settings(options, accumulation(options, tokenizer, pairs), folder),
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=tokenizer,
        )
        clock = Clock(trainer, options.warmup_steps)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)  # it prints every log
        trainer.train()
    tokens, seconds = sum(clock.tokens), sum(clock.seconds)
    return {
        "benchmark": "trl_baseline",
        "mode": options.mode,
        "tokens": tokens,
        "seconds": seconds,
        "tokens_per_second": tokens / seconds,
        "cpu_seconds": clock.cpu_seconds,
        "examples": clock.examples,
        "steps": len(clock.seconds),
        "step_seconds": clock.seconds,
        "step_tokens": clock.tokens,
        "losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry],
        "micro_batch": options.micro_batch,
        "accumulation": trainer.args.gradient_accumulation_steps,
        "length": options.length,
        "optimizer": options.optimizer,
        "torch": torch.__version__,
        "trl": trl.__version__,
        "transformers": transformers.__version__,
        "threads": torch.get_num_threads(),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def read_pairs(data: Path) -> list[dict[str, str]]:
    """The pairs under the names that TRL takes for prompt-completion data."""
    # For such data that is no conversation SFTTrainer appends the text of the tokenizer's EOS to the completion (where
    # it does not end with it), then tokenises prompt + completion as one text, the EOS parsed as a special token; a
    # chat template plays no part. The loss starts where these tokens part from those of the prompt alone.
    with open(data, encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{"prompt": row["prompt"], "completion": row["response"]} for row in rows]


def accumulation(options: argparse.Namespace, tokenizer: Any, pairs: list[dict[str, str]]) -> int:
    """Forward passes an optimizer step: in packing as many as make `batch_size` examples on average."""
    if options.mode == "padding":
        return options.batch_size // options.micro_batch
    texts = [pair["prompt"] + pair["completion"] + tokenizer.eos_token for pair in pairs]
    mean = sum(min(len(tokens), options.length) for tokens in tokenizer(texts).input_ids) / len(texts)
    return max(1, round(options.batch_size * mean / options.length / options.micro_batch))


def settings(options: argparse.Namespace, accumulation: int, folder: str) -> trl.SFTConfig:
    return trl.SFTConfig(
        output_dir=folder,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        completion_only_loss=True,
        packing=options.mode == "packing",
        packing_strategy="bfd",
        max_length=options.length,
        dataset_num_proc=None,
        per_device_train_batch_size=options.micro_batch,
        gradient_accumulation_steps=accumulation,
        max_steps=options.warmup_steps + options.steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.03,  # a share of all, rounded up
        optim=options.optimizer,
        max_grad_norm=1.0,
        logging_strategy="steps",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        seed=options.seed,
    )


class Counting(trl.SFTTrainer):
    """An SFTTrainer that counts what it trains on; where it is consumed, for batches are fetched a step ahead."""

    tokens = examples = 0

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        if "attention_mask" in inputs:
            self.tokens += int(inputs["attention_mask"].sum())
            self.examples += len(inputs["attention_mask"])
        else:
            self.tokens += inputs["position_ids"].numel()
            self.examples += int((inputs["position_ids"] == 0).sum())
        return super().training_step(model, inputs, *args, **kwargs)


class Clock(transformers.TrainerCallback):
    """Seconds, tokens and examples of the optimizer steps after the first `skipped`."""

    def __init__(self, trainer: Counting, skipped: int):
        self.trainer, self.skipped = trainer, skipped
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.examples, self.cpu_seconds = 0, 0.0

    def on_step_begin(self, args: Any, state: transformers.TrainerState, *rest: Any, **more: Any) -> None:
        self.before = self.trainer.tokens, self.trainer.examples
        self.started, self.cpu_started = time.perf_counter(), time.process_time()

    def on_step_end(self, args: Any, state: transformers.TrainerState, *rest: Any, **more: Any) -> None:
        took = time.perf_counter() - self.started
        if state.global_step > self.skipped:
            self.seconds.append(took)
            self.cpu_seconds += time.process_time() - self.cpu_started
            self.tokens.append(self.trainer.tokens - self.before[0])
            self.examples += self.trainer.examples - self.before[1]


if __name__ == "__main__":
    main()
