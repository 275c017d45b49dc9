"""OSCQuery as the proposal has it: the tree, attributes, codes, and values streamed over a WebSocket."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from sdbridge.clock import SystemClock
from sdbridge.config import Config, CueConfig
from sdbridge.control.oscquery import OscQuery
from sdbridge.parameters.addresses import COMMANDS, STATUS_TOPICS
from sdbridge.parameters.table import TABLE
from tests.control.fake_view import FakeView
from tests.control.osc_rig import read


@pytest.fixture
def view(tmp_path: Path) -> FakeView:
    cues = (CueConfig(name="open"), CueConfig(name="close"))
    return FakeView(tmp_path, Config(port=9123, name="stage left"), SystemClock(), cues)  # type: ignore[arg-type]


@pytest.fixture
def query(view: FakeView) -> Iterator[OscQuery]:
    query = OscQuery(view)
    yield query
    query.close()


def node(query: OscQuery, path: str) -> dict[str, Any]:
    status, tree = query.answer(path)
    assert status == 200 and tree is not None
    return tree


def every(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield tree
    for below in tree.get("CONTENTS", {}).values():
        yield from every(below)


def test_every_address_is_found_at_its_own_path(query: OscQuery) -> None:
    nodes = {one["FULL_PATH"]: one for one in every(node(query, "/"))}
    for row in TABLE:
        assert nodes[row.address]["DESCRIPTION"]
    for command in COMMANDS:
        assert nodes[command.address]["ACCESS"] == 2
    for topic in STATUS_TOPICS:
        assert nodes[topic.address]["ACCESS"] == 1
    for path, one in nodes.items():
        assert query.answer(path) == (200, one)
        assert ("TYPE" in one) == (one["ACCESS"] != 0)
        assert ("VALUE" in one) == (one["ACCESS"] in (1, 3))


def test_a_float_with_value_range_and_clipmode(query: OscQuery, view: FakeView) -> None:
    view.store.set("guidance_scale", 1.5)
    found = node(query, "/sdbridge/guidance_scale")
    assert (found["TYPE"], found["VALUE"], found["RANGE"]) == ("f", [1.5], [{"MIN": 0.0, "MAX": 12.0}])
    assert (found["ACCESS"], found["CLIPMODE"], found["TAGS"]) == (3, ["both"], ["generate"])


def test_enums_booleans_triggers_and_aliases(query: OscQuery, view: FakeView) -> None:
    assert node(query, "/sdbridge/guidance_mode")["RANGE"] == [
        {"VALS": ["none", "full", "self", "initialize"]}
    ]
    assert node(query, "/sdbridge/output/freeze")["TYPE"] == "F"
    view.store.set("output.freeze", True)
    assert node(query, "/sdbridge/output/freeze")["TYPE"] == "T"
    panic = node(query, "/sdbridge/panic")
    assert (panic["TYPE"], panic["ACCESS"], panic["CRITICAL"]) == ("I", 2, True)
    prompt = node(query, "/sdbridge/prompt")
    assert prompt["TYPE"] == "s" and set(prompt["CONTENTS"]) == {str(n) for n in range(1, 9)}


def test_attributes_are_answered_alone(query: OscQuery) -> None:
    assert query.answer("/sdbridge/strength", "VALUE") == (200, {"VALUE": [0.6]})
    assert query.answer("/sdbridge/strength", "TYPE") == (200, {"TYPE": "f"})
    assert query.answer("/sdbridge/strength", "FULL_PATH") == (200, {"FULL_PATH": "/sdbridge/strength"})


@pytest.mark.parametrize(
    ("path", "attribute", "status"),
    [
        ("/nothing", "", 404),
        ("/sdbridge/strength/more", "", 404),
        ("/sdbridge/nothing", "VALUE", 404),
        ("/sdbridge/strength", "NONSENSE", 400),
        ("/sdbridge/strength", "value", 400),
        ("/sdbridge", "VALUE", 204),
        ("/sdbridge/panic", "VALUE", 204),
        ("/sdbridge/prompt", "RANGE", 204),
        ("/sdbridge/", "", 200),
        ("/", "", 200),
        ("/", "HOST_INFO", 200),
    ],
)
def test_status_codes_are_those_of_the_proposal(
    query: OscQuery, path: str, attribute: str, status: int
) -> None:
    code, tree = query.answer(path, attribute)
    assert code == status
    assert (tree is None) == (status != 200)


def test_host_info_names_the_port_and_what_is_offered(query: OscQuery) -> None:
    info = query.host_info()
    assert (info["NAME"], info["OSC_PORT"], info["OSC_TRANSPORT"]) == ("stage left", 9123, "UDP")
    extensions = info["EXTENSIONS"]
    assert isinstance(extensions, dict)
    assert {"ACCESS", "VALUE", "RANGE", "DESCRIPTION", "CRITICAL", "LISTEN", "PATH_CHANGED"} <= set(
        extensions
    )
    shown = {key for one in every(node(query, "/")) for key in one}
    assert shown <= set(extensions) | {"FULL_PATH", "CONTENTS", "TYPE"}


def test_presets_and_cues_are_choices_and_buttons(query: OscQuery, view: FakeView) -> None:
    view.show.save("dark side")
    recall = node(query, "/sdbridge/preset/recall")
    assert recall["RANGE"][0] == {"VALS": ["dark side"]}
    assert recall["CONTENTS"]["1"]["DESCRIPTION"] == "dark side"
    assert node(query, "/sdbridge/cue/go")["RANGE"] == [{"VALS": ["open", "close"]}]


@pytest.mark.parametrize(
    ("path", "query_text", "accept", "wanted"),
    [
        ("/", "", "text/html,*/*", False),
        ("/", "", "application/json", True),
        ("/", "", "*/*", True),
        ("/", "HOST_INFO", "text/html", True),
        ("/sdbridge/strength", "", "text/html", True),
        ("/api/status", "", "*/*", False),
        ("/sdbridges", "", "*/*", False),
    ],
)
def test_the_page_keeps_the_root_for_browsers(path: str, query_text: str, accept: str, wanted: bool) -> None:
    assert OscQuery.is_for(path, query_text, accept) is wanted


def test_over_http(query: OscQuery) -> None:
    client = TestClient(query)
    answer = client.get("/sdbridge/strength?VALUE")
    assert (answer.status_code, answer.json()) == (200, {"VALUE": [0.6]})
    assert answer.headers["content-type"] == "application/json"
    assert client.get("/sdbridge/strength?NONSENSE").status_code == 400
    empty = client.get("/sdbridge?VALUE")
    assert (empty.status_code, empty.content) == (204, b"")
    assert client.get("/?HOST_INFO").json()["NAME"] == "stage left"
    assert client.get("/sdbridge/%2e%2e/%00?VALUE").status_code == 404


def test_listen_streams_osc_packets_until_ignore(query: OscQuery, view: FakeView) -> None:
    with TestClient(query).websocket_connect("/") as socket:
        socket.send_text(json.dumps({"COMMAND": "LISTEN", "DATA": "/sdbridge/strength"}))
        assert read(socket.receive_bytes()) == [("/sdbridge/strength", pytest.approx(0.6))]
        socket.send_text(json.dumps({"COMMAND": "LISTEN", "DATA": "/sdbridge/output/freeze"}))
        assert read(socket.receive_bytes()) == [("/sdbridge/output/freeze", False)]
        view.store.set_many({"strength": 0.25, "delta": 0.5})
        assert read(socket.receive_bytes()) == [("/sdbridge/strength", 0.25)]
        socket.send_text(json.dumps({"COMMAND": "IGNORE", "DATA": "/sdbridge/strength"}))
        socket.send_text(json.dumps({"COMMAND": "LISTEN", "DATA": "/sdbridge/steps"}))
        assert read(socket.receive_bytes()) == [("/sdbridge/steps", 1)]
        view.store.set_many({"strength": 0.75, "steps": 3})
        assert read(socket.receive_bytes()) == [("/sdbridge/steps", 3)]


def test_listening_to_an_alias_and_to_a_status(query: OscQuery, view: FakeView) -> None:
    with TestClient(query).websocket_connect("/sdbridge") as socket:
        socket.send_text(json.dumps({"COMMAND": "LISTEN", "DATA": "/sdbridge/status/fps"}))
        assert read(socket.receive_bytes()) == [("/sdbridge/status/fps", 30.0)]
        socket.send_text(json.dumps({"COMMAND": "LISTEN", "DATA": "/sdbridge/seed"}))
        heard = dict(pair for _ in range(9) for pair in read(socket.receive_bytes()))
        assert heard["/sdbridge/seed"] == heard["/sdbridge/seed/1/value"] == 2


def test_a_changed_list_of_presets_is_told_to_every_listener(query: OscQuery, view: FakeView) -> None:
    with TestClient(query).websocket_connect("/") as socket:
        socket.send_text("{}")
        view.show.save("new")
        assert json.loads(socket.receive_text()) == {
            "COMMAND": "PATH_CHANGED",
            "DATA": "/sdbridge/preset/recall",
        }


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '{"COMMAND": 1}',
        '{"COMMAND": "LISTEN", "DATA": {}}',
        "[" * 5000,
        '{"COMMAND": "DANCE", "DATA": "/"}',
        '{"COMMAND": "LISTEN", "DATA": "/nothing"}',
    ],
)
def test_texts_that_are_no_commands_are_let_pass(query: OscQuery, text: str) -> None:
    with TestClient(query).websocket_connect("/") as socket:
        socket.send_text(text)
        socket.send_bytes(b"\xff\x00")
        socket.send_text(json.dumps({"COMMAND": "LISTEN", "DATA": "/sdbridge/steps"}))
        assert read(socket.receive_bytes()) == [("/sdbridge/steps", 1)]
    assert query._listeners == set()


def test_on_the_bridges_own_port_beside_the_page(view: FakeView) -> None:
    import httpx
    from websockets.sync.client import connect

    from sdbridge.control.web import WebServer

    view.config = Config(port=0, name="stage left")
    with WebServer(view) as server:
        info = httpx.get(f"{server.url}/?HOST_INFO").json()
        assert info["NAME"] == "stage left"
        assert httpx.get(f"{server.url}/").json()["FULL_PATH"] == "/"
        page = httpx.get(f"{server.url}/", headers={"accept": "text/html,application/xhtml+xml,*/*;q=0.8"})
        assert page.text.lower().startswith("<!doctype html")
        assert httpx.get(f"{server.url}/sdbridge/strength?VALUE").json() == {"VALUE": [0.6]}
        assert httpx.get(f"{server.url}/sdbridge?VALUE").status_code == 204
        with connect(server.url.replace("http", "ws") + "/", open_timeout=20) as socket:
            socket.send(json.dumps({"COMMAND": "LISTEN", "DATA": "/sdbridge/strength"}))
            packet = socket.recv(timeout=20)
            assert isinstance(packet, bytes) and read(packet) == [("/sdbridge/strength", pytest.approx(0.6))]
