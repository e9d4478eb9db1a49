"""Finished models as a few megabytes that run without PyTorch: for an engine, quantised, proven."""
