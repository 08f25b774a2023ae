"""Runs the steps of train/launch/Dockerfile without Docker, in an empty folder and environment, then ``preflight``.

    python scripts/try_image.py [--extras gcs,serve]

The folder stands for the image: /app, /opt and /cache of the file are folders in it. It begins empty, as the
environment does, but for what Python's base image has, which is the Python that runs this script. Programs that would
change this machine (``useradd``, ``chown``) do nothing. At the end the image's entry point runs in its environment with
``preflight --output`` and with ``finetune --help`` on one of its configs.
"""

import argparse
import json
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "train" / "launch" / "Dockerfile"
# Where certificates and package indexes are; Docker passes these on as build arguments do.
PASSED = re.compile(r"(PIP|UV)_\w+|SSL_CERT_(FILE|DIR)|https?_proxy|HTTPS?_PROXY|no_proxy|NO_PROXY")


def instructions(text: str) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile in their order: the word, and what follows it."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


class Image:
    """Runs instructions in a folder that stands for the file system of an image."""

    def __init__(self, folder: Path, arguments: dict[str, str]):
        self.folder, self.arguments = folder, arguments
        self.workdir = folder
        self.entrypoint: list[str] = []
        base = folder / "base"
        base.mkdir()
        (base / "python3").symlink_to(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
        for name in ("useradd", "chown"):
            (base / name).write_text(f'#!/bin/sh\necho "not run: {name} $*"\n')
            (base / name).chmod(0o755)
        self.environment = {name: value for name, value in os.environ.items() if PASSED.fullmatch(name)}
        self.environment |= {"PATH": f"{base}:/usr/bin:/bin", "HOME": str(folder / "home")}
        (folder / "home").mkdir()

    def here(self, text: str) -> str:
        """Returns a text with the image's paths in the folder."""
        return re.sub(r"(?<![\w./-])/(app|opt|cache)\b", rf"{self.folder}/\1", text)

    def do(self, word: str, rest: str) -> None:
        """Follows an instruction."""
        if word == "ARG":
            name, _, default = rest.partition("=")
            self.arguments.setdefault(name, default)
        elif word == "ENV":
            for setting in rest.split():
                name, _, value = setting.partition("=")
                known = lambda match: self.environment.get(match[1], "")
                self.environment[name] = self.here(re.sub(r"\$(\w+)", known, value))
        elif word == "WORKDIR":
            self.workdir = Path(self.here(rest))
            self.workdir.mkdir(parents=True, exist_ok=True)
        elif word == "COPY":
            *sources, target = rest.split()
            self.workdir.joinpath(target).mkdir(parents=True, exist_ok=True)
            for source in sources:  # of a directory its contents are copied, of a file the file
                found = ROOT / source
                copied = [f"{found}/."] if found.is_dir() else [str(found)]
                subprocess.run(["cp", "-r", *copied, self.workdir / target], check=True)
        elif word == "RUN":
            self.run(["/bin/sh", "-c", self.here(rest)], **self.arguments)
        elif word == "ENTRYPOINT":
            self.entrypoint = json.loads(rest)

    def run(self, command: list[str], **more: str) -> str:
        """Runs a command as the image would; returns what it prints."""
        print("+", shlex.join(command), flush=True)
        environment = {**self.environment, **more}
        program = [self.program(command[0], environment["PATH"]), *command[1:]]
        done = subprocess.run(program, cwd=self.workdir, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, end="", flush=True)
        return done.stdout

    @staticmethod
    def program(name: str, path: str) -> str:
        """Returns the first program of a name in PATH; subprocess would look in this process's own PATH."""
        if "/" in name:
            return name
        return next(f"{folder}/{name}" for folder in path.split(":") if os.access(f"{folder}/{name}", os.X_OK))


def unreadable(folder: Path) -> list[Path]:
    """Returns what another user, such as the image's, could not read."""
    wanted = lambda mode: stat.S_IROTH | (stat.S_IXOTH if stat.S_ISDIR(mode) else 0)
    files = (path for path in folder.rglob("*") if not path.is_symlink())
    return [path for path in files if path.stat().st_mode & wanted(path.stat().st_mode) != wanted(path.stat().st_mode)]


def main() -> None:
    """Follows the Dockerfile and runs its entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extras", help="in place of the Dockerfile's EXTRAS")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="image-") as name:
        os.umask(0o022)
        image = Image(Path(name), {"EXTRAS": args.extras} if args.extras else {})
        for word, rest in instructions(DOCKERFILE.read_text(encoding="utf-8")):
            image.do(word, rest)
        hidden = unreadable(image.folder / "app") + unreadable(image.folder / "opt")
        assert not hidden, f"the image's user could not read {hidden[:5]}"
        entry = lambda *words: image.run([*image.entrypoint, *words], JAX_PLATFORMS="cpu")
        found = json.loads(entry("preflight", "--output", f"{name}/cache/run", "--json"))
        assert found["passed"], found
        assert entry("finetune", "--config", "configs/mnli.py:v3-large", "--help").count("7e-06"), "the config was read"
        print(f"the steps of the Dockerfile end in a preflight that passes: {found['processes'][0]}")


if __name__ == "__main__":
    main()
