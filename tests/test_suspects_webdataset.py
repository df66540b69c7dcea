"""Shards of webdatasets: every sample is a suspect or an error, and nothing is written where a member's name points."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from diffkit.errors import InputError
from diffkit.suspects import webdataset
from diffkit.suspects.columns import suspects_of_rows
from diffkit.suspects.extracted import extracted_images_folder
from diffkit.suspects.record import RowError, Suspect
from diffkit.suspects.webdataset import read_webdataset


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(shade: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (4, 4), (shade, 0, 0)).save(buffer, kind)
    return buffer.getvalue()


def shard(path: Path, members: dict[str, bytes | str], mode: str = "w") -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return path


def read(path: Path) -> tuple[list[Suspect], list[RowError]]:
    rows = read_webdataset(path)
    suspects, errors = suspects_of_rows(rows.rows)
    return suspects, [*rows.errors, *errors]


def test_a_sample_is_its_picture_its_captions_and_its_json(tmp_path: Path) -> None:
    facts = {"caption": "a dog", "url": "https://x/1.jpg", "width": 4, "image": "1.jpg"}
    path = shard(
        tmp_path / "00000.tar",
        {
            "./0001.jpg": picture(1, "JPEG"),
            "./0001.txt": "a dog\n",
            "./0001.json": json.dumps(facts),
            "b/2.png": picture(2),
            "b/2.txt": "first; words",
            "b/2.json": json.dumps({"Caption": "second", "id": "two"}),
            "b/2.cls": "7",
            "3.PNG": picture(3),
            "3.json": json.dumps({"prompt": "only here"}),
        },
    )
    suspects, errors = read(path)
    assert errors == []
    assert [(s.id, s.caption) for s in suspects] == [
        ("0001", "a dog"),
        ("two", "first; words"),
        ("two-caption-2", "second"),
        ("3", "only here"),
    ]
    assert suspects[0].extra == {"url": "https://x/1.jpg", "width": "4", "json image": "1.jpg"}
    assert suspects[1].extra == {"cls": "1 bytes"}
    shades = [Image.open(s.images[0]).getpixel((0, 0))[0] for s in suspects]
    assert shades == pytest.approx([1, 2, 2, 3], abs=1)  # the first is JPEG
    assert [s.images[0].suffix for s in suspects] == [".jpg", ".png", ".png", ".png"]
    before = {file: file.stat().st_mtime_ns for file in extracted_images_folder().rglob("*.*")}
    assert read(path)[0] == suspects
    assert {file: file.stat().st_mtime_ns for file in extracted_images_folder().rglob("*.*")} == before
    assert len(before) == 3


def test_samples_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    path = shard(
        tmp_path / "x.tar",
        {
            "good.png": picture(1),
            "good.txt": "fine",
            "good.seg.png": picture(9),
            "lonely.txt": "no picture",
            "bare.png": picture(2),
            "torn.png": b"no picture",
            "torn.txt": "words",
            "empty.png": b"",
            "phone.heic": b"x",
            "list.png": picture(3),
            "list.json": "[]",
            "odd.png": picture(4),
            "odd.txt": b"\xff",
            "._good.png": b"of a Mac",
        },
    )
    suspects, errors = read(path)
    assert [s.id for s in suspects] == ["good"]
    parts = {
        "good.seg.png": "is not read",
        "lonely": "no picture",
        "bare": "caption is missing",
        "torn": "no image that can be read",
        "empty": "0 bytes",
        "phone": "convert them to PNG",
        "list": "no JSON object",
        "odd": "not UTF-8",
    }
    for name, part in parts.items():
        assert any(part in error.reason for error in errors), name
    assert len(errors) == len(parts)


def test_links_huge_members_and_ways_out_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webdataset, "LARGEST_TEXT", 10)
    monkeypatch.setattr("diffkit.suspects.extracted.LARGEST_IMAGE", 1000)
    path = shard(
        tmp_path / "shards" / "x.tar",
        {
            "../out.png": picture(1),
            "../out.txt": "words",
            "/tmp/abs.png": picture(2),
            "big.png": bytes(1001),
            "big.txt": "words",
            "long.png": picture(3),
            "long.txt": "eleven byte",
        },
    )
    with tarfile.open(path, "a") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo(f"{kind.decode()}.png")
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
    suspects, errors = read(path)
    assert suspects == []
    reasons = "\n".join(error.reason for error in errors)
    for part in (
        "../out.png leads out",
        "/tmp/abs.png leads out",
        "big: the image has 1001 bytes",
        "long: long.txt has 11 bytes",
        "2.png is a link",
        "1.png is a link",
    ):
        assert part in reasons
    assert not list(tmp_path.rglob("out*"))
    assert not extracted_images_folder().exists()


def test_a_shard_that_was_cut_off_says_so_and_keeps_what_is_whole(tmp_path: Path) -> None:
    members = {f"{n}.{end}": content for n in range(3) for end, content in (("txt", f"dog {n}"), ("png", picture(n)))}
    whole = shard(tmp_path / "whole.tar", members).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as archive:
        places = {member.name: member for member in archive}
    cuts = {
        "in a picture": places["2.png"].offset_data + 10,
        "in a header": places["2.txt"].offset + 100,
        "between members": places["2.txt"].offset,
    }
    for where, length in cuts.items():
        path = tmp_path / f"{where}.tar"
        path.write_bytes(whole[:length])
        suspects, errors = read(path)
        assert [s.caption for s in suspects] == ["dog 0", "dog 1"], where
        assert "end mark" in errors[-1].reason, where
    assert len(read(tmp_path / "whole.tar")[0]) == 3


def test_shards_of_a_folder_are_read_in_order_and_their_keys_stay_apart(tmp_path: Path) -> None:
    for name, mode in (("b-000001.tar", "w"), ("a-000000.tar.gz", "w:gz")):
        shard(tmp_path / "set" / name, {"0.png": picture(1), "0.txt": name}, mode)
    suspects, errors = read(tmp_path / "set")
    assert errors == []
    assert [(s.id, s.caption) for s in suspects] == [
        ("a-000000/0", "a-000000.tar.gz"),
        ("b-000001/0", "b-000001.tar"),
    ]
    assert suspects[0].images == suspects[1].images  # the same bytes are one file


def test_what_is_no_shard_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"text" * 300)
    with pytest.raises(InputError, match=r"x\.tar cannot be read as \.tar"):
        read_webdataset(tmp_path / "x.tar")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no \.tar"):
        read_webdataset(tmp_path / "empty")


def test_prompts_need_no_pictures(tmp_path: Path) -> None:
    path = shard(tmp_path / "x.tar", {"0.png": b"not looked at", "0.txt": "a dog"})
    rows = read_webdataset(path, images=False)
    assert [s.caption for s in suspects_of_rows(rows.rows, images=False)[0]] == ["a dog"]
    assert not extracted_images_folder().exists()
