"""Sprites against a drawing by counting, their symmetries and moments, and the law of their factors."""

import importlib
import math

import pytest
import torch

from aecourse.sprites import FACTORS, PERIODS, SIZES, Sprites, draw_sprites, sprite_values, sprites

module = importlib.import_module("aecourse.sprites")
SQUARE, ELLIPSE, HEART = range(3)


def factors(**lists):
    """A table of factors: those that are not named are a large, upright square near the middle."""
    base = {"shape": 0, "scale": 5, "rotation": 0, "x": 16, "y": 16} | lists
    columns = torch.broadcast_tensors(*(torch.as_tensor(base[name]) for name in FACTORS))
    return torch.stack(columns, dim=-1).view(-1, 5)


def some(count=200):
    """Random factors."""
    return torch.stack([torch.randint(values, (count,)) for values in SIZES], dim=1)


def centre_of_mass(images):
    """x and y in [0, 1], ``(N, 2)``."""
    images, size = images[:, 0].double(), images.shape[-1]
    ticks = (torch.arange(size) + 0.5).double() / size
    mass = images.sum(dim=(1, 2))
    return torch.stack([images.sum(dim=1) @ ticks / mass, images.sum(dim=2) @ ticks / mass], dim=1)


def counted(table, size):
    """The share of 256 x 256 dots, so many for each pixel, that are inside the shape; in float64."""
    finer = 256 // size
    shape, scale, angle, x, y = sprite_values(table).double().T.reshape(5, -1, 1, 1)
    dots = (torch.arange(size * finer).double() + 0.5) / (size * finer)
    turned = torch.polar(1 / (0.17 * scale), -angle) * torch.complex(dots - x, dots.unsqueeze(1) - y)
    u, v = turned.real, -turned.imag  # v upwards
    square = torch.maximum(u.abs(), v.abs()) < 1
    ellipse = (u / 1.2) ** 2 + (v / 0.65) ** 2 < 1
    a, b = 1.15 * u, 1.15 * v + 0.15
    heart = (a**2 + b**2 - 1) ** 3 < a**2 * b**3
    inside = torch.where(shape == 0, square, torch.where(shape == 1, ellipse, heart))
    return torch.nn.functional.avg_pool2d(inside.double().unsqueeze(1), finer)


# ------------------------------------------------------------------------------- pictures


@pytest.mark.parametrize(("size", "worst"), [(16, 0.1), (32, 0.2), (64, 0.45)])
def test_a_pixel_is_as_white_as_its_share_inside(size, worst):
    """Oracle: dots counted inside the curves. Only corners and the heart's notch are off, and by little."""
    table = some(15)
    share = counted(table, size)
    error = draw_sprites(table, size).double() - share
    assert error.abs().max() < worst
    # No grey where the shape is not, which small pictures are prone to; and none missing.
    assert (error.sum(dim=(1, 2, 3)) / share.sum(dim=(1, 2, 3))).abs().max() < 0.05


@pytest.mark.parametrize("size", [16, 32, 64])
def test_shape_type_and_range(size):
    images = draw_sprites(some(), size)
    assert images.shape == (200, 1, size, size)
    assert images.dtype == torch.float32
    assert images.min() == 0
    assert images.max() == 1
    assert (images.amax(dim=(1, 2, 3)) > 0.85).all()  # each has an inside, and an outside
    assert (images.amin(dim=(1, 2, 3)) == 0).all()


def test_pictures_depend_on_their_factors_alone():
    table = some(30)
    state = torch.get_rng_state()
    first = draw_sprites(table, 32)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draw_sprites(table, 32), first)
    assert torch.equal(draw_sprites(table.flip(0), 32), first.flip(0))
    assert torch.equal(draw_sprites(table[7:8], 32), first[7:8])


@pytest.mark.parametrize("count", [500, 501, 1001])
def test_many_pictures_are_drawn_in_parts_with_the_same_result(count):
    table = some(count)
    images = draw_sprites(table, 8)
    assert images.shape == (count, 1, 8, 8)
    assert torch.equal(images, torch.cat([draw_sprites(part, 8) for part in table.split(77)]))


@pytest.mark.parametrize("name", FACTORS)
@pytest.mark.parametrize("size", [32, 64])
def test_each_factor_alone_changes_the_picture(name, size):
    """All values of one factor, the others fixed at random: no two pictures are the same."""
    values = SIZES[FACTORS.index(name)]
    for fixed in some(6):
        table = fixed.expand(values, 5).clone()
        table[:, FACTORS.index(name)] = torch.arange(values)
        images = draw_sprites(table, size).flatten(1)
        distances = torch.cdist(images, images, compute_mode="donot_use_mm_for_euclid_dist")
        assert (distances + 9 * torch.eye(values)).min() > 0.05


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
@pytest.mark.parametrize("size", [16, 32, 64])
def test_all_rotations_are_distinct_pictures_even_of_the_smallest(shape, size):
    images = draw_sprites(factors(shape=shape, scale=0, rotation=torch.arange(40)), size).flatten(1)
    distances = torch.cdist(images, images, compute_mode="donot_use_mm_for_euclid_dist")
    assert (distances + 9 * torch.eye(40)).min() > 0.02


def test_rotations_run_through_the_period_in_equal_steps():
    """Oracle: the period of each shape. One step more than the last rotation would be the first again."""
    for shape, period in enumerate((math.pi / 2, math.pi, 2 * math.pi)):
        assert PERIODS[shape] == pytest.approx(period)
        angle = sprite_values(factors(shape=shape, rotation=torch.arange(40)))[:, 2]
        torch.testing.assert_close(angle, torch.arange(40) * period / 40)
        # Steps are alike all round, from the last to the first too.
        images = draw_sprites(factors(shape=shape, rotation=torch.arange(40)), 64)
        steps = (images - images.roll(1, 0)).flatten(1).norm(dim=1)
        assert steps.max() < 1.5 * steps.min()


def test_symmetries_of_turning():
    """Oracle: a quarter turn transposes an ellipse, half a turn flips a heart, an eighth tilts a square."""
    x, y = torch.tensor([3, 20]), torch.tensor([11, 28])
    upright, lying = (
        draw_sprites(factors(shape=ELLIPSE, rotation=20, x=y, y=x)),
        draw_sprites(factors(shape=ELLIPSE, rotation=0, x=x, y=y)),
    )
    torch.testing.assert_close(upright, lying.mT, rtol=0, atol=1e-3)
    for rotation in (0, 5, 13):
        heart = draw_sprites(factors(shape=HEART, rotation=rotation, x=x, y=y))
        turned = draw_sprites(factors(shape=HEART, rotation=rotation + 20, x=31 - x, y=31 - y))
        torch.testing.assert_close(heart, turned.flip(2, 3), rtol=0, atol=1e-3)
    tilted = draw_sprites(factors(shape=SQUARE, rotation=20, x=x, y=y))
    mirrored = draw_sprites(factors(shape=SQUARE, rotation=20, x=y, y=x))
    torch.testing.assert_close(tilted, mirrored.mT, rtol=0, atol=1e-3)


def test_shapes_turn_from_x_towards_y():
    """Oracle: the long axis of an ellipse, from its picture's second moments, lies at the angle it says."""
    table = factors(shape=ELLIPSE, rotation=torch.arange(40))
    images, size = draw_sprites(table)[:, 0].double(), 64
    ticks = (torch.arange(size) + 0.5).double() / size
    x, y = (ticks - c.view(-1, 1) for c in centre_of_mass(images.unsqueeze(1)).T)
    xx, yy = (images.sum(dim=1) * x**2).sum(dim=1), (images.sum(dim=2) * y**2).sum(dim=1)
    xy = torch.einsum("nhw,nh,nw->n", images, y, x)
    angle = torch.atan2(2 * xy, xx - yy) / 2
    error = (angle - sprite_values(table)[:, 2] + math.pi / 2) % math.pi - math.pi / 2
    assert error.abs().max() < 0.01


def test_a_heart_stands_on_its_tip():
    rows = draw_sprites(factors(shape=HEART))[0, 0].sum(dim=1)
    inked = rows.nonzero()[:, 0]
    top, bottom = rows[inked[: len(inked) // 3]].sum(), rows[inked[-(len(inked) // 3) :]].sum()
    assert top > 1.5 * bottom


@pytest.mark.parametrize("shape", [SQUARE, ELLIPSE, HEART])
def test_no_shape_leaves_the_picture(shape):
    """The largest, in all corners and at all rotations: the border stays black, and no ink is lost."""
    corners = torch.cartesian_prod(torch.arange(40), torch.tensor([0, 31]), torch.tensor([0, 31]))
    rotation, x, y = corners.unbind(dim=1)
    images = draw_sprites(factors(shape=shape, rotation=rotation, x=x, y=y), 128)
    border = torch.cat([images[..., 0, :], images[..., -1, :], images[..., 0], images[..., -1]], dim=2)
    assert border.max() == 0
    for size in (16, 64):
        ink = draw_sprites(factors(shape=shape, rotation=rotation, x=x, y=y), size).sum(dim=(1, 2, 3))
        middle = draw_sprites(factors(shape=shape, rotation=rotation), size).sum(dim=(1, 2, 3))
        torch.testing.assert_close(ink, middle, rtol=0.01, atol=0)


@pytest.mark.parametrize("size", [16, 64])
def test_the_centre_of_mass_is_where_x_and_y_say(size):
    """Oracle: the values. A heart hangs a little above its centre, everywhere by as much."""
    x, y = torch.cartesian_prod(torch.arange(32), torch.tensor([0, 7, 31])).unbind(dim=1)
    for shape in (SQUARE, ELLIPSE, HEART):
        for table in (factors(shape=shape, x=x, y=y), factors(shape=shape, x=y, y=x)):
            off = centre_of_mass(draw_sprites(table, size)) - sprite_values(table)[:, 3:]
            lift = torch.tensor([0.0, -0.0214]) if shape == HEART else torch.zeros(2)
            torch.testing.assert_close(off, lift.double().expand_as(off), rtol=0, atol=0.03 / size)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_the_area_grows_with_the_square_of_the_scale(size):
    """Oracle: 4 r^2 for the square, 0.78 pi r^2 for the ellipse, and the ratio of areas for the heart."""
    for shape in (SQUARE, ELLIPSE, HEART):
        table = factors(shape=shape, rotation=7, scale=torch.arange(6))
        area = draw_sprites(table, size).sum(dim=(1, 2, 3)) / size**2
        scale = sprite_values(table)[:, 1]
        torch.testing.assert_close(area / area[-1], scale**2, rtol=0.04, atol=0)
        if shape != HEART:
            exact = (4 if shape == SQUARE else 0.78 * math.pi) * (0.17 * scale) ** 2
            torch.testing.assert_close(area, exact, rtol=0.02, atol=0)


# -------------------------------------------------------------------------------- factors


def test_values_by_hand():
    table = torch.tensor([[0, 0, 0, 0, 0], [1, 5, 39, 31, 31], [2, 2, 20, 31, 0]])
    expected = torch.tensor(
        [
            [0, 0.5, 0, 0.25, 0.25],
            [1, 1.0, math.pi * 39 / 40, 0.75, 0.75],
            [2, 0.7, math.pi, 0.75, 0.25],
        ]
    )
    found = sprite_values(table)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


def test_as_many_pictures_as_dsprites():
    assert FACTORS == ("shape", "scale", "rotation", "x", "y")
    assert math.prod(SIZES) == 737_280


def test_sprites_are_drawn_from_the_factors_they_come_with():
    found = sprites(40, size=16)
    assert isinstance(found, Sprites)
    assert found.images.shape == (40, 1, 16, 16)
    assert found.factors.shape == (40, 5)
    assert found.factors.dtype == torch.int64
    assert torch.equal(found.images, draw_sprites(found.factors, 16))
    assert torch.equal(found.values, sprite_values(found.factors))
    assert sprites(1).images.shape == (1, 1, 64, 64)


def test_factors_are_uniform_and_independent(monkeypatch):
    """Oracle: chi-squared of each factor's counts and of each pair's, as z-scores; 100,000 draws, seed 0."""
    monkeypatch.setattr(module, "draw_sprites", lambda table, size: table)  # factors alone: no drawing
    count = 100_000
    table = sprites(count).factors
    for i in range(5):
        for j in range(i, 5):
            cells = SIZES[i] * (SIZES[j] if j > i else 1)
            both = table[:, i] * SIZES[j] + table[:, j] if j > i else table[:, i]
            counts = both.bincount(minlength=cells).double()
            assert len(counts) == cells
            chi2 = ((counts - count / cells) ** 2).sum() / (count / cells)
            assert abs((chi2 - (cells - 1)) / math.sqrt(2 * (cells - 1))) < 5, (FACTORS[i], FACTORS[j])


def test_the_seed_decides_the_sprites():
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(sprites(20, size=16))
    assert torch.equal(drawn[0].factors, drawn[1].factors)
    assert torch.equal(drawn[0].images, drawn[1].images)
    assert not torch.equal(drawn[0].factors, drawn[2].factors)


def test_no_factors_give_no_pictures():
    nothing = torch.zeros(0, 5, dtype=torch.int64)
    assert sprite_values(nothing).shape == (0, 5)
    assert draw_sprites(nothing, 16).shape == (0, 1, 16, 16)
    assert draw_sprites(nothing).dtype == torch.float32


def test_factors_are_not_touched():
    table = some(5)
    before = table.clone()
    draw_sprites(table, 8)
    assert torch.equal(table, before)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: sprites(0), ValueError, r"^count is 0 but must be at least 1"),
        (lambda: sprites(3, size=7), ValueError, r"^size is 7 but must be at least 8"),
        (lambda: draw_sprites(factors(), 0), ValueError, r"^size is 0 but must be at least 8"),
        (lambda: draw_sprites([[0] * 5]), TypeError, r"^factors must be .* torch\.int64, not list"),
        (lambda: draw_sprites(factors().float()), TypeError, r"of torch\.int64, not torch\.float32"),
        (lambda: sprite_values(factors().int()), TypeError, r"of torch\.int64, not torch\.int32"),
        (lambda: sprite_values(factors()[0]), ValueError, r"^factors has shape \(5,\) but needs \(N, 5\)"),
        (lambda: sprite_values(factors()[:, :4]), ValueError, r"^factors has shape \(1, 4\) but needs"),
        (lambda: draw_sprites(factors(shape=3)), ValueError, r"has a shape from 3 to 3 but needs 0 to 2"),
        (lambda: draw_sprites(factors(scale=6)), ValueError, r"has a scale from 6 to 6 but needs 0 to 5"),
        (
            lambda: draw_sprites(factors(rotation=[0, 40])),
            ValueError,
            r"^factors has a rotation from 0 to 40 but needs 0 to 39",
        ),
        (lambda: sprite_values(factors(x=[-1, 3])), ValueError, r"has a x from -1 to 3 but needs 0 to 31"),
        (lambda: sprite_values(factors(y=32)), ValueError, r"has a y from 32 to 32 but needs 0 to 31"),
    ],
)
def test_bad_inputs_are_refused_in_words(call, error, message):
    with pytest.raises(error, match=message):
        call()
