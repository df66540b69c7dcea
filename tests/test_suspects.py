"""Suspects from every format people have, with every trap the published lists hold."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from diffkit.errors import InputError
from diffkit.suspects import read_suspects

HOSTILE = ' He said ""no"" <b>twice</b>; then, "left" | <script>alert(1)</script>\nand came back '


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path)
    return path


def test_the_published_list_has_its_500_rows(shared_data: Path) -> None:
    suspects, errors = read_suspects(shared_data / "memorized_laion_prompts.csv")
    assert errors == []
    assert Counter(suspect.kind for suspect in suspects) == {"VM": 112, "TM": 388}
    captions = [suspect.caption for suspect in suspects]
    assert '"Watch: Passion Pit\'s New Video, ""Lifted Up (1985)"""' in captions
    assert "Sony Won't Release <i>The Interview</i> on VOD" in captions
    assert len({suspect.id for suspect in suspects}) == 500
    assert all(suspect.extra["URL"].startswith("http") for suspect in suspects)
    assert not any(suspect.images for suspect in suspects)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("header", ["caption", "Caption", "Prompt", "TEXT"])
def test_captions_come_through_csv_untouched(tmp_path: Path, delimiter: str, header: str) -> None:
    path = tmp_path / "list.csv"
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.writer(file, delimiter=delimiter)
        writer.writerows(
            [["", header, "URL", "overfit_type", "Index"], ["0", HOSTILE, "u", "MV", "9"], ["1", "b", "", "TV", "9"]]
        )
    suspects, errors = read_suspects(path)
    assert errors == []
    assert [(s.id, s.caption, s.kind) for s in suspects] == [("row-2", HOSTILE, "VM"), ("row-3", "b", "TM")]
    assert suspects[0].extra == {"URL": "u", "Index": "9"}


def test_a_single_column_with_commas_is_still_one_column(tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("caption\na cat, a dog\na bird\n")
    assert [suspect.caption for suspect in read_suspects(path)[0]] == ["a cat, a dog", "a bird"]


def test_bad_rows_are_named_and_good_rows_go_on(tmp_path: Path) -> None:
    picture(tmp_path / "a.png")
    path = tmp_path / "list.csv"
    path.write_text(
        "id,caption,image\n1,one,a.png\n2,two,missing.png\n3,,a.png\n4,four\n1,five,\n6,six,http://x/y.png\n7,seven,\n"
    )
    suspects, errors = read_suspects(path)
    assert [(suspect.id, len(suspect.images)) for suspect in suspects] == [("1", 1), ("7", 0)]
    assert [error.row for error in errors] == [3, 4, 5, 6, 7]
    reasons = [error.reason for error in errors]
    assert str(tmp_path / "missing.png") in reasons[0]
    assert "caption is missing" in reasons[1]
    assert reasons[2] == "expected 3 fields, got 2"
    assert "'1' stands in an earlier row" in reasons[3]
    assert "nothing is downloaded" in reasons[4]
    assert {error.source for error in errors} == {str(path)}


@pytest.mark.parametrize("form", ["x.png;sub/y.png", "x.png | sub/y.png", '["x.png", "sub/y.png"]'])
def test_several_images_relative_to_the_file(tmp_path: Path, form: str) -> None:
    expected = (picture(tmp_path / "x.png"), picture(tmp_path / "sub" / "y.png"))
    (tmp_path / "list.jsonl").write_text(json.dumps({"caption": "c", "gt_images": form}) + "\n")
    assert read_suspects(tmp_path / "list.jsonl")[0][0].images == expected


def test_a_name_with_a_separator_and_a_folder_of_images(tmp_path: Path) -> None:
    odd = picture(tmp_path / "a;b.png")
    many = tuple(picture(tmp_path / "gt" / f"{number}.png") for number in range(3))
    rows = [{"prompt": "c", "image": "a;b.png"}, {"prompt": "d", "image": ["gt"]}, {"prompt": "e", "image": 5}]
    (tmp_path / "list.jsonl").write_text("\n\n".join(json.dumps(row) for row in rows))
    suspects, errors = read_suspects(tmp_path / "list.jsonl")
    assert [suspect.images for suspect in suspects] == [(odd,), many]
    assert [(error.row, "got 5" in error.reason) for error in errors] == [(5, True)]


def test_jsonl_damage_is_per_line(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text('{"caption": "a", "index": 3, "url": null}\nnonsense\n[1]\n{"caption": 7}\n')
    suspects, errors = read_suspects(tmp_path / "list.jsonl")
    assert [(s.caption, s.id, dict(s.extra)) for s in suspects] == [("a", "row-1", {"index": "3", "url": ""})]
    assert [error.row for error in errors] == [2, 3, 4]


def test_folders_with_metadata_or_with_sidecars(tmp_path: Path) -> None:
    listed, paired = tmp_path / "listed", tmp_path / "paired"
    picture(listed / "p.png")
    (listed / "metadata.csv").write_text('file_name,caption,kind\np.png,"a, b",verbatim\n')
    assert [(s.id, s.caption, s.kind, s.images) for s in read_suspects(listed)[0]] == [
        ("p", "a, b", "verbatim", (listed / "p.png",))
    ]
    for stem in "ab":
        picture(paired / f"{stem}.jpg")
    (paired / "a.txt").write_bytes(b" a cap; \xc3\xa4\r\n")
    (paired / "c.txt").write_text("lonely")
    suspects, errors = read_suspects(paired)
    assert [(s.id, s.caption) for s in suspects] == [("a", " a cap; ä")]
    assert ["b.jpg" in errors[0].reason, "c.txt" in errors[1].reason] == [True, True]


def test_equal_image_names_get_distinct_ids(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        picture(tmp_path / folder / "image.png")
    rows = [{"caption": "x", "image": f"{folder}/image.png"} for folder in ("one", "two")]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [suspect.id for suspect in read_suspects(tmp_path / "list.jsonl")[0]] == ["image", "image-row-2"]


def test_an_id_that_a_row_gives_is_no_other_rows(tmp_path: Path) -> None:
    picture(tmp_path / "cat.png")
    rows = [{"caption": ["a", "b"], "image": "cat.png"}, *({"caption": "x", "id": name} for name in ("cat", "cat"))]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, rows)))
    suspects, errors = read_suspects(tmp_path / "list.jsonl")
    assert [suspect.id for suspect in suspects] == ["cat-row-1", "cat-caption-2", "cat"]
    assert [(error.row, error.reason) for error in errors] == [(3, "the id 'cat' stands in an earlier row")]


def test_a_caption_a_line(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_bytes(b"one, two\r\n\r\n three\n")
    assert [(s.id, s.caption) for s in read_suspects(tmp_path / "prompts.txt")[0]] == [
        ("row-1", "one, two"),
        ("row-3", " three"),
    ]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("list.csv", b"a,b\n1,2\n", "no caption column: found 'a', 'b'"),
        ("list.csv", b"", "no caption column: found nothing"),
        ("list.csv", b"caption\n", "holds no suspects"),
        ("list.csv", b"caption\n\xff\n", r"not UTF-8 \(byte 8\)"),
        ("list.jsonl", b'{"words": "x"}\n', "no caption: found 'words'"),
        ("list.jsonl", b"\n", "holds no suspects"),
        ("list.xlsx", b"x", "of no known kind"),
    ],
)
def test_useless_sources_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_suspects(tmp_path / name)


def test_missing_and_empty_places_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no file or folder"):
        read_suspects(tmp_path / "nowhere.csv")
    with pytest.raises(InputError, match="holds no images and no metadata.jsonl"):
        read_suspects(tmp_path)
    with pytest.raises(InputError, match="elsewhere"):
        read_suspects("lab:elsewhere")
