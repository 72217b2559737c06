"""What it is computed on: targets, this CPU, this GPU, NVIDIA's libraries."""
