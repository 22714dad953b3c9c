"""The image that scripts/image-test has built, run as it says itself: as its user, on files that can only be read.

In a mount and a process namespace of its own, so that the server is process 1 there as it is in a container.
"""

import asyncio
import json
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.streamable_http import streamable_http_client

from tests.brokers import Mosquitto, Watcher
from tests.child import Child
from tests.deployment import compose_service, free_port

pytestmark = pytest.mark.anyio

ROOT = Path(os.environ["IMAGE_ROOT"])
IMAGE: dict[str, Any] = json.loads(Path(os.environ["IMAGE_CONFIG"]).read_text())["Docker"]["config"]
STATE = "/var/lib/coreflux-mcp"
START_TIMEOUT_S = 30
LARGEST = 70 << 20
"""Bytes of the server and all that it needs, besides the base."""

BOX = """
set -eu
root=$1 state=$2 secrets=$3
shift 3
mount --make-rprivate /
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/secrets"
mount --bind "$secrets" "$root/run/secrets"
mount --bind "$state" "$root/var/lib/coreflux-mcp"
exec chroot "$root" /usr/bin/setpriv --reuid {uid} --regid {gid} --clear-groups --no-new-privs --bounding-set=-all \\
    --inh-caps=-all --pdeathsig KILL "$@"
"""


class Box:
    """What a container is made of: the image, a folder for the state, one for the secrets."""

    def __init__(self, directory: Path) -> None:
        self.uid, self.gid = map(int, IMAGE["User"].split(":"))
        self.state = directory / "state"
        self.state.mkdir(mode=0o700)
        os.chown(self.state, self.uid, self.gid)
        self.secrets = directory / "secrets"
        self.secrets.mkdir(mode=0o755)
        for name in ("audit_key", "mcp_token", "mqtt_password"):
            self.secret(name, secrets.token_hex(32))

    def secret(self, name: str, text: str | None = None) -> str:
        """Return a secret, or set it, with the mode that the README's command makes."""
        path = self.secrets / name
        if text is not None:
            path.write_text(f"{text}\n")
            path.chmod(0o644)
        return path.read_text().strip()

    def command(self, *arguments: str, **environment: str) -> list[str]:
        """Return what runs something in a container."""
        variables = [*IMAGE["Env"], *(f"{name}={text}" for name, text in environment.items())]
        script = BOX.format(uid=self.uid, gid=self.gid)
        space = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "box"]
        folders = [str(ROOT), str(self.state), str(self.secrets)]
        return [*space, *folders, "env", "-i", "-C", IMAGE["WorkingDir"], *variables, *arguments]

    def run(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run something until it ends."""
        return subprocess.run(
            self.command(*arguments, **environment), capture_output=True, text=True, check=False, timeout=60
        )

    def health(self, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run the health check as an engine does."""
        kind, *arguments = IMAGE["Healthcheck"]["Test"]
        assert kind == "CMD"
        return self.run(*arguments, **environment)


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


@asynccontextmanager
async def serving(box: Box, **environment: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, list[str]]]:
    """Run the image's entry point until it serves; gives the process and the lines it logs."""
    process = await asyncio.create_subprocess_exec(
        *box.command(*IMAGE["Entrypoint"], **environment),
        stdin=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    lines: list[str] = []

    async def read() -> None:
        nonlocal lines
        assert process.stderr is not None
        async for line in process.stderr:
            lines += [line.decode()]

    reading = asyncio.create_task(read())
    try:
        await until(lambda: "MCP is served" in "".join(lines) or process.returncode is not None)
        assert process.returncode is None, lines
        yield process, lines
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        await reading


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(START_TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.05)


def over_http(box: Box, broker: Mosquitto) -> dict[str, str]:
    """Return the environment that docker-compose.yml gives the server, but for where the broker and the port are."""
    environment = compose_service("server")["environment"]
    return {**environment, "MQTT_BROKER": f"{broker.host}:{broker.port}", "MCP_PORT": str(free_port())}


def process_1(outside: int) -> int:
    """Return the process that is number 1 in the namespace which `outside` has made."""
    return int(Path(f"/proc/{outside}/task/{outside}/children").read_text().split()[0])


@pytest.fixture
def broker(box: Box, make_mosquitto: Callable[..., Mosquitto]) -> Mosquitto:
    return make_mosquitto(users={"coreflux-mcp": box.secret("mqtt_password")})


def test_it_is_small_and_has_nothing_that_a_run_does_not_need() -> None:
    there = {path.relative_to(ROOT).as_posix() for path in (ROOT / "app").rglob("*") if path.is_file()}

    assert not [name for name in there if "test" in name or ".env" in name or name.endswith((".txt", ".toml", ".sh"))]
    assert {name.split("/")[1] for name in there if name.count("/") > 1} == {
        *("__pycache__", "doctor", "lot", "onboarding", "simulator", "tools"),
    }
    assert not list((ROOT / "opt/venv").rglob("pip"))
    assert not (ROOT / "root/.cache").exists()
    files = [path for folder in ("app", "opt/venv") for path in (ROOT / folder).rglob("*") if path.is_file()]
    assert sum(path.lstat().st_size for path in files) < LARGEST


def test_it_runs_as_mcpserver_who_owns_nothing_but_the_state() -> None:
    uid = int(IMAGE["User"].split(":")[0])

    assert f"mcpserver:x:{uid}:" in (ROOT / "etc/passwd").read_text()
    owned = [
        Path(folder, name).relative_to(ROOT)
        for folder, folders, files in os.walk(ROOT)
        for name in (*folders, *files)
        if Path(folder, name).lstat().st_uid == uid
    ]
    assert owned == [Path(STATE).relative_to("/")]


def test_no_secret_and_no_setting_is_baked_in() -> None:
    assert {line.partition("=")[0] for line in IMAGE["Env"]} == {
        "PATH",
        "PYTHONDONTWRITEBYTECODE",
        "PYTHONUNBUFFERED",
        "XDG_STATE_HOME",
    }


def test_nothing_can_be_written_but_the_state_and_no_right_is_left(box: Box) -> None:
    written = box.run("sh", "-c", f"touch {STATE}/x && id -u && grep -E 'CapBnd|NoNewPrivs' /proc/self/status; touch x")

    assert written.returncode != 0
    assert "Read-only file system" in written.stderr or "Permission denied" in written.stderr
    assert written.stdout.split() == [str(box.uid), "CapBnd:", "0" * 16, "NoNewPrivs:", "1"]


async def test_it_serves_http_and_its_health_is_that_of_the_broker(box: Box, broker: Mosquitto) -> None:
    environment = over_http(box, broker)
    url = f"http://127.0.0.1:{environment['MCP_PORT']}"
    headers = {"Authorization": f"Bearer {box.secret('mcp_token')}"}

    async with serving(box, **environment) as (process, lines):
        await until(lambda: box.health(environment).returncode == 0)
        async with httpx2.AsyncClient(trust_env=False) as http:
            assert (await http.get(f"{url}/readyz")).json() == {"ready": True}
            assert (await http.post(f"{url}/mcp", json={})).status_code == 401
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        ):
            assert "mqtt_publish" in {tool.name for tool in (await client.list_tools()).tools}
            with Watcher(broker, "image/x") as watcher:
                result = await client.call_tool("mqtt_publish", {"topic": "image/x", "payload": "1"})
                assert not result.is_error
                assert watcher.wait_count(1)[0].payload == b"1"
            resources = await client.list_resources()
            assert len(resources.resources) > 10

        broker.stop()
        await until(lambda: box.health(environment).returncode == 1)
        assert "broker" in box.health(environment).stdout
        broker.start()
        await until(lambda: box.health(environment).returncode == 0)

        assert not [line for line in lines if "can be read by others" in line]
        os.kill(process_1(process.pid), signal.SIGTERM)  # as docker stop does
        async with asyncio.timeout(5):
            assert await process.wait() == 0
    assert box.health(environment).returncode == 1
    verified = box.run(*IMAGE["Entrypoint"], "audit", "verify", **environment)
    assert verified.returncode == 0, verified.stdout + verified.stderr


async def test_it_serves_stdio_and_its_health_is_not_known(box: Box, broker: Mosquitto) -> None:
    environment = compose_service("stdio")["environment"] | {"MQTT_BROKER": f"{broker.host}:{broker.port}"}

    async with Child(os.environ, box.command(*IMAGE["Entrypoint"], **environment)) as child:
        assert "mqtt_publish" in {tool["name"] for tool in (await child.ask("tools/list"))["tools"]}
        await child.connected()
        assert (await child.call("lot_check", code="DEFINE ACTION"))["problems"]
        child.close_stdin()
        assert await child.ended() == 0
    health = box.health(environment)
    assert health.returncode == 1
    assert "--no-healthcheck" in health.stdout


async def test_the_embedded_broker_is_in_it(box: Box) -> None:
    async with Child(os.environ, box.command(*IMAGE["Entrypoint"], MQTT_BROKER="embedded")) as child:
        await child.connected()


def test_a_missing_secret_stops_the_start_with_its_name(box: Box, broker: Mosquitto) -> None:
    (box.secrets / "mcp_token").unlink()

    ended = box.run(*IMAGE["Entrypoint"], **over_http(box, broker))

    assert ended.returncode == 2
    assert "MCP_TOKEN_FILE='/run/secrets/mcp_token'" in ended.stderr


def test_a_token_is_made_in_it(box: Box) -> None:
    made = box.run(*IMAGE["Entrypoint"], "token", "new", "line-3", "--access", "read", "--file", f"{STATE}/tokens")

    assert made.returncode == 0, made.stderr
    assert len(made.stdout.strip()) > 32
