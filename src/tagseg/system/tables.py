"""CSV tables of ours, whose cells no spreadsheet takes for a formula.

A spreadsheet runs a cell that begins with `=`, `+`, `-`, `@`, a tab or a carriage return, and file names and tags may
come from strangers. Such cells get an apostrophe in front, as OWASP advises; `plain_cell` takes it away again.
"""

import csv
import io
import re
from collections.abc import Iterable, Sequence

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_QUOTED = re.compile(r"'+[=+\-@\t\r]")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a CSV table as text, with safe cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(map(safe_cell, row) for row in rows)
    return text.getvalue()


def safe_cell(cell: str) -> str:
    """Return a cell that no spreadsheet takes for a formula.

    >>> safe_cell("=1+1.jpg"), safe_cell("'=1.jpg"), safe_cell("cat's.jpg")
    ("'=1+1.jpg", "''=1.jpg", "cat's.jpg")
    """
    return f"'{cell}" if _FORMULA.match(cell) else cell


def plain_cell(cell: str) -> str:
    """Return the text that a safe cell stands for.

    >>> plain_cell("'=1+1.jpg"), plain_cell("''=1.jpg"), plain_cell("cat's.jpg"), plain_cell("'quoted'")
    ('=1+1.jpg', "'=1.jpg", "cat's.jpg", "'quoted'")
    """
    return cell[1:] if _QUOTED.match(cell) else cell
