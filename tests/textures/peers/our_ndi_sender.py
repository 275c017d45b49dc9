"""Our sender, showing test cards until standard input closes. Arguments: name, failover."""

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from sdbridge.frame import Frame
from sdbridge.textures.ndi.sender import Sender
from sdbridge.textures.test_card import TestCard

ended = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), ended.set()), daemon=True).start()
with Sender(sys.argv[1], {"failover": sys.argv[2]}) as sender:
    card, number = TestCard(512, 384), 0
    print(sender.public_name, flush=True)
    while not ended.wait(1 / 30):
        sender.send(Frame(card.draw(number), number, 0), {"prompt": "by another binding"})
        number += 1
