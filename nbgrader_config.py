"""Configuration of nbgrader for this course.

nbgrader reads this file from the folder it is started in, which is also the course's folder: run it at the
top of the repository, or in any folder that holds a copy of this file and of solutions/. All paths are
relative to that folder; the gradebook is gradebook.db in it.
"""

from nbconvert.preprocessors import CSSHTMLHeaderPreprocessor
from nbgrader.preprocessors import GetGrades

from aecourse.grading.feedback import HideTests

c = get_config()  # noqa: F821  (nbgrader puts it here)

# Submissions, grades and an exchange folder are filed under this name.
c.CourseDirectory.course_id = "aecourse"

# Instructors' notebooks are in solutions/ (default: source) and the students' versions, generated from them,
# in assignments/ (default: release): names that a visitor of the repository understands.
c.CourseDirectory.source_directory = "solutions"
c.CourseDirectory.release_directory = "assignments"

# What a student finds in place of the model solution. An untouched function must fail its tests (with "pass"
# it would return None, which fails too, but with a message that helps nobody).
c.ClearSolutions.code_stub = {
    "python": 'raise NotImplementedError("Write this function, and delete this line.")'
}

# Without this, deleting a test cell from a submission gives no score instead of zero points.
c.OverwriteCells.add_missing_cells = True

# Seconds for a cell. `import torch` alone can take most of the default 30 on a cold, busy machine; and an
# endless loop costs this much for each of the cells that call the function.
c.Execute.timeout = 60

# nbgrader gives no points to a test cell that writes anything to stderr. A deprecation warning or a progress
# bar is no mistake, so what is there is dropped before the cell is graded.
c.IgnorePattern.enabled = True
c.IgnorePattern.pattern = r"(?s).*"

# A function that prints in a loop must not fill the feedback (default: 1000 lines).
c.LimitOutput.max_lines = 200

# Feedback shows the notebook that was run: without this, hidden tests and marking scheme included.
c.GenerateFeedback.preprocessors = [GetGrades, HideTests, CSSHTMLHeaderPreprocessor]
