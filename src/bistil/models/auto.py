"""Loading a dependency parser as the Auto classes of transformers load their models."""

from typing import Any

from bistil.models.loading import load_model, read_config, task_of
from bistil.models.parser import parser_class


class AutoModelForDependencyParsing:
    """Loads a parser's folder, or an encoder's under a new parser head."""

    @classmethod
    def from_pretrained(cls, folder: str, *, config: Any = None, **values: Any) -> Any:
        """Like the Auto classes of transformers.

        Args:
            folder: of a parser or of an encoder.
            config: instead of the folder's own; `values` are then options of `PreTrainedModel.from_pretrained`.
            values: without `config`, replace values of the folder's: `id2label`, `label2id`, `parser_projection`.

        Raises:
            ArtefactError: the folder holds no model, or a damaged one (without `config`).
        """
        if config is not None:
            return parser_class(config.__class__).from_pretrained(folder, config=config, **values)
        config = read_config(folder)
        trained = not values and "dependency-parsing" in map(task_of, config.architectures or ())
        for name, value in values.items():
            setattr(config, name, value)
        return load_model(folder, cls, head="whole" if trained else "new", config=config)[0]
