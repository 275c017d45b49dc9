"""Every name and keyword that syphon.py uses is in the true macOS wheel, which is only read here."""

import ast
import subprocess
import sys
import zipfile

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ast.Module]:
    folder = tmp_path_factory.mktemp("syphon")
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    command += ["--platform", "macosx_12_0_universal2", "-d", str(folder), "syphon-python==0.2.0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if done.returncode:
        pytest.skip(f"pip cannot fetch the wheel: {done.stderr.strip()[-200:]}")
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".py")]
        return {name: ast.parse(wheel.read(name)) for name in names}


def members(tree: ast.Module, *classes: str) -> set[str]:
    """What instances have: methods, properties, and what is set on self."""
    found: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in classes:
            for inner in ast.walk(node):
                if isinstance(inner, ast.FunctionDef):
                    found.add(inner.name)
                elif isinstance(inner, ast.Attribute) and ast.unparse(inner.value) == "self":
                    found.add(inner.attr)
                elif isinstance(inner, ast.AnnAssign):
                    found.add(ast.unparse(inner.target))
    return found


def functions(tree: ast.Module) -> dict[str, list[str]]:
    return {
        node.name: [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
    }


def test_the_wheel_has_all_we_use(sources: dict[str, ast.Module]) -> None:
    client = members(sources["syphon/client.py"], "BaseSyphonClient", "SyphonMetalClient")
    assert {"is_valid", "has_new_frame", "new_frame_image", "stop"} <= client
    server = members(sources["syphon/server.py"], "BaseSyphonServer", "SyphonMetalServer")
    assert {"device", "name", "publish_frame_texture", "has_clients", "stop"} <= server
    assert "is_flipped" in functions(sources["syphon/server.py"])["publish_frame_texture"]
    directory = sources["syphon/server_directory.py"]
    assert {"servers", "update_run_loop", "run_loop_interval"} <= members(directory, "SyphonServerDirectory")
    assert {"uuid", "name", "app_name"} <= members(directory, "SyphonServerDescription")
    raw, arrays = functions(sources["syphon/utils/raw.py"]), functions(sources["syphon/utils/numpy.py"])
    assert raw["create_mtl_texture"][:3] == ["device", "width", "height"]
    assert arrays["copy_image_to_mtl_texture"] == ["image", "texture"]
    assert arrays["copy_mtl_texture_to_image"] == ["texture"]
