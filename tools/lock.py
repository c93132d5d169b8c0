"""Resolves the lock files: hashes for every file, no registry's address. Run by `make lock`."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent

# The design (section 11) measured 1.71 to 1.78 to answer half as many unary calls again as 1.85; `make bench ARGS=runtimes` too.
SERVER_GRPCIO = "grpcio>=1.76,<1.79"


def resolve(output: str, *sources: str, constraint: str | None = None, text: str | None = None) -> None:
    """Writes one lock file; `text` is a requirements file of its own, read from standard input."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal", "--upgrade"]
    command += ["--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--no-header", "--no-annotate", "--no-config", "--no-emit-package", "doorward"]
    command += ["--output-file", output, *sources]
    overrides = ROOT / ".lock-inputs"
    overrides.mkdir(exist_ok=True)
    try:
        (overrides / "override.txt").write_text(f"doorward @ {(ROOT / 'client').as_uri()}\n")
        command += ["--override", str(overrides / "override.txt")]
        if constraint:
            (overrides / "constraint.txt").write_text(constraint + "\n")
            command += ["--constraint", str(overrides / "constraint.txt")]
        subprocess.run(command, cwd=ROOT, check=True, input=text, text=True)
    finally:
        for file in overrides.iterdir():
            file.unlink()
        overrides.rmdir()


def main() -> None:
    """Resolves all four."""
    packages = ["client/pyproject.toml", "server/pyproject.toml", "--extra", "embedded", "--group", "build"]
    resolve("requirements.lock", *packages, constraint=SERVER_GRPCIO)
    resolve("requirements-dev.lock", *packages, "--group", "dev", constraint=SERVER_GRPCIO)
    resolve("requirements-proto.lock", "--group", "proto")
    resolve("requirements-newest.lock", "-", text="googleapis-common-protos\ngrpcio\nprotobuf\n")


if __name__ == "__main__":
    main()
