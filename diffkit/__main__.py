"""`python -m diffkit` is `diffkit`."""

from __future__ import annotations

from diffkit.cli import main

main()
