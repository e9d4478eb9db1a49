"""Models and their folders: names, families, tokenizers, loading, heads, writing, cards."""
