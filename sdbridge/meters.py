"""Rates and latencies over the last seconds, cheap enough to feed with every frame."""

from __future__ import annotations

import threading
from collections import deque

from sdbridge.status import LatencyMs


class RateMeter:
    """Events a second, over the last two seconds."""

    def __init__(self, window_s: float = 2.0) -> None:
        self._window_ns = int(window_s * 1e9)
        self._times: deque[int] = deque(maxlen=1024)
        self._lock = threading.Lock()

    def count(self, now_ns: int) -> None:
        with self._lock:
            self._times.append(now_ns)

    def rate(self, now_ns: int) -> float:
        with self._lock:
            while self._times and now_ns - self._times[0] > self._window_ns:
                self._times.popleft()
            if len(self._times) < 2:
                return 0.0
            # From the first event of the window to now, so that a stop shows as a falling rate.
            return (len(self._times) - 1) / max(1e-9, (now_ns - self._times[0]) / 1e9)


class LatencyMeter:
    """p50 and p99 of the newest 600 frames, in ms."""

    def __init__(self) -> None:
        self._samples: deque[float] = deque(maxlen=600)
        self._lock = threading.Lock()

    def add(self, latency_ms: float) -> None:
        with self._lock:
            self._samples.append(latency_ms)

    def read(self) -> LatencyMs:
        with self._lock:
            ordered = sorted(self._samples)
        if not ordered:
            return LatencyMs()
        return LatencyMs(percentile(ordered, 50), percentile(ordered, 99))


def percentile(ordered: list[float], share: float) -> float:
    """The value that ``share`` percent of the sorted, non-empty ``ordered`` do not exceed."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))]
