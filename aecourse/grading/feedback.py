"""What students see of a graded notebook."""

import re

from nbformat import NotebookNode
from nbformat.v4 import new_output
from nbgrader.preprocessors import NbGraderPreprocessor

SECRET = re.compile(
    r"^[^\n]*BEGIN (HIDDEN TESTS|MARK SCHEME).*?(END \1[^\n]*\n?|\Z)", re.DOTALL | re.MULTILINE
)
LATER = "What this cell and those below put out is not shown: they ran after hidden tests.\n"


class HideTests(NbGraderPreprocessor):
    """Take hidden tests and marking schemes out of the pages that ``nbgrader generate_feedback`` writes.

    nbgrader puts hidden tests back before it runs a submission, and shows the notebook that it ran: the
    source of the tests, and tracebacks that quote it (jupyter/nbgrader#917, #1363). Here the source goes,
    and of what a hidden test put out only its message stays. The student's own cells below could print what
    their functions were given, so of these nothing stays, not even which of them put something out.
    """

    def preprocess(self, notebook: NotebookNode, resources: dict) -> tuple[NotebookNode, dict]:
        self.secrets = False  # whether a hidden test has been run above
        self.said = False  # that nothing is shown below it
        return super().preprocess(notebook, resources)

    def preprocess_cell(self, cell: NotebookNode, resources: dict, cell_index: int):
        source, hidden = SECRET.subn("", cell.source)
        if cell.cell_type == "code" and hidden:
            cell.outputs = [output for output in cell.outputs if output.output_type == "error"]
            for error in cell.outputs:
                words = error.evalue
                if error.ename != "Wrong":  # a test of the instructor's own
                    known = error.ename == "AssertionError" and words and words in cell.source
                    words = words if known else "This test failed."
                error.ename, error.evalue, error.traceback = "Wrong", words, [words]
            self.secrets = True
        elif cell.cell_type == "code" and self.secrets and not _is_test(cell):
            cell.outputs = [] if self.said else [new_output("stream", text=LATER)]
            self.said = True
        cell.source = source
        return cell, resources


def _is_test(cell: NotebookNode) -> bool:
    return bool(cell.metadata.get("nbgrader", {}).get("grade"))
