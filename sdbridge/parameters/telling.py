"""Who asked to hear of something hears of it, whatever happened to those told before."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import TypeVar

log = logging.getLogger(__name__)
News = TypeVar("News")


def tell(listeners: Iterable[Callable[[News], None]], news: News) -> None:
    """Call all of them in order. A fault in one is theirs: it is logged, and never reaches who told."""
    for listener in tuple(listeners):
        try:
            listener(news)
        except Exception:  # edge: control; one surface's fault must not keep a change from the others
            log.exception(
                "%s failed when it was told of a change", getattr(listener, "__qualname__", listener)
            )
