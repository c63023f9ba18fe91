"""Prompts, byte for byte."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxift.data.prompts import STYLES, continuations, general_prompt, instruction_prompt, probe_prompt, response
from jaxift.data.questions import Question
from jaxift.data.tokenizer import Tokenizer
from jaxift.tuning.batches import Plan, choose_shape, encode_examples

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


# golden files: the release's texts with invented questions, byte for byte

GOLDEN = Path(__file__).parent / "golden"
MMLU_ITEM = dataclasses.replace(ITEM, header=" college medicine")
RENDERED = {
    "probe": lambda: probe_prompt("paper", "medicine", DEV[:1], ITEM),
    "probe_mmlu": lambda: probe_prompt("paper", "medicine", DEV[:1], MMLU_ITEM),
    "instruction": lambda: instruction_prompt("paper", "medicine", ITEM),
    "contextualised": lambda: instruction_prompt("paper", "medicine", ITEM, "The liver makes bile."),
    "response": lambda: response("paper", ITEM, 1, "letter_and_option", "The liver makes bile."),
    "general": lambda: general_prompt("Name a colour.", "Not red."),
}


@pytest.mark.parametrize("name", RENDERED)
def test_prompts_are_their_golden_files(name):
    assert RENDERED[name]().encode() == (GOLDEN / f"{name}.txt").read_bytes()


def test_golden_files_hold_the_releases_quirks():
    texts = {path.stem: path.read_text(encoding="utf-8") for path in GOLDEN.glob("*.txt")}
    assert set(texts) == set(RENDERED)
    assert "questions about  college medicine. Please" in texts["probe_mmlu"]  # two spaces
    assert all("correct answer. \n\n" in texts[name] for name in ("probe", "probe_mmlu", "instruction"))
    assert texts["probe"].endswith("Answer:")
    assert all(texts[name].endswith("Answer: ASSISTANT: ") for name in ("instruction", "contextualised"))


def test_a_conversation_of_the_models_own_takes_the_studys_place():
    wrapper = "<user>{prompt}</user>{not a field}"
    prompt = instruction_prompt("paper", "medicine", ITEM, wrapper=wrapper)
    assert prompt.startswith("<user>The following are multiple choice questions about medicine.")
    assert prompt.endswith("Answer:</user>{not a field}")
    assert general_prompt("Name {a} colour.", "", wrapper) == "<user>Name {a} colour.</user>{not a field}"


def folder_of(shared_data, name, request):
    """The folder of a real model's tokenizer."""
    if name == "stories260K":
        return shared_data / "models" / "stories260K"
    return request.getfixturevalue("smollm2_folder")


@pytest.mark.parametrize("name", ["stories260K", pytest.param("SmolLM2", marks=pytest.mark.slow)])
def test_the_loss_covers_the_response_and_its_end_and_nothing_else(shared_data, name, request):
    tokenizer = Tokenizer.load(folder_of(shared_data, name, request))
    prompt, said = RENDERED["contextualised"](), RENDERED["response"]()
    [example] = encode_examples(tokenizer, [(prompt, said)], 4096)
    known, learned = example.tokens[: example.start], example.tokens[example.start :]
    if tokenizer.bos is not None:
        assert known[0] == tokenizer.bos
        known = known[1:]
    assert tokenizer.bos not in (*known, *learned[:-1])
    assert tokenizer.eos not in (*known, *learned[:-1])
    assert learned[-1] == tokenizer.eos
    decode = tokenizer.backend.decode
    assert decode(known).strip() == prompt.strip()
    assert decode(learned[:-1]).strip() == said
    plan = Plan([example], 1, 1, 0)
    shape = choose_shape([plan], packing=True, micro_tokens=1, shards=1, limit=4096)
    batch = plan.batch(0, shape, packing=True)
    assert batch.weights_MHS.sum() == len(learned)
    assert batch.targets_MHS[0, 0, : len(learned)].tolist() == list(learned)
