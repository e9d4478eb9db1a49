"""The artefact of sparse fine-tuning: sparse deltas of a base model, dense heads, and where they come from."""

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from huggingface_hub import HfApi
from torch import Tensor, nn

from bistil._moved import left_names
from bistil.errors import ArtefactError, InputError
from bistil.models.fingerprint import resolve_names, tensor_digest
from bistil.models.upload import upload
from bistil.runtime.artefacts import check_product, whole_folder
from bistil.sparse.base import fingerprint
from bistil.sparse.delta import CONFIG, RECORD, Parts, Provenance, SparseDelta
from bistil.sparse.files import Values, read_files, write_files
from bistil.sparse.hub import sft_folder
from bistil.sparse.ledger import Patch, ledger_of
from bistil.sparse.legacy import LEGACY_FILE, read_parts

if not TYPE_CHECKING:
    __getattr__ = left_names("bistil.sparse.artefact")


@dataclass(eq=False)
class SparseFineTuning(Parts):
    """phi in theta + phi: sparse deltas per parameter and dense tensors for heads.

    See `Parts` for its attributes, and what of them is checked when one is made.
    """

    def digest(self) -> str:
        """SHA-256 over names, indices, deltas and heads."""
        whole = hashlib.sha256()
        for name in sorted(self.deltas):
            whole.update(tensor_digest(name, self.deltas[name].indices) + tensor_digest(name, self.deltas[name].values))
        for name in sorted(self.dense):
            whole.update(tensor_digest(name, self.dense[name]))
        return whole.hexdigest()

    # Wearing

    def apply(self, model: nn.Module, *, heads: bool = True) -> None:
        """Put the SFT on a model, on top of what it wears: entries += deltas, heads replaced.

        Everything is checked before anything is written. Entries of heads that the model lacks are left out.

        Args:
            heads: false leaves the model's dense head parameters as they are.

        Raises:
            ArtefactError: made for another architecture, or parameters of another shape.
            InputError: worn already.
        """
        ledger = ledger_of(model)
        patch = ledger.known.get(self)
        if patch is None or patch.heads != heads or not patch.fits(model):
            patch = self._patch(model, heads=heads)
        ledger.put_on(self, patch)

    def revert(self, model: nn.Module) -> None:
        """Take the SFT off: the model is, bit for bit, as if it had never been put on.

        Raises:
            InputError: not worn.
        """
        ledger_of(model).take_off(self)

    @contextmanager
    def applied(self, model: nn.Module, *, heads: bool = True) -> Iterator[nn.Module]:
        """`with sft.applied(model):` wears the SFT inside the block."""
        self.apply(model, heads=heads)
        try:
            yield model
        finally:
            self.revert(model)

    def _patch(self, model: nn.Module, *, heads: bool) -> Patch:
        names = resolve_names(model, [*self.deltas, *self.dense], what=self.name)
        known = dict(model.named_parameters(remove_duplicate=False))
        patch = Patch(names={}, sparse=[], dense=[], heads=heads)
        for name, delta in self.deltas.items():
            if name in names:
                parameter = known[names[name]]
                self.check_shape(name, delta.shape, parameter)
                if len(delta.indices):
                    patch.names[names[name]] = parameter
                    device = parameter.device
                    patch.sparse.append((parameter, delta.indices.to(device), delta.values.to(device)))
        for name, value in self.dense.items() if heads else ():
            if name in names:
                parameter = known[names[name]]
                self.check_shape(name, tuple(value.shape), parameter)
                patch.names[names[name]] = parameter
                patch.dense.append((parameter, value))
        return patch

    def check_shape(self, name: str, shape: tuple[int, ...], parameter: nn.Parameter) -> None:
        """Raises ArtefactError unless a parameter of the SFT has the shape of the model's."""
        if tuple(parameter.shape) != tuple(shape):
            raise ArtefactError(
                f"{self.name}: {name} has shape {tuple(shape)}, the model's has {tuple(parameter.shape)}: "
                "it belongs to another model, another label set or an untrimmed vocabulary"
            )

    def merge(self, model: nn.Module) -> None:
        """Put the SFT on for good: the model is plain, and what it wears cannot be taken off any more.

        Raises:
            ArtefactError: made for another architecture, or parameters of another shape.
        """
        if not ledger_of(model).wears(self):
            self.apply(model)
        ledger_of(model).settle()

    # Arithmetic

    def scaled(self, factor: float) -> "SparseFineTuning":
        """factor * phi. Heads, which replace and do not add, stay as they are."""
        deltas = {n: SparseDelta(d.indices, d.values * factor, d.shape) for n, d in self.deltas.items()}
        return SparseFineTuning(deltas, dict(self.dense), self._derived(f"{factor} x {self.name}"), self.name)

    def _derived(self, how: str) -> Provenance:
        return Provenance(
            **{**{f.name: getattr(self.provenance, f.name) for f in fields(Provenance)}, "parents": [how]}
        )

    def trimmed(
        self, kept_ids: Tensor, embeddings: Sequence[str], *, base: nn.Module | None = None
    ) -> "SparseFineTuning":
        """The SFT for a base whose vocabulary was trimmed: rows of dropped tokens go, the others move.

        Args:
            kept_ids: (new vocabulary,) int64, old id of every new id, each at most once.
            embeddings: names of the parameters (sparse or dense) whose first dimension is the vocabulary.
            base: the trimmed model, for its fingerprint; without it the new SFT's base is not known.

        Raises:
            InputError: an embedding that the SFT does not have, or ids beyond its rows.
        """
        kept_ids = kept_ids.cpu().long()
        deltas, dense = dict(self.deltas), dict(self.dense)
        for name in embeddings:
            if name in deltas:
                deltas[name] = deltas[name].rows_selected(kept_ids, name)
            if name in dense:
                dense[name] = dense[name].cpu()[kept_ids]
            if name not in deltas and name not in dense:
                raise InputError(f"{self.name} has no parameter {name!r} to trim")
        return self._on_base(deltas, dense, f"trimmed {self.name}", base)

    def expanded(
        self, kept_ids: Tensor, embeddings: Sequence[str], vocabulary: int, *, base: nn.Module | None = None
    ) -> "SparseFineTuning":
        """Inverse of `trimmed`: an SFT of a trimmed model on the full vocabulary; other tokens' rows stay as they are.

        Args:
            kept_ids: (trimmed vocabulary,) int64, full id of every trimmed id.
            embeddings: names of the sparse parameters whose first dimension is the vocabulary.
            vocabulary: rows of the full model's embeddings.
            base: the full model, for its fingerprint.

        Raises:
            InputError: a parameter that is dense (its other rows are not known) or is not in the SFT.
        """
        kept_ids = kept_ids.cpu().long()
        deltas = dict(self.deltas)
        for name in embeddings:
            if name not in deltas:
                raise InputError(f"{self.name} has no sparse parameter {name!r} to expand")
            deltas[name] = deltas[name].rows_placed(kept_ids, vocabulary)
        return self._on_base(deltas, dict(self.dense), f"expanded {self.name}", base)

    def _on_base(
        self, deltas: dict[str, SparseDelta], dense: dict[str, Tensor], how: str, base: nn.Module | None
    ) -> "SparseFineTuning":
        provenance = self._derived(how)
        provenance.fingerprint = fingerprint(base) if base is not None else None
        provenance.base = getattr(base, "name_or_path", None) or None
        provenance.maskable_entries = None
        return SparseFineTuning(deltas, dense, provenance, self.name)

    # On disk

    def save(
        self,
        folder: Path | str,
        *,
        values: Values = "float32",
        replace: bool = False,
    ) -> None:
        """Write `sft.safetensors`, `sft_config.json`, a card `README.md` and the record `bistil.json`, all or nothing.

        Args:
            values: number format of the deltas; the half formats round them.
            replace: a folder of ours gives way.

        Raises:
            InputError: the folder may not be written (`runtime.artefacts.claim`).
        """
        with whole_folder(Path(folder), replace=replace, record=RECORD) as partial:
            self.write_into(partial, values=values)

    def write_into(self, folder: Path, *, values: Values = "float32") -> None:
        """Write what `save` writes, but the record, into a folder that is being made."""
        write_files(self, folder, values=values)

    def save_pretrained(self, folder: Path | str) -> None:
        """`save`; an earlier folder of ours gives way, as in transformers."""
        self.save(folder, replace=True)

    def push_to_hub(
        self,
        repository: str,
        *,
        private: bool | None = None,
        message: str = "Sparse fine-tuning",
        api: HfApi | None = None,
    ) -> str:
        """Upload the SFT with its card (`models.upload.upload`); returns the commit's address."""
        with TemporaryDirectory() as temporary:
            folder = Path(temporary) / "sft"
            self.save(folder)
            return upload(folder, repository, private=private, message=message, api=api)

    @classmethod
    def from_pretrained(cls, name: Path | str, *, revision: str | None = None) -> "SparseFineTuning":
        """`load`, by the name that transformers has for it."""
        return cls.load(name, revision=revision)

    @classmethod
    def load(
        cls, name: Path | str, *, base: nn.Module | None = None, force: bool = False, revision: str | None = None
    ) -> "SparseFineTuning":
        """Read an SFT from a folder or from the hub; a folder with a published `pytorch_diff.bin` will do too.

        Args:
            name: folder, or hub name.
            base: the model that is to wear it, to check against its fingerprint.
            force: load it although `base` is another model.
            revision: of a hub name.

        Raises:
            InputError: no such folder.
            ArtefactError: damaged files, or another base.
        """
        folder = sft_folder(str(name), revision=revision)
        check_product(folder)
        if not (folder / CONFIG).exists() and (folder / LEGACY_FILE).exists():
            sft = cls(**{**vars(read_parts(folder / LEGACY_FILE)), "name": str(name)})
        else:
            sft = cls(**vars(read_files(folder, str(name))))
        if base is not None and not force:
            sft.check_base(base)
        return sft

    def check_base(self, model: nn.Module) -> None:
        """Compare a model with the base that this SFT was made for. Without a fingerprint nothing is compared.

        Raises:
            ArtefactError: it is another base.
        """
        resolve_names(model, self.deltas, what=self.name)
        if self.provenance.fingerprint is not None:
            self.check_fingerprint(fingerprint(model))

    def check_fingerprint(self, other: str | None) -> None:
        """As `check_base`, for a model of which only the fingerprint is at hand; None: it is not known.

        Raises:
            ArtefactError: it is another base.
        """
        own = self.provenance.fingerprint
        if own is not None and other is not None and own != other:
            raise ArtefactError(
                f"{self.name} was made for {self.provenance.base or 'another base'} (fingerprint {own[:12]}), this "
                f"model's is {other[:12]}: load its own base, or force it (force=True, --force-sfts) if you know better"
            )


def read_legacy(path: Path) -> SparseFineTuning:
    """An SFT out of a published `pytorch_diff.bin`.

    Raises:
        InputError, ArtefactError: as `legacy.read_parts`.
    """
    return SparseFineTuning(**vars(read_parts(path)))
