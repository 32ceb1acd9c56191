"""Optional packages: what to install where one is missing."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def needs(extra: str, sentence: str) -> Iterator[None]:
    """Import optional packages in this block, and a reader without them is told which extra holds them.

    ::

        with needs("book", "digits ship inside scikit-learn"):
            from sklearn.datasets import load_digits

    Args:
        extra: the name under which ``pyproject.toml`` lists the packages.
        sentence: what needs which package, without a full stop.

    Raises:
        ImportError: a package is missing. One that is there and broken speaks for itself.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ImportError(f'{sentence}: pip install "aecourse[{extra}]".', name=error.name) from error
