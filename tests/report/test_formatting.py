import math

import pytest

from etude.report.formatting import (
    arxiv_url,
    format_column,
    format_effect,
    format_interval,
    format_mean,
    format_means,
    format_number,
    format_p,
    format_seconds,
    format_status,
    format_value,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0123456, "0.0123"),
        (12.34, "12.3"),
        (1234, "1234"),
        (0, "0"),
        (1.5e7, "1.50e+07"),
        (2e-6, "2.00e-06"),
        (None, "–"),
        (math.nan, "–"),
        (-math.inf, "–"),
    ],
)
def test_numbers_have_three_significant_digits(value: float | int | None, text: str):
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("effect", "low", "high", "text"),
    [
        (0.0842, 0.0711, 0.0973, "+0.084 [+0.071, +0.097]"),
        (-0.5, -1.0, 0.0, "-0.50 [-1.00, 0]"),
        (1234.5, 1000.0, 1469.0, "+1234 [+1000, +1469]"),
        (0.2, None, None, "+0.200"),
        (0.25, 0.1, None, "+0.250 [+0.100, +inf]"),
        (0.0, 0.0, 0.0, "0 [0, 0]"),
        (3e-9, 1e-9, 5e-9, "+3.00e-09 [+1.00e-09, +5.00e-09]"),
        (None, None, None, "–"),
    ],
)
def test_effects_share_the_decimals_of_their_interval(
    effect: float | None, low: float | None, high: float | None, text: str
):
    assert format_effect(effect, low, high) == text


def test_an_interval_alone():
    assert format_interval(0.0711, 0.0973) == "[+0.071, +0.097]"
    assert format_interval(None, None) == "–"


def test_means_take_their_decimals_from_the_deviation():
    assert format_mean(0.93, 0.0131) == "0.930 ± 0.013"
    assert format_mean(0.93, 0.0) == "0.93 ± 0"
    assert format_mean(0.93, None) == "0.93"
    assert format_mean(None, None) == "–"


def test_a_column_of_means_has_equal_decimals():
    assert format_means([(0.0896, 0.00089), (0.9271, 0.047), (None, None)]) == [
        "0.0896 ± 0.0009",
        "0.9271 ± 0.0470",
        "–",
    ]


def test_a_column_has_equal_decimals():
    assert format_column([0.089, 0.93, None]) == ["0.089", "0.930", "–"]
    assert format_column([3, 12]) == ["3", "12"]
    assert format_column([1e-8, 1.0]) == ["1.00e-08", "1"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.44, "0.4 s"), (12, "12 s"), (192, "3 min 12 s"), (7500, "2 h 5 min"), (59.7, "1 min 0 s"), (None, "–")],
)
def test_durations_have_two_units(seconds: float | int | None, text: str):
    assert format_seconds(seconds) == text


def test_small_p_values_are_bounded():
    assert (format_p(0.03125), format_p(0.0001), format_p(None)) == ("0.031", "< 0.001", "–")


def test_a_status_has_symbol_and_word():
    assert format_status("holds") == "✓ holds"
    assert format_status("fails", fresh=False) == "✗ fails (stale)"
    assert format_status("none", fresh=False) == "– not run"


def test_values_of_a_setup():
    assert format_value([1, 0.5, True, None, "x"]) == "[1, 0.5, true, –, x]"
    assert format_value({"a": 1e-5}) == "a: 1e-05"


def test_only_arxiv_identifiers_become_links():
    assert arxiv_url("1511.06807") == "https://arxiv.org/abs/1511.06807"
    assert arxiv_url("cs/0701001").endswith("/cs/0701001")
    assert arxiv_url('1511"onclick=') == arxiv_url("") == arxiv_url(None) == ""
