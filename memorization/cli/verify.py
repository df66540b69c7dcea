"""``diffkit audit verify``: check a finished audit from its files alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from diffkit.console import write_json, write_table
from diffkit.exit_codes import ExitCode
from diffkit.options import Debug, Format, Lora, Mitigation, ModelConfig

if TYPE_CHECKING:
    from memorization.auditing.verification import Verification

SHOWN_DIFFERENCES = 20  # of each check


def verify(
    run: Annotated[Path, typer.Argument(help="Folder of a finished audit.")],
    suspects: Annotated[
        str | None, typer.Option("--suspects", "-s", help="The audited images, to compare their contents.")
    ] = None,
    controls: Annotated[str | None, typer.Option("--controls", "-c", help="Its controls.")] = None,
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="The audited model, to compare its files' checksum.")
    ] = None,
    config: ModelConfig = None,
    lora: Lora = None,
    mitigation: Mitigation = None,
    reference_model: Annotated[str | None, typer.Option(help="The reference model, to compare its files too.")] = None,
    format: Format = "table",
    debug: Debug = False,
) -> None:
    """Recompute an audit's verdicts from its journal and check every checksum; no model is loaded.

    A second party need not trust the report. Checksums find edits, they are no signature: compare those that are
    printed with the published ones. Exit codes: 0 nothing differs; 1 something does; 2 wrong input.
    """
    from diffkit.errors import InputError
    from diffkit.model_options import ModelOptions
    from memorization.auditing.verify import verify_audit

    if model is None and (lora is not None or mitigation is not None or config is not None):
        raise InputError("--lora, --mitigation and --config belong to a model: add --model.")
    if suspects is None and controls is not None:
        raise InputError("Suspects and controls have one digest: add --suspects.")
    options = None
    if model is not None:
        options = ModelOptions(model=model, config=config, lora=lora, mitigation=mitigation)
    verification = verify_audit(
        run,
        suspects=suspects,
        controls=None if controls == "none" else controls,
        model=options,
        reference_model=reference_model,
    )
    _print_verification(verification, run, format)
    raise typer.Exit(ExitCode.FAIL_ON if verification["result"] == "differs" else ExitCode.DONE)


def _print_verification(verification: Verification, run: Path, format: str) -> None:
    """The checks, the files' checksums, and what differs."""
    if format == "json":
        write_json(verification)
        return
    checks = verification["checks"]
    write_table(["check", "result", ""], [[c["name"], c["status"], c["detail"]] for c in checks], title=str(run))
    write_table(["file", "SHA-256"], [list(row) for row in verification["sha256"].items()])
    rows = []
    for check in checks:
        rows += [[check["name"], difference] for difference in check["differences"][:SHOWN_DIFFERENCES]]
        left = len(check["differences"]) - SHOWN_DIFFERENCES
        rows += [[check["name"], f"and {left} more: --format json has all"]] if left > 0 else []
    if rows:
        write_table(["check", "what differs"], rows)
