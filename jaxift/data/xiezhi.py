"""The study's split of Xiezhi: which raw items of a source are tested on, shown as demonstrations, and trained on.

Ren et al. 2024: one generator, Python's `random.seed(42)`, shuffles the sources one after another; of each the first
250 are the test set, the next 10 the demonstrations, the rest is the training pool.
"""

import random

from etils import epath

from jaxift.data.fields import checked
from jaxift.data.questions import Question
from jaxift.data.tables import jsonl_rows
from jaxift.errors import UserError
from jaxift.source_config import Xiezhi, XiezhiPart

OPTIONS = 4  # items with another number of options are left out
SEED, TESTED, SHOWN = 42, 250, 10
SIZES = {"Engineering": 5089, "History": 8958, "Science": 3872, "Jurisprudence": 6921}
"""Items of each source, in the order in which they are shuffled."""


def split(domain: str, count: int) -> dict[XiezhiPart, list[int]]:
    """Part -> the places, among a domain's `count` usable items, that it holds, in order.

    A shuffle draws as many numbers as there are items, whatever they are: the sources before need not be there.
    """
    generator = random.Random(SEED)
    for name, size in SIZES.items():
        places = list(range(count if name == domain else size))
        generator.shuffle(places)
        if name == domain:
            return {"test": places[:TESTED], "dev": places[TESTED : TESTED + SHOWN], "train": places[TESTED + SHOWN :]}
    raise ValueError(f"{domain} is none of {', '.join(SIZES)}")


def questions(path: epath.Path, wanted: Xiezhi) -> list[Question]:
    """The items of a raw source that belong to a part of the study's split; ids end in the study's own numbers.

    Raises UserError naming file, line and field.
    """
    usable = []
    for _, where, row in jsonl_rows(path):
        options, labels = row.get("options"), row.get("labels")
        if not isinstance(options, str) or not isinstance(labels, list):
            raise UserError(f"{where}: fields 'options' (a text) and 'labels' (a list) are needed in a Xiezhi source")
        if wanted.domain in labels and len(options.split("\n")) == OPTIONS:
            options = options.split("\n")
            if row.get("answer") not in options:
                raise UserError(
                    f"{where}: answer {row.get('answer')!r} is not among the options; give an option's text"
                )
            text = row.get("question")
            if not isinstance(text, str) or not text.strip() or not all(option.strip() for option in options):
                raise UserError(f"{where}: field 'question' and the options must be non-empty texts")
            usable.append(
                checked(
                    where,
                    id=f"xiezhi-{wanted.domain.lower()}-{len(usable)}",
                    question=text,
                    options=tuple(options),
                    answer=options.index(row["answer"]),  # the first of equal options counts, as in the study's split
                )
            )
    return [usable[place] for place in split(wanted.domain, len(usable))[wanted.part]]
