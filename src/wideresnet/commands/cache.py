"""`wrn cache`: show or clear what is kept for the next run."""

from __future__ import annotations

import argparse
from typing import Any

from wideresnet.base.format import human_bytes, printable
from wideresnet.commands.verbs import add_verb, show


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    cache = add_verb(verbs, "cache", run, "show or clear what is kept for the next run", "wrn cache --clear")
    cache.add_argument(
        "--clear", action="store_true",
        help="remove decoded images, kernels, converted networks and measurements (never your own files)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> None:
    """Show or clear."""
    from wideresnet.base.paths import data_root
    from wideresnet.data.cache import cache_contents, clear_cache, downloads_bytes

    folder = str(data_root())
    if args.clear:
        freed = clear_cache()
        show(args, {"freed_bytes": freed}, lambda _: f"{human_bytes(freed)} freed under {printable(folder)}")
        return
    show(args, {"folder": folder, "contents": cache_contents(), "downloads_bytes": downloads_bytes()}, _render)


def _render(document: dict[str, Any]) -> str:
    lines = [f"{document['folder']} (set WRN_DATA to move it)"]
    for name, num_bytes, what in document["contents"]:
        lines.append(f"  {human_bytes(num_bytes):>10}  {what}  ({name})")
    lines.append(f"  {human_bytes(document['downloads_bytes']):>10}  downloads, which --clear leaves alone")
    return "\n".join(lines)
