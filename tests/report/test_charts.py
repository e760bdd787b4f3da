import re
from xml.etree import ElementTree

import pytest

from etude.report.charts import Axis, Svg, difference_dots, interval_bar, learning_curves
from etude.report.series import clean, mean_curve, thin

DIFFERENCES: dict[str, float | None] = {"0": -0.05, "1": 0.02, "2": None, "3": 0.11}


def dots(**changes: object) -> ElementTree.Element:
    values: dict = {"effect": 0.03, "low": -0.04, "high": 0.1, "zone": (0.01, None), "title": "a > b"}
    return ElementTree.fromstring(difference_dots(DIFFERENCES, **{**values, **changes}))


def scale_of(chart: ElementTree.Element) -> tuple[float, float]:
    """Offset and slope of the horizontal axis, read off two of its labels."""
    labels = [(float(text.text.replace("\u2212", "-")), float(text.get("x"))) for text in chart.iter("text")
              if text.get("class") == "x" and text.text != "step"]  # fmt: skip
    (v0, x0), (v1, x1) = labels[0], labels[-1]
    slope = (x1 - x0) / (v1 - v0)
    return x0 - slope * v0, slope


def path(chart: ElementTree.Element, name: str) -> list[float]:
    found = next(element for element in chart.iter("path") if element.get("class") == name)
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", found.get("d", ""))]


def test_dots_stand_at_their_values():
    chart = dots()
    offset, slope = scale_of(chart)
    places = [float(circle.get("cx", "nan")) for circle in chart.iter("circle")]
    known = [value for value in DIFFERENCES.values() if value is not None]
    assert places == pytest.approx([offset + slope * value for value in known], abs=0.2)


def test_interval_margin_and_zero_line_stand_at_their_values():
    chart = dots()
    offset, slope = scale_of(chart)
    assert path(chart, "zero")[0] == pytest.approx(offset, abs=0.2)
    assert path(chart, "margin")[0] == pytest.approx(offset + slope * 0.01, abs=0.2)
    start, _, end, *_ = path(chart, "interval")
    assert (start, end) == pytest.approx((offset - slope * 0.04, offset + slope * 0.1), abs=0.2)


def test_the_zero_line_is_inside_even_when_all_differences_are_far_from_it():
    chart = ElementTree.fromstring(
        difference_dots({"0": 5.0, "1": 5.1}, effect=5.05, low=4.9, high=5.2, zone=(0.0, None), title="t")
    )
    assert 52 <= path(chart, "zero")[0] <= 350


def test_a_zone_with_two_edges_is_marked_on_both_sides():
    chart = dots(zone=(-0.05, 0.05))
    assert len(re.findall("M", next(p for p in chart.iter("path") if p.get("class") == "margin").get("d", ""))) == 2


def test_a_seed_without_a_value_is_marked_and_counted():
    chart = dots()
    assert sum(element.get("class") == "lost" for element in chart.iter("path")) == 1
    assert "3 of 4 seeds" in (chart.find("desc").text or "")


def test_equal_differences_without_an_interval_can_be_drawn():
    chart = dots(effect=0.0, low=None, high=None, zone=None)
    assert not any(element.get("class") == "interval" for element in chart.iter("path"))


def test_text_in_a_chart_is_escaped():
    chart = difference_dots(
        {"</text><script>": 1.0}, effect=1.0, low=None, high=None, title="<script>alert(1)</script>"
    )
    assert "<script" not in chart
    assert ElementTree.fromstring(chart).find("title").text == "<script>alert(1)</script>"


def test_the_bar_has_its_reference_in_the_middle():
    bar = ElementTree.fromstring(interval_bar(0.5, 0.4, 0.6, reference=0.2))
    assert path(bar, "zero")[0] == 50
    assert float(next(bar.iter("circle")).get("cx", "nan")) > 50
    assert interval_bar(None, None, None) == ""


def test_learning_curves_tell_arms_apart_by_colour_dash_and_marker():
    points = [(0.0, 0.0), (10.0, 1.0)]
    chart = learning_curves({0: {"0": points}, 1: {"0": points}}, title="t")
    arms = [p.get("class") for p in ElementTree.fromstring(chart).iter("path") if "arm" in (p.get("class") or "")]
    assert arms == ["arm c0 d0", "arm c1 d1"]
    ends = [p.get("d") for p in ElementTree.fromstring(chart).iter("path") if "end" in (p.get("class") or "")]
    assert len(set(ends)) == 2


def test_thin_lines_and_points_are_bounded():
    seeds = {str(seed): [(float(step), float(seed)) for step in range(500)] for seed in range(20)}
    chart = ElementTree.fromstring(learning_curves({0: seeds, 1: seeds}, title="t", points=60, seed_lines=8))
    lines = [p for p in chart.iter("path") if (p.get("class") or "").startswith("seed")]
    assert len(lines) == 8
    assert all(len(re.findall(r"-?(?:\d+\.?\d*|\.\d+)", line.get("d", ""))) <= 120 for line in lines)


def test_a_line_passes_through_its_points():
    points = [(float(step), (step % 7) / 7) for step in range(40)]
    chart = ElementTree.fromstring(learning_curves({0: {"0": points}}, title="t", seed_lines=0))
    offset, slope = scale_of(chart)
    line = next(p for p in chart.iter("path") if "arm" in (p.get("class") or "")).get("d", "")
    numbers = [float(number) for number in re.findall(r"-?(?:\d+\.?\d*|\.\d+)", line)]
    assert [sum(numbers[: 2 * i + 2 : 2]) for i in range(40)] == pytest.approx(
        [offset + slope * step for step, _ in points], abs=0.3
    )
    heights = [sum(numbers[1 : 2 * i + 2 : 2]) for i in range(40)]
    assert heights[0] == max(heights)
    assert heights[6] == pytest.approx(min(heights), abs=0.05)


def test_a_chart_without_finite_points_is_empty():
    assert learning_curves({0: {"0": clean([[0, None], [1, float("nan")]])}}, title="t") == Svg("")


def test_a_lone_outlier_does_not_flatten_the_curve():
    points = [(float(step), 1.0 + 0.001 * step) for step in range(99)] + [(99.0, 1e9)]
    chart = ElementTree.fromstring(learning_curves({0: {"0": points}}, title="t", points=100))
    labels = [float(text.text) for text in chart.iter("text") if text.get("class") == "y"]
    assert max(labels) < 2


def test_the_mean_is_over_seeds_at_the_same_step_even_if_they_logged_at_others():
    seeds = {"0": [(0.0, 0.0), (10.0, 10.0)], "1": [(0.0, 2.0), (5.0, 7.0), (10.0, 12.0)]}
    assert mean_curve(seeds, 60) == [(0.0, 1.0), (5.0, 6.0), (10.0, 11.0)]


def test_the_mean_stops_where_most_seeds_have_stopped():
    seeds = {name: [(0.0, 1.0), (end, 1.0)] for name, end in {"0": 5.0, "1": 5.0, "2": 9.0}.items()}
    assert mean_curve(seeds, 60)[-1] == (5.0, 1.0)


def test_thinning_keeps_both_ends():
    assert thin(list(range(100)), 5) == [0, 25, 50, 74, 99]
    assert thin([1, 2], 5) == [1, 2]


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3e-5, 2e-5), (1e6, 5e6), (-7.0, -6.9)])
def test_ticks_are_round_and_inside(low: float, high: float):
    ticks = Axis(low, high, 0, 100).ticks()
    assert 2 <= len(ticks) <= 8
    assert all(low <= tick <= high for tick in ticks)
