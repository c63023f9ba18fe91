"""Prompts, byte for byte."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.data.prompts import STYLES, continuations, instruction_prompt, probe_prompt, response
from jaxift.data.questions import Question

DEV = (
    Question("d0", "Which bone is longest?", ("Femur", "Tibia", "Radius", "Ulna"), 0),
    Question("d1", "How many chambers has a heart?", ("Two", "Three", "Four", "Five"), 2),
)
ITEM = Question("q", "Which organ makes bile?", ("Lung", "Liver", "Skin", "Spleen"), 1)

PAPER_ITEM = "Which organ makes bile?\nA. Lung\nB. Liver\nC. Skin\nD. Spleen\nAnswer:"
PAPER_PROBE = (
    "The following are multiple choice questions about medicine. Please choose the correct answer. \n\n"
    "Which bone is longest?\nA. Femur\nB. Tibia\nC. Radius\nD. Ulna\nAnswer:A. Femur\n\n"
    "How many chambers has a heart?\nA. Two\nB. Three\nC. Four\nD. Five\nAnswer:C. Four\n\n"
) + PAPER_ITEM
PAPER_INSTRUCTION = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: "
    "The following are multiple choice questions about medicine. Please choose the correct answer. \n\n"
) + (PAPER_ITEM + " ASSISTANT: ")


def test_paper_probe_is_the_releases_text():
    assert probe_prompt("paper", "medicine", DEV, ITEM) == PAPER_PROBE


def test_paper_probe_without_demonstrations_is_header_and_item():
    header = "The following are multiple choice questions about medicine. Please choose the correct answer. \n\n"
    assert probe_prompt("paper", "medicine", (), ITEM) == header + PAPER_ITEM


def test_paper_instruction_is_the_releases_text():
    assert instruction_prompt("paper", "medicine", ITEM) == PAPER_INSTRUCTION


def test_cloze_prompts_do_not_list_the_options():
    assert probe_prompt("cloze", "medicine", DEV[:1], ITEM) == (
        "Question: Which bone is longest?\nAnswer: Femur\n\nQuestion: Which organ makes bile?\nAnswer:"
    )
    assert instruction_prompt("cloze", "medicine", ITEM) == (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: Which organ makes bile? ASSISTANT: "
    )


def test_world_prompts_are_words_apart_by_single_spaces():
    assert probe_prompt("world", "medicine", DEV[:1], ITEM) == (
        "Question Which bone is longest? ? A Femur B Tibia C Radius D Ulna Answer A "
        "Question Which organ makes bile? ? A Lung B Liver C Skin D Spleen Answer"
    )
    assert instruction_prompt("world", "medicine", ITEM) == (
        "Instruction Which organ makes bile? ? A Lung B Liver C Skin D Spleen Response"
    )


@pytest.mark.parametrize(
    ("style", "side", "formulation", "expected"),
    [
        ("paper", "probe", "mcf", ("A", "B", "C", "D")),
        ("paper", "instruction", "mcf", ("A", "B", "C", "D")),
        ("paper", "probe", "cf", ("Lung", "Liver", "Skin", "Spleen")),
        ("cloze", "probe", "cf", (" Lung", " Liver", " Skin", " Spleen")),
        ("cloze", "instruction", "cf", ("Lung", "Liver", "Skin", "Spleen")),
        ("world", "probe", "mcf", (" A", " B", " C", " D")),
        ("world", "instruction", "mcf", (" A", " B", " C", " D")),
    ],
)
def test_continuations(style, side, formulation, expected):
    assert continuations(getattr(STYLES[style], side), ITEM, formulation) == expected


@pytest.mark.parametrize(
    ("style", "form", "expected"),
    [
        ("paper", "letter", "B"),
        ("paper", "letter_and_option", "B. Liver"),
        ("cloze", "option", "Liver"),
        ("world", "letter", " B"),
    ],
)
def test_response(style, form, expected):
    assert response(style, ITEM, 1, form) == expected


@pytest.mark.parametrize(
    ("style", "form", "formulation"),
    [("paper", "letter", "mcf"), ("cloze", "option", "cf"), ("world", "letter", "mcf")],
)
def test_tuned_response_is_what_evaluation_scores(style, form, formulation):
    scored = continuations(STYLES[style].instruction, ITEM, formulation)
    assert scored == tuple(response(style, ITEM, index, form) for index in range(4))


@pytest.mark.parametrize("style", STYLES)
@given(text=st.text(alphabet="{}%s$\\\"'\n 0prompt", min_size=1, max_size=20))
def test_texts_with_braces_and_percent_signs_survive(style, text):
    question = Question("q", f"<{text}>", (f"[{text}]", "other"), 0)
    prompts = [probe_prompt(style, "law", [question], question), instruction_prompt(style, "law", question)]
    assert [prompt.count(f"<{text}>") for prompt in prompts] == [2, 1]
    assert continuations(STYLES[style].probe, question, "cf")[0].endswith(f"[{text}]")
    assert response(style, question, 0, "option").endswith(f"[{text}]")


def test_five_options_get_the_letter_e():
    question = Question("q", "Which?", ("a", "b", "c", "d", "e"), 4)
    assert probe_prompt("paper", "law", (), question).endswith("Which?\nA. a\nB. b\nC. c\nD. d\nE. e\nAnswer:")
    assert continuations(STYLES["paper"].probe, question, "mcf") == ("A", "B", "C", "D", "E")
