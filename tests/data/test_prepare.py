import dataclasses
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tagseg.data.prepare import prepare
from tagseg.data.read import read_dataset
from tagseg.data.tars import content_mark
from tagseg.errors import DataError, RunError
from tagseg.run.folder import Run
from tagseg.run.open import open_run
from tagseg.settings.data import DataSettings
from tagseg.settings.settings import Settings

SETTINGS = Settings(data=DataSettings(min_images=2, max_broken=0.3))


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return a run on six images of increasing width, three cats and three dogs."""
    data = tmp_path / "data"
    for i in range(6):
        path = data / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (10 + i, 8), (i * 40, 90, 0)).save(path)
    return open_run(tmp_path / "run", data, SETTINGS)


def test_the_first_time_every_image_is_decoded_and_recorded(run: Run) -> None:
    prepared = prepare(run)
    assert prepared.dataset == read_dataset(run.data_root(), SETTINGS.data)
    assert prepared.sizes == {f"{('cat', 'dog')[i % 2]}/{i}": (8, 10 + i) for i in range(6)}
    noted = json.loads(run.data_file.read_text(encoding="utf-8"))
    assert noted["classes"] == ["cat", "dog"] and noted["layout"] == "folder" and noted["broken"] == []
    assert noted["samples"][0] == {
        "id": "cat/0", "tags": [1], "split": "train", "image": str(run.data_root() / "cat/0.png"), "size": [8, 10],
        "mask": False, "scored": True, "mark": content_mark(run.data_root() / "cat/0.png"),
        "saliency": "",
    }  # fmt: skip


def test_later_the_images_are_not_decoded_again(run: Run) -> None:
    first = prepare(run)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("tagseg.data.prepare.check_images", None)
        assert prepare(run) == first


def test_a_photograph_that_was_replaced_is_noticed(run: Run) -> None:
    prepare(run)
    Image.new("RGB", (10, 8), (1, 2, 3)).save(run.data_root() / "cat/0.png")
    with pytest.raises(
        RunError, match=r"have changed since this run began: 1 image with another content \(first cat/0"
    ):
        prepare(run)


def test_runs_of_earlier_versions_have_no_marks(run: Run) -> None:
    first = prepare(run)
    noted = json.loads(run.data_file.read_text(encoding="utf-8"))
    for row in noted["samples"]:
        del row["mark"]
    run.data_file.write_text(json.dumps(noted))
    Image.new("RGB", (10, 8), (1, 2, 3)).save(run.data_root() / "cat/0.png")
    assert prepare(run) == first


def test_broken_images_are_left_out_the_first_time_and_later(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    (run.data_root() / "dog/1.png").write_bytes(b"\x89PNG\r\n\x1a\nhalf")
    with caplog.at_level(logging.WARNING, "tagseg"):
        first = prepare(run)
    assert "skipped dog/1.png: " in caplog.text
    assert [sample.id for sample in first.dataset.samples] == ["cat/0", "cat/2", "cat/4", "dog/3", "dog/5"]
    assert set(first.sizes) == {sample.id for sample in first.dataset.samples}
    again = prepare(run)
    assert again.sizes == first.sizes and again.dataset.samples == first.dataset.samples


def test_too_many_broken_images_leave_no_trace(run: Run) -> None:
    for name in ("dog/1.png", "dog/3.png"):
        (run.data_root() / name).write_bytes(b"")
    with pytest.raises(DataError, match=r"2 of 6 training images cannot be read, expected at most 30%"):
        prepare(run)
    assert not run.data_file.exists()


def added(data: Path) -> None:
    Image.new("RGB", (9, 9)).save(data / "cat" / "new.png")


def removed(data: Path) -> None:
    (data / "cat/4.png").unlink()


def moved(data: Path) -> None:
    (data / "cat/4.png").rename(data / "dog/4.png")


def renamed_class(data: Path) -> None:
    (data / "dog").rename(data / "wolf")


def moved_to_validation(data: Path) -> None:
    (data / "tags.csv").write_text(
        "image,tags,split\n" + "".join(f"{c}/{i}.png,{c},{'val' if i == 5 else 'train'}\n"
                                       for i in range(6) for c in [("cat", "dog")[i % 2]])
    )  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (added, r"1 image added \(first "),
        (removed, r"1 image gone \(first "),
        (moved, r"1 image added \(first .*\); 1 image gone \(first "),
        (
            renamed_class,
            r"3 images added \(first wolf/.*\); 3 images gone \(first dog/.*class wolf is new; class dog is",
        ),
        (moved_to_validation, r"1 image in another split \(first dog/5\)"),
    ],
)
def test_data_that_changed_since_the_run_began_is_refused(change: Callable[[Path], None], said: str, run: Run) -> None:
    prepare(run)
    change(run.data_root())
    expected = rf"run: the images or tags in .*data have changed since this run began: {said}.*--force.*another --out"
    with pytest.raises(RunError, match=expected):
        prepare(run)


def test_the_same_data_described_in_another_way_is_accepted(run: Run) -> None:
    first = prepare(run)
    rows = "".join(f"{sample.id}.png,{sample.id.split('/')[0]}\n" for sample in first.dataset.samples)
    (run.data_root() / "tags.csv").write_text("image,tags\n" + rows)
    assert prepare(run) == first


def test_notes_are_logged_once(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    (run.data_root() / "empty").mkdir()
    for expected in (1, 1):
        with caplog.at_level(logging.WARNING, "tagseg"):
            prepare(run)
        assert caplog.text.count("folder empty has no images and is left out") == expected


def test_progress_is_reported_the_first_time_only(run: Run) -> None:
    seen = []

    def track(items, title, total):  # type: ignore[no-untyped-def]
        seen.append((title, total))
        return iter(items)

    prepare(run, track)
    prepare(run, track)
    assert seen == [("check images", 6)]


def test_prepared_data_cannot_be_changed(run: Run) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        prepare(run).sizes = {}  # type: ignore[misc]


def test_a_saliency_map_that_was_replaced_is_noticed_where_it_is_used(run: Run) -> None:
    folder = run.data_root() / "saliency"
    for name in ("cat/0", "dog/1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (10, 8)).save(folder / f"{name}.png")
    prepare(run)
    Image.new("L", (10, 8), 255).save(folder / "cat/0.png")
    (folder / "dog/1.png").unlink()
    prepare(run)  # its settings do not use them
    settings = dataclasses.replace(SETTINGS, masks=dataclasses.replace(SETTINGS.masks, saliency=True))
    run.settings_file.write_text(settings.to_toml())
    with pytest.raises(RunError, match=r"began: 2 images with another saliency map \(first cat/0\)"):
        prepare(run)
