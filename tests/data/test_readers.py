from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from torch_separable._console.progress import progress_bar
from torch_separable.data import load_data, readers
from torch_separable.errors import SeparableError

RNG = np.random.default_rng(0)
COLOURED = RNG.integers(256, size=(6, 8, 10, 3), dtype=np.uint8)
LABELS = np.array([0, 1, 2, 0, 1, 2])


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()


def saved(path: Path, **arrays: Any) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


def test_npz_axes_are_recognised(tmp_path: Path) -> None:
    last = load_data(saved(tmp_path / "a.npz", images=COLOURED))
    first = load_data(saved(tmp_path / "b.npz", images=COLOURED.transpose(0, 3, 1, 2)))
    grey = load_data(saved(tmp_path / "c.npz", images=COLOURED[..., 0]))
    assert last.image_shape == first.image_shape == (3, 8, 10)
    assert torch.equal(last.images, first.images)
    assert torch.equal(last.images, torch.from_numpy(COLOURED).permute(0, 3, 1, 2))
    assert torch.equal(grey.images, last.images[:, :1])
    assert last.images.dtype == torch.uint8
    assert not last.labelled


def test_npz_folder_has_a_file_for_each_split(tmp_path: Path) -> None:
    saved(tmp_path / "train.npz", images=COLOURED, labels=LABELS, classes=np.array(["x", "y", "z"]))
    saved(tmp_path / "test.npz", images=COLOURED[:2].astype(np.float64) / 255, labels=LABELS[:2].astype(np.uint8))
    train, test = load_data(f"npz:{tmp_path}"), load_data(f"npz:{tmp_path}", "test")
    assert (len(train), train.classes) == (6, ("x", "y", "z"))
    assert (len(test), test.classes, test.images.dtype) == (2, ("0", "1"), torch.float32)
    with pytest.raises(SeparableError, match=r"no valid.npz: it has test.npz, train.npz"):
        load_data(f"npz:{tmp_path}", "valid")


def test_npz_images_are_scaled_to_cover_and_cropped(tmp_path: Path) -> None:
    halves = np.zeros((1, 8, 16, 1), dtype=np.uint8)
    halves[:, :, 8:] = 200
    data = load_data(saved(tmp_path / "a.npz", images=halves), image_size=4)
    assert data.image_shape == (1, 4, 4)
    assert data.images.dtype == torch.uint8
    assert data.images[0, 0, :, 0].tolist() == [0] * 4
    assert data.images[0, 0, :, 3].tolist() == [200] * 4
    assert load_data(f"npz:{tmp_path / 'a.npz'}", image_size=(8, 4)).image_shape == (1, 8, 4)


@pytest.mark.parametrize("size", [5, 7, 31])
def test_resized_images_stay_within_their_range(tmp_path: Path, size: int) -> None:
    white = np.ones((2, 64, 48, 3), dtype=np.float32)
    data = load_data(saved(tmp_path / "white.npz", images=white), image_size=size)
    assert float(data.images.max()) <= 1
    with pytest.raises(SeparableError, match=r"to 1\.5: must lie in 0..1"):
        load_data(saved(tmp_path / "bright.npz", images=1.5 * white), image_size=size)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": COLOURED}, "no array `images`: it has pictures"),
        ({"images": COLOURED[0, 0]}, r"shape \(10, 3\)"),
        ({"images": COLOURED[:, :3, :, :3]}, "ambiguous"),
        ({"images": COLOURED.astype(np.int64)}, "`images` is int64"),
        ({"images": COLOURED.astype(np.float32)}, "float images of .* must lie in 0..1"),
        ({"images": COLOURED[:0]}, "no image"),
        ({"images": COLOURED, "labels": LABELS / 2}, "`labels` is float64"),
        ({"images": COLOURED, "labels": LABELS[:4]}, r"shape \(4,\)"),
        ({"images": COLOURED, "labels": LABELS, "classes": np.array(["x", "y"])}, "label 2 of image 2"),
        ({"images": COLOURED, "labels": LABELS - 5}, "label -5 of image 0"),
        ({"images": COLOURED, "labels": LABELS, "classes": LABELS}, "`classes` is int64"),
        ({"images": COLOURED, "labels": LABELS, "classes": np.array(["ü".encode(), b"y", b"z"])}, "are not ASCII"),
        ({"images": COLOURED, "labels": LABELS * 10**6}, r"a label of .* is 2,000,000: .* below 1,000,000"),
        ({"images": np.array([{}, []], dtype=object)}, "Python objects"),
    ],
)
def test_invalid_archives_are_named(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    with pytest.raises(SeparableError, match=message) as caught:
        load_data(saved(tmp_path / "wrong.npz", **arrays))
    assert "wrong.npz" in str(caught.value)


def test_files_that_are_not_archives_are_named(tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match=r"no images at .*absent.npz"):
        load_data(f"npz:{tmp_path / 'absent.npz'}")
    text = tmp_path / "text.npz"
    text.write_text("hello")
    with pytest.raises(SeparableError, match=r"text\.npz is not a complete"):
        load_data(f"npz:{text}")
    single = tmp_path / "single.npy"
    np.save(single, COLOURED)
    with pytest.raises(SeparableError, match=r"single\.npy is not a complete"):
        load_data(f"npz:{single}")
    with zipfile.ZipFile(tmp_path / "other.npz", "w") as archive:
        archive.writestr("images", "no array")
    with pytest.raises(SeparableError, match=r"other\.npz: `images` is not a NumPy array"):
        load_data(f"npz:{tmp_path / 'other.npz'}")
    saved(tmp_path / "whole.npz", images=COLOURED)
    torn = tmp_path / "torn.npz"
    whole = (tmp_path / "whole.npz").read_bytes()
    for damaged in (whole[:300], whole[:300] + bytes(8) + whole[308:]):
        torn.write_bytes(damaged)
        with pytest.raises(SeparableError, match=r"torn\.npz is not a complete"):
            load_data(f"npz:{torn}")


def image_folder(root: Path, split: str, names: tuple[str, ...]) -> Path:
    for index, name in enumerate(names):
        folder = root / split / name
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURED[index]).save(folder / f"{index}.png")
    return root


def test_image_folder_is_read_with_its_classes(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", "train", ("cat", "dog", "train", "cat"))
    image_folder(root, "test", ("train",))
    train, test = load_data(f"folder:{root}"), load_data(f"folder:{root}", "test")
    assert train.classes == test.classes == ("cat", "dog", "train")
    assert train.labels is not None
    pairs = {
        bytes(image.permute(1, 2, 0).numpy().tobytes()): int(c)
        for image, c in zip(train.images, train.labels, strict=True)
    }
    assert pairs == {COLOURED[i].tobytes(): c for i, c in enumerate((0, 1, 2, 0))}
    assert test.labels is not None
    assert test.labels.tolist() == [2], "a split without some class numbers its classes as training does"


def test_image_folder_may_have_any_name_and_other_files(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "my set [1] *", "train", ("cat", "dog"))
    for other in ("notes.txt", "features.h5", "clip.mpg"):
        (root / "train/cat" / other).write_text("not an image")
    (root / "train/.hidden").mkdir()
    data = load_data(f"folder:{root}")
    assert (len(data), data.classes) == (2, ("cat", "dog"))


def test_image_folder_with_odd_names_links_and_other_files_is_read(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "a::b %20", "2024 hold-out", ("__cat__", "dog::x", "__cat__/more"))
    for name in ("metadata.csv", "__cat__/metadata.jsonl"):
        (root / "2024 hold-out" / name).write_text('{"file_name": "0.png", "label": 3}')
    with zipfile.ZipFile(root / "2024 hold-out" / "dog::x" / "more.zip", "w") as archive:
        archive.write(root / "2024 hold-out" / "__cat__" / "0.png", "inner.png")
    elsewhere = image_folder(tmp_path / "elsewhere", "emu", ("",))
    (root / "2024 hold-out" / "emu").symlink_to(elsewhere / "emu")
    (root / "2024 hold-out" / "emu" / "0.png").rename(elsewhere / "emu" / "0.PNG")
    (elsewhere / "emu" / "back").symlink_to(root)
    (elsewhere / "emu" / "round").symlink_to(elsewhere / "emu")
    Image.fromarray(COLOURED[3]).save(elsewhere / "emu" / "1.avif")
    Image.fromarray(COLOURED[4]).save(elsewhere / "emu" / ".hidden.png")
    data = load_data(f"folder:{root}", "2024 hold-out")
    assert data.classes == ("__cat__", "dog::x", "emu")
    assert data.labels is not None
    assert data.labels.tolist() == [0, 0, 1, 2, 2]
    expected = torch.from_numpy(COLOURED[[0, 2, 1, 0]]).permute(0, 3, 1, 2)
    assert torch.equal(data.images[:4], expected)


def test_image_beside_the_class_folders_is_named(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", "train", ("cat", "dog", ""))
    with pytest.raises(SeparableError, match=r"train/2\.png is not in a class folder"):
        load_data(f"folder:{root}")


def test_image_folder_without_classes_is_unlabelled(tmp_path: Path) -> None:
    data = load_data(f"folder:{image_folder(tmp_path / 'data', 'train', ('', '', ''))}")
    assert (len(data), data.labelled) == (3, False)


def test_broken_images_are_named_or_skipped(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", "train", ("cat", "dog", "cat"))
    whole = (root / "train/cat/0.png").read_bytes()
    (root / "train/cat/torn.png").write_bytes(whole[: len(whole) // 2])
    (root / "train/dog/text.png").write_text("not an image")
    with pytest.raises(SeparableError, match=r"(torn|text)\.png in .* cannot be decoded"):
        load_data(f"folder:{root}")
    with pytest.warns(UserWarning, match=r"2 broken images of .* skipped: .*\.png, .*\.png") as warned:
        data = load_data(f"folder:{root}", broken="skip")
    assert warned[0].filename == __file__
    assert data.labels is not None
    assert (len(data), sorted(data.labels.tolist())) == (3, [0, 0, 1])


def test_images_of_several_sizes_need_a_size(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", "train", ("cat", "dog"))
    Image.new("L", (20, 16), 7).save(root / "train/cat/grey.png")
    with pytest.raises(SeparableError, match=r"differ in size .*8x10, 16x20.*: give image_size"):
        load_data(f"folder:{root}")
    data = load_data(f"folder:{root}", image_size=8)
    assert data.image_shape == (3, 8, 8)
    assert (data.images == 7).flatten(1).all(1).sum() == 1


def test_sixteen_bit_images_are_refused(tmp_path: Path) -> None:
    root = image_folder(tmp_path / "data", "train", ("cat",))
    Image.fromarray(np.full((8, 10), 40_000, dtype=np.uint16)).save(root / "train/cat/deep.png")
    with pytest.raises(SeparableError, match=r"deep.png .* more than 8 bits"):
        load_data(f"folder:{root}")


def test_invalid_image_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(SeparableError, match=r"absent is not a folder"):
        load_data(f"folder:{tmp_path / 'absent'}")
    root = image_folder(tmp_path / "data", "train", ("cat",))
    with pytest.raises(SeparableError, match=r"no folder test: it has train"):
        load_data(f"folder:{root}", "test")
    image_folder(root, "test", ("cow",))
    with pytest.raises(SeparableError, match=r"the class cow, .*train"):
        load_data(f"folder:{root}", "test")
    (root / "empty").mkdir()
    with pytest.raises(SeparableError, match="has no image"):
        load_data(f"folder:{root}", "empty")


def table(labels: Any, kind: Any, count: int = len(COLOURED), **others: Any) -> datasets.Dataset:
    """``others`` are more columns of the same labels, by name, each of another kind."""
    columns = {"picture": [Image.fromarray(image) for image in COLOURED[:count]], **dict.fromkeys(others, labels)}
    kinds = {"picture": datasets.Image(), **others, "label": kind}
    return datasets.Dataset.from_dict({**columns, "label": labels}, datasets.Features(kinds))


def test_data_set_on_disk_is_read_in_both_forms(tmp_path: Path) -> None:
    named = table(LABELS, datasets.ClassLabel(names=["x", "y", "z"]))
    datasets.DatasetDict(train=named, test=named.select([5])).save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    named.to_parquet(tmp_path / "parquet" / "train-00000.parquet")
    for place in ("saved", "parquet"):
        data = load_data(f"hf:{tmp_path / place}")
        assert torch.equal(data.images, torch.from_numpy(COLOURED).permute(0, 3, 1, 2))
        assert data.labels is not None
        assert (data.labels.tolist(), data.classes) == (LABELS.tolist(), ("x", "y", "z"))
    assert len(load_data(f"hf:{tmp_path / 'saved'}", "test")) == 1
    with pytest.raises(SeparableError, match=r"no split valid: it has train, test"):
        load_data(f"hf:{tmp_path / 'saved'}", "valid")


def test_data_set_labels_may_be_plain_or_withheld(tmp_path: Path) -> None:
    table(LABELS, datasets.Value("int64")).save_to_disk(tmp_path / "plain")
    table([-1] * 6, datasets.ClassLabel(names=["x"])).save_to_disk(tmp_path / "withheld")
    assert load_data(f"hf:{tmp_path / 'plain'}").classes == ("0", "1", "2")
    assert not load_data(f"hf:{tmp_path / 'withheld'}").labelled


def test_data_set_without_images_is_named(tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(tmp_path / "text")
    with pytest.raises(SeparableError, match="no image column: its columns are text"):
        load_data(f"hf:{tmp_path / 'text'}")
    table([], datasets.ClassLabel(names=["x"]), 0).save_to_disk(tmp_path / "empty")
    with pytest.raises(SeparableError, match=r"empty, .* has no rows"):
        load_data(f"hf:{tmp_path / 'empty'}")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(SeparableError, match=r"`datasets` cannot read hf:.*nothing"):
        load_data(f"hf:{tmp_path / 'nothing'}")


def test_data_set_of_several_labels_is_read_by_the_one_called_label(tmp_path: Path) -> None:
    coarse = datasets.ClassLabel(names=["low", "middle", "high"])
    named, numbered = datasets.ClassLabel(names=["x", "y", "z"]), datasets.Value("int64")
    table(LABELS, named, coarse=coarse).save_to_disk(tmp_path / "named")
    table(LABELS, numbered, coarse=coarse).save_to_disk(tmp_path / "numbered")
    assert load_data(f"hf:{tmp_path / 'named'}").classes == ("x", "y", "z")
    assert load_data(f"hf:{tmp_path / 'numbered'}").classes == ("0", "1", "2")
    table(LABELS, named, coarse=coarse).rename_column("label", "fine").save_to_disk(tmp_path / "neither")
    with pytest.warns(UserWarning, match="its column coarse; it also has fine"):
        assert load_data(f"hf:{tmp_path / 'neither'}").classes == ("low", "middle", "high")


def test_data_set_whose_labels_are_words_is_unlabelled_with_a_warning(tmp_path: Path) -> None:
    table(list("xyzxyz"), datasets.Value("string")).save_to_disk(tmp_path / "words")
    with pytest.warns(UserWarning, match=r"the column label of hf:.*words is string") as warned:
        assert not load_data(f"hf:{tmp_path / 'words'}").labelled
    assert warned[0].filename == __file__


def test_rows_without_an_image_or_a_label_are_named(tmp_path: Path) -> None:
    whole = table(LABELS, datasets.Value("int64"))
    rows = [{**row, "picture": None} if index == 4 else row for index, row in enumerate(whole)]
    datasets.Dataset.from_list(rows, whole.features).save_to_disk(tmp_path / "no-image")
    with pytest.raises(SeparableError, match=r"image 4 in hf:.* cannot be decoded"):
        load_data(f"hf:{tmp_path / 'no-image'}")
    with pytest.warns(UserWarning, match=r"1 broken images of .* skipped: image 4") as warned:
        data = load_data(f"hf:{tmp_path / 'no-image'}", broken="skip")
    assert warned[0].filename == __file__
    assert data.labels is not None
    assert data.labels.tolist() == LABELS[[0, 1, 2, 3, 5]].tolist()
    for name, kind in (("named", datasets.ClassLabel(names=["x", "y", "z"])), ("numbered", datasets.Value("int64"))):
        table([0, 1, None, 0, 1, 2], kind).save_to_disk(tmp_path / name)
        with pytest.raises(SeparableError, match=rf"row 2 in the column label of hf:.*{name} has no label"):
            load_data(f"hf:{tmp_path / name}")


@pytest.mark.parametrize(("progress", "terminal"), [(True, True), (True, False), (False, True)])
def test_progress_bars_need_a_terminal_and_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, progress: bool, terminal: bool
) -> None:
    table(LABELS, datasets.Value("int64")).save_to_disk(tmp_path / "saved")
    root = image_folder(tmp_path / "data", "train", ("cat",))
    shown: list[bool] = []
    load = datasets.load_from_disk

    def watched(place: str) -> Any:
        shown.append(not datasets.are_progress_bars_disabled())
        return load(place)

    def bar(title: str, total: int, *, shown: bool) -> Any:
        ours.append(shown)
        return progress_bar(title, total, shown=False)

    ours: list[bool] = []
    monkeypatch.setattr(datasets, "load_from_disk", watched)
    monkeypatch.setattr(readers, "progress_bar", bar)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal)
    datasets.enable_progress_bars()
    load_data(f"hf:{tmp_path / 'saved'}", progress=progress)
    assert shown == [progress and terminal]
    assert not datasets.are_progress_bars_disabled()
    load_data(f"folder:{root}", progress=progress)
    assert ours == [progress, progress]
