"""Shapes in, shapes out."""

import pytest
import torch
from torch import nn

from aecourse.nets import MLPDecoder, MLPEncoder, mlp


def test_mlp_has_a_relu_between_layers_and_none_after_the_last():
    layers = list(mlp([5, 4, 3, 2]))
    assert [type(layer) for layer in layers] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]
    assert [tuple(layer.weight.shape) for layer in layers[::2]] == [(4, 5), (3, 4), (2, 3)]


@pytest.mark.parametrize("image_shape", [(7,), (1, 8, 8), (3, 5, 4)])
@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
def test_encoder_and_decoder_work_for_any_image_shape(image_shape, hidden):
    encoder, decoder = MLPEncoder(image_shape, 2, hidden), MLPDecoder(2, image_shape, hidden)
    mean, logvar = encoder(torch.rand(4, *image_shape))
    assert mean.shape == logvar.shape == (4, 2)
    assert decoder(mean).shape == (4, *image_shape)


def test_the_first_half_of_the_outputs_is_the_mean_and_the_second_the_log_variance():
    # Weights that were saved depend on it.
    encoder, x = MLPEncoder((7,), 2, ()), torch.rand(4, 7)
    mean, logvar = encoder(x)
    outputs = encoder.net(x)
    assert torch.equal(mean, outputs[:, :2])
    assert torch.equal(logvar, outputs[:, 2:])


def test_examples_of_a_batch_do_not_mix():
    encoder, decoder = MLPEncoder((1, 4, 4), 2, (6,)), MLPDecoder(2, (1, 4, 4), (6,))
    x = torch.rand(3, 1, 4, 4)
    together = decoder(encoder(x)[0])
    alone = torch.cat([decoder(encoder(one)[0]) for one in x.split(1)])
    torch.testing.assert_close(together, alone)
