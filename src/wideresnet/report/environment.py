"""What an `env.json` says about the machine, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def hardware_text(env: Mapping[str, Any]) -> str:
    """Name what computed: a GPU, or threads of a CPU with its vector instructions."""
    threads = f"{env['num_threads']} thread{'s' * (env['num_threads'] != 1)}"
    return env["gpu"] or f"{threads} of {env['cpu']} ({env['cpu_capability']})"


def torch_text(env: Mapping[str, Any]) -> str:
    """Name PyTorch's version without its build: 'torch 2.11.0'."""
    return f"torch {env['torch'].split('+')[0]}"
