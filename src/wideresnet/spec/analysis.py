"""What `analysis.json` holds: what each residual block of a trained network contributes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from wideresnet.base.errors import DataError
from wideresnet.spec.fields import short
from wideresnet.spec.files import parse_json, read_file, seal, unseal, write_json
from wideresnet.spec.result import has_type


@dataclass(frozen=True)
class Block:
    """One residual block.

    Attributes:
        name: "conv2.1" is the first block of the first group.
        projects: whether its shortcut changes channels or resolution; without the branch that shortcut remains.
        params: number of its parameters.
        error_without_pct: test error if its branch is removed, percent.
        branch_share: norm of the branch over the sum of the norms of branch and shortcut, mean over images, 0..1.
        gradient_norm: of the test loss with respect to its parameters, L2; mean over batches.
        gradient_share: that norm over the sum of all blocks', 0..1.
    """

    name: str
    projects: bool
    params: int
    error_without_pct: float
    branch_share: float
    gradient_norm: float
    gradient_share: float

    @property
    def group(self) -> str:
        """The name of its group: "conv2"."""
        return self.name.partition(".")[0]


@dataclass(frozen=True)
class BlockMeasures:
    """All blocks of a network.

    Attributes:
        num_images: test images behind errors and norms.
        num_compared: those behind gradients and similarity.
        error_pct: of the whole network on these images, percent.
        blocks: from the first to the last.
        similarity: (blocks, blocks), linear CKA between the outputs of blocks, up to 1, to four decimals.
    """

    num_images: int
    num_compared: int
    error_pct: float
    blocks: tuple[Block, ...]
    similarity: tuple[tuple[float, ...], ...]

    def increases_pct(self, *, projecting: bool | None = None) -> list[float]:
        """Return by how much the error rises without each block, in percentage points.

        Args:
            projecting: only blocks that change channels or resolution, or only the others; None for all.
        """
        chosen = (block for block in self.blocks if projecting in (None, block.projects))
        return [block.error_without_pct - self.error_pct for block in chosen]

    def neighbor_similarity(self) -> list[float]:
        """Return the similarity of each block's output to that of the block before it, from the second block on."""
        return [self.similarity[place][place - 1] for place in range(1, len(self.blocks))]


@dataclass(frozen=True)
class Analysis(BlockMeasures):
    """The blocks of trained weights, and what they were measured on.

    Attributes:
        weights: the path that was given.
        weights_sha256: of `model.safetensors`; None for weights of a checkpoint.
        network: its name.
        params: number of its parameters.
        dataset: name of the data.
        num_test_images: all test images of the data, of which `num_images` were used.
        device: "cpu" or "cuda"; the arithmetic is fp32.
        seconds: how long it took.
        notes: what the reader of the numbers should know, one line each.
    """

    weights: str
    weights_sha256: str | None
    network: str
    params: int
    dataset: str
    num_test_images: int
    device: str
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return values for JSON: the fields by name, first those of the network."""
        values = asdict(self)
        first = [field.name for field in fields(self) if field.name not in {f.name for f in fields(BlockMeasures)}]
        return {name: values[name] for name in (*first, *values)}

    @classmethod
    def from_json(cls, values: Any, where: Path) -> Analysis:
        """Return the inverse of `to_json`.

        Raises:
            DataError: a field is missing or of another type.
        """
        values = _checked(values, _FIELDS, where)
        blocks = tuple(Block(**_checked(block, _BLOCK_FIELDS, where)) for block in values["blocks"])
        rows, num = values["similarity"], len(blocks)
        square = len(rows) == num and all(isinstance(row, list) and len(row) == num for row in rows)
        if not (blocks and square and all(has_type(cell, float) for row in rows for cell in row)):
            raise DataError(f"{where}: similarity must be numbers for {num} x {num} blocks; the file was damaged")
        if not all(isinstance(note, str) for note in values["notes"]):
            raise DataError(f"{where}: notes must be texts; the file was damaged")
        return cls(
            **{
                **values,
                "blocks": blocks,
                "similarity": tuple(map(tuple, rows)),
                "notes": tuple(values["notes"]),
            }
        )


_BLOCK_FIELDS: dict[str, type] = {
    "name": str, "projects": bool, "params": int, "error_without_pct": float, "branch_share": float,
    "gradient_norm": float, "gradient_share": float,
}  # fmt: skip
_FIELDS: dict[str, type] = {
    "weights": str, "weights_sha256": str, "network": str, "params": int, "dataset": str, "num_test_images": int,
    "device": str, "seconds": float, "notes": list, "num_images": int, "num_compared": int, "error_pct": float,
    "blocks": list, "similarity": list,
}  # fmt: skip


def _checked(values: Any, kinds: dict[str, type], where: Path) -> dict[str, Any]:
    """Return the known fields of an object."""
    if not isinstance(values, dict):
        raise DataError(f"{where}: {short(values)} is not a network or block; the file was damaged")
    if missing := [name for name in kinds if name not in values]:
        raise DataError(f"{where}: lacks {missing[0]}; the file was damaged")
    for name, kind in kinds.items():
        is_unknown = name == "weights_sha256" and values[name] is None
        if not (has_type(values[name], kind) or is_unknown):
            raise DataError(f"{where}: {name} is {short(values[name])}; the file was damaged")
    return {name: values[name] for name in kinds}


def write_analyses(path: Path, analyses: Sequence[Analysis]) -> None:
    """Write `analysis.json`: the networks, with a digest of the document."""
    write_json(path, seal({"networks": [analysis.to_json() for analysis in analyses]}, path.name))


def read_analyses(path: Path) -> list[Analysis]:
    """Read `analysis.json`.

    Raises:
        DataError: the file cannot be read, or was damaged.
    """
    document, _ = unseal(parse_json(read_file(path), str(path)), path)
    networks = document.get("networks")
    if not isinstance(networks, list) or not networks:
        raise DataError(f"{path}: holds no networks; the file was damaged")
    return [Analysis.from_json(each, path) for each in networks]
