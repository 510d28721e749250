"""`python -m sglang.check_env`: `key: value` lines about the machine, for reports of problems."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence

from sglang.version import __version__

_PACKAGES = (
    "transformers",
    "tokenizers",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "fastapi",
    "uvicorn",
    "pyzmq",
    "msgspec",
    "xgrammar",
    "llguidance",
    "outlines",
    "triton",
    "flashinfer-python",
    "torchvision",
    "openai",
    "prometheus-client",
)


def main(argv: Sequence[str] | None = None, prog: str = "python -m sglang.check_env") -> int:
    """Print the lines; takes no options."""
    words = sys.argv[1:] if argv is None else argv
    if words:
        print(f"usage: {prog}")
        return 0 if words[0] in ("-h", "--help") else 2
    for key, value in environment():
        print(f"{key}: {value}")
    return 0


def environment() -> Iterator[tuple[str, str]]:
    """Key and value pairs, in the order they are printed."""
    yield "Python", sys.version.replace("\n", " ")
    yield "Platform", platform.platform()
    yield "CPU", _cpu_model()
    yield "CPU cores", str(os.cpu_count())
    yield from _torch_facts()
    yield "NVCC", _last_line("nvcc", "--version")
    yield "sglang", __version__
    for name in _PACKAGES:
        yield name, _package_version(name)
    yield "GPU topology", _topology()
    yield "Hypervisor vendor", _hypervisor()
    yield "ulimit soft", _open_files_limit()


def _torch_facts() -> Iterator[tuple[str, str]]:
    try:
        import torch  # late: the rest must print without it
    except ImportError as error:
        yield "PyTorch", f"not importable ({error})"
        return
    available = torch.cuda.is_available()
    yield "PyTorch", torch.__version__
    yield "CUDA available", str(available)
    if not available:
        return
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    yield "GPU " + ",".join(map(str, range(len(names)))), ", ".join(dict.fromkeys(names))
    major, minor = torch.cuda.get_device_capability(0)
    yield "GPU 0 compute capability", f"{major}.{minor}"
    yield "CUDA of PyTorch", str(torch.version.cuda)
    query = ("--query-gpu=driver_version", "--format=csv,noheader")
    yield "CUDA driver version", _last_line("nvidia-smi", *query)


def _package_version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    for line in _output("lscpu").splitlines():
        if line.startswith("Model name:"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _hypervisor() -> str:
    for line in _output("lscpu").splitlines():
        if line.startswith("Hypervisor vendor:"):
            return line.partition(":")[2].strip()
    return "none found"


def _topology() -> str:
    text = _output("nvidia-smi", "topo", "-m")
    return "\n" + text if text else "not available"


def _open_files_limit() -> str:
    if sys.platform == "win32":
        return "not available"
    import resource  # exists on Unix only

    return str(resource.getrlimit(resource.RLIMIT_NOFILE)[0])


def _last_line(*command: str) -> str:
    lines = _output(*command).strip().splitlines()
    return lines[-1] if lines else "not available"


def _output(*command: str) -> str:
    """What a program prints, or nothing when it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


if __name__ == "__main__":
    sys.exit(main())
