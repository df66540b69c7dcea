"""What makes two runs the same: their configurations, also where a later version has added a key to them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

__all__ = ["completed_config", "config_hash", "differing_keys"]


def config_hash(config: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a configuration; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(config, sort_keys=True, allow_nan=False).encode()).hexdigest()


def differing_keys(recorded: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """How a recorded configuration differs from the present one: "attack.steps is 50 there and 10 here"."""
    old, new = _flatten(recorded), _flatten(present)

    def shown(values: Mapping[str, Any], key: str) -> str:
        return json.dumps(values[key], ensure_ascii=False) if key in values else "not set"

    different = [key for key in sorted({*old, *new}) if shown(old, key) != shown(new, key)]
    return [f"{key} is {shown(old, key)} there and {shown(new, key)} here" for key in different]


def completed_config(record: Mapping[str, Any], added: Mapping[str, Any]) -> dict[str, Any]:
    """A run's configuration with the keys that were added since it was recorded.

    A key that the record lacks, or states as "auto", has the value that the run's provenance states under that name
    (version 0.1.0 noted the dtype there), else the value of ``added``.

    Args:
        record: the content of run.json.
        added: key -> the value that runs had before the key was recorded; a dot leads into a mapping
            ("settings.scheduler").

    Example:
        >>> completed_config({"config": {"model": "lab"}, "provenance": {}}, {"dtype": "float32"})
        {'model': 'lab', 'dtype': 'float32'}
        >>> completed_config({"config": {"dtype": "float16"}, "provenance": {}}, {"dtype": "float32"})
        {'dtype': 'float16'}
    """
    config: dict[str, Any] = json.loads(json.dumps(record["config"]))
    for key, value in added.items():
        *parents, name = key.split(".")
        place: Any = config
        for parent in parents:
            place = place.get(parent) if isinstance(place, dict) else None
        if isinstance(place, dict) and place.get(name, "auto") == "auto":
            noted = record["provenance"].get(key, value)
            place[name] = noted.removeprefix("torch.") if isinstance(noted, str) else noted
    return config


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat.update(_flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
