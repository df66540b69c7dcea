"""The core under `memorization` and `ttsnap`: suspended pipelines, rewards, runs, reports, one command line.

Nothing heavy is imported here: `import diffkit` costs no torch.
"""

from __future__ import annotations

from diffkit.errors import DiffkitError, InputError, ScoringError

__all__ = ["DiffkitError", "InputError", "ScoringError", "__version__"]

__version__ = "0.1.0"
