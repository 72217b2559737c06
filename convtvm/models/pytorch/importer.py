"""An exported program as a Relax function, with the module that every variable came from."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
import tvm
from torch import fx
from tvm import relax
from tvm.relax.frontend.torch.exported_program_translator import ExportedProgramImporter

from convtvm.errors import ModelError
from convtvm.models.pytorch.operators import CONVERTERS


def import_program(program: torch.export.ExportedProgram) -> tuple[tvm.IRModule, dict[str, str]]:
    """The program as a module with one function `main`, and where its variables came from.

    Raises ModelError, naming the operator and its module, for whatever cannot be compiled.
    """
    importer = _Importer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = program.run_decompositions()
        for node in program.graph.nodes:
            if node.op == "call_function":
                importer.check(node)
        module = importer.from_exported_program(
            program,
            keep_params_as_input=False,
            unwrap_unit_return_tuple=True,
            no_bind_return_tuple=False,
            custom_convert_map=None,
        )
    if importer.problem is not None:
        raise importer.problem
    return module, importer.origins


def _place(node: fx.Node) -> str:
    """The path of the innermost module that a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [str(path) for path, _ in stack.values()]
    return paths[-1].removeprefix("L['self'].") if paths and paths[-1] else "the model"


class _Importer(ExportedProgramImporter):
    """TVM's importer with converters of our own."""

    def __init__(self) -> None:
        super().__init__()
        self.origins: dict[str, str] = {}
        self.problem: ModelError | None = None

    def create_convert_map(self) -> dict[str, Callable[[fx.Node], Any]]:
        """TVM's converters and ours, each followed by a note of what it made."""
        own = {name: self._with_importer(convert) for name, convert in CONVERTERS.items()}
        every = {**super().create_convert_map(), **own}
        return {name: self._noted(convert) for name, convert in every.items()}

    def check(self, node: fx.Node) -> None:
        """Raise ModelError for an operator that nobody converts."""
        name = getattr(node.target, "__name__", str(node.target))
        if name in ("cond", "while_loop", "map_impl", "scan"):
            raise ModelError(
                f"{_place(node)}: control flow that depends on the data ({name}) cannot be "
                "compiled; decide it before exporting"
            )
        if name not in self.convert_map:
            raise ModelError(
                f"{_place(node)}: nothing computes operator {name}; write it in terms of others"
            )

    def _with_importer(self, convert: Callable[..., Any]) -> Callable[[fx.Node], Any]:
        return lambda node: convert(node, self)

    def _noted(self, convert: Callable[[fx.Node], Any]) -> Callable[[fx.Node], Any]:
        def noted(node: fx.Node) -> Any:
            try:
                made = convert(node)
            except Exception as error:  # whatever converters and type inference raise
                if isinstance(error, ModelError):
                    message = str(error)
                else:
                    lines = [line for line in str(error).splitlines() if line.strip()]
                    message = f"TVM does not import it: {lines[0] if lines else error!r}"
                raise ModelError(f"{_place(node)} ({node.target}): {message}") from error
            for value in made if isinstance(made, (list, tuple)) else [made]:
                if isinstance(value, relax.Var):
                    self.origins.setdefault(value.name, _place(node))
            return made

        return noted
