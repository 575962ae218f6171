import doctest

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.figures import _text
from gradscope.figures._text import aligned, distinct, number, plain, pretty, shorten, shorten_all


def test_examples_in_docstrings():
    assert doctest.testmod(_text).failed == 0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (1, "1"),
        (12800, "12\u202f800"),
        (1234, "1234"),
        (-1234567, "−1\u202f234\u202f567"),
        (0.84213, "0.842"),
        (0.8, "0.8"),
        (100.0, "100"),
        (999.6, "1000"),
        (123456.7, "123\u202f457"),
        (1e6, "1×10⁶"),
        (1.2e-13, "1.2×10⁻¹³"),
        (-4.56e-7, "−4.56×10⁻⁷"),
        (9.999e-4, "0.001"),
        (float("nan"), "NaN"),
        (float("inf"), "∞"),
        (float("-inf"), "−∞"),
    ],
)
def test_number(value, text):
    assert number(value) == text


@given(st.floats(-1e300, 1e300), st.integers(1, 6))
def test_number_is_the_value_to_its_digits(value, digits):
    text = number(value, digits).replace("−", "-").replace("\u202f", "")
    mantissa, _, power = text.partition("×10")
    exponent = power.translate(str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "-0123456789"))
    read = float(f"{mantissa}e{exponent or 0}")
    assert read == pytest.approx(value, rel=0.51 * 10 ** (1 - digits), abs=5e-324)


def test_aligned_keeps_three_decimals_in_a_column():
    assert [aligned(v) for v in (0.6, 0.584, 12.0, 1e-7, 1e4)] == [
        "0.600",
        "0.584",
        "12.000",
        "1×10⁻⁷",
        "10\u202f000",
    ]


def test_pretty_rewrites_numbers_and_leaves_names_alone():
    assert pretty("is 5.3e-04 of x") == "is 5.3×10⁻⁴ of x"
    assert pretty("falls to 1e-3.") == "falls to 1×10⁻³."
    assert pretty("10^-3 of the last") == "10⁻³ of the last"
    assert pretty("conv1e5.2e3x at layers.1e-5") == "conv1e5.2e3x at layers.1e-5"


def test_shorten_keeps_layer_numbers_and_the_end():
    long = "model.vision_tower.encoder.layers.11.self_attn.out_proj"
    assert shorten(long, 60) == long
    assert shorten(long, 40) == "model…layers.11.self_attn.out_proj"
    assert shorten(long, 30) == "…layers.11.self_attn.out_proj"
    assert shorten("x" * 50, 11) == "xxxx…xxxxxx"


@given(st.text(alphabet="ab.0", max_size=60), st.integers(5, 40))
def test_shorten_fits(name, width):
    assert len(shorten(name, width)) <= width or len(name) <= width


@given(st.lists(st.text(alphabet="ab.01", max_size=30), unique=True), st.integers(5, 20))
def test_shortened_names_stay_apart(names, width):
    assert len(set(shorten_all(names, width))) == len(names)


def test_plain_disarms_formulas_legends_and_control_characters():
    assert plain("a$b$") == r"a\$b\$"
    assert plain("_orig_mod") == " _orig_mod"
    assert plain("a\x1b[31m\nb") == "a�[31m�b"


def test_distinct_keeps_what_tells_names_apart():
    assert distinct(["san-chain × 6, seed 0", "sla × 6, seed 0"]) == ["san-chain", "sla"]
    assert distinct(["run a", "run b"]) == ["a", "b"]
    assert distinct(["sla × 4, seed 0", "sla × 6, seed 0"]) == ["sla × 4", "sla × 6"]
    assert distinct(["same", "same"]) == ["same", "same"]
    assert distinct(["one run, seed 0"]) == ["one run, seed 0"]
    assert distinct([]) == []


@given(st.lists(st.text(alphabet="ab ,", min_size=1, max_size=9), min_size=1, max_size=4))
def test_distinct_never_leaves_a_name_empty(names):
    assert all(distinct(names)) or not all(n.strip() for n in names)
