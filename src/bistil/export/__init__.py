"""Finished models as a few megabytes that run without PyTorch: an ONNX graph, quantised, proven."""
