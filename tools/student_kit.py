"""Pack what students get: the site, the assignments and the library, without the solutions.

    python tools/student_kit.py SITE OUTPUT.zip

The names of what goes in are listed here, so a new folder in the repository stays out until someone adds it.
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FORBIDDEN = (b"BEGIN SOLUTION", b"BEGIN HIDDEN TESTS", b"BEGIN MARK SCHEME")
README = """\
# aecourse, for students

- `site/index.html` is the book. Open it in a browser.
- `assignments/` holds the notebooks to complete, on Colab or on a laptop; the page `site/assignments.html`
  says what each is about.
- The wheel is the library, which chapters and assignments need: `pip install "{wheel}[book]"`. Then
  `jupyter lab` opens both.

Hand in the notebook under its own name; do not rename, delete or copy its test cells.
"""


def collect(site: Path, wheels: Path) -> dict[str, Path]:
    """The files of the kit: their names inside it, and where they are."""
    members = {f"site/{path.relative_to(site)}": path for path in site.rglob("*") if path.is_file()}
    for path in sorted((ROOT / "assignments").rglob("*")):
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(ROOT).parts):
            members[str(path.relative_to(ROOT))] = path
    for path in sorted((ROOT / "book").glob("*.ipynb")):
        members[f"chapters/{path.name}"] = path
    for name in ("LICENSE", "LICENSE-TEXT"):
        members[name] = ROOT / name
    members.update({path.name: path for path in wheels.glob("*.whl")})
    return members


def pack(members: dict[str, Path], output: Path, readme: str) -> None:
    """Write the zip; refuse if anything in it would give an answer away."""
    for name, path in members.items():
        if any(mark in path.read_bytes() for mark in FORBIDDEN):
            raise ValueError(f"{name} holds solutions or hidden tests and must not reach students.")
    output.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED) as kit:
        kit.writestr("README.md", readme)
        for name, path in sorted(members.items()):
            kit.write(path, name)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="the built site, _build/html")
    parser.add_argument("output", type=Path, help="the zip file to write")
    options = parser.parse_args()
    if not (options.site / "index.html").is_file():
        sys.exit(f"{options.site} holds no index.html: run make book first.")
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(ROOT), "-w", folder]
        subprocess.run(command, check=True)
        members = collect(options.site, Path(folder))
        wheel = next(name for name in members if name.endswith(".whl"))
        pack(members, options.output, README.format(wheel=wheel))
    print(f"{options.output}: {len(members)} files, {options.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
