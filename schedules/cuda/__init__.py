"""Schedule templates for NVIDIA GPUs, one module per algorithm family."""
