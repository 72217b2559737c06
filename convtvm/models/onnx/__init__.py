"""ONNX graphs as Relax functions: reading a file, its nodes, converters by kind of operator."""
