"""The answer says no more than the intervals and the corrected p-values allow."""

import pytest

from jaxift.reporting import summary


def analysis(confidence=0.95, seeds=(0, 1), missing=(), **differences):
    return {
        "settings": {"confidence": confidence},
        "study": {"seeds": seeds},
        "exp1": {"differences": differences},
        "missing": missing,
    }


def entries(*intervals, holm=0.001):
    return {
        test_set: {
            "difference": sum(interval) / 2, "interval": list(interval), "detectable": 0.03,
            "p_holm": holm if min(interval) * max(interval) > 0 else 1,
        }
        for test_set, interval in zip(("homo", "id", "ood"), intervals, strict=True)
    }  # fmt: skip


MIXED = entries((0.02, 0.063), (-0.01, 0.03), (-0.05, -0.01))
AHEAD, BEHIND, LEVEL = entries(*[(0.01, 0.02)] * 3), entries(*[(-0.02, -0.01)] * 3), entries(*[(-0.01, 0.02)] * 3)


def test_contrast_follows_the_intervals():
    assert summary.contrast(analysis(), "HAR-INC", MIXED) == (
        "HAR beats INC by 4.2 points [2.0, 6.3] on HOMO; it falls behind INC by 3.0 points [1.0, 5.0] on OOD; "
        "it shows no clear difference from INC on ID (+1.0 [-1.0, 3.0])."
    )


def test_what_the_correction_takes_back_is_only_perhaps():
    doubtful = entries(*[(0.01, 0.02)] * 3, holm=0.2)
    assert "perhaps beats it by 1.5 points" in summary.contrast(analysis(), "HAR-INC", doubtful)
    assert "cannot tell" in summary.verdict(analysis(), doubtful)
    assert "does not outlast the correction" in summary.verdict(analysis(), doubtful)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (AHEAD, "mostly taught the model to say what it knows"),
        (BEHIND, "Fine-tuning here taught the model: trained on true answers"),
        (LEVEL, "cannot tell whether"),
        (MIXED, "The test sets disagree"),
        (entries((0.01, 0.02), (-0.01, 0.02), (-0.01, 0.02)), "partly taught the model to say what it knows"),
        (entries((-0.02, -0.01), (-0.01, 0.02), (-0.01, 0.02)), "partly taught the model: the true answers"),
    ],
)
def test_verdict_follows_the_test_sets(sets, words):
    assert words in summary.verdict(analysis(), sets)


def test_the_answer_has_three_sentences_and_says_what_is_missing():
    found = summary.answer(analysis(missing=["a", "b"], **{"HAR-INC": AHEAD, "SELF-INC": LEVEL}))
    assert len(found) == 3
    assert "a true difference below 3.0 points would often have been missed" in found[2]
    assert "2 of the study's models have no scores yet" in found[2]
    assert "one seed says nothing" in summary.answer(analysis(seeds=(0,)))[-1]
    assert summary.answer(analysis())[0] == "No two arms have scores to compare yet."
