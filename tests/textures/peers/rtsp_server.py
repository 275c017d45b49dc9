"""A small RTSP server for one film: says what it has, and sends ffmpeg's RTP packets inside the connection.

``python rtsp_server.py FILM`` prints its port. Only what a player over TCP asks is answered.
"""

import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path


def serve(film: str) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        print(listening.getsockname()[1], flush=True)
        while True:
            connection, _ = listening.accept()
            threading.Thread(target=visit, args=(connection, film), daemon=True).start()


def visit(connection: socket.socket, film: str) -> None:
    packets = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    packets.bind(("127.0.0.1", 0))
    place = f"rtp://127.0.0.1:{packets.getsockname()[1]}"
    about = Path(tempfile.mkdtemp()) / "about.sdp"
    command = ["ffmpeg", "-nostdin", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", film]
    command += ["-an", "-c", "copy", "-f", "rtp", "-sdp_file", str(about), place]
    player = subprocess.Popen(command)
    try:
        with connection, connection.makefile("rb") as asked:
            while request := asked.readline():
                method = request.split()[0].decode()
                headers = {}
                while (line := asked.readline()).strip():
                    name, _, value = line.decode().partition(":")
                    headers[name.lower()] = value.strip()
                answer, body = answer_to(method, about)
                head = f"RTSP/1.0 200 OK\r\nCSeq: {headers['cseq']}\r\n{answer}"
                head += f"Content-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
                if method == "PLAY":
                    forward(packets, connection)
                    return
    except OSError:
        pass  # the player has gone
    finally:
        player.kill()
        player.wait()


def answer_to(method: str, about: Path) -> tuple[str, bytes]:
    if method == "OPTIONS":
        return "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n", b""
    if method == "DESCRIBE":
        for _ in range(500):
            if about.exists() and b"m=video" in about.read_bytes():
                break
            threading.Event().wait(0.02)
        lines = [line for line in about.read_text().splitlines() if not line.startswith("SDP:")]
        sdp = "\r\n".join([*lines, "a=control:track1", ""])
        return "Content-Type: application/sdp\r\n", sdp.encode()
    if method == "SETUP":
        return "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1;timeout=60\r\n", b""
    return "Session: 1\r\n", b""


def forward(packets: socket.socket, connection: socket.socket) -> None:
    while True:
        packet = packets.recv(65_535)
        connection.sendall(b"$\x00" + len(packet).to_bytes(2, "big") + packet)


if __name__ == "__main__":
    serve(sys.argv[1])
