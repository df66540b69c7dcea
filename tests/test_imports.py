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
LIGHT = ["cli", "__main__", "options", "option_values", "errors", "exit_codes", "console", "registry", "__init__"]


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


def modules(root: Path) -> dict[str, Path]:
    """Module name -> file, of every package under test."""
    return {
        ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path
        for package in FORBIDDEN
        for path in (root / package).rglob("*.py")
    }


def import_graph(root: Path) -> dict[str, set[str]]:
    """Module name -> the modules that its file imports anywhere: at the top, inside a function, for types alone."""
    paths = modules(root)
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        package = path.relative_to(root).parent.parts
        targets: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                anchor = package[: len(package) + 1 - node.level] if node.level else ()
                source = ".".join([*anchor, *([node.module] if node.module else [])])
                submodules = {alias.name: f"{source}.{alias.name}" for alias in node.names}
                targets |= {full if (full := submodules[alias.name]) in paths else source for alias in node.names}
        graph[name] = (targets & paths.keys()) - {name}
    return graph


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other, each group sorted."""

    def reachable(start: str) -> set[str]:
        reached: set[str] = set()
        pending = [start]
        while pending:
            for target in graph[pending.pop()] - reached:
                reached.add(target)
                pending.append(target)
        return reached

    reach = {name: reachable(name) for name in graph}
    groups = {tuple(sorted(other for other in reach[name] if name in reach[other])) for name in graph}
    return [list(group) for group in sorted(groups) if group]


def files(package: str) -> list[Path]:
    sources = sorted((ROOT / package).rglob("*.py"))
    assert sources, f"no sources in {package}"
    return sources


@pytest.mark.parametrize("package", sorted(FORBIDDEN))
def test_packages_keep_their_walls(package: str) -> None:
    crossings = [
        (str(path.relative_to(ROOT)), name)
        for path in files(package)
        for name in imported(path)
        if name.split(".")[0] in FORBIDDEN[package]
    ]
    assert crossings == []


def test_no_circles() -> None:
    """A module that needs another, which needs the first, is one module in two files."""
    assert circles(import_graph(ROOT)) == []


def test_a_circle_is_seen_wherever_its_imports_stand(tmp_path: Path) -> None:
    sources = {
        "diffkit/__init__.py": "",
        "diffkit/a.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from diffkit import b\n",
        "diffkit/b.py": "def f():\n    from .sub.c import name\n",
        "diffkit/sub/__init__.py": "",
        "diffkit/sub/c.py": "import diffkit.a\n",
        "diffkit/d.py": "from diffkit.sub import c\nimport json\n",
        "ttsnap/__init__.py": "from ttsnap.e import name\n",
        "ttsnap/e.py": "from ttsnap import f\n",
        "ttsnap/f.py": "",
    }
    for name, text in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    graph = import_graph(tmp_path)
    assert graph["diffkit.d"] == {"diffkit.sub.c"}
    assert graph["ttsnap.e"] == {"ttsnap.f"}  # the submodule is meant, not the package
    assert circles(graph) == [["diffkit.a", "diffkit.b", "diffkit.sub.c"]]


@pytest.mark.parametrize(("package", "most"), [("memorization", 15), ("ttsnap", 14)])
def test_the_top_of_a_package_stays_small(package: str, most: int) -> None:
    """Its own modules and its subpackages: what a reader sees first."""
    entries = [path for path in (ROOT / package).iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()]
    assert len(entries) <= most, sorted(path.name for path in entries)


def test_nobody_imports_the_tests_or_scripts() -> None:
    for package in FORBIDDEN:
        for path in files(package):
            assert not {name.split(".")[0] for name in imported(path)} & {"tests", "scripts", "conftest"}, path


def test_command_modules_load_nothing_heavy() -> None:
    light = [ROOT / "diffkit" / f"{name}.py" for name in LIGHT]
    light += [ROOT / package / "__init__.py" for package in ("memorization", "ttsnap")]
    light += [*(ROOT / "memorization" / "cli").glob("*.py"), *(ROOT / "ttsnap" / "cli").glob("*.py")]
    light.remove(ROOT / "ttsnap" / "cli" / "generate_run.py")  # imported when a search runs
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
