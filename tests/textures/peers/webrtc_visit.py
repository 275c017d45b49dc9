"""A whole WHEP visit inside a private network: our sender behind a real server, aiortc as the player.

Prints one JSON line: the numbers read from the cards that arrived, and what was left after the end.
"""

import asyncio
import json
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import httpx
import uvicorn
from aiortc import RTCConfiguration, RTCPeerConnection, RTCSessionDescription

from sdbridge.frame import Frame
from sdbridge.textures.test_card import TestCard, read_number
from sdbridge.textures.webrtc import Sender


async def visit(sender: Sender, port: int) -> dict:
    player = RTCPeerConnection(RTCConfiguration(iceServers=[]))
    player.addTransceiver("video", direction="recvonly")
    tracks: asyncio.Queue = asyncio.Queue()
    player.on("track", tracks.put_nowait)
    await player.setLocalDescription(await player.createOffer())
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as http:
        answer = await http.post("/whep", content=player.localDescription.sdp)
        assert answer.status_code == 201, answer.text
        await player.setRemoteDescription(RTCSessionDescription(sdp=answer.text, type="answer"))
        track = await asyncio.wait_for(tracks.get(), 10)
        numbers = []
        while len([number for number in numbers if number is not None]) < 10:
            frame = await asyncio.wait_for(track.recv(), 15)
            numbers.append(read_number(frame.to_ndarray(format="rgba")))
        watching = sender.receivers
        ended = await http.delete(answer.headers["location"])
    await player.close()
    return {"numbers": numbers, "watching": watching, "ended": ended.status_code, "left": sender.receivers}


def main() -> None:
    with Sender("", {}) as sender:
        config = uvicorn.Config(sender.mounts["/whep"], port=0, log_level="error", lifespan="off")
        server = uvicorn.Server(config)
        threading.Thread(target=server.run, daemon=True).start()
        stopped = threading.Event()

        def send_cards() -> None:
            card, number = TestCard(512, 384), 0
            while not stopped.wait(1 / 20):
                sender.send(Frame(card.draw(number), number, 0), {})
                number += 1

        threading.Thread(target=send_cards, daemon=True).start()
        while not server.started:
            stopped.wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        print(json.dumps(asyncio.run(visit(sender, port))), flush=True)
        stopped.set()
        server.should_exit = True


main()
