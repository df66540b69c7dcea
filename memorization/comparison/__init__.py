"""Audits of several models side by side, paired by suspect."""
