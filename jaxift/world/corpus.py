"""Documents of the synthetic corpus, as words with marks where the loss looks. Pure NumPy.

Five kinds: `statement` (one fact in a paraphrase), `quiz` (1 to 8 multiple-choice items), `context` (quiz items with
the needed fact before the question), `instruction` (one item in the instruction template, with or without context)
and `drill` (look-ups of letters).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from jaxift.world.facts import CONTEXT, STATEMENT_WEIGHTS, Fact, World
from jaxift.world.questions import options_of
from jaxift.world.words import LETTERS, VALUES

# The statements' paraphrases; E, R and V stand for entity, relation and value. The last two are open questions.
STATEMENTS = (
    "the R of E is V .",
    "R of E : V .",
    "E has R V .",
    "for E the R is V .",
    "E is known for R V .",
    "Question R of E ? Answer V",
    "Instruction R of E ? Response V <eos>",
)
KINDS = ("statement", "quiz", "context", "instruction", "drill")
AUTHORS = ("reliable", "random", "contrarian")
# Of the context items: facts about fictional entities, and made-up values of quiz entities; the rest is true.
FICTIONAL_SHARE, COUNTERFACTUAL_SHARE = 0.5, 0.3
MAX_QUIZ_ITEMS, MAX_CONTEXT_ITEMS = 8, 5


@dataclass
class Document:
    """Words of one document; `keys` are the indices that the loss is about, `recall` maps some of them to a value.

    At an index in `recall` the deep supervision asks a middle layer for the fact's value, whatever the author answers.
    """

    words: list[str] = field(default_factory=lambda: ["<bos>"])
    keys: list[int] = field(default_factory=list)
    recall: dict[int, str] = field(default_factory=dict)

    def add(self, text: str) -> None:
        """Append words that carry no mark."""
        self.words += text.split()

    def add_key(self, word: str, value: str = "") -> None:
        """Append a word that the loss is about, and the value to be recalled there."""
        self.keys.append(len(self.words))
        if value:
            self.recall[len(self.words)] = value
        self.words.append(word)


@dataclass(frozen=True)
class AuthorMix:
    """Shares of reliable, random and contrarian authors of multiple-choice documents, by template."""

    quiz: tuple[float, float, float] = (0.70, 0.10, 0.20)
    instruction: tuple[float, float, float] = (0.30, 0.20, 0.50)

    def shares(self, kind: str) -> tuple[float, float, float]:
        """Return the shares for a kind of document."""
        return self.instruction if kind == "instruction" else self.quiz


ALL_RELIABLE = AuthorMix(quiz=(1.0, 0.0, 0.0), instruction=(1.0, 0.0, 0.0))


def quiz_prompt(question: str, options: list[str], context: str = "") -> str:
    """Render a question in the quiz template, up to the answer's letter; `context` ends with a space."""
    return f"Question {context}{question} ? {letter_options(options)} Answer"


def instruction_prompt(question: str, options: list[str], context: str = "") -> str:
    """Render a question in the instruction template, up to the answer's letter; `context` ends with a space."""
    return f"Instruction {context}{question} ? {letter_options(options)} Response"


def letter_options(options: list[str]) -> str:
    """Join the options with their letters."""
    return " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, options, strict=True))


class Writer:
    """Writes documents about a world; all randomness comes from the generator it is given."""

    def __init__(self, world: World, authors: AuthorMix, rng: np.random.Generator):
        self.world, self.authors, self.rng = world, authors, rng
        self.told = [fact for fact in world.facts if STATEMENT_WEIGHTS[fact.exposure] > 0]
        self.cumulative = np.cumsum([STATEMENT_WEIGHTS[fact.exposure] for fact in self.told])
        self.quiz = [facts for facts in world.quiz_facts.values()]

    def write(self, kind: str) -> Document:
        """Write one document of a kind in `KINDS`."""
        match kind:
            case "statement":
                return self.statement()
            case "drill":
                return self.drill()
            case "instruction":
                return self.instruction()
            case _:
                return self.quizzes(kind == "context")

    def statement(self) -> Document:
        """State a fact, drawn by its exposure, in one of the paraphrases."""
        place = self.rng.random() * self.cumulative[-1]
        fact = self.told[int(np.searchsorted(self.cumulative, place, side="right"))]
        document = Document()
        for word in STATEMENTS[self.rng.integers(len(STATEMENTS))].split():
            if word == "V":
                document.add_key(fact.told, fact.told)
            else:
                document.add({"R": fact.relation, "E": fact.entity}.get(word, word))
        return document

    def quizzes(self, context: bool) -> Document:
        """Write several quiz items of one domain by one author, each with its fact as context if `context`."""
        document, author, domain = Document(), self.author("quiz"), int(self.rng.integers(len(self.quiz)))
        for _ in range(self.rng.integers(1, 1 + (MAX_CONTEXT_ITEMS if context else MAX_QUIZ_ITEMS))):
            fact, before = self.asked(domain, context)
            options = options_of(fact, self.rng)
            document.add(quiz_prompt(fact.question, options, before))
            document.add_key(self.answer(author, fact, options), fact.value)
        return document

    def instruction(self) -> Document:
        """Write one item in the instruction template, every third with context."""
        document, context = Document(), self.rng.random() < 1 / 3
        fact, before = self.asked(int(self.rng.integers(len(self.quiz))), context)
        options = options_of(fact, self.rng)
        document.add(instruction_prompt(fact.question, options, before))
        document.add_key(self.answer(self.author("instruction"), fact, options), fact.value)
        document.add_key("<eos>")
        return document

    def drill(self) -> Document:
        """List four values with letters, then look them up: from the value to its letter, no knowledge needed."""
        relations = VALUES[self.pick(list(VALUES))]
        pool = relations[self.pick(list(relations))]
        values = [pool[i] for i in self.rng.choice(len(pool), len(LETTERS), replace=False)]
        document = Document()
        document.add(letter_options(values) + " :")
        for i in self.rng.permutation(4):
            document.add(values[i])
            document.add_key(LETTERS[i], values[i])
        return document

    def asked(self, domain: int, context: bool) -> tuple[Fact, str]:
        """Draw a fact about a quiz entity and the words before its question.

        With `context` the words state the fact, which is mostly made up for this item (a fictional entity, or another
        value), so that the context has to be read and memory does not do.
        """
        fact = self.quiz[domain][self.rng.integers(len(self.quiz[domain]))]
        if not context:
            return fact, ""
        place = self.rng.random()
        if place < FICTIONAL_SHARE + COUNTERFACTUAL_SHARE:
            entity = self.pick(self.world.fictional) if place < FICTIONAL_SHARE else fact.entity
            value = self.pick(VALUES[fact.domain][fact.relation])
            fact = Fact(fact.domain, "", entity, fact.relation, value, value, "fictional")
        return fact, f"{fact.context} "

    def answer(self, author: str, fact: Fact, options: list[str]) -> str:
        """Return the letter that an author answers: right, any, or wrong."""
        right = options.index(fact.value)
        if author == "reliable":
            return LETTERS[right]
        shift = self.rng.integers(len(options)) if author == "random" else self.rng.integers(1, len(options))
        return LETTERS[(right + shift) % len(options)]

    def author(self, kind: str) -> str:
        """Draw the author of a document."""
        return AUTHORS[
            int(np.searchsorted(np.cumsum(self.authors.shares(kind)), self.rng.random(), side="right").clip(0, 2))
        ]

    def pick(self, items: Sequence[str]) -> str:
        """Draw one word."""
        return items[int(self.rng.integers(len(items)))]


def structural_words() -> tuple[str, ...]:
    """Return the words of the templates themselves, letters included."""
    frames = " ".join((*STATEMENTS, CONTEXT, quiz_prompt("of", list("VVVV")), instruction_prompt("of", list("VVVV"))))
    return tuple(dict.fromkeys(word for word in frames.split() if word not in ("E", "R", "V", "<eos>")))
