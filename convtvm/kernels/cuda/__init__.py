"""NVIDIA GPUs: algorithms, code generation and machine code, with no GPU and no driver needed."""
