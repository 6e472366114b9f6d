"""The machine that the figures belong to."""

import os
import platform
from pathlib import Path
from typing import Any

import psutil
import torch


def describe() -> dict[str, Any]:
    """Say what computes here, with how many threads, and how busy it was before."""
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": psutil.virtual_memory().total,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
    }


def sentence(machine: dict[str, Any]) -> str:
    """The same for people."""
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_bytes'] / 2**30:.0f} GB, "
        f"{'GPU ' + machine['gpu'] if machine['gpu'] else 'no GPU'}; torch {machine['torch']} with "
        f"{machine['torch_threads']} threads, Python {machine['python']}; load before the run {machine['load_before']}"
    )


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
