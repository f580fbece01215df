"""Fetches the tests that transformers ships in its source distribution, of the version that is installed.

    .venv/bin/python scripts/fetch_transformers_tests.py

They go to .venv/transformers-<version>/tests; where that folder is, nothing is done. Needs setuptools, with which pip
asks the source distribution for its name.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VENV = Path(__file__).parents[1] / ".venv"


def download(version: str, folder: Path) -> Path:
    """The archive, from where pip is set up to find packages."""
    options = ["--disable-pip-version-check", "-q", "--no-deps", "--no-build-isolation"]
    wanted = ["--no-binary", "transformers", "-d", str(folder), f"transformers=={version}"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *wanted], check=True)
    return next(folder.glob("*.tar.gz"))


def main() -> None:
    version = importlib.metadata.version("transformers")
    folder = VENV / f"transformers-{version}"
    if (folder / "tests").is_dir():
        return
    with tempfile.TemporaryDirectory(dir=VENV) as temporary:
        archive, unpacked = download(version, Path(temporary)), Path(temporary) / "unpacked"
        with tarfile.open(archive) as tar:
            for member in tar:
                _, _, member.name = member.name.partition("/")  # without the archive's own folder
                if member.isfile() and member.name.startswith("tests/"):
                    tar.extract(member, unpacked, filter="data")
        unpacked.rename(folder)  # whole or not at all
    print(f"The tests of transformers {version}: {folder / 'tests'}")


if __name__ == "__main__":
    main()
