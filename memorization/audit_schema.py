"""Versions of what an audit writes; a reader refuses others."""

from __future__ import annotations

SUMMARY_SCHEMA = 2
RECORD_SCHEMA = 2  # of the items in the journal; part of the configuration, so that an older folder is refused
