"""The text of a `.env`: what is written is what the server reads, and all else stays as it was."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config import SECRETS, Config
from errors import InputError
from onboarding.dotenv_file import HEADER, changed, differences, dotenv_values

TEXTS = st.text(st.characters(codec="utf-8"))
AWKWARD = st.text(st.sampled_from("'\"\\#$ \t\n\r={}nrt`é\u2028A"))
NAMES = st.sampled_from(["MQTT_BROKER", "MQTT_USER", "MQTT_PASSWORD", "DO_AGENT_API_KEY", "X"])
LINES = st.sampled_from(
    [
        "# a comment",
        "",
        "   ",
        "MQTT_USER=me",
        "MQTT_USER='me' # it's me",
        'export MQTT_PASSWORD="a \\" # b"',
        "MQTT_PASSWORD='two\nlines'",
        "X = 1 # one",
        "X",
        "'X'=2",
        "not a setting",
        "= nothing",
    ]
)


@given(st.one_of(TEXTS, AWKWARD).filter(bool))
def test_any_secret_is_read_back_as_it_was(secret: str) -> None:
    text = changed("", {"MQTT_PASSWORD": secret, "MQTT_USER": "me"})

    assert dotenv_values(text.encode().decode("utf-8-sig")) == {"MQTT_PASSWORD": secret, "MQTT_USER": "me"}


@pytest.mark.parametrize(
    "secret",
    [
        *(
            "it's",
            'say "hi"',
            "back\\slash",
            "ends in \\",
            "\\",
            "'",
            '"',
            "''",
            "'a",
            "a'",
            '"a"',
            "#",
            " # ",
            "a #b",
            "a#b",
        ),
        *(
            " led",
            "trailed ",
            "$HOME ${HOME}",
            "two\nlines",
            "a\r\nb",
            "=",
            "a=b",
            "\\n",
            "\ttab",
            "ü\u200d",
            "`id`",
            "\x00",
        ),
    ],
)
def test_the_server_gets_a_secret_as_it_was(secret: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("env") / ".env"
    file.write_bytes(changed("", {"MQTT_USER": "me", "MQTT_PASSWORD": secret}).encode())
    file.chmod(0o600)

    password = Config.from_env({}, env_file=file).broker.password

    assert password is not None
    assert password.get_secret_value() == secret


@given(
    st.lists(LINES, max_size=8),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.dictionaries(NAMES, st.one_of(TEXTS, AWKWARD), max_size=4),
)
def test_what_is_set_is_set_and_the_rest_is_as_it_was(
    lines: list[str], newline: str, ended: bool, settings: dict[str, str]
) -> None:
    before = newline.join(lines) + (newline if ended else "")
    there = dotenv_values(before)

    after = changed(before, settings)

    assert dotenv_values(after) == {**there, **{name: each for name, each in settings.items() if each or name in there}}
    kept = [line for line in lines if not any(name in line for name in settings)]
    position = 0
    for line in kept:
        position = after.index(line, position) + len(line)
    assert changed(after, settings) == after


@pytest.mark.parametrize(
    ("before", "settings", "after"),
    [
        ("", {"A": "1"}, HEADER + "A=1\n"),
        ("", {"A": ""}, HEADER),
        ("A=1", {"B": "2"}, "A=1\nB=2\n"),
        ("A=1\r\n", {"B": "2 3"}, "A=1\r\nB='2 3'\r\n"),
        ("A=1 # one\n", {"A": "2"}, "A=2 # one\n"),
        ("A='x # y' # one\n", {"A": "2"}, "A=2 # one\n"),
        ('A="x # y"\n', {"A": "2"}, "A=2\n"),
        ("A=#1\n", {"A": "2"}, "A=2\n"),
        ("  export A = 1\nB=1\n", {"A": "2"}, "  export A = 2\nB=1\n"),
        ("A='1\n2'\nB=1\n", {"A": "2"}, "A=2\nB=1\n"),
        ("A=1\n# A\nA=2\n", {"A": "3"}, "# A\nA=3\n"),
        ("A=1\n# A\nA=2\n", {"A": "2"}, "# A\nA=2\n"),
        ("A=1\n", {"A": ""}, "A=\n"),
        ("A=1 # one\n", {"A": ""}, "A='' # one\n"),
        ("\n\nA\nB=1\n", {"A": "2"}, "\n\nA=2\nB=1\n"),
        ("#A=1\n", {"A": "2"}, "#A=1\nA=2\n"),
        ("A=it's\n", {"A": "it's"}, "A=it's\n"),
    ],
)
def test_a_line_is_changed_where_it_stands(before: str, settings: dict[str, str], after: str) -> None:
    assert changed(before, settings) == after


def test_what_cannot_be_written_is_refused_by_name() -> None:
    with pytest.raises(InputError, match=r"^MQTT_PASSWORD has a character that no file in UTF-8 can hold") as raised:
        changed("", {"MQTT_PASSWORD": "very-secret\udc80"})

    assert "very-secret" not in str(raised.value)


def test_a_broken_line_that_would_swallow_what_follows_has_to_be_mended_first() -> None:
    with pytest.raises(InputError, match=r"^Line 1 of the file is not NAME=value"):
        changed("A='open\n", {"MQTT_PASSWORD": "with 'quotes' and blanks "})


@pytest.mark.parametrize("name", [*SECRETS, "MQTT_BROKER"])
def test_differences_show_no_secret(name: str) -> None:
    there, then = "mqtt://me:old-secret@plc", "mqtt://me:new-secret@plc"

    lines = list(differences({name: there, "A": "1"}, {name: then, "A": "1", "B": "2"}))

    assert lines == [f"- {name}=[REDACTED]", f"+ {name}=[REDACTED]", "+ B=2"]
