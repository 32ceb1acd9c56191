"""What holds of every model's loss: its gradient is its derivative, and it keeps single precision."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from aecourse.bounds import Loss


class WithLossAsForward(nn.Module):
    """A model whose call is its loss, with the same noise at every call."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, *batch: Tensor) -> Tensor:
        torch.manual_seed(3)
        return self.model.loss(*batch).total


def assert_gradient_is_derivative(model: nn.Module, *batch: Tensor, fast_mode: bool = False) -> list[Tensor]:
    """Hold the gradient of a loss against its differences; the gradient of each parameter."""
    whole = WithLossAsForward(model)
    names = [name for name, _ in whole.named_parameters()]
    values = [parameter.detach().clone().requires_grad_() for parameter in whole.parameters()]

    def total(*values: Tensor) -> Tensor:
        return functional_call(whole, dict(zip(names, values)), batch)

    assert torch.autograd.gradcheck(total, values, fast_mode=fast_mode)
    return [*torch.autograd.grad(total(*values), values)]


def assert_single_precision_under_autocast(model: nn.Module, *batch: Tensor) -> Loss:
    """Hold a loss whose networks compute in bfloat16 against the exact one; the former."""
    torch.manual_seed(3)
    exact = model.loss(*batch).total
    torch.manual_seed(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model.loss(*batch)
    assert {value.dtype for value in loss.terms.values()} == {torch.float32}
    torch.testing.assert_close(loss.total, exact, rtol=0.05, atol=0.1)
    return loss
