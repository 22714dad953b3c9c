"""LoT is found in what a chat answers, whatever is said around it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lot.extract import extract

A = 'DEFINE ACTION A\nON TOPIC "x" DO\n    PUBLISH TOPIC "y" WITH PAYLOAD'
CALLABLE = 'DEFINE ACTION B\nINPUT n AS INT\nDO\n    SET "m" WITH ({n} + 1)\nRETURN\n    OUTPUT m'
SCRIPT = "# Script Name: Sums\ndef add(a, b):\n    return a + b\n\nprint(1)"


def indented(text: str, by: str = "   ") -> str:
    return "\n".join(f"{by}{line}" if line else line for line in text.split("\n"))


@pytest.mark.parametrize(
    ("text", "code", "prose"),
    [
        ("", "", ""),
        ("I cannot.", "", "I cannot."),
        (A, A, ""),
        (f"Here:\n\n{A}\n\nIt passes on.", A, "Here:\n\nIt passes on."),
        (f"Here:\n{CALLABLE}\nCall it.\n{A}\nDone.", f"{CALLABLE}\n\n{A}", "Here:\nCall it.\nDone."),
        (f"{A}\n\n{CALLABLE}", f"{A}\n\n{CALLABLE}", ""),
        (f"```lot\n{A}\n```\nDone.", A, "Done."),
        (f"```\n{A}\n```".replace("\n", "\r\n"), A, ""),
        (f"~~~ LoT title=x\n{A}\n~~~", A, ""),
        (f"````\n{A}\n```\n{CALLABLE}\n````\nz", f"{A}\n```\n{CALLABLE}".replace("```\n", ""), "z"),
        (f"1. First\n   ```lot\n{indented(A)}\n   ```\n2. Then", A, "1. First\n2. Then"),
        (f"```bash\nls\n```\n```lot\n{A}\n```\n```lot\n{CALLABLE}\n```", f"{A}\n\n{CALLABLE}", "```bash\nls\n```"),
        (f"```lot\n{A}", A, ""),
        ("```python\nprint(1)\n```", "", "```python\nprint(1)\n```"),
        (f"```python\n{SCRIPT}\n```", SCRIPT, ""),
        (f"Then:\n{SCRIPT}", SCRIPT, "Then:"),
        ("To DEFINE an action write DEFINE ACTION.", "", "To DEFINE an action write DEFINE ACTION."),
    ],
)
def test_the_code_and_what_is_said_around_it_are_told_apart(text: str, code: str, prose: str) -> None:
    assert extract(text) == (code, prose)


@given(st.text(st.sampled_from("DEFINE `~\n#ab "), max_size=300))
def test_no_text_is_lost_but_fences(text: str) -> None:
    code, prose = extract(text)

    for line in text.split("\n"):
        assert line.strip() in code or line.strip() in prose or line.strip().startswith(("```", "~~~"))
