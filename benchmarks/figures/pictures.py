"""Compose the README's picture from a finished run: image, map, pseudo-mask, prediction, truth.

python -m benchmarks.figures.pictures RUN OUT.jpg --rows 4
"""

import argparse
from pathlib import Path

from tagseg.data.prepare import prepare
from tagseg.report.overview import draw_overview
from tagseg.run.folder import Run


def main() -> None:
    """Write the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    options = parser.parse_args()
    run = Run(options.run)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    draw_overview(run, prepare(run), options.rows).save(options.out, quality=85)


if __name__ == "__main__":
    main()
