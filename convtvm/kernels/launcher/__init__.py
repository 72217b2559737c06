"""The launcher of parallel loops, launcher.c, as an object file for any target.

A user who compiles a library has LLVM, in TVM, but perhaps no C compiler. So launcher.ll comes
along, which scripts/make_launcher made of launcher.c.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import tvm
from tvm.target import Target

# What tells a CPU that its thread only waits, by the first part of the triple.
_RELAX = {"x86_64": "pause", "aarch64": "yield"}
_THREADS = "@convtvm_threads = external local_unnamed_addr constant i32, align 4"
_RELAXES = "declare void @convtvm_relax() local_unnamed_addr"


@cache
def object_code(triple: str, threads: int) -> bytes:
    """The object file for machines of `triple`, with `threads` as the number for its library."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "launcher.ll")
        path.write_text(_assembly(triple, threads), encoding="utf8")
        module = tvm.get_global_func("ffi.Module.load_from_file.ll")(str(path), "ll")
        made = Path(folder, "launcher.o")
        module.write_to_file(str(made))
        return made.read_bytes()


def _assembly(triple: str, threads: int) -> str:
    """launcher.ll for one target; what it leaves open is defined, and TVM told of the target."""
    text = Path(__file__).with_name("launcher.ll").read_text(encoding="utf8")
    instruction = _RELAX[triple.split("-")[0]]
    relax = f'call void asm sideeffect "{instruction}", ""()'
    defined = {
        _THREADS: f"@convtvm_threads = internal constant i32 {threads}",
        _RELAXES: f"define internal void @convtvm_relax() {{\n  {relax}\n  ret void\n}}",
    }
    for declaration, definition in defined.items():
        if declaration not in text:
            raise AssertionError(f"launcher.ll lacks {declaration!r}")
        text = text.replace(declaration, definition)
    target = str(Target({"kind": "llvm", "mtriple": triple})).replace('"', "\\22")
    flags = '!llvm.module.flags = !{!0}\n!0 = !{i32 4, !"tvm_target", !1}'
    return f'target triple = "{triple}"\n{text}\n{flags}\n!1 = !{{!"{target}"}}\n'
