"""The demo data set has the documented layout, exact masks, reproducible bytes and enough images of every class."""

import csv
import itertools
import json
import os
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tagseg.demo.draw import HOMES, PALETTE, Thing, choose_tags, draw_demo, draw_scene, majority, paint_scene
from tagseg.demo.grounds import CLUTTER, GROUNDS
from tagseg.demo.paint import PAINTS, Part, blob, box, mirrored, paint, stroke
from tagseg.demo.shapes import CLASSES, OWN_COLOURS
from tagseg.errors import DataError, WriteError

SIDE = 64


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_demo(tmp_path_factory.mktemp("demo") / "set", train=24, val=6, side=SIDE)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "tags.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def mask_of(folder: Path, row: dict[str, str]) -> Path:
    return folder / "masks" / f"{Path(row['image']).stem}.png"


def test_layout_is_as_documented(demo: Path) -> None:
    assert sorted(path.name for path in demo.iterdir()) == ["classes.txt", "demo.json", "images", "masks", "tags.csv"]
    assert (demo / "tags.csv").read_text(encoding="utf-8").startswith("image,tags,split\nimages/0001.jpg,")
    assert (demo / "classes.txt").read_text(encoding="utf-8").split("\n") == [*CLASSES, ""]
    assert Counter(row["split"] for row in rows(demo)) == {"train": 24, "val": 6}
    names = [f"{number:04}" for number in range(1, 31)]
    assert [row["image"] for row in rows(demo)] == [f"images/{name}.jpg" for name in names]
    assert sorted(path.name for path in (demo / "images").iterdir()) == [f"{name}.jpg" for name in names]
    assert sorted(path.name for path in (demo / "masks").iterdir()) == [f"{name}.png" for name in names]


def test_pictures_are_rgb_and_masks_are_palette_files_of_one_size(demo: Path) -> None:
    for row in rows(demo):
        with Image.open(demo / row["image"]) as picture, Image.open(mask_of(demo, row)) as mask:
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (SIDE, SIDE))
            assert (mask.format, mask.mode, mask.size) == ("PNG", "P", (SIDE, SIDE))
            palette = mask.getpalette()
            assert palette is not None and tuple(palette[: len(PALETTE)]) == PALETTE
    assert len(PALETTE) == 3 * (len(CLASSES) + 1)


def test_mask_ids_are_exactly_the_tags_and_every_tag_is_clearly_visible(demo: Path) -> None:
    names = list(CLASSES)
    for row in rows(demo):
        ids = np.asarray(Image.open(mask_of(demo, row)))
        seen = np.bincount(ids.ravel())
        tags = row["tags"].split(" ")
        assert 1 <= len(tags) <= 3
        assert [names[i - 1] for i in np.flatnonzero(seen) if i > 0] == tags
        assert seen[0] > 0 and min(seen[seen > 0]) >= 30


def test_same_seed_same_bytes_other_seed_other_pictures(demo: Path, tmp_path: Path) -> None:
    first, second, third = (
        draw_demo(tmp_path / str(i), 6, 0, seed=seed, side=SIDE) for i, seed in enumerate((3, 3, 4))
    )
    assert contents(first) == contents(second)
    assert contents(first)["images/0001.jpg"] != contents(third)["images/0001.jpg"]


def test_classes_have_their_own_colours_or_share_all(demo: Path) -> None:
    assert set(OWN_COLOURS) == set(CLASSES)
    paints = {colour for pots in OWN_COLOURS.values() for colour in pots}
    assert paints == set(PAINTS)
    for name, pots in OWN_COLOURS.items():
        draws = [CLASSES[name](np.random.default_rng(seed), pots) for seed in range(40)]
        seen = {min(pots, key=lambda pot: float(np.ptp(np.array(part.colour) / pot))) for one in draws for part in one}
        assert seen == set(pots)
    own, shared = (
        [draw_scene(("ladybird",), SIDE, (0, i), shared_colours=shared) for i in range(12)] for shared in (False, True)
    )
    reds = [
        [np.asarray(picture)[mask > 0].mean(0).argmax() == 0 for picture, mask in scenes] for scenes in (own, shared)
    ]
    assert all(reds[0]) and not all(reds[1])


def test_a_demo_of_an_earlier_edition_is_named(tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_text('{"edition": 1, "train": 6, "val": 0, "seed": 0, "side": 64}')
    with pytest.raises(DataError, match=r"drawn with edition 1, .*, not edition 2, .*; choose another folder"):
        draw_demo(tmp_path, 6, 0, side=SIDE)


def test_finished_demo_is_kept(tmp_path: Path) -> None:
    folder = draw_demo(tmp_path / "set", 6, 0, side=SIDE)
    (folder / "images" / "0001.jpg").write_bytes(b"touched")
    assert draw_demo(folder, 6, 0, side=SIDE) == folder
    assert (folder / "images" / "0001.jpg").read_bytes() == b"touched"


def test_other_content_is_never_overwritten(tmp_path: Path) -> None:
    folder = draw_demo(tmp_path / "set", 6, 0, side=SIDE)
    before = contents(folder)
    with pytest.raises(DataError, match=r"drawn with .*seed 0.*, not .*seed 1"):
        draw_demo(folder, 6, 0, seed=1, side=SIDE)
    assert contents(folder) == before
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "a.txt").write_text("dear")
    with pytest.raises(DataError, match="letters: exists and is not a finished demo"):
        draw_demo(tmp_path / "letters", 6, 0, side=SIDE)
    (tmp_path / "letters" / "demo.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match="letters: exists and is not a finished demo"):
        draw_demo(tmp_path / "letters", 6, 0, side=SIDE)
    with pytest.raises(DataError, match=r"a\.txt: exists"):
        draw_demo(tmp_path / "letters" / "a.txt", 6, 0, side=SIDE)


def test_an_interruption_leaves_an_empty_folder_that_can_be_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()

    def interrupted(items, title, total):  # type: ignore[no-untyped-def]
        yield from itertools.islice(items, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw_demo(tmp_path / "set", 6, 0, side=SIDE, track=interrupted)
    assert list(tmp_path.rglob("*")) == [tmp_path / "set"]
    draw_demo(tmp_path / "set", 6, 0, side=SIDE)
    assert json.loads((tmp_path / "set" / "demo.json").read_text(encoding="utf-8"))["train"] == 6


def test_what_a_killed_command_leaves_is_deleted(tmp_path: Path) -> None:
    child = os.fork()
    if not child:

        def killed(items, title, total):  # type: ignore[no-untyped-def]
            yield from itertools.islice(items, 2)
            os.kill(os.getpid(), signal.SIGKILL)

        draw_demo(tmp_path / "set", 6, 0, side=SIDE, track=killed)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["set"], "nothing beside the folder"
    draw_demo(tmp_path / "set", 6, 0, side=SIDE)
    assert contents(tmp_path / "set") == contents(draw_demo(tmp_path / "other", 6, 0, side=SIDE))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": 5}, "got 5 training"),
        ({"val": -1}, "and -1 validation"),
        ({"side": 32}, "side of 32"),
        ({"seed": -1}, "seed -1"),
    ],
)
def test_parameters_out_of_range_are_refused(tmp_path: Path, arguments: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        draw_demo(tmp_path / "set", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_class_is_frequent_and_every_pair_occurs_together_and_apart(seed: int) -> None:
    chosen = [choose_tags(index, np.random.default_rng([seed, index])) for index in range(320)]
    frequency = Counter(tag for tags in chosen for tag in tags)
    assert min(frequency[name] for name in CLASSES) >= 40
    assert {len(tags) for tags in chosen} == {1, 2, 3}
    for one, other in itertools.permutations(CLASSES, 2):
        assert sum(one in tags and other in tags for tags in chosen) >= 3
        assert sum(one in tags and other not in tags for tags in chosen) >= 40


def test_no_class_is_rare_in_a_small_demo() -> None:
    chosen = [choose_tags(index, np.random.default_rng([0, index])) for index in range(30)]
    assert all(sum(name in tags for tags in chosen) >= 5 for name in CLASSES)


def test_a_scene_that_hides_a_tagged_thing_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plans = []

    def plan(tags: tuple[str, ...], random: np.random.Generator) -> list[Thing]:
        fish = Thing("fish", 3, 0.3, 0.5, 0.2, 0.0, False)
        ball = Thing("ball", 0, 0.3 if not plans else 0.8, 0.5, 0.3, 0.0, False)
        plans.append(ball)
        return [fish, ball]

    monkeypatch.setattr("tagseg.demo.draw.plan_scene", plan)
    _, mask = draw_scene(("fish",), SIDE, (0, 0))
    assert len(plans) == 2
    assert np.unique(mask).tolist() == [0, 3]


def test_the_thing_in_front_owns_the_pixel() -> None:
    back = Thing("ladybird", 4, 0.5, 0.5, 0.4, 0.0, False)
    front = Thing("ball", 0, 0.5, 0.5, 0.1, 0.0, False)
    picture, owners = paint_scene([back, front], "brick", 96, np.random.default_rng(0))
    assert picture.size == (96, 96)
    assert owners[48, 48] == 2 and owners[48, 66] == 1 and owners[2, 2] == 0


def test_majority_agrees_with_a_case_worked_by_hand() -> None:
    fine = np.zeros((6, 6), np.uint8)
    fine[:3, :3] = [[5, 5, 5], [5, 5, 0], [0, 0, 0]]
    fine[:3, 3:] = [[5, 5, 0], [5, 5, 0], [0, 0, 0]]
    fine[3:, :3] = [[1, 1, 1], [5, 5, 5], [0, 0, 5]]
    assert majority(fine, 2).tolist() == [[5, 0], [5, 0]]


@pytest.mark.parametrize("shape", [*CLASSES, *CLUTTER])
def test_shapes_fit_the_unit_disc(shape: str) -> None:
    for seed in range(8):
        random = np.random.default_rng(seed)
        for part in CLASSES[shape](random, PAINTS) if shape in CLASSES else CLUTTER[shape](random):
            if not part.inside:
                assert np.linalg.norm(part.outline, axis=1).max() < 1.3


@pytest.mark.parametrize("ground", GROUNDS)
def test_grounds_have_texture(ground: str) -> None:
    picture, owners = paint_scene([], ground, 96, np.random.default_rng(1))
    assert owners.max() == 0
    assert np.asarray(picture, dtype=float).std(axis=(0, 1)).max() > 5


def test_homes_are_grounds() -> None:
    assert set(HOMES) == set(CLASSES) and set(HOMES.values()) <= set(GROUNDS)


def test_inside_parts_stay_inside_the_silhouette() -> None:
    red, blue = (200, 0, 0), (0, 0, 200)
    parts = [Part(box(-0.5, -0.5, 0.5, 0.5), red), Part(box(-1, -0.1, 1, 0.1), blue, inside=True)]
    picture, silhouette = paint(parts, 40.0, 0.0, False, np.random.default_rng(0))
    inside = np.asarray(silhouette) > 0
    assert inside.sum() == pytest.approx(40 * 40, rel=0.06)
    assert set(np.unique(np.asarray(silhouette))) == {0, 255}
    assert np.asarray(picture)[~inside].max() == 0
    assert (np.asarray(picture)[inside].argmax(axis=1) == 2).mean() == pytest.approx(0.2, abs=0.04)


def test_paint_turns_and_mirrors() -> None:
    parts = [Part(box(0.2, -0.1, 0.9, 0.1), (200, 200, 200))]
    middles = []
    for turn, mirror in ((0.0, False), (0.0, True), (np.pi / 2, False)):
        covered = np.asarray(paint(parts, 40.0, turn, mirror, np.random.default_rng(0))[1])
        middles.append(np.argwhere(covered).mean(axis=0) - (len(covered) - 1) / 2)
    assert np.allclose(middles, [(0, 22), (0, -22), (22, 0)], atol=1.5)


def test_blob_passes_through_its_corners_and_stroke_has_its_width() -> None:
    corners = [(0.0, -1.0), (1.0, 0.0), (0.0, 1.0), (-1.0, 0.0)]
    assert np.allclose(blob(corners)[::8], corners)
    assert np.allclose(stroke([(0, 0), (1, 0)], 0.2), [(0, 0.1), (1, 0.1), (1, -0.1), (0, -0.1)])


def test_mirrored_does_not_double_corners_on_the_axis() -> None:
    assert mirrored([(0, -1), (2, 0), (0, 1)]) == [(0, -1), (2, 0), (0, 1), (-2, 0)]
    assert mirrored([(1, 0), (2, 3)]) == [(1, 0), (2, 3), (-2, 3), (-1, 0)]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no limits here")
def test_a_picture_that_the_disk_does_not_hold_is_an_error(tmp_path: Path) -> None:
    """Pillow by itself would leave half of a JPEG and say nothing."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(WriteError, match=r"demo: cannot be written: it exceeds the largest size of a file"):
            draw_demo(tmp_path / "demo", train=8, val=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())
