"""The ``aecourse`` command."""

import argparse
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "torch torchvision numpy matplotlib scikit-learn scikit-image ipywidgets anywidget safetensors "
    "jupyter-book nbgrader"
).split()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Errors of the user are one line on stderr."""
    parser = argparse.ArgumentParser(prog="aecourse", description="The course's command-line companion.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="download a data set, checksums verified")
    fetch.add_argument("name", help="mnist or fashion-mnist")
    fetch.add_argument("--root", type=Path, help="folder to put it in (default: AECOURSE_DATA or the cache)")

    commands.add_parser("info", help="versions and devices, to paste into a bug report")

    train = commands.add_parser("train-reference", help="train a model that ships with the package")
    train.add_argument("name", help="mnist_vae")
    train.add_argument("--folder", type=Path, default=Path("aecourse/weights"), help="where to write it")

    options = parser.parse_args(arguments)
    try:
        if options.command == "fetch":
            from aecourse import data

            print(f"{options.name} is ready in {data.fetch(options.name, options.root)}")
        elif options.command == "info":
            print(info())
        else:
            from aecourse import reference

            print(reference.train(options.name, options.folder))
    except (ValueError, OSError, ImportError, RuntimeError) as error:
        print(f"aecourse: {error}", file=sys.stderr)
        return 1
    return 0


def info() -> str:
    """What a maintainer needs to know of this installation: versions, device, data."""
    import torch

    import aecourse
    from aecourse import data
    from aecourse.train import pick_device

    rows = [
        ("aecourse", aecourse.__version__),
        ("python", f"{platform.python_version()} on {platform.platform()}"),
    ]
    for name in PACKAGES:
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            rows.append((name, "not installed"))
    device = pick_device()
    rows.append(("device", torch.cuda.get_device_name() if device.type == "cuda" else str(device)))
    rows.append(("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"))
    rows.append(("data root", str(data.data_root())))
    rows.append(("data set of the chapters", data.chosen_name()))
    return "\n".join(f"{name:25} {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())
