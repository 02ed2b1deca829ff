"""The atlas: one self-contained HTML page about what the memory bank knows, and what new images attend to."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tagseg.data.images import read_image
from tagseg.data.prepare import prepare
from tagseg.errors import RunError
from tagseg.masks.palette import class_colours
from tagseg.rca.train import load_network
from tagseg.report.atlas_data import draw_region, show_entry, show_image, show_pair
from tagseg.report.bank_view import EntryPair, attended_areas, choose_samples, closest_pairs, find_regions, load_memory
from tagseg.report.crops import OutlineColour
from tagseg.report.render import css, render_page
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import map_kind
from tagseg.system.files import write_atomically
from tagseg.system.progress import Track, silent
from tagseg.training.device import choose_device

BACKGROUND: OutlineColour = (150, 150, 150)
"""Background's colour on this page: in masks it is black, which is lost on a photo."""

MOST_PAIRS = 6
"""So many likely confusions are shown."""

LARGEST_TABLE = 24
"""With more entries the table of all pairs is left out: nobody could read it."""


@dataclass(frozen=True)
class Atlas:
    """Where the atlas was written."""

    path: Path


def atlas(
    run: str | Path,
    images: Sequence[str | Path] = (),
    per_class: int = 60,
    out: str | Path | None = None,
    device: str = "auto",
    force: bool = False,
    track: Track = silent,
) -> Atlas:
    """Write the atlas of a run's memory bank: a page without any outside reference, of about 8 MB at most.

    Args:
        run: a run folder whose stage train has finished.
        images: new images, no tags needed: the page shows what each of their regions attends to.
        per_class: so many training images of each class are searched for regions.
        out: where to write the page; None: RUN/atlas.html.
        device: as `--device`.
        force: overwrite a page that exists.
        track: how to report progress.

    Raises:
        RunError: when the run has not been trained, its bank is empty, the page exists and `force` is not given, or
            another process is at work on the run that the page goes into.
        DataError: when an image cannot be read.
        ValueError: when `per_class` is below 1 or the device is not there.
    """
    trained = Run(Path(run))
    trained.require("train")
    path = trained.atlas_file if out is None else Path(out)
    if path.exists() and not force:
        raise RunError(f"{path}: exists; choose another --out or --force")
    if per_class < 1:
        raise ValueError(f"--per-class: got {per_class}, expected at least 1 image")
    new = [Path(image) for image in images]
    if path != trained.atlas_file:
        write_atomically(path, render(trained, new, per_class, device, track))
        return Atlas(path)
    with hold_lock(trained.root):
        write_atomically(path, render(trained, new, per_class, device, track))
        trained.note("atlas")
    return Atlas(path)


def render(run: Run, images: Sequence[Path], per_class: int, device: str, track: Track = silent) -> str:
    """Return the atlas's HTML; arguments as for `atlas`."""
    settings = run.settings()
    megapixels, side = settings.data.max_megapixels, settings.localise.max_side
    new = [(path.name, read_image(path, megapixels)) for path in images]
    network, classes = load_network(run.network, choose_device(device))
    memory = load_memory(run, network)
    samples = choose_samples(prepare(run, track).dataset.split("train"), len(classes), per_class)
    seen = find_regions(network, memory, samples, settings, track)
    colours = [BACKGROUND, *class_colours(len(classes))[1:]]
    # A region may stand in several places of the page; it is drawn once.
    draw = functools.cache(
        functools.partial(draw_region, seen=seen, network=network, colours=colours, max_megapixels=megapixels)
    )
    pairs = closest_pairs(memory)
    return render_page(
        "atlas.html.j2",
        ("atlas.css",),
        ("viewer.js",),
        title="What the memory knows",
        version=run.manifest().tagseg or "(unknown)",
        run=str(run.root),
        names=("background", *classes),
        colours=[css(colour) for colour in colours],
        slots=memory.slots,
        temperature=network.rca.attention_temperature,
        use=_use(settings.localise, network.rca),
        looked=len(samples),
        regions=len(seen.samples),
        entries=[
            show_entry(memory, seen, entry, draw)
            for entry in track([*range(1, len(colours)), 0], "drawing the atlas", len(colours))
        ],
        confusions=[show_pair(pair, seen, draw) for pair in pairs[:MOST_PAIRS]],
        heat=_heat(pairs, len(colours)) if len(colours) <= LARGEST_TABLE else [],
        images=[
            show_image(name, image, attended_areas(network, memory, image, side), network, seen, colours, draw)
            for name, image in new
        ],
    )


def _use(localise: LocaliseSettings, rca: RcaSettings) -> str:
    """Say what the run uses attention for."""
    if not rca.aggregation:
        return "This run was trained without aggregation: it may find the regions to be contrasted, but makes no map."
    if map_kind(localise, rca) == "posterior":
        return "The maps and masks are made from it."
    return "The refined map is made with it."


def _heat(pairs: Sequence[EntryPair], entries: int) -> list[list[float | None]]:
    """Return the closest cosine of every two entries as a square table; None where there is none."""
    table: list[list[float | None]] = [[None] * entries for _ in range(entries)]
    for pair in pairs:
        one, two = pair.entries
        table[one][two] = table[two][one] = pair.similarity
    return table
