"""The command line: finds the commands, and turns what goes wrong into one sentence and an exit code.

Commands are entry points of the group ``diffkit.commands``: a typer app, or a plain function. Those of this
distribution are declared here too, so that a source tree works without installation.

Exit codes are those of :class:`diffkit.exit_codes.ExitCode`.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from diffkit import __version__
from diffkit.console import launched_as
from diffkit.errors import DiffkitError, InputError, Interrupted
from diffkit.exit_codes import ExitCode
from diffkit.options import DEBUG_KEY, Debug
from diffkit.registry import Registry

__all__ = ["app", "commands", "main"]

#: Options that name models and data, of which a second would take the first one's place without a word.
GIVEN_ONCE = frozenset({"--controls", "--lora", "--mitigation", "--model", "--prompts", "--suspects"})
ARGUMENTS_KEY = "diffkit.arguments"

commands: Registry[typer.Typer | Callable[..., Any]] = Registry(
    "command",
    "diffkit.commands",
    {
        "audit": "memorization.cli.audit:app",
        "demo": "diffkit.demo:demo",
        "lab": "diffkit.lab.commands:app",
        "locality": "memorization.cli.locality:app",
        "mitigate": "memorization.cli.mitigate:app",
        "ttsnap": "ttsnap.cli.app:app",
    },
)


class CommandGroup(TyperGroup):
    """The root of the command line: commands by entry point, errors by their exit code."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of all commands; imports none of them."""
        return commands.names()

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command of that name, imported now. One that cannot be imported says so and leaves the others alone."""
        if cmd_name not in commands:
            return None
        try:
            target = commands.get(cmd_name)
        except ImportError as error:
            target = _unavailable(cmd_name, error)
        command: Any = typer.main.get_command(target if isinstance(target, typer.Typer) else _app_of(target))
        command.name = cmd_name
        _unify(command)
        return command

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember the arguments for the line that resumes."""
        ctx.meta[ARGUMENTS_KEY] = list(args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Run the command; every failure becomes a sentence on stderr and an exit code."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            if not launched_as():  # one such line is enough
                _complain(_how_to_resume(ctx.meta[ARGUMENTS_KEY], error), colour="yellow", prefix="Interrupted. ")
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except DiffkitError as error:
            _complain(str(error), debug=ctx.meta.get(DEBUG_KEY, False))
            raise typer.Exit(error.exit_code) from None
        except (typer.Exit, typer.Abort, typer.BadParameter, BrokenPipeError):
            raise
        except OSError as error:  # a full disk, a folder that may not be written
            _complain(f"{error}.", debug=ctx.meta.get(DEBUG_KEY, False))
            raise typer.Exit(ExitCode.FAILURE) from None
        except Exception as error:
            from diffkit.micro_batch import is_out_of_memory

            if is_out_of_memory(error):
                advice = "Give a smaller --micro-batch, or --micro-batch auto. Nothing finished is lost."
                _complain(f"Memory ran out. {advice}", debug=ctx.meta.get(DEBUG_KEY, False))
                raise typer.Exit(ExitCode.FAILURE) from None
            if type(error).__module__.startswith(("typer.", "click.")):  # wrong usage, which typer words itself
                raise
            hint = "This is a bug in diffkit or in a plugin: please report it with the lines above."
            _complain(f"{type(error).__name__}: {error}\n{hint}", debug=True)
            raise typer.Exit(ExitCode.FAILURE) from None


def _unify(command: Any) -> None:
    """Give a command the root's plain help, and no completion options of its own."""
    command.rich_markup_mode = None
    _refuse_repeats(command)
    command.params = [p for p in command.params if p.name not in ("install_completion", "show_completion")]
    for child in getattr(command, "commands", {}).values():
        _unify(child)


def _refuse_repeats(command: Any) -> None:
    """Let a command refuse a second ``--suspects`` and the like: the parser keeps the last one only."""
    parse = command.parse_args

    def parse_args(ctx: Any, args: list[str]) -> Any:
        _, _, given = command.make_parser(ctx).parse_args(args=list(args))
        for option in given:
            if given.count(option) > 1 and not option.multiple and GIVEN_ONCE & {*option.opts}:
                hint = " Merge the adapters into one file first." if option.name == "lora" else ""
                raise InputError(f"{option.opts[0]} is given {given.count(option)} times, and one is taken.{hint}")
        return parse(ctx, args)

    command.parse_args = parse_args


def _app_of(function: Callable[..., Any]) -> typer.Typer:
    wrapped = typer.Typer(add_completion=False)
    wrapped.command()(function)
    return wrapped


def _unavailable(name: str, error: ImportError) -> Callable[..., Any]:
    def command(context: typer.Context) -> None:
        raise DiffkitError(
            f"The command {name!r} cannot be imported: {error}. Install its package again, or remove it."
        ) from error

    command.__doc__ = f"(cannot be imported: {error})"
    wrapped = typer.Typer(add_completion=False)
    wrapped.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})(command)
    return wrapped


def _how_to_resume(arguments: list[str], error: KeyboardInterrupt) -> str:
    line = ["diffkit", *arguments]
    if not isinstance(error, Interrupted):
        return f"To do it again: {shlex.join(line)}"
    if not any(argument in ("--out", "-o") or argument.startswith("--out=") for argument in arguments):
        line += ["--out", str(error.folder)]
    return f"Nothing finished is lost. To go on: {shlex.join(line)}"


def _complain(message: str, *, colour: str = "red", prefix: str = "Error: ", debug: bool = False) -> None:
    if debug:
        traceback.print_exc(file=sys.stderr)
    if launched_as():
        prefix = f"Process {launched_as()}: "
    plain = False if os.environ.get("NO_COLOR") else None  # None: colour on a terminal only
    typer.echo(typer.style(prefix, fg=colour, bold=True) + message, err=True, color=plain)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"diffkit {__version__}")
        raise typer.Exit


app = typer.Typer(cls=CommandGroup, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and stop.")
    ] = False,
    debug: Debug = False,
) -> None:
    """Audit diffusion models for memorized images, and search seeds by pruning in mid-denoising.

    Results go to stdout, progress to stderr. Exit codes: 0 done; 1 done and --fail-on met; 2 wrong usage or input;
    3 some items in error; 70 the machine or a bug stopped it; 130 interrupted.
    """


def _ended_by_launcher(_signal: int, _frame: object) -> None:
    if not launched_as():
        _complain(
            "The launcher ended this run: another of its processes ended (its message says why), or it was told to "
            "stop. Nothing finished is lost: the same command goes on, with any number of processes."
        )
    os._exit(ExitCode.FAILURE)


def main() -> None:
    """The `diffkit` script."""
    if "LOCAL_RANK" in os.environ:
        signal.signal(signal.SIGTERM, _ended_by_launcher)
    try:
        app(prog_name="diffkit")
    except SystemExit as end:
        if (parallel := sys.modules.get("diffkit.parallel")) is not None:  # not imported for this: it needs torch
            parallel.leave(end.code if isinstance(end.code, int) else int(end.code is not None))
        raise
