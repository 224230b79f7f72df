"""Our network in the format of each inference engine, by the converter that the engine comes with."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from wideresnet.base.arithmetic import spread
from wideresnet.bench.case import Case
from wideresnet.bench.peers import PeerError
from wideresnet.bench.words import ENGINES
from wideresnet.export.formats import network_to_onnx
from wideresnet.export.packages import need
from wideresnet.export.sessions import ENGINE_IMAGES, quantize_openvino

Files = dict[str, bytes]
"""A converted model: file name -> content."""

CONVERT_S = 600
"""Seconds that a converter may take."""


@lru_cache(maxsize=len(ENGINES))
def converted(name: str, case: Case) -> Files:
    """Convert the network of a case; the batch stays free. The cases of a network share the result."""
    return CONVERTERS.get(name, _onnx)(case)


@lru_cache(maxsize=1)
def _fp32_onnx(case: Case) -> bytes:
    return network_to_onnx(case.build().eval(), (case.size_px, case.size_px))


def _onnx(case: Case) -> Files:
    return {"model.onnx": _fp32_onnx(case)}


def _onnx_int8(case: Case) -> Files:
    return {"model.onnx": network_to_onnx(case.build().eval(), (case.size_px, case.size_px), _calibration(case))}


def _calibration(case: Case) -> np.ndarray:
    images = case.calibration()
    return images[spread(len(images), ENGINE_IMAGES)].contiguous().numpy()


def _openvino_int8(case: Case) -> Files:
    openvino, model = need("openvino"), quantize_openvino(_fp32_onnx(case), _calibration(case))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.xml")
        openvino.save_model(model, str(path), compress_to_fp16=False)
        return {"model.xml": path.read_bytes(), "model.bin": path.with_suffix(".bin").read_bytes()}


def _mnn(case: Case) -> Files:
    """Convert by the compiled part of MNN's converter.

    Its Python wrapper, MNN.tools.mnnconvert, installs packages by pip when it is imported, and reports to its makers.
    """
    code = "import sys, _tools; _tools.mnnconvert(sys.argv)"
    words = ["-f", "ONNX", "--modelFile", "model.onnx", "--MNNModel", "model.mnn"]
    return _by_program(case, [sys.executable, "-c", code, *words], ("model.mnn",))


def _ncnn(case: Case) -> Files:
    program = need("pnnx").EXEC_PATH
    size = f"inputshape=[1,{case.in_channels},{case.size_px},{case.size_px}]"
    return _by_program(case, [program, "model.onnx", size, "fp16=0"], ("model.ncnn.param", "model.ncnn.bin"))


def _by_program(case: Case, command: list[str], files: tuple[str, ...]) -> Files:
    """Run a converter in a folder that holds model.onnx."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "model.onnx").write_bytes(_fp32_onnx(case))
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=CONVERT_S)
        missing = [file for file in files if not Path(folder, file).is_file()]
        if done.returncode or missing:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise PeerError(
                f"its converter does not take {case.network}: {said[-1] if said else done.returncode}"[:300]
            )
        return {file: Path(folder, file).read_bytes() for file in files}


CONVERTERS: dict[str, Callable[[Case], Files]] = {
    "onnxruntime-int8": _onnx_int8,
    "openvino-int8": _openvino_int8,
    "ncnn": _ncnn,
    "mnn": _mnn,
}
"""How the network is converted; the others read ONNX."""
