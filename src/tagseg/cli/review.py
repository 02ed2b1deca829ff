"""Commands that say how far to trust the masks, and let a person correct them: review, worst, calibrate, atlas."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.table import Table

from tagseg.cli.app import CHECK, RunFolder, command, name_text, out, say, say_tables
from tagseg.settings.bounds import AtLeastOne, Port
from tagseg.system.progress import bars

if TYPE_CHECKING:
    from tagseg.evaluate.ranking import Worst
    from tagseg.evaluate.suspects import Suspect


@command(CHECK, 0)
def review(
    run: RunFolder,
    /,
    *,
    scores: Annotated[
        bool, Parameter(negative="--no-scores", help="Score masks that have no score yet, as worst does.")
    ] = True,
    port: Annotated[Port, Parameter(help="Port to listen on (0: any free one).")] = 0,
    browser: Annotated[bool, Parameter(negative="--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Look through the masks in the browser, worst first.

    Accept, reject or flag masks, and switch off classes. Each decision is written into the run folder at once, and the
    next tagseg fit applies it. The page is served to this machine only, at an address with a secret token, until
    Ctrl-C.

        tagseg review runs/a
        tagseg review runs/a --port 8000 --no-browser
    """
    from tagseg.review.queue import read_queue
    from tagseg.review.server import review
    from tagseg.run.folder import Run

    opened = Run(run)
    if scores and opened.done("segment") and any(item.score is None for item in read_queue(opened).items):
        from tagseg.review.assess import assess

        assess(opened, bars)

    review(run, port, page_opener("Review", "decisions", browser))
    say("Stopped.")


def page_opener(title: str, kept: str, browser: bool) -> Callable[[str], None]:
    """Return what a page's server calls with its address: it prints the address, says what is kept when the server is
    stopped, and opens the page in the browser if asked."""

    def ready(address: str) -> None:
        say(f"{title}: {address}")
        say(f"Press Ctrl-C to stop; {kept} are kept.")
        if browser:
            open_browser(address)

    return ready


def open_browser(address: str) -> None:
    """Open a page in a browser with a window of its own, without waiting for it.

    The browser is given a file that leads to the page: its arguments are in the list of processes, where other users
    of this machine would read the token.
    """
    import threading
    import webbrowser

    page = private_page(address).as_uri()

    def open_it() -> None:
        try:
            browser = webbrowser.get()
        except webbrowser.Error:
            return
        # Text browsers, which would take over the terminal, are of this class; others are of its subclasses.
        if type(browser) is not webbrowser.GenericBrowser:
            browser.open(page)

    threading.Thread(target=open_it, daemon=True).start()


def private_page(address: str) -> Path:
    """Return a page that leads to an address and that only this user may read; it is deleted when the process ends."""
    import atexit
    import html
    import os
    import tempfile

    file, name = tempfile.mkstemp(prefix="tagseg-", suffix=".html")  # for its owner alone
    with os.fdopen(file, "w", encoding="utf-8") as opened:
        opened.write(f'<!doctype html><meta http-equiv="refresh" content="0; url={html.escape(address)}">')
    page = Path(name)
    atexit.register(page.unlink, missing_ok=True)
    return page


@command(CHECK, 1)
def worst(
    run: RunFolder,
    /,
    *,
    count: Annotated[AtLeastOne, Parameter(name=("--count", "-n"), help="Number of lines to print.")] = 20,
    tags: Annotated[
        bool, Parameter(negative=(), help="List tags that look wrong or missing instead of masks.")
    ] = False,
    csv: Annotated[Path | None, Parameter(help="Also write the whole list to this file.", show_default=False)] = None,
) -> None:
    """List the least trustworthy masks, or tags that look wrong.

    Reads the scores that tagseg fit computed, by how far the segmentation network and the mask agree; true masks are
    not needed. Scores that are missing are computed first. Prints the list, and with --csv writes the whole list.

        tagseg worst runs/a -n 50
        tagseg worst runs/a --tags --csv suspects.csv
    """
    from tagseg.data.prepare import prepare
    from tagseg.evaluate.ranking import suspects_to_csv, to_csv, worst_first
    from tagseg.evaluate.suspects import find_suspects
    from tagseg.review.assess import assess
    from tagseg.run.decisions import decisions
    from tagseg.run.folder import Run
    from tagseg.system.files import write_output

    opened = Run(run)
    prepared = prepare(opened)
    found, dataset = assess(opened, bars, prepared), prepared.dataset
    if tags:
        suspects = find_suspects(dataset, found)
        show_suspects(suspects[:count], dataset.classes, len(suspects))
        text = suspects_to_csv(suspects, dataset)
    else:
        settled = {name for name, one in decisions(opened).items() if one.verdict in ("accepted", "rejected")}
        ranked = worst_first(dataset, found, settled)
        show_worst(ranked[:count], len(ranked))
        text = to_csv(ranked)
    if csv is not None:
        write_output(csv, text)
        say(f"Whole list: {csv}")


@command(CHECK, 4)
def judge(
    where: Annotated[Path, Parameter(name="WHERE", help="A run folder, or a folder of tagged images to learn from.")],
    /,
    *,
    labels: Annotated[
        Path, Parameter(help="Folder of masks that another tool or a person made: PNGs named like the images.")
    ],
    out: Annotated[
        Path, Parameter(name=("--out", "-o"), help="Where to learn, if WHERE is a folder of images (--quality fast).")
    ] = Path("runs/judge"),
    count: Annotated[AtLeastOne, Parameter(name=("--count", "-n"), help="Number of lines to print.")] = 20,
    csv: Annotated[Path | None, Parameter(help="Also write the whole list to this file.", show_default=False)] = None,
) -> None:
    """Judge masks that another tool made, by tags alone.

    Prints which masks are least trustworthy, why, and which tags do not fit, according to networks that learned from
    the tags: neither from true masks nor from the judged ones. To choose how they learn, run tagseg fit first and name
    its run. Masks are read as --segment.labels reads them.

        tagseg judge photos/ --labels masks_of_another_tool/
        tagseg judge runs/a --labels masks_of_a_colleague/ --csv judged.csv
    """
    from tagseg.data.data_file import read_data_file
    from tagseg.evaluate.ranking import to_csv
    from tagseg.review.foreign import judge_masks
    from tagseg.run.clock import Clock
    from tagseg.run.folder import Run
    from tagseg.system.files import write_output

    run = where
    if not Run(where).manifest_file.exists():
        from tagseg.pipeline import fit_until
        from tagseg.settings.presets import preset

        run = out
        say(f"Learning from the tags in {where} first, into {out}.")
        settings = None if Run(out).manifest_file.exists() else preset("fast")
        fit_until(where, out, "segment", settings, track=Clock())
    found = judge_masks(run, labels, bars)
    show_worst(found.worst[:count], len(found.worst))
    if found.missing:
        say(f"{len(found.missing)} training images have no mask in {labels}, such as {found.missing[0]}.")
    show_suspects(found.suspects[:count], read_data_file(Run(run)).classes, len(found.suspects))
    if csv is not None:
        write_output(csv, to_csv(found.worst))
        say(f"Whole list: {csv}")


def show_worst(ranked: list["Worst"], total: int) -> None:
    """Print images with their scores as a table."""
    from tagseg.evaluate.ranking import classes_text

    say(f"{len(ranked)} of {total} masks, least trustworthy first (1: trust it, 0: do not):")
    table = Table()
    for column in ("score", "image", "classes", "why"):
        table.add_column(column, overflow="fold")
    for one in ranked:
        cells = (f"{one.score:.2f}", one.id, classes_text(one.classes), one.reason)
        table.add_row(*map(name_text, cells))
    out.print(table)


def show_suspects(suspects: list["Suspect"], classes: tuple[str, ...], total: int) -> None:
    """Print suspect tags as a table."""
    if not total:
        say("No tag looks wrong or missing.")
        return
    say(f"{len(suspects)} of {total} tags that are likely wrong or missing, most certain first:")
    table = Table()
    for column in ("doubt", "image", "tag", "likely"):
        table.add_column(column, overflow="fold")
    for one in suspects:
        cells = (f"{one.doubt:.2f}", one.id, classes[one.class_id - 1], one.kind)
        table.add_row(*map(name_text, cells))
    out.print(table)


@command(CHECK, 2)
def calibrate(
    run: RunFolder,
    /,
    *,
    masks: Annotated[
        Path,
        Parameter(
            help="Folder of 5 to 50 true masks, named like training images. Values as in the data's own true masks."
        ),
    ],
    apply: Annotated[
        bool,
        Parameter(negative=(), help="Change the run's settings if the gain is certain, and discard masks and later."),
    ] = False,
) -> None:
    """Choose the mask settings by a few true masks.

    Tries background rules, then dense CRFs, and says how certain the gain is. Writes calibration.json and
    calibration.md into the run folder. The images used are excluded from all later scores.

        tagseg calibrate runs/a --masks drawn/
        tagseg calibrate runs/a --masks drawn/ --apply
    """
    from tagseg.evaluate.calibrate import calibrate

    found = calibrate(run, masks, apply, bars)
    say_tables(found.table())
    if apply and found.certain:
        say(f"Settings changed; masks and later stages discarded. Continue: tagseg fit DATA --out {run}")
    elif apply:
        say("Nothing changed.")


@command(CHECK, 3)
def atlas(
    run: RunFolder,
    /,
    *,
    image: Annotated[
        tuple[Path, ...],
        Parameter(help="New image whose regions to match with the bank; needs no tags.", show_default=False),
    ] = (),
    per_class: Annotated[AtLeastOne, Parameter(help="Training images of each class to search for regions.")] = 60,
    out: Annotated[Path | None, Parameter(help="Page to write. By default RUN/atlas.html.")] = None,
    device: Annotated[str, Parameter(help="Where to compute: auto, cpu, cuda, mps.")] = "auto",
    force: Annotated[bool, Parameter(negative=(), help="Overwrite an existing page.")] = False,
) -> None:
    """Show what the network learned: the memory bank as a page.

    Writes an HTML page of each class's prototypes, the image regions nearest to them, and classes that are easily
    confused.

        tagseg atlas runs/a
        tagseg atlas runs/a --image new/1.jpg --image new/2.jpg --out atlas.html
    """
    from tagseg.report.atlas import atlas

    say(f"Atlas: {atlas(run, image, per_class, out, device, force, bars).path}")
