"""What becomes of loaded code under `copy` and `pickle`: copies share it, and it stays in its
process."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

_Self = TypeVar("_Self", bound="Shared")


class Shared:
    """Nothing of it changes by use, from any number of threads, so that a copy is the same one."""

    def __copy__(self: _Self) -> _Self:
        return self

    def __deepcopy__(self: _Self, memo: dict[int, Any]) -> _Self:
        return self


class Local(Shared):
    """It holds machine code that was loaded into this process. Pickling raises TypeError."""

    _elsewhere = ""  # what to do in the other process

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError(
            f"cannot pickle a {type(self).__name__}: it holds machine code loaded into this "
            f"process; {self._elsewhere}"
        )
