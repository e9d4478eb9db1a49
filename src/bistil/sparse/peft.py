"""To and from PEFT's SHiRA adapters (Bhardwaj et al., "Sparse High Rank Adapters", NeurIPS 2024)."""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bistil.errors import ArtefactError, InputError, MissingExtraError
from bistil.models.fingerprint import resolve_names
from bistil.runtime.artefacts import read_json, whole_folder
from bistil.runtime.insides import PEFT_PREFIX, shira_keys, shira_module
from bistil.sparse.artefact import SparseFineTuning
from bistil.sparse.delta import RECORD, Provenance, SparseDelta
from bistil.sparse.files import read_tensors

_WEIGHTS, _CONFIG = "adapter_model.safetensors", "adapter_config.json"


def write_shira(sft: SparseFineTuning, model: nn.Module, folder: Path, *, replace: bool = False) -> None:
    """Write an SFT as a SHiRA adapter that `PeftModel.from_pretrained(model, folder)` loads.

    SHiRA wants r * (rows + columns) entries in every layer, with one r for all. The smallest r that holds all deltas
    is taken, and layers with fewer are filled up with entries whose delta is zero. Heads become `modules_to_save`.

    Args:
        model: the base that the adapter is for; tells linear layers from embeddings.
        replace: a folder of ours gives way.

    Raises:
        InputError: the folder may not be written (`runtime.artefacts.claim`), deltas elsewhere than on weights of
            linear layers, a head that is not a whole module, or layers too densely tuned to be filled up. The message
            says which.
        MissingExtraError: PEFT is not installed.
    """
    try:
        from peft import ShiraConfig
    except ImportError as error:
        raise MissingExtraError("PEFT is not installed: pip install 'bistil[peft]'") from error

    names = resolve_names(model, [*sft.deltas, *sft.dense], what=sft.name)
    modules = dict(model.named_modules())
    layers: dict[str, SparseDelta] = {}
    for name, delta in sft.deltas.items():
        path, _, attribute = names.get(name, name).rpartition(".")
        if not len(delta.indices):
            continue
        module = modules.get(path)
        if not isinstance(module, nn.Linear) or attribute != "weight":
            raise InputError(
                f"{sft.name} cannot become a SHiRA adapter: it changes {name}, and SHiRA holds weights of linear "
                "layers only"
            )
        layers[path] = delta
    heads = sorted({names.get(name, name).rpartition(".")[0] for name in sft.dense})
    for head in heads:
        own = {f"{head}.{name}" for name, _ in model.get_submodule(head).named_parameters()}
        if not own <= {names.get(name, name) for name in sft.dense}:
            raise InputError(f"{sft.name} cannot become a SHiRA adapter: it holds {head} in part, PEFT whole modules")
    if not layers:
        raise InputError(f"{sft.name} cannot become a SHiRA adapter: it has no deltas")
    rank = max(-(-len(delta.indices) // sum(delta.shape)) for delta in layers.values())
    tensors: dict[str, Tensor] = {}
    for path, delta in layers.items():
        wanted = rank * sum(delta.shape)
        if wanted > delta.size:
            raise InputError(
                f"{sft.name} cannot become a SHiRA adapter: one layer needs r = {rank}, and {path} has fewer than "
                f"{rank} x (rows + columns) entries"
            )
        indices, values = _filled(delta, wanted)
        rows, columns = indices // delta.shape[1], indices % delta.shape[1]
        of_values, of_places = shira_keys(path)
        tensors[of_values], tensors[of_places] = values, torch.stack([rows, columns]).int()
    tensors.update({f"{PEFT_PREFIX}{names.get(name, name)}": value.contiguous() for name, value in sft.dense.items()})
    config = ShiraConfig(
        r=rank,
        target_modules=sorted(layers),
        modules_to_save=heads or None,
        base_model_name_or_path=sft.provenance.base,
        inference_mode=True,
    )
    with whole_folder(folder, replace=replace, record=RECORD) as partial:
        save_file(tensors, partial / _WEIGHTS, metadata={"format": "pt"})
        config.save_pretrained(str(partial))


def _filled(delta: SparseDelta, wanted: int) -> tuple[Tensor, Tensor]:
    """The delta with the first unused entries added, at zero, until there are `wanted`."""
    used = torch.zeros(delta.size, dtype=torch.bool)
    used[delta.indices] = True
    spare = torch.nonzero(~used).flatten()[: wanted - len(delta.indices)]
    indices, order = torch.sort(torch.cat([delta.indices, spare]))
    return indices, torch.cat([delta.values, torch.zeros(len(spare))])[order]


def read_shira(folder: Path, model: nn.Module) -> SparseFineTuning:
    """Read a SHiRA adapter as an SFT; entries with a zero delta are left out.

    Args:
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
        model: the adapter's base, which knows the layers' shapes.

    Raises:
        InputError: missing files.
        ArtefactError: damaged files, an adapter of another kind, or of another base.
    """
    config = read_json(folder / _CONFIG)
    if not isinstance(config, dict) or config.get("peft_type") != "SHIRA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise ArtefactError(f"{folder} holds an adapter of type {kind}; only SHIRA adds to single entries")
    base = config.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise ArtefactError(f"{folder / _CONFIG}: 'base_model_name_or_path' is {base!r:.60}, which is no name: damaged")
    tensors = read_tensors(folder / _WEIGHTS)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters(remove_duplicate=False)}
    deltas: dict[str, SparseDelta] = {}
    dense: dict[str, Tensor] = {}
    layers = {key: module for key in tensors if (module := shira_module(key)) is not None}
    placed = {shira_keys(module)[1] for module in layers.values()}
    for key, value in tensors.items():
        if key not in layers:
            if key not in placed:
                dense[key.removeprefix(PEFT_PREFIX)] = value
            continue
        name = f"{layers[key]}.weight"
        places = tensors.get(shira_keys(layers[key])[1])
        if name not in shapes or len(shapes[name]) != 2:
            raise ArtefactError(f"{folder}: {type(model).__name__} has no matrix {name}: an adapter of another model")
        if value.ndim != 1 or not value.is_floating_point():
            raise ArtefactError(f"{folder / _WEIGHTS}: the deltas of {name} are no vector of floats: damaged")
        if places is None or places.is_floating_point() or places.shape != (2, len(value)):
            raise ArtefactError(f"{folder / _WEIGHTS}: {name} has no indices for its {len(value)} deltas: damaged")
        rows, columns = shapes[name]
        # A column beyond the matrix would turn up in the next row.
        if len(value) and (int(places.min()) < 0 or int(places[0].max()) >= rows or int(places[1].max()) >= columns):
            raise ArtefactError(f"{folder / _WEIGHTS}: {name} has an index beyond ({rows}, {columns}): damaged")
        indices, order = torch.sort(places[0].long() * columns + places[1].long())
        values = value.float()[order]
        deltas[name] = SparseDelta(indices[values != 0], values[values != 0], (rows, columns))
    provenance = Provenance(base=base, parents=[f"SHiRA adapter {folder.name}"])
    return SparseFineTuning(deltas, dense, provenance, str(folder))
