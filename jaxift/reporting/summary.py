"""The answer in three sentences, generated from `analysis.json`; every claim is hedged as far as its interval asks."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxift.reporting.tables import LABELS, Analysis, estimate, is_clear, percent, points

WORLD_NOTE = (
    "This study runs in the synthetic world. The world is a positive control, made so that the effect can appear; it "
    "is no evidence about real models."
)
Sets = Mapping[str, Mapping[str, Any]]


def answer(analysis: Analysis) -> list[str]:
    """Three sentences: learning or self-aligning, what agreeing answers are worth, and how sure that is."""
    differences = analysis["exp1"]["differences"]
    told = [name for name in ("SELF-INC", "HAR-INC") if name in differences] or list(differences)[:2]
    sentences = [
        verdict(analysis, differences[name]) if name == "SELF-INC" else contrast(analysis, name, differences[name])
        for name in told
    ]
    return [*(sentences or ["No two arms have scores to compare yet."]), certainty(analysis, told)]


def standing(analysis: Analysis, entry: Mapping[str, Any]) -> str:
    """Where a difference lies: `ahead` or `behind`, `perhaps ...` where only its own interval says so, or `unclear`."""
    low, high = entry["interval"]
    side = "ahead" if low > 0 else "behind" if high < 0 else "unclear"
    return side if side == "unclear" or is_clear(analysis, entry) else f"perhaps {side}"


def verdict(analysis: Analysis, sets: Sets) -> str:
    """What SELF minus INC says of the question: answers the base already gave, or true ones that contradict it."""
    found = _by_standing(analysis, sets)
    ahead, behind = found["ahead"], found["behind"]
    learned = _learned(analysis, behind)
    shown = join([f"{estimate(sets[test_set])} on {LABELS[test_set]}" for test_set in LABELS])
    beneath = f"SELF − INC in points: {shown}{beside_the_base(analysis)}"
    where = "every test set" if len(ahead or behind) == len(LABELS) else _named(ahead or behind)
    if ahead and behind:
        said = (
            f"The test sets disagree: the model's own wrong answers served it better than the true ones on "
            f"{_named(ahead)}, worse on {_named(behind)}"
        )
    elif ahead:
        said = (
            "Fine-tuning here had the model say what it knows: its own wrong answers served it clearly better than "
            f"the true answers to the same questions on {where}"
        )
    elif learned:
        said = (
            "Fine-tuning here did more than have the model say what it knows: trained on true answers that contradict "
            f"it, it did clearly better than on its own wrong ones, and than untuned, on {_named(learned)}"
        )
    elif behind:
        said = (
            "That fine-tuning taught the model does not show: true answers that contradict it served it clearly better "
            f"than its own wrong ones on {where}, but it did not clearly gain on what it knew untuned"
        )
    else:
        leaning = found["perhaps ahead"] + found["perhaps behind"]
        doubt = (
            f"what shows on {_named(leaning)} does not outlast the correction for looking at several differences"
            if leaning
            else "neither its own wrong answers nor the true ones served it clearly better"
        )
        said = f"This study cannot tell whether fine-tuning taught the model or had it say what it knows: {doubt}"
    claimed = ahead or learned or behind
    rest = [test_set for test_set in LABELS if test_set not in claimed]
    if claimed and rest and not (ahead and behind):
        said += f", but not clearly on {_named(rest)}"
    return f"{said} ({beneath})."


def beside_the_base(analysis: Analysis) -> str:
    """What SELF and INC gained on the untuned base, on the mean of test sets; empty where that was not evaluated."""
    gains = analysis["exp1"]["gains"]
    if not {"SELF", "INC"} <= set(gains):
        return ""
    means = {
        arm: sum(gains[arm][test_set]["difference"] for test_set in LABELS) / len(LABELS) for arm in ("SELF", "INC")
    }
    return f"; beside the untuned base SELF stands at {points(means['SELF'])} and INC at {points(means['INC'])}"


def _learned(analysis: Analysis, test_sets: Sequence[str]) -> list[str]:
    """The test sets among these on which INC is clearly ahead of the untuned base."""
    gains = analysis["exp1"]["gains"].get("INC", {})
    return [t for t in test_sets if t in gains and standing(analysis, gains[t]) == "ahead"]


def contrast(analysis: Analysis, name: str, sets: Sets) -> str:
    """One difference on all test sets, as a sentence."""
    first, second = name.split("-")
    found, parts = _by_standing(analysis, sets), []
    for side, verb, sign in (("ahead", "beats", 1), ("behind", "falls behind", -1)):
        if found[side]:
            parts.append(f"{verb} {second} by " + join([_size(sets[t], sign, t) for t in found[side]]))
        if doubtful := found[f"perhaps {side}"]:
            told = join([_size(sets[t], sign, t) for t in doubtful])
            parts.append(f"perhaps {verb} {second} by {told}, which the correction for several looks takes back")
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


def _size(entry: Mapping[str, Any], sign: int, test_set: str) -> str:
    """A difference's size and interval, both positive."""
    low, high = sorted(sign * bound for bound in entry["interval"])
    return f"{percent(sign * entry['difference'])} points [{percent(low)}, {percent(high)}] on {LABELS[test_set]}"


def certainty(analysis: Analysis, told: Sequence[str]) -> str:
    """What the intervals cover, and what the study could not have seen of the differences told of."""
    level = f"{100 * analysis['settings']['confidence']:g} %"
    entries = [analysis["exp1"]["differences"][name][test_set] for name in told for test_set in LABELS]
    fewest = min((len(domain["seeds"]) for entry in entries for domain in entry["by_domain"].values()), default=1)
    most = max((len(domain["seeds"]) for entry in entries for domain in entry["by_domain"].values()), default=1)
    sentence = f"Brackets are {level} intervals over questions"
    if most > 1:
        sentence += f" and {most} seeds" if fewest == most else f" and {fewest} to {most} seeds"
    else:
        sentence += "; one seed says nothing of the spread between tuning runs"
    sizes = [percent(entry["detectable"]) for entry in entries]
    if sizes:
        low, high = min(sizes, key=float), max(sizes, key=float)
        spread = low if low == high else f"{low} to {high}"
        sentence += f", and a true difference below {spread} points would often not have been clear"
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
        "domains. Other prompts and base models are not covered; other domains only in the column that says so.",
        spread,
        "A difference is called clear where it is told from zero after Holm's correction for all differences and test "
        "sets of the table; perhaps, where only its own interval leaves zero out.",
        "HAR trains on other questions than INC and SELF do, ones that the base model knows; the arms' answers may "
        "also differ in where they stand among the options.",
        f"Consistency compares a zero-shot answer with the base's {study['shots']}-shot one, so it also holds what the "
        "change of prompt does: see the zero-shot base's own row.",
        "The points of Exp-IV share domains, arms and base model and are not independent: the paper's correlation is a "
        "description. What the arms say is few points, and which arms were studied is no random sample.",
        "The paper's values are means over LLaMA-2-7B, 13B and 70B and Mistral-7B, with explanations and general "
        "instructions in the data.",
    ]


def join(words: Sequence[str]) -> str:
    """Words as a list in a sentence: a, b and c."""
    return "".join(words) if len(words) < 2 else f"{', '.join(words[:-1])} and {words[-1]}"
