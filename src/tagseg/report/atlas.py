"""The atlas: one self-contained HTML page that shows what a memory bank holds and what new images attend to."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tagseg.data.images import read_image
from tagseg.data.prepare import prepare
from tagseg.errors import RunError
from tagseg.masks.palette import shown_colours
from tagseg.rca.train import load_network
from tagseg.report.atlas_data import draw_region, show_entry, show_image, show_pair
from tagseg.report.atlas_taught import show_taught
from tagseg.report.bank_view import EntryPair, attended_areas, choose_samples, closest_pairs, find_regions, load_memory
from tagseg.report.crops import OutlineColour
from tagseg.report.render import css, render_page
from tagseg.run.folder import Run
from tagseg.run.lock import hold_lock
from tagseg.settings.bounds import AtLeastOne, check_value
from tagseg.settings.localise import LocaliseSettings
from tagseg.settings.rca import RcaSettings
from tagseg.settings.settings import map_kind
from tagseg.system.files import write_output
from tagseg.system.progress import Track, silent
from tagseg.training.device import choose_device

BACKGROUND_COLOUR: OutlineColour = (150, 150, 150)
"""Background's colour on this page; masks have it black, which is hard to see on a photo."""

MOST_PAIRS = 6
"""How many likely confusions are shown."""

LARGEST_TABLE = 24
"""With more entries, the table of all pairs is left out because it would be unreadable."""


@dataclass(frozen=True)
class Atlas:
    """The path of the atlas that was written."""

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
    """Write the atlas of a run's memory bank: one HTML file of at most about 8 MB that loads nothing else.

    Args:
        run: a run folder whose stage train has finished.
        images: new images, without tags; the page shows what each of their regions attends to.
        per_class: how many training images of each class to search for regions.
        out: where to write the page; None: RUN/atlas.html.
        device: as `--device`.
        force: replace an existing page.
        track: how to report progress.

    Raises:
        RunError: when the run has not been trained, its bank is empty, the page exists and `force` is not given, or the
            page goes into the run and another process is using the run.
        DataError: when an image cannot be read.
        ValueError: when `per_class` is below 1 or the device is not available.
    """
    trained = Run(Path(run))
    trained.require("train")
    path = trained.atlas_file if out is None else Path(out)
    check_value("--per-class", per_class, AtLeastOne)
    new = [Path(image) for image in images]
    if path != trained.atlas_file:
        _require_free(path, force)
        write_output(path, render_atlas(trained, new, per_class, device, track))
        return Atlas(path)
    with hold_lock(trained.root) as finished:
        _require_free(path, force or finished == "atlas")
        page = render_atlas(trained, new, per_class, device, track)
        with trained.changing("atlas") as (_, draft):
            draft.write(path.name, page)
            draft.note("atlas")
    return Atlas(path)


def _require_free(path: Path, force: bool) -> None:
    if path.exists() and not force:
        raise RunError(f"{path}: exists; choose another --out or --force")


def render_atlas(run: Run, images: Sequence[Path], per_class: int, device: str, track: Track = silent) -> str:
    """Return the HTML of the atlas; arguments as for `atlas`."""
    settings = run.settings()
    megapixels, side = settings.data.max_megapixels, settings.localise.max_side
    new = [(path.name, read_image(path, megapixels)) for path in images]
    network, classes = load_network(run.network, choose_device(device))
    memory = load_memory(run, network)
    every = prepare(run, track).dataset.split("train")
    samples = choose_samples(every, len(classes), per_class)
    regions = find_regions(network, memory, samples, settings, track)
    colours = [BACKGROUND_COLOUR, *shown_colours(len(classes))[1:]]
    # A region may appear several times on the page; it is drawn once.
    draw = functools.cache(
        functools.partial(draw_region, regions=regions, network=network, colours=colours, max_megapixels=megapixels)
    )
    pairs = closest_pairs(memory)
    return render_page(
        "atlas.html.j2",
        ("atlas.css",),
        ("viewer.js",),
        title="Memory bank atlas",
        version=run.manifest().tagseg or "(unknown)",
        run=str(run.root),
        names=("background", *classes),
        colours=[css(colour) for colour in colours],
        slots=memory.slots,
        temperature=network.rca.attention_temperature,
        use=_use_of_attention(settings.localise, network.rca),
        searched=len(samples),
        regions=len(regions.samples),
        entries=[
            show_entry(memory, regions, entry, draw)
            for entry in track([*range(1, len(colours)), 0], "drawing the atlas", len(colours))
        ],
        taught=show_taught(run, network, memory, every, colours),
        confusions=[show_pair(pair, regions, draw) for pair in pairs[:MOST_PAIRS]],
        similarities=_similarities(pairs, len(colours)) if len(colours) <= LARGEST_TABLE else [],
        images=[
            show_image(name, image, attended_areas(network, memory, image, side), network, regions, colours, draw)
            for name, image in new
        ],
    )


def _use_of_attention(localise: LocaliseSettings, rca: RcaSettings) -> str:
    if not rca.aggregation:
        return "This run was trained without aggregation: attention makes no maps, but may select regions for contrast."
    if map_kind(localise, rca) == "posterior":
        return "This run makes its maps and masks from attention."
    return "This run uses attention to make the refined map."


def _similarities(pairs: Sequence[EntryPair], entries: int) -> list[list[float | None]]:
    """Return the largest cosine of every two entries as a square table; None where there is none."""
    table: list[list[float | None]] = [[None] * entries for _ in range(entries)]
    for pair in pairs:
        one, two = pair.entries
        table[one][two] = table[two][one] = pair.similarity
    return table
