"""A policy without PyTorch: its arrays in one file, and one file of NumPy that acts with them."""
