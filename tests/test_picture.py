"""The README's picture of a session shows what the demo does today."""

import re

from tests.picture import PICTURE, demo, picture, rows

DRAWN = PICTURE.read_text(encoding="utf-8")


def steps(svg: str) -> list[str]:
    """Return what was done, asked and found, without the figures, which no two runs share."""
    found: list[str] = []
    for row in rows(svg):
        if step := re.match(r"\d+\. .+|   OK  .+|   \w+(?=\()", row):
            text = re.sub(r"\d+(\.\d+)?", "#", step[0].strip())
            if found[-1:] != [text]:  # on a slow machine the status is asked for again
                found.append(text)
    return found


def test_it_is_of_the_demo_as_it_runs() -> None:
    assert steps(DRAWN) == steps(picture(demo())), "scripts/picture draws it"


def test_it_shows_the_session_from_beginning_to_end() -> None:
    shown = "\n".join(rows(DRAWN))

    assert steps(DRAWN)[:3] == ["#. Is the server connected?", "server_status", "OK  the broker answers a round trip"]
    assert "contains a wildcard" in shown
    assert "Everything was as it should be" in shown


def test_it_brings_everything_along() -> None:
    assert set(re.findall(r"https?://[^\s\"'<)]+", DRAWN)) <= {
        "http://www.w3.org/2000/svg",
        "https://www.textualize.io",
    }
    assert "<script" not in DRAWN
