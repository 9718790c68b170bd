"""Make docs/demo.svg, the README's picture, from a real run of ``zooport demo``.

Run it with ``make picture``; it takes as long as the demo.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

DOCS = Path(__file__).resolve().parent
COLUMNS = 118


def main() -> None:
    """Run the demo in an empty folder and draw what it prints."""
    command = shutil.which("zooport", path=str(Path(sys.executable).parent)) or "zooport"
    environment = {**os.environ, "COLUMNS": str(COLUMNS), "FORCE_COLOR": "1"}
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [command, "demo"], cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), color_system="standard")
    console.print(Text.assemble(("$ ", "bold green"), ("zooport demo", "bold")))
    printed = done.stdout.strip("\n").replace(str(DOCS.parent), "zooport")  # no path of this machine
    console.print(Text.from_ansi(printed))
    # Without the web fonts that rich names: a README's pictures may not load anything.
    plain_format = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)
    picture = console.export_svg(title="zooport demo", code_format=plain_format)
    (DOCS / "demo.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
