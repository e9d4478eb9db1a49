"""One training loop for all phases."""
