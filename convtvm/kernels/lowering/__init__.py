"""From a scheduled function to what a compiler takes: TVM's passes and our own."""

from convtvm.kernels.lowering.pipeline import lower

__all__ = ["lower"]
