import dataclasses
import json
import shutil
import tarfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
from PIL import Image

from tagseg.data.read import read_dataset
from tagseg.data.voc import VOC_CLASSES
from tagseg.errors import DataError, RunError
from tagseg.pipeline import run_stage
from tagseg.run.folder import Run
from tagseg.settings.settings import Settings
from tagseg.studies.bench import run as module
from tagseg.studies.bench.protocols import PROTOCOLS, Protocol
from tagseg.studies.bench.result import Bench
from tagseg.studies.bench.run import bench

T = TypeVar("T")


@pytest.fixture(scope="module")
def followed(voc: Path, small_voc: Protocol, quick: Settings, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Return the whole protocol on the stand-in for VOC, with one seed."""
    return bench(voc, tmp_path_factory.mktemp("bench") / "out", small_voc, quick, command="tagseg bench voc2012")


def values(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def miou(pairs: Iterable[tuple[np.ndarray, np.ndarray]], ids: Iterable[int]) -> float:
    """Pooled mIoU in per cent, from the definition, over the ids that truth or masks have."""
    pairs = [(truth, mask) for truth, mask in pairs]
    found = []
    for one in ids:
        both = sum(((truth == one) & (mask == one)).sum() for truth, mask in pairs)
        either = sum((((truth == one) | (mask == one)) & (truth != 255)).sum() for truth, mask in pairs)
        found += [both / either] if either else []
    return 100 * float(np.mean(found))


def test_the_whole_protocol_on_vocs_layout(followed: Bench, voc: Path) -> None:
    run = Run(followed.folder / "seed_0")
    assert run.done("report") and run.settings().maps == "oaa"
    train = [f"2008_{i:06}" for i in range(5)]
    val = [f"2008_{i:06}" for i in range(15, 18)]
    to_voc = np.array([0, 8, 12, 15])  # cat, dog, person

    def pairs(names: list[str], folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return (
            (values(voc / f"SegmentationClass/{name}.png"), to_voc[values(folder / f"{name}.png")]) for name in names
        )

    expected = {
        "pseudo_masks": miou(pairs(train, run.decided_masks), to_voc),
        "segmenter": miou(pairs(val, run.predictions), to_voc),
        "segmenter_crf": miou(pairs(val, run.root / "bench/val"), to_voc),
    }
    assert followed.figures == {0: pytest.approx(expected)}
    assert "bench/val/2008_000015.png" in run.manifest().others["bench"].files


def test_several_processes_follow_together(
    voc: Path, small_voc: Protocol, quick: Settings, together: Callable[..., list[Any]], tmp_path: Path
) -> None:
    small = dataclasses.replace(small_voc, optional={})

    def follow() -> list[Any]:
        done = bench(voc, tmp_path / "out", small, quick, seeds=2, crf=False)
        return [{str(seed): sorted(found) for seed, found in done.figures.items()}, done.missing]

    main_one, other = together(2, follow)
    figures = ["pseudo_masks", "segmenter"]
    assert main_one == [{"0": figures, "1": figures}, []], main_one
    assert other == [{}, [0, 1]], other
    about = json.loads((tmp_path / "out/bench.json").read_text())
    assert about["seeds"] == [0, 1] and not about["missing"]


def test_the_submission_is_of_the_test_images(followed: Bench) -> None:
    [archive] = followed.submissions.values()
    assert archive == followed.folder / "seed_0/bench/submission/results.tar.gz"
    with tarfile.open(archive) as tar:
        names = [Path(name).stem for name in tar.getnames()]
    assert names == ["2008_000018", "2008_000019"]
    for name in names:
        sent = values(archive.parent / f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png")
        own = values(followed.folder / f"seed_0/bench/test/{name}.png")
        assert sent.shape == (48, 64) and (sent == np.array([0, 8, 12, 15])[own]).all()


def test_the_table_stands_beside_the_published_figures(followed: Bench) -> None:
    about = json.loads((followed.folder / "bench.json").read_text())
    text = (followed.folder / "bench.md").read_text()
    mine = followed.figures[0]["segmenter_crf"]
    source = "Zhou et al., CVPR 2022 (arXiv 2203.09653)"
    assert f"| segmenter and dense CRF, validation images | {mine:.1f} ± - | 71.1 | {source} |" in text
    assert f"| segmenter and dense CRF, test images | at the test server | 71.6 | {source} |" in text
    assert "72.2" not in text  # those of EPS are none of OAA's
    assert "Settings that are not the paper's: " in text and "train.epochs 2, not 30" in text
    assert about["figures"]["segmenter_crf"] == {"mean": round(mine, 2), "std": None, "seeds": [0],
                                                 "values": [round(mine, 2)]}  # fmt: skip
    assert (about["seeds"], about["missing"], about["command"]) == ([0], [], "tagseg bench voc2012")
    assert about["versions"]["torch"] and "cores" in about["machine"] and about["settings"]["train"]["epochs"] == 2
    assert (
        about["data"]["val"] == {"images": 3, "md5": followed.check.lists[2].md5}
        and f"`{about['data']['val']['md5']}`" in text
    )
    assert {(one["method"], one["miou"]) for one in about["published"]} >= {("oaa", 71.1), ("eps", 72.2)}


def test_it_goes_on_with_another_seed(
    followed: Bench, voc: Path, small_voc: Protocol, quick: Settings, tmp_path: Path
) -> None:
    out = shutil.copytree(followed.folder, tmp_path / "out")
    titles: list[str] = []

    def track(items: Iterable[T], title: str, total: int) -> Iterator[T]:
        titles.append(title)
        # Of the first seed nothing is done again.
        assert title.startswith("segment") or "train" not in title or (out / "seed_1").exists()
        yield from items

    again = bench(voc, out, small_voc, quick, track=track)
    assert again.figures == followed.figures and titles == []
    # The second seed is stopped behind its training: the table says so, and the same command goes on.
    stopped = pytest.MonkeyPatch()
    stopped.setattr(module, "predict", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        bench(voc, out, small_voc, quick, seeds=2)
    stopped.undo()
    assert json.loads((out / "bench.json").read_text())["missing"] == [1]
    assert "**Partial table:** seeds 1 are missing." in (out / "bench.md").read_text()
    titles.clear()
    both = bench(voc, out, small_voc, quick, seeds=2, track=track)
    assert titles == ["predict", "score val", "predict", "submission"]
    assert list(both.figures) == [0, 1] and both.figures[0] == followed.figures[0]
    mean = (both.figures[0]["segmenter"] + both.figures[1]["segmenter"]) / 2
    assert both.miou("segmenter").mean == pytest.approx(mean) and not both.missing
    assert Run(out / "seed_1").settings().seed == 1


def test_other_settings_and_other_networks_are_noticed(
    followed: Bench, voc: Path, small_voc: Protocol, quick: Settings, tmp_path: Path
) -> None:
    out = shutil.copytree(followed.folder, tmp_path / "out")
    longer = dataclasses.replace(quick, segment=dataclasses.replace(quick.segment, lr=0.5))
    with pytest.raises(RunError, match=r"segment\.lr was 0\.002, now 0\.5"):
        bench(voc, out, small_voc, longer)
    run = Run(out / "seed_0")
    run_stage(run.root, "segment", longer, force=True)
    # What the earlier network predicted is gone with it.
    assert not (run.root / "bench").exists() and "bench" not in run.manifest().others
    found = bench(voc, out, small_voc, longer, crf=False)
    assert "segmenter_crf" not in found.figures[0] and found.submissions
    assert "| segmenter and dense CRF, validation images | - | 71.1 |" in found.table()
    plain = found.submissions[0].read_bytes()
    refined = bench(voc, out, small_voc, longer)
    assert "segmenter_crf" in refined.figures[0] and refined.figures[0]["segmenter"] == found.figures[0]["segmenter"]
    (run.root / "bench/figures.json").unlink()
    assert bench(voc, out, small_voc, longer, crf=False).submissions[0].read_bytes() == plain


def test_a_folder_of_something_else(voc: Path, small_voc: Protocol, quick: Settings, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="is not a benchmark's folder"):
        bench(voc, tmp_path, small_voc, quick)
    with pytest.raises(ValueError, match="--seeds: got 0, expected at least 1"):
        bench(voc, tmp_path / "out", small_voc, quick, seeds=0)
    with pytest.raises(DataError, match="not the data of voc2012"):
        bench(voc, tmp_path / "out", PROTOCOLS["voc2012"], quick)
    assert not (tmp_path / "out").exists()


def test_the_whole_protocol_on_cocos_layout(coco: Path, small_coco: Protocol, quick: Settings, tmp_path: Path) -> None:
    """With EPS: crowds are objects, an image without annotations is not scored."""
    masks = dataclasses.replace(quick.masks, saliency=True)
    eps = dataclasses.replace(quick, maps="eps", masks=masks)
    found = bench(coco, tmp_path / "out", small_coco, eps)
    run = Run(tmp_path / "out/seed_0")
    dataset = read_dataset(coco, eps.data)
    assert [len(dataset.split(split)) for split in ("train", "val")] == [10, 3]
    assert dataset.samples[0].tags == (1,)  # the crowd
    assert len(list((run.root / "bench/val").glob("*.png"))) == 3 and not found.submissions
    assert set(found.figures[0]) == {"pseudo_masks", "segmenter", "segmenter_crf"}
    assert "| 36.8 |" in found.table() and "RCA+EPS" in found.table() and "35.7" not in found.table()


def check_and_follow(data: Path, out: Path, name: str, settings: Settings, changes: dict[str, Any]) -> Bench:
    protocol = dataclasses.replace(PROTOCOLS[name], **changes)  # type: ignore[index]
    found = bench(data, out, protocol, settings)
    assert set(found.figures[0]) >= {"pseudo_masks", "segmenter", "segmenter_crf"}
    return found


def test_a_part_of_voc_animals(shared_data: Path, quick: Settings, tmp_path: Path) -> None:
    source, data = shared_data / "data/voc_animals", tmp_path / "VOCdevkit/VOC2012"
    lists = {name: (source / f"ImageSets/Segmentation/{name}.txt").read_text().split() for name in ("train", "val")}
    official, val = lists["train"][::62][:6], lists["val"][::67]
    rows = [line.split(",") for line in (source / "tags.csv").read_text().splitlines()[1:]]
    # Every class at least twice, or the reader would refuse the part.
    tagged = {tag: [Path(image).stem for image, tags in rows if tag in tags.split()] for tag in VOC_CLASSES}
    known = {*(source / "ImageSets/Segmentation/train_aug.txt").read_text().split()} - {*lists["train"]}
    more = [name for names in tagged.values() for name in [one for one in names if one in known][:2]]
    train = [*official, *dict.fromkeys(more)]
    for folder, suffix, names in (
        ("JPEGImages", "jpg", [*train, *val]),
        ("SegmentationClass", "png", [*official, *val]),
    ):
        (data / folder).mkdir(parents=True)
        for name in names:
            shutil.copyfile(source / folder / f"{name}.{suffix}", data / folder / f"{name}.{suffix}")
    shutil.copyfile(source / "tags.csv", data / "tags.csv")
    (data / "ImageSets/Segmentation").mkdir(parents=True)
    for name, listed in {"train_aug": train, "train": official, "val": val}.items():
        (data / f"ImageSets/Segmentation/{name}.txt").write_text("\n".join(listed))
    classes = len(read_dataset(data, quick.data).classes)
    counts = {"train_aug": len(train), "train": len(official), "val": len(val)}
    found = check_and_follow(data, tmp_path / "out", "voc2012", quick, {"lists": counts, "classes": classes})
    assert not found.submissions and "no submission for the test server" in found.table()


def test_a_part_of_coco_mini(shared_data: Path, quick: Settings, tmp_path: Path) -> None:
    source, data = shared_data / "data/coco_mini", tmp_path / "COCO"
    kept: dict[str, set[int]] = {}
    counts, used = {}, set()
    for split, wanted in (("train", 8), ("val", 3)):
        content = json.loads((source / f"annotations/instances_{split}2017.json").read_text())
        images = content["images"][:wanted]
        kept[split] = {image["id"] for image in images}
        content["images"] = images
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept[split]]
        file = data / f"annotations/instances_{split}2014.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content))
        (data / f"{split}2014").mkdir()
        for image in images:
            name = image["file_name"]
            shutil.copyfile(source / f"{split}2017/{name}", data / f"{split}2014/{name}")
        counts[f"{split}2014"] = len({one["image_id"] for one in content["annotations"]})
        used |= {one["category_id"] for one in content["annotations"] if split == "train"}
    found = check_and_follow(data, tmp_path / "out", "coco2014", quick, {"lists": counts, "classes": len(used)})
    assert "| 35.7 |" in found.table()
