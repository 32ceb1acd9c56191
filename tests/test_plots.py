"""Figures are checked through what matplotlib was told to draw."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from torch import nn

from aecourse import plots
from aecourse.train import History
from aecourse.vae import VAE


@pytest.fixture(autouse=True)
def close_figures():
    with plt.rc_context():
        yield
    plt.close("all")


def drawn(ax) -> np.ndarray:
    """The one image in the axes."""
    (image,) = ax.images
    return np.asarray(image.get_array())


def test_no_window_is_opened():
    assert plt.get_backend().lower() == "agg"


# ---------------------------------------------------------------------------------- images


@pytest.mark.parametrize(("count", "columns"), [(6, 3), (5, 3), (4, 1), (3, 10), (7, 7)])
@pytest.mark.parametrize(("height", "width"), [(2, 3), (28, 28)])
def test_picture_i_stands_in_row_i_over_columns_and_column_i_modulo_columns(count, columns, height, width):
    values = (torch.arange(count) + 1) / 10
    canvas = drawn(plots.images(values.view(-1, 1, 1, 1).expand(-1, 1, height, width), columns=columns))
    corners = {}
    for i, value in enumerate(values.tolist()):
        rows, cols = np.nonzero(np.isclose(canvas, value))
        top, left = rows.min(), cols.min()
        # The picture is whole, in one piece and of its own size.
        assert (np.isclose(canvas[top : top + height, left : left + width], value)).all()
        assert len(rows) == height * width
        corners[i] = top, left
    for i, (top, left) in corners.items():
        if i >= columns:  # right below the picture one row up, with a gap
            assert left == corners[i - columns][1]
            assert top > corners[i - columns][0] + height
        elif i > 0:  # right beside its neighbour, with a gap
            assert top == corners[0][0]
            assert left > corners[i - 1][1] + width
    # Everything else is blank.
    assert np.count_nonzero(canvas) == count * height * width


def test_a_picture_is_neither_transposed_nor_flipped():
    picture = torch.rand(1, 1, 3, 5)
    np.testing.assert_array_equal(drawn(plots.images(picture, columns=1))[:3, :5], picture[0, 0])


def test_colour_images_keep_their_channels():
    pictures = torch.rand(2, 3, 4, 4)
    canvas = drawn(plots.images(pictures, columns=2))
    assert canvas.shape[2] == 3
    np.testing.assert_array_equal(canvas[:4, :4], pictures[0].permute(1, 2, 0))
    assert (canvas[-1] == 1).all()  # white between them


def test_grey_values_run_from_zero_to_one_whatever_the_pictures_hold():
    ax = plots.images(torch.full((2, 1, 4, 4), 0.4))
    assert ax.images[0].get_clim() == (0, 1)
    assert ax.images[0].get_cmap().name == "gray_r"  # 0 is the white of the page


def test_signed_pictures_have_zero_in_the_middle():
    pictures = torch.tensor([-3.0, 2.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4)
    ax = plots.images(pictures, symmetric=True)
    assert ax.images[0].get_clim() == (-3, 3)
    assert ax.images[0].get_cmap().name == "RdBu_r"


def test_titles_stand_beside_their_rows():
    ax = plots.images(torch.rand(6, 1, 4, 4), columns=3, titles=["data", "model"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["data", "model"]
    first, second = ax.get_yticks()
    assert 0 < first < 4 < second < drawn(ax).shape[0]
    assert list(plots.images(torch.rand(6, 1, 4, 4)).get_yticks()) == []


def test_pictures_with_a_gradient_in_double_precision_are_drawn():
    pictures = torch.rand(2, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    drawn = torch.as_tensor(plots.images(pictures).images[0].get_array().data)
    torch.testing.assert_close(drawn[:4, :4].double(), pictures.detach()[0, 0], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"pictures": torch.rand(4, 8, 8)},
            r"^pictures has shape \(4, 8, 8\) but needs \(N, channels, height",
        ),
        ({"pictures": torch.rand(4, 2, 8, 8)}, r"^pictures have 2 channels but need 1 or 3"),
        ({"pictures": torch.rand(4, 1, 8, 8), "titles": ["a", "b"]}, r"^titles has 2 entries but needs 1"),
    ],
)
def test_images_refuses_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        plots.images(**arguments)


# --------------------------------------------------------------------------------- history


def test_history_draws_training_dashed_and_test_solid_over_the_epochs():
    record = History(
        train={"total": [3.0, 2.0], "kl": [0.5, 1.0]},
        test={"total": [3.5, 2.5], "kl": [0.6, 1.1]},
        seconds=[1.0, 1.0],
    )
    ax = plots.history(record, names=("total", "kl"))
    lines = {line.get_label(): line for line in ax.lines}
    assert lines.keys() == {"total, training", "total, test", "kl, training", "kl, test"}
    for name in ("total", "kl"):
        for part, values, style in (("training", record.train, "--"), ("test", record.test, "-")):
            line = lines[f"{name}, {part}"]
            assert list(line.get_xdata()) == [1, 2]
            assert list(line.get_ydata()) == values[name]
            assert line.get_linestyle() == style
        assert lines[f"{name}, training"].get_color() == lines[f"{name}, test"].get_color()
    assert lines["total, test"].get_color() != lines["kl, test"].get_color()
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("epoch", "nats per example")


def test_history_without_test_images_draws_the_training_alone():
    ax = plots.history(History(train={"total": [3.0]}, seconds=[1.0]), unit="squared error")
    assert [line.get_label() for line in ax.lines] == ["total, training"]
    assert ax.get_ylabel() == "squared error"


# ----------------------------------------------------------------------------------- codes


def test_codes_draws_every_point_and_writes_each_label_at_its_median():
    points = torch.tensor([[0.0, 0.0], [1.0, 2.0], [9.0, 3.0], [5.0, 5.0]], requires_grad=True)
    ax = plots.codes(points, torch.tensor([7, 7, 7, 3]))
    clouds = [np.asarray(cloud.get_offsets()) for cloud in ax.collections]
    assert sorted(map(len, clouds)) == [1, 3]
    places = {text.get_text(): text.get_position() for text in ax.texts}
    assert places == {"7": (1.0, 2.0), "3": (5.0, 5.0)}
    colours = {len(cloud.get_offsets()): tuple(cloud.get_facecolor()[0][:3]) for cloud in ax.collections}
    assert colours[3] == to_rgba("C7")[:3]
    assert colours[1] == to_rgba("C3")[:3]


@pytest.mark.parametrize(
    ("points", "labels"),
    [((5, 3), (5,)), ((5, 1), (5,)), ((5,), (5,)), ((5, 2), (4,)), ((5, 2), (5, 1))],
)
def test_codes_refuses_bad_shapes(points, labels):
    with pytest.raises(ValueError, match=r"^points .*shape.* but needs? \(N, "):
        plots.codes(torch.rand(points), torch.zeros(labels, dtype=torch.int64))


# -------------------------------------------------------------------------------- manifold


class ShowCode(nn.Module):
    """A decoder whose picture is its code: two pixels, z_1 and z_2."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, z):
        return self.one * z.view(-1, 1, 1, 2)


def test_the_manifold_is_spaced_by_quantiles_with_z1_to_the_right_and_z2_upwards():
    vae = VAE(nn.Identity(), ShowCode(), image_shape=(1, 1, 2), latent_dim=2, likelihood="gaussian")
    canvas = drawn(plots.manifold(vae, per_side=3))
    # The quantiles 1/6, 1/2 and 5/6 of a standard normal.
    quantiles = np.array([-0.96742157, 0.0, 0.96742157])
    pictures = np.array([[canvas[2 * r, 3 * c : 3 * c + 2] for c in range(3)] for r in range(3)])
    np.testing.assert_allclose(pictures[:, :, 0], np.tile(quantiles, (3, 1)), atol=1e-6)
    np.testing.assert_allclose(pictures[:, :, 1], np.tile(quantiles[::-1, None], (1, 3)), atol=1e-6)


def test_a_manifold_needs_two_latent_variables():
    with pytest.raises(ValueError, match=r"^vae has 3 latent variables but a manifold needs 2"):
        plots.manifold(VAE.mlp((1, 4, 4), 3, hidden=()))


# -------------------------------------------------------------------------------- all alike


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.images(torch.rand(4, 1, 4, 4), ax=ax),
        lambda ax: plots.history(History(train={"total": [1.0]}, seconds=[1.0]), ax=ax),
        lambda ax: plots.codes(torch.rand(4, 2), torch.arange(4), ax=ax),
        lambda ax: plots.manifold(VAE.mlp((1, 4, 4), 2, hidden=()), per_side=2, ax=ax),
    ],
    ids=["images", "history", "codes", "manifold"],
)
def test_a_function_draws_into_the_axes_it_is_given_or_makes_its_own(draw):
    plots.use_style()
    _, given = plt.subplots()
    assert draw(given) is given
    assert len(plt.get_fignums()) == 1
    made = draw(None)
    assert made is not given
    assert len(plt.get_fignums()) == 2
    made.figure.canvas.draw()


def test_use_style_sets_the_rules_and_importing_does_not():
    assert plt.rcParams["legend.frameon"] is True
    plots.use_style()
    assert plt.rcParams["legend.frameon"] is False
    assert plt.rcParams["figure.facecolor"] == "white"
