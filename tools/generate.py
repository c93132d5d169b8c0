"""Writes `client/doorward/v1/` from the contract in `protos/`, with the oldest supported generator (design section 8).

    python tools/generate.py             write the generated code, and remove what is no longer generated
    python tools/generate.py --check     write nothing; name every file that is not what would be generated, and fail
    python tools/generate.py --baseline  also renew protos/baseline.binpb, which `buf breaking` compares with (at a release)

`make proto` and `make lint` call it. The generator lives in `.venv-proto`, so that what it writes runs with every runtime
from there on; `google/rpc/status.proto` is compiled against, but its code comes with googleapis-common-protos.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PROTOS: Final = ROOT / "protos"
PACKAGE: Final = Path("doorward/v1")
CLIENT: Final = ROOT / "client"
GENERATOR: Final = ROOT / ".venv-proto" / "bin"
BUF: Final = ROOT / ".venv" / "bin" / "buf"
BASELINE: Final = PROTOS / "baseline.binpb"
INIT: Final = (
    '"""The contract\'s messages and stubs, generated from `protos/doorward/v1/` by `make proto`. Never edited."""\n'
)

# mypy-protobuf gives each RPC of a stub a type variable constrained to its sync and its aio callable. mypy tries every
# combination of constraints: 2^17 for TokenAdmin, which takes it longer than anybody waits. The overloads of the stub's
# __init__ choose both anyway, so the variables need no constraints.
CONSTRAINTS: Final = re.compile(
    r"(?<=^    '_)(\w+)',\n    grpc\.\w+\[\n(?:        .*\n)+    \],\n    grpc\.aio\.\w+\[\n(?:        .*\n)+    \],\n",
    re.MULTILINE,
)


class GenerationFailed(Exception):
    """A generator is missing or refused its input; the message is what it said."""


def main(arguments: list[str]) -> int:
    """The command line; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only; fail if a file differs")
    parser.add_argument("--baseline", action="store_true", help="renew protos/baseline.binpb too")
    options = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory(prefix="doorward-proto-") as directory:
            generate(Path(directory))
            if options.check:
                return report(differences(Path(directory) / PACKAGE, CLIENT / PACKAGE))
            install(Path(directory) / PACKAGE, CLIENT / PACKAGE)
        if options.baseline:
            build_image(BASELINE, "--exclude-source-info")
    except GenerationFailed as failed:
        print(failed, file=sys.stderr)
        return 2
    return 0


def generate(target: Path) -> None:
    """Writes the whole package under `target`.

    Raises:
        GenerationFailed: see there.
    """
    sources = sorted((PROTOS / PACKAGE).glob("*.proto"))
    services = [source for source in sources if re.search(r"^service ", source.read_text("utf-8"), re.MULTILINE)]
    protoc(sources, ["--python_out", "--mypy_out"], target)
    # Only files with services: for the others the plug-in would write modules with nothing in them.
    protoc(services, ["--grpc_python_out", "--mypy_grpc_out"], target)
    for source in services:
        drop_constraints(target / PACKAGE / f"{source.stem}_pb2_grpc.pyi")
    (target / PACKAGE / "__init__.py").write_text(INIT, "utf-8")


def protoc(sources: list[Path], outputs: list[str], target: Path) -> None:
    """Runs the compiler of grpcio-tools over `sources`, once."""
    run(
        [
            str(GENERATOR / "python"),
            "-m",
            "grpc_tools.protoc",
            f"--proto_path={PROTOS}",
            f"--proto_path={PROTOS / 'third_party'}",
            *(f"--plugin=protoc-gen-{name}={GENERATOR / f'protoc-gen-{name}'}" for name in ("mypy", "mypy_grpc")),
            *(f"{output}={target}" for output in outputs),
            *(source.relative_to(PROTOS).as_posix() for source in sources),
        ]
    )


def drop_constraints(stubs: Path) -> None:
    """Makes the type variables of a stub cheap to check; see `CONSTRAINTS`.

    Raises:
        GenerationFailed: they are not written as expected, so this has to be looked at anew.
    """
    text = stubs.read_text("utf-8")
    text, dropped = CONSTRAINTS.subn(r"\1',\n", text)
    if dropped != text.count(" = typing_extensions.TypeVar("):
        raise GenerationFailed(f"{stubs.name}: the type variables have another form than tools/generate.py knows")
    stubs.write_text(text, "utf-8")


def build_image(output: Path, *options: str) -> None:
    """Writes the contract's image; what it only imports, google/rpc/status.proto for one, is marked so."""
    run([str(BUF), "build", "--path", "protos/doorward", "--output", str(output), *options])


def run(command: list[str]) -> None:
    """Runs a generator, quietly unless it fails."""
    # Nothing of the caller's Python may reach into the generator's environment.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError as missing:
        raise GenerationFailed(f"{missing.filename} is missing: run `make proto`, which installs it") from missing
    if done.returncode:
        raise GenerationFailed(f"{Path(command[0]).name} failed:\n{done.stdout}{done.stderr}")


def files_in(directory: Path) -> dict[str, bytes]:
    """The name and contents of every file under `directory` but Python's own caches; empty if there is none."""
    return {
        path.relative_to(directory).as_posix(): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }


def differences(generated: Path, committed: Path) -> list[str]:
    """What is not as it should be, a line for each file; empty: the committed code is what would be generated."""
    wanted, present = files_in(generated), files_in(committed)
    lines = [f"missing: {name}" for name in wanted.keys() - present.keys()]
    lines += [f"stale (generated from nothing): {name}" for name in present.keys() - wanted.keys()]
    lines += [f"differs: {name}" for name in wanted.keys() & present.keys() if wanted[name] != present[name]]
    return sorted(lines)


def install(generated: Path, committed: Path) -> None:
    """Makes `committed` what was generated: writes what differs, removes what is stale, leaves the rest untouched."""
    wanted, present = files_in(generated), files_in(committed)
    for name in present.keys() - wanted.keys():
        (committed / name).unlink()
    for name, contents in wanted.items():
        if present.get(name) != contents:
            path = committed / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)


def report(lines: list[str]) -> int:
    """Prints what differs; the exit code."""
    for line in lines:
        print(f"{CLIENT.name}/{PACKAGE.as_posix()}: {line}", file=sys.stderr)
    if lines:
        print("Run `make proto` and commit what it writes.", file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
