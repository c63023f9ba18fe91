"""The study's split of Xiezhi: which raw items of a source are tested on, shown as demonstrations, and trained on.

Ren et al. 2024: one generator, Python's `random.seed(42)`, shuffles the sources one after another; of each the first
250 are the test set, the next 10 the demonstrations, the rest is the training pool.
"""

import random

from jaxift.config import XiezhiPart

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
