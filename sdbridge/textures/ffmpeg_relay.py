"""How an address is read that PyAV's own FFmpeg does not know, such as SRT: through the ffmpeg program."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from types import TracebackType
from typing import IO, Any

import av

#: Microseconds of a stream that FFmpeg looks at before it gives the first picture; five seconds by itself.
_LOOK_AT_US = 500_000


class FfmpegRelay:
    """A running ffmpeg that copies an address's pictures, as they are encoded, into a pipe that PyAV reads.

    ``with FfmpegRelay("srt://...", 5.0) as container``. ``kill`` may be called from another thread and ends
    a read that waits. What ffmpeg said when it gave up is the text of the ValueError.
    """

    def __init__(self, address: str, timeout_s: float) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._said: IO[bytes] | None = None
        self._container: Any = None

    def __enter__(self) -> Any:
        program = shutil.which("ffmpeg")
        scheme = self._address.partition("://")[0]
        if program is None:
            raise ValueError(f"PyAV's FFmpeg knows no {scheme}; with the program ffmpeg installed it is read")
        self._said = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            _command(program, self._address, self._timeout_s),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._said,
            bufsize=0,  # a packet is handed on when it comes, not when a buffer is full
        )
        assert self._process.stdout is not None
        options = {"fflags": "nobuffer", "analyzeduration": str(_LOOK_AT_US)}
        try:
            self._container = av.open(_Pipe(self._process.stdout), format="nut", options=options)
        except (av.FFmpegError, OSError) as error:
            why = self._last_words() or str(error)
            self._let_go()
            raise ValueError(why) from error
        return self._container

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()

    def kill(self) -> None:
        """End it at once; whoever reads sees the end of the stream."""
        if self._process is not None:
            self._process.kill()

    def _let_go(self) -> None:
        if self._container is not None:
            self._container.close()
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            if self._process.stdout is not None:
                self._process.stdout.close()
        if self._said is not None:
            self._said.close()

    def _last_words(self) -> str:
        assert self._process is not None and self._said is not None
        self._process.kill()
        self._process.wait()
        self._said.seek(0)
        lines = self._said.read()[-2000:].decode("utf-8", "replace").strip().splitlines()
        return lines[-1][-200:] if lines else ""


class _Pipe:
    """Only what PyAV needs: it would try to seek in anything that says it could."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe = pipe

    def read(self, size: int) -> bytes:
        return self._pipe.read(size)


def _command(program: str, address: str, timeout_s: float) -> Sequence[str]:
    patience = ["-timeout", str(int(timeout_s * 1e6))] if address.startswith("srt:") else []
    return [
        *(program, "-nostdin", "-hide_banner", "-loglevel", "error", "-fflags", "nobuffer", *patience),
        *("-analyzeduration", str(_LOOK_AT_US)),
        *("-i", address, "-map", "0:v:0", "-c", "copy", "-flush_packets", "1", "-f", "nut", "pipe:1"),
    ]
