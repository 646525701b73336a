"""The checkout's own `.venv`: made once, installed anew only when pyproject.toml has changed.

For the other tools, which run under any Python 3.11 or newer and from any folder. Two of them at a
time wait for each other; the second run needs no network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "zbroker.stamp"
OLDEST = (3, 11)


def prepare(extra: str = "") -> Path:
    """Makes sure that `.venv` has what pyproject.toml asks for.

    Args:
        extra: "test" for the test extra too.

    Returns:
        The path of its Python.
    """
    with _lock():
        wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes()).hexdigest()
        stamp = STAMP.read_text().split() if STAMP.exists() else []
        if not PYTHON.exists():
            _make_venv()
            stamp = []
        if wanted not in stamp or extra not in [*stamp, ""]:
            _install(extra)
            STAMP.write_text(f"{wanted} {extra}\n")
    return PYTHON


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    with open(ROOT / ".venv.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _make_venv() -> None:
    python = _find_python()
    if not _has_venv(python):
        _install_venv(python)
    print(f"making {VENV} with {python}", file=sys.stderr)
    subprocess.run([python, "-m", "venv", str(VENV)], check=True)


def _find_python() -> str:
    names = [sys.executable, "python3", *(f"python3.{minor}" for minor in range(20, 10, -1))]
    for name in names:
        path = shutil.which(name)
        if path and _version(path) >= OLDEST:
            return path
    raise SystemExit("Python 3.11 or newer is needed (Debian and Ubuntu: apt install python3)")


def _version(python: str) -> tuple[int, ...]:
    code = "import sys; print(*sys.version_info[:2])"
    answer = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    return tuple(int(part) for part in answer.stdout.split())


def _has_venv(python: str) -> bool:
    code = "import venv, ensurepip"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def _install_venv(python: str) -> None:
    package = "python" + ".".join(map(str, _version(python))) + "-venv"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise SystemExit(f"{python} has no venv; on Debian and Ubuntu: apt install {package}")
    print(f"installing {package}", file=sys.stderr)
    subprocess.run(["apt-get", "install", "-y", "-q", package], check=True, stdout=sys.stderr)


def _install(extra: str) -> None:
    what = f"{ROOT}[{extra}]" if extra else str(ROOT)
    print(f"installing {what} into {VENV}", file=sys.stderr)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--editable", what], check=False)
    if done.returncode:
        raise SystemExit("pip could not install zbroker; the first run needs a package index")
