"""What the tests do with a student's module, in whichever process it lives."""

import torch
from torch import Tensor

from aecourse.checks.calling import Answers, call_here, exchanged, given_in


class Held:
    """A ``torch.nn.Module`` behind a few operations whose arguments and results are plain data."""

    def __init__(self, module: torch.nn.Module):
        self.module = module

    def each(self, method: str, calls: list[tuple[tuple, dict]]) -> Answers:
        """The results of a method, or of a submodule, for each pair of arguments and keywords."""
        return call_here(getattr(self.module, method), calls)

    def state(self) -> dict[str, Tensor]:
        """Copies of all parameters and buffers, by name."""
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        """Set all parameters; the module takes their dtype."""
        self.module.to(next(iter(state.values())).dtype)
        self.module.load_state_dict({name: value.clone() for name, value in state.items()})

    def training(self, mode: bool | None = None) -> bool:
        """Whether the module is in training mode; with an argument, after switching to it."""
        if mode is not None:
            self.module.train(mode)
        return bool(self.module.training)

    def parameter_gradients(self, method: str, arguments: tuple) -> dict[str, Tensor | None]:
        """Gradients, by parameter, of the `weighted_sum` of a method's results."""
        names, parameters = zip(*self.module.named_parameters())
        copies = {tensor: tensor.detach().clone() for tensor in given_in(arguments)}
        result = getattr(self.module, method)(*exchanged(arguments, copies.__getitem__))
        parts = [part for part in (result if isinstance(result, tuple | list) else (result,))]
        parts = [part for part in parts if isinstance(part, Tensor) and part.requires_grad]
        if not parts:
            return dict.fromkeys(names)
        return dict(zip(names, torch.autograd.grad(weighted_sum(parts), parameters, allow_unused=True)))


def weighted_sum(parts) -> Tensor:
    """One number of several tensors, in which each entry has its own weight: none stands for another."""
    return sum((part * torch.arange(1, part.numel() + 1).reshape(part.shape)).sum() for part in parts)
