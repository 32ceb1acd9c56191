"""Relations between arguments, and modes: what a test sees in one process it sees in the sandbox.

The versions are among those of test_mutants.py, of which a sample alone goes through the sandbox.
"""

import pytest
from support.sandbox import needs_sandbox
from test_mutants import MUTANTS, grade, isolated

# A sample that is a function of mean and logvar, and a baseline that is one; what is given in evaluation
# mode; an argument that is marked; torch's gradient mode.
VERSIONS = [
    ("gradients", "score_kept_graph"),
    ("gradients", "score_kept_values"),
    ("gradients", "score_kept_both"),
    ("gradients", "score_kept_baseline"),
    ("gradients", "score_marks_baseline"),
    ("gradients", "sample_mean_in_evaluation"),
    ("autoencoders", "contractive_half_in_evaluation"),
    ("autoencoders", "contractive_marks_input"),
    ("autoencoders", "loss_clean_in_evaluation"),
]


@needs_sandbox
@pytest.mark.parametrize(("name", "version"), VERSIONS)
def test_the_sandbox_sees_it_too(name, version):
    (found,) = (one for one in MUTANTS[name].WRONG if one.name == version)
    inside, outside = isolated(name, found), grade(name, found)
    assert set(inside) == set(outside) == found.loses
    assert found.says in next(message for kind, message in inside.items() if kind != "checks")
