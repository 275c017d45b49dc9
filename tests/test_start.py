"""What a start must not wait for: the page is up before anything is imported that it does not need."""

import json
import subprocess
import sys

from sdbridge.config import load_config
from sdbridge.demo import demo_config_path

#: Each of these takes longer than the page's own code, and is imported when somebody wants it.
LATER = {
    "torch", "diffusers", "transformers", "huggingface_hub", "av", "zeroconf", "aiortc", "mido", "NDIlib",
    "mss", "PIL", "cv2", "scipy", "requests", "aiohttp", "httpx", "segno", "pynvml", "webbrowser",
}  # fmt: skip

STARTED = """
import json, sys
from sdbridge.cli import app
import sdbridge.commands.run, sdbridge.control.web, sdbridge.control.osc, sdbridge.control.advertise
import sdbridge.textures.mjpeg, sdbridge.textures.demo_scene
print(json.dumps(sorted(sys.modules)))
"""


def test_the_page_of_the_demo_waits_for_no_heavy_library():
    said = subprocess.run([sys.executable, "-c", STARTED], capture_output=True, text=True, timeout=120)
    assert said.returncode == 0, said.stderr
    loaded = set(json.loads(said.stdout))
    assert "sdbridge.control.web" in loaded
    assert not LATER & loaded


def test_that_is_what_the_demo_starts_with():
    config = load_config(demo_config_path())
    assert config.input.main.backend == "demo_scene"
    assert config.output[0].backend == "mjpeg"
