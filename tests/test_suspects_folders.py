"""Folders of images as people keep them: every picture is a suspect or is named in an error."""

from __future__ import annotations

import json
import tarfile
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

from diffkit.errors import InputError
from diffkit.suspects import read_suspects


def folder_with(root: Path, files: dict[str, str | None]) -> Path:
    """A folder of files: text, or a small image where there is none."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text is None:
            Image.new("RGB", (4, 4)).save(path, format="PNG")
        else:
            path.write_text(text)
    return root


def read(root: Path) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Id, caption and image of each suspect, and the reasons of the errors."""
    suspects, errors = read_suspects(root)
    return (
        [(s.id, s.caption, s.images[0].relative_to(root).as_posix()) for s in suspects],
        [error.reason for error in errors],
    )


def test_captions_beside_images(tmp_path: Path) -> None:
    root = folder_with(
        tmp_path,
        {
            "a.png": None,
            "a.caption": "a dog",
            "b.jpg": None,
            "b.jpg.txt": "a cat",
            "c.png": None,
            "c.txt": "one\n\ntwo\n",
        }
        | {"d.png": None, "d.txt": " \n", "e.heic": None, "e.txt": "seen on a phone", "f.png": None}
        | {"g.png": None, "g.txt": "natural words", "g.caption": "tags"},
    )
    suspects, reasons = read(root)
    assert suspects == [
        ("a", "a dog", "a.png"),
        ("b", "a cat", "b.jpg"),
        ("c", "one", "c.png"),
        ("c-caption-2", "two", "c.png"),
        ("g", "natural words", "g.png"),
        ("g-caption-2", "tags", "g.png"),
    ]
    assert [reason.split(" ")[0] for reason in reasons] == ["d.png", "e.heic", "f.png"]
    assert "empty caption" in reasons[0]
    assert "convert it" in reasons[1]
    assert "no caption in f.txt or f.caption" in reasons[2]


def test_images_of_one_name_need_captions_of_their_own(tmp_path: Path) -> None:
    root = folder_with(tmp_path, {"beach.jpg": None, "beach.png": None, "beach.txt": "a beach"})
    assert [reason.split(" is one of")[0] for reason in read(root)[1]] == ["beach.jpg", "beach.png"]
    folder_with(root, {"beach.jpg.txt": "sand", "beach.png.txt": "sea"})
    (root / "beach.txt").unlink()
    suspects, reasons = read(root)
    assert ([caption for _, caption, _ in suspects], reasons) == (["sand", "sea"], [])
    assert len({identity for identity, _, _ in suspects}) == 2


def test_subfolders_are_read_or_named(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "mixed", {"a.png": None, "a.txt": "a", "sub/b.png": None, "sub/b.txt": "b"})
    suspects, reasons = read(root)
    assert suspects == [("a", "a", "a.png")]
    assert [("sub/b.png lies in a subfolder" in reason, str(root / "sub") in reason) for reason in reasons] == [
        (True, True)
    ]

    root = folder_with(
        tmp_path / "kohya",
        {"10_dog/1.png": None, "10_dog/1.caption": "a dog runs", "10_dog/2.png": None, "5_my cat/1.png": None}
        | {"other/1.png": None, "lonely.txt": "no image"},
    )
    suspects, reasons = read(root)
    assert suspects == [
        ("10_dog/1", "a dog runs", "10_dog/1.png"),
        ("10_dog/2", "dog", "10_dog/2.png"),
        ("5_my cat/1", "my cat", "5_my cat/1.png"),
    ]
    assert ["without an image" in reasons[0], "1.png has no caption" in reasons[1]] == [True, True]


def test_metadata_of_datasets_folders(tmp_path: Path) -> None:
    root = folder_with(
        tmp_path,
        {
            "train/metadata.jsonl": '{"file_name": "a.png", "text": ["a", "a dog", ""]}\n'
            '{"file_name": "sub/b.png", "text": "b"}\n{"file_name": "f.png"}\n',
            "train/metadata.csv": "file_name,text\nc.png,c\n",
            "test/metadata.csv": "file_name,text\nd.png,d\n",
        }
        | dict.fromkeys(
            ["train/a.png", "train/sub/b.png", "train/c.png", "train/f.png", "train/sub/e.png", "test/d.png"]
        ),
    )
    suspects, reasons = read(root)
    assert [(caption, image) for _, caption, image in suspects] == [
        ("d", "test/d.png"),
        ("a", "train/a.png"),
        ("a dog", "train/a.png"),
        ("b", "train/sub/b.png"),
    ]
    assert len({identity for identity, _, _ in suspects}) == 4
    text = " ".join(reasons)
    assert len(reasons) == 5
    for part in (
        "metadata.csv is not read",
        "c.png is not named in metadata.jsonl",
        "sub/e.png is not",
        "f.png",
        "a.png",
    ):
        assert part in text


def test_names_with_accents_composed_either_way(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    root = folder_with(tmp_path / "pairs", {f"{decomposed}.png": None, f"{composed}.txt": "a cafe"})
    assert [caption for _, caption, _ in read(root)[0]] == ["a cafe"]
    root = folder_with(tmp_path / "listed", {f"{decomposed}.png": None, "sub/x.png": None})
    rows = [{"caption": "a", "image": f"{composed}.png"}, {"caption": "b", "image": "sub\\x.png"}]
    (root / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    suspects, errors = read_suspects(root / "list.jsonl")
    assert ([len(suspect.images) for suspect in suspects], errors) == ([1, 1], [])


def test_odd_names_in_a_list_are_errors(tmp_path: Path) -> None:
    rows = [
        {"caption": "a", "image": "x" * 5000},
        {"caption": "b", "image": "a\0b"},
        {"caption": "c", "image": {"path": "no"}},
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    suspects, errors = read_suspects(tmp_path / "list.jsonl")
    assert (suspects, len(errors)) == ([], 3)


def test_links(tmp_path: Path) -> None:
    elsewhere = folder_with(tmp_path / "elsewhere", {"b.png": None, "b.txt": "b"})
    root = folder_with(tmp_path / "root", {"sub/a.png": None, "sub/a.txt": "a", "sub/gone.txt": "gone"})
    (root / "sub" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "linked").symlink_to(elsewhere)
    (root / "around").symlink_to(root)
    (root / "sub" / "around").symlink_to(root)
    (root / "itself").symlink_to(root / "itself")
    suspects, reasons = read(root)
    assert [caption for _, caption, _ in suspects] == ["b", "a"]
    assert reasons == ["gone.png is a link to a file that is not there"]


def test_shards_and_tables_in_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    samples = folder_with(tmp_path / "samples", {"x.png": None, "x.txt": "in a shard"})
    root = folder_with(
        tmp_path / "root", {"sub/a.png": None, "sub/a.txt": "a file", "00000.parquet": "", "b.parquet": ""}
    )
    with tarfile.open(root / "00000.tar", "w") as archive:
        for path in sorted(samples.iterdir()):
            archive.add(path, path.name)
    suspects, errors = read_suspects(root)
    assert [suspect.caption for suspect in suspects] == ["in a shard", "a file"]
    assert [error.reason.split(" is not read")[0] for error in errors] == ["b.parquet"]
    (root / "00000.tar").rename(root / "sub" / "00000.tar")
    for name in ("00000.parquet", "b.parquet"):
        (root / name).unlink()
    suspects, errors = read_suspects(root)
    assert ([suspect.caption for suspect in suspects], len(errors)) == (["a file"], 1)
    assert "00000.tar is not read, beside images" in errors[0].reason
    assert [suspect.caption for suspect in read_suspects(root / "sub" / "00000.tar")[0]] == ["in a shard"]
    (root / "sub" / "00000.tar").unlink()
    (root / "more.zip").write_bytes(b"PK")
    assert [error.reason for error in read_suspects(root)[1]] == ["more.zip is not read; unpack it into a folder"]


def test_parquet_beside_the_pictures_of_its_keys(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    root = folder_with(tmp_path, {"00000/000000001.png": None, "00000/000000002.png": None, "00000_stats.json": "{}"})
    parquet.write_table(pyarrow.Table.from_pylist([{"key": "000000001", "TEXT": "a dog"}]), root / "00000.parquet")
    suspects, errors = read_suspects(root)
    assert [(suspect.caption, suspect.images) for suspect in suspects] == [
        ("a dog", (root / "00000" / "000000001.png",))
    ]
    assert [error.reason for error in errors] == ["00000/000000002.png is not named in a table"]


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no images"):
        read_suspects(folder_with(tmp_path, {"deep/er/readme.md": "x"}))


def test_captions_of_upper_case_endings_belong_to_their_pictures(tmp_path: Path) -> None:
    root = folder_with(tmp_path / "10_dog", {"A.PNG": None, "A.TXT": "my dog rex", "b.png": None, "b.png.TXT": "a cat"})
    assert read(root) == ([("A", "my dog rex", "A.PNG"), ("b", "a cat", "b.png")], [])


def test_utf_16_without_a_mark_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes("a cat\na dog\n".encode("utf-16-le"))
    with pytest.raises(InputError, match="holds zero bytes"):
        read_suspects(tmp_path / "list.txt")


def test_rows_that_are_no_text_or_nested_without_end_are_errors_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"caption": "cat \\ud83d"}\n' + "[" * 100_000 + '\n{"caption": "a dog"}\n')
    suspects, errors = read_suspects(tmp_path / "list.jsonl")
    assert [suspect.caption for suspect in suspects] == ["a dog"]
    assert [error.row for error in errors] == [1, 2] or [error.row for error in errors] == [2, 1]
    assert all(error.reason.encode() for error in errors)
