"""The error table and the code agree: nothing raised is unlisted, nothing listed is unused."""

import pickle
import re
from pathlib import Path

import pytest

from sdbridge.errors import ERROR_KINDS, SdbridgeError, first_line

ROOT = Path(__file__).resolve().parent.parent
CODE = re.compile(r"SDB-[A-Z0-9]+-[A-Z0-9]+")


def codes_in_sources() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    files = [*(ROOT / "sdbridge").rglob("*.py"), *(ROOT / "scripts").glob("*.py")]
    for file in files:
        if file.name == "errors.py":
            continue
        for code in CODE.findall(file.read_text(encoding="utf-8")):
            found.setdefault(code, set()).add(str(file.relative_to(ROOT)))
    return found


def test_every_code_in_the_sources_is_in_the_table():
    unlisted = {code: files for code, files in codes_in_sources().items() if code not in ERROR_KINDS}
    assert not unlisted


def test_every_code_in_the_table_is_used_somewhere():
    assert set(ERROR_KINDS) - set(codes_in_sources()) == set()


def test_an_error_says_code_what_next_step_and_output():
    text = str(SdbridgeError("SDB-PARAM-NAN", "/sdbridge/strength was sent nan."))
    assert text == (
        "SDB-PARAM-NAN: /sdbridge/strength was sent nan. Send a finite number. "
        "Nothing changed; the output goes on."
    )


def test_questions_and_lists_keep_their_own_ends():
    assert "did you mean ndi? See" in str(SdbridgeError("SDB-TEXTURE-UNKNOWN", "did you mean ndi?"))
    assert "\n  line 2\nMend" in str(SdbridgeError("SDB-CONFIG-INVALID", "1 mistake\n  line 2\n"))


def test_an_error_crosses_the_pipe_whole():
    error = pickle.loads(pickle.dumps(SdbridgeError("SDB-PARAM-NAN", "x", "do this", "shows that")))
    assert (error.code, error.what, error.next_step, error.output) == (
        "SDB-PARAM-NAN",
        "x",
        "do this",
        "shows that",
    )


def test_a_code_that_is_not_listed_cannot_be_raised():
    with pytest.raises(KeyError):
        SdbridgeError("SDB-NO-SUCH", "x")


@pytest.mark.parametrize("kind", ERROR_KINDS.values(), ids=lambda kind: kind.code)
def test_each_row_reads_as_sentences(kind):
    assert CODE.fullmatch(kind.code)
    assert kind.next_step.endswith((".", "?")) and kind.output.endswith(".")


@pytest.mark.parametrize(
    ("text", "line", "with_kind"),
    [
        ("", "OSError", "OSError"),
        (" \n", "OSError", "OSError"),
        ("\nfull\npages", "full", "OSError: full"),
        ("x" * 900, "x" * 200, "OSError: " + "x" * 200),
    ],
)
def test_the_first_line_of_an_error(text, line, with_kind):
    assert first_line(OSError(text)) == line
    assert first_line(OSError(text), kind=True) == with_kind
