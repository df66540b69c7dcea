"""The command line: exit codes, where text goes, what is imported."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from diffkit import __version__, cli, console
from diffkit.errors import DiffkitError, InputError, ScoringError
from diffkit.exit_codes import ExitCode
from diffkit.options import Debug, Format, Out, Seed
from diffkit.runs import Run

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "diffusers", "transformers", "scipy", "matplotlib", "numpy", "PIL"}


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], Any]:
    """Registers a function as the command `try` and returns what runs it."""

    def install(function: Callable[..., Any]) -> Any:
        monkeypatch.setitem(cli.commands._objects, "try", function)
        return lambda *arguments: CliRunner().invoke(cli.app, ["try", *arguments], prog_name="diffkit")

    return install


@pytest.mark.parametrize(
    ("error", "code"), [(InputError("bad row 7"), 2), (DiffkitError("no such"), 2), (ScoringError("all black"), 3)]
)
def test_an_explained_error_is_one_sentence_on_stderr(command: Any, error: DiffkitError, code: int) -> None:
    def fails(debug: Debug = False) -> None:
        raise error

    run = command(fails)
    result = run()
    assert (result.exit_code, result.stdout, result.stderr) == (code, "", f"Error: {error}\n")
    assert "Traceback" in run("--debug").stderr
    assert "Traceback" not in run().stderr


def test_a_bug_shows_its_traceback_and_never_looks_like_fail_on(command: Any) -> None:
    def fails() -> None:
        {}["missing"]

    result = command(fails)()
    assert result.exit_code == ExitCode.FAILURE
    assert "Traceback" in result.stderr
    assert "KeyError: 'missing'" in result.stderr


def test_a_broken_disk_is_a_sentence(command: Any, tmp_path: Path) -> None:
    def fails() -> None:
        (tmp_path / "missing" / "file").write_text("")

    result = command(fails)()
    assert result.exit_code == ExitCode.FAILURE
    assert result.stderr.startswith("Error: [Errno 2] No such file or directory")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("given", [True, False])
def test_ctrl_c_prints_the_line_that_resumes(command: Any, tmp_path: Path, given: bool) -> None:
    folder = tmp_path / "my run"

    def stops(out: Out = None, seed: Seed = 0) -> None:
        with Run.open(out or folder, config={}, kind="x"):
            raise KeyboardInterrupt

    result = command(stops)("--seed", "3", *(["--out", str(folder)] if given else []))
    assert result.exit_code == 130
    assert f"diffkit try --seed 3 --out '{folder}'\n" in result.stderr


def test_ctrl_c_outside_of_a_run(command: Any) -> None:
    def stops() -> None:
        raise KeyboardInterrupt

    result = command(stops)()
    assert (result.exit_code, result.stderr) == (130, "Interrupted. To do it again: diffkit try\n")


def test_exit_codes_of_commands_pass_through(command: Any) -> None:
    def stops() -> None:
        raise typer.Exit(ExitCode.FAIL_ON)

    assert command(stops)().exit_code == 1


@pytest.mark.parametrize("arguments", [["--no-such"], ["--seed", "-1"], ["--format", "xml"], ["--out", __file__]])
def test_wrong_usage_exits_with_2_and_runs_nothing(command: Any, arguments: list[str]) -> None:
    ran = []

    def runs(seed: Seed = 0, format: Format = "table", out: Out = None) -> None:
        ran.append(seed)

    result = command(runs)(*arguments)
    assert (result.exit_code, ran) == (2, [])
    assert arguments[0] in result.stderr


def test_result_is_json_on_stdout_and_progress_on_stderr(command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFKIT_QUIET", "0")

    def works(format: Format = "table") -> None:
        console.say("[bold]working[/bold]")
        with console.progress("drawing", total=2) as bar:
            bar.advance(2)
        if format == "json":
            console.write_json({"caption": "ä <b>", "score": None})
        else:
            console.write_table(["caption", "score"], [["[red]ä[/red] " + "x" * 100, None]])

    run = command(works)
    result = run("--format", "json")
    assert json.loads(result.stdout) == {"caption": "ä <b>", "score": None}
    assert result.stderr == "[bold]working[/bold]\n"
    table = run().stdout
    assert "[red]ä[/red] " + "x" * 100 in table
    assert "–" in table
    assert "\x1b" not in table


def test_plain_progress_tells_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    bar = console._PlainBar("auditing", 10, clock=lambda: now[0])
    for second in (4.0, 8.0, 12.0, 16.0):
        now[0] = second
        bar.advance()
    assert capsys.readouterr().err == "auditing: 3 of 10, about 28 s left\n"
    assert bar.line(4000.0) == "auditing: 4 of 10, about 1 h 40 min left"


def test_on_a_terminal_progress_is_a_moving_bar() -> None:
    code = (
        "from diffkit.console import progress\n"
        "with progress('[red]drawing[/red]', total=3) as bar:\n"
        "    bar.advance(2); bar.describe('still'); bar.advance()"
    )
    shown, inside = pty.openpty()
    environment = {**os.environ, "DIFFKIT_QUIET": "0", "TERM": "xterm"}
    subprocess.run([sys.executable, "-c", code], stderr=inside, check=True, cwd=ROOT, env=environment)
    os.close(inside)
    text = os.read(shown, 100_000).decode()
    os.close(shown)
    assert "3/3" in text
    assert "[red]drawing[/red]" in text or "still" in text


def test_help_lists_all_commands_without_heavy_imports() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from diffkit.cli import app\n"
        "result = CliRunner().invoke(app, ['--help']); print(result.output)\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)), result.exit_code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "HEAVY [] 0" in done.stdout
    for name in ("audit", "ttsnap", "lab", "demo"):
        assert f"\n  {name} " in done.stdout
    assert "cannot be imported" not in done.stdout


def test_module_and_version() -> None:
    done = subprocess.run([sys.executable, "-m", "diffkit", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"diffkit {__version__}\n", "")
    done = subprocess.run([sys.executable, "-m", "diffkit", "nothing"], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (2, "")
    assert "nothing" in done.stderr


def test_a_command_that_cannot_be_imported_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(cli.commands._builtins, "broken", "no_such_module:app")
    runner = CliRunner()
    assert "broken" in runner.invoke(cli.app, ["--help"]).stdout
    result = runner.invoke(cli.app, ["broken", "--any", "thing"])
    assert result.exit_code == 2
    assert "No module named 'no_such_module'" in result.stderr
