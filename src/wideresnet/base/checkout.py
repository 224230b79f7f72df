"""The commit of this package, if it runs from a git checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit(package: Path = Path(__file__).parent.parent) -> str | None:
    """Return the commit that the package's code is from.

    Args:
        package: the package's folder.

    Returns:
        40 hexadecimal digits, and "-dirty" behind them if tracked files were changed since; None if the package is
        installed, or if git is not there to ask.
    """
    root = package.parent.parent
    if package.parent.name != "src" or not (root / ".git").exists():  # an environment within another project's checkout
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
