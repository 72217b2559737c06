"""PyTorch models with tuned convolutions."""

from convtvm.torch.optimizing import Optimized, Site, optimize

__all__ = ["Optimized", "Site", "optimize"]
