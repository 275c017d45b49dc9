"""The server on TCP, asked over real sockets by a real HTTP client."""

from __future__ import annotations

import io
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))
from web_view import WebView

from sdbridge.control.osc_log import OscLog
from sdbridge.control.pulls import Pulls
from sdbridge.control.web import WebServer
from sdbridge.engine.interface import Progress
from sdbridge.errors import SdbridgeError


@pytest.fixture
def view() -> WebView:
    return WebView()


@pytest.fixture
def server(view: WebView) -> Iterator[WebServer]:
    with WebServer(view) as running:
        yield running


@pytest.fixture
def web(server: WebServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=20) as client:
        yield client


def test_status_has_the_pinned_keys(web: httpx.Client) -> None:
    answer = web.get("/api/status")
    assert answer.status_code == 200
    pinned = {
        *("state", "frames_in", "frames_out", "dropped", "held"),
        *("fps", "latency_ms", "applied_revision", "errors"),
    }
    assert pinned <= set(answer.json())
    assert answer.json()["latency_ms"] == {"p50": 41.2, "p99": 58.4}


def test_parameters_list_every_row_with_its_value(web: httpx.Client, view: WebView) -> None:
    view.store.set("strength", 0.25)
    listed = web.get("/api/parameters").json()
    rows = {row["name"]: row for row in listed["parameters"]}
    assert set(rows) == {row.name for row in view.store.table}
    assert rows["strength"]["value"] == 0.25
    assert rows["prompt.2.text"]["address"] == "/sdbridge/prompt/2/text"
    assert "value" not in rows["panic"]
    assert listed["revision"] == view.store.revision


def test_setting_parameters_answers_revision_and_what_was_refused(web: httpx.Client, view: WebView) -> None:
    answer = web.post("/api/parameters", json={"values": {"strength": 0.3, "strenght": 1, "steps": "many"}})
    assert answer.status_code == 200
    assert answer.json()["revision"] == view.store.revision == 1
    assert view.store.get("strength") == 0.3
    refused = {item["name"]: item for item in answer.json()["rejected"]}
    assert refused["strenght"]["code"] == "SDB-PARAM-UNKNOWN"
    assert "strength" in refused["strenght"]["message"]
    assert refused["steps"]["code"] == "SDB-PARAM-TYPE"


def test_a_clamped_value_is_taken_and_said(web: httpx.Client, view: WebView) -> None:
    answer = web.post("/api/parameters", json={"values": {"strength": 3, "steps": 2}}).json()
    assert view.store.get("strength") == 1.0 and answer["rejected"] == []
    (said,) = answer["adjusted"]
    assert (said["name"], said["code"]) == ("strength", "SDB-PARAM-RANGE") and "set to 1" in said["message"]


def test_all_refused_is_422_and_changes_nothing(web: httpx.Client, view: WebView) -> None:
    answer = web.post("/api/parameters", json={"values": {"bogus": 1}})
    assert answer.status_code == 422
    assert answer.json()["rejected"][0]["code"] == "SDB-PARAM-UNKNOWN"
    assert view.store.revision == 0


def test_a_fade_takes_what_can_fade_and_sets_the_rest(web: httpx.Client, view: WebView) -> None:
    answer = web.post(
        "/api/parameters", json={"values": {"strength": 0.9, "steps": 3, "nan": 1}, "fade_s": 2}
    )
    assert answer.status_code == 200
    assert [item["name"] for item in answer.json()["rejected"]] == ["nan"]
    assert view.show.fading
    assert view.store.get("strength") == 0.6  # it has only begun: nobody ticks here
    assert view.store.get("steps") == 3


def test_pictures_are_exact_png(web: httpx.Client, view: WebView) -> None:
    frame = view.output_frame()
    view.output_frame = lambda role="generated": frame  # type: ignore[method-assign]
    answer = web.get("/api/output.png")
    assert answer.headers["content-type"] == "image/png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(answer.content))), frame.pixels)
    assert web.get("/api/input.png").status_code == 200
    assert web.get("/api/input.png?role=mask").json()["error"]["code"] == "SDB-WEB-ABSENT"
    assert web.get("/api/input.png?role=nobody").status_code == 400


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "SDB-WEB-BODY"),
        (b"{", "SDB-WEB-BODY"),
        (b"[]", "SDB-WEB-BODY"),
        (b"\xff\xfe", "SDB-WEB-BODY"),
        (b"[" * 500_000, "SDB-WEB-BODY"),
        (b'{"values": {}, "fade": 1}', "SDB-WEB-BODY"),
        (b'{"values": {}, "fade_s": NaN}', "SDB-WEB-BODY"),
        (b'{"values": 3}', "SDB-WEB-BODY"),
        (b'{"values": {"steps": ' + b"9" * 5000 + b"}}", "SDB-WEB-BODY"),
        (b" " * (1 << 20) + b"{}", "SDB-WEB-SIZE"),
    ],
)
def test_malformed_bodies_are_refused_with_a_code(web: httpx.Client, body: bytes, code: str) -> None:
    answer = web.post("/api/parameters", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 413)
    assert answer.json()["error"]["code"] == code
    assert web.get("/api/status").status_code == 200


@pytest.mark.parametrize("value", ["1e400", "9" * 400, "-" + "9" * 400, "NaN", "[]", "{}", "null"])
def test_hostile_values_are_refused_by_name(web: httpx.Client, view: WebView, value: str) -> None:
    for name in ("steps", "strength", "prompt", "output.black", "mode"):
        body = f'{{"values": {{"{name}": {value}}}}}'
        answer = web.post("/api/parameters", content=body, headers={"content-type": "application/json"})
        assert answer.status_code in (200, 422), answer.text
    assert view.store.get("strength") <= 1  # type: ignore[operator]


def test_half_a_surrogate_in_a_prompt_comes_back_whole(web: httpx.Client, view: WebView) -> None:
    body = b'{"values": {"prompt": "a\\ud800b"}}'
    web.post("/api/parameters", content=body, headers={"content-type": "application/json"})
    str(view.store.get("prompt")).encode("utf-8")
    assert web.get("/api/parameters").status_code == 200


def test_unknown_paths_and_methods(web: httpx.Client) -> None:
    assert web.get("/api/nothing").json()["error"]["code"] == "SDB-WEB-PATH"
    assert web.get("/page/../web.py").status_code == 404
    assert web.get("/page/%2e%2e/web.py").status_code == 404
    answer = web.post("/api/status", json={})
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET")
    assert web.head("/api/status").status_code == 200


def test_the_page_and_its_files(web: httpx.Client) -> None:
    page = web.get("/", headers={"accept": "text/html"})
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    again = web.get("/", headers={"accept": "text/html", "if-none-match": page.headers["etag"]})
    assert again.status_code == 304


def test_senders_apps_come_and_go(web: httpx.Client, view: WebView) -> None:
    async def app(scope, receive, send) -> None:  # type: ignore[no-untyped-def]
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]}
        )
        await send({"type": "http.response.body", "body": scope["path"].encode()})

    assert web.get("/output.mjpeg").status_code == 404
    view.mounted["/output.mjpeg"] = app
    assert web.get("/output.mjpeg").text == "/output.mjpeg"
    assert web.get("/output.mjpegs").status_code == 404
    view.mounted.clear()
    assert web.get("/output.mjpeg").status_code == 404


def test_sources_and_outputs(web: httpx.Client, view: WebView) -> None:
    listed = web.get("/api/sources?backend=ndi").json()
    assert [item["name"] for item in listed["sources"]] == ["STAGE (camera 1)", "STAGE (camera 2)"]
    assert {"name": "spout", "available": False, "reason": "Spout needs Windows"} in listed["backends"]
    assert listed["inputs"][0]["role"] == "main"
    assert web.get("/api/sources?backend=nobody").status_code == 400
    good = web.post("/api/sources", json={"role": "main", "backend": "ndi", "name": "STAGE (camera 1)"})
    assert good.status_code == 200
    assert web.post("/api/sources", json={"backend": "spout"}).status_code == 404
    assert web.post("/api/outputs", json={"index": 0, "backend": "ndi", "name": "wall"}).status_code == 200
    more = {"index": 1, "backend": "ndi", "name": "map", "role": "control"}
    assert web.post("/api/outputs", json=more).json() == more
    assert web.post("/api/outputs/off", json={"index": 1}).status_code == 200
    assert web.post("/api/sources/off", json={"role": "mask"}).status_code == 200
    assert web.post("/api/sources/off", json={"role": "main"}).status_code == 404
    assert web.post("/api/sources/off", json={"role": "generated"}).status_code == 400
    assert view.chosen == [
        ("main", "ndi", "STAGE (camera 1)"),
        (0, "ndi", "wall", None),
        (1, "ndi", "map", "control"),
        ("off", 1),
        ("off", "mask"),
    ]


def test_a_fault_inside_is_an_answer_and_the_next_request_works(web: httpx.Client, view: WebView) -> None:
    healthy = view.status

    def broken() -> None:
        raise ValueError("boom")

    view.status = broken  # type: ignore[method-assign,assignment]
    answer = web.get("/api/status")
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "SDB-WEB-FAULT")
    assert "boom" not in answer.text
    view.status = healthy  # type: ignore[method-assign]
    assert web.get("/api/status").status_code == 200


def test_a_taken_port_is_one_clear_error() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(SdbridgeError, match=rf"SDB-WEB-PORT: TCP port {port}"):
            WebServer(WebView(port=port)).start()


def test_closing_twice_gives_the_port_back(view: WebView) -> None:
    server = WebServer(view)
    server.start()
    port = server.port
    server.close()
    server.close()
    with socket.socket() as again:
        again.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        again.bind(("127.0.0.1", port))


def test_openapi_lists_every_endpoint(web: httpx.Client) -> None:
    document = web.get("/api/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    assert {"/api/status", "/api/parameters", "/api/sources", "/api/outputs"} <= set(document["paths"])
    assert "requestBody" in document["paths"]["/api/parameters"]["post"]


def test_presets_from_save_to_delete(web: httpx.Client, view: WebView) -> None:
    def post(path: str, **body: object) -> httpx.Response:
        return web.post(f"/api/presets/{path}", json=body)

    view.store.set_many({"strength": 0.9, "prompt": "a red forest"})
    saved = post("save", name="Forest / night").json()
    assert [(one["number"], one["name"], one["prompt"]) for one in saved["presets"]] == [
        (1, "Forest / night", "a red forest")
    ]
    assert saved["active"] == "Forest / night"
    view.store.set("strength", 0.2)
    post("save", name="Calm")
    assert post("recall", preset="forest / night").json()["rejected"] == []
    assert view.store.get("strength") == 0.9
    assert post("recall", preset=2, fade_s=3, easing="ease_in_out").status_code == 200
    assert view.show.fading
    assert post("morph", a=1, b=2, position=0.5).status_code == 200
    assert view.store.get("strength") == pytest.approx(0.55)
    renamed = post("rename", preset=2, name="Quiet").json()
    assert [one["name"] for one in renamed["presets"]] == ["Forest / night", "Quiet"]
    assert post("rename", preset=2, name="Forest / night").json()["error"]["code"] == "SDB-PRESET-EXISTS"
    assert post("recall", preset="nobody").status_code == 404
    assert post("save", name="  ").status_code == 422
    assert len(post("delete", preset="Quiet").json()["presets"]) == 1
    assert len(web.get("/api/presets").json()["presets"]) == 1


def test_cues_go_and_come_back() -> None:
    cues = [{"name": "open", "values": {"strength": 0.1}}, {"name": "storm", "values": {"strength": 1.0}}]
    view = WebView(cues=cues)
    with WebServer(view) as server, httpx.Client(base_url=server.url) as web:
        listed = web.get("/api/cues").json()
        assert ([cue["name"] for cue in listed["cues"]], listed["position"]) == (["open", "storm"], 0)
        assert web.post("/api/cues/go", json={}).status_code == 200
        assert view.store.get("strength") == 0.1
        assert web.post("/api/cues/next", json={}).status_code == 200
        assert view.store.get("strength") == 1.0
        assert web.post("/api/cues/next", json={}).json()["error"]["code"] == "SDB-CUE-UNKNOWN"
        assert web.post("/api/cues/previous", json={}).status_code == 200
        assert web.post("/api/cues/go", json={"cue": "storm"}).status_code == 200
        assert web.post("/api/cues/stop", json={}).json()["position"] == 2


def test_the_catalog_and_a_pull_with_its_progress(view: WebView, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def pull(model: str, tell: Callable[[Progress], None]) -> Path:
        tell(Progress("download", 25, 100, f"{model} unet", 60))
        begun.set()
        assert go_on.wait(30)
        raise SdbridgeError("SDB-PULL-NETWORK", f"{model} cannot be fetched: no route")

    with WebServer(view, pulls=Pulls(pull)) as server, httpx.Client(base_url=server.url, timeout=20) as web:

        def entry() -> dict[str, object]:
            return next(one for one in web.get("/api/models").json()["models"] if one["id"] == "sd-turbo")

        assert (entry()["here"], entry()["pulling"], entry()["kind"]) == (False, None, "checkpoint")
        assert web.post("/api/models/pull", json={"id": "sd-turbo"}).status_code == 200
        assert begun.wait(30)
        assert web.post("/api/models/pull", json={"id": "sd-turbo"}).status_code == 200  # again: nothing new
        assert entry()["pulling"] == {
            "stage": "download",
            "done": 25,
            "total": 100,
            "message": "sd-turbo unet",
            "left_s": 60,
        }
        assert web.post("/api/models/pull", json={"id": "someone/other"}).status_code == 200
        busy = web.post("/api/models/pull", json={"id": "taesd"})
        assert (busy.status_code, busy.json()["error"]["code"]) == (422, "SDB-PULL-BUSY")
        assert (
            web.post("/api/models/pull", json={"id": "sd-turbp"}).json()["error"]["code"]
            == "SDB-PULL-UNKNOWN"
        )
        go_on.set()
        for thread in threading.enumerate():
            if thread.name.startswith("pull "):
                thread.join(30)
        assert "SDB-PULL-NETWORK" in str(entry()["error"])
        assert entry()["pulling"] is None


def test_words_for_the_prompt_come_while_the_small_model_runs(web: httpx.Client, view: WebView) -> None:
    assert "fire" in web.get("/api/vocabulary").json()["words"]
    view.store.set("model", "sd-turbo")
    assert web.get("/api/vocabulary").json() == {"examples": [], "words": []}


def test_the_osc_log_comes_from_the_osc_server(server: WebServer, web: httpx.Client) -> None:
    assert web.get("/api/osc-log").json() == {"messages": [], "counts": {}}
    log = OscLog()
    log.add("/sdbridge/strength", (0.5, float("nan")), "127.0.0.1:5000", "invalid", "NaN")
    server.meet({"osc": SimpleNamespace(log=log.entries(), counts=log.counts)})
    answer = web.get("/api/osc-log?count=5").json()
    assert answer["counts"] == {"invalid": 1}
    assert answer["messages"][0]["args"] == [0.5, "nan"]
    assert answer["messages"][0]["verdict"] == "invalid"
    assert web.get("/api/osc-log?count=0").status_code == 400


def test_midi_learns_and_forgets_through_the_surface(server: WebServer, web: httpx.Client) -> None:
    assert web.get("/api/midi").json()["available"] is False
    assert web.post("/api/midi/learn", json={"on": True}).status_code == 409
    midi = SimpleNamespace(learning=False, devices=("X-TOUCH",), mappings=(("cc 7 ch 1", "strength"),))
    midi.learn = lambda on: setattr(midi, "learning", on)
    midi.forget = lambda control: setattr(midi, "mappings", ())
    server.meet({"midi": midi})
    assert web.get("/api/midi").json()["mappings"] == [{"control": "cc 7 ch 1", "parameter": "strength"}]
    assert web.post("/api/midi/learn", json={"on": True}).json()["learning"] is True
    assert web.post("/api/midi/forget", json={"control": "cc 7 ch 1"}).json()["mappings"] == []
