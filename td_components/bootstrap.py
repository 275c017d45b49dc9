"""Makes all components inside a running TouchDesigner, and saves them as ``.tox``. For the textport:

    SDBRIDGE_TD = r'C:/path/to/sdbridge/td_components'; exec(open(SDBRIDGE_TD + '/bootstrap.py').read())

Nothing undocumented is used: this works even if the expanded trees should not.
"""

import os
import sys
from pathlib import Path


def _folder():
    """The folder td_components: as named, or near the project. Code run by ``exec`` has no ``__file__``."""
    named = globals().get("SDBRIDGE_TD") or os.environ.get("SDBRIDGE_TD") or globals().get("__file__", "")
    if named:
        folder = Path(named)
        return folder.parent if folder.suffix == ".py" else folder
    import td

    for start in (Path(td.project.folder or "."), Path.cwd()):
        for folder in (start, start / "td_components", *(p / "td_components" for p in start.parents)):
            if (folder / "bootstrap.py").is_file():
                return folder
    raise FileNotFoundError(
        "enter  SDBRIDGE_TD = r'...folder td_components...'  first, then the exec line again"
    )


def bootstrap(folder, target=None, save=True):
    """Make or update every component in ``target`` (the project's first COMP, or /)."""
    import td

    sys.path.insert(0, str(folder / "src"))
    for name in [n for n in sys.modules if n.partition(".")[0] == "sdbridge_td"]:
        del sys.modules[name]  # a second run takes the sources as they are now
    try:
        from sdbridge_td.build import COMPONENTS, boot_text, code_texts, install
    finally:
        sys.path.remove(str(folder / "src"))
    target = target or td.op("/project1") or td.op("/")
    made = {}
    for place, component in enumerate(COMPONENTS):
        comp = install(target, component, code_texts(folder, component), boot_text(folder))
        comp.nodeX, comp.nodeY = 250 * place, -300
        made[component] = comp
        saved = ""
        if save:
            dist = folder / "dist"
            dist.mkdir(exist_ok=True)
            saved = ", saved as " + str(comp.save(str(dist / f"{component}.tox")))
        print(f"{comp.path}: {len(comp.children)} operators, {len(comp.customPars)} parameters{saved}")
    print("Self-test: op('" + made["SdBridge"].path + "') and selftest_td.py, see td_components/README.md")
    return made


if "SDBRIDGE_TD_NO_RUN" not in globals():
    bootstrap(_folder())
