import io
from functools import partial

import numpy as np
import pytest
from rich.console import Console

from jaxift.data.prompts import STYLES, instruction_prompt
from jaxift.models.weights import load
from jaxift.scoring.belief import beliefs
from jaxift.world import MODEL_DIR
from jaxift.world.check import PROBE, STYLE, DomainCheck, as_question, check_table
from jaxift.world.facts import EXPOSURES, build_world
from jaxift.world.questions import domain_questions


@pytest.fixture(scope="module")
def right():
    """Whether the embedded model answers each HOMO question of a domain rightly as an instruction, by exposure."""
    items = domain_questions(build_world(), "medicine")["homo"]
    questions = [as_question(item) for item in items]
    found = beliefs(
        load(MODEL_DIR), questions, partial(instruction_prompt, STYLE, "medicine"), STYLES[STYLE].instruction, PROBE
    )
    hits = np.array([belief.probs.argmax() == item["answer"] for belief, item in zip(found, items, strict=True)])
    exposures = np.array([item["exposure"] for item in items])
    return {exposure: hits[exposures == exposure].mean() for exposure in EXPOSURES}


def test_embedded_model_knows_what_it_often_saw_and_guesses_what_it_never_saw(right):
    assert right["frequent"] > 0.85
    assert 0.05 < right["never"] < 0.45
    assert right["never"] < right["frequent"] - 0.4


def test_embedded_model_believes_the_myths(right):
    assert right["myth"] < 0.15


def test_table_fits_a_terminal_and_shows_each_domain():
    line = DomainCheck("jurisprudence", (0.25,) * 5, (0.5,) * 5, 0.123, 0.456, 177, 144)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(check_table([line, line]))
    text = console.export_text()
    assert text.count("jurisprudence") == 2
    assert "…" not in text
    for shown in ("0.123", "0.456", "177", "144", "mean"):
        assert shown in text
