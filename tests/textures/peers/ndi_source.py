"""An outside NDI program, on ndi-python alone: sends test cards until its standard input closes.

Arguments: name, width, height, fps. Prints its public name once it is up.
"""

import sys
import threading
import time
from pathlib import Path

import NDIlib

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))
from sdbridge.textures.test_card import TestCard

name, width, height, fps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
NDIlib.initialize()
sender = NDIlib.send_create(NDIlib.SendCreate(p_ndi_name=name, clock_video=False, clock_audio=False))
print(NDIlib.send_get_source_name(sender).ndi_name, flush=True)
card, number = TestCard(width, height), 0
video = NDIlib.VideoFrameV2(xres=width, yres=height, FourCC=NDIlib.FOURCC_VIDEO_TYPE_RGBA)
while not ended.is_set():
    video.data = card.draw(number)
    video.metadata = f'<camera number="{number}"/>'
    NDIlib.send_send_video_v2(sender, video)
    number += 1
    time.sleep(1 / fps)
