"""Reports as a browser lays them out: long captions stay readable, and a phone need not scroll the page sideways."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_pipeline

from diffkit.images import save_png
from diffkit.report import Figure, render_page
from memorization.auditing.run import audit
from memorization.auditing.settings import AuditSettings
from memorization.items import gather
from ttsnap.evaluation.compare_report import difference_figure, winners_table

BROWSERS = [path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))]
pytestmark = pytest.mark.skipif(not BROWSERS, reason="no chromium, chromium-browser or google-chrome is installed")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=5000",
)  # fmt: skip
WIDTHS = (1280, 390)
CAPTIONS = (
    "Mothers influence on her young hippo, soft watercolours, limited edition print, signed and numbered by the "
    "artist, 30 x 40 cm, unframed, ships worldwide from https://www.example-art-gallery.com/prints",
    "astronaut eileen collins, official portrait, https://commons.example.org/wiki/File:Commander_Eileen_Collins_-_GPN"
    "-2000-001177_in_an_orange_pressure_suit_before_her_flight_restored_by_hand.jpg",
    "The No Limits Business Woman Podcast",
)
MEASURE = """
function words(node) {  // [text, lines it lies on] of each piece that a browser may not break
  const pieces = [];
  for (const match of node.data.matchAll(/[^\\s\\-/?]+/g)) {
    const range = node.ownerDocument.createRange();
    range.setStart(node, match.index); range.setEnd(node, match.index + match[0].length);
    pieces.push([match[0], new Set([...range.getClientRects()].map(r => Math.round(r.top))).size]);
  }
  return pieces;
}
function texts(cell) {
  const walker = cell.ownerDocument.createTreeWalker(cell, NodeFilter.SHOW_TEXT), nodes = [];
  while (walker.nextNode()) if (walker.currentNode.data.trim()) nodes.push(walker.currentNode);
  return nodes;
}
function passage(node) {  // a run of text: its length, its lines, the characters that fit on one
  const box = node.parentElement.closest('td'), style = getComputedStyle(node.parentElement);
  const pen = document.createElement('canvas').getContext('2d');
  pen.font = style.fontWeight + ' ' + style.fontSize + ' ' + style.fontFamily;
  const range = node.ownerDocument.createRange(); range.selectNodeContents(node);
  const lines = new Set([...range.getClientRects()].map(r => Math.round(r.top))).size;
  const room = box.clientWidth - parseFloat(getComputedStyle(box).paddingLeft) * 2;
  return {text: node.data, lines, fit: room / (pen.measureText(node.data).width / node.data.length)};
}
function measure(page) {
  const cells = [...page.querySelectorAll('td')].flatMap(texts);
  return {
    page: page.documentElement.scrollWidth,
    passages: cells.map(passage),
    broken: cells.flatMap(words).filter(([text, lines]) => text.length <= 18 && lines > 1),
    captions: [...page.querySelectorAll('.tabled > figcaption')].map(c => c.getBoundingClientRect().right),
    pictures: [...page.querySelectorAll('td img')].map(i => [i.clientWidth, i.clientHeight]),
    plots: [...page.querySelectorAll('.plot svg')].map(s => s.getBoundingClientRect().width / s.viewBox.baseVal.width),
  };
}
onload = () => {
  const frames = [...document.querySelectorAll('iframe')];
  document.querySelector('pre').textContent = JSON.stringify(frames.map(f => measure(f.contentDocument)));
};
"""


def measured(page: str, folder: Path) -> list[dict[str, Any]]:
    """What :data:`MEASURE` reads of the page in frames of all widths; the page itself stays as it is."""
    page = page.replace("<details ", "<details open ")
    frames = "".join(f'<iframe width="{w}" height="900" srcdoc="{html.escape(page)}"></iframe>' for w in WIDTHS)
    (folder / "frames.html").write_text(
        f"<!doctype html><style>iframe {{ border: 0 }}</style>{frames}<pre></pre><script>{MEASURE}</script>"
    )
    command = [BROWSERS[0], *FLAGS, f"--user-data-dir={folder / 'browser'}", "--window-size=1400,2000", "--dump-dom"]
    done = subprocess.run(
        [*command, (folder / "frames.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    results = re.search(r"<pre>(\[.*?\])</pre>", done.stdout, re.DOTALL)
    assert results is not None, done.stderr[-2000:]
    return list(json.loads(html.unescape(results[1])))


@pytest.fixture(scope="module")
def audit_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The report of an audit with long captions and an id that is a long file name."""
    folder = tmp_path_factory.mktemp("long")
    for index in range(6):
        image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(index))
        save_png(image, folder / f"{index}.png")
    for name, first in (("suspects", 0), ("controls", 3)):
        rows = [{"caption": caption, "image": f"{first + i}.png"} for i, caption in enumerate(CAPTIONS)]
        rows[1]["id"] = f"laion-2B-en-0001-1234567890-{name}-of-the-second-part.jpg"
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = AuditSettings(
        budgets=(0, 1, 2), starts=("other",), attacks=("words", "dori"), generations=2, attack_generations=1,
        detectors=("noise_magnitude", "seed_agreement"), num_inference_steps=2, masks=True,
        items_at_once=3, micro_batch=4, threshold=-1.0, other_captions=("a cat", "a dog"),
    )  # fmt: skip
    gathered = gather(folder / "suspects.jsonl", folder / "controls.jsonl")
    result = audit(tiny_pipeline(), gathered, out=folder / "run", name="tiny", settings=settings)
    return (result.folder / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def search_page(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The wide parts of the report of searches at equal cost: winners of seven searches, and their differences."""
    folder = tmp_path_factory.mktemp("winners")
    save_png(torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0)), folder / "0.png")
    searches = ("best-of-n", "ttsp", "ttsnap", "halving", "random", "zero-order", "fk")
    items = [
        {"search": search, "index": index, "prompt": caption, "image": "0.png", "reward": 0.5, "judged": True}
        for search in searches
        for index, caption in enumerate(CAPTIONS)
    ]
    gain = {"mean": 0.1, "low": -0.1, "high": 0.3}
    rows = [{"search": name, "reward_gain": gain, "judged_gain": gain, "prompts": 3} for name in searches]
    plot = Figure.of("To best-of-n", difference_figure(rows, reward="lab", budget="3x"))
    return render_page(title="Searches at equal cost", sections=[winners_table(items, folder), plot])


@pytest.mark.parametrize("kind", ["audit_page", "search_page"])
def test_a_report_is_readable_at_every_width(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    page: str = request.getfixturevalue(kind)
    for width, layout in zip(WIDTHS, measured(page, tmp_path), strict=True):
        assert layout["page"] <= width  # wide tables scroll in their own boxes
        assert max(layout["captions"], default=0) <= width
        long = [passage for passage in layout["passages"] if len(passage["text"]) > 80]
        assert len(long) >= 2
        for passage in long:
            assert passage["fit"] >= 20, passage
            assert passage["lines"] <= 8, passage
        assert layout["broken"] == []
        assert layout["pictures"]
        assert all(w == h >= 80 for w, h in layout["pictures"])
        assert layout["plots"]
        assert min(layout["plots"]) >= 0.8  # letters of 10 points are at least 8 pixels high
