"""jaxift: does instruction fine-tuning teach a language model anything, or only to say what it already knows?

import jaxift
model = jaxift.load("path/to/huggingface/folder")
[score] = jaxift.score(model, [jaxift.Request("The capital of France is", (" Paris", " Rome"))])
print(score.logprobs, score.is_greedy)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxift.errors import UserError
    from jaxift.models.export import export
    from jaxift.models.sampling import Generation, generate
    from jaxift.models.weights import LanguageModel, load
    from jaxift.parallel.mesh import make_mesh
    from jaxift.scoring.engine import score
    from jaxift.scoring.requests import Request, Score
    from jaxift.tuning.loop import Tuned, tune

__all__ = [
    "Generation", "LanguageModel", "Request", "Score", "Tuned", "UserError", "export", "generate", "load", "make_mesh",
    "score", "tune",
]  # fmt: skip
__version__ = "0.1.0"

_HOME = {
    "Generation": "jaxift.models.sampling",
    "LanguageModel": "jaxift.models.weights",
    "Request": "jaxift.scoring.requests",
    "Score": "jaxift.scoring.requests",
    "Tuned": "jaxift.tuning.loop",
    "UserError": "jaxift.errors",
    "export": "jaxift.models.export",
    "generate": "jaxift.models.sampling",
    "load": "jaxift.models.weights",
    "make_mesh": "jaxift.parallel.mesh",
    "score": "jaxift.scoring.engine",
    "tune": "jaxift.tuning.loop",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first asked for, so that `import jaxift` alone does not start JAX."""
    if name not in _HOME:
        raise AttributeError(f"module 'jaxift' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
