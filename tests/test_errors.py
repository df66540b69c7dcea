"""Errors and registries."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from diffkit.errors import InputError, Interrupted, unknown_name
from diffkit.registry import Registry, import_attribute


def test_unknown_names_are_answered_with_the_known() -> None:
    assert str(unknown_name("reward", "labb", ["pick_score", "lab"])) == (
        "Unknown reward 'labb'. Did you mean 'lab'? Known: lab, pick_score."
    )
    assert str(unknown_name("reward", "x", [])) == "Unknown reward 'x'. Known: none."


def test_input_errors_are_value_errors_and_interrupts_are_keyboard_interrupts() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(Interrupted, KeyboardInterrupt)


def test_registered_builtin_and_unknown() -> None:
    registry: Registry[object] = Registry("shape", "diffkit.tests.shapes", {"fraction": "fractions:Fraction"})

    @registry.register("circle")
    class Circle:
        pass

    assert registry.names() == ["circle", "fraction"]
    assert registry.get("circle") is Circle
    assert registry.get("fraction") is __import__("fractions").Fraction
    assert "circle" in registry
    assert "square" not in registry
    with pytest.raises(InputError, match="Unknown shape 'circel'. Did you mean 'circle'"):
        registry.get("circel")
    assert registry.register("circle")(Circle) is Circle
    with pytest.raises(InputError, match="registered already"):
        registry.register("circle")(object())


def test_outsiders_extend_by_entry_points(tmp_path: Path) -> None:
    info = tmp_path / "outsider-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: outsider\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[diffkit.shapes]\nhexagon = outsider:HEXAGON\n")
    (tmp_path / "outsider.py").write_text("HEXAGON = 6\n")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from diffkit.registry import Registry; r = Registry('shape', 'diffkit.shapes')\n"
        "assert r.names() == ['hexagon'] and 'outsider' not in sys.modules\n"
        "assert r.get('hexagon') == 6\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).resolve().parents[1])


@pytest.mark.parametrize("reference", ["math", ":sqrt", "math:", "math:no_such"])
def test_bad_references_are_refused(reference: str) -> None:
    with pytest.raises(InputError):
        import_attribute(reference)
