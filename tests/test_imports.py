"""Who may import whom (design, section 2): every product file's imports, held against one table."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): ast.parse(path.read_text("utf-8"))
    for path in sorted(
        [*ROOT.glob("*.py"), *ROOT.glob("tools/*.py"), *ROOT.glob("lot/*.py"), *ROOT.glob("simulator/*.py")]
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
TOOLSET = BRIDGE | {"tools.answers", "tools.expose", "tools.gate", "tools.policed"}
OURS = {
    "errors": set(),
    "sanitizer": set(),
    "topics": {"errors"},
    "inbox": {"errors", "topics"},
    "dispatch": {"inbox", "topics"},
    "mqtt_packets": {"dispatch"},
    "config": {"errors", "sanitizer", "topics"},
    "policy": {"config", "errors", "topics"},
    "limits": {"config", "errors", "topics"},
    "audit": {"config", "errors", "sanitizer"},
    "lot": {"errors", "lot"},
    "identity": {"errors", "inbox", "mqtt_client", "topics"},
    "coreflux": {"errors", "identity", "inbox", "lot", "mqtt_client", "mqtt_link", "topics"},
    "backups": {"errors", "lot"},
    "deployment": {"backups", "coreflux", "errors", "lot"},
    "restore": {"backups", "config", "coreflux", "deployment", "errors", "inbox", "lot", "mqtt_client", "screen"},
    "copilot_client": {"config", "errors", "sanitizer"},
    "logs": {"config", "errors", "sanitizer"},
    "mqtt_failures": {"config", "errors", "topics"},
    "mqtt_link": {"config", "dispatch", "errors", "mqtt_failures", "mqtt_packets", "topics"},
    "mqtt_client": {"config", "dispatch", "errors", "inbox", "mqtt_failures", "mqtt_link", "topics"},
    "rotation": {"config", "errors"},
    "tools": set(),
    "tools.answers": {"inbox", "sanitizer"},
    "tools.conditions": {"errors", "inbox", "topics"},
    "approvals": {"errors"},
    "tools.confirm": {"approvals", "audit", "config", "errors"},
    "tools.gate": BRIDGE | {"approvals", "audit", "logs", "tools.answers", "tools.confirm"},
    "tools.expose": {"config", "errors", "policy", "sanitizer", "tools.answers", "tools.gate", "topics"},
    "tools.policed": BRIDGE,
    "tools.undo": {"inbox", "tools.answers"},
    "tools.changes": set(),
    "tools.actions": TOOLSET | {"coreflux", "lot", "tools.changes", "tools.lot"},
    "tools.copilot": TOOLSET | {"coreflux", "lot", "tools.lot"},
    "tools.lot": TOOLSET | {"backups", "coreflux", "deployment", "lot"},
    "tools.messaging": TOOLSET | {"tools.conditions", "tools.undo"},
    "tools.status": TOOLSET | {"backups", "identity", "tools.actions"},
    "resources": {"config", "coreflux", "errors", "lot", "tools.answers", "tools.undo", "topics"},
    "client_config": {"config", "errors", "sanitizer"},
    "oversight": {"approvals", "audit", "config", "errors", "policy", "screen", "topics"},
    "screen": {"sanitizer"},
    "demo": {"config", "errors", "mqtt_failures", "sanitizer", "screen", "simulator"},
    "demo_coreflux": {"config", "demo", "screen", "simulator"},
    "server": BRIDGE
    | {
        "audit",
        "backups",
        "coreflux",
        "oversight",
        "resources",
        "restore",
        "logs",
        "rotation",
        "tools",
        "demo",
        "demo_coreflux",
        "client_config",
        "simulator",
    },
    "simulator": {"simulator"},
}
"""What each file may import of ours; a folder's name stands for all that is in it."""

ONLY_IN = {
    "mcp": {"demo", "resources", "server", "tools"},
    "paho": {"mqtt_link", "simulator.plant"},
    "pydantic_settings": {"config"},
    "dotenv": {"config"},
    "platformdirs": {"config"},
    "lark": {"lot"},
    "httpx2": {"copilot_client"},
    "rich": {"demo", "screen"},
}
"""The outside things of which only these files know."""

DEMO = {"simulator", "demo", "demo_coreflux"}
"""What only a demo, or a setting, has loaded."""

PRINTS = {"demo", "client_config", "screen"}
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
