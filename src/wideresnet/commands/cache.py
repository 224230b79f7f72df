"""`wrn cache`: show or clear what is kept for the next run."""

from __future__ import annotations

import argparse
import json
from typing import Any

from wideresnet.commands.verbs import add_verb


def add(verbs: Any) -> None:
    """Add the verb to the parser."""
    cache = add_verb(verbs, "cache", run, "show or clear what is kept for the next run", "wrn cache --clear")
    cache.add_argument(
        "--clear", action="store_true", help="remove decoded images, kernels and measurements (never your own files)"
    )


def run(args: argparse.Namespace) -> None:
    """Show or clear."""
    from wideresnet.base.format import human_bytes
    from wideresnet.base.paths import data_root
    from wideresnet.data.cache import cache_contents, clear_cache, downloads_bytes

    if args.clear:
        freed = clear_cache()
        print(json.dumps({"freed_bytes": freed}) if args.json else f"{human_bytes(freed)} freed under {data_root()}")
        return
    contents, downloads = cache_contents(), downloads_bytes()
    if args.json:
        print(json.dumps({"folder": str(data_root()), "contents": contents, "downloads_bytes": downloads}))
        return
    print(f"{data_root()} (set WRN_DATA to move it)")
    for name, num_bytes, what in contents:
        print(f"  {human_bytes(num_bytes):>10}  {what}  ({name})")
    print(f"  {human_bytes(downloads):>10}  downloads, which --clear leaves alone")
