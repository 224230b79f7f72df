"""Weights, photographs and exported models, which take seconds to make and are made once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from small_exports import SIZE, make_photos, make_weights, need_packages

from wideresnet.export import export_weights
from wideresnet.weights.hub import read_weights, write_weights


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights."""
    folder = tmp_path_factory.mktemp("trained")
    write_weights(folder, make_weights())
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return make_photos(tmp_path_factory.mktemp("photos"))


@pytest.fixture(scope="session")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Export the weights, once for each format and precision; skips the test if a package is missing."""
    made: dict[tuple[str, bool], Path] = {}

    def export(format: str, *, int8: bool = False) -> Path:
        need_packages(format)
        if (format, int8) not in made:
            images = np.random.default_rng(1).integers(0, 256, (64, *SIZE, 3), dtype=np.uint8) if int8 else None
            folder = tmp_path_factory.mktemp(f"{format}-{int8}")
            result = export_weights(read_weights(trained), format, folder, calibration=images)
            made[format, int8] = Path(result["file"])
        return made[format, int8]

    return export
