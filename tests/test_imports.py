"""The walls of the house: who imports whom, and what the command line may not load."""

from __future__ import annotations

import ast
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FORBIDDEN = {"diffkit": {"memorization", "ttsnap"}, "memorization": {"ttsnap"}, "ttsnap": {"memorization"}}
HEAVY = {"torch", "torchvision", "diffusers", "transformers", "accelerate", "scipy", "matplotlib", "numpy", "PIL"}
LIGHT = ["cli", "__main__", "options", "errors", "console", "registry", "__init__"]


def imported(path: Path, *, at_import: bool = False) -> Iterator[str]:
    """Modules a file imports: all of them, or only those that run when the file itself is imported."""
    package = path.relative_to(ROOT).with_suffix("").parts
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            anchor = package[: len(package) - node.level] if node.level else ()
            yield ".".join([*anchor, *([node.module] if node.module else [])])
        deferred = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) or (
            isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        )
        if not (at_import and deferred):
            pending.extend(ast.iter_child_nodes(node))


def files(package: str) -> list[Path]:
    found = sorted((ROOT / package).rglob("*.py"))
    assert found, f"no sources in {package}"
    return found


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_keep_their_walls(package: str) -> None:
    crossings = [
        (str(path.relative_to(ROOT)), name)
        for path in files(package)
        for name in imported(path)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert crossings == []


def test_nobody_imports_the_tests_or_scripts() -> None:
    for package in FORBIDDEN:
        for path in files(package):
            assert not {name.split(".")[0] for name in imported(path)} & {"tests", "scripts", "conftest"}, path


def test_command_modules_load_nothing_heavy() -> None:
    light = [ROOT / "diffkit" / f"{name}.py" for name in LIGHT]
    light += [ROOT / package / "__init__.py" for package in ("memorization", "ttsnap")]
    light += [*(ROOT / "memorization" / "cli").glob("*.py"), ROOT / "ttsnap" / "cli" / "app.py"]
    light.append(ROOT / "diffkit" / "lab" / "commands.py")
    light.append(ROOT / "diffkit" / "demo.py")
    for path in light:
        assert not {name.split(".")[0] for name in imported(path, at_import=True)} & HEAVY, path


def test_the_walk_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "pkg" / "sub" / "a.py"
    path.parent.mkdir(parents=True)
    path.write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import one\ndef f():\n    import two\n"
        "from . import three\nfrom ..four import five\ntry:\n    import six\nexcept ImportError:\n    pass\n"
    )
    assert set(imported(path)) == {"typing", "one", "two", "pkg.sub", "pkg.four", "six"}
    assert set(imported(path, at_import=True)) == {"typing", "pkg.sub", "pkg.four", "six"}


def test_every_package_is_typed() -> None:
    assert all((ROOT / package / "py.typed").is_file() for package in FORBIDDEN)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_no_test_can_open_a_socket(family: int) -> None:
    with socket.socket(family) as one, pytest.raises(RuntimeError, match="tried to connect"):
        one.connect(("localhost", 9))
    with pytest.raises(RuntimeError, match="tried to look up"):
        socket.create_connection(("example.org", 80), timeout=1)
