"""Trim with lm-vocab-trimmer (PyPI: vocabtrimmer): MODEL OUTPUT MIN_COUNT TEXT..."""

import shutil
import sys
import tempfile
from pathlib import Path

import vocabtrimmer

if __name__ == "__main__":
    model, output, least, *texts = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        data.mkdir()
        for text in texts:
            shutil.copy(text, data)
        trimmer = vocabtrimmer.VocabTrimmer(model)
        trimmer.trim_vocab(
            path_to_save=output,
            language="bilingual",
            dataset=str(data),
            dataset_split="train",
            min_frequency=int(least),
            cache_file_vocab=f"{folder}/vocab.json",
            cache_file_frequency=f"{folder}/frequency.json",
        )
