"""theta = theta_0 + scatter(delta): the deltas are the leaves, so frozen entries cannot move (LT-SFT, section 3.1).

On top of it, in multi-source training, theta + phi_language of the batch's language.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bistil.models.fingerprint import resolve_names
from bistil.sparse.artefact import SparseFineTuning


class ScatterDelta(nn.Module):
    """theta_0 -> theta_0 + scatter(delta).

    Whatever the optimizer, its weight decay, clipping or the number of processes: only `delta` is a parameter with
    gradient, so optimizer state exists for K entries only. Weight decay acts on the delta, that is towards theta_0.

    Args:
        indices: (K,) int64, strictly increasing flat positions in the parameter.
    """

    def __init__(self, indices: Tensor) -> None:
        super().__init__()
        # No buffer: DistributedDataParallel would send it around at every step.
        self.indices = indices
        self.delta = nn.Parameter(torch.zeros(len(indices), device=indices.device))

    def forward(self, theta: Tensor) -> Tensor:
        """(shape of the parameter) -> same shape; the gradient reaches delta by one gather."""
        self.indices = self.indices.to(theta.device)
        return _scattered(theta, self.indices, self.delta)


class Languages:
    """Which language's SFT is worn inside `parametrised`."""

    current: str | None = None


class LanguageDelta(nn.Module):
    """theta -> theta + phi_language, for the language that is current.

    Nothing is written to theta, so it can be trained meanwhile; its gradient passes unchanged.

    Args:
        languages: says which one is current; None, or one without deltas here, leaves theta as it is.
        deltas: per language, (K,) int64 flat indices and (K,) float32 values.
    """

    def __init__(self, languages: Languages, deltas: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__()
        self.languages, self.deltas = languages, dict(deltas)

    def forward(self, theta: Tensor) -> Tensor:
        """(shape of the parameter) -> same shape."""
        current = self.languages.current
        if current not in self.deltas:
            return theta
        indices, values = (tensor.to(theta.device) for tensor in self.deltas[current])
        self.deltas[current] = indices, values
        return _scattered(theta, indices, values)


def _scattered(theta: Tensor, indices: Tensor, values: Tensor) -> Tensor:
    # With unique indices no sum has more than two terms, so the result does not depend on the order of threads.
    return theta.flatten().index_add(0, indices, values.to(theta.dtype)).view(theta.shape)


@contextmanager
def parametrised(
    model: nn.Module,
    mask: Mapping[str, Tensor] | None = None,
    sources: Mapping[str, SparseFineTuning] | None = None,
) -> Iterator[tuple[dict[str, nn.Parameter], Languages]]:
    """Inside the block masked parameters are theta_0 + scatter(delta), plus the SFT of the current language.

    Tied parameters share one delta. At the end the parameters are plain again: the same objects, with the bytes they
    hold (theta_0 where they were masked).

    Args:
        mask: per parameter name, (K,) int64 strictly increasing flat indices; a parameter without indices is frozen.
            None: no parameter is masked.
        sources: SFT per language; their deltas on parameters that the model lacks (heads) are left out.

    Yields:
        Per parameter name with at least one index, the delta (K,), a leaf; and the switch between languages.
    """
    named = dict(model.named_parameters(remove_duplicate=False))
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for module in model.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            places.setdefault(id(parameter), []).append((module, attribute))
    of_languages = _by_parameter(model, sources or {})
    wanted = {name: named[name].requires_grad for name in mask or {}}
    orders: dict[nn.Module, list[str]] = {}
    dressed: dict[tuple[nn.Module, str], None] = {}
    deltas: dict[str, nn.Parameter] = {}
    languages = Languages()

    def add(parameter: nn.Parameter, step: nn.Module) -> None:
        for module, attribute in places[id(parameter)]:
            orders.setdefault(module, list(module._parameters))
            parametrize.register_parametrization(module, attribute, step, unsafe=True)
            dressed[module, attribute] = None

    try:
        for name, indices in (mask or {}).items():
            named[name].requires_grad_(False)
            if len(indices):
                scatter = ScatterDelta(indices.to(named[name].device))
                deltas[name] = scatter.delta
                add(named[name], scatter)
        for name, known in of_languages.items():
            add(named[name], LanguageDelta(languages, known))
        yield deltas, languages
    finally:
        for module, attribute in dressed:
            parametrize.remove_parametrizations(module, attribute, leave_parametrized=False)
        for module, order in orders.items():
            # Removal puts a parameter last in its module; optimizers and state dicts go by the order.
            module._parameters = {attribute: module._parameters[attribute] for attribute in order}
        for name, requires_grad in wanted.items():
            named[name].requires_grad_(requires_grad)


def _by_parameter(
    model: nn.Module, sources: Mapping[str, SparseFineTuning]
) -> dict[str, dict[str, tuple[Tensor, Tensor]]]:
    """Per parameter name of the model and per language, the sparse entries."""
    found: dict[str, dict[str, tuple[Tensor, Tensor]]] = {}
    for language, sft in sources.items():
        for name, own in resolve_names(model, sft.deltas, what=sft.name).items():
            delta = sft.deltas[name]
            sft.check_shape(name, delta.shape, model.get_parameter(own))
            if len(delta.indices):
                found.setdefault(own, {})[language] = (delta.indices, delta.values)
    return found
