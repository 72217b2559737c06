"""`convtvm cache`: what was compiled before, and how to be rid of it."""

from __future__ import annotations

from typing import Any

import click

from convtvm.cli.options import Group, examples, json_option
from convtvm.cli.output import print_json
from convtvm.library.cache import VARIABLE, open_cache


@click.group(cls=Group)
def cache() -> None:
    """Compiled kernels, kept for later processes. `convtvm info` shows where and how many.

    The environment variable CONVTVM_CACHE names another folder, or `off`.
    """


@cache.command(epilog=examples("convtvm cache clear"))
@json_option
def clear(as_json: bool) -> None:
    """Remove all compiled kernels."""
    kept = open_cache()
    removed = kept.clear()
    if as_json:
        print_json({"folder": str(kept.folder) if kept.folder else None, "removed": removed})
    else:
        place = f"in {kept.folder}" if kept.folder else f"since {VARIABLE} disables the cache"
        click.echo(f"{removed} {'entry' if removed == 1 else 'entries'} removed, {place}")


def facts() -> dict[str, Any]:
    """What `convtvm info` says of the cache, as JSON has it."""
    kept = open_cache()
    entries, size = kept.size()
    folder = str(kept.folder) if kept.folder else None
    return {"folder": folder, "entries": entries, "bytes": size}
