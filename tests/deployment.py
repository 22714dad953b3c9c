"""What the files that deploy the server say, read as their tools read them."""

import re
import shutil
import socket
import sys
from pathlib import Path
from typing import Any, Final

import yaml

from tests.documentation import ROOT

DOCKERFILE: Final = ROOT / "Dockerfile"
COMPOSE: Final = ROOT / "docker-compose.yml"
MANIFEST: Final = ROOT / "deploy" / "kubernetes" / "coreflux-mcp.yaml"
UNIT: Final = ROOT / "deploy" / "systemd" / "coreflux-mcp.service"


def instructions() -> list[tuple[str, str]]:
    """Return the Dockerfile's instructions: the word, and what follows it."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(word, " ".join(rest)) for word, *rest in (line.split() for line in lines)]


def goes_to_the_builder(path: str) -> bool:
    """Say whether a file of the checkout goes there, by .dockerignore: the last pattern that matches counts."""
    goes = True
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            expression = "".join(
                {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}.get(part, re.escape(part))
                for part in re.split(r"(\*\*/|\*\*|\*)", line.removeprefix("!"))
            )
            if re.fullmatch(f"{expression}(?:/.*)?", path):
                goes = line.startswith("!")
    return goes


def copied() -> dict[str, list[Path]]:
    """Return the sources that the Dockerfile copies out of the checkout, and the files that each stands for."""
    found: dict[str, list[Path]] = {}
    for word, rest in instructions():
        if word == "COPY" and not rest.startswith("--from="):
            *sources, _ = rest.split()
            for source in sources:
                files = [
                    file
                    for start in ROOT.glob(source)
                    for file in ([start] if start.is_file() else start.rglob("*"))
                    if file.is_file() and goes_to_the_builder(file.relative_to(ROOT).as_posix())
                ]
                found[source] = files
    return found


def lay_out(directory: Path) -> None:
    """Copy into an empty directory what the image has in /app."""
    for source, files in copied().items():
        for file in files if source != "requirements.txt" else []:
            target = directory / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, target)


def compose() -> dict[str, Any]:
    """Return docker-compose.yml, with the default of each variable."""
    text = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", COMPOSE.read_text(encoding="utf-8"))
    read: dict[str, Any] = yaml.safe_load(text)
    return read


def compose_service(name: str) -> dict[str, Any]:
    """Return a service of docker-compose.yml."""
    service: dict[str, Any] = compose()["services"][name]
    return service


def manifest() -> dict[str, dict[str, Any]]:
    """Return the objects of the Kubernetes manifest by their kind."""
    return {each["kind"]: each for each in yaml.safe_load_all(MANIFEST.read_text(encoding="utf-8"))}


def tool(name: str) -> str | None:
    """Find a program, also beside the Python that runs."""
    return shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
