"""``aecourse collect``: file what a learning platform packs under ``submitted/STUDENT/ASSIGNMENT/``.

Nothing is unpacked where the archive says. Members are read one by one, within limits; who handed one in is
read from the part of its name that the platform makes; and what cannot be told for certain is named and left.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import stat
import tempfile
import unicodedata
import zipfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from aecourse.grading import people
from aecourse.grading.places import LEFT_BEHIND
from aecourse.grading.submission import LARGEST
from aecourse.grading.words import in_a_line, listed

if TYPE_CHECKING:
    from aecourse.grading.course import Course

MOST_MEMBERS = 50_000  # of an archive
MOST_BYTES = 8 * 2**30  # read of one, unpacked
MOST_HELD = 3 * LARGEST  # bytes of the notebooks of one student, whose attempts are compared
MOST_INSIDE = 10_000  # members of a zip file that a student handed in
BROKEN = (Exception,)  # each kind of packing has errors of its own, and zipfile lets those of struct through


@dataclass(frozen=True)
class Item:
    """A file of an archive, and what the platform says of it.

    Attributes:
        path: in the archive, for people to read.
        who: the platform's words for the one who handed it in, the likeliest first.
        number: the platform's number of that person; empty if it gives none.
        name: the file's own.
        read: gives its bytes.
        order: grows from attempt to attempt.
        time: when it was handed in, as far as the platform says so.
        late: whether the platform calls it late.
    """

    path: str
    who: tuple[str, ...]
    number: str
    name: str
    read: Callable[[], bytes]
    order: tuple = ()
    time: datetime | None = None
    late: bool = False


@dataclass
class Outcome:
    """What became of an archive.

    Attributes:
        filed, there: students whose notebook was filed, or had been.
        left: sentences on what was not filed and needs a person.
        notes: sentences on what was not filed and need not be.
    """

    filed: list[str] = field(default_factory=list)
    there: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


# --------------------------------------------------------------------------- what is in an archive


class Unreadable(ValueError):
    """Why a member cannot be read, to go on after its name."""


class _Budget:
    """So many bytes, for all that is read."""

    def __init__(self, most: int):
        self.left = most

    def take(self, stream) -> bytes:
        """All of a stream, or an error: what an archive says of sizes need not be true."""
        data = stream.read(min(LARGEST, self.left) + 1)
        self.left -= len(data)
        if len(data) > LARGEST:
            raise Unreadable(f"is larger than {LARGEST // 2**20} MB")
        if self.left < 0:
            raise Unreadable("was not looked at: the archive unpacks to too much")
        return data


@contextlib.contextmanager
def members(archive: Path) -> Iterator[Iterator[tuple[str, datetime | None, Callable[[], bytes]]]]:
    """(path, time, read) of each file in a zip archive, or in a folder that it was unpacked to. They can be
    read while this lasts.

    Raises:
        ValueError: it is neither; in words for the instructor.
    """
    budget = _Budget(MOST_BYTES)
    if archive.is_dir():
        yield _unpacked(archive, budget)
        return
    try:
        packed = zipfile.ZipFile(archive)
    except FileNotFoundError:
        raise ValueError(f"There is no file {archive}.") from None
    except BROKEN as error:
        raise ValueError(f"{archive} is no zip archive that can be read ({in_a_line(str(error))}).") from None
    with packed:
        yield _packed(packed, budget)


def _unpacked(top: Path, budget: _Budget) -> Iterator[tuple[str, datetime | None, Callable]]:
    for folder, _, names in os.walk(top):
        for name in sorted(names):
            path = Path(folder, name)
            yield str(path.relative_to(top)), _time_of(path), lambda path=path: _file(path, budget)


def _packed(packed: zipfile.ZipFile, budget: _Budget) -> Iterator[tuple[str, datetime | None, Callable]]:
    for info in packed.infolist():
        name = info.orig_filename if "\0" in info.orig_filename else info.filename
        if not info.flag_bits & 0x800:  # no word on its encoding, and many write UTF-8 all the same
            with contextlib.suppress(UnicodeError):
                name = name.encode("cp437").decode()
        try:
            time = datetime(*info.date_time).astimezone()
        except (ValueError, OverflowError, OSError):
            time = None
        if not info.is_dir():
            yield name.replace("\\", "/"), time, lambda info=info: _member(packed, info, budget)


def _member(packed: zipfile.ZipFile, info: zipfile.ZipInfo, budget: _Budget) -> bytes:
    if info.flag_bits & 1:
        raise Unreadable("is encrypted")
    if stat.S_ISLNK(info.external_attr >> 16):
        raise Unreadable("is a link")
    if info.file_size > LARGEST:
        raise Unreadable(f"is larger than {LARGEST // 2**20} MB")
    try:
        with packed.open(info) as stream:
            return budget.take(stream)
    except Unreadable:
        raise
    except BROKEN as error:
        raise Unreadable(f"is damaged ({in_a_line(str(error), 60)})") from None


def _file(path: Path, budget: _Budget) -> bytes:
    try:
        if path.is_symlink() or not path.is_file():
            raise Unreadable("is a link, or no file")
        with open(path, "rb") as stream:
            return budget.take(stream)
    except OSError as error:
        raise Unreadable(f"cannot be read ({error.strerror})") from None


def _time_of(path: Path) -> datetime | None:
    try:
        return datetime.fromtimestamp(path.lstat().st_mtime).astimezone()
    except (OSError, ValueError, OverflowError):
        return None


# --------------------------------------------------------------------------- how platforms name files

# Each takes the parts of a path, the time that the archive gives and a function that reads, and gives an
# Item, or None for what the platform did not name.

CANVAS = re.compile(r"(?P<who>.+?)_(?P<late>LATE_)?(?P<number>\d+)_(?P<id>\d+)_(?P<name>.+)", re.DOTALL)
MOODLE = re.compile(
    r"(?P<who>.+?)_(?P<number>\d+)_assignsubmission_(?:file|onlinetext)(?:_(?P<name>.*))?", re.DOTALL
)
BLACKBOARD = re.compile(
    r"(?P<who>.+?)_attempt_(?P<stamp>\d{4}(?:-\d\d){5})(?:_(?P<name>.+)|\.txt)?", re.DOTALL
)
ILIAS = re.compile(r"(?P<who>.+_.+_.+)_(?P<number>\d+)", re.DOTALL)
STAMPED = re.compile(r"(?P<stamp>\d{14})_(?P<name>.+)", re.DOTALL)
LATE = re.compile(
    r"(?i)(?:late submission|delivered late|submitted late|verspätete (?:abgabe|einreichung))[ _]*-[ _]*"
)


def _canvas(parts: list[str], time: datetime | None, read: Callable) -> Item | None:
    """``lastfirst_LATE_user_attachment_elbo-1.ipynb``. The archive's times are those of its making."""
    found = CANVAS.fullmatch(parts[-1])
    if not found:
        return None
    order, late = (int(found["id"][:20]),), found["late"] is not None
    path = "/".join(parts)
    return Item(path, (found["who"],), found["number"], found["name"], read, order, None, late)


def _moodle(parts: list[str], time: datetime | None, read: Callable) -> Item | None:
    """``Full Name_participant_assignsubmission_file_/elbo.ipynb``, or all in the file's name."""
    for i, part in enumerate(parts):
        found = MOODLE.fullmatch(part)
        if not found and "_assignsubmission_" in part:
            return None  # of another kind; what is below it is named by the student
        if found:
            if "_assignsubmission_" in found["who"] or (i < len(parts) - 1 and found["name"]):
                return None  # a name that looks like two people's
            name = parts[-1] if i < len(parts) - 1 else found["name"]
            if not name or (i == len(parts) - 1 and "_assignsubmission_" in name):
                return None
            order = (time.timestamp() if time else 0.0,)
            return Item("/".join(parts), (found["who"],), found["number"], name, read, order, time)
    return None


def _blackboard(parts: list[str], time: datetime | None, read: Callable) -> Item | None:
    """``Assignment_login_attempt_2026-11-30-12-00-00_elbo.ipynb``; both may have underscores of their own."""
    found = BLACKBOARD.fullmatch(parts[-1])
    if not found:
        return None
    try:
        when = datetime.strptime(found["stamp"], "%Y-%m-%d-%H-%M-%S").astimezone()
    except (ValueError, OverflowError):
        return None
    name = found["name"] or f"{found['stamp']}.txt"  # Blackboard's own record of the attempt
    return Item("/".join(parts), _endings(found["who"]), "", name, read, (found["stamp"],), when)


def _ilias(parts: list[str], time: datetime | None, read: Callable) -> Item | None:
    """``.../Last_First_login_number/elbo.ipynb``, with the time before the name in some versions."""
    folders = list(filter(None, map(ILIAS.fullmatch, parts[:-1])))
    if len(folders) != 1:  # a title can look like a person
        return None
    (found,), name, when = folders, parts[-1], None
    late = LATE.match(name) is not None
    name = LATE.sub("", name, count=1)
    if stamped := STAMPED.fullmatch(name):
        with contextlib.suppress(ValueError, OverflowError):
            when = datetime.strptime(stamped["stamp"], "%Y%m%d%H%M%S").astimezone()
            name = stamped["name"]
    order = ((when or time).timestamp() if when or time else 0.0,)
    who = _endings(found["who"])
    return Item("/".join(parts), who, found["number"], name, read, order, when, late)


def _endings(words: str) -> tuple[str, ...]:
    """What may be the login at the end of words that underscores join, the likeliest first."""
    parts = words.split("_")
    return tuple("_".join(parts[i:]) for i in range(len(parts) - 1, 0, -1)) or (words,)


PLATFORMS = {"canvas": _canvas, "moodle": _moodle, "blackboard": _blackboard, "ilias": _ilias}


# --------------------------------------------------------------------------- who is who


def _plain(words: str) -> str:
    """Letters and digits alone, without accents and case: platforms differ in what they leave of a name."""
    text = unicodedata.normalize("NFKD", words.replace("ß", "ss")).casefold()
    return "".join(c for c in text if c.isalnum())


class Class:
    """The students and groups of a course, by what a platform calls them."""

    def __init__(self, root: Path, platform: str, assignment: str):
        self.students = people.students(root)
        self.groups = people.groups(root, assignment)
        self.numbers, self.names = defaultdict(set), defaultdict(set)
        self.numbered: set[str] = set()  # whose number the platform has been asked for
        for student, row in self.students.items():
            for column in (platform, f"{platform}_id"):
                if row.get(column):
                    self.numbers[row[column]].add(student)
                    self.numbered |= {student} if row[column].isdigit() else set()
            first, last = row.get("first_name", ""), row.get("last_name", "")
            for name in (first + last, last + first) if first or last else ():
                self.names[_plain(name)].add(student)
        for group, each in self.groups.items():
            self.names[_plain(group)].add(each[0])

    def student(self, item: Item, platform: str) -> str:
        """The id of the one who handed an item in.

        Raises:
            ValueError: it is not known, or may be several; in words that go on after the item's name.
        """
        if item.number and (known := self.numbers.get(item.number)):
            return self._only(known)
        known = {who for who in item.who if who in self.students}
        known = known or {s for w in item.who for s in self.students if _plain(w) and _plain(s) == _plain(w)}
        for who in item.who:
            known |= self.names.get(_plain(who), set())
        if item.number and platform != "moodle":  # whose numbers are of one assignment
            known -= self.numbered  # the number is another one: a person of the same name
        if known:
            return self._only(known)
        if self.students:
            also = f" with {item.number} in a column {platform}" if item.number else ""
            raise ValueError(f"belongs to nobody that students.csv knows: add the person{also}")
        student = item.number if platform == "moodle" else item.who[0]
        if why := people.objection(student):
            raise ValueError(f"is of {in_a_line(student)}, whose name {why}")
        return student

    def _only(self, known: set[str]) -> str:
        if len(known) > 1:
            raise ValueError(f"may be of {listed(sorted(known))}: tell them apart in students.csv")
        return next(iter(known))


# --------------------------------------------------------------------------- filing


def collect(
    course: "Course", archive: Path, platform: str, assignment: str | None = None, dry: bool = False
) -> tuple[str, Outcome]:
    """File the notebooks of an archive; the assignment's name and what became of each.

    Args:
        archive: a zip file, or the folder that it was unpacked to.
        platform: one of `PLATFORMS`.
        assignment: default: the one that most notebooks are named after.
        dry: only tell.

    Raises:
        ValueError: the archive, the platform or the assignment, in words for the instructor.
    """
    if platform not in PLATFORMS:
        raise ValueError(f"--from is {platform!r} but must be one of {', '.join(PLATFORMS)}.")
    with members(archive) as found:
        return _collected(course, found, platform, assignment, dry)


def _collected(
    course: "Course", found: Iterator, platform: str, assignment: str | None, dry: bool
) -> tuple[str, Outcome]:
    outcome, items = Outcome(), []
    for number, (path, time, read) in enumerate(found):
        if number >= MOST_MEMBERS:
            outcome.left.append(f"Only the first {MOST_MEMBERS} files were looked at.")
            break
        shown, parts = in_a_line(path, 160), [part for part in path.split("/") if part not in ("", ".")]
        if not parts or any(part.lower() in LEFT_BEHIND or part.startswith("._") for part in parts):
            continue
        if ".." in parts or path.startswith("/") or re.match(r"[A-Za-z]:", path) or "\0" in path:
            outcome.left.append(f"{shown} leads out of the archive.")
        elif (item := PLATFORMS[platform](parts, time, read)) is None:
            outcome.left.append(f"{shown} is not named as by {platform.capitalize()}.")
        else:
            items.append(item)
    assignments = course.assignments
    name = assignment or _named_after(items, assignments)
    if name not in assignments:
        raise ValueError(f"There is no assignment {name}. There are: {', '.join(assignments) or 'none'}.")
    everybody, owners, persons = Class(course.root, platform, name), defaultdict(list), defaultdict(set)
    for item in items:
        try:
            student = everybody.student(item, platform)
        except ValueError as error:
            outcome.left.append(f"{in_a_line(item.path, 160)} {error}.")
            continue
        owners[student].append(item)
        persons[student].add(item.number or item.who[-1])
    for student, own in sorted(owners.items()):
        if len(persons[student]) > 1:
            paths, which = listed([in_a_line(item.path) for item in own]), ", ".join(sorted(persons[student]))
            words = f"are of several people ({in_a_line(which)}) who would all be {student}: give each a row"
            outcome.left.append(f"{paths} {words} of students.csv, with the number in a column {platform}.")
            continue
        try:
            item, data = _chosen(own, name, assignments, outcome)
        except ValueError as error:
            outcome.left.append(f"{student}: {error}.")
            continue
        place, record = course.submitted / student / name, course.keep(name) / "collected" / f"{student}.json"
        try:
            new = _file_away(item, data, place, record, platform, dry)
        except (OSError, ValueError) as error:
            words = f"cannot be written ({error.strerror})" if isinstance(error, OSError) else str(error)
            outcome.left.append(f"{in_a_line(item.path, 160)} {words}.")
            continue
        (outcome.filed if new else outcome.there).append(student)
    return name, outcome


def _stem(name: str) -> str:
    """A notebook's name without its ending and the marks of a copy: elbo (1), elbo-2, "Copy of elbo"."""
    stem = re.sub(r"(?i)\.ipynb(\.(txt|json))?$", "", name)
    return re.sub(r"(?i)^copy of |[ _-]*(\(\d+\)|-\d+|-?copy\d*)$", "", stem).strip().casefold()


def _is_notebook(name: str) -> bool:
    return re.search(r"(?i)\.ipynb(\.(txt|json))?$", name) is not None


def _named_after(items: list[Item], assignments: list[str]) -> str:
    """The assignment that most notebooks are named after.

    Raises:
        ValueError: none is.
    """
    known = {name.casefold(): name for name in assignments}
    found = Counter(known[_stem(item.name)] for item in items if _stem(item.name) in known)
    if not found:
        raise ValueError("No notebook is named after an assignment here: name it, with --assignment NAME.")
    return found.most_common(1)[0][0]


def _chosen(own: list[Item], name: str, assignments: list[str], outcome: Outcome) -> tuple[Item, bytes]:
    """The notebook that counts of what one student handed in: of its attempts the newest.

    Raises:
        ValueError: there is none, or which one counts cannot be told.
    """
    notebooks, troubles = [], []
    for item in own:
        here = in_a_line(item.path, 160)
        try:
            if _is_notebook(item.name):
                notebooks.append((item, item.read()))
            elif item.name.lower().endswith(".zip"):
                notebooks += _inside(item)
            elif not item.name.endswith(".txt"):
                outcome.notes.append(f"{here} is no notebook.")
        except Unreadable as error:
            troubles.append(f"{here} {error}")
        if sum(len(data) for _, data in notebooks) > MOST_HELD:
            raise ValueError(f"handed in more than {MOST_HELD // 2**20} MB of notebooks")
    if not notebooks:
        raise ValueError(
            "; ".join(troubles) or f"no notebook among {listed([in_a_line(i.path) for i in own])}"
        )
    others = {other.casefold() for other in assignments} - {name.casefold()}
    named = [each for each in notebooks if _stem(each[0].name) == name.casefold()]
    candidates = named or [each for each in notebooks if _stem(each[0].name) not in others]
    if not candidates:
        raise ValueError(f"{listed([in_a_line(i.path) for i, _ in notebooks])} is for another assignment")
    newest = max(item.order for item, _ in candidates)
    if not named and len({_stem(item.name) for item, _ in candidates}) > 1:
        raise ValueError(
            f"which of {listed([in_a_line(i.path) for i, _ in candidates])} is meant cannot be told"
        )
    last = [(item, data) for item, data in candidates if item.order == newest]
    if len({data for _, data in last}) > 1:
        raise ValueError(f"which of {listed([in_a_line(i.path) for i, _ in last])} is newer cannot be told")
    outcome.left += [f"{words}." for words in troubles]
    for item, _ in notebooks:
        if item is not last[0][0]:
            outcome.notes.append(
                f"{in_a_line(item.path, 160)} was not taken: {in_a_line(last[0][0].path)} was."
            )
    return last[0]


def _inside(item: Item) -> list[tuple[Item, bytes]]:
    """The notebooks in a zip file that a student handed in; all of them are that student's, whatever they are
    called."""
    found, data = [], item.read()
    if data.count(b"PK\1\2") > MOST_INSIDE:  # zipfile would read the names of them all
        raise Unreadable(f"holds more than {MOST_INSIDE} files")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as packed:
            for path, _, read in _packed(packed, _Budget(MOST_HELD)):
                name = path.rpartition("/")[2]
                if _is_notebook(name) and not name.startswith("._") and "__MACOSX" not in path:
                    found.append((replace(item, path=f"{item.path}/{path}", name=name), read()))
                if len(found) > 20:
                    raise Unreadable("holds more than twenty notebooks")
    except Unreadable:
        raise
    except BROKEN as error:
        raise Unreadable(f"is damaged ({in_a_line(str(error), 60)})") from None
    return found


def _file_away(item: Item, data: bytes, place: Path, record: Path, platform: str, dry: bool) -> bool:
    """Write a notebook to its place, unless what is there is as new; whether it was written.

    Raises:
        ValueError: something else is there; in words that go on after the item's name.
        OSError: it cannot be written.
    """
    target, mark = place / f"{place.name}.ipynb", hashlib.sha256(data).hexdigest()
    if place.is_symlink() or place.parent.is_symlink() or target.is_symlink():
        raise ValueError(f"was not filed: {in_a_line(str(place))} is a link")
    about = {
        "platform": platform,
        "who": item.number or item.who[-1],
        "file": in_a_line(item.path, 200),
        "sha256": mark,
        "order": list(item.order),
    }
    about |= {"time": item.time.isoformat() if item.time else None, "late": item.late}
    if os.path.lexists(target):
        if not target.is_file():
            raise ValueError(f"was not filed: {in_a_line(str(target))} is no file")
        there = hashlib.sha256(target.read_bytes()).hexdigest()
        if there == mark:
            return False
        known = _known(record)
        if known.get("who", about["who"]) != about["who"]:
            raise ValueError(f"was not filed: what is at {in_a_line(str(target))} is of another person")
        if known.get("sha256") != there or known.get("platform") != platform:
            raise ValueError(f"was not filed: {in_a_line(str(target))} came another way. Move it away first")
        if not known["order"] < list(item.order):
            raise ValueError(f"was not filed: what is at {in_a_line(str(target))} is newer")
    if dry:
        return True
    place.mkdir(parents=True, exist_ok=True)
    record.parent.mkdir(parents=True, exist_ok=True)
    _replace(record, json.dumps(about).encode())
    _replace(target, data)
    if item.time:
        os.utime(target, (item.time.timestamp(),) * 2)
    return True


def _known(record: Path) -> dict:
    """What was written about the notebook that is there; empty if that is not what it was."""
    try:
        about = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) and isinstance(about.get("order"), list) else {}


def _replace(path: Path, data: bytes) -> None:
    """Write a file as a whole or not at all."""
    descriptor, half = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".half")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(half, 0o644)
        os.replace(half, path)
    except BaseException:
        os.unlink(half)
        raise
