"""Fingerprint the numbers that the package produces, to prove that a change to the code left them alone.

    python tools/fingerprint.py --out before.json              # then change the code
    python tools/fingerprint.py --out after.json --keep after  # --keep: also write what each digest was computed from
    python tools/fingerprint.py --compare before.json after.json

The document holds, per section and item, the first 16 hex digits of a SHA-256 digest. The digests depend on what the
section "machine" lists, so only documents from one machine can be compared. Only the public interface and the command
line are used, so that the script survives moves of internal modules. The cases are in `fingerprint_cases.py`; all of
them take five minutes of processor time.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import hashlib
import importlib
import importlib.metadata
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fingerprint_cases as cases

# OpenMP reads this when PyTorch is imported. Threads that spin while they wait crawl on a machine that others use too.
os.environ |= {"OMP_NUM_THREADS": str(cases.THREADS), "OPENBLAS_NUM_THREADS": str(cases.THREADS)}
os.environ["OMP_WAIT_POLICY"] = "passive"

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

import wideresnet
from wideresnet.engines import accelerate

ROOT, CODE = Path(__file__).resolve().parent.parent, Path(wideresnet.__file__).resolve().parent.parent
STARTED = time.monotonic()
TIMES = re.compile(r"seconds|_s$|_s_|_mib$")  # JSON fields that the clock or the process's memory decides
MAX_INIT_PARAMS = 60_000_000  # larger networks take too long to initialize and hash

Texts = dict[str, str]
"""Item -> the text that its digest is computed from."""


# Digests, JSON, and the command line.


def digest(content: bytes) -> str:
    """Return the first 16 hex digits of the SHA-256 digest."""
    return hashlib.sha256(content).hexdigest()[:16]


def tensor_text(tensors: dict[str, Tensor]) -> str:
    """Return a line per tensor, sorted by name: name, dtype, shape, digest of the bytes in row-major order."""
    arrays = {name: tensor.detach().contiguous().numpy() for name, tensor in tensors.items()}
    return "".join(f"{name} {a.dtype} {a.shape} {digest(a.tobytes())}\n" for name, a in sorted(arrays.items()))


def json_text(*documents: str) -> str:
    """Return a line per JSON document, without times and with sorted keys."""

    def without_times(values: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in values.items() if not TIMES.search(key)}

    values = [json.loads(document, object_hook=without_times) for document in documents]
    return "".join(json.dumps(value, sort_keys=True) + "\n" for value in values)


def key_paths(value: Any, prefix: str = "") -> Iterator[str]:
    """Yield the keys of a JSON value, nested ones after a dot; a list counts by its first element."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{prefix}.{key}\n"
            yield from key_paths(inner, f"{prefix}.{key}")
    elif isinstance(value, list) and value:
        yield from key_paths(value[0], f"{prefix}[]")


def say(what: str) -> None:
    """Show progress on stderr."""
    print(f"{time.monotonic() - STARTED:6.1f} s  {what}", file=sys.stderr)


def start(folder: Path, words: str) -> subprocess.Popen[str]:
    """Start `wrn` in a folder, with a cache of its own and without a terminal."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WRN_")}
    environment |= {"PYTHONPATH": str(CODE), "WRN_DATA": str(folder / "cache"), "COLUMNS": "100", "NO_COLOR": "1"}
    environment["MATPLOTLIBRC"] = str(folder / "matplotlibrc")
    pipe, command = subprocess.PIPE, [sys.executable, "-m", "wideresnet", *shlex.split(words)]
    return subprocess.Popen(command, cwd=folder, env=environment, text=True, stdin=pipe, stdout=pipe, stderr=pipe)


def wrn(folder: Path, words: str, *, fails: bool = False) -> str:
    """Run `wrn` in a folder; return its stdout, or its exit code and stderr if it is supposed to fail."""
    process = start(folder, words)
    output, errors = process.communicate()
    say(f"wrn {words.replace(cases.MACHINE, '...')}")
    if bool(process.returncode) != fails:
        raise RuntimeError(f"wrn {words}: exit code {process.returncode}\n{errors}")
    return f"exit code {process.returncode}\n{errors}" if fails else output


def wrn_each(folder: Path, commands: Iterable[str], **options: bool) -> list[str]:
    """Run commands two at a time: most of their time goes into imports, on one core."""
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(lambda words: wrn(folder, words, **options), commands))


# Sections.


def record_texts(run: Path) -> Texts:
    """Return what the folder of a finished run has in common with that of an equal run."""
    texts = {name: json_text((run / name).read_text()) for name in ("recipe.json", "result.json", "config.json")}
    texts["metrics.jsonl"] = json_text(*(run / "metrics.jsonl").read_text().splitlines())
    return {"weights": tensor_text(load_file(run / "model.safetensors")), **texts}


def kill_and_resume(folder: Path, command: str) -> None:
    """Start a run in the folder `runs/killed`, kill it once it has a checkpoint, and resume it."""
    for _ in range(5):
        shutil.rmtree(folder / "runs" / "killed", ignore_errors=True)
        process = start(folder, f"{command} --out runs/killed --checkpoint-every 0")
        while process.poll() is None and not list(folder.glob("runs/killed/checkpoint/[!.]*")):
            time.sleep(0.002)
        process.kill()
        process.communicate()
        if process.returncode == -signal.SIGKILL:
            wrn(folder, "train --resume --out runs/killed")
            return
    sys.exit("the run that should be killed always ended before")


def runs(folder: Path) -> Texts:
    """Train short runs that together use most options, two seeds, and a run that is killed and resumed."""
    wrn_each(folder, [f"{command} --out runs/{name}" for name, command in cases.RUNS.items()])
    wrn(folder, f"{cases.SEEDS} --out runs/seeds")
    kill_and_resume(folder, cases.RUNS[cases.KILLED])
    names = (*cases.RUNS, "seeds/seed3", "seeds/seed4", "killed")
    records = {name: record_texts(folder / "runs" / name) for name in names}
    if records["killed"] != records[cases.KILLED]:
        sys.exit("the run that was killed and resumed differs from the one that was not")
    texts = {f"{name}/{part}": text for name, parts in records.items() for part, text in parts.items()}
    return texts | {"seeds/seeds.json": json_text((folder / "runs" / "seeds" / "seeds.json").read_text())}


def seeded_network(name: str, options: dict[str, Any]) -> Any:
    """Build a network whose normalizations look as if it had been trained."""
    torch.manual_seed(0)
    network = wideresnet.create(name, **options)
    for key, tensor in network.state_dict().items():
        if key.endswith("running_var") or (key.endswith("weight") and tensor.ndim == 1):
            tensor.uniform_(0.5, 1.5)
        elif key.endswith(("running_mean", "bias")):
            tensor.normal_(0, 0.2)
    return network.eval()


def pass_texts(network: Any, images: Tensor, wrap: Callable[[Any], Any]) -> Texts:
    """Return a forward pass in evaluation mode, and the logits, gradients and buffers of one in training mode."""
    network = copy.deepcopy(network)
    with torch.no_grad():
        texts = {"eval": tensor_text({"logits": wrap(network)(images)})}
    torch.manual_seed(1)  # dropout and stochastic depth
    logits = wrap(network.train())(images)
    F.cross_entropy(logits, torch.arange(len(images))).backward()
    gradients = {f"gradient of {name}": p.grad for name, p in network.named_parameters() if p.grad is not None}
    return {**texts, "train": tensor_text({"logits": logits, **gradients, **dict(network.named_buffers())})}


def inference(_: Path) -> Texts:
    """Run networks through PyTorch and the kernels, in evaluation and training mode, optimized, and in 8 bits."""
    texts: Texts = {}
    for name, options, size, batches, has_kernels in cases.NETWORKS:
        network = seeded_network(name, options)
        pictures = torch.randn(13, network.in_channels, *size)
        engines = {"optimized": wideresnet.optimize(network)}
        with contextlib.suppress(wideresnet.UsageError):  # no C compiler here: the item is missing
            engines |= {"int8": wideresnet.quantize(network, pictures[5:])} if has_kernels else {}
        for batch in batches:
            images, item = pictures[:batch], f"{name}/batch {batch}"
            passes = {"pytorch": pass_texts(network, images, lambda same: same)}
            passes |= {"kernels": pass_texts(network, images, accelerate)} if has_kernels else {}
            texts |= {f"{item}/{how}/{mode}": text for how, found in passes.items() for mode, text in found.items()}
            with torch.no_grad():
                texts[f"{item}/features"] = tensor_text(network.features(images))
                texts |= {f"{item}/{how}": tensor_text({"logits": engine(images)}) for how, engine in engines.items()}
        say(f"inference: {name}")
    return texts


def init_text(name: str, **options: Any) -> str:
    """Return the initial weights under PyTorch's seed 0."""
    torch.manual_seed(0)
    return tensor_text(wideresnet.create(name, **options).state_dict())


def networks(_: Path) -> Texts:
    """Describe every listed network: its state dict, its cost, its initial weights."""
    texts = {"init fan_out, bn_scale uniform": init_text("WRN-16-4", init="fan_out", bn_scale="uniform")}
    for family in ("cifar", "imagenet"):
        for name in wideresnet.list_networks(family):
            item = f"{family}/{name}"
            with torch.device("meta"):
                network = wideresnet.create(name, family=family)
            texts[f"{item}/state dict"] = "".join(f"{k} {tuple(t.shape)}\n" for k, t in network.state_dict().items())
            cost = wideresnet.cost(network, 32)
            texts[f"{item}/cost"] = f"params {cost.params}, macs {cost.macs}, activations {cost.activation_bytes}\n"
            if cost.params <= MAX_INIT_PARAMS:
                texts[f"{item}/initial weights"] = init_text(name, family=family)
        say(f"networks: {family}")
    return texts


@functools.cache
def trained(folder: Path) -> str:
    """Train the run that the pages and the JSON documents are about, and return its own document."""
    return wrn(folder, cases.TRAINED)


def pages(folder: Path) -> Texts:
    """Draw the page of a committed record and of a fresh run, and the comparison of three committed seeds."""
    trained(folder)
    page = shutil.copytree(folder / "trained", folder / "page")
    result = json.loads((page / "result.json").read_text())
    (page / "result.json").write_text(json.dumps({k: 1.0 if TIMES.search(k) else v for k, v in result.items()}))
    (page / "env.json").write_text("{}")
    seeds = [f"wrn-16-2-cifar10-fast-seed{seed}" for seed in range(3)]
    for name in seeds:
        shutil.copytree(ROOT / "results" / name, folder / name)
    wrn_each(folder, [f"report {seeds[0]}", "report page", f"report {' '.join(seeds)} --out comparison.html"])
    texts = {name: (folder / name).read_text() for name in (f"{seeds[0]}/report.html", "page/report.html")}
    pictures = [f"{seeds[0]}/curves.png", "page/curves.png", "page/predictions.png"]
    texts |= {name: digest((folder / name).read_bytes()) for name in pictures}
    return {**texts, "comparison.html": (folder / "comparison.html").read_text()}


def verb_help(folder: Path) -> Texts:
    """Show the help of every verb, 100 columns wide."""
    return dict(zip(cases.HELP, wrn_each(folder, cases.HELP), strict=True))


def mistakes(folder: Path) -> Texts:
    """Make typical mistakes: the exit code, and what stderr says."""
    return dict(zip(cases.MISTAKES, wrn_each(folder, cases.MISTAKES, fails=True), strict=True))


def json_keys(folder: Path) -> Texts:
    """Return the keys of every verb's JSON document, and the values that are no measurements."""
    documents, commands = {"train": trained(folder)}, cases.DOCUMENTS | cases.MEASUREMENTS
    documents |= dict(zip(commands, wrn_each(folder, commands.values()), strict=True))
    documents["cache --clear"] = wrn(folder, "cache --clear --json")
    keys = {name: "".join(sorted(key_paths(json.loads(text)))) for name, text in documents.items()}
    return keys | {f"{name}/values": json_text(documents[name]) for name in ("train", *cases.DOCUMENTS)}


SECTIONS: dict[str, Callable[[Path], Texts]] = {
    "runs": runs,
    "inference": inference,
    "networks": networks,
    "pages": pages,
    "help": verb_help,
    "errors": mistakes,
    "json_keys": json_keys,
}


# The document.


def describe_machine() -> dict[str, str]:
    """Return what the digests depend on besides the code."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "matplotlib", "pillow")
    versions = {name: importlib.metadata.version(name) for name in packages}
    command = shlex.split(os.environ.get("CC", "")) or [shutil.which("gcc") or shutil.which("cc") or "false"]
    compiler = subprocess.run([*command, "--version"], capture_output=True, text=True).stdout.partition("\n")[0]
    settings = {name: os.environ.get(name, "") for name in ("CC", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")}
    capability = torch.backends.cpu.get_cpu_capability()
    machine = {"cpu_capability": capability, "threads": str(cases.THREADS), "python": platform.python_version()}
    return {**machine, **versions, "compiler": compiler, **settings}


def fingerprint(sections: Iterable[str], keep: Path | None) -> dict[str, dict[str, str]]:
    """Return section -> item -> digest, after the machine; write the texts behind the digests to `keep`."""
    torch.set_num_threads(cases.THREADS)
    document = {"machine": describe_machine()}
    with tempfile.TemporaryDirectory(prefix="fingerprint-") as temporary:
        folder = Path(temporary).resolve()
        cases.write_inputs(folder)
        for section in sections:
            texts = SECTIONS[section](folder)
            document[section] = {item: digest(text.encode()) for item, text in texts.items()}
            for item, text in texts.items() if keep else ():
                place = Path(keep or "", section, f"{item}.txt")
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(text)
    return document


def differences(old: dict[str, Any], new: dict[str, Any], sections: Iterable[str]) -> Iterator[str]:
    """Yield a line for each item that differs, is missing or is new."""
    for section in ("machine", *sections):
        before, after = old.get(section, {}), new.get(section, {})
        for item in dict.fromkeys([*before, *after]):
            if before.get(item) != after.get(item):
                change = "differs" if item in before and item in after else "missing" if item in before else "new"
                yield f"{change}: {section}: {item}: {before.get(item, '-')} -> {after.get(item, '-')}"


def main() -> int:
    """Print a fingerprint; or compare two, and return 1 if they differ."""
    parser = argparse.ArgumentParser(description=f"{__doc__}".partition("\n")[0])
    about = f"sections to compute or compare, of {', '.join(SECTIONS)}"
    parser.add_argument("--only", nargs="+", choices=SECTIONS, default=[*SECTIONS], metavar="SECTION", help=about)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document there, too")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="write what each digest was computed from there")
    parser.add_argument("--compare", type=Path, nargs=2, metavar=("OLD", "NEW"), help="print what differs")
    args = parser.parse_args()
    if args.compare:
        old, new = (json.loads(path.read_text()) for path in args.compare)
        lines = list(differences(old, new, args.only))
        print("\n".join(lines) or "equal")
        return 1 if lines else 0
    document = json.dumps(fingerprint(args.only, args.keep), indent=1)
    print(document)
    if args.out:
        args.out.write_text(f"{document}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
