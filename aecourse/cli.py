"""The ``aecourse`` command."""

import argparse
import inspect
import json
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from aecourse.extras import needs
from aecourse.models import MODELS


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status. Errors of the user are one line on stderr."""
    parser = argparse.ArgumentParser(prog="aecourse", description="The course's command-line companion.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    fetch = commands.add_parser("fetch", help="download a data set, checksums verified")
    fetch.add_argument("name", help="mnist, fashion-mnist or cifar10")
    fetch.add_argument("--root", type=Path, help="folder to put it in (default: AECOURSE_DATA or the cache)")

    commands.add_parser("info", help="versions and devices, to paste into a bug report")

    _add_train(commands)

    reference = commands.add_parser("train-reference", help="train a model that ships with the package")
    reference.add_argument("name", help="mnist_vae, mnist_features or digits_features")
    reference.add_argument("--folder", type=Path, default=Path("aecourse/weights"), help="where to write it")

    _add_collect(commands)
    _add_grade(commands)
    _add_check(commands)
    _add_gradescope(commands)

    options = parser.parse_args(arguments)
    try:
        if options.command == "fetch":
            from aecourse import data

            print(f"{options.name} is ready in {data.fetch(options.name, options.root)}")
        elif options.command == "info":
            print(info())
        elif options.command == "train":
            train(options)
        elif options.command == "collect":
            return collect(options)
        elif options.command == "grade":
            return grade(options)
        elif options.command == "check-submission":
            return check_submission(options)
        elif options.command == "gradescope":
            gradescope(options)
        else:
            from aecourse import reference

            print(reference.train(options.name, options.folder))
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, FloatingPointError) as error:
        from aecourse.grading.words import shown

        print(f"aecourse: {shown(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("aecourse: stopped. The same command goes on where this one was.", file=sys.stderr)
        return 130
    return 0


def _short(name: str) -> str:
    """TwoStageVAE is "two-stage" on the command line, SparseAutoencoder "sparse", and VAE "vae"."""
    name = name.removesuffix("Autoencoder").removesuffix("VAE") or name
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


# The models of ``aecourse train``. Linear ones have their closed forms.
TRAINABLE = {_short(name): name for name, module in MODELS.items() if module != "linear"}
# Options that only some models have: those that the class or its `build` takes.
NUMBERS = (
    "beta free-bits weight rho sigma gamma alpha commitment decay restart r1 critic-lr critic-lr-scale"
).split()
NUMBERS += ["feature-variance", "start-variance", "second-variance"]
COUNTS = ("samples k levels codes positions memory given context features planes kernel-size").split()
COUNTS += ["masked-layers", "pointwise-layers", "prior-channels", "prior-layers"]
NAMES = ("likelihood bound gradient output error penalty inference posterior generator-loss").split()
NAMES += ["quantizer", "start", "sampling", "covariance"]
LISTS = ["critic-hidden", "second-hidden", "flow-hidden", "fsq-levels", "steps"]
OF_MODELS = {name.replace("-", "_") for name in (*NUMBERS, *COUNTS, *NAMES, *LISTS, "variance")}
NETWORKS = {
    "mlp": {"hidden", "batch_norm"},
    "conv": {"channels", "hidden", "batch_norm"},
    "residual": {"channels", "hidden", "batch_norm"},
}


def _add_train(commands) -> None:
    """The options of ``aecourse train``. Those of a model have no default here: the class has it."""
    command = commands.add_parser(
        "train",
        help="train a model; the same command again goes on where it stopped",
        description="Train a model on a data set, with a checkpoint after every epoch: a run that was "
        "stopped goes on where it was, and with more --epochs trains on, unless it has stages of which a "
        "later one has begun. On several GPUs: torchrun "
        "--nproc-per-node 2 -m aecourse.cli train ...",
        argument_default=argparse.SUPPRESS,
    )
    command.add_argument("model", choices=TRAINABLE)
    command.add_argument("--folder", type=Path, required=True, help="for checkpoints and history.json")
    command.add_argument("--data", default=None, help="digits, faces, mnist, ... (default: as the chapters)")
    command.add_argument("--network", choices=NETWORKS, default="mlp")
    command.add_argument("--code-dim", "--latent-dim", type=int, default=20, help="size of the code")
    command.add_argument("--hidden", type=int, nargs="*", help="layer sizes of the encoder")
    command.add_argument("--channels", type=int, nargs="+", help="channels of each convolution")
    command.add_argument("--batch-norm", action="store_true", help="normalise before each activation")

    loop = command.add_argument_group("training")
    for name, kind, default in (
        ("epochs", int, 10),
        ("batch-size", int, 128),
        ("lr", float, 1e-3),
        ("seed", int, 0),
    ):
        loop.add_argument(f"--{name}", type=kind, default=default, help=f"(default: {default})")
    loop.add_argument("--device", default=None, help="cpu, cuda, ... (default: a GPU if there is one)")
    loop.add_argument("--precision", default=None, help="float32, tf32 or bfloat16")
    loop.add_argument("--compile", action=argparse.BooleanOptionalAction, default=None)
    loop.add_argument(
        "--checkpoint-steps", type=int, default=None, help="write so often within an epoch, too"
    )
    loop.add_argument(
        "--binarize", action="store_true", default=False, help="draw binary images anew each time"
    )
    loop.add_argument(
        "--warmup", type=int, default=0, metavar="STEPS", help="of the weight of the KL, where there is one"
    )
    loop.add_argument("--quiet", action="store_true", default=False, help="no progress bar")

    model = command.add_argument_group("model", "see the class for meanings and defaults")
    for names, kind in ((NUMBERS, float), (COUNTS, int), (NAMES, str)):
        for name in names:
            model.add_argument(f"--{name}", type=kind)
    for name in LISTS:
        model.add_argument(f"--{name}", type=int, nargs="+")
    model.add_argument("--variance", type=_number_or_name, help="a number, learned, per_pixel or optimal")


def _add_collect(commands) -> None:
    command = commands.add_parser(
        "collect",
        help="file what a learning platform packs as submitted/STUDENT/ASSIGNMENT/",
        description="File the notebooks of an archive that a learning platform made of all submissions. What "
        "is unambiguous is filed, and of several attempts the newest; the rest is named. Nothing newer, and "
        "nothing that came another way, is overwritten.",
    )
    command.add_argument("archive", type=Path, help="the zip file, or the folder that it was unpacked to")
    command.add_argument(
        "--from", dest="platform", required=True, choices=("canvas", "moodle", "blackboard", "ilias")
    )
    command.add_argument("--assignment", metavar="NAME", help="(default: as the notebooks are called)")
    command.add_argument("--course", type=Path, default=Path(), help="the course's folder (default: here)")
    command.add_argument("--dry-run", action="store_true", help="only say what would be done")


def _add_grade(commands) -> None:
    command = commands.add_parser(
        "grade",
        help="grade an assignment of a class, each submission in a sandbox",
        description="Grade what is in submitted/ of an nbgrader course: fills the gradebook, writes feedback "
        "and autograded notebooks. What was graded before is not graded again, unless it, the assignment or "
        "a limit has changed; so the same command goes on where a run was stopped.",
    )
    command.add_argument("assignment", help="its name, for example elbo")
    command.add_argument("--course", type=Path, default=Path(), help="the course's folder (default: here)")
    command.add_argument("--students", nargs="+", default=(), metavar="STUDENT", help="only these")
    command.add_argument("--force", action="store_true", help="grade again what was graded before")
    command.add_argument("--workers", type=int, default=0, help="processes (default: one per core)")
    command.add_argument("--scheduler", default="", metavar="tcp://...", help="use this Dask cluster instead")
    command.add_argument(
        "--db", default="", metavar="URL", help="gradebook, sqlite:///... or postgresql://..."
    )
    command.add_argument("--seconds", type=float, help="for a submission as a whole")
    command.add_argument("--test-seconds", type=float, help="for one cell or one test")
    command.add_argument("--memory", type=float, metavar="GB", help="for a submission")
    command.add_argument("--due", metavar="DATE", help="when it was due; kept for later runs (none: never)")
    command.add_argument("--grace", type=float, default=0.0, metavar="MINUTES", help="after --due, for free")
    command.add_argument(
        "--per-day",
        type=float,
        default=0.0,
        metavar="PERCENT",
        help="of the points, for each day begun since",
    )
    safety = command.add_mutually_exclusive_group()
    safety.add_argument(
        "--sandbox",
        default="bubblewrap",
        metavar="KIND",
        help="bubblewrap, docker:IMAGE, podman:IMAGE or user",
    )
    safety.add_argument("--unsafe", action="store_true", help="no sandbox: student code runs as you")
    for name, what in (
        ("report", "an HTML page for the instructor"),
        ("csv", "points per task"),
        ("canvas", "a gradebook that Canvas imports"),
        ("moodle", "a gradebook that Moodle imports"),
    ):
        command.add_argument(f"--{name}", type=Path, metavar="FILE", help=f"write {what}")
    command.add_argument("--quiet", action="store_true", help="no progress bar")


def _add_check(commands) -> None:
    command = commands.add_parser(
        "check-submission",
        help="is a notebook gradable: cells, metadata, does it run from top to bottom?",
        description="See whether a notebook can be graded, before it is handed in. It is compared with the "
        "assignment as it was handed out, and run from top to bottom. Run it on work of your own: there is "
        "no sandbox.",
        argument_default=argparse.SUPPRESS,
    )
    command.add_argument("notebook", type=Path)
    command.add_argument("--assignment", metavar="NAME", help="its name (default: that of the file)")
    command.add_argument(
        "--release",
        type=Path,
        metavar="NOTEBOOK",
        help="as it was handed out (default: assignments/NAME/NAME.ipynb here or above the notebook)",
    )
    command.add_argument("--repair", type=Path, metavar="NEW", help="write a mended copy")
    command.add_argument("--seconds", type=float, help="to run in (default: what the grader gives)")


def _add_gradescope(commands) -> None:
    command = commands.add_parser(
        "gradescope",
        help="write an autograder for Gradescope",
        description="Write the zip file that a programming assignment at Gradescope takes as its autograder. "
        "It holds the hidden tests: keep it to yourself.",
    )
    command.add_argument("assignment", help="its name, for example elbo")
    command.add_argument("--course", type=Path, default=Path(), help="the course's folder (default: here)")
    command.add_argument("--output", type=Path, metavar="FILE", help="(default: NAME-gradescope.zip)")
    command.add_argument(
        "--hidden-tests",
        choices=("hidden", "after_published", "after_due_date", "visible"),
        default="hidden",
        help="when students see what hidden tests say (default: never)",
    )


def collect(options: argparse.Namespace) -> int:
    """``aecourse collect``; 0 when everything was filed, 2 when something needs a person."""
    with needs("grading", "Collecting needs nbgrader and what goes with it"):
        from aecourse.grading import collect as collecting
        from aecourse.grading import course as grading
    from aecourse.grading.words import listed

    course = grading.Course(options.course)
    how = options.platform, options.assignment, options.dry_run
    name, outcome = collecting.collect(course, options.archive, *how)
    would = "would be filed" if options.dry_run else "filed"
    print(f"{name}: {len(outcome.filed)} {would}, {len(outcome.there)} there already.")
    for sentence in (*outcome.left, *outcome.notes):
        print(sentence)
    missing = set(collecting.Class(course.root, options.platform, name).students)
    if missing := sorted(missing - set(course.students(name)) - set(outcome.filed)):
        print(f"Nothing yet from {listed(missing, 20)}.")
    return 2 if outcome.left else 0


def grade(options: argparse.Namespace) -> int:
    """``aecourse grade``; 0 when every submission was graded, 2 when some need a person."""
    if sys.platform == "win32":
        raise RuntimeError("Grading needs Linux for its sandbox; on Windows, use it in WSL.")
    from aecourse.grading.sandbox import early

    if options.sandbox == "unsafe":
        raise ValueError("--sandbox unsafe is no sandbox: to run student code as you, say --unsafe.")
    for name, least, most in (("seconds", 1, 86_400), ("test_seconds", 1, 86_400), ("memory", 0.25, 1024)):
        given = getattr(options, name)
        if given is not None and not least <= given <= most:
            option = f"--{name.replace('_', '-')}"
            raise ValueError(f"{option} is {given:g} but must be a number from {least:g} to {most:g}.")
    if not 0 <= options.workers <= 1024:
        raise ValueError(f"--workers is {options.workers} but must be at least 1, or 0 for one per core.")
    kind = "unsafe" if options.unsafe else options.sandbox
    kept = options.course / ".aecourse" / options.assignment / "verdicts"
    begun = kept.exists()  # then little may be left to grade
    count = 0 if begun or options.scheduler else options.workers or os.cpu_count() or 1
    submitted = options.course / "submitted"
    if submitted.is_dir():  # as it is called unless the configuration says otherwise
        count = min(count, len(options.students) or sum(1 for _ in submitted.glob(f"*/{options.assignment}")))
    with early(kind, count) as sandboxes:  # they start while nbgrader and torch are imported here
        return _grade(options, kind, sandboxes)


def _grade(options: argparse.Namespace, kind: str, sandboxes: tuple) -> int:
    with needs("grading", "Grading needs nbgrader and what goes with it"):
        from aecourse.grading import course as grading
    from aecourse.grading.sandbox import Limits

    asked = {
        "seconds": options.seconds,
        "request_seconds": options.test_seconds,
        "memory": None if options.memory is None else int(options.memory * 2**30),
    }
    limits = Limits(**{name: value for name, value in asked.items() if value is not None})
    settings = grading.Options(
        workers=options.workers,
        scheduler=options.scheduler,
        students=tuple(options.students),
        force=options.force,
        sandbox=kind,
        sandboxes=sandboxes,
        limits=limits,
        due=_due(options),
        progress=not options.quiet,
    )
    course = grading.Course(options.course, options.db)
    verdicts = grading.grade(course, options.assignment, settings)
    print(grading.summary(verdicts))
    misplaced = course.misplaced(tuple(options.students))
    for sentence in misplaced[:20]:
        print(sentence)
    if len(misplaced) > 20:
        print(f"And {len(misplaced) - 20} more are not where they should be.")
    for name in ("report", "csv", "canvas", "moodle"):
        if path := getattr(options, name):
            grading.write(path, grading.exported(name, course, options.assignment, verdicts))
    return 2 if misplaced or any(verdict.human for verdict in verdicts.values()) else 0


def _due(options: argparse.Namespace):
    """What ``--due``, ``--grace`` and ``--per-day`` say: a `late.Due`, "" for never, None for nothing."""
    from aecourse.grading.late import Due

    if options.due is None and (options.grace or options.per_day):
        raise ValueError("--grace and --per-day need --due DATE.")
    return (
        "" if options.due == "none" else options.due and Due.of(options.due, options.grace, options.per_day)
    )


def check_submission(options: argparse.Namespace) -> int:
    """``aecourse check-submission``; 0 when nothing stands in the way of grading, else 1."""
    with needs("check", "check-submission needs nbformat, nbclient and ipykernel"):
        from aecourse.grading import preflight
    return preflight.main(**{name: value for name, value in vars(options).items() if name != "command"})


def gradescope(options: argparse.Namespace) -> None:
    """``aecourse gradescope``: write the archive."""
    with needs("grading", "Grading needs nbgrader and what goes with it"):
        from aecourse.grading import course, gradescope
    path = options.output or Path(f"{options.assignment}-gradescope.zip")
    source = course.Course(options.course).source(options.assignment)
    gradescope.write_archive(path, options.assignment, source, options.hidden_tests)
    print(
        f"{path} is the autograder of {options.assignment}. It holds the hidden tests: keep it to yourself."
    )


def train(options: argparse.Namespace) -> dict:
    """``aecourse train``: build the model, fit it, and leave a checkpoint and a history in the folder.

    Raises:
        ValueError: an option that the model or the network does not have, or that :func:`aecourse.fit`
            refuses.
    """
    import torch

    import aecourse
    from aecourse import data, fit
    from aecourse.bounds import linear_annealing
    from aecourse.contracts import check_count

    model_class = getattr(aecourse, TRAINABLE[options.model])
    given = vars(options)
    makers = [base.__init__ for base in model_class.__mro__[:-2]] + [model_class.build]
    parameters = {name for maker in makers for name in inspect.signature(maker).parameters}
    allowed = (parameters & OF_MODELS) | NETWORKS[options.network]
    known = OF_MODELS.union(*NETWORKS.values())
    if extra := sorted((known - allowed) & given.keys()):
        raise ValueError(
            f"--{extra[0].replace('_', '-')} is no option of {options.model} with --network "
            f"{options.network}. Its own are: {', '.join(sorted(allowed))}."
        )
    check_count("warmup", options.warmup, least=0)
    if options.warmup and "beta" not in allowed:
        raise ValueError(f"--warmup is no option of {options.model}: it has no KL to weigh.")
    images = data.load(options.data)
    settings = {name: given[name] for name in sorted(allowed & given.keys())}
    if len(settings.get("steps", ())) == 1:
        (settings["steps"],) = settings["steps"]
    labels = {}
    if "classes" in parameters:  # a model of images given their labels
        settings["classes"] = int(images.train_labels.max()) + 1
        labels = {"labels": images.train_labels, "test_labels": images.test_labels}
    if "data_size" in parameters:
        settings["data_size"] = len(images.train)
    torch.manual_seed(options.seed)
    model = model_class.build(options.network, images.image_shape, options.code_dim, **settings)
    stages, histories = model.stages() if hasattr(model, "stages") else [model], []
    if len(stages) > 1:
        _check_stages(options)
    beta = None
    if options.warmup:

        def beta(step: int) -> float:
            return stages[0].beta * linear_annealing(step, 0, options.warmup)

    for number, stage in enumerate(stages, 1):
        history = fit(
            stage,
            images.train,
            **labels,
            epochs=options.epochs,
            batch_size=options.batch_size,
            lr=options.lr,
            beta=beta if number == 1 else None,
            transform=data.binarize if options.binarize else None,
            seed=options.seed,
            test_images=images.test,
            device=options.device,
            precision=options.precision,
            compile=options.compile,
            checkpoint=options.folder / ("checkpoint.pt" if number == 1 else f"checkpoint-{number}.pt"),
            checkpoint_steps=options.checkpoint_steps,
            progress=not options.quiet,
        )
        histories.append({"train": history.train, "test": history.test, "seconds": history.seconds})
    result = {
        "model": options.model,
        "data": str(images),
        "settings": {name: str(v) if isinstance(v, Path) else v for name, v in given.items()},
        **(histories[0] if len(stages) == 1 else {"stages": histories}),
    }
    if int(os.environ.get("RANK", 0)) == 0:  # of several processes one reports
        path = options.folder / "history.json"
        path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        last = ", ".join(f"{name} {values[-1]:.4f}" for name, values in history.test.items())
        print(f"{images.name}, {history.epochs} epochs; on the test images: {last}. See {options.folder}.")
    return result


def _check_stages(options: argparse.Namespace) -> None:
    """Refuse if more epochs would take the first stage away from under a later one, which learnt from it."""
    from aecourse.checkpoint import epochs_done

    later = options.folder / "checkpoint-2.pt"
    done = epochs_done(options.folder / "checkpoint.pt")
    if 0 < done < options.epochs and later.is_file():
        raise ValueError(
            f"epochs is {options.epochs}, but {options.folder} holds a second stage, which learnt from a "
            f"first one of {done} epochs and would be worth nothing if that was trained on. Take another "
            f"folder, or delete {later.name}."
        )


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _packages() -> dict[str, str]:
    """The packages that this one declares, and the extra that each is in, "" for the core's. Without those of
    developers."""
    try:
        declared = requires("aecourse") or []
    except PackageNotFoundError:  # a checkout on the path, not installed
        declared = ["torch", "numpy", "tqdm"]
    packages = {}
    for requirement in declared:
        extra = re.search(r"""extra == ['"]([\w-]+)""", requirement)
        packages.setdefault(re.match(r"[\w.-]+", requirement)[0], extra[1] if extra else "")
    return {name: extra for name, extra in packages.items() if extra != "dev"}


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
    for name, extra in _packages().items():
        try:
            rows.append((name, version(name)))
        except PackageNotFoundError:
            cure = f': pip install "aecourse[{extra}]"' if extra else ""
            rows.append((name, f"not installed{cure}"))
    device = pick_device()
    rows.append(("device", torch.cuda.get_device_name() if device.type == "cuda" else str(device)))
    rows.append(("threads", f"{torch.get_num_threads()} of {os.cpu_count()} processors"))
    rows.append(("data root", str(data.data_root())))
    rows.append(("data set of the chapters", data.chosen_name()))
    return "\n".join(f"{name:25} {value}" for name, value in rows)


if __name__ == "__main__":
    sys.exit(main())
