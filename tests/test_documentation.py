"""What the documents say is what the code does."""

import re
import stat
import tomllib
from pathlib import Path

import pytest
from pydantic import SecretStr

import server
from config import NAMES, Config, CopilotConfig
from copilot_client import CopilotClient
from lot import analyse
from lot.report import VERBS
from policy import TOOLS
from server import build_server
from simulator.coreflux import Coreflux as Personality
from simulator.coreflux import Options
from simulator.embedded import running
from simulator.plant import Plant
from tests.assistant import ALLOWED, assistant
from tests.brokers import Embedded
from tests.documentation import (
    EXAMPLES,
    README,
    ROOT,
    SNAPSHOT,
    SPREAD,
    TOOLS_PAGE,
    list_tools,
    readme,
    snapshot,
    tools_page,
)
from tests.doubles.copilot import CHAT, CopilotDouble, completion
from tests.test_coreflux import connected

pytestmark = pytest.mark.anyio

PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.md"), *ROOT.glob("deploy/**/*.md")])


async def test_the_tables_of_the_readme_are_those_of_the_code() -> None:
    assert README.read_text(encoding="utf-8") == await readme(), "scripts/docs writes them"


async def test_the_page_about_the_tools_is_that_of_the_code() -> None:
    assert TOOLS_PAGE.read_text(encoding="utf-8") == await tools_page(), "scripts/docs writes it"
    assert list(EXAMPLES) == list(dict.fromkeys(EXAMPLES))
    assert set(EXAMPLES) == {tool["name"] for tool in await list_tools()}


async def test_every_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coreflux._QUIET_S", 0.15)
    answer = completion(f"Use an action.\n```lot\n{SPREAD}\n```")
    with Embedded(personality=Personality(Options())) as broker:
        async with CopilotDouble() as copilot:
            copilot.answer(answer, answer)
            service = CopilotConfig(url=copilot.url + CHAT, key=SecretStr(copilot.key))
            config = Config(access_mode="admin", rules=ALLOWED, state_dir=tmp_path, copilot=service)
            async with (
                connected(broker) as mqtt,
                CopilotClient(service) as client,
                running(Plant(broker.host, broker.port)),
                assistant(build_server(config, mqtt, client)) as me,
            ):
                for tool, arguments in EXAMPLES.items():
                    assert await me.call(tool, **arguments), tool


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_within_the_repository_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"", text):
        link, _, anchor = "".join(target).partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        file = (page.parent / link).resolve() if link else page
        assert file.exists(), f"{page.name}: {link}"
        assert file.is_relative_to(ROOT)
        if anchor:
            assert anchor in {_anchor(line) for line in file.read_text(encoding="utf-8").splitlines()}, anchor


def _anchor(line: str) -> str:
    """Return the anchor of a heading as GitHub makes it."""
    heading = re.fullmatch(r"#+ (.+)", line)
    return re.sub(r"[^\w\- ]", "", heading[1].lower()).replace(" ", "-") if heading else ""


def test_who_moves_over_finds_tools_and_settings_that_exist() -> None:
    tools, variables = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8").split("## Variable by variable")
    here = [row.split("|")[2] for row in tools.splitlines() if row.startswith("| `")]
    named = {name for cell in here for name in re.findall(r"`(\w+)`", cell)}

    assert named - set(TOOLS) == set()
    assert set(re.findall(r"`([A-Z][A-Z_]+)`", variables)) - NAMES <= {
        "MQTT_CERT_FILE",
        "MQTT_KEY_FILE",
        "CERT_PATH",
        "NAME_FILE",
    }


async def test_the_tools_are_those_of_the_snapshot() -> None:
    assert SNAPSHOT.read_text(encoding="utf-8") == await snapshot(), "scripts/docs writes it; read the diff"


def test_every_file_of_the_product_is_in_the_readme_and_no_other() -> None:
    rows = re.findall(r"^\| (`.+`) \|", README.read_text("utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([a-z_]+(?:\.py|/))`", row)}
    folders = {f"{path.parent.name}/" for path in ROOT.glob("*/__init__.py")}

    assert {path.name for path in ROOT.glob("*.py")} | folders - {"tests/", "bench/"} <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")

    assert project["version"] == server.VERSION
    assert f"## [{server.VERSION}]" in changelog


def test_every_script_is_executable_and_named_in_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    for script in (ROOT / "scripts").iterdir():
        assert script.stat().st_mode & stat.S_IXUSR, script
        assert f"scripts/{script.name}" in text or script.name == "venv", script


LOT = [
    pytest.param(fence[1], fence[2], id=f"{path.relative_to(ROOT)}:{text[: fence.start()].count(chr(10)) + 1}")
    for path in [*PAGES, *sorted(ROOT.glob("lot/reference/*.md"))]
    for text in [path.read_text(encoding="utf-8")]
    for fence in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if fence[1].startswith("lot") or ("DEFINE " in fence[2] and fence[1] != "json")  # the examples are really called
]


@pytest.mark.parametrize(("info", "code"), LOT)
def test_every_program_in_the_documents_is_what_it_is_shown_as(info: str, code: str) -> None:
    found = analyse(code)

    if info == "lot":
        assert found.problems == ()
        assert found.definitions
    elif info == "lot-wrong":
        assert found.problems
    else:
        assert re.search(r"<\w+>", code), "a program that nobody checks is called lot or lot-wrong"


def test_there_is_a_page_for_each_construct() -> None:
    pages = {path.stem for path in ROOT.glob("lot/reference/*.md")}

    assert pages >= {*VERBS, "triggers", "statements", "expressions", "topics", "mistakes"}


def test_every_claim_about_security_names_a_test_that_exists() -> None:
    claimed = set(re.findall(r"`(test_\w+)`", (ROOT / "SECURITY.md").read_text(encoding="utf-8")))
    tests = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))

    assert len(claimed) > 30
    assert [name for name in sorted(claimed) if f"def {name}(" not in tests] == []
