"""Vocabulary reduction: count, choose, trim tokenizer and embeddings, verify."""

from bistil.vocabulary.counting import TokenCounts, count_file
from bistil.vocabulary.report import TrimReport
from bistil.vocabulary.trimming import count_corpora, kept_ids, trim_vocabulary

__all__ = ["TokenCounts", "TrimReport", "count_corpora", "count_file", "kept_ids", "trim_vocabulary"]
