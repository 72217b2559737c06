"""Whole networks: ONNX or exported PyTorch in, one tuned library out."""
