"""The core under `memorization` and `ttsnap`: suspended pipelines, rewards, runs, reports, one command line.

Nothing heavy is imported here: `import diffkit` costs no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from diffkit.errors import DiffkitError, InputError, ScoringError
from diffkit.lazy import lazy_names

if TYPE_CHECKING:
    from diffkit.ledger import Ledger
    from diffkit.loading import load_pipeline
    from diffkit.mitigation import apply_mitigation
    from diffkit.prompts import read_prompts
    from diffkit.rewards import load_reward
    from diffkit.runs import Run
    from diffkit.suspects import read_suspects

__all__ = [
    "DiffkitError",
    "InputError",
    "Ledger",
    "Run",
    "ScoringError",
    "__version__",
    "apply_mitigation",
    "load_pipeline",
    "load_reward",
    "read_prompts",
    "read_suspects",
]

__version__ = "0.2.0"

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "Ledger": "diffkit.ledger",
        "Run": "diffkit.runs",
        "apply_mitigation": "diffkit.mitigation",
        "load_pipeline": "diffkit.loading",
        "load_reward": "diffkit.rewards",
        "read_prompts": "diffkit.prompts",
        "read_suspects": "diffkit.suspects",
    },
)
