"""The rotated log of a detached supervisor; run in a process of its own, it takes over stderr."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CODE = """
import os, sys
from pathlib import Path
from zbroker import limits
limits.LOG_FILE_BYTES = 1000
from zbroker.supervisor.log import LogFile
log = LogFile(Path(sys.argv[1]))
for number in range(100):
    os.write(log.pipe_in, b"line %03d %s\\n" % (number, b"x" * 90))
    log.move()
print("last words", file=sys.stderr)
"""


def test_log_is_rotated_by_size_and_bounded_in_number(tmp_path: Path) -> None:
    path = tmp_path / "zbroker.log"
    subprocess.run([sys.executable, "-c", CODE, str(path)], check=True, timeout=30)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["zbroker.log", *(f"zbroker.log.{n}" for n in range(1, 6))]
    assert all(file.stat().st_size < 1200 for file in tmp_path.iterdir())
    assert path.read_text().endswith("last words\n")
    texts = [tmp_path / f"zbroker.log.{n}" for n in range(5, 0, -1)]
    numbers = [line.split()[1] for text in texts for line in text.read_text().splitlines()]
    assert numbers == sorted(numbers), "older lines in files of higher number, none lost between"
    assert len(numbers) == int(numbers[-1]) - int(numbers[0]) + 1


def test_log_of_a_folder_that_was_replaced_is_rotated_where_it_is(tmp_path: Path) -> None:
    here = tmp_path / "data"
    here.mkdir()
    code = CODE.replace("for number", f"""
os.rename({str(here)!r}, {str(tmp_path / "old")!r})
os.mkdir({str(here)!r})
open(sys.argv[1], "w").write("another's")
for number""")
    subprocess.run([sys.executable, "-c", code, str(here / "zbroker.log")], check=True, timeout=30)
    assert [(file.name, file.read_text()) for file in here.iterdir()] == [
        ("zbroker.log", "another's")
    ]
    assert len(list((tmp_path / "old").iterdir())) == 6


def test_log_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "zbroker.log"
    path.write_text("before\n")
    code = CODE.replace("range(100)", "range(2)")
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, timeout=30)
    lines = path.read_text().splitlines()
    assert [lines[0], lines[-1]] == ["before", "last words"]
    assert len(lines) == 4
