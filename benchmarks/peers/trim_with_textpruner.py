"""Trim with TextPruner: MODEL OUTPUT MIN_COUNT TEXT..."""

import sys
from pathlib import Path

import transformers
from textpruner import GeneralConfig, VocabularyPruner
from textpruner.configurations import VocabularyPruningConfig

if __name__ == "__main__":
    model, output, least, *texts = sys.argv[1:]
    config = transformers.AutoConfig.from_pretrained(model)
    loaded = getattr(transformers, config.architectures[0]).from_pretrained(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    pruner = VocabularyPruner(
        loaded,
        tokenizer,
        vocabulary_pruning_config=VocabularyPruningConfig(min_count=int(least)),
        general_config=GeneralConfig(use_device="cpu", output_dir=str(Path(output).parent)),
    )
    pruner.prune(dataiter=[line for text in texts for line in Path(text).read_text(encoding="utf-8").splitlines()])
    pruner.save_model(Path(output).name)
