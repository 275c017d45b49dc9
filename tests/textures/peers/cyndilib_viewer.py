"""An independent NDI binding (cyndilib, FrameSync) as viewer of a name: a JSON line for each new number."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
from cyndilib.finder import Finder
from cyndilib.receiver import Receiver
from cyndilib.video_frame import VideoFrameSync
from cyndilib.wrapper.ndi_recv import RecvColorFormat

from sdbridge.textures.test_card import read_number

wanted = sys.argv[1]
finder = Finder()
finder.open()
end = time.monotonic() + 40
source = None
while source is None and time.monotonic() < end:
    source = next((one for one in finder.iter_sources() if one.name.endswith(f"({wanted})")), None)
    time.sleep(0.05)
receiver = Receiver(color_format=RecvColorFormat.RGBX_RGBA)
video = VideoFrameSync()
receiver.frame_sync.set_video_frame(video)
receiver.set_source(source)
last = None
while time.monotonic() < end:
    time.sleep(0.005)
    receiver.frame_sync.capture_video()
    width, height = video.xres, video.yres
    if min(width, height) == 0:
        continue
    pixels = np.asarray(video.get_array() if hasattr(video, "get_array") else video).reshape(height, width, 4)
    number = read_number(pixels)
    if number is not None and number != last:
        last = number
        print(json.dumps({"number": number, "size": [width, height], "source": source.name}), flush=True)
