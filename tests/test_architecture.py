"""The import arrows of design.md, read from the syntax tree of every file."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "sdbridge"
HEAVY = {"torch", "diffusers", "transformers", "peft", "xformers", "tensorrt"}

#: Files of the engine folder that belong to the bridge's side and so stay free of torch.
TORCH_FREE_ENGINE = {file.stem for file in (PACKAGE / "engine").glob("*.py")}


def imports(file: Path, everywhere: bool = True) -> Iterator[str]:
    """Full names that ``file`` imports; ``everywhere`` also inside functions, but never for type checking."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    nodes = ast.walk(tree) if everywhere else iter(tree.body)
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
        for inner in ast.walk(node)
    }
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def files(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((PACKAGE / folder).rglob("*.py"))]


def test_only_the_engine_and_the_model_files_import_torch():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        inside = file.relative_to(PACKAGE).parts
        below_engine = inside[0] == "engine" and not (len(inside) == 2 and file.stem in TORCH_FREE_ENGINE)
        if below_engine or inside[0] in ("models", "bench"):
            continue
        wrong += [f"{file.name}: {name}" for name in imports(file) if name.split(".")[0] in HEAVY]
    assert not wrong


def test_files_that_the_bridge_may_import_have_no_heavy_import_at_the_top():
    wrong = []
    for file in files("models", "bench"):
        wrong += [f"{file.name}: {n}" for n in imports(file, everywhere=False) if n.split(".")[0] in HEAVY]
    allowed = {"small.py", "detect.py"}  # loaded by the engine and by tests only
    assert not [line for line in wrong if line.split(":")[0] not in allowed and "demo" not in line]


def test_control_and_textures_do_not_know_each_other():
    for file in files("control"):
        assert not [n for n in imports(file) if n.startswith("sdbridge.textures")], file
    for file in files("textures"):
        assert not [n for n in imports(file) if n.startswith("sdbridge.control")], file


def test_the_foundations_know_nothing_above_them():
    above = ("sdbridge.bridge", "sdbridge.control", "sdbridge.textures", "sdbridge.engine", "sdbridge.cli")
    for file in [
        *files("parameters"),
        *(PACKAGE / f"{n}.py" for n in ("frame", "errors", "status", "config", "clock")),
    ]:
        assert not [n for n in imports(file) if n.startswith(above)], file


def test_nothing_below_imports_the_bridge_or_the_command_line():
    for file in files("control", "textures", "engine", "parameters", "models"):
        wrong = [
            n for n in imports(file) if n.startswith(("sdbridge.bridge", "sdbridge.cli", "sdbridge.commands"))
        ]
        assert not wrong, file


def test_broad_except_stands_only_at_the_three_edges_and_says_why():
    wrong = []
    for file in PACKAGE.rglob("*.py"):
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if "except Exception" in line or "except BaseException" in line:
                if "# edge: " not in line:
                    wrong.append(f"{file.relative_to(PACKAGE)}:{number}")
    assert not wrong
