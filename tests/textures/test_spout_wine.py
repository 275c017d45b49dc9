"""The true Windows wheel of SpoutGL under wine: its names, and our sender seen from another process.

No pixel ever arrives under wine (``dxgi_resource_GetSharedHandle`` is a stub there), so pictures
stay for docs/hardware-checks.md.
"""

import ast
import json
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.wine import UNDER_WINE, environment, fetch, windows_python

ROOT = Path(__file__).resolve().parents[2]
PEER = Path(__file__).parent / "peers" / "spout_under_wine.py"

pytestmark = UNDER_WINE


@pytest.fixture(scope="module")
def windows(tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Runs a script in Windows' own Python under wine; gives the started process."""
    folder = tmp_path_factory.mktemp("windows")
    wheel = ("--only-binary=:all:", "--platform", "win_amd64", "--python-version", "3.11")
    python = windows_python(folder)
    fetch(folder, *wheel, "SpoutGL==0.1.1")
    fetch(folder, *wheel, "numpy==1.26.4")  # numpy 2 needs a C runtime that wine 8 has not
    for file in folder.glob("*.whl"):
        with zipfile.ZipFile(file) as archive:
            archive.extractall(python.parent)
    started: list[subprocess.Popen] = []

    def run(*arguments: str) -> subprocess.Popen:
        command = ["xvfb-run", "-a", "wine", str(python), str(PEER), *arguments]
        # Windows' Python cannot start under wine with a file or /dev/null as one of its streams.
        process = subprocess.Popen(
            command,
            env=environment(folder),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()
    subprocess.run(["wineserver", "-k"], env=environment(folder), check=False)


def answer(process: subprocess.Popen) -> dict:
    """The first JSON line; a program that hangs in wine's debugger is ended after two minutes."""
    watchdog = threading.Timer(120, process.kill)
    watchdog.start()
    try:
        said = []
        for line in process.stdout:
            if line.startswith("{"):
                return json.loads(line)
            said.append(line)
        raise AssertionError(f"the program under wine gave no answer: {''.join(said)[-500:]}")
    finally:
        watchdog.cancel()


def called_names() -> set[str]:
    """Every method that the bridge's ends and the engine's sender call on what they have from SpoutGL."""
    files = ("sdbridge/textures/spout.py", "sdbridge/engine/accelerate/spout_output.py")
    trees = [ast.parse((ROOT / file).read_text(encoding="utf-8")) for file in files]
    return {
        node.func.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and ast.unparse(node.func.value)
        in ("native", "self._native", "library.SpoutReceiver()", "self._library.SpoutReceiver()")
    }


def test_every_name_we_call_is_in_the_true_wheel(windows) -> None:
    named = answer(windows("names"))
    called = called_names()
    assert {"sendImage", "sendTexture", "receiveImage", "getSenderList", "isUpdated", "isFrameNew"} <= called
    assert called <= set(named["SpoutSender"]) | set(named["SpoutReceiver"])
    # Both ends share the context; what only one end may call is kept to that end.
    assert {"sendImage", "sendTexture", "setSenderName", "releaseSender"} <= set(named["SpoutSender"])
    takes = named["sendTexture"].replace("typing.SupportsInt", "int")
    assert takes.count("int") == 5 and takes.count("bool") == 2, f"six arguments and an answer: {takes}"
    assert {"receiveImage", "setReceiverName", "releaseReceiver"} <= set(named["SpoutReceiver"])


def test_our_sender_is_seen_by_name_from_another_windows_process(windows) -> None:
    sending = windows("send", "sdbridge wine", "60")
    sent = answer(sending)
    assert sent["refused"] == 0 and "sdbridge wine, 64x48" in sent["line"]
    seen = answer(windows("look", "sdbridge wine"))
    assert seen["able"], seen["why"]
    assert "sdbridge wine" in seen["seen"]
    assert "SDB-TEXTURE-NAME" in seen["refused"], "a second sender of that name is refused"
    assert "sdbridge wine" in seen["line"]


def test_the_name_of_a_program_that_died_is_free_for_the_next(windows) -> None:
    """What the bridge's sender relies on when the engine, which had the name, is killed."""
    died = answer(windows("die", "sdbridge gone"))
    assert "sdbridge gone" in died["seen"]
    looked = answer(windows("look", "sdbridge gone"))
    assert "sdbridge gone" not in looked["seen"] and looked["refused"] == ""
