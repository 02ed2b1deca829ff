"""Clicks and brush strokes of the review page: what a person fixes in one image."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from tagseg.errors import RunError
from tagseg.review.queue import Queue, ReviewItem
from tagseg.run.folder import Run
from tagseg.run.taught import Answer, Places, click_answer

MOST_STROKE_POINTS = 1000
"""Most points of a stroke."""

FindRegion = Callable[[str, float, float], tuple[list[int], tuple[int, int]]]
"""Returns the cells of the region around a point (x, y as shares) of an image, by its id, and the map's (height, width)
in cells."""


def region_finder(run: Run) -> FindRegion:
    """Return a function that grows regions in the cached features of a run; it reads network and cache when it is first
    called.

    The function raises a RunError when the run was not made from frozen features.
    """

    @functools.cache
    def features() -> Callable[[str], Any]:
        settings = run.settings()
        if settings.train.method != "frozen" or not run.done("train"):
            raise RunError(
                f"{run.root}: must be made from frozen features for clicks, found train.method = "
                f"{settings.train.method}; use brush and eraser, or fit with --quality fast or balanced"
            )
        import torch  # here, because the review page does without it otherwise

        from tagseg.features.cache import open_features
        from tagseg.rca.heads import fine_features
        from tagseg.rca.train import load_network

        network, _ = load_network(run.network, torch.device("cpu"))
        return functools.partial(fine_features, network, open_features(run.features))

    def find(sample_id: str, x: float, y: float) -> tuple[list[int], tuple[int, int]]:
        from tagseg.rca.taught import grow_region

        map_ = features()(sample_id)
        return grow_region(map_, x, y).tolist(), (map_.shape[1], map_.shape[2])

    return find


def read_fix(values: Mapping[str, Any], queue: Queue, item: ReviewItem, find: FindRegion) -> Answer:
    """Return the click or stroke in a request's JSON, `{"id", "kind", "class", "points", "radius"}`: points are (x, y)
    as shares of width and height, the radius is a share of the long side, and class 0 is background. A class that the
    image is not tagged with is a missing tag.

    Raises:
        ValueError: when it is neither; says what was expected.
        RunError: when a click needs features that the run does not have.
    """
    expected = {"id", "kind", "class", "points", "radius"}
    if set(values) != expected:
        raise ValueError(f"got {sorted(values)!r:.200}, expected {sorted(expected)}")
    kind, class_id, points, radius = values["kind"], values["class"], values["points"], values["radius"]
    if type(class_id) is not int or not 0 <= class_id <= len(queue.classes):
        raise ValueError(
            f"class must be 0 (background) or the id of a class, 1 to {len(queue.classes)}, found {class_id!r:.50}"
        )
    if not isinstance(points, list) or not 0 < len(points) <= MOST_STROKE_POINTS or not all(map(_is_point, points)):
        raise ValueError(f"points must be 1 to {MOST_STROKE_POINTS} pairs of numbers from 0 to 1")
    name = queue.classes[class_id - 1] if class_id else ""
    if kind == "click":
        cells, grid = find(item.sample.id, *points[0])
        return click_answer(item.sample.id, cells, grid, name)
    if kind != "brush" or type(radius) not in (int, float) or not 0 < radius <= 0.5:
        raise ValueError(
            f"kind must be click or brush, a radius above 0 and at most 0.5, found {kind!r:.50}, {radius!r:.50}"
        )
    places = (Places(item.sample.id, tuple((float(x), float(y)) for x, y in points)),)
    meaning = "class" if name else "background"
    return Answer(kind="brush", meaning=meaning, name=name, places=places, radius=float(radius))  # type: ignore[arg-type]


def _is_point(one: object) -> bool:
    return isinstance(one, list) and len(one) == 2 and all(type(at) in (int, float) and 0 <= at <= 1 for at in one)
