"""The answer says no more than the intervals and the corrected p-values allow."""

import pytest

from jaxift.reporting import summary


def analysis(missing=(), gains=None, **differences):
    return {
        "settings": {"confidence": 0.95},
        "exp1": {"differences": differences, "gains": gains or {}},
        "missing": missing,
    }


def entries(*intervals, holm=0.001, seeds=(0, 1)):
    return {
        test_set: {
            "difference": sum(interval) / 2, "interval": list(interval), "detectable": 0.03,
            "by_domain": {"d": {"seeds": list(seeds)}},
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
    assert "perhaps beats INC by 1.5 points" in summary.contrast(analysis(), "HAR-INC", doubtful)
    assert "cannot tell" in summary.verdict(analysis(), doubtful)
    assert "does not outlast the correction" in summary.verdict(analysis(), doubtful)


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (
            AHEAD,
            "had the model say what it knows: its own wrong answers served it clearly better than the true answers",
        ),
        (BEHIND, "That fine-tuning taught the model does not show: true answers"),
        (LEVEL, "cannot tell whether"),
        (MIXED, "The test sets disagree"),
        (entries((0.01, 0.02), (-0.01, 0.02), (-0.01, 0.02)), "on HOMO, but not clearly on ID and OOD"),
        (entries((-0.02, -0.01), (-0.01, 0.02), (-0.01, 0.02)), "than its own wrong ones on HOMO, but it did not"),
    ],
)
def test_verdict_follows_the_test_sets(sets, words):
    assert words in summary.verdict(analysis(), sets)


def test_only_what_gains_on_the_base_was_learned():
    learned = analysis(gains={"INC": entries((0.01, 0.03), (-0.01, 0.03), (-0.02, 0.01)), "SELF": LEVEL})
    told = summary.verdict(learned, BEHIND)
    assert "Fine-tuning here did more than have the model say what it knows" in told
    assert "and than untuned, on HOMO, but not clearly on ID and OOD (" in told
    assert "beside the untuned base SELF stands at +0.5 and INC at +0.8" in told
    ruined = analysis(gains={"INC": entries(*[(-0.3, -0.2)] * 3), "SELF": entries(*[(-0.31, -0.21)] * 3)})
    assert "taught the model does not show" in summary.verdict(ruined, BEHIND)


def test_the_answer_has_three_sentences_and_says_what_is_missing():
    found = summary.answer(analysis(missing=["a", "b"], **{"HAR-INC": AHEAD, "SELF-INC": LEVEL}))
    assert len(found) == 3
    assert "questions and 2 seeds, and a true difference below 3.0 points would often not have been clear" in found[2]
    assert "2 of the study's models have no scores yet" in found[2]
    one = summary.answer(analysis(**{"HAR-INC": entries(*[(0.01, 0.02)] * 3, seeds=(0,))}))
    assert "one seed says nothing" in one[-1]
    assert summary.answer(analysis())[0] == "No two arms have scores to compare yet."


def test_other_arms_have_their_say_where_those_of_the_paper_are_not():
    found = summary.answer(analysis(**{"HAR-SELF": AHEAD, "REFUSAL-INC": BEHIND}))
    assert found[0].startswith("HAR beats SELF by 1.5 points")
    assert found[1].startswith("REFUSAL falls behind INC by 1.5 points")
