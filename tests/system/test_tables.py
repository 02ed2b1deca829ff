import csv
import io

import hypothesis
import hypothesis.strategies as st

from tagseg.system.tables import csv_text, plain_cell, safe_cell


@hypothesis.given(st.text())
def test_a_cell_reads_back_and_is_never_a_formula(cell: str) -> None:
    safe = safe_cell(cell)
    assert plain_cell(safe) == cell and not safe.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_a_table_holds_safe_cells() -> None:
    text = csv_text(("image", "tags"), [("=HYPERLINK(1)", "+cat"), ("a.jpg", "it's")])
    assert list(csv.reader(io.StringIO(text))) == [["image", "tags"], ["'=HYPERLINK(1)", "'+cat"], ["a.jpg", "it's"]]
