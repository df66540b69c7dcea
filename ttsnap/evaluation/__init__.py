"""Searches at equal counted cost."""
