"""With what a run was made, as run.json keeps it: versions, machine, threads, device, and the same of every resume.

{"started": ..., "seed": 0, "versions": {...}, "threads": 1, "device": "cpu (AVX2)", "resumes": [{"step": 40, ...}]}
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("onepolicy", "torch", "transformers", "tokenizers", "numpy", "reasoning-gym")
BINDING = ("threads", "device")  # beside the versions: with another one, the rest of a run is not bit-identical


def circumstances(seed: int) -> dict[str, Any]:
    """Of a run that starts now."""
    return {
        "started": now(),
        "seed": seed,
        "versions": versions(),
        "torch_build": _torch_build(),
        "machine": {"system": platform.platform(), "cores": os.cpu_count()},
    }


def with_start(record: Mapping[str, Any], step: int, threads: int, device: str) -> tuple[dict[str, Any], list[str]]:
    """run.json once a process has begun to take steps, and what differs from the process before, ready to read.

    The first process adds threads and device; each later one is a row in `resumes`.
    """
    here: dict[str, Any] = {"threads": threads, "device": device}
    if step == 0 and "device" not in record:
        return {**record, **here}, []
    resumes = list(record.get("resumes", []))
    before = {**record, **(resumes[-1] if resumes else {})}
    entry = {"step": step, "time": now(), "versions": versions(), **here}
    return {**record, "resumes": [*resumes, entry]}, _differences(before, entry)


def now() -> str:
    """In UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def versions() -> dict[str, str]:
    """Of Python and of the packages that a result depends on."""
    return {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()}


def device_name(device_type: str, index: int | None = None) -> str:
    """The device and its kind, for kernels differ between kinds: "cuda (NVIDIA H100 80GB HBM3)", "cpu (AVX2)"."""
    import torch

    if device_type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(index)})"
    return f"{device_type} ({torch.backends.cpu.get_cpu_capability()})"


def _differences(before: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    was = {**before.get("versions", {}), **{key: before[key] for key in BINDING if key in before}}
    is_now = {**entry["versions"], **{key: entry[key] for key in BINDING}}
    return [f"{key} {is_now[key]} instead of {was[key]}" for key in is_now if was.get(key, is_now[key]) != is_now[key]]


def _version(name: str) -> str:
    """Torch is asked itself: a package's metadata may leave out the build (2.13.0 for what is 2.13.0+cu130)."""
    try:
        if name == "torch":
            import torch

            return str(torch.__version__)
        return version(name)
    except (ImportError, PackageNotFoundError):
        return "not installed"


def _torch_build() -> dict[str, str | None]:
    """For which GPUs torch was built, and from which commit; a build of one's own may share its version with others."""
    try:
        import torch
    except ImportError:
        return {}
    return {"cuda": torch.version.cuda, "rocm": torch.version.hip, "commit": torch.version.git_version}
