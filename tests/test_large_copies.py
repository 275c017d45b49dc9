"""Large copies past the caches: asked for where glibc is, once, and never against somebody's choice."""

import os
import subprocess
import sys
import textwrap

import pytest

from sdbridge import large_copies
from sdbridge.large_copies import FROM_BYTES, TUNABLE, settings_wanted


@pytest.fixture
def on_linux(monkeypatch):
    monkeypatch.setattr(large_copies.sys, "platform", "linux")
    monkeypatch.setattr(large_copies.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(large_copies, "_is_glibc", lambda: True)


def test_the_setting_is_added_to_what_is_there(on_linux):
    wanted = f"{TUNABLE}={FROM_BYTES:#x}"
    assert settings_wanted("") == wanted
    assert settings_wanted("glibc.malloc.check=1") == f"glibc.malloc.check=1:{wanted}"


def test_a_choice_of_one_s_own_stays(on_linux):
    assert settings_wanted(f"{TUNABLE}=0x40000") is None


@pytest.mark.parametrize(("what", "value"), [("platform", "win32"), ("platform", "darwin")])
def test_other_systems_are_left_alone(monkeypatch, what, value):
    monkeypatch.setattr(large_copies.sys, what, value)
    assert settings_wanted("") is None


@pytest.mark.skipif(settings_wanted("") is None, reason="no glibc on x86-64 here")
def test_the_program_begins_again_once_with_its_arguments_and_its_number():
    code = textwrap.dedent("""
        import os, sys
        from sdbridge.large_copies import copy_past_the_caches
        print(os.getpid(), *sys.argv[1:])
        copy_past_the_caches()
        print(os.environ["GLIBC_TUNABLES"])
    """)
    environment = {name: value for name, value in os.environ.items() if name != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", code, "a b", "--c"],
        capture_output=True,
        text=True,
        timeout=100,
        env=environment,
        check=True,
    )
    first, second, setting = done.stdout.splitlines()
    assert first == second and first.endswith(" a b --c")
    assert setting == f"{TUNABLE}={FROM_BYTES:#x}"
