"""The names of arms."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.arms import VARIATIONS, canonical, contrasts, mixtures, parse_arm


def test_a_name_says_kind_share_and_variations():
    arm = parse_arm("SELF@0.40+balanced+context")
    assert (arm.kind, arm.share, arm.pool, arm.plain) == ("SELF", 0.4, "INC", "SELF@0.4")
    assert arm.has("context")
    assert not arm.has("shuffled")


@given(
    st.sampled_from(["HAR", "INC", "SELF", "SELF@.25", "SELF@1", "RANDOM_WRONG", "SELF_ALL"]),
    st.permutations(["context", "shuffled", "self_explained"]),
    st.integers(0, 3),
)
def test_an_arm_has_one_spelling(kind, variations, count):
    name = canonical("+".join([kind, *variations[:count]]))
    assert canonical(name) == name
    assert name == canonical("+".join([kind, *sorted(variations[:count])]))
    assert [each for each in VARIATIONS if each in name] == [each for each in VARIATIONS if each in variations[:count]]


@pytest.mark.parametrize(
    "name",
    [
        "WHAT", "har", "HAR+", "HAR+what", "HAR+context+context", "INC@0.5", "SELF@1.5", "SELF@-1", "SELF@x",
        "INC+matched", "HAR+balanced+shuffled", "SELF+unexplained+self_explained", "REFUSAL+unexplained", "", "HAR-INC",
        "HAR/../x",
    ],
)  # fmt: skip
def test_what_is_no_arm_is_refused(name):
    with pytest.raises(ValueError, match=r"^('.*' is no arm|.+: )"):
        parse_arm(name)


def test_contrasts_are_those_of_like_arms_and_each_variation_against_its_arm():
    arms = ["HAR", "INC", "SELF", "INC+context", "HAR+matched", "HAR+balanced", "INC+balanced", "SELF@0.5", "REFUSAL"]
    assert contrasts(arms) == [
        ("HAR", "INC"), ("HAR+matched", "INC"), ("HAR+balanced", "INC+balanced"), ("SELF", "INC"), ("HAR", "SELF"),
        ("HAR+matched", "SELF"), ("REFUSAL", "INC"), ("INC+context", "INC"), ("HAR+matched", "HAR"),
        ("HAR+balanced", "HAR"), ("INC+balanced", "INC"),
    ]  # fmt: skip
    assert contrasts(["HAR", "INC", "SELF"]) == [("HAR", "INC"), ("SELF", "INC"), ("HAR", "SELF")]


def test_mixtures_run_from_the_true_answers_to_the_own():
    assert mixtures(["SELF", "HAR", "SELF@0.8", "INC", "SELF@0.05", "SELF@0.4+context"]) == {
        "INC": 0.0, "SELF@0.05": 0.05, "SELF@0.8": 0.8, "SELF": 1.0,
    }  # fmt: skip
    assert mixtures(["SELF@0", "INC", "SELF"]) == {"SELF@0": 0.0, "SELF": 1.0}
    assert mixtures(["HAR", "INC", "SELF"]) == {}
