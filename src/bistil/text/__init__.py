"""Plain text: files, lines, token blocks, the order in which training sees them."""

IGNORED = -100
"""Label of a position where nothing is to be predicted: cross-entropy leaves it out (PyTorch's default)."""
