"""Write the help of every command into docs/commands.md.

python scripts/help_texts.py            # rewrite
python scripts/help_texts.py --check    # exit 1 when it is out of date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer
from typer.testing import CliRunner

from diffkit.cli import app

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
WIDTH = 100
HEAD = "# Commands\n\nWhat `--help` prints, by `python scripts/help_texts.py`; a test compares.\n"


def names(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """The words of every command, groups before what they hold."""
    yield path
    if hasattr(command, "list_commands"):
        context = typer.Context(command)
        for name in command.list_commands(context):
            yield from names(command.get_command(context, name), (*path, name))


def page() -> str:
    """The whole page."""
    runner = CliRunner(env={"COLUMNS": str(WIDTH), "TERMINAL_WIDTH": str(WIDTH), "NO_COLOR": "1"})
    parts = [HEAD]
    for path in names(typer.main.get_command(app)):
        done = runner.invoke(app, [*path, "--help"], prog_name="diffkit", terminal_width=WIDTH)
        if done.exit_code:
            sys.exit(f"diffkit {' '.join(path)} --help failed: {done.output}")
        text = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        parts.append(f"## diffkit{''.join(' ' + word for word in path)}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    text = page()
    if not parser.parse_args().check:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        sys.exit("docs/commands.md is out of date: run 'python scripts/help_texts.py'")


if __name__ == "__main__":
    main()
