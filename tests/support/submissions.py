"""Solved notebooks, a small class of `elbo`, and the course folder in which one is graded."""

import functools
import shutil
import tempfile
from pathlib import Path

import nbformat
from mutants import elbo

from support.notebooks import ROOT, SOURCE, grade_id, graded, read, solution_cells

VERSIONS = {version.name: version for version in elbo.WRONG + elbo.RIGHT}

# student: the versions in place of model solutions, and what elbo loses by calling one of them.
SUBMISSIONS = {
    "wrong-and-tampered": (["kl_mean", "full_logdet_sign"], "values gradients"),
    "wrong-1": (["kl_logvar_as_std", "gaussian_variance_squared"], "checks values gradients"),
    "wrong-2": (["kl_detach", "full_diagonal_only", "gaussian_lost_half"], "gradients"),
    "wrong-3": (["bernoulli_last_dim", "kl_ready_made", "full_determinant"], "checks values gradients"),
    "wrong-4": (["bernoulli_log_of_sigmoid", "full_log_det", "elbo_beta_unused"], ""),
    "right-einsum": (
        ["kl_einsum", "full_einsum_singular_values", "bernoulli_bce", "gaussian_standardised"],
        "",
    ),
    "right-log-prob": (["kl_entropy", "full_entropy", "bernoulli_log_prob", "gaussian_log_prob"], ""),
    "right-but-messy": (["kl_warns_and_prints", "full_eigenvalues", "bernoulli_by_hand"], ""),
}


def solved(name, versions=()):
    """The release with the model solutions filled in, and the named versions in place of some of them."""
    notebook, answers = read("assignments", name), solution_cells(SOURCE[name])
    for function, cell in solution_cells(notebook).items():
        cell.source = answers[function].source
    for version in versions:
        solution_cells(notebook)[VERSIONS[version].function].source = VERSIONS[version].source
    return notebook


def tampered(notebook):
    """Without some test cells, with others emptied, and with more points than there are."""
    notebook.cells = [c for c in notebook.cells if grade_id(c) != "gaussian_kl_values"]
    for cell in graded(notebook).values():
        if cell.cell_type == "code":
            cell.source = "pass"
            cell.metadata.nbgrader.points = 100
    return notebook


@functools.cache
def released() -> tempfile.TemporaryDirectory:
    """A course whose gradebook knows the assignment, without students; nbgrader takes seconds to make it."""
    from aecourse.grading import course as grading

    folder = tempfile.TemporaryDirectory(prefix="released-")
    shutil.copy(ROOT / "nbgrader_config.py", folder.name)
    shutil.copytree(ROOT / "solutions" / "elbo", Path(folder.name) / "solutions" / "elbo")
    course = grading.Course(folder.name)
    course.prepare("elbo", course.source("elbo"))
    return folder


def course_with(folder: Path, students: dict) -> Path:
    """A course in which nothing has been graded: {student: notebook, or None for an empty folder}."""
    shutil.copytree(released().name, folder, dirs_exist_ok=True)
    for student, notebook in students.items():
        place = folder / "submitted" / student / "elbo"
        place.mkdir(parents=True)
        if notebook is not None:
            nbformat.write(notebook, place / "elbo.ipynb")
    return folder


def scores(course: Path, url: str = "") -> dict:
    """{student: {test: points}} of `elbo` in the gradebook; each submission once."""
    from nbgrader.api import Gradebook

    points = {}
    with Gradebook(url or f"sqlite:///{course / 'gradebook.db'}") as gradebook:
        for submission in gradebook.assignment_submissions("elbo"):
            assert submission.student.id not in points
            (notebook,) = submission.notebooks
            points[submission.student.id] = {grade.name: grade.auto_score for grade in notebook.grades}
    return points
