"""The models of `benchmarks/left.py`: one for each pattern in JAX, some of them in PyTorch too."""
