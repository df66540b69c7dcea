"""When a search looks at its candidates and how many it keeps: fixed, fitted, or by an index rule."""
