"""Which names do TensorRT's published Python bindings have? Writes them for the tests' stand-in.

    pip download --no-deps --only-binary :all: -d wheels tensorrt-cu12-bindings "tensorrt-cu12-bindings<11"
    python scripts/tensorrt_names.py wheels/*.whl

The bindings are on PyPI, TensorRT's own libraries are not. So the bindings are loaded over empty libraries
(a C compiler makes them), which is enough to be asked for their names; nothing of TensorRT runs. Linux, and a
Python that the wheels are for.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TARGET = Path(__file__).parents[1] / "tests" / "engine" / "accelerate" / "tensorrt_names.json"
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
#: What the bindings want of the libraries: entry points that nobody calls here.
ENTRIES = (
    "createNvOnnxParserRefitter_INTERNAL",
    "getNvOnnxParserVersion",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "createInferBuilder_INTERNAL",
    "initLibNvInferPlugins",
    "getPluginRegistry",
    "getBuilderPluginRegistry",
    "getInferLibVersion",
    "getLogger",
)
CLASSES = (
    "Builder",
    "BuilderFlag",
    "DataType",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IProgressMonitor",
    "Logger",
    "MemoryPoolType",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "Refitter",
    "Runtime",
    "TensorIOMode",
    "Weights",
)
_ASK = """
import json, sys
import tensorrt_bindings as found
module = sys.modules["tensorrt_bindings.tensorrt"]
names = {name: sorted(each for each in dir(getattr(module, name)) if not each.startswith("_"))
         for name in sys.argv[1:]}
print(json.dumps({"version": found.__version__, "names": names}))
"""


def names_of(wheel: Path) -> dict[str, object]:
    """Version, and the public names of every class that we or the stand-in use."""
    major = wheel.name.split("-")[1].split(".")[0]
    with tempfile.TemporaryDirectory() as place:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(place)
        source = Path(place, "empty.c")
        source.write_text("".join(f"void *{entry}(void) {{ return 0; }}\n" for entry in ENTRIES))
        for name in LIBRARIES:
            file = f"lib{name}.so.{major}"
            command = [
                "cc",
                "-shared",
                "-fPIC",
                f"-Wl,-soname,{file}",
                "-o",
                str(Path(place, file)),
                str(source),
            ]
            subprocess.run(command, check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": place, "PYTHONPATH": place}
        told = subprocess.run(
            [sys.executable, "-c", _ASK, *CLASSES],
            env=environment,
            check=True,
            capture_output=True,
            text=True,
        )
    found: dict[str, object] = json.loads(told.stdout)
    return found


if __name__ == "__main__":
    found = sorted((names_of(Path(wheel)) for wheel in sys.argv[1:]), key=lambda each: str(each["version"]))
    TARGET.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
