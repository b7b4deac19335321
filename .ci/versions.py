"""Tests with what pip gives tomorrow, and with the oldest that pyproject.toml admits.

    python .ci/versions.py newest    # the newest Python at hand, the newest of every dependency
    python .ci/versions.py oldest    # this Python, the least version of every dependency

`newest` runs the tests marked `smoke`: each kind of media ingested, trained a moment, searched and
shown as HTML, each plugin imported. `oldest` runs the tests of the rooms that lean most on other
packages. torch stays at the version of constraints.txt in both: it is gigabytes elsewhere.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
HOSTS = ["langchain", "llamaindex", "mcp", "haystack", "dspy"]
EXTRAS = ["lite", "eval", "remote"]
TOOLS = ["pytest>=8.3", "pytest-asyncio>=0.24", "hypothesis>=6.100"]
ROOMS = ["media", "captions", "storage", "identifiers", "index"]


def newest_python() -> Path | None:
    """The newest Python 3 on PATH or of pyenv that is newer than this one; None without any."""
    found = {}
    folders = [Path(folder) for folder in os.environ.get("PATH", "").split(os.pathsep)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    folders += sorted(pyenv.glob("3.*/bin")) if pyenv.is_dir() else []
    for folder in folders:
        for path in sorted(folder.glob("python3.*")) if folder.is_dir() else []:
            if not re.fullmatch(r"python3\.\d+", path.name):
                continue
            asked = [str(path), "-c", "import sys; print(*sys.version_info[:2])"]
            answer = subprocess.run(asked, capture_output=True, text=True, check=False)
            if answer.returncode == 0:  # a shim of pyenv fails for versions that are not chosen
                major, minor = map(int, answer.stdout.split())
                found[major, minor] = path
    version = max(found, default=sys.version_info[:2])
    return found[version] if version > sys.version_info[:2] else None


def pins(extras: list[str]) -> list[str]:
    """The least version of each direct dependency; torch has that of constraints.txt."""
    out = []
    for line in [*PROJECT["dependencies"], *needed(extras)]:
        requirement, _, marker = line.partition(";")
        least = re.match(r"\s*([\w.-]+)\s*>=\s*([\w.]+)", requirement)
        if least and least[1] == "torch":
            continue
        pin = f"{least[1]}=={least[2]}" if least else requirement.strip()
        out.append(f"{pin};{marker}" if marker else pin)
    return out


def needed(extras: list[str]) -> list[str]:
    """Requirements of extras, and of the extras that these name."""
    out: list[str] = []
    for extra in extras:
        for line in PROJECT["optional-dependencies"][extra]:
            named = re.fullmatch(r"cart-qdrant\[([\w,]+)\]", line)
            out += needed(named[1].split(",")) if named else [line]
    return out


def make(venv: Path, python: Path, *requirements: str) -> Path:
    """A new virtual environment with this project; its Python."""
    shutil.rmtree(venv, ignore_errors=True)
    run(python, "-m", "venv", venv)
    inside = venv / "bin" / "python"
    pip = (inside, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "-c", ROOT / "constraints.txt", *requirements, *TOOLS)
    run(*pip, "check")
    return inside


def run(*command: object) -> None:
    """Run a command here, and end with its exit code where it fails."""
    done = subprocess.run([str(word) for word in command], cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


def main(which: str) -> None:
    """Run one of the two jobs."""
    if which == "newest":
        python = newest_python()
        if python is None:
            print(f"newest: skipped, no Python newer than {sys.version.split()[0]} is at hand")
            return
        print(f"newest: {python}", flush=True)
        inside = make(ROOT / ".venv-newest", python, f"-e{ROOT}[{','.join(EXTRAS + HOSTS)}]")
        run(inside, "-m", "pytest", "-q", "-m", "smoke", "tests/integration/test_smoke.py")
    else:
        least = pins(EXTRAS)
        print(f"oldest: {' '.join(least)}", flush=True)
        extras = f"-e{ROOT}[{','.join(EXTRAS)}]"
        inside = make(ROOT / ".venv-oldest", Path(sys.executable), extras, *least)
        run(inside, "-m", "pytest", "-q", *(f"tests/unit/{room}" for room in ROOMS))


if __name__ == "__main__":
    main(sys.argv[1])
