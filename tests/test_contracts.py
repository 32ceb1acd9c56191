"""Error messages are read by beginners: each must name the argument, what it got and what it needs."""

import doctest
import math

import numpy as np
import pytest
import torch

from aecourse import contracts
from aecourse.contracts import (
    check_batch,
    check_count,
    check_finite,
    check_labels,
    check_shapes,
    check_unit_interval,
)


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
            torch.zeros(2, 3, dtype=torch.int32),
            "x has dtype torch.int32 but needs a floating-point one: convert it with x.float().",
        ),
    ],
)
def test_a_wrong_type_is_refused_in_words(value, message):
    with pytest.raises(TypeError) as caught:
        check_shapes(("x", value, "batch D"))
    assert str(caught.value) == message


def test_a_batch_has_the_shape_of_the_model():
    check_batch("x", torch.zeros(3, 1, 2), (1, 2))
    check_batch("x", torch.zeros(0, 1, 2), [1, 2])
    with pytest.raises(ValueError, match=r"^x has shape \(3, 2\) but this model needs \(batch, 1, 2\)\.$"):
        check_batch("x", torch.zeros(3, 2), (1, 2))
    with pytest.raises(TypeError, match=r"^x has dtype torch\.int64 but needs a floating-point one"):
        check_batch("x", torch.zeros(3, 2, dtype=torch.int64), (2,))


@pytest.mark.parametrize(
    ("value", "least", "error", "message"),
    [
        (0, 1, ValueError, "k is 0 but must be at least 1."),
        (1, 2, ValueError, "k is 1 but must be at least 2."),
        (2.0, 1, TypeError, "k is 2.0 but must be a whole number."),
        (True, 0, TypeError, "k is True but must be a whole number."),
        ("3", 0, TypeError, "k is '3' but must be a whole number."),
    ],
)
def test_a_count_is_a_whole_number_and_large_enough(value, least, error, message):
    check_count("k", 2, least=2)
    check_count("k", np.int64(3))
    with pytest.raises(error) as caught:
        check_count("k", value, least=least)
    assert str(caught.value) == message


def test_labels_are_integers_of_the_right_shape_and_range():
    labels = torch.tensor([0, 2, 1])
    check_labels("labels", labels, (3,))
    check_labels("labels", labels, (3,), classes=3)
    check_labels("labels", labels[:0], (0,), classes=3)
    check_labels("labels", labels.unsqueeze(1), (3, 1))
    with pytest.raises(ValueError, match=r"^labels go from 0 to 2 but need 0 to 1\.$"):
        check_labels("labels", labels, (3,), classes=2)
    with pytest.raises(ValueError, match=r"^labels has shape \(3,\) but needs \(4,\), one for each example"):
        check_labels("labels", labels, (4,))
    with pytest.raises(TypeError, match=r"^labels must be a torch\.Tensor of torch\.int64, not torch\.int32"):
        check_labels("labels", labels.int(), (3,))
    with pytest.raises(TypeError, match=r"not list\.$"):
        check_labels("labels", [0, 2, 1], (3,))


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


CLAMP = " Interpolation overshoots: take x.clamp(0, 1)."
DIVIDE = " Divide 8-bit images by 255, others by the largest value that there can be."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, 255.0], "x has values from 0 to 255 but needs [0, 1]." + DIVIDE),
        ([0.0, 16.0], "x has values from 0 to 16 but needs [0, 1]." + DIVIDE),
        (
            [-0.5, 0.5],
            "x has values from -0.5 to 0.5 but needs [0, 1]. Images in [-0.5, 0.5] become x + 0.5.",
        ),
        ([-1.0, 1.0], "x has values from -1 to 1 but needs [0, 1]. Images in [-1, 1] become (x + 1) / 2."),
        (
            [-1.0, 0.25],
            "x has values from -1 to 0.25 but needs [0, 1]. Images in [-1, 1] become (x + 1) / 2.",
        ),
        ([0.0, 1.09], "x has values from 0 to 1.09 but needs [0, 1]." + CLAMP),
        ([-0.125, 1.0], "x has values from -0.125 to 1 but needs [0, 1]." + CLAMP),
        ([0.0, 1 + 2e-7], "x has values from 0 to 1.00000024 but needs [0, 1]." + CLAMP),
        ([-1e-9, 0.5], "x has values from -1e-09 to 0.5 but needs [0, 1]." + CLAMP),
        ([-1.0, 200.0], "x has values from -1 to 200 but needs [0, 1]."),
        ([0.0, 4096.0], "x has values from 0 to 4096 but needs [0, 1]."),
        ([0.5, math.nan], "x has values from nan to nan but needs [0, 1]."),
    ],
)
def test_check_unit_interval_states_the_range_and_the_cure_that_fits_it(values, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the whole message is compared below)
        check_unit_interval("x", torch.tensor(values))
    assert str(caught.value) == message


def test_8_bit_images_hear_at_once_what_to_do():
    with pytest.raises(
        TypeError, match=r"^x has dtype torch\.uint8 .* convert it with x\.float\(\) / 255\.$"
    ):
        check_shapes(("x", torch.zeros(3, dtype=torch.uint8), "batch"))
    with pytest.raises(TypeError, match=r"torch\.int64 .* convert it with x\.float\(\)\.$"):
        check_shapes(("x", torch.zeros(3, dtype=torch.int64), "batch"))


def test_the_ends_of_the_unit_interval_belong_to_it():
    check_unit_interval("x", torch.tensor([0.0, 0.5, 1.0]))
    check_unit_interval("x", torch.zeros(0, 3))
