"""Writes docs/settings.md from the settings model, or with --check says whether it is what the model makes.

python tools/settings_doc.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from doorward_server.cli.settings_options import SettingOption, setting_options

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"

HEAD = """\
# Settings

Made from `server/doorward_server/settings.py` by `tools/settings_doc.py`; do not edit.

Each setting is an option of `doorward serve` and an environment variable; the option wins. The commands that work without
a server (`db`, `pepper`, `operator`) take those of them that they need.

| Option | Variable | Value | Default | Meaning |
| --- | --- | --- | --- | --- |
"""


def rendered() -> str:
    """The whole page."""
    return HEAD + "".join(_row(option) for option in setting_options())


def _row(option: SettingOption) -> str:
    flag = f"`{option.flag}`, `--no-{option.flag[2:]}`" if option.is_flag else f"`{option.flag}`"
    value = "`on` or `off`" if option.is_flag else " or ".join(f"`{kind}`" for kind in option.kind.split("|"))
    if option.bounds:
        value += f", {option.bounds}"
    default = "" if option.default is None else f"`{option.default}`"
    meaning = option.meaning.replace("|", "\\|")
    return f"| {flag} | `{option.variable}` | {value} | {default} | {meaning} |\n"


def main() -> int:
    """The exit status."""
    if sys.argv[1:] == ["--check"]:
        if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == rendered():
            return 0
        print("docs/settings.md is not what the settings make; run: python tools/settings_doc.py", file=sys.stderr)
        return 1
    PAGE.write_text(rendered(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
