"""An outside NDI program, on ndi-python alone: receives from an address until its standard input closes.

Arguments: address. Prints a JSON line a frame: size, the card's number, metadata, mean colours.
"""

import json
import sys
import threading
from pathlib import Path

import NDIlib

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from sdbridge.textures.test_card import read_number

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
NDIlib.initialize()
settings = NDIlib.RecvCreateV3(NDIlib.Source("any", sys.argv[1]), NDIlib.RECV_COLOR_FORMAT_BGRX_BGRA)
receiver = NDIlib.recv_create_v3(settings)
NDIlib.recv_set_tally(receiver, NDIlib.Tally(True, False))
while not ended.is_set():
    kind, video, _, metadata = NDIlib.recv_capture_v2(receiver, 50, True, False, True)
    if kind == NDIlib.FRAME_TYPE_VIDEO:
        pixels = video.data
        seen = {
            "size": [video.xres, video.yres],
            "number": read_number(pixels),
            "metadata": video.metadata or "",
            "top_left": pixels[:8, :8].reshape(-1, 4).mean(0).round().tolist(),
            "format": str(video.FourCC),
        }
        NDIlib.recv_free_video_v2(receiver, video)
        print(json.dumps(seen), flush=True)
    elif kind == NDIlib.FRAME_TYPE_METADATA:
        NDIlib.recv_free_metadata(receiver, metadata)
