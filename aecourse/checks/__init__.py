"""The checks of the assignments: visible ones for students, hidden ones for grading.

A student runs ``check("gaussian_kl", gaussian_kl)`` below each task; the hidden test cells of a notebook
call ``grade("gaussian_kl", "values", globals(), seed=...)``. Both name the mistake: a wrong result is
compared with those of the mistakes that people make.

What is secret is the seed of the hidden inputs, not this source, so that anyone may see what is asked. One
module per assignment holds its tasks; ``core`` holds what they share, and ``parts`` the callables (encoders,
integrands) that tests hand to a student's function.
"""

from aecourse.checks.core import Wrong, check, grade

__all__ = ["Wrong", "check", "grade"]
