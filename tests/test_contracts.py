"""Error messages are read by beginners: each must name the argument, what it got and what it needs."""

import doctest
import math

import pytest
import torch

from aecourse import contracts
from aecourse.contracts import check_finite, check_shapes, check_unit_interval


def test_the_example_in_the_docstring_runs():
    result = doctest.testmod(contracts)
    assert result.attempted == 1
    assert result.failed == 0


def test_sizes_are_returned_by_name():
    sizes = check_shapes(("mean", torch.zeros(3, 5), "batch k"), ("cov", torch.zeros(3, 5, 5), "batch k k"))
    assert sizes == {"batch": 3, "k": 5}


def test_trailing_dimensions_may_be_any_but_must_agree():
    image = torch.zeros(3, 1, 8, 8)
    assert check_shapes(("x", image, "batch ..."), ("logits", image, "batch ...")) == {"batch": 3}
    assert check_shapes(("x", torch.zeros(3), "batch ..."), ("y", torch.zeros(3), "batch ...")) == {
        "batch": 3
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            [("mean", (3,), "batch k")],
            "mean has shape (3,) but needs (batch, k).",
        ),
        (
            [("mean", (3, 5), "batch k"), ("logvar", (3, 4), "batch k")],
            "logvar has shape (3, 4) but needs (batch, k) = (3, 5), the sizes that mean has.",
        ),
        (
            [("mean", (3, 5), "batch k"), ("logvar", (2, 5), "batch k")],
            "logvar has shape (2, 5) but needs (batch, k) = (3, 5), the sizes that mean has.",
        ),
        (
            [("cov", (3, 5, 4), "batch k k")],
            "cov has shape (3, 5, 4) but needs (batch, k, k) = (3, 5, 5).",
        ),
        (
            [("x", (3, 8, 8), "batch ..."), ("logits", (3, 64), "batch ...")],
            "logits has shape (3, 64) but needs (batch, ...) = (3, 8, 8), the sizes that x has.",
        ),
        (
            [("x", (3, 8), "batch ..."), ("logits", (4, 8), "batch ...")],
            "logits has shape (4, 8) but needs (batch, ...) = (3, 8), the sizes that x has.",
        ),
        ([("x", (), "batch ...")], "x has shape () but needs (batch, ...)."),
        (
            [("kl", (3,), "batch"), ("weight", (4,), "batch")],
            "weight has shape (4,) but needs (batch,) = (3,), the sizes that kl has.",
        ),
    ],
)
def test_a_wrong_shape_is_refused_in_words(arguments, message):
    triples = [(name, torch.zeros(shape), pattern) for name, shape, pattern in arguments]
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared below)
        check_shapes(*triples)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([[1.0]], "x must be a torch.Tensor, not list."),
        (
            torch.zeros(2, 3, dtype=torch.uint8),
            "x has dtype torch.uint8 but needs a floating-point one: convert it with x.float().",
        ),
    ],
)
def test_a_wrong_type_is_refused_in_words(value, message):
    with pytest.raises(TypeError) as caught:
        check_shapes(("x", value, "batch D"))
    assert str(caught.value) == message


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_check_finite_counts_the_bad_values_and_names_the_first(bad):
    x = torch.zeros(2, 3)
    check_finite("x", x)
    x[1, 2] = bad
    x[1, 0] = bad
    with pytest.raises(
        ValueError, match=r"^x holds 2 values that are NaN or infinite, the first at \(1, 0\)"
    ):
        check_finite("x", x)


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ([0.0, 255.0], "x has values from 0 to 255 but needs [0, 1].", True),
        ([-0.5, 1.0], "x has values from -0.5 to 1 but needs [0, 1].", False),
        ([-1.0, 200.0], "x has values from -1 to 200 but needs [0, 1].", False),
        ([0.0, 4096.0], "x has values from 0 to 4096 but needs [0, 1].", False),
        ([0.5, math.nan], "x has values from nan to nan but needs [0, 1].", False),
    ],
)
def test_check_unit_interval_states_the_range_and_hints_at_8_bit_images(values, message, hint):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared below)
        check_unit_interval("x", torch.tensor(values))
    assert str(caught.value) == message + (" Divide 8-bit images by 255." if hint else "")


def test_the_ends_of_the_unit_interval_belong_to_it():
    check_unit_interval("x", torch.tensor([0.0, 0.5, 1.0]))
