"""The machine's plumbing: files written whole, progress, memory, fast kernels."""
