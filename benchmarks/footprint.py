"""What the base install costs: time to install, size on disk, time to import.

    python benchmarks/footprint.py

Installs this checkout with pip into a fresh virtual environment; `--quick` measures the import alone, where the script
runs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from statistics import median

from common import Report, parser

ROOT = Path(__file__).parent.parent
_IMPORT = "import time; began = time.perf_counter(); import latent_memory; print(time.perf_counter() - began)"


def size(directory: Path) -> int:
    return sum(file.stat().st_size for file in directory.rglob("*") if file.is_file() and not file.is_symlink())


def importing(report: Report, python: Path, rounds: int) -> None:
    told = [subprocess.run([python, "-c", _IMPORT], check=True, capture_output=True, text=True) for _ in range(rounds)]
    report.add("import latent_memory", median(float(t.stdout) for t in told), "s", "lower", 0.15)


def main() -> None:
    given = parser(__doc__).parse_args()
    report = Report(given.json)
    if given.quick:
        importing(report, Path(sys.executable), 5)
        report.write()
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        venv.create(place, with_pip=True)
        python = Path(place) / ("Scripts" if sys.platform == "win32" else "bin") / "python"
        before = size(Path(place))
        began = time.perf_counter()
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-cache-dir", str(ROOT)], check=True)
        report.add("pip install .", time.perf_counter() - began, "s", "lower", 60)
        report.add("size on disk, pip itself not counted", (size(Path(place)) - before) / 1e6, "MB", "lower", 400)
        importing(report, python, 15)
    report.write()


if __name__ == "__main__":
    main()
