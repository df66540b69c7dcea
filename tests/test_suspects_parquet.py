"""Parquet files of the hub, of LAION and of img2dataset: every row is a suspect or an error."""

from __future__ import annotations

import datetime
import sys
from pathlib import Path

import pytest
from PIL import Image
from test_suspects_webdataset import picture

from diffkit.errors import InputError
from diffkit.suspects import read_suspects
from diffkit.suspects.columns import suspects_of_rows
from diffkit.suspects.extracted import extracted_images_folder
from diffkit.suspects.folders import read_folder
from diffkit.suspects.parquet import read_parquet
from diffkit.suspects.record import RowError, Suspect


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def read(path: Path, **options: bool) -> tuple[list[Suspect], list[RowError]]:
    rows = read_folder(path, **options) if path.is_dir() else read_parquet(path, **options)
    suspects, errors = suspects_of_rows(rows.rows, **options)
    return suspects, [*rows.errors, *errors]


def test_a_data_set_of_the_hub(tmp_path: Path) -> None:
    first = [
        {"image": {"bytes": picture(1), "path": "one.png"}, "text": "a dog", "when": datetime.date(2020, 1, 2)},
        {"image": {"bytes": picture(2), "path": None}, "text": "a cat", "when": None},
        {"image": {"bytes": b"torn", "path": "torn.png"}, "text": "a cow", "when": None},
        {"image": {"bytes": picture(3), "path": "no.png"}, "text": None, "when": None},
    ]
    write(tmp_path / "set" / "data" / "train-00000-of-00002.parquet", first)
    write(tmp_path / "set" / "data" / "train-00001-of-00002.parquet", [{"image": first[0]["image"], "text": "again"}])
    suspects, errors = read(tmp_path / "set")
    assert [(s.id, s.caption, Image.open(s.images[0]).getpixel((0, 0))[0]) for s in suspects] == [
        ("one", "a dog", 1),
        ("train-00000-of-00002-row-2", "a cat", 2),
        ("one-row-1", "again", 1),
    ]
    assert suspects[0].extra == {"when": "2020-01-02"}
    assert [(error.row, error.reason.split(" (")[0]) for error in errors] == [
        (3, "the bytes are no image that can be read"),
        (4, "the caption is missing"),
    ]


def test_a_data_set_saved_to_disk(tmp_path: Path) -> None:
    pyarrow, ipc = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.ipc")
    rows = [{"image": {"bytes": picture(n), "path": None}, "text": f"dog {n}"} for n in range(3)]
    table = pyarrow.Table.from_pylist(rows)
    path = tmp_path / "saved" / "data-00000-of-00001.arrow"
    path.parent.mkdir()
    with ipc.new_stream(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    (path.parent / "state.json").write_text("{}")
    with ipc.new_stream(str(path.parent / "cache-1f.arrow"), table.schema) as writer:
        writer.write_table(table)
    suspects, errors = read_suspects(tmp_path / "saved")
    assert ([s.caption for s in suspects], errors) == (["dog 0", "dog 1", "dog 2"], [])
    path.write_bytes(path.read_bytes()[:400])
    with pytest.raises(InputError, match=r"cannot be read as \.arrow"):
        read_suspects(tmp_path / "saved")


def test_lists_of_pictures_paths_and_other_columns_of_bytes(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "beside.png")
    several = [{"bytes": picture(1), "path": "a.png"}, {"bytes": picture(2), "path": "b.png"}]
    path = write(tmp_path / "a.parquet", [{"images": several, "caption": ["one", "two"], "thumb": b"12345"}])
    suspects, errors = read(path)
    assert ([s.caption for s in suspects], [len(s.images) for s in suspects], errors) == (["one", "two"], [2, 2], [])
    assert suspects[0].extra == {"thumb": "5 bytes"}
    path = write(tmp_path / "b.parquet", [{"image": {"bytes": None, "path": "beside.png"}, "prompt": "x"}])
    assert read(path)[0][0].images == (tmp_path / "beside.png",)
    path = write(tmp_path / "c.parquet", [{"file_name": "beside.png;beside.png", "prompt": "x"}])
    assert read(path)[0][0].images == (tmp_path / "beside.png",)
    path = write(tmp_path / "d.parquet", [{"photo": several[0], "prompt": "x"}])
    assert "the column 'photo' holds an image; call it image" in read(path)[1][0].reason
    path = write(tmp_path / "e.parquet", [{"image": several[0], "mask": several[1], "prompt": "x"}])
    assert len(read(path)[0][0].images) == 1
    assert "2 bytes" not in str(read(path)[0][0].extra)


def test_laion_and_the_folders_of_img2dataset(tmp_path: Path) -> None:
    row = {"URL": "https://x/a.jpg", "TEXT": "a dog", "similarity": 0.3}
    suspects, errors = read(write(tmp_path / "laion.parquet", [row]))
    assert (suspects[0].caption, suspects[0].images, errors) == ("a dog", (), [])
    assert suspects[0].extra == {"URL": "https://x/a.jpg", "similarity": "0.3"}
    rows = [
        {"key": "000000000", "caption": "a dog", "status": "success", "error_message": None},
        {"key": "000000001", "caption": "a cat", "status": "failed_to_download", "error_message": "HTTP 404"},
        {"key": "000000002", "caption": "a cow", "status": "success", "error_message": None},
    ]
    path = write(tmp_path / "out" / "00000.parquet", rows)
    (tmp_path / "out" / "00000").mkdir()
    (tmp_path / "out" / "00000" / "000000000.jpg").write_bytes(picture(5, "JPEG"))
    suspects, errors = read(path)
    assert [(s.id, s.images) for s in suspects] == [("000000000", (tmp_path / "out" / "00000" / "000000000.jpg",))]
    assert [error.reason for error in errors] == [
        "the image was not downloaded: failed_to_download, HTTP 404",
        f"there is no image 000000002 in {tmp_path / 'out' / '00000'}",
    ]
    bytes_inside = write(tmp_path / "inside" / "00000.parquet", [{**rows[0], "jpg": picture(6, "JPEG")}])
    assert read(bytes_inside)[0][0].images[0].suffix == ".jpg"
    sharded = write(tmp_path / "tars" / "00000.parquet", rows)
    (tmp_path / "tars" / "00000.tar").write_bytes(b"")
    with pytest.raises(InputError, match=r"in 00000\.tar: give that file"):
        read(sharded)


def test_prompts_need_no_pictures(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [{"image": {"bytes": b"torn", "path": None}, "text": "a dog"}])
    assert [s.caption for s in read(path, images=False)[0]] == ["a dog"]
    assert not extracted_images_folder().exists()


def test_without_pyarrow_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"takes pyarrow: pip install 'diffkit\[datasets\]'"):
        read_parquet(tmp_path / "x.parquet")


def test_what_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no caption column: found 'words'"):
        read_parquet(write(tmp_path / "y.parquet", [{"words": "a dog"}]))
    with pytest.raises(InputError, match="two columns 'text'"):
        read_parquet(write(tmp_path / "z.parquet", [{"text": "a dog", "TEXT": "a cat"}]))
    (tmp_path / "x.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(InputError, match=r"x\.parquet cannot be read as \.parquet"):
        read_parquet(tmp_path / "x.parquet")
