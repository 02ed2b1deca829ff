"""Commands that say how far to trust the masks, and let a person decide."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter
from rich.table import Table

from tagseg.cli.app import MAIN, RunFolder, app, name_text, out, say
from tagseg.system.progress import bars


@app.command(group=MAIN, sort_key=7)
def worst(
    run: RunFolder,
    /,
    *,
    count: Annotated[int, Parameter(name=("--count", "-n"), help="So many lines.")] = 20,
    tags: Annotated[bool, Parameter(negative=(), help="List tags that are likely wrong or missing instead.")] = False,
    csv: Annotated[
        Path | None, Parameter(help="File for the whole list, images or tags, all of them.", show_default=False)
    ] = None,
) -> None:
    """List the masks to review first, or likely wrong and missing tags; no true masks needed.

    Judges every training image once, by how far the segmentation network and the mask agree.

        tagseg worst runs/a -n 50
        tagseg worst runs/a --tags --csv suspects.csv
    """
    from tagseg.data.prepare import prepare
    from tagseg.review.judge import assess
    from tagseg.review.ranking import suspects_to_csv, to_csv, worst_first
    from tagseg.review.suspects import find_suspects
    from tagseg.run.decisions import decisions
    from tagseg.run.folder import Run
    from tagseg.system.files import write_atomically

    if count < 1:
        raise ValueError(f"-n {count}: expected 1 or more")
    opened = Run(run)
    found, dataset = assess(opened, bars), prepare(opened).dataset
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
        write_atomically(csv, text)
        say(f"Whole list: {csv}")


def show_worst(ranked: list[Any], total: int) -> None:
    """Print images with their scores as a table."""
    from tagseg.review.ranking import classes_text

    say(f"{len(ranked)} of {total} masks, the least trusted first (1: trust, 0: do not):")
    table = Table()
    for column in ("score", "image", "classes", "why"):
        table.add_column(column, overflow="fold")
    for one in ranked:
        cells = (f"{one.score:.2f}", one.id, classes_text(one.classes), one.reason)
        table.add_row(*map(name_text, cells))
    out.print(table)


def show_suspects(suspects: list[Any], classes: tuple[str, ...], total: int) -> None:
    """Print suspect tags as a table."""
    if not total:
        say("No tag looks wrong or missing.")
        return
    say(f"{len(suspects)} of {total} tags that are likely wrong or missing, the surest first:")
    table = Table()
    for column in ("doubt", "image", "tag", "likely"):
        table.add_column(column, overflow="fold")
    for one in suspects:
        cells = (f"{one.doubt:.2f}", one.id, classes[one.class_id - 1], one.kind)
        table.add_row(*map(name_text, cells))
    out.print(table)


@app.command(group=MAIN, sort_key=8)
def review(
    run: RunFolder,
    /,
    *,
    scores: Annotated[
        bool, Parameter(negative="--no-scores", help="Judge the masks first where they are not yet, as worst does.")
    ] = True,
    port: Annotated[int, Parameter(help="Port to listen at; 0: any that is free.")] = 0,
    browser: Annotated[bool, Parameter(negative="--no-browser", help="Open the page in the browser.")] = True,
) -> None:
    """Look through the masks in the browser, worst first: accept, reject or flag them, switch classes off.

    The page is served to this machine alone, at an address that holds a secret token, until Ctrl-C. Decisions are
    stored in the run folder at once; the next tagseg fit honours them.

        tagseg review runs/a
        tagseg review runs/a --port 8000 --no-browser
    """
    from tagseg.review.queue import read_queue
    from tagseg.review.server import review
    from tagseg.run.folder import Run

    opened = Run(run)
    if scores and opened.done("segment") and any(item.score is None for item in read_queue(opened).items):
        from tagseg.review.judge import assess

        assess(opened, bars)

    def ready(address: str) -> None:
        say(f"Review: {address}")
        say("Ctrl-C ends it; decisions are kept.")
        if browser:
            open_browser(address)

    review(run, port, ready)
    say("Ended.")


def open_browser(address: str) -> None:
    """Open a page in the browser, beside what goes on; not in one that would take the terminal over."""
    import threading
    import webbrowser

    def open_it() -> None:
        try:
            browser = webbrowser.get()
        except webbrowser.Error:
            return
        # Text browsers are of this very class, others of classes below it.
        if type(browser) is not webbrowser.GenericBrowser:
            browser.open(address)

    threading.Thread(target=open_it, daemon=True).start()
