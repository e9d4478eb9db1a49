"""theta = theta_0 + scatter(delta): the deltas are the leaves, so frozen entries cannot move (LT-SFT, section 3.1)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class ScatterDelta(nn.Module):
    """theta_0 -> theta_0 + scatter(delta).

    Whatever the optimizer, its weight decay, clipping or the number of processes: only `delta` is a parameter with
    gradient, so optimizer state exists for K entries only. Weight decay acts on the delta, that is towards theta_0.

    Args:
        indices: (K,) int64, strictly increasing flat positions in the parameter.
    """

    indices: Tensor

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        self.register_buffer("indices", indices, persistent=False)
        self.delta = nn.Parameter(torch.zeros(len(indices), device=indices.device))

    def forward(self, theta: Tensor) -> Tensor:
        """(shape of the parameter) -> same shape; the gradient reaches delta by one gather."""
        # index_add with unique indices: no sum has more than two terms, so the result does not depend on their order.
        return theta.flatten().index_add(0, self.indices, self.delta.to(theta.dtype)).view(theta.shape)


@contextmanager
def only_free_entries(model: nn.Module, mask: Mapping[str, Tensor]) -> Iterator[dict[str, nn.Parameter]]:
    """Inside the block the masked parameters are theta_0 + scatter(delta), and the deltas are what is trainable.

    Tied parameters share one delta. At the end the parameters are plain again, with the bytes of theta_0.

    Args:
        model: its parameters at this moment are theta_0.
        mask: per parameter name, (K,) int64 strictly increasing flat indices; names with none are left alone.

    Yields:
        Per parameter name with at least one index: the delta, (K,), a leaf.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, attribute))
    deltas: dict[str, nn.Parameter] = {}
    dressed: list[tuple[nn.Module, str]] = []
    orders: dict[nn.Module, list[str]] = {}
    wanted = {id(parameter): parameter.requires_grad for parameter in named.values()}
    try:
        for name, indices in mask.items():
            parameter = named[name]
            parameter.requires_grad_(False)
            if not len(indices):
                continue
            scatter = ScatterDelta(indices.to(parameter.device))
            for module, attribute in places[id(parameter)]:
                orders.setdefault(module, list(module._parameters))
                parametrize.register_parametrization(module, attribute, scatter, unsafe=True)
                dressed.append((module, attribute))
            deltas[name] = scatter.delta
        yield deltas
    finally:
        for module, attribute in reversed(dressed):
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
        for module, order in orders.items():
            # Removal puts a parameter last in its module; optimizers and state dicts go by the order.
            module._parameters = {attribute: module._parameters[attribute] for attribute in order}
        for name in mask:
            named[name].requires_grad_(wanted[id(named[name])])
