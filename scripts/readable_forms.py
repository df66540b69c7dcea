"""Write docs/formats.md, "What can be read", from the forms that the code states.

python scripts/readable_forms.py            # rewrite the tables between the markers
python scripts/readable_forms.py --check    # exit 1 when they are out of date
"""

from __future__ import annotations

import argparse
import re
import sys
from itertools import groupby
from pathlib import Path

from diffkit.readable_forms import ReadableForm, readable_forms

PAGE = Path(__file__).resolve().parents[1] / "docs" / "formats.md"


def table(forms: list[ReadableForm]) -> str:
    """The forms of one kind."""
    rows = [("what people have", "what is done with it", "tested by"), ("---", "---", "---")]
    rows += [(form.form, form.reading, f"`{form.test.removeprefix('tests/')}`") for form in forms]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in rows)


def page(text: str) -> str:
    """The page with the table of each kind between its markers."""
    for kind, forms in groupby(readable_forms(), key=lambda form: form.kind):
        block = table(list(forms))
        marked = re.compile(rf"(<!-- {kind} -->\n).*?(<!-- end -->)", re.DOTALL)
        if not marked.search(text):
            sys.exit(f"{PAGE.name} has no place for forms of kind {kind!r}: <!-- {kind} --> ... <!-- end -->")
        text = marked.sub(lambda match, block=block: f"{match[1]}{block}\n{match[2]}", text)
    return text


def main() -> None:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    before = PAGE.read_text(encoding="utf-8")
    after = page(before)
    if check and before != after:
        sys.exit(f"{PAGE.name} is out of date: run 'python scripts/readable_forms.py'")
    if before != after:
        PAGE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
