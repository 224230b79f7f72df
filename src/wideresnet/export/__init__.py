"""Trained networks for other runtimes: ONNX, OpenVINO and torch.export; and exported models at work in `wrn`."""

from __future__ import annotations

from wideresnet.export.engines import run_with as run_with
from wideresnet.export.load import read_exported as read_exported
from wideresnet.export.write import export_weights as export_weights
