"""What students see of a graded notebook."""

import re

from nbformat import NotebookNode
from nbgrader.preprocessors import NbGraderPreprocessor

SECRET = re.compile(
    r"^[^\n]*BEGIN (HIDDEN TESTS|MARK SCHEME).*?(END \1[^\n]*\n?|\Z)", re.DOTALL | re.MULTILINE
)


class HideTests(NbGraderPreprocessor):
    """Take hidden tests and marking schemes out of the pages that ``nbgrader generate_feedback`` writes.

    nbgrader puts hidden tests back before it runs a submission, and shows the notebook that it ran: the
    source of the tests, and tracebacks that quote it (jupyter/nbgrader#917, #1363). Here the source goes,
    and of what a hidden test put out only its message stays.
    """

    def preprocess_cell(self, cell: NotebookNode, resources: dict, cell_index: int):
        cell.source, hidden = SECRET.subn("", cell.source)
        if hidden and cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.output_type == "error"]
            for error in cell.outputs:
                words = "" if error.ename == "Wrong" else f"{error.ename}: "
                error.traceback = [words + error.evalue]
        return cell, resources
