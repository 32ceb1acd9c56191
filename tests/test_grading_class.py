"""A class of right, wrong and hostile submissions, graded as a whole: everybody gets exactly their points.

benchmarks/grading.py does the same with 200 students.
"""

import shutil
import time

import pytest

pytest.importorskip("nbgrader")
pytest.importorskip("resource", reason="grading is for Linux and macOS")

import resource

from support import simulated
from support.notebooks import WRITTEN
from support.sandbox import needs_sandbox
from support.simulated import LIMITS, NAME
from support.submissions import course_with, scores

from aecourse.grading import course as grading

pytestmark = needs_sandbox


@pytest.mark.parametrize(("count", "seed"), [(40, 0)])
@pytest.mark.seconds(20)
def test_everybody_gets_exactly_their_points(count, seed, tmp_path):
    students = {student.name: student for student in simulated.simulated(count, seed)}
    assert {student.kind for student in students.values()} == {"right", "wrong", "attack"}
    course = course_with(tmp_path, dict.fromkeys(students))
    for name, student in students.items():
        student.hand_in(course / "submitted" / name / NAME)

    start = time.monotonic()
    options = grading.Options(workers=2, limits=LIMITS, progress=False)
    verdicts = grading.grade(grading.Course(course), NAME, options)
    seconds = time.monotonic() - start

    got = {name: {test.name: test.points for test in verdict.tests} for name, verdict in verdicts.items()}
    assert {n: points for n, points in got.items() if points != students[n].points} == {}
    assert list(got) == sorted(students)
    found = scores(course)
    questions = dict.fromkeys(WRITTEN[NAME])
    assert {name: found[name] | questions for name in got} == {
        name: points | questions for name, points in got.items()
    }
    how = {name: (verdict.status, verdict.human) for name, verdict in verdicts.items()}
    assert {n: found for n, found in how.items() if found != (students[n].status, students[n].human)} == {}
    for name in students:
        assert (course / "feedback" / name / NAME / f"{NAME}.html").is_file()
    # Bounded: nobody takes more than the limits, whatever they try.
    assert max(verdict.seconds for verdict in verdicts.values()) < LIMITS.seconds + 10
    assert seconds < 20 + sum(verdict.seconds for verdict in verdicts.values())
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    assert largest < LIMITS.memory + 2 * 2**30  # a process with torch, and what a submission may add
    shutil.rmtree(course)
