"""Commands that look at data, at masks, at what a run has learned, and at how much of it is due to what."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from tagseg.cli.app import MAIN, Force, Options, RunFolder, SettingsFile, app, name_text, out, say
from tagseg.settings.settings import Settings
from tagseg.system.progress import bars


@app.command(group=MAIN, sort_key=2)
def inspect(
    data: Annotated[Path, Parameter(name="DATA", help="Folder of tagged images.")],
    /,
    *,
    settings_file: SettingsFile = None,
    settings: Options = Settings(),
) -> None:
    """Show what tagseg sees in a data folder, and what may go wrong with it.

    tagseg inspect photos/
    """
    import dataclasses

    from tagseg.data.inspect import inspect
    from tagseg.data.read import read_dataset

    lenient = dataclasses.replace(settings.data, min_images=1)
    show_inspection(inspect(read_dataset(data, lenient, settings.cache), settings.data, bars), settings.data.min_images)


@app.command(group=MAIN, sort_key=3)
def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the drawn images (data) and the run.")] = Path("runs/demo"),
    seed: Annotated[int, Parameter(help="Seed of the drawing and the training.")] = 0,
    device: Annotated[str, Parameter(help="Where to compute: auto, cpu, cuda, mps.")] = "auto",
) -> None:
    """Draw a small data set and run everything on it; needs no data, no network, no GPU.

    tagseg demo
    tagseg demo --out /tmp/demo --seed 1
    """
    from tagseg.studies.demo import run_demo

    say("The demo draws its own images and trains small networks from scratch: its figures say what the steps do, not")
    say("what tagseg reaches on photographs with pretrained weights.")
    fitted = run_demo(out, seed, device, bars)
    say(fitted.evaluation.table())
    say(f"Report: {fitted.report}")


@app.command(group=MAIN, sort_key=4)
def ablate(
    data: Annotated[Path, Parameter(name="DATA", help="Folder of tagged images, some with true masks to score with.")],
    /,
    *,
    out: Annotated[Path, Parameter(help="Folder of the runs and of the table; an existing one is continued.")],
    seeds: Annotated[int, Parameter(help="How many seeds every arm is trained with.")] = 3,
    first_seed: Annotated[int | None, Parameter(help="The first of them; --seed where it is not given.")] = None,
    arms: Annotated[str, Parameter(help="Arms to train, with commas between.")] = "cam,contrast,aggregation,both",
    settings_file: SettingsFile = None,
    force: Force = False,
    settings: Options = Settings(),
) -> None:
    """Train with and without contrast and aggregation, same seeds, and compare the masks with true ones.

    Writes a table and a picture after every run. Run it again to continue after an interruption.
    Several shells may share a folder: give each its own arms.

        tagseg ablate VOC2012/ --out runs/ablation --seeds 3
        tagseg ablate photos/ --out runs/ablation --arms cam,both --first-seed 3 --seeds 2
    """
    import dataclasses

    from tagseg.studies.ablation.ablate import ablate

    if first_seed is not None:
        settings = dataclasses.replace(settings, seed=first_seed)
    done = ablate(data, out, settings, seeds, bars, arms.split(","), force)
    say(done.table())
    say(f"Table and picture: {out / 'ablation.md'}, {out / 'ablation.svg'}")


@app.command(group=MAIN, sort_key=5)
def atlas(
    run: RunFolder,
    /,
    *,
    image: Annotated[
        tuple[Path, ...],
        Parameter(help="New image, no tags needed: show what its regions attend to. Repeatable.", show_default=False),
    ] = (),
    per_class: Annotated[int, Parameter(help="Training images of each class to search for regions.")] = 60,
    out: Annotated[Path | None, Parameter(help="Page to write; by default RUN/atlas.html.")] = None,
    device: Annotated[str, Parameter(help="Where to compute: auto, cpu, cuda, mps.")] = "auto",
    force: Annotated[bool, Parameter(negative=(), help="Overwrite a page that exists.")] = False,
) -> None:
    """Write a page that shows what the memory bank knows: prototypes, the regions nearest to them, likely confusions.

    tagseg atlas runs/a
    tagseg atlas runs/a --image new/1.jpg --image new/2.jpg --out atlas.html
    """
    from tagseg.report.atlas import atlas

    say(f"Atlas: {atlas(run, image, per_class, out, device, force, bars).path}")


@app.command(group=MAIN, sort_key=6)
def calibrate(
    run: RunFolder,
    /,
    *,
    masks: Annotated[
        Path,
        Parameter(help="Folder of true masks, 5 to 50, named like training images; values as in the data's own masks."),
    ],
    apply: Annotated[
        bool, Parameter(negative=(), help="Change the run's settings if the gain is certain; undoes masks and later.")
    ] = False,
) -> None:
    """Choose the mask settings with a handful of true masks, and say how sure the choice is.

    Tries background rules, then dense CRFs. The images used are never scored again.

        tagseg calibrate runs/a --masks drawn/
        tagseg calibrate runs/a --masks drawn/ --apply
    """
    from tagseg.evaluate.calibrate import calibrate

    found = calibrate(run, masks, apply, bars)
    say(found.table())
    if apply and found.certain:
        say(f"Settings changed, masks and later stages discarded; go on with tagseg fit DATA --out {run}")
    elif apply:
        say("Nothing changed.")


@app.command(group=MAIN, sort_key=7)
def doctor(run: RunFolder, /) -> None:
    """Check every file of a run folder against its checksum, and say what is damaged and what to do about it.

    Ends with status 1 where something is damaged. Nothing is changed.

        tagseg doctor runs/a
    """
    from tagseg.run.doctor import examine

    found = examine(run, bars)
    for line in found.lines():
        say(line)
    if found.damage:
        raise SystemExit(1)


def show_inspection(found: Any, min_images: int) -> None:
    """Print an Inspection as tables and warnings."""
    say(f"Layout {found.layout}: " + ", ".join(
        f"{count} {split} images ({found.masks[split]} with masks, {found.saliency[split]} with saliency maps)"
        for split, count in found.images.items() if count
    ))  # fmt: skip
    if found.smallest and found.largest:
        (h, w), (tall, wide) = found.smallest, found.largest
        say(f"Sizes from {w} x {h} to {wide} x {tall} pixels")
    counts = Table(title="Images per class")
    for column in ("class", *found.per_class):
        counts.add_column(column, justify="left" if column == "class" else "right")
    for i, name in enumerate(found.classes):
        counts.add_row(name_text(name), *(str(count[i]) for count in found.per_class.values()))
    out.print(counts)
    tags = ", ".join(f"{images} with {n}" for n, images in sorted(found.tags_per_image.items()))
    say(f"Tags per training image: {tags}")
    if len(found.classes) <= 25:
        together = Table(title="Training images in which two classes appear together")
        for column in ("", *found.classes):
            together.add_column(name_text(column), justify="right")
        for i, name in enumerate(found.classes):
            together.add_row(name_text(name), *(str(n) if n else "." for n in found.together[i]))
        out.print(together)
    for note in found.notes:
        say(f"Note: {note}")
    warnings = [
        f"{a} never appears without {b}: tags cannot tell them apart. Add images of {a} alone."
        for a, b in found.never_apart
    ]
    rare = [(name, n[i]) for i, name in enumerate(found.classes) if (n := found.per_class["train"])[i] < min_images]
    warnings += [
        f"{name} has {n} training images, fewer than --data.min-images {min_images}: fit will refuse."
        for name, n in rare
    ]
    warnings += [f"broken file, will be skipped: {path} ({reason})" for path, reason in found.broken]
    warnings += [f"same content: {', '.join(group)}" for group in found.duplicates]
    for line in warnings:
        out.print(f"! {line}", markup=False, style="yellow")
    if not warnings:
        out.print("Nothing suspicious found.", style="green")
