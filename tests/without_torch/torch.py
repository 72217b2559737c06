"""In the place of PyTorch, first on the path of a process that tests start."""

raise ImportError("PyTorch is hidden")
