"""The operators on CUDA devices: Triton kernels, one file per operator, each with its meaning, its
launch and its kernel. Shapes and twins are those of the operators' CPU files and `reference.py`;
`configs.py` holds the launch configurations, `aot.py` compiles every one of them without a device.
"""
