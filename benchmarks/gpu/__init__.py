"""What the CUDA kernels cost: `python -m benchmarks.gpu` times every bench of this folder."""
