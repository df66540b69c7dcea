"""Learned schedules and the index rule: what is optimised, and how it is checked."""
