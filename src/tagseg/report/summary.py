"""A finished run in one line, and as a notebook shows it."""

import numpy as np
from markupsafe import escape

from tagseg.data.data_file import read_data_file
from tagseg.evaluate.quality import read_quality
from tagseg.evaluate.verdict import class_verdicts
from tagseg.report.overlay import data_uri, masked_photo
from tagseg.run.folder import Run

_SHOWN, _SIDE = 4, 240
"""Photographs in a notebook, and their long side in pixels."""


def summary_line(run: Run) -> str:
    """Return where masks and report of a finished run are, and the mean trust in its masks."""
    data = read_data_file(run)
    masks = sum(row.split == "train" for row in data.samples)
    scores = [one.score for one in read_quality(run).values()]
    trust = f", expected IoU {100 * np.mean(scores):.0f} %" if scores else ""
    return f"{masks} masks{trust}: {run.final().masks}; report: {run.report_file}"


def summary_html(run: Run) -> str:
    """Return a finished run as HTML: some photographs with their masks, the verdict on every class, and paths."""
    data = read_data_file(run)
    images = [row for row in data.samples if row.split == "train" and row.tags]
    chosen = images[:: max(len(images) // _SHOWN, 1)][:_SHOWN]
    pictures = "".join(_picture(run, row.id, str(row.image)) for row in chosen)
    rows = "".join(
        f"<tr><td>{escape(one.name)}</td><td>{one.shown} of {one.images}</td>"
        f"<td>{'-' if one.expected is None else f'{100 * one.expected:.0f}'}</td>"
        f"<td>{escape(one.advice or 'nothing')}</td></tr>"
        for one in class_verdicts(run)
    )
    head = "<tr><th>class</th><th>masks that show it</th><th>expected IoU, %</th><th>what to do</th></tr>"
    return f"<p>{escape(summary_line(run))}</p><p>{pictures}</p><table>{head}{rows}</table>"


def _picture(run: Run, sample_id: str, image: str) -> str:
    """Return a photograph with its mask as an HTML image."""
    picture = masked_photo(run, sample_id, image, _SIDE)
    source = data_uri(picture, "jpeg", quality=85)
    return f'<img src="{source}" alt="{escape(sample_id)}, mask over image" style="margin:2px">'
