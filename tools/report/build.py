"""Build the charting library that HTML reports hold: `python -m tools.report.build`, with npm.

package-lock.json pins every package with its digest, so the same files come out again. Only what a
sankey diagram needs is bundled: less than half of the whole library.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).parent
ASSETS = HERE.parents[1] / "llava_remap" / "report" / "html" / "assets"
LIBRARY, LICENSES = ASSETS / "echarts.min.js", ASSETS / "echarts.LICENSES.txt"
#: The licence texts of each package that is in the bundle.
_PARTS = {
    "echarts": ("LICENSE", "NOTICE", "licenses/LICENSE-d3"),
    "zrender": ("LICENSE",),
    "tslib": ("LICENSE.txt",),
}


def main() -> None:
    with TemporaryDirectory() as made:
        folder = Path(made)
        for name in ("package.json", "package-lock.json", "sankey.js"):
            shutil.copy(HERE / name, folder)
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=folder, check=True)
        packages = {name: folder / "node_modules" / name for name in _PARTS}
        versions = {
            name: json.loads((package / "package.json").read_text())["version"]
            for name, package in packages.items()
        }
        named = ", ".join(f"{name} {version}" for name, version in versions.items())
        bundle = ("--bundle", "--minify", "--format=iife", "--global-name=echarts")
        written = ("--legal-comments=none", f"--outfile={LIBRARY}")
        banner = f"--banner:js=/*! {named}; licences: {LICENSES.name} of llava-remap */"
        subprocess.run(
            ["npx", "esbuild", "sankey.js", *bundle, *written, banner], cwd=folder, check=True
        )
        LICENSES.write_text(
            "".join(
                f"==== {name} {versions[name]}: {file} ====\n\n{(package / file).read_text()}\n"
                for name, package in packages.items()
                for file in _PARTS[name]
            )
        )


if __name__ == "__main__":
    main()
