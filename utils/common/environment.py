"""What a bug report needs to know about this machine:  python -m utils.common.environment

Operating system, Python, PyTorch and its GPUs, versions of the packages in requirements.txt and of the optional ones,
the commit, free memory and disk. No user or host names, no folders, nothing from the environment's variables.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

REPOSITORY = Path(__file__).resolve().parents[2]
OPTIONAL = ("flash-attn", "bitsandbytes", "gradio")
REQUIREMENT = re.compile(r"^([A-Za-z0-9._-]+)\s*([^#;]*)")
MEMORY = Path("/proc/meminfo")


def main(argv: Sequence[str] | None = None) -> int:
    if sys.argv[1:] if argv is None else argv:
        print(
            "utils.common.environment takes no arguments: python -m utils.common.environment", file=sys.stderr
        )
        return 2
    print(report())
    return 0


def report() -> str:
    """The report as Markdown, to be pasted into an issue."""
    facts = {**machine(), **torch_build(), **packages()}
    width = max(len(name) for name in facts)
    lines = [f"{name:{width}}  {value}" for name, value in facts.items()]
    return "\n".join(("```text", *lines, "```"))


def machine() -> dict[str, str]:
    """Operating system, processor, free memory and disk, Python, commit."""
    free = shutil.disk_usage(Path.cwd()).free
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processors": str(os.cpu_count()),
        "memory": memory(),
        "disk": f"{free / 1e9:.1f} GB free here",
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "commit": commit(),
    }


def memory() -> str:
    """Available and total memory, as the kernel counts them."""
    if not MEMORY.is_file():
        return "unknown"
    kilobytes = dict(re.findall(r"^(\w+):\s+(\d+) kB", MEMORY.read_text(), re.MULTILINE))
    available, total = (int(kilobytes[name]) * 1024 / 1e9 for name in ("MemAvailable", "MemTotal"))
    return f"{available:.1f} of {total:.1f} GB available"


def commit() -> str:
    """The commit that is checked out, and whether files differ from it."""
    try:
        head, changes = (_git("rev-parse", "HEAD"), _git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.CalledProcessError):
        return "not a git checkout"
    return head + (f", {len(changes.splitlines())} files changed" if changes else "")


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(REPOSITORY), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def torch_build() -> dict[str, str]:
    """What PyTorch was built for and which GPUs it sees."""
    facts = {"torch": torch.__version__, "cuda": torch.version.cuda or "none in this build of PyTorch"}
    if torch.version.hip:
        facts["rocm"] = torch.version.hip
    if not torch.cuda.is_available():
        return {**facts, "gpus": "none"}
    cards = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    facts["gpus"] = ", ".join(f"{card.name} {card.total_memory / 1e9:.0f} GB" for card in cards)
    return facts


def packages() -> dict[str, str]:
    """Installed version and wanted range of every requirement; of optional packages those that are installed."""
    found = {}
    for line in (REPOSITORY / "requirements.txt").read_text(encoding="utf-8").splitlines():
        if match := REQUIREMENT.match(line):
            name, wanted = match[1], match[2].strip()
            found[name] = f"{installed(name) or 'not installed'} ({wanted})"
    for name in OPTIONAL:
        found.setdefault(name, installed(name) or "not installed (optional)")
    return {name: value for name, value in found.items() if name != "torch"}


def installed(name: str) -> str | None:
    """The version of a package, None when it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


if __name__ == "__main__":
    sys.exit(main())
