"""Checkpoints: one safetensors file each, named by step and digest, written whole or not at all, verified when read."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from wideresnet.base.errors import WRNError
from wideresnet.spec.files import digest, make_folders, sync_folder, write_atomic

NAME = re.compile(r"step-(\d{9})-([0-9a-f]{16})\.safetensors")
KEPT = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged."""


class Damaged(ValueError):
    """The content of a checkpoint is not what was written."""


@dataclass(frozen=True)
class Checkpoint:
    """A point from which a run continues.

    Attributes:
        step: steps done so far.
        tensors: name -> tensor: weights, buffers, momentum, averaged weights, records.
        progress: plain JSON values: sums of the current epoch, seconds so far, digests.
    """

    step: int
    tensors: dict[str, Tensor]
    progress: dict[str, Any]

    def part(self, name: str) -> dict[str, Tensor]:
        """Return the tensors of a part, by their names in it: "network", "averaged", "momentum"."""
        return {key.removeprefix(f"{name}."): t for key, t in self.tensors.items() if key.startswith(f"{name}.")}


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write a checkpoint and remove all but the newest two.

    Raises:
        WRNError: no space is left; older checkpoints are untouched.
    """
    make_folders(folder)
    header = {"step": str(checkpoint.step), "progress": json.dumps(checkpoint.progress)}
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    content = save(tensors, header)
    path = folder / f"step-{checkpoint.step:09d}-{digest(content)[:16]}.safetensors"
    write_atomic(path, content)
    for old in list_checkpoints(folder)[KEPT:]:
        old.unlink()
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a folder, the newest first."""
    return sorted((path for path in folder.glob("step-*") if NAME.fullmatch(path.name)), reverse=True)


def newest_checkpoint(folder: Path, *, set_aside: bool = True) -> tuple[Checkpoint | None, list[str]]:
    """Find the newest checkpoint that is whole.

    Args:
        folder: of the checkpoints.
        set_aside: rename damaged ones, so that they do not count as one of the two that are kept.

    Returns:
        The checkpoint (None if the folder has none), and a sentence for each damaged one that was skipped.

    Only content that does not match the digest in its name is damage. Any other failure to read a checkpoint, such as
    missing permission or a network disk that does not answer, is raised as it is, and nothing is renamed.

    Raises:
        WRNError: there are checkpoints and every one is damaged.
        OSError: a checkpoint cannot be read now.
    """
    damaged: list[str] = []
    for path in list_checkpoints(folder):
        try:
            found = _read(path)
        except Damaged as error:
            damaged.append(f"checkpoint {path.name} is damaged ({error}); falling back to the previous one")
        else:
            for bad in list_checkpoints(folder)[: len(damaged)] if set_aside else ():
                bad.rename(bad.with_suffix(".damaged"))
                sync_folder(folder)
            return found, damaged
    if damaged:
        raise WRNError(
            f"{folder}: all {len(damaged)} checkpoints are damaged; start again with overwrite=True, or put a copy back"
        )
    return None, damaged


def _read(path: Path) -> Checkpoint:
    match = NAME.fullmatch(path.name)
    assert match is not None
    content = path.read_bytes()
    if digest(content)[:16] != match[2]:
        raise Damaged("its content does not match the digest in its name")
    # the header from the bytes that were checked: `safe_open` reads the file again, and only by a path in UTF-8
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])["__metadata__"]
    return Checkpoint(int(header["step"]), load(content), json.loads(header["progress"]))
