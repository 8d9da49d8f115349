"""Folders and archives as people have them: which split and class each image is in, and what is left out.

Nothing is decoded here, so the files are empty; a name is all that counts.
"""

from __future__ import annotations

import os
import pickle
import struct
import unicodedata
import zipfile
import zlib
from pathlib import Path

import pytest

from minisimclr.cli.sources import test_split as split_to_test_on
from minisimclr.data import DataError, Reading, archive
from minisimclr.data.classes import class_numbers
from minisimclr.data.find import Found, found, listing
from minisimclr.data.left_out import NOWHERE, SHEET
from minisimclr.data.names import HELD
from minisimclr.data.splits import roles
from minisimclr.data.zip_names import code_page, decoded

pytestmark = pytest.mark.host
AUTO = Reading()


def numbered(folder: str, count: int) -> list[str]:
    return [f"{folder}/{i:03}.png" for i in range(count)]


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def read(root: Path, *names: str, **choices: object) -> Found:
    return found(tree(root, *names), Reading(**choices))


def sizes(everything: Found) -> dict[str, int]:
    return {name: len(images) for name, images in everything.layout.splits.items()}


def classes(everything: Found) -> tuple[str, ...]:
    return class_numbers(everything.layout)[1]


def remarks(everything: Found) -> list[str]:
    lines: list[str] = []
    everything.say(lines.append)
    return [line.removeprefix(f"{everything.path}: ") for line in lines]


# ── Splits ────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (["train", "val"], ["train", "val"]),
        (["training", "testing"], ["train", "test"]),
        (["Train", "Validation", "TEST"], ["train", "val", "test"]),
        (["seg_train", "seg_test", "seg_pred"], ["train", "test", "unlabeled"]),
        (["train", "test1"], ["train", "test"]),
        (["train2017", "val2017"], ["train", "val"]),
        (["training_set", "test_set"], ["train", "test"]),
        (["TrainImages", "TestImages"], ["train", "test"]),
        (["train", "dev"], ["train", "val"]),
        (["trainset", "testset"], ["train", "test"]),
        (["traindata", "valimages"], ["train", "val"]),
        (["cat", "dog"], ["", ""]),
        (["test 1", "test 2"], ["", ""]),  # two things to be told apart, of no different roles
        (["train station", "test tube"], ["", ""]),
        (["train_cat", "train_dog", "test_cat", "test_dog"], ["", "", "", ""]),  # the other words are classes
        (["dev", "ops"], ["", ""]),
    ],
)
def test_folders_are_known_for_splits_by_their_names(folders, expected):
    assert [roles(folders).get(folder, "") for folder in folders] == expected


@pytest.mark.parametrize("asked", ["test", "testing", "Testing"])
def test_a_split_is_found_by_any_of_its_names(tmp_path, asked):
    everything = read(tmp_path, *numbered("training/cat", 3), *numbered("training/dog", 3), *numbered("testing/dog", 2))
    assert everything.listing(asked).names == ["testing/dog/000.png", "testing/dog/001.png"]
    assert everything.listing("train").labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_split_that_two_folders_could_be_is_asked_for_by_name(tmp_path):
    everything = read(tmp_path, "train/a/1.png", "train/b/1.png", "val/a/1.png", "valid/a/1.png")
    with pytest.raises(DataError, match=r"split 'validation' may be val or valid; say which"):
        everything.listing("validation")
    assert len(everything.listing("val").entries) == 1


def test_a_folder_inside_a_split_that_says_nothing_is_no_class(tmp_path):
    """Intel's scenes: seg_train/seg_train/class/image, and seg_pred/seg_pred/image without labels."""
    everything = read(
        tmp_path,
        *(name for kind in ("sea", "street") for name in numbered(f"seg_train/seg_train/{kind}", 4)),
        *numbered("seg_test/seg_test/sea", 2),
        *numbered("seg_pred/seg_pred", 3),
        "train_notes.txt",
    )
    assert sizes(everything) == {"seg_pred": 3, "seg_test": 2, "seg_train": 8}
    assert classes(everything) == ("sea", "street")
    assert not everything.listing("unlabelled").labelled


def test_images_between_split_and_class_or_inside_a_class_are_no_class(tmp_path):
    assert classes(read(tmp_path / "a", "train/images/cat/1.png", "train/images/dog/1.png")) == ("cat", "dog")
    assert classes(read(tmp_path / "b", "cat/images/1.png", "dog/images/1.png")) == ("cat", "dog")
    assert not read(tmp_path / "c", "train/images/1.png", "val/images/1.png").layout.has_labels("train")


def test_splits_inside_classes_are_splits(tmp_path):
    everything = read(tmp_path, "cat/train/1.png", "cat/test/2.png", "dog/train/3.png")
    assert sizes(everything) == {"test": 1, "train": 2}
    assert classes(everything) == ("cat", "dog")
    assert "--layout classes" in remarks(everything)[0]
    assert "test" in sizes(read(tmp_path, layout="classes"))  # then chosen by name
    assert read(tmp_path, layout="classes").layout.by_folder is False


def test_a_class_called_train_beside_other_classes_is_a_class(tmp_path):
    names = [name for kind in ("IC", "S-Bahn") for name in numbered(f"train/{kind}", 30)]
    names += [name for kind in ("bus", "car") for name in numbered(kind, 60)]
    everything = read(tmp_path, *names)
    assert classes(everything) == ("bus", "car", "train")
    assert remarks(everything) == [
        "train is read as a class, like bus, car beside it; --layout splits reads it as a split"
    ]
    assert classes(read(tmp_path, layout="splits")) == ("IC", "S-Bahn")


def test_a_folder_that_is_split_or_class_is_refused_with_the_options_that_settle_it(tmp_path):
    names = [*numbered("train/IC", 5), *numbered("train/ICE", 5), *numbered("bus", 8)]
    with pytest.raises(DataError, match=r"train may be a split, or a class like bus .*--layout splits or --layout cla"):
        read(tmp_path, *names)
    assert classes(read(tmp_path, layout="classes")) == ("bus", "train")
    assert sizes(read(tmp_path, layout="splits")) == {"train": 10}


def test_a_flat_layout_has_no_classes(tmp_path):
    everything = read(tmp_path, "a/1.png", "b/2.png", "3.png", layout="flat")
    assert (sizes(everything), classes(everything)) == ({"train": 3}, ("unlabelled",))


def test_a_tenth_of_the_training_split_is_set_apart_on_request(tmp_path):
    names = [name for kind in ("cat", "dog") for name in numbered(f"train/{kind}", 60)]
    everything = read(tmp_path, *names, *numbered("test", 20), test_split=HELD)
    assert sizes(everything) == {"test": 20, "train": 120 - sizes(everything)[HELD], HELD: sizes(everything)[HELD]}
    assert 4 <= sizes(everything)[HELD] <= 24
    assert not set(everything.listing(HELD).names) & set(everything.listing("train").names)


@pytest.mark.parametrize(
    ("there", "expected", "said"),
    [
        ({"train": ("train", True), "test": ("test", True), "val": ("val", True)}, "test", ""),
        ({"train": ("train", True), "valid": ("val", True)}, "valid", "there is no test split; valid is taken"),
        (
            {"train": ("train", True), "test1": ("test", False), "dev": ("val", True)},
            "dev",
            "the test split has no labels; dev is taken",
        ),
    ],
)
def test_evaluation_takes_the_validation_split_where_there_is_no_labelled_test(there, expected, said, capsys):
    assert split_to_test_on("x", there, "") == expected
    assert said in capsys.readouterr().err


def test_a_split_without_labels_is_never_scored():
    there = {"train": ("train", True), "test": ("test", False)}
    with pytest.raises(DataError, match=r"no labelled split .*train, test \(no labels\); --test-split chooses one"):
        split_to_test_on("x", there, "")


# ── Classes ───────────────────────────────────────────────────────────────────────────────────────

CAFE = [unicodedata.normalize(form, "café") for form in ("NFC", "NFD")]


def test_class_names_that_differ_in_form_or_case_between_splits_are_one_class(tmp_path):
    everything = read(tmp_path, f"train/{CAFE[0]}/1.png", "train/Cat/1.png", f"test/{CAFE[1]}/1.png", "test/cat/1.png")
    assert classes(everything) == ("Cat", CAFE[0])
    assert everything.listing("train").labels.tolist() == [0, 1]
    assert sorted(everything.listing("test").labels.tolist()) == [0, 1]
    said = " ".join(remarks(everything))
    assert "Cat and cat differ in case or form only, and are one class" in said
    assert "as a Mac writes it" in said


def test_class_names_that_differ_in_case_in_one_split_are_two_classes_which_is_said(tmp_path):
    everything = read(tmp_path, "train/Cat/1.png", "train/cat/1.png", "test/cat/1.png")
    assert classes(everything) == ("Cat", "cat")
    assert "two classes" in remarks(everything)[0]


# ── What is left out ──────────────────────────────────────────────────────────────────────────────


def test_what_is_left_out_is_said_in_one_line_by_cause(tmp_path):
    everything = read(
        tmp_path, "cat/1.png", "dog/1.png", "cat/notes.txt", "dog/x.svg", "dog/y.svg", ".git/a.png", "__MACOSX/1.png",
        "cat/@eaDir/1.png/SYNOPHOTO_THUMB_M.png", "dog/@__thumb/s1.png", "cat/.thumbnails/1.png", SHEET, "stray.png",
        "runs/a/config.json", "runs/a/metrics.jsonl", "runs/a/loss.png",
    )  # fmt: skip
    assert everything.left.counts == {
        "outputs of minisimclr": 4,
        "of other formats": 3,
        "hidden": 3,
        "thumbnails": 2,
        "outside the class folders": 1,
    }
    (line,) = remarks(everything)
    assert line.startswith("2 images (train 1, test 1); left out: 4 outputs of minisimclr, 3 ")
    assert "3 of other formats (svg 2, txt 1)" in line


def test_the_folder_of_a_run_is_no_source(tmp_path):
    with pytest.raises(DataError, match="the folder of a run, whose pictures are no data"):
        read(tmp_path, "config.json", "metrics.jsonl", "loss.png")


def test_nothing_found_says_what_was_there(tmp_path):
    with pytest.raises(DataError, match=r"no images found .*left out: 2 of other formats \(raw 2\)"):
        read(tmp_path, "a/1.raw", "b/2.raw")


def test_links_refuse_themselves_and_are_followed_on_request(tmp_path):
    tree(tmp_path / "elsewhere", "ox/1.png", "ox/2.png")
    root = tree(tmp_path / "data", "cat/1.png", "dog/1.png")
    (root / "ox").symlink_to(tmp_path / "elsewhere" / "ox")
    (root / "dog" / "out.png").symlink_to(tmp_path / "elsewhere" / "ox" / "1.png")
    (root / "dog" / "broken.png").symlink_to(tmp_path / "nothing.png")
    (root / "dog" / "self.png").symlink_to(root / "dog" / "self.png")
    (root / "dog" / "up").symlink_to(root)
    nowhere = {NOWHERE: 2}  # the broken one, and itself
    assert found(root, AUTO).left.counts == {"links": 3, **nowhere}
    followed = found(root, Reading(follow_links=True))
    assert [entry.name for entry in followed.entries] == [
        "cat/1.png", "dog/1.png", "dog/out.png", "ox/1.png", "ox/2.png"
    ]  # fmt: skip
    assert followed.left.counts == {NOWHERE: 3}  # and the one round and round
    assert "--follow-links" not in followed.left.line()


def test_links_inside_the_folder_are_files(tmp_path):
    """Hugging Face's cache: every file is a link to ../../blobs/HASH."""
    tree(tmp_path, "blobs/aa", "blobs/bb")
    for kind, blob in (("cat", "aa"), ("dog", "bb")):
        link = tmp_path / "snapshots" / "abc" / kind / "1.png"
        link.parent.mkdir(parents=True)
        link.symlink_to(os.path.relpath(tmp_path / "blobs" / blob, link.parent))
    assert classes(found(tmp_path, AUTO)) == ("cat", "dog")


def test_entries_are_small_and_can_be_sent_to_another_process(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for i in range(200):
            archive.writestr(f"cat/{i:03}.png", b"%d" % i, zipfile.ZIP_DEFLATED)
    entries = listing(tmp_path / "x.zip", "train", Reading(layout="flat"), print).entries
    sent = pickle.loads(pickle.dumps(entries))
    assert bytes(sent[17].read()) == b"17"
    assert len(pickle.dumps(entries)) < 100 * len(entries)


# ── Folders that are neither splits nor classes ───────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("images", "masks"),
    [("images", "masks"), ("JPEGImages", "SegmentationClass"), ("img", "gt"), ("images", "ground_truth")],
)
@pytest.mark.parametrize("split", ["", "train/"])
def test_masks_beside_images_are_no_class_and_that_is_said(tmp_path, images, masks, split):
    names = [*numbered(f"{split}{images}", 4), *numbered(f"{split}{masks}", 4)]
    everything = read(tmp_path, *names, "test/images/1.png", "test/masks/1.png") if split else read(tmp_path, *names)
    assert everything.listing("train").names == numbered(f"{split}{images}", 4)
    assert classes(everything) == ("unlabelled",)
    assert "masks or annotations beside the images" in remarks(everything)[-1]


def test_a_class_of_masks_is_a_class(tmp_path):
    everything = read(tmp_path, *numbered("with_mask", 4), *numbered("without_mask", 4), "mask/1.png")
    assert classes(everything) == ("mask", "with_mask", "without_mask")
    everything = read(tmp_path / "b", *numbered("images", 4), *numbered("masks", 4), layout="classes")
    assert classes(everything) == ("images", "masks")


def test_parts_of_one_set_are_joined_and_that_is_said(tmp_path):
    names = [f"fold_{part}/{kind}/{part}{i}.png" for part in range(3) for kind in ("cat", "dog") for i in range(9)]
    everything = read(tmp_path, *names)
    assert classes(everything) == ("cat", "dog")
    assert "are parts of one set" in remarks(everything)[0]
    assert classes(read(tmp_path, layout="classes")) == ("fold_0", "fold_1", "fold_2")
    others = read(tmp_path / "b", "fold_0/cat/1.png", "fold_1/dog/1.png", "fold_1/cat/1.png")
    assert classes(others) == ("fold_0", "fold_1")  # they have one folder in common: perhaps these are classes


def test_classes_that_may_be_something_else_are_said(tmp_path):
    variants = [f"{kind}/{leaf}/{i}.png" for kind in ("color", "grey") for leaf in ("apple", "plum") for i in range(9)]
    everything = read(tmp_path / "a", *variants)
    assert classes(everything) == ("color", "grey")
    assert "apple, plum, which all of them hold, as parts of a class" in remarks(everything)[0]
    everything = read(tmp_path / "b", *numbered("2021-05-17", 9), *numbered("100CANON", 9))
    assert "look like dates or the folders of a camera" in remarks(everything)[0]
    assert remarks(read(tmp_path / "c", *numbered("cat", 9), *numbered("2021", 9), *numbered("7", 9))) == []
    assert remarks(read(tmp_path / "d", "train/cat/small/1.png", "train/dog/small/1.png", "test/cat/1.png")) == []


def test_class_names_that_differ_in_spaces_are_told_apart_for_the_reader(tmp_path):
    everything = read(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/cat /1.png", "test/dog/1.png")
    assert classes(everything) == ("cat", "dog")
    assert remarks(everything)[0] == "'cat ' and cat differ in case, spaces or form only, and are one class"


# ── Labels from tables ────────────────────────────────────────────────────────────────────────────


def labelled(everything: Found) -> dict[str, str]:
    """The class of each image by its name."""
    return {"/".join(everything.layout.names[k]): folder for split in everything.layout.splits.values()
            for k, folder in split.items()}  # fmt: skip


def test_a_table_in_each_split_labels_the_files_in_there_and_no_others(tmp_path):
    """As Hugging Face has it; both splits have a file 0.png."""
    tree(tmp_path, "train/0.png", "train/1.png", "test/0.png", "test/1.png")
    for split, kinds in (("train", "ab"), ("test", "ba")):
        rows = [f"{k}.png,{kind}" for k, kind in enumerate(kinds)]
        (tmp_path / split / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    both = found(tmp_path, Reading(labels="metadata.csv"))
    assert labelled(both) == {"train/0.png": "a", "train/1.png": "b", "test/0.png": "b", "test/1.png": "a"}
    one = found(tmp_path, Reading(labels=str(tmp_path / "train" / "metadata.csv")))
    assert {name for name, kind in labelled(one).items() if kind} == {"train/0.png", "train/1.png"}
    assert not one.layout.has_labels("test")


def test_a_name_without_its_folder_that_two_files_have_is_refused(tmp_path):
    tree(tmp_path, "train/0.png", "train/1.png", "test/0.png")
    (tmp_path / "t.csv").write_text("id,label\n0,a\n1,b\n")
    with pytest.raises(DataError, match=r"table's 0 may be one of 2 images, such as t\w+/0\.png; write their folders"):
        found(tmp_path, Reading(labels="t.csv"))


def test_a_table_that_contradicts_itself_is_refused_and_rows_of_no_image_are_counted(tmp_path):
    tree(tmp_path, "000.png", "001.png", "002.png", "003.png")
    rows = ["Image Path,Class Name", "000.png,a", "./001.png,b", "gone.png,b", "000.png,a"]
    (tmp_path / "t.csv").write_text("\n".join(rows))
    everything = found(tmp_path, Reading(labels="t.csv"))
    assert labelled(everything) == {"000.png": "a", "001.png": "b"}
    assert "1 row of the table names no image here" in remarks(everything)
    assert "2 without a label" in remarks(everything)[-1]
    (tmp_path / "t.csv").write_text("\n".join([*rows, "000.png,b"]))
    with pytest.raises(DataError, match=r"t\.csv: 000\.png has two labels, a and b"):
        found(tmp_path, Reading(labels="t.csv"))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_may_say_the_splits(tmp_path, encoding):
    tree(tmp_path, *(f"{k:03}.png" for k in range(5)))
    rows = ["file_name,label,split", "000.png,é,train", "001.png,b,train", "002.png,é,Test", "003.png,b,valid"]
    (tmp_path / "t.csv").write_bytes("\n".join(rows).encode(encoding))
    everything = found(tmp_path, Reading(labels="t.csv"))
    assert sizes(everything) == {"Test": 1, "train": 2, "valid": 1}
    assert everything.listing("test").names == ["002.png"]
    assert "1 without a split in the table" in remarks(everything)[-1]
    (tmp_path / "t.csv").write_bytes("\n".join(rows).replace("valid", "both").encode(encoding))
    assert set(sizes(found(tmp_path, Reading(labels="t.csv")))) == {"train", "test"}  # by the hash of their names


# ── Archives ──────────────────────────────────────────────────────────────────────────────────────


def raw_zip(
    path: Path, members: list[tuple[bytes, bytes]], *, flags: int = 0, at: dict[int, int] | None = None
) -> Path:
    """A zip whose names are given as bytes, as MS-DOS made it; `at` makes a member begin where another one does."""
    body = central = b""
    offsets: list[int] = []
    for i, (name, data) in enumerate(members):
        offsets.append(len(body))
        head = struct.pack("<HHHHHIIIHH", 20, flags, 0, 0, 0x21, zlib.crc32(data), len(data), len(data), len(name), 0)
        offset = offsets[at[i]] if at and i in at else offsets[i]
        central += b"PK\1\2" + struct.pack("<H", 20) + head + struct.pack("<HHHII", 0, 0, 0, 0x20, offset) + name
        body += b"PK\3\4" + head + name + data
    end = struct.pack("<HHHHIIH", 0, 0, len(members), len(members), len(central), len(body), 0)
    path.write_bytes(body + central + b"PK\5\6" + end)
    return path


PAGES = {
    "cp932": ["表/ソフト.png", "犬/1.png", "猫/2.png", "能力/写真1.png"],
    "gb18030": ["狗/1.png", "猫/2.png", "鲜花/a.png", "许功盖/x.png"],
    "cp949": ["개/1.png", "고양이/2.png", "햄스터/3.png", "기린/4.png", "코끼리/5.png"],
    "big5": ["許功蓋/1.png", "貓/2.png", "狗/3.png"],
    "cp866": ["кот/1.png", "собака/2.png"],
    "cp437": ["café/1.png", "größe/2.png"],
    "cp850": ["São/1.png", "não/2.png"],
    "utf-8": ["犬/1.png", "кот/2.png", "café/3.png"],
}


@pytest.mark.parametrize("page", PAGES)
def test_names_in_an_archive_are_read_in_its_code_page(tmp_path, page):
    members = [(name.encode(page), b"%d" % i) for i, name in enumerate(PAGES[page])]
    entries = found(raw_zip(tmp_path / "x.zip", members), AUTO).entries
    assert sorted(entry.name for entry in entries) == sorted(PAGES[page])


def test_the_mark_of_utf8_is_believed_also_beside_other_names():
    page = code_page([name.encode("cp932") for name in PAGES["cp932"]], 100)
    assert decoded("café/1.png".encode(), True, page) == "café/1.png"


@pytest.mark.parametrize(
    ("raw", "page", "name"),
    [
        (b"train\\cat\\1.png", "cp437", "train/cat/1.png"),
        (b"cat/a\\b.png", "cp437", "cat/a\\b.png"),  # folders are set apart by "/", so this is a character
        ("表/1.png".encode("cp932"), "cp932", "表/1.png"),  # its second byte is that of a backslash
        ("表\\1.png".encode("cp932"), "cp932", "表/1.png"),
        (b"a.png\0.exe", "cp437", "a.png"),
    ],
)
def test_backslashes_are_folders_only_where_they_set_them_apart(raw, page, name):
    assert decoded(raw, False, page) == name


def test_a_code_page_that_was_guessed_is_said(tmp_path):
    for page in ("gb18030", "utf-8", "ascii"):
        names = ["cat/1.png", "dog/2.png"] if page == "ascii" else ["狗/1.png", "猫/2.png", "鲜花/a.png"]
        said = remarks(found(raw_zip(tmp_path / f"{page}.zip", [(name.encode(page), b"") for name in names]), AUTO))
        assert any("read in the code page gb18030, which is a guess" in line for line in said) == (page == "gb18030")


@pytest.mark.parametrize(
    ("begin", "says"),
    [(b"\x1f\x8b\x08", "unpack it"), (b"Rar!\x1a", "unpack it"), (b"7z\xbc\xaf", "unpack it"),
     (b"PAR1", "give the images as files"), (b"\x89HDF\r\n", "give the images as files"),
     (b"\x89PNG\r\n", "a single image; name the folder"), (b"hello", "neither a folder nor a readable zip file")],
)  # fmt: skip
def test_what_is_no_zip_file_is_told_for_what_it_is(tmp_path, begin, says):
    (tmp_path / "x.bin").write_bytes(begin.ljust(400, b"x"))
    with pytest.raises(DataError, match=says) as caught:
        found(tmp_path / "x.bin", AUTO)
    assert "\n" not in str(caught.value)


def test_members_that_overlap_are_refused(tmp_path):
    members = [(b"a/%03d.png" % i, b"x" * 50) for i in range(3)]
    with pytest.raises(DataError, match=r"x\.zip: .*its members overlap"):
        found(raw_zip(tmp_path / "x.zip", members, at={2: 1}), AUTO)


def test_an_archive_of_too_many_members_is_refused_by_what_it_declares(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_MEMBERS", 2)
    path = raw_zip(tmp_path / "x.zip", [(b"a/%d.png" % i, b"") for i in range(3)])
    with pytest.raises(DataError, match=r"declares 3 members, more than 2; unpack it"):
        found(path, AUTO)
    lying = path.read_bytes()
    path.write_bytes(lying[:-14] + struct.pack("<HH", 1, 1) + lying[-10:])  # it declares one, and has three
    with pytest.raises(DataError, match="its directory is damaged"):
        found(path, AUTO)


def test_of_members_of_one_name_the_last_is_taken_and_the_others_are_counted(tmp_path):
    everything = found(
        raw_zip(tmp_path / "x.zip", [(b"a/1.png", b"old"), (b"a/1.png", b"new"), (b"b/1.png", b"")]), AUTO
    )
    assert bytes(everything.entries[0].read()) == b"new"
    assert everything.left.counts == {"members of the same name as another": 1}


@pytest.mark.parametrize("name", [b"/etc/1.png", b"../1.png", b"a/../../1.png", b"C:\\x\\1.png", b"\\\\host\\x\\1.png"])
def test_names_that_point_out_of_the_archive_are_left_out(tmp_path, name):
    everything = found(raw_zip(tmp_path / "x.zip", [(name, b""), (b"a/1.png", b"")]), AUTO)
    assert [entry.name for entry in everything.entries] == ["a/1.png"]
    assert everything.left.counts == {"names that point out of the source": 1}


def test_a_link_in_an_archive_is_no_image(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("a/1.png", b"")
        link = zipfile.ZipInfo("a/2.png")
        link.create_system, link.external_attr = 3, 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert found(tmp_path / "x.zip", AUTO).left.counts == {"links": 1}


@pytest.mark.parametrize("cut", [10, 40, 90])
def test_an_archive_that_is_cut_off_is_refused_in_one_line(tmp_path, cut):
    path = raw_zip(tmp_path / "x.zip", [(b"a/1.png", b"x"), (b"b/1.png", b"x")])
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataError, match=r"x\.zip: neither a folder nor a readable zip file \(.*\)$"):
        found(path, AUTO)


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
def test_members_are_unpacked_as_zipfile_does(tmp_path, method):
    contents = {f"a/{i}.png": bytes(range(256)) * i * 200 for i in range(4)}
    with zipfile.ZipFile(tmp_path / "x.zip", "w", method) as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    (tmp_path / "x.zip").write_bytes(b"#!/bin/sh\n" + (tmp_path / "x.zip").read_bytes())  # one that unpacks itself
    assert {entry.name: bytes(entry.read()) for entry in found(tmp_path / "x.zip", AUTO).entries} == contents


def test_a_member_that_unpacks_to_more_than_it_declares_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/1.png", bytes(100_000))
    raw = bytearray((tmp_path / "x.zip").read_bytes())
    at = raw.rindex(b"PK\1\2") + 24
    raw[at : at + 4] = struct.pack("<I", 50_000)
    (tmp_path / "x.zip").write_bytes(raw)
    with pytest.raises(ValueError, match="checksum"):
        found(tmp_path / "x.zip", AUTO).entries[0].read()


# ── How a source is read, as text ─────────────────────────────────────────────────────────────────


def test_a_reading_survives_as_text():
    reading = Reading(split="val", layout="classes", follow_links=True, megapixels=200, labels="names")
    assert Reading.from_text(reading.as_text()) == reading
    assert Reading().as_text() == ""


@pytest.mark.parametrize(
    "words", ["layout=round", "colour=red", "split", "megapixels=many", "follow_links=1", "split="]
)
def test_a_reading_that_makes_no_sense_is_refused(words):
    with pytest.raises(ValueError, match=words.partition("=")[0]):
        Reading.from_text(words)
