"""`tools/demo` does what the README says, from any folder, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.broker import ROOT, environment


@pytest.mark.slow
def test_demo_brings_a_real_file_back_the_same(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "demo", ROOT / "LICENSE", "--times", "10"],
        capture_output=True,
        cwd=tmp_path,
        env=environment(TMPDIR=str(tmp_path)),
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()
    assert b"the same, byte for byte" in done.stdout
    assert b"consumed 2,020 and committed" in done.stdout
    assert list(tmp_path.iterdir()) == []
