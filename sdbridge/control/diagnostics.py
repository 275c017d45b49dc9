"""One text that says how this bridge stands, without secrets, for bug reports."""

from __future__ import annotations

import getpass
import json
import platform
import re
import socket
from collections.abc import Mapping
from pathlib import Path

from sdbridge import __version__
from sdbridge.control.view import BridgeView

LOG_LINES = 200
_SECRET_KEY = re.compile(r"token|passw|passphrase|secret|api_?key|streamid|credential", re.IGNORECASE)
_SECRET_IN_URL = re.compile(r"(?i)\b([a-z][a-z0-9+.-]*://)[^\s/@]+@")
_SECRET_IN_QUERY = re.compile(
    r"(?i)\b(token|passw\w*|passphrase|secret|api_?key|streamid)(\s*[=:]\s*)[^\s&,;]+"
)
_SECRET_IN_HEADER = re.compile(r"(?i)\bbearer\s+[^\s,;]+")
_HUB_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}")


def diagnostics(view: BridgeView, token: str = "") -> str:
    """Version, machine, status, configuration, changed parameters and the log's end, redacted."""
    values, revision = view.store.snapshot()
    changed = {name: value for name, value in values.items() if value != view.store.table.defaults()[name]}
    parts = [
        f"sdbridge {__version__}",
        f"{platform.python_implementation()} {platform.python_version()} on {platform.platform()}",
        _section("status", view.status().as_json()),
        _section("configuration", _without_secrets(view.config.model_dump(mode="json"))),
        _section(f"parameters changed from their defaults, revision {revision}", changed),
        f"--- the log's last {LOG_LINES} lines ---",
        *view.log_lines(LOG_LINES),
    ]
    return redact("\n".join(parts), token or view.config.token) + "\n"


def without_secrets(text: str, token: str = "") -> str:
    """``text`` without passwords and tokens."""
    if token:
        text = text.replace(token, "<token>")
    text = _SECRET_IN_URL.sub(r"\1<login>@", text)
    text = _SECRET_IN_HEADER.sub("Bearer <secret>", text)
    text = _SECRET_IN_QUERY.sub(r"\1\2<secret>", text)
    return _HUB_TOKEN.sub("<secret>", text)


def redact(text: str, token: str = "") -> str:
    """``text`` without secrets, the home folder, and the names of user and machine."""
    text = without_secrets(text, token)
    home = str(Path.home())
    if len(home) > 1:
        text = text.replace(home, "~").replace(home.replace("\\", "\\\\"), "~")
    for word, instead in ((_user(), "<user>"), (socket.gethostname(), "<machine>")):
        if len(word) > 2:
            text = re.sub(rf"(?<![\w-]){re.escape(word)}(?![\w-])", instead, text)
    return text


def _section(title: str, content: object) -> str:
    return f"--- {title} ---\n{json.dumps(content, indent=1, default=str, ensure_ascii=False)}"


def _without_secrets(tree: object) -> object:
    if isinstance(tree, Mapping):
        return {
            key: "<secret>" if _SECRET_KEY.search(str(key)) and value else _without_secrets(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [_without_secrets(item) for item in tree]
    return tree


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a machine without user names, such as a bare container
        return ""
