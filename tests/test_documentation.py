"""What the documents say is what the code does."""

import re
import stat
import tomllib

import pytest

import server
from lot import analyse
from lot.report import VERBS
from tests.documentation import README, ROOT, SNAPSHOT, readme, snapshot

pytestmark = pytest.mark.anyio


async def test_the_tables_of_the_readme_are_those_of_the_code() -> None:
    assert README.read_text(encoding="utf-8") == await readme(), "scripts/docs writes them"


async def test_the_tools_are_those_of_the_snapshot() -> None:
    assert SNAPSHOT.read_text(encoding="utf-8") == await snapshot(), "scripts/docs writes it; read the diff"


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
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("lot/reference/*.md")])
    for text in [path.read_text(encoding="utf-8")]
    for fence in re.finditer(r"^```(\S*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    if fence[1].startswith("lot") or "DEFINE " in fence[2]
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
