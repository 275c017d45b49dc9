"""Our receiver by name: prints a JSON line for each frame, and when it is lost."""

import json
import sys
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from sdbridge.textures.ndi import finder
from sdbridge.textures.ndi.receiver import Receiver
from sdbridge.textures.test_card import read_number

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
print(json.dumps({"diagnosis": [text for text, _ in finder.diagnose()]}), flush=True)
was_connected = False
with Receiver(sys.argv[1], {}) as receiver:
    while not ended.is_set():
        pixels = receiver.receive(0.05)
        if pixels is not None:
            seen = {"number": read_number(pixels), "at": time.monotonic(), "line": receiver.describe()}
            print(json.dumps(seen), flush=True)
        elif was_connected and not receiver.connected:
            print(json.dumps({"lost": time.monotonic()}), flush=True)
        was_connected = receiver.connected
