"""Who may import whom (design, section 2): every product file's imports, held against one table."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text("utf-8"))
    for path in sorted(
        path
        for folder in (".", "doctor", "lot", "onboarding", "simulator", "tools")
        for path in (ROOT / folder).glob("*.py")
    )
}

BRIDGE = {
    "config",
    "copilot_client",
    "errors",
    "limits",
    "policy",
    "inbox",
    "mqtt_client",
    "mqtt_link",
    "sanitizer",
    "topics",
}
TOOLSET = BRIDGE | {"callers", "tools.answers", "tools.expose", "tools.gate", "tools.policed"}
OURS = {
    "errors": set(),
    "sanitizer": set(),
    "topics": {"errors", "sanitizer"},
    "inbox": {"errors", "topics"},
    "dispatch": {"inbox", "topics"},
    "mqtt_packets": {"dispatch"},
    "setting_values": {"errors", "sanitizer", "topics"},
    "config": {"errors", "sanitizer", "setting_values", "topics"},
    "policy": {"config", "errors", "topics"},
    "limits": {"config", "errors", "topics"},
    "audit": {"config", "errors", "sanitizer"},
    "lot": {"errors", "lot"},
    "identity": {"errors", "inbox", "mqtt_client", "topics"},
    "coreflux": {"errors", "identity", "inbox", "lot", "mqtt_client", "mqtt_link", "sanitizer", "topics"},
    "private_files": set(),
    "backups": {"errors", "lot", "private_files", "sanitizer"},
    "deployment": {"backups", "coreflux", "errors", "lot"},
    "restore": {"backups", "config", "coreflux", "deployment", "errors", "inbox", "lot", "mqtt_client", "screen"},
    "copilot_client": {"config", "errors", "sanitizer"},
    "measures": {"audit", "copilot_client", "limits", "mqtt_client", "policy"},
    "metrics": {"measures"},
    "logs": {"config", "errors", "sanitizer"},
    "mqtt_failures": {"config", "errors", "topics"},
    "mqtt_link": {"config", "dispatch", "errors", "mqtt_failures", "mqtt_packets", "topics"},
    "mqtt_oauth": {"config", "mqtt_failures", "sanitizer"},
    "mqtt_client": {"config", "dispatch", "errors", "inbox", "mqtt_failures", "mqtt_link", "mqtt_oauth", "topics"},
    "rotation": {"config", "errors"},
    "tools": set(),
    "tools.answers": {"errors", "inbox", "sanitizer"},
    "tools.conditions": {"errors", "inbox", "topics"},
    "approvals": {"errors", "private_files"},
    "tools.confirm": {"approvals", "audit", "config", "errors"},
    "tools.gate": BRIDGE | {"approvals", "audit", "callers", "logs", "measures", "tools.answers", "tools.confirm"},
    "tools.expose": {"config", "errors", "policy", "sanitizer", "tools.answers", "tools.gate", "topics"},
    "tools.policed": BRIDGE,
    "tools.undo": {"inbox", "sanitizer", "tools.answers"},
    "tools.changes": {"replicas"},
    "tools.actions": TOOLSET | {"coreflux", "lot", "tools.changes", "tools.lot"},
    "tools.copilot": TOOLSET | {"coreflux", "lot", "tools.lot"},
    "tools.lot": TOOLSET | {"backups", "coreflux", "deployment", "lot"},
    "tools.messaging": TOOLSET | {"tools.conditions", "tools.undo"},
    "tools.status": TOOLSET | {"backups", "identity", "measures", "tools.actions"},
    "resources": {"config", "coreflux", "errors", "lot", "tools.answers", "tools.undo", "topics"},
    "onboarding": set(),
    "onboarding.file_changes": {"errors", "private_files"},
    "onboarding.dotenv_file": {"config", "errors", "sanitizer"},
    "onboarding.client_files": {"config", "errors"},
    "onboarding.client_config": {
        *("config", "errors", "onboarding.client_files", "onboarding.file_changes", "sanitizer", "setting_values"),
    },
    "onboarding.trials": {"config", "copilot_client", "errors", "inbox", "mqtt_client", "mqtt_failures"},
    "onboarding.dialogue": {"config", "errors", "logs", "onboarding", "screen"},
    "oversight": {"approvals", "audit", "config", "errors", "policy", "screen", "topics"},
    "screen": {"sanitizer"},
    "doctor": set(),
    "doctor.checkup": {"errors"},
    "doctor.settings": {"config", "doctor.checkup", "errors", "mqtt_failures", "private_files", "topics"},
    "doctor.probe": {"config", "doctor.settings", "errors", "mqtt_failures"},
    "doctor.broker": {
        *("config", "doctor.checkup", "doctor.probe", "doctor.settings", "errors", "inbox", "mqtt_client"),
        *("mqtt_failures", "mqtt_oauth", "simulator", "topics"),
    },
    "doctor.rights": BRIDGE | {"coreflux", "doctor.checkup"},
    "doctor.services": {"config", "copilot_client", "doctor.checkup", "doctor.settings", "errors", "http_server"},
    "doctor.updates": {"doctor.checkup", "sanitizer"},
    "doctor.command": {"config", "doctor", "logs", "sanitizer", "screen", "tools.answers"},
    "demo": {"config", "errors", "mqtt_failures", "sanitizer", "screen", "simulator"},
    "demo_coreflux": {"config", "demo", "screen", "simulator"},
    "callers": {"config"},
    "replicas": {"errors", "inbox", "mqtt_client", "mqtt_link", "policy", "topics"},
    "bridge": BRIDGE | {"audit", "backups", "coreflux", "measures", "replicas", "resources", "tools"},
    "http_app": {"callers", "config", "logs", "measures", "setting_values"},
    "http_clients": {"audit", "callers", "config", "http_app", "limits", "measures", "sanitizer", "tools.answers"},
    "http_server": {"bridge", "config", "errors", "http_app", "http_clients", "metrics"},
    "tokens": {"config", "errors", "sanitizer"},
    "health": {"config", "errors", "sanitizer"},
    "stdio": set(),
    "server": BRIDGE
    | {
        "audit",
        "backups",
        "bridge",
        "oversight",
        "replicas",
        "restore",
        "logs",
        "rotation",
        "demo",
        "demo_coreflux",
        "doctor",
        "onboarding",
        "http_server",
        "simulator",
        "stdio",
        "tokens",
    },
    "simulator": {"simulator"},
}
"""What each file may import of ours; a folder's name stands for all that is in it."""

ONLY_IN = {
    "mcp": {"bridge", "demo", "http_clients", "resources", "server", "stdio", "tools"},
    "starlette": {"http_app", "http_clients"},
    "uvicorn": {"http_server"},
    "paho": {"mqtt_link", "simulator.plant"},
    "pydantic_settings": {"config"},
    "dotenv": {"config", "onboarding.dotenv_file"},
    "platformdirs": {"config"},
    "lark": {"lot"},
    "httpx2": {"copilot_client", "doctor.services", "doctor.updates", "mqtt_oauth"},
    "cryptography": {"doctor.broker", "doctor.probe", "doctor.settings"},
    "rich": {"demo", "screen"},
    "prometheus_client": {"metrics"},
}
"""The outside things of which only these files know."""

DEMO = {"simulator", "demo", "demo_coreflux"}
"""What only a demo, or a setting, has loaded."""

FIGURES = {"metrics", "prometheus_client"}
"""What only METRICS_PORT has loaded."""

PRINTS = {"demo", "onboarding.client_config", "screen", "tokens"}
"""Run by a person; everywhere else stdout belongs to the protocol."""


def imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name the module from the top"
            yield str(node.module)


def is_in(file: str, places: set[str]) -> bool:
    return file in places or file.partition(".")[0] in places


@pytest.mark.parametrize("file", FILES)
def test_a_file_imports_only_what_the_design_allows(file: str) -> None:
    allowed = OURS.get(file) or OURS[file.partition(".")[0]]
    ours = {name for name in imports(FILES[file]) if is_in(name, set(OURS))}

    assert {name for name in ours if not is_in(name, allowed)} == set()
    for name in set(imports(FILES[file])) - ours:
        library = name.partition(".")[0]
        assert is_in(file, ONLY_IN.get(library, {file})), f"{library} is known to {ONLY_IN[library]} only"


def test_every_file_and_every_row_has_its_counterpart() -> None:
    assert [row for row in OURS if row not in FILES] == []
    assert [file for file in FILES if file not in OURS and not file.startswith(("lot.", "simulator."))] == []


@pytest.mark.parametrize("file", [file for file in FILES if not is_in(file, DEMO)])
def test_a_start_without_the_simulator_does_not_load_it(file: str) -> None:
    at_the_top = [node for node in FILES[file].body if isinstance(node, ast.Import | ast.ImportFrom)]

    assert not [name for node in at_the_top for name in imports(node) if is_in(name, DEMO)]


@pytest.mark.parametrize("file", [file for file in FILES if file != "metrics"])
def test_a_start_without_metrics_does_not_load_what_exposes_them(file: str) -> None:
    at_the_top = [node for node in FILES[file].body if isinstance(node, ast.Import | ast.ImportFrom)]

    assert not [name for node in at_the_top for name in imports(node) if is_in(name, FIGURES)]


@pytest.mark.parametrize("file", FILES)
def test_only_the_configuration_reads_the_environment_and_only_people_are_printed_to(file: str) -> None:
    names = {node.id for node in ast.walk(FILES[file]) if isinstance(node, ast.Name)}
    attributes = {
        node.attr
        for node in ast.walk(FILES[file])
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
    }

    assert file == "config" or not attributes & {"environ", "environb", "getenv"}
    assert file in PRINTS or "print" not in names
