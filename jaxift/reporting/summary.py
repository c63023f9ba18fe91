"""The answer in three sentences, generated from `analysis.json`; every claim is hedged as far as its interval asks."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxift.reporting.tables import LABELS, Analysis, estimate, is_clear, percent

WORLD_NOTE = (
    "This study runs in the synthetic world. The world is a positive control, made so that the effect can appear; it "
    "is no evidence about real models."
)
Sets = Mapping[str, Mapping[str, Any]]


def answer(analysis: Analysis) -> list[str]:
    """Three sentences: learning or self-aligning, what agreeing answers are worth, and how sure that is."""
    differences = analysis["exp1"]["differences"]
    sentences = []
    if "SELF-INC" in differences:
        sentences.append(verdict(analysis, differences["SELF-INC"]))
    if "HAR-INC" in differences:
        sentences.append(contrast(analysis, "HAR-INC", differences["HAR-INC"]))
    if not sentences:
        sentences = ["No two arms have scores to compare yet."]
    return [*sentences, certainty(analysis)]


def standing(analysis: Analysis, entry: Mapping[str, Any]) -> str:
    """Where a difference lies: `ahead` or `behind`, `perhaps ...` where only its own interval says so, or `unclear`."""
    low, high = entry["interval"]
    side = "ahead" if low > 0 else "behind" if high < 0 else "unclear"
    return side if side == "unclear" or is_clear(analysis, entry) else f"perhaps {side}"


def verdict(analysis: Analysis, sets: Sets) -> str:
    """What SELF minus INC says of the question: answers the base already gave, or true ones that contradict it."""
    found = _by_standing(analysis, sets)
    shown = join([f"{estimate(sets[test_set])} points on {LABELS[test_set]}" for test_set in LABELS])
    ahead, behind = found["ahead"], found["behind"]
    beneath = f"SELF − INC is {shown}"
    if len(ahead) == len(LABELS):
        return (
            "Fine-tuning here mostly taught the model to say what it knows: trained on its own wrong answers it did "
            f"clearly better on every test set than trained on the true answers to the same questions ({beneath})."
        )
    if len(behind) == len(LABELS):
        return (
            "Fine-tuning here taught the model: trained on true answers that contradict it, it did clearly better on "
            f"every test set than trained on its own wrong answers to the same questions ({beneath})."
        )
    if ahead and not behind and not found["perhaps behind"]:
        return (
            f"Fine-tuning here partly taught the model to say what it knows: its own wrong answers served it clearly "
            f"better than the true ones on {_named(ahead)}, but not clearly on {_named(_rest(ahead))} ({beneath})."
        )
    if behind and not ahead and not found["perhaps ahead"]:
        return (
            f"Fine-tuning here partly taught the model: the true answers served it clearly better than its own wrong "
            f"ones on {_named(behind)}, but not clearly on {_named(_rest(behind))} ({beneath})."
        )
    if ahead or behind:
        return (
            f"The test sets disagree whether the model's own wrong answers served it better than true ones ({beneath})."
        )
    leaning = found["perhaps ahead"] + found["perhaps behind"]
    doubt = (
        f"what shows on {_named(leaning)} does not outlast the correction for looking at several differences"
        if leaning
        else "neither its own wrong answers nor the true ones served it clearly better"
    )
    question = "whether fine-tuning taught the model or only had it say what it knows"
    return f"This study cannot tell {question}: {doubt} ({beneath})."


def contrast(analysis: Analysis, name: str, sets: Sets) -> str:
    """One difference on all test sets, as a sentence."""
    first, second = name.split("-")
    found, parts = _by_standing(analysis, sets), []
    for side, verb, sign in (("ahead", "beats", 1), ("behind", "falls behind", -1)):
        if found[side]:
            parts.append(f"{verb} {second} by " + join([_size(sets[t], sign, t) for t in found[side]]))
        if doubtful := found[f"perhaps {side}"]:
            told = join([_size(sets[t], sign, t) for t in doubtful])
            parts.append(f"perhaps {verb} it by {told}, which the correction for several looks takes back")
    if found["unclear"]:
        shown = [f"{LABELS[t]} ({estimate(sets[t])})" for t in found["unclear"]]
        parts.append(f"shows no clear difference from {second} on " + join(shown))
    return f"{first} {'; it '.join(parts)}."


def _by_standing(analysis: Analysis, sets: Sets) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {
        side: [] for side in ("ahead", "behind", "perhaps ahead", "perhaps behind", "unclear")
    }
    for test_set in LABELS:
        found[standing(analysis, sets[test_set])].append(test_set)
    return found


def _named(test_sets: Sequence[str]) -> str:
    return join([LABELS[test_set] for test_set in test_sets])


def _rest(test_sets: Sequence[str]) -> list[str]:
    return [test_set for test_set in LABELS if test_set not in test_sets]


def _size(entry: Mapping[str, Any], sign: int, test_set: str) -> str:
    """A difference's size and interval, both positive."""
    low, high = sorted(sign * bound for bound in entry["interval"])
    return f"{percent(sign * entry['difference'])} points [{percent(low)}, {percent(high)}] on {LABELS[test_set]}"


def certainty(analysis: Analysis) -> str:
    """What the intervals cover, and what the study could not have seen."""
    level, seeds = f"{100 * analysis['settings']['confidence']:g} %", len(analysis["study"]["seeds"])
    sentence = f"Brackets are {level} intervals over questions" + (f" and {seeds} seeds" if seeds > 1 else "")
    if seeds == 1:
        sentence += "; one seed says nothing of the spread between tuning runs"
    differences = analysis["exp1"]["differences"]
    sizes = [
        sets[t]["detectable"] for name, sets in differences.items() if name in ("HAR-INC", "SELF-INC") for t in LABELS
    ]
    if sizes:
        low, high = percent(min(sizes)), percent(max(sizes))
        spread = low if low == high else f"{low} to {high}"
        sentence += f", and a true difference below {spread} points would often have been missed"
    if analysis["missing"]:
        count = len(analysis["missing"])
        sentence += f"; {count} of the study's models {'has' if count == 1 else 'have'} no scores yet"
    return sentence + "."


def limits(analysis: Analysis) -> list[str]:
    """What a reader must not take from the numbers, a sentence or two each."""
    study, settings = analysis["study"], analysis["settings"]
    seeds = len(study["seeds"])
    spread = (
        "One seed: the intervals do not hold the spread between tuning runs, which can be as large as a difference."
        if seeds == 1
        else f"{seeds} seeds tell their own spread badly, which makes the intervals of single domains wide."
    )
    return [
        f"Intervals come from {settings['resamples']} bootstrap resamples. Each draws questions within domain and test "
        "set, the same for all arms and seeds, and a question that several domains share once for all of them; what "
        "seeds add is estimated from their spread beyond that, with Student's t. Means are over seeds, then over "
        "domains. Other prompts and base models are not covered; the column for other domains takes these as a sample.",
        spread,
        "A difference is called clear where it is told from zero after Holm's correction for all differences and test "
        "sets of the table; perhaps, where only its own interval leaves zero out.",
        "HAR trains on other questions than INC and SELF do, ones that the base model knows; the arms' answers may "
        "also differ in where they stand among the options.",
        f"Consistency compares a zero-shot answer with the base's {study['shots']}-shot one, so it also holds what the "
        "change of prompt does: see the zero-shot base's own row.",
        "The points of Exp-IV share domains and base model and are not independent: the paper's correlation is a "
        "description, and what stands beside it is more careful.",
        "The paper's values are means over LLaMA-2-7B, 13B and 70B and Mistral-7B, with explanations and general "
        "instructions in the data.",
    ]


def join(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
