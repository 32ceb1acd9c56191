"""What is trained in several calls of ``fit``: each stage takes the stages before it as constants."""

from collections.abc import Iterator

from torch import Tensor, nn


class Stage(nn.Module):
    """A module some of whose parts, those listed in ``constant``, were trained before and stay as they are.

    They are in evaluation mode and not among the parameters, so that no optimiser touches them. They are
    among the buffers instead, so that a checkpoint of this stage is refused where these parts have other
    weights: it would go on with a model that it was not made with.
    """

    constant: tuple[str, ...] = ()

    def _constants(self) -> list[tuple[str, nn.Module]]:
        return [(name, getattr(self, name)) for name in self.constant]

    def train(self, mode: bool = True) -> "Stage":
        """As of any module, but for the constant parts, which stay in evaluation mode."""
        super().train(mode)
        for _, part in self._constants():
            part.eval()
        return self

    def named_parameters(self, *args, **options) -> Iterator[tuple[str, nn.Parameter]]:
        """What there is to train."""
        constants = {parameter for _, part in self._constants() for parameter in part.parameters()}
        yield from (pair for pair in super().named_parameters(*args, **options) if pair[1] not in constants)

    def named_buffers(
        self, prefix: str = "", recurse: bool = True, **options
    ) -> Iterator[tuple[str, Tensor]]:
        """The buffers, and the parameters of the constant parts."""
        yield from super().named_buffers(prefix, recurse, **options)
        if recurse:
            for name, part in self._constants():
                yield from part.named_parameters(prefix=f"{prefix}.{name}" if prefix else name)
