"""Runs in Windows' Python under wine with the true SpoutGL: our sender and receiver, and its names.

Arguments: send NAME SECONDS, die NAME, look NAME, or names. Prints JSON lines.
"""

import json
import os
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import SpoutGL

from sdbridge.frame import Frame
from sdbridge.textures.spout import Receiver, Sender

task = sys.argv[1]
if task == "names":
    named = {
        kind: [name for name in dir(getattr(SpoutGL, kind)) if not name.startswith("_")]
        for kind in ("SpoutSender", "SpoutReceiver")
    }
    named["sendTexture"] = SpoutGL.SpoutSender.sendTexture.__doc__
    print(json.dumps(named), flush=True)
elif task == "send":
    with Sender(sys.argv[2], {}) as sender:
        pixels = np.full((48, 64, 4), 200, np.uint8)
        sender.send(Frame(pixels, 1, 0), {})
        print(json.dumps({"refused": sender.refused, "line": sender.describe()}), flush=True)
        end = time.monotonic() + float(sys.argv[3])
        while time.monotonic() < end:
            sender.send(Frame(pixels, 1, 0), {})
            time.sleep(0.02)
elif task == "die":
    sender = Sender(sys.argv[2], {})
    sender.open()
    sender.send(Frame(np.full((48, 64, 4), 200, np.uint8), 1, 0), {})
    print(json.dumps({"seen": list(SpoutGL.SpoutReceiver().getSenderList())}), flush=True)
    os.kill(os.getpid(), 9)  # on Windows: TerminateProcess, nothing is tidied up
elif task == "look":
    able, why = Receiver.available()
    seen = [source.name for source in Receiver.list_sources()]
    try:
        Sender(sys.argv[2], {}).open()
        refused = ""
    except Exception as error:
        refused = str(error)
    with Receiver(sys.argv[2], {}) as receiver:
        receiver.receive(0.2)
        line = receiver.describe()
    print(json.dumps({"able": able, "why": why, "seen": seen, "refused": refused, "line": line}), flush=True)
