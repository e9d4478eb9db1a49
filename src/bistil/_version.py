"""The version, which everything may import. What is left to do for a release: docs/versioning.md."""

__version__ = "0.2.0.dev0"
