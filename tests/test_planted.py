"""The lists of known mistakes: each can be planted, and when all were, each was found.

`tools/plant.py` plants them, which takes 40 minutes; here it is seen that the lists fit the code of today.
"""

import ast
import functools
import json

import plant
import pytest

NAMES = sorted(path.stem for path in plant.LISTS.glob("*.toml"))


@functools.cache
def source(file: str) -> tuple[str, str]:
    """A file of the repository, and what it says but for comments and layout."""
    text = (plant.REPOSITORY / file).read_text(encoding="utf-8")
    return text, ast.dump(ast.parse(text))


@pytest.mark.parametrize("name", NAMES)
def test_every_mistake_can_be_planted(name, tmp_path):
    mistakes = plant.planted(name)
    assert len({mistake.name for mistake in mistakes}) == len(mistakes) > 0
    for mistake in mistakes:
        text, meaning = source(mistake.file)
        (tmp_path / mistake.file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / mistake.file).write_text(text, encoding="utf-8")
        mistake.plant(tmp_path)
        planted = (tmp_path / mistake.file).read_text(encoding="utf-8")
        assert ast.dump(ast.parse(planted)) != meaning, mistake.name  # not a comment alone
        assert mistake.source
        for test in mistake.tests:
            assert (plant.REPOSITORY / test.partition("::")[0]).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_table_says_that_each_was_found(name):
    table = json.loads(plant.TABLE.read_text(encoding="utf-8"))[name]
    assert table.keys() == {mistake.name for mistake in plant.planted(name)}
    assert all(row["found by"] for row in table.values())


def test_a_text_that_stands_twice_or_nowhere_is_refused(tmp_path):
    (tmp_path / "module.py").write_text("a = 1\nb = 1\n")
    for old, times in (("= 1", 2), ("= 2", 0)):
        mistake = plant.Planted("one", "module.py", (), "", old, "= 3")
        with pytest.raises(ValueError, match=f"stands {times} times"):
            mistake.plant(tmp_path)
