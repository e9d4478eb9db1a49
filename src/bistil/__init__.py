"""Small, fast models for one language, distilled out of massively multilingual Transformers."""

__version__ = "0.1.0"
