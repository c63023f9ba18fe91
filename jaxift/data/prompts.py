"""Renders questions as prompts: str -> str, no tokens.

A *style* is a pair of templates: `probe` asks the base model, with demonstrations; `instruction` asks the tuned model,
zero-shot. All texts of one style come from one table below. `wrapper`, where a function takes it, is the conversation
around an instruction, in place of the study's own.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from jaxift.data.questions import LETTERS, Question

CHAT = (
    "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, "
    "and polite answers to the user's questions. USER: {prompt} ASSISTANT: "
)


@dataclasses.dataclass(frozen=True)
class Template:
    """How one question becomes text: header + question + one `option` each + cue, inside `wrapper`.

    `question` has a place for `context`, which is put there in the form of `context` where there is any. `answer` is
    what precedes an answer's own text; a demonstration shows its answer as `shown` and closes with `end`.
    """

    header: str
    question: str
    option: str
    cue: str
    answer: str
    shown: Literal["letter", "option", "letter_and_option"] = "letter"
    end: str = ""
    context: str = "{context}\n\n"
    wrapper: str = "{prompt}"


@dataclasses.dataclass(frozen=True)
class Style:
    """The templates of the base model's probe and of the instruction."""

    probe: Template
    instruction: Template


_PAPER_HEADER = "The following are multiple choice questions about {domain}. Please choose the correct answer. \n\n"

_PAPER_PROBE = Template(
    _PAPER_HEADER, "{context}{question}\n", "{letter}. {option}\n", "Answer:", "", "letter_and_option", "\n\n"
)

STYLES = {
    # as in the authors' release: no space between "Answer:" and the letter, a space before the header's newlines
    "paper": Style(
        probe=_PAPER_PROBE,
        instruction=Template(
            _PAPER_HEADER, "{context}{question}\n", "{letter}. {option}\n", "Answer:", "", wrapper=CHAT
        ),
    ),
    # the same probe; the user's turn is the question and its options alone
    "paper_bare_turn": Style(
        probe=_PAPER_PROBE,
        instruction=Template("", "{context}{question}", "\n{letter}. {option}", "", "", wrapper=CHAT),
    ),
    # the options' own text is the continuation, so they are not listed
    "cloze": Style(
        probe=Template("", "Question: {question}\n", "", "Answer:", " ", "option", "\n\n"),
        instruction=Template("", "{context}{question}", "", "", "", wrapper=CHAT),
    ),
    # the synthetic world's two templates; its tokens are words
    "world": Style(
        probe=Template("", "Question {question} ?", " {letter} {option}", " Answer", " ", "letter", " "),
        instruction=Template(
            "", "Instruction {context}{question} ?", " {letter} {option}", " Response", " ", context="{context} "
        ),
    ),
}


def _item(template: Template, question: Question, context: str = "") -> str:
    options = "".join(
        template.option.format(letter=letter, option=option)
        for letter, option in zip(LETTERS, question.options, strict=False)
    )
    before = template.context.format(context=context) if context else ""
    return template.question.format(question=question.question, context=before) + options + template.cue


def _answer_text(question: Question, index: int, form: str) -> str:
    letter, option = LETTERS[index], question.options[index]
    return {"letter": letter, "option": option, "letter_and_option": f"{letter}. {option}"}[form]


def probe_prompt(style: str, domain: str, shown: Sequence[Question], question: Question) -> str:
    """The few-shot prompt: header, the demonstrations with their true answers, then the question without its answer."""
    template = STYLES[style].probe
    shots = "".join(
        _item(template, shot) + template.answer + _answer_text(shot, shot.answer, template.shown) + template.end
        for shot in shown
    )
    header = template.header.format(domain=question.header or domain)
    return wrap(header + shots + _item(template, question), template.wrapper)


def instruction_prompt(style: str, domain: str, question: Question, context: str = "", wrapper: str = "") -> str:
    """The zero-shot prompt that the model is tuned and evaluated on, up to where the response begins.

    A `context` stands before the question, after the header (Exp-II).
    """
    template = STYLES[style].instruction
    prompt = template.header.format(domain=question.header or domain) + _item(template, question, context)
    return wrap(prompt, wrapper or template.wrapper)


def general_prompt(instruction: str, text: str, wrapper: str = "") -> str:
    """A general instruction and the text that it is about (which may be empty) as the user's turn of a conversation."""
    return wrap(f"{instruction}\n{text}" if text else instruction, wrapper or CHAT)


def wrap(prompt: str, wrapper: str) -> str:
    """A prompt inside a conversation; braces of the conversation's own are left alone."""
    return wrapper.replace("{prompt}", prompt)


def continuations(template: Template, question: Question, formulation: str) -> tuple[str, ...]:
    """What is scored after a prompt, one text an option: its letter (`mcf`) or its own text (`cf`)."""
    form = "letter" if formulation == "mcf" else "option"
    return tuple(template.answer + _answer_text(question, index, form) for index in range(len(question.options)))


def response(style: str, question: Question, index: int, form: str, explanation: str = "") -> str:
    """What the model is tuned to answer when option `index` is taken for the answer; an explanation follows it."""
    answer = STYLES[style].instruction.answer + _answer_text(question, index, form)
    return f"{answer}\n\n{explanation}" if explanation else answer
