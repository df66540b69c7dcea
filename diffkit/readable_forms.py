"""What can be read: the forms in which people have pictures and lists, what is done with each, and its test.

`scripts/readable_forms.py` writes docs/formats.md from these rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple

from diffkit.images import IMAGE_SUFFIXES, UNREADABLE_SUFFIXES
from diffkit.readable_models import ADAPTER_FORMS, MODEL_FORMS
from diffkit.suspects.columns import CAPTION_NAMES, IMAGE_NAMES

__all__ = ["LISTS", "PICTURES", "ReadableForm", "readable_forms"]


class ReadableForm(NamedTuple):
    """A form in which people have something, what is done with it, and the test that shows it.

    Attributes:
        kind: of what it is a form.
        form: as people would describe it.
        reading: what is done with it, or why it is refused.
        test: a test function, such as ``tests/test_images.py::test_names_of_pictures``.
    """

    kind: Literal["model", "adapter", "picture", "list"]
    form: str
    reading: str
    test: str


def readable_forms() -> tuple[ReadableForm, ...]:
    """All forms, by kind.

    Example:
        >>> from diffkit.readable_forms import readable_forms
        >>> [form.form for form in readable_forms() if "transparency" in form.form]
        ['transparency: a channel, a palette entry, one colour']
    """
    models = (ReadableForm("model", form, reading, f"tests/{test}") for form, reading, test in MODEL_FORMS)
    adapters = (ReadableForm("adapter", form, reading, f"tests/{test}") for form, reading, test in ADAPTER_FORMS)
    return (*models, *adapters, *PICTURES, *LISTS)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _picture(form: str, reading: str, test: str) -> ReadableForm:
    return ReadableForm("picture", form, reading, f"tests/test_images.py::{test}")


def _list(form: str, reading: str, test: str) -> ReadableForm:
    return ReadableForm("list", form, reading, f"tests/{test}")


PICTURES = (
    _picture(
        f"names that end in {_code(sorted(IMAGE_SUFFIXES))}",
        "read, whatever their capitals, where the installed Pillow can; what is in the file decides, not its name",
        "test_names_of_pictures",
    ),
    _picture(
        f"names that end in {_code(sorted(UNREADABLE_SUFFIXES - IMAGE_SUFFIXES))}",
        "an error in a folder of images: convert them to PNG",
        "test_names_of_pictures",
    ),
    _picture("turned by its EXIF orientation", "shown upright", "test_upright_by_exif_and_transparency_on_white"),
    _picture(
        "transparency: a channel, a palette entry, one colour",
        "white shows through",
        "test_one_transparent_shade_is_white",
    ),
    _picture(
        "gray of 16 bits (PNG, TIFF, PGM, JPEG 2000)",
        "its full range becomes 0 to 255; a TIFF whose zero is white is inverted",
        "test_deep_gray_keeps_its_shades",
    ),
    _picture("gray of 12 bits (TIFF)", "its full range becomes 0 to 255", "test_twelve_bits_are_not_read_as_sixteen"),
    _picture(
        "gray of floating point",
        "values in [0, 1] become 0 to 255; others are refused",
        "test_values_without_a_stated_range_are_refused",
    ),
    _picture(
        "gray of 32 bits",
        "refused: the file does not state its range",
        "test_values_without_a_stated_range_are_refused",
    ),
    _picture(
        "CMYK, LAB, palettes, 16 bits a colour",
        "converted to 8-bit RGB as Pillow does",
        "test_other_modes_are_converted_as_pillow_does",
    ),
    _picture("several frames", "the first counts", "test_other_modes_are_converted_as_pillow_does"),
    _picture("damaged, cut off, or no picture", "refused by name", "test_bad_files_and_tensors_are_refused"),
)

LISTS = (
    _list(
        "`.csv`, `.tsv` with comma, semicolon or tab",
        f"captions in the first of the columns {_code(CAPTION_NAMES)}; images in {_code(IMAGE_NAMES)}; others are kept",
        "test_suspects.py::test_captions_come_through_csv_untouched",
    ),
    _list(
        "a table with quotes that are no CSV quoting",
        "read raw, a line a row",
        "test_suspects_tables.py::test_a_table_of_prompts_without_quoting_is_read_raw",
    ),
    _list(
        "a quote that is left open in a quoted table",
        "an error for each line it could cover",
        "test_suspects_tables.py::test_a_quote_left_open_is_an_error_and_swallows_nothing",
    ),
    _list(
        "UTF-8 with or without byte order mark, UTF-16 with one; other encodings",
        "read; refused: save it as UTF-8",
        "test_suspects_tables.py::test_forms_of_text_that_spreadsheets_write",
    ),
    _list(
        "two columns of one name, a header that is repeated, images in a column of another name",
        "refused; an error for the row",
        "test_suspects_tables.py::test_columns_that_would_be_lost_are_refused",
    ),
    _list(
        "`.jsonl`, `.ndjson`, `.json`: objects with the same columns, or captions in quotes",
        "read; a line that is no JSON is an error",
        "test_suspects.py::test_jsonl_damage_is_per_line",
    ),
    _list(
        "`.txt` or no suffix: a caption a line",
        "read; the header of a table is refused",
        "test_prompts.py::test_files_without_prompts_are_refused",
    ),
    _list(
        "several images of a row: a JSON list, separated by ; or |, a folder",
        "read, relative to the list",
        "test_suspects.py::test_several_images_relative_to_the_file",
    ),
    _list(
        "paths with backslashes, accents composed otherwise than on the disk",
        "the file is found",
        "test_suspects_folders.py::test_names_with_accents_composed_either_way",
    ),
    _list(
        "addresses of images",
        "an error: nothing is downloaded",
        "test_suspects.py::test_bad_rows_are_named_and_good_rows_go_on",
    ),
    _list(
        "a folder of images with `a.txt`, `a.caption` or `a.png.txt`",
        "a suspect for each line of the caption file; no caption is an error",
        "test_suspects_folders.py::test_captions_beside_images",
    ),
    _list(
        "several captions of an image: lines, a JSON list, two caption files",
        "a suspect for each, `cat`, `cat-caption-2`",
        "test_suspects_folders.py::test_captions_beside_images",
    ),
    _list(
        "`beach.jpg` and `beach.png` with one `beach.txt`",
        "an error for each image",
        "test_suspects_folders.py::test_images_of_one_name_need_captions_of_their_own",
    ),
    _list(
        "subfolders of a folder without images of its own; `10_dog` of sd-scripts",
        "read; images of `10_dog` without a caption file have the caption `dog`",
        "test_suspects_folders.py::test_subfolders_are_read_or_named",
    ),
    _list(
        "images in subfolders beside other images",
        "an error for each: name the subfolder itself",
        "test_suspects_folders.py::test_subfolders_are_read_or_named",
    ),
    _list(
        "`metadata.jsonl`, else `metadata.csv`, of datasets' `imagefolder`, in splits too",
        "read; an error for each image that it does not name, and for a second metadata file",
        "test_suspects_folders.py::test_metadata_of_datasets_folders",
    ),
    _list(
        "`.parquet` of the hub and `.arrow` of `save_to_disk`, pictures as bytes; they need `diffkit[datasets]`",
        "read; pictures go to files in the user's cache",
        "test_suspects_parquet.py::test_a_data_set_of_the_hub",
    ),
    _list(
        "`.parquet` of LAION or img2dataset, pictures beside it by their `key`",
        "read; a download that failed, and a picture that no row names, are errors",
        "test_suspects_parquet.py::test_laion_and_the_folders_of_img2dataset",
    ),
    _list(
        "webdataset shards, `.tar`, `.tar.gz`, one or a folder",
        "read; a sample without picture or caption, and what a cut-off shard lacks, are errors",
        "test_suspects_webdataset.py::test_a_sample_is_its_picture_its_captions_and_its_json",
    ),
    _list(
        "shards and `.parquet` beside images, images that a table does not name",
        "an error for each",
        "test_suspects_folders.py::test_shards_and_tables_in_folders",
    ),
)
