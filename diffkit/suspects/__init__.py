"""Suspects: captions, with the local images they may have been memorized from, in every form such lists have.

`read` finds the reader of a source; `tables` (CSV, TSV), `lists` (JSON, JSON lines, text) and `folders` (images with
captions) turn a source into rows; `columns` turns a row into suspects. A row becomes suspects or an error.
"""

from diffkit.suspects.read import read_suspects
from diffkit.suspects.record import RowError, Suspect

__all__ = ["RowError", "Suspect", "read_suspects"]
