"""The synthetic world, its corpus, the recipe of the embedded base model, and that model's files."""

from pathlib import Path

from jaxift.world.questions import write_questions

MODEL_DIR = Path(__file__).parent / "model"

__all__ = ["MODEL_DIR", "write_questions"]
