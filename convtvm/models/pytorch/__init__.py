"""Exported PyTorch programs as Relax functions: TVM's importer and the operators it lacks."""
