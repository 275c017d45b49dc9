"""Where the program begins: ``sdbridge`` and ``python -m sdbridge`` are the same."""

import gc
import os
import sys


def main() -> None:
    """Before anything slow is imported, see to what must hold from the program's first moment on."""
    from sdbridge.large_copies import copy_past_the_caches

    if sys.argv[1:2] in (["run"], ["bench"]):
        copy_past_the_caches()
    if sys.argv[1:2] == ["run"]:
        # Both would only delay the page: searching what is imported (and stays) for garbage, and reading
        # about every installed distribution in case one is a plugin of pydantic.
        gc.disable()
        os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from sdbridge.cli import main as command_line

    command_line()


if __name__ == "__main__":
    main()
