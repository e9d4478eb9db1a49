"""Trim with trimbed: MODEL OUTPUT MIN_COUNT TEXT... (run by benchmarks/trim.py in trimbed's own environment)."""

import sys

from trimbed import CorpusConfig, DatasetSpec, SelectionConfig, TrimConfig, TrimPipeline

if __name__ == "__main__":
    model, output, least, *texts = sys.argv[1:]
    datasets = [DatasetSpec(path="text", data_files=text) for text in texts]
    config = TrimConfig(
        model=model,
        output_dir=output,
        trim_model=True,
        corpus=CorpusConfig(datasets=datasets),
        selection=SelectionConfig(min_count=int(least)),
    )
    TrimPipeline(config).run()
