"""What is generated from the code: tables of the README and the snapshot of the tools. `scripts/docs` writes them."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any, Final

from pydantic import SecretStr

from config import Config, CopilotConfig
from server import build_server
from tests.assistant import assistant
from tests.fake_broker import FakeBroker

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"
SNAPSHOT: Final = ROOT / "tests" / "tools_list.json"
TOOLS_PAGE: Final = ROOT / "docs" / "tools.md"
MODES: Final = ("read", "write", "admin")
COPILOT: Final = CopilotConfig(url="https://copilot.example", key=SecretStr("key"))
"""With which the tools of the Copilot are there."""


SPREAD: Final = """\
DEFINE ACTION Spread
INPUT hi AS DOUBLE
INPUT lo AS DOUBLE
DO
    SET "gap" WITH ({hi} - {lo})
RETURN
    OUTPUT gap"""

EXAMPLES: Final[dict[str, dict[str, Any]]] = {
    "server_status": {"check": True},
    "mqtt_topics": {"topic_filter": "plant/#", "listen_s": 1},
    "mqtt_read": {"topic_filter": "plant/line1/temperature"},
    "mqtt_subscribe": {"topic_filter": "plant/+/temperature"},
    "mqtt_messages": {"topic_filter": "plant/#", "mode": "latest"},
    "mqtt_unsubscribe": {"subscription_id": "s1"},
    "mqtt_wait": {
        "topic_filter": "plant/line1/temperature",
        "condition": {"path": "value", "op": ">", "value": 20},
        "timeout_s": 10,
    },
    "mqtt_publish": {"topic": "plant/heater/set", "payload": "on"},
    "mqtt_request": {"topic": "plant/device/request", "payload": '{"give": "status"}'},
    "mqtt_clear_retained": {"topic_filter": "plant/line1/state", "dry_run": True},
    "lot_list": {"kind": "action"},
    "lot_check": {"code": SPREAD},
    "lot_deploy": {"code": SPREAD},
    "lot_show": {"kind": "action", "name": "Spread"},
    "lot_diagnose": {"kind": "action", "name": "Spread"},
    "lot_run_action": {"name": "Spread", "arguments": {"hi": 5, "lo": 3}},
    "lot_remove": {"kind": "action", "name": "Spread"},
    "coreflux_command": {"command": "-listRoutes"},
    "copilot_ask": {"question": "How do I count the starts of a pump in LoT?"},
    "copilot_generate_lot": {"task": "Raise an alarm when plant/line1/temperature is above 80"},
}
"""A call of each tool, in an order in which they work one after the other."""


async def list_tools(config: Config | None = None) -> list[dict[str, Any]]:
    """List the tools as a client gets them."""
    async with assistant(build_server(config or Config(access_mode="admin", copilot=COPILOT), FakeBroker())) as me:
        tools = (await me.client.list_tools()).tools
    return [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools]


async def tools_table() -> str:
    """Write the table of tools."""
    lowest: dict[str, str] = {}
    for mode in MODES:
        for tool in await list_tools(Config(access_mode=mode, copilot=COPILOT)):
            lowest.setdefault(tool["name"], mode)
    rows = [
        f"| `{tool['name']}` | {lowest[tool['name']]} | {tool['description'].split('. ')[0].rstrip('.')} |"
        for tool in await list_tools()
    ]
    return "\n".join(["| tool | from mode | what it does |", "| --- | --- | --- |", *rows])


async def tools_page() -> str:
    """Write the page about the tools."""
    tools = {tool["name"]: tool for tool in await list_tools()}
    lowest = {tool["name"]: mode for mode in reversed(MODES) for tool in await list_tools(_with_copilot(mode))}
    about = (
        "Written by `scripts/docs` from what clients are told; a test makes each of these calls. An answer has the "
        "fields named here, and others where they say something. A failure is a tool error, and never a sentence in "
        "an answer."
    )
    sections = [_section(tools[name], lowest[name], arguments) for name, arguments in EXAMPLES.items()]
    return "\n\n".join(["# The tools", about, *sections]) + "\n"


def _with_copilot(mode: Any) -> Config:
    return Config(access_mode=mode, copilot=COPILOT)


def _section(tool: dict[str, Any], mode: str, example: dict[str, Any]) -> str:
    schema = tool["inputSchema"]
    rows = []
    for name, field in schema.get("properties", {}).items():
        default = "required" if name in schema.get("required", ()) else _default_of(field)
        rows.append(f"| `{name}` | {_type_of(field)} | {default} | {_described(field)} |")
    table = (
        ["| argument | type | default | what it is |", "| --- | --- | --- | --- |", *rows]
        if rows
        else ["No arguments."]
    )
    fields = ", ".join(f"`{name}`" for name in tool["outputSchema"]["properties"])
    call = json.dumps(example, indent=2, ensure_ascii=False)
    return "\n\n".join(
        [
            f"## `{tool['name']}`",
            f"{tool['description']} From `ACCESS_MODE={mode}` on.",
            "\n".join(table),
            f"Answers with {fields}.",
            f"```json\n{call}\n```",
        ]
    )


def _type_of(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    kind = field.get("type", "any")
    low, high = field.get("minimum"), field.get("maximum")
    return f"{kind}, {low} to {high}" if low is not None and high is not None else str(kind)


def _default_of(field: dict[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else ""


def _described(field: dict[str, Any]) -> str:
    parts = [field.get("description", "")]
    parts += [f"`{name}`: {_type_of(each)}" for name, each in field.get("properties", {}).items()]
    return "; ".join(part for part in parts if part).replace("|", "\\|")


async def reading_table() -> str:
    """Write the table of resources, templates and prompts."""
    async with assistant(build_server(Config(), FakeBroker())) as me:
        resources = (await me.client.list_resources()).resources
        templates = (await me.client.list_resource_templates()).resource_templates
        prompts = (await me.client.list_prompts()).prompts
    rows = [f"| resource `{each.uri}` | {each.description} |" for each in resources]
    rows += [f"| template `{each.uri_template}` | {each.description} |" for each in templates]
    for each in prompts:
        arguments = ", ".join(f"`{argument.name}`" for argument in each.arguments or ())
        rows.append(f"| prompt `{each.name}` ({arguments}) | {each.description} |")
    return "\n".join(["| what | about |", "| --- | --- |", *rows])


def settings_table() -> str:
    """Write the table of settings from `.env.example`, where each has its line of comment above it."""
    rows = re.findall(
        r"^# (.+)\n#?([A-Z0-9_]+)=(.*)$", (ROOT / ".env.example").read_text(encoding="utf-8"), re.MULTILINE
    )
    lines = [f"| `{name}` | {f'`{default}`' if default else ''} | {comment} |" for comment, name, default in rows]
    return "\n".join(["| name | default | what it is |", "| --- | --- | --- |", *lines])


async def readme() -> str:
    """Write the README anew, with its tables as the code has them now."""
    text = README.read_text(encoding="utf-8")
    for name, table in (
        ("tools", await tools_table()),
        ("reading", await reading_table()),
        ("settings", settings_table()),
    ):
        before, start, rest = text.partition(f"<!-- {name}: generated by scripts/docs -->\n")
        _, end, after = rest.partition("<!-- end -->")
        text = f"{before}{start}\n{table}\n\n{end}{after}"
    return text


async def snapshot() -> str:
    """Write the tools as the snapshot has them."""
    return json.dumps(await list_tools(), indent=1) + "\n"


if __name__ == "__main__":
    README.write_text(asyncio.run(readme()), encoding="utf-8")
    TOOLS_PAGE.write_text(asyncio.run(tools_page()), encoding="utf-8")
    SNAPSHOT.write_text(asyncio.run(snapshot()), encoding="utf-8")
