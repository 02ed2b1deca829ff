"""Commands to start with: demo, inspect."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from tagseg.cli.app import START, Options, SettingsFile, command, name_text, out, say, say_tables
from tagseg.run.clock import Clock
from tagseg.settings.settings import Settings
from tagseg.system.files import as_bytes
from tagseg.system.progress import bars
from tagseg.system.untrusted import printable

if TYPE_CHECKING:
    from tagseg.data.inspect import Inspection

_MOST_CLASSES = 25
"""With more classes, the table of classes that appear together would not fit a terminal."""


@command(START, 0)
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the drawn images (OUT/data) and the run (OUT/run).")] = Path(
        "runs/demo"
    ),
    seed: Annotated[int, Parameter(help="Seed of the drawing and of the training.")] = 0,
    device: Annotated[str, Parameter(help="Where to compute: auto, cpu, cuda, mps.")] = "auto",
    quick: Annotated[
        bool, Parameter(negative=(), help="Fewer images, in 70 % of the time; the masks are worse.")
    ] = False,
) -> None:
    """Run everything on drawn images: no data, no downloads, no GPU.

    Writes the images, masks, two small networks trained from scratch, figures, a report, and a picture of it all,
    OUT/demo.jpg.

        tagseg demo
        tagseg demo --quick --out runs/quick
        tagseg demo --out runs/second --seed 1
    """
    from tagseg.studies.demo import PICTURE, run_demo

    say("The demo draws its own images and trains small networks from scratch. Its figures show what each step does,")
    say("not what tagseg reaches on photographs with pretrained weights.")
    fitted = run_demo(out, seed, device, Clock(), quick)
    say_tables(fitted.evaluation.table())
    say(f"Picture    {out / PICTURE}")
    say(f"Report     {fitted.report}")


@command(START, 1, sections=("data", "features"))
def inspect(
    data: Annotated[Path, Parameter(name="DATA", help="Folder of tagged images.")],
    /,
    *,
    settings_file: SettingsFile = None,
    settings: Options = Settings(),
) -> None:
    """Show what tagseg reads from a data folder, and what may go wrong.

    Prints the layout, images per class, tags that always appear together, broken files, duplicates, and a verdict with
    the time and the disk space that fit takes. Writes nothing.

        tagseg inspect photos/
        tagseg inspect photos/ --train.backbone resnet50 --features.channels 64
    """
    from tagseg.data.inspect import inspect
    from tagseg.data.read import read_dataset

    lenient = dataclasses.replace(settings.data, min_images=1)
    found = inspect(read_dataset(data, lenient, settings.cache), settings.data, bars)
    show_inspection(found, settings.data.min_images, estimated(found, settings))


def estimated(found: "Inspection", settings: Settings) -> str:
    """Return how long fit takes on this machine, and how much disk the features take."""
    from tagseg.run.estimate import features_bytes, in_words, machine_speed, stage_seconds
    from tagseg.settings.presets import DEFAULT_QUALITY, preset

    if settings.train.method != "frozen":  # as fit does without flags
        train = dataclasses.replace(settings.train, method="frozen")
        settings = dataclasses.replace(preset(DEFAULT_QUALITY), train=train, features=settings.features)
    size = features_bytes(settings, found.sizes)
    if size is None:
        from tagseg.features.plan import estimate_cache  # PyTorch: the default backbone does without

        size = estimate_cache(found.sizes, settings.train, settings.features).size
    seconds = sum(stage_seconds(settings, found.sizes, machine_speed()).values())
    return f"{in_words(seconds)} on this machine; {as_bytes(size)} of disk for features"


def show_inspection(found: "Inspection", min_images: int, costs: str) -> None:
    """Print what was found as tables, notes and warnings, and a verdict at the end; `costs` says what fit takes."""
    say(f"Layout {found.layout}: " + ", ".join(
        f"{count} {split} images ({found.masks[split]} with masks, {found.saliency[split]} with saliency maps)"
        for split, count in found.images.items() if count
    ))  # fmt: skip
    if found.smallest and found.largest:
        (h, w), (tall, wide) = found.smallest, found.largest
        say(f"Sizes from {w} x {h} to {wide} x {tall} pixels")
    _show_classes(found)
    for note in found.notes:
        say(f"Note: {note}")
    for one in found.ignored:
        if one.expected:
            say(f"Not used: {one}")
    warnings = list(_warnings(found, min_images))
    for line in warnings:
        out.print(f"! {printable(line)}", markup=False, style="yellow")
    if not warnings:
        out.print("Nothing suspicious found.", style="green")
    few = sum(count < min_images for count in found.per_class["train"])
    if few:
        say(f"Not usable yet: {few} of {len(found.classes)} classes have fewer than {min_images} training images.")
    else:
        doubts = f", with {len(warnings)} doubts" if len(warnings) > 1 else ", with one doubt" if warnings else ""
        say(f"Usable{doubts}; {costs}.")


def _show_classes(found: "Inspection") -> None:
    counts = Table(title="Images per class")
    for column in ("class", *found.per_class):
        counts.add_column(column, justify="left" if column == "class" else "right")
    for i, name in enumerate(found.classes):
        counts.add_row(name_text(name), *(str(count[i]) for count in found.per_class.values()))
    out.print(counts)
    tags = ", ".join(f"{images} with {n}" for n, images in sorted(found.tags_per_image.items()))
    say(f"Tags per training image: {tags}")
    if len(found.classes) > _MOST_CLASSES:
        return
    together = Table(title="Training images in which two classes appear together")
    for column in ("", *found.classes):
        together.add_column(name_text(column), justify="right")
    for i, name in enumerate(found.classes):
        together.add_row(name_text(name), *(str(n) if n else "." for n in found.together[i]))
    out.print(together)


def _warnings(found: "Inspection", min_images: int) -> Iterator[str]:
    for one in found.ignored:
        if not one.expected:
            yield f"not used: {one}"
    yield from found.warnings
    for a, b in found.never_apart:
        yield f"{a} never appears without {b}: tags cannot tell them apart. Add images of {a} alone."
    for i, name in enumerate(found.classes):
        if (count := found.per_class["train"][i]) < min_images:
            yield f"{name} has {count} training images; fit requires --data.min-images {min_images}."
    for path, reason in found.broken:
        yield f"broken file, will be skipped: {path} ({reason})"
    for group in found.duplicates:
        yield f"same content: {', '.join(group)}"
