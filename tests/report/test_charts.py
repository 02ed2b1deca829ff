import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagseg.errors import RunError
from tagseg.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw_chart, nice_ticks, values
from tagseg.run.history import read_history


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0.0, 0.37, [0, 0.1, 0.2, 0.3, 0.4]),
        (0.0, 5.3, [0, 2, 4, 6]),
        (0.0, 0.0, [0, 0.2, 0.4, 0.6, 0.8, 1]),
    ],
)
def test_ticks_are_round(low, high, ticks):
    assert nice_ticks(low, high) == pytest.approx(ticks)


@given(st.floats(0, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_values_and_stay_few(low, span):
    ticks = nice_ticks(low, low + span)
    assert 2 <= len(ticks) <= 6
    assert ticks[0] <= low * (1 + 1e-6) and ticks[-1] >= (low + span) * (1 - 1e-6)


def test_a_curve_falls_as_its_values_fall():
    chart = draw_chart("losses", [1, 2, 3], {"loss": [4.0, 2.0, 0.0]})
    assert chart is not None
    ((first, middle, last),) = chart.lines[0].runs
    assert first[0] < middle[0] < last[0]
    # SVG's y grows downwards: the value 0 is on the axis, the highest tick (4) at the top.
    assert (first[1], last[1]) == (TOP, HEIGHT - BOTTOM)
    assert middle[1] == pytest.approx((TOP + HEIGHT - BOTTOM) / 2)
    assert [tick.text for tick in chart.x_ticks] == ["1", "2", "3"]


def test_missing_values_split_a_curve_and_an_empty_one_is_left_out():
    chart = draw_chart("losses", [1, 2, 3, 4], {"a": [1.0, None, 3.0, 2.0], "b": [None] * 4})
    assert chart is not None
    assert [line.label for line in chart.lines] == ["a"]
    assert [len(run) for run in chart.lines[0].runs] == [1, 2]
    assert chart.lines[0].last == 2.0
    assert draw_chart("nothing", [1], {"a": [None]}) is None


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40))
def test_points_stay_inside_the_plot(curve):
    chart = draw_chart("losses", list(range(1, len(curve) + 1)), {"loss": curve})
    assert chart is not None
    for x, y in chart.lines[0].runs[0]:
        assert LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM
    assert len(chart.x_ticks) <= 10


def test_history_is_read_line_by_line(tmp_path):
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    path.write_text('{"epoch": 1, "loss": 0.5}\n{"epoch": 2, "loss": NaN}\n')
    assert values(read_history(path), "loss") == [0.5, None]
    assert values(read_history(path), "contrast") == [None, None]


@pytest.mark.parametrize("line", ["{broken", "[1]", '{"loss": 1}'])
def test_a_damaged_history_is_named_with_its_line(tmp_path, line):
    path = tmp_path / "history.jsonl"
    path.write_text('{"epoch": 1}\n' + line + "\n")
    with pytest.raises(RunError, match=r"history\.jsonl, line 2"):
        read_history(path)
