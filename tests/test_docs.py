"""The documents agree with what was measured and with what the commands take, and their code blocks run."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import json
import os
import re
import runpy
import shlex
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
from launch import launch

from diffkit.cli import app, main
from diffkit.readable_forms import readable_forms

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
SHELLS = ("", "bash", "sh", "shell", "console")
GENERATED = "commands.md"  # help texts, compared with the commands by their own script


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    language: str
    text: str


def blocks() -> Iterator[Block]:
    for path in PAGES:
        if path.name != GENERATED:
            for match in re.finditer(
                r"^```(\w*)\n(.*?)^```", path.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
            ):
                yield Block(path.name, match[1], match[2])


def command_lines() -> list[tuple[str, str]]:
    """(page, arguments after ``diffkit``) of every command line in a block, and of whole ones within a sentence."""
    texts = [(block.page, block.text.replace("\\\n", " ")) for block in blocks() if block.language in SHELLS]
    for path in PAGES:
        prose = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
        spans = re.findall(r"`(diffkit [^`]+ -[^`]+)`", prose) if path.name != GENERATED else []
        texts += [(path.name, re.sub(r"\s+", " ", span)) for span in spans if "|" not in span]
    return [
        (page, match[1].strip())
        for page, text in texts
        for match in re.finditer(r"(?:^|-m )diffkit (.+)$", text, re.MULTILINE)
    ]


LINES = command_lines()


def parse(arguments: list[str]) -> None:
    """Parse a command line as its command does, without running it."""
    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="diffkit")
    while arguments and (child := getattr(command, "get_command", lambda *_: None)(context, arguments[0])):
        command, arguments = child, arguments[1:]
        context = command.context_class(command, info_name=command.name, parent=context)
    if hasattr(command, "get_command") and arguments and not arguments[0].startswith("-"):
        raise typer.BadParameter(f"No such command {arguments[0]!r}.")
    command.make_context(command.name, [*arguments], parent=context.parent)


@pytest.mark.parametrize("script", ["readme_figures", "help_texts", "families_table", "json_schemas", "readable_forms"])
def test_generated_pages_are_up_to_date(script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = ROOT / "scripts" / f"{script}.py"
    monkeypatch.syspath_prepend(str(path.parent))
    monkeypatch.setattr(sys, "argv", [str(path), "--check"])
    monkeypatch.chdir(ROOT)
    message = None
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        message = end.code
    assert not message, message


def test_each_form_that_can_be_read_names_its_test() -> None:
    for form in readable_forms():
        file, _, name = form.test.partition("::")
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, form


def run_blocks(texts: list[str], folder: str) -> None:
    """Print as JSON, a line for each, what the blocks print."""
    os.chdir(folder)
    for text in texts:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(text, "block", "exec"), {"__name__": "block"})
        print(json.dumps(printed.getvalue()), flush=True)


def test_the_python_of_the_pages_runs(tmp_path: Path) -> None:
    """Each block in a namespace of its own, in one process that has the libraries once."""
    examples = [block for block in blocks() if block.language == "python"]
    assert {block.page for block in examples} >= {"README.md", "memorization.md", "rewards.md", "ttsnap.md"}
    ended = launch(1, run_blocks, [block.text for block in examples], str(tmp_path), folder=tmp_path / "logs")
    assert ended.codes == [0], ended.err
    printed = [json.loads(line) for line in ended.out[0].splitlines()]
    assert len(printed) == len(examples)
    for block, output in zip(examples, printed, strict=True):
        assert output.strip(), f"a block of {block.page} prints nothing:\n{block.text}"
        if "Spread" in block.text:
            assert 0.1 < float(output) < 10


def test_the_toml_of_the_pages_declares_entry_points() -> None:
    tables = [tomllib.loads(block.text) for block in blocks() if block.language == "toml"]
    assert tables
    assert all(name.startswith("diffkit.") for table in tables for name in table["project"]["entry-points"])


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}-{i}" for i, (page, _) in enumerate(LINES)])
def test_a_command_line_of_the_pages_is_understood(page: str, line: str) -> None:
    parse(shlex.split(line))


def test_an_unknown_option_or_command_would_be_noticed() -> None:
    assert len(LINES) > 20
    with pytest.raises(Exception, match="No such option"):
        parse(["audit", "compare", "runs/a", "--no-such-option"])
    with pytest.raises(typer.BadParameter, match="No such command 'run'"):
        parse(["audit", "run", "--model", "lab"])


def test_the_audit_of_the_readme_is_planned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = next(line for page, line in LINES if page == "README.md" and line.startswith("audit "))
    monkeypatch.setattr(sys, "argv", ["diffkit", *shlex.split(line), "--dry-run"])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code
    assert re.search(r"suspects\s+24\b.*controls\s+30\b", capsys.readouterr().out, re.DOTALL)


def test_the_modules_that_the_changelog_names_are_there() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    table = text.partition("### Renamed modules")[2].partition("\n\nAll other")[0]
    renamed = re.findall(r"^\| `([\w.]+)` \| `([\w.]+)` \|$", table, re.MULTILINE)
    assert len(renamed) > 90
    assert [name for _, name in renamed if importlib.util.find_spec(name) is None] == []
