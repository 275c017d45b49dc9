"""Who sees a source of the group ``stage``: those of that group, and nobody else. Prints one JSON line."""

import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from sdbridge.textures.ndi.finder import Finder
from sdbridge.textures.ndi.sender import Sender

seen = {}
with Sender("open", {}), Sender("closed", {"groups": "stage"}):
    for groups in ("", "stage", "public,stage"):
        finder = Finder(groups)
        finder.open()
        end = time.monotonic() + 15
        wanted = {"": 1, "stage": 1, "public,stage": 2}[groups]
        while len(finder.sources()) < wanted and time.monotonic() < end:
            time.sleep(0.05)
        time.sleep(1.0)  # for one that should not be seen
        seen[groups] = sorted(found.name.partition("(")[2].rstrip(")") for found in finder.sources())
        finder.close()
print(json.dumps(seen), flush=True)
