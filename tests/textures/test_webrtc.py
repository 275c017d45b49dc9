"""WHEP: bad offers are refused, good ones answered; a slow test sees the pictures in a private network."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from sdbridge.errors import SdbridgeError
from sdbridge.textures.webrtc import Sender
from tests.namespaces import why_not

able, why = Sender.available()
pytestmark = pytest.mark.skipif(not able, reason=why)
PEER = Path(__file__).parent / "peers" / "webrtc_visit.py"


def ask(sender: Sender, *requests: tuple) -> list[httpx.Response]:
    async def all_of_them() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=sender.mounts["/whep"])
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            return [await http.request(*request[:2], content=request[2]) for request in requests]

    return asyncio.run(all_of_them())


def offer(kind: str = "video") -> str:
    from aiortc import RTCConfiguration, RTCPeerConnection

    async def make() -> str:
        player = RTCPeerConnection(RTCConfiguration(iceServers=[]))
        player.addTransceiver(kind, direction="recvonly")
        await player.setLocalDescription(await player.createOffer())
        sdp = player.localDescription.sdp
        await player.close()
        return sdp

    return asyncio.run(make())


@pytest.mark.parametrize("codec", ["vp8", "h264"])
def test_an_offer_is_answered_with_the_wanted_codec_and_a_place_to_end_it(codec: str) -> None:
    sdp = offer()

    async def visit(sender: Sender) -> None:
        transport = httpx.ASGITransport(app=sender.mounts["/whep"])
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
            answer = await http.post("/whep", content=sdp)
            assert answer.status_code == 201 and answer.headers["content-type"] == "application/sdp"
            maps = [line for line in answer.text.splitlines() if line.startswith("a=rtpmap")]
            assert codec in maps[0].lower()
            assert sender.receivers == 1
            assert (await http.delete(answer.headers["location"])).status_code == 200
            assert sender.receivers == 0

    with Sender("", {"codec": codec}) as sender:
        asyncio.run(visit(sender))


def test_what_is_no_offer_is_refused_in_one_line_each() -> None:
    with Sender("", {}) as sender:
        answers = ask(
            sender,
            ("POST", "/whep", b""),
            ("POST", "/whep", b"hello"),
            ("POST", "/whep", b"\xff\xfe"),
            ("POST", "/whep", b"v=0\r\nnonsense"),
            ("POST", "/whep", b"v=0" + b"x" * 200_000),
            ("POST", "/whep", offer("audio").encode()),
            ("GET", "/whep", b""),
            ("DELETE", "/whep/nobody", b""),
        )
        assert [answer.status_code for answer in answers] == [400, 400, 400, 400, 400, 400, 405, 200]
        assert all(answer.text.startswith("SDB-WEB-") for answer in answers[:7])
        assert sender.receivers == 0
    assert ask(sender, ("POST", "/whep", b""))[0].status_code == 503


def test_a_path_without_a_slash_is_refused() -> None:
    with pytest.raises(SdbridgeError, match="SDB-TEXTURE-OPTION"):
        Sender("", {"path": "whep"}).open()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_pictures_arrive_over_a_private_network() -> None:
    # aiortc leaves loopback out, so an address of the namespace's own is needed.
    setup = "ip link set lo up; ip link add d0 type veth peer name d1; ip addr add 10.99.0.1/24 dev d0"
    setup += "; ip link set d0 up; ip link set d1 up"
    command = ["unshare", "--net", "sh", "-c", f"{setup}; exec {sys.executable} {PEER}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    numbers = [number for number in seen["numbers"] if number is not None]
    assert numbers == sorted(numbers) and len(set(numbers)) >= 5
    assert (seen["watching"], seen["ended"], seen["left"]) == (1, 200, 0)
