"""The answer in sentences, generated from `analysis.json`; every claim is hedged as far as its interval asks."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxift.reporting.tables import LABELS, Analysis, estimate, percent

WORLD_NOTE = (
    "This study runs in the synthetic world. The world is a positive control, made so that the effect can appear; it "
    "is no evidence about real models."
)
PATTERN = ("HAR-INC", "SELF-INC")


def verdict(entry: Mapping[str, Any]) -> str:
    """`ahead`, `behind` or `unclear`: where the interval of a difference lies against zero."""
    low, high = entry["interval"]
    return "ahead" if low > 0 else "behind" if high < 0 else "unclear"


def answer(analysis: Analysis) -> str:
    """One paragraph: what came out, and how sure it is."""
    differences = analysis["exp1"]["differences"]
    sentences = [contrast(name, differences[name]) for name in PATTERN if name in differences]
    if not sentences:
        sentences = ["No two arms have scores to compare yet."]
    if all(name in differences for name in PATTERN):
        sentences.append(pattern(differences))
    sentences.append(certainty(analysis))
    if analysis["missing"]:
        sentences.append(f"The study is not complete: {len(analysis['missing'])} of its models have no scores yet.")
    return " ".join(sentences)


def contrast(name: str, sets: Mapping[str, Mapping[str, Any]]) -> str:
    """One difference on all test sets, as a sentence."""
    first, second = name.split("-")
    found: dict[str, list[str]] = {"ahead": [], "behind": [], "unclear": []}
    for test_set in LABELS:
        found[verdict(sets[test_set])].append(test_set)
    parts = []
    if found["ahead"]:
        parts.append(f"beats {second} by " + join([_size(sets[t], 1, t) for t in found["ahead"]]))
    if found["behind"]:
        parts.append(f"falls behind {second} by " + join([_size(sets[t], -1, t) for t in found["behind"]]))
    if found["unclear"]:
        shown = [f"{LABELS[t]} ({estimate(sets[t])})" for t in found["unclear"]]
        parts.append(f"shows no clear difference from {second} on " + join(shown))
    return f"{first} {'; it '.join(parts)}."


def _size(entry: Mapping[str, Any], sign: int, test_set: str) -> str:
    """A clear difference's size and interval, both positive."""
    low, high = sorted(sign * bound for bound in entry["interval"])
    return f"{percent(sign * entry['difference'])} points [{percent(low)}, {percent(high)}] on {LABELS[test_set]}"


def pattern(differences: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """Whether the paper's pattern, HAR and SELF both ahead of INC, shows clearly, and where."""
    clear = [t for t in LABELS if all(verdict(differences[name][t]) == "ahead" for name in PATTERN)]
    if not clear:
        return "The paper's pattern, both of them ahead of INC, does not show clearly on any test set."
    if clear == list(LABELS):
        return (
            "That is the paper's pattern, on every test set: answers that agree with the base model's beliefs serve it "
            "better than true answers that contradict them, even where those beliefs are wrong."
        )
    rest = [LABELS[t] for t in LABELS if t not in clear]
    return (
        f"The paper's pattern, both of them ahead of INC, shows clearly on {join([LABELS[t] for t in clear])}, "
        f"but not on {join(rest)}."
    )


def certainty(analysis: Analysis) -> str:
    """What the intervals cover."""
    level, seeds = f"{100 * analysis['settings']['confidence']:g} %", len(analysis["study"]["seeds"])
    if seeds == 1:
        return (
            f"Brackets are {level} intervals over questions; one seed says nothing of the spread between tuning runs."
        )
    return f"Brackets are {level} intervals over questions and {seeds} seeds."


def limits(analysis: Analysis) -> list[str]:
    """What a reader must not take from the numbers, a sentence or two each."""
    study, settings = analysis["study"], analysis["settings"]
    seeds = len(study["seeds"])
    spread = (
        "One seed: the intervals do not hold the spread between tuning runs, which can be as large as a difference."
        if seeds == 1
        else f"Resampling {seeds} seeds understates their spread, the more so the fewer they are."
    )
    return [
        f"Intervals come from {settings['resamples']} bootstrap resamples. Each draws questions within domain and test "
        "set, the same for all arms and seeds, and a question that several domains share once for all of them; then "
        "seeds within each domain. Means are over seeds, then over domains. Other domains, prompts and base models are "
        "not covered.",
        spread,
        "A difference is called clear where its own interval leaves zero out; nothing is corrected for looking at "
        "several differences and test sets.",
        "HAR trains on other questions than INC and SELF do, ones that the base model knows; the arms' answers may "
        "also differ in where they stand among the options.",
        f"Consistency compares a zero-shot answer with the base's {study['shots']}-shot one, so it also holds what the "
        "change of prompt does: see the zero-shot base's own row.",
        "The points of Exp-IV share domains and base model and are not independent: its correlation is a description.",
        "The paper's values are means over LLaMA-2-7B, 13B and 70B and Mistral-7B, with explanations and general "
        "instructions in the data.",
    ]


def join(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
