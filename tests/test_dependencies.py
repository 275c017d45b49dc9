"""pyproject.toml and the imports agree: what we import is declared, and what is declared is used."""

import ast
import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

#: Distributions whose module has another name.
MODULES = {
    "pyyaml": "yaml",
    "python_osc": "pythonosc",
    "nvidia_ml_py": "pynvml",
    "pillow": "PIL",
    "spoutgl": "SpoutGL",
    "syphon_python": "syphon",
    "ndi_python": "NDIlib",
    "python_rtmidi": "rtmidi",
    "opencv_python_headless": "cv2",
    "scikit_image": "skimage",
}
#: Needed without an import of ours, and by whom.
BY_OTHERS = {
    "accelerate": "diffusers' from_pretrained",
    "websockets": "uvicorn, which is told so by name",
    "peft": "diffusers' load_lora_weights, in the tests of LoRAs",
    "rtmidi": "mido, which is told so by name",
    "pytest_timeout": "pytest",
    "ruff": "a program",
    "mypy": "a program",
    "types_pyyaml": "mypy",
    "types_psutil": "mypy",
    "onnx": "torch.onnx",
    "onnxscript": "torch.onnx",
}
#: Imported, declared by those who bring it.
BROUGHT = {"triton": "torch, where there is one"}


def modules_of(requirements: list[str]) -> set[str]:
    names = [re.split(r"[^A-Za-z0-9_.-]", each, maxsplit=1)[0] for each in requirements]
    plain = [re.sub(r"[-.]", "_", name).lower() for name in names]
    return {MODULES.get(name, name) for name in plain}


def imported(*folders: str) -> set[str]:
    """Top-level names that the files import, by statement or by name; those of Python and ours left out."""
    found: set[str] = set()
    for file in (file for folder in folders for file in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
            elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                called = getattr(node.func, "attr", getattr(node.func, "id", ""))
                if called in ("import_module", "importorskip", "find_spec") and isinstance(
                    node.args[0].value, str
                ):
                    found.add(node.args[0].value.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"sdbridge", "tests", "scripts"}


CORE = modules_of(PROJECT["dependencies"])
EXTRAS = {name: modules_of(wanted) for name, wanted in PROJECT["optional-dependencies"].items()}
CHOSEN = set().union(*(modules for name, modules in EXTRAS.items() if name != "test"))
PACKAGE = imported("sdbridge")


def test_all_that_the_package_imports_is_declared():
    assert PACKAGE - CORE - CHOSEN - set(BROUGHT) == set()


def test_all_that_is_declared_is_used_where_it_is_declared():
    assert CORE - PACKAGE - {"accelerate", "websockets"} == set()
    assert CHOSEN - PACKAGE - set(BY_OTHERS) == set()
    in_tests = imported("tests", "scripts") | PACKAGE
    assert EXTRAS["test"] - in_tests - set(BY_OTHERS) == set()


def test_what_only_the_tests_use_is_not_in_the_package_s_own():
    assert not (EXTRAS["test"] - CHOSEN) & CORE
