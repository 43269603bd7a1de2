"""A policy without PyTorch: arrays and a file of NumPy that acts with them, or an ONNX file."""
