"""Execute the notebooks and write them with their outputs, or check that they still show what is committed.

A notebook is written without timestamps and machine names, so that executing it again changes only figures. Cells with
the tag ``shared-data`` need the published rewards in the folder ``DIFFKIT_SHARED_DATA``; without them ``--check`` skips
these cells, and writing is refused.

    python scripts/execute_notebooks.py [--check] [NOTEBOOK ...]
"""

from __future__ import annotations

import argparse
import base64
import copy
import io
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from PIL import Image

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
SHARED, TAG = FOLDER.parents[1] / "shared" / "data", "shared-data"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 1200  # for one cell
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?")


def execute(notebook: Any) -> Any:
    """A copy of the notebook, run from top to bottom in a fresh kernel, with the outputs of this run alone.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised.
        ValueError: a cell wrote to stderr, for example a warning.
    """
    fresh = copy.deepcopy(notebook)
    with tempfile.TemporaryDirectory() as sockets:  # no port is opened
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", ip=f"{sockets}/kernel")
        NotebookClient(fresh, km=kernel, timeout=SECONDS, record_timing=False).execute(cwd=str(FOLDER))
    fresh.metadata = nbformat.from_dict(METADATA)
    for number, cell in enumerate(fresh.cells):
        cell.id = f"cell-{number:02d}"
        cell.metadata = nbformat.from_dict({"tags": cell.metadata.tags} if "tags" in cell.metadata else {})
        for output in cell.get("outputs", []):
            if output.get("name") == "stderr":
                raise ValueError(f"cell {number} wrote to stderr:\n{output.text}")
            if "metadata" in output:
                output.metadata = nbformat.from_dict({})
            if "image/png" in output.get("data", {}):
                output.data.pop("image/jpeg", None)
                output.data["image/png"] = smaller(output.data["image/png"])
    return fresh


def smaller(png: str) -> str:
    """The picture, in base64, with a palette of 256 colours: about a third of the bytes."""
    with Image.open(io.BytesIO(base64.b64decode(png))) as picture:
        palette = picture.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    palette.save(buffer, "PNG", optimize=True)
    return base64.b64encode(buffer.getvalue()).decode()


def kinds(cell: Any) -> list[Any]:
    """What a cell shows, without figures: kinds of output, and texts with every number masked."""
    shown = []
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        text = "" if "image/png" in data else output.get("text", data.get("text/plain", ""))
        shown.append((output.output_type, sorted(data), re.sub(r"\s+|─+", " ", NUMBER.sub("#", text)).split()))
    return shown


def differences(committed: Any, fresh: Any, *, with_data: bool) -> list[str]:
    """A line for each cell that shows another kind of thing than the committed one."""
    pairs = enumerate(zip(committed.cells, fresh.cells, strict=True))
    return [
        f"cell {number}: committed {kinds(old)}, now {kinds(new)}"
        for number, (old, new) in pairs
        if kinds(old) != kinds(new) and (with_data or TAG not in old.metadata.get("tags", []))
    ]


def main() -> None:
    """Execute each notebook, then write or compare it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", type=Path, help="all of notebooks/ by default")
    parser.add_argument("--check", action="store_true", help="compare with the committed outputs, write nothing")
    given = parser.parse_args()
    os.environ.update(DIFFKIT_QUIET="1", HF_HUB_OFFLINE="1")
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"  # tqdm misses ipywidgets, which nothing here needs
    os.environ.pop("MPLBACKEND", None)  # the kernel draws inline
    os.environ.setdefault("DIFFKIT_SHARED_DATA", str(SHARED))
    with_data = Path(os.environ["DIFFKIT_SHARED_DATA"]).is_dir()
    failed = False
    for path in given.notebooks or sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        if not given.check and not with_data and any(TAG in cell.metadata.get("tags", []) for cell in notebook.cells):
            sys.exit(f"{path.name} shows published data; give their folder in DIFFKIT_SHARED_DATA to execute it.")
        fresh = execute(notebook)
        if not given.check:
            path.write_text(nbformat.writes(fresh) + "\n", encoding="utf-8")
            continue
        for line in differences(notebook, fresh, with_data=with_data):
            failed = True
            print(f"{path.name}, {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
