"""`aecourse collect`: archives of learning platforms, as they are and as somebody may want them to be."""

import contextlib
import io
import json
import os
import shutil
import stat
import warnings
import zipfile
from datetime import datetime

import pytest

pytest.importorskip("nbgrader")
pytest.importorskip("fcntl", reason="grading is for Linux and macOS")

from support.notebooks import ROOT

from aecourse import cli
from aecourse.grading import collect, late

OLD, NEW = b'{"cells": [], "which": "old"}', b'{"cells": [], "which": "new"}'
CLASS = """\
\ufeffid;first_name;last_name;canvas;moodle
ashalice;Alice;Ash;;
bb17;Bob;Brown;1002;77
jean;Jean-Luc;Coe;;
muller;Änne;Müller;;
luc;Luc;Coe;;
"""


@pytest.fixture
def course(tmp_path):
    folder = tmp_path / "course"
    for name in ("elbo", "vae"):
        (folder / "solutions" / name).mkdir(parents=True)
        (folder / "solutions" / name / f"{name}.ipynb").write_text("{}")
    shutil.copy(ROOT / "nbgrader_config.py", folder)
    return folder


@pytest.fixture
def run(course, tmp_path):
    """run(platform, {member: bytes}): status, lines on the terminal and {student: what stands there}."""

    def run(platform, files, *options, name="elbo"):
        archive = tmp_path / "all.zip"
        if not isinstance(files, dict):
            archive.write_bytes(files)
        else:
            with zipfile.ZipFile(archive, "w") as packed:
                for path, data in files.items():
                    info = (
                        path
                        if isinstance(path, zipfile.ZipInfo)
                        else zipfile.ZipInfo(path, (2026, 11, 30, 12, 0, 0))
                    )
                    packed.writestr(info, data)
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            arguments = ["collect", archive, "--from", platform, "--course", course, *options]
            status = cli.main([str(argument) for argument in arguments])
        there = {
            path.parent.parent.name: path.read_bytes() for path in course.glob(f"submitted/*/{name}/*.ipynb")
        }
        assert not list(tmp_path.glob("*.ipynb"))
        return status, out.getvalue().splitlines(), there

    return run


def record(course, student):
    return json.loads((course / ".aecourse" / "elbo" / "collected" / f"{student}.json").read_text())


# ---- how each platform names what it packs


def test_canvas(run, course):
    status, lines, there = run(
        "canvas",
        {
            "ashalice_1001_9_elbo.ipynb": OLD,
            "ashalice_LATE_1001_12_elbo-1.ipynb": NEW,
            "ashalice_1001_10_photo.png": b"x",
            "brownbob_1002_11_elbo (1).ipynb": OLD,
            "coejane_LATE_1003_14_my own_1_2_name.ipynb": NEW,
        },
    )
    assert (status, there) == (0, {"ashalice": NEW, "brownbob": OLD, "coejane": NEW})
    assert lines == [
        "elbo: 3 filed, 0 there already.",
        "ashalice_1001_10_photo.png is no notebook.",
        "ashalice_1001_9_elbo.ipynb was not taken: ashalice_LATE_1001_12_elbo-1.ipynb was.",
    ]
    assert [record(course, s)["late"] for s in ("ashalice", "brownbob")] == [True, False]


def test_moodle(run, course):
    status, lines, there = run(
        "moodle",
        {
            "Alice Ash_1234_assignsubmission_file_/elbo.ipynb": OLD,
            "Bob Brown_77_assignsubmission_file/sub folder/elbo.ipynb": NEW,
            "Cat Coe_78_assignsubmission_file_elbo-2.ipynb": NEW,
            "Cat Coe_78_assignsubmission_onlinetext_/onlinetext.html": b"<p>Sorry.</p>",
        },
    )
    assert (status, there) == (0, {"1234": OLD, "77": NEW, "78": NEW})
    assert "Cat Coe_78_assignsubmission_onlinetext_/onlinetext.html is no notebook." in lines
    when = datetime(2026, 11, 30, 12).astimezone()
    assert datetime.fromisoformat(record(course, "77")["time"]) == when
    target = course / "submitted" / "77" / "elbo" / "elbo.ipynb"
    assert target.stat().st_mtime == when.timestamp()


def test_blackboard(run, course):
    start = "Problem_Set_1"
    status, _, there = run(
        "blackboard",
        {
            f"{start}_ashalice_attempt_2026-11-29-10-00-00_elbo.ipynb": OLD,
            f"{start}_ashalice_attempt_2026-11-30-23-10-05_elbo.ipynb": NEW,
            f"{start}_ashalice_attempt_2026-11-30-23-10-05.txt": b"Name: Alice Ash (ashalice)",
            f"{start}_brownbob_attempt_2026-11-30-23-59-59_elbo_final.ipynb": NEW,
        },
        "--assignment",
        "elbo",
    )
    assert (status, there) == (0, {"ashalice": NEW, "brownbob": NEW})
    when = datetime(2026, 11, 30, 23, 10, 5).astimezone()
    place = course / "submitted" / "ashalice" / "elbo" / "elbo.ipynb"
    found = late.handed_in(place, course / ".aecourse" / "elbo" / "collected" / "ashalice.json")
    assert found == (when, False)
    place.write_bytes(OLD)  # somebody has put another one there
    found, _ = late.handed_in(place, course / ".aecourse" / "elbo" / "collected" / "ashalice.json")
    assert found != when


def test_ilias(run, course):
    status, _, there = run(
        "ilias",
        {
            "Exercise 1/Submissions/Ash_Alice_ashalice_4711/20261130120000_elbo.ipynb": OLD,
            "Exercise 1/Submissions/Ash_Alice_ashalice_4711/20261130130000_elbo.ipynb": NEW,
            "Exercise 1/Team 7/Von Brown_Bob_brownbob_4712/Late Submission - elbo.ipynb": NEW,
        },
    )
    assert (status, there) == (0, {"ashalice": NEW, "brownbob": NEW})
    assert (
        datetime.fromisoformat(record(course, "ashalice")["time"]) == datetime(2026, 11, 30, 13).astimezone()
    )
    assert (record(course, "brownbob")["late"], record(course, "brownbob")["time"]) == (True, None)


def test_a_folder_that_somebody_has_unpacked_will_do(course, tmp_path, capsys):
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "ashalice_1_2_elbo.ipynb").write_bytes(NEW)
    (tmp_path / "all" / "brownbob_3_4_elbo.ipynb").symlink_to("/etc/passwd")
    arguments = ["collect", tmp_path / "all", "--from", "canvas", "--course", course]
    assert cli.main([str(argument) for argument in arguments]) == 2
    assert "brownbob_3_4_elbo.ipynb is a link, or no file." in capsys.readouterr().out
    assert os.listdir(course / "submitted") == ["ashalice"]


# ---- who is who


def test_the_class_list_says_who_is_who(run, course):
    (course / "students.csv").write_text(CLASS)
    status, lines, there = run(
        "canvas",
        {
            "ashalice_1001_1_elbo.ipynb": OLD,
            "someoneelse_1002_2_elbo.ipynb": NEW,  # by the number
            "müllerañne_1004_3_elbo.ipynb": b"1",
            "mülleränne_1005_4_elbo.ipynb": b"2",
            "stranger_1006_5_elbo.ipynb": b"3",
        },
    )
    assert (status, there) == (2, {"ashalice": OLD, "bb17": NEW})
    assert lines[1:] == [
        "stranger_1006_5_elbo.ipynb belongs to nobody that students.csv knows: add the person with 1006 in a "
        "column canvas.",
        "müllerañne_1004_3_elbo.ipynb, mülleränne_1005_4_elbo.ipynb are of several people (1004, 1005) who "
        "would all be muller: give each a row of students.csv, with the number in a column canvas.",
        "Nothing yet from jean, luc, muller.",
    ]


def test_nobody_is_taken_for_another_one(run, course):
    (course / "students.csv").write_text("id,first_name,last_name\nluc,Luc,Coe\nleeann,Zoe,Zed\nal,Ann,Lee\n")
    status, lines, there = run(
        "moodle",
        {
            "Jean-Luc Coe_1_assignsubmission_file_/elbo.ipynb": OLD,
            "leeann_2_assignsubmission_file_/elbo.ipynb": OLD,
            "X_9_assignsubmission_file_Luc Coe_3_assignsubmission_file_/elbo.ipynb": OLD,
            "Luc Coe_4_assignsubmission_file_/Bob_77_assignsubmission_file_/elbo.ipynb": NEW,
        },
    )
    assert (status, there) == (2, {"luc": NEW})
    assert sum("belongs to nobody" in line for line in lines) == 1
    assert sum("may be of al, leeann" in line for line in lines) == 1
    assert sum("is not named as by Moodle" in line for line in lines) == 1


def test_a_name_of_the_students_own_is_nobody_elses(run, course):
    """Their name on the platform, a folder or a title can look like the platform's word for somebody."""
    status, lines, there = run(
        "moodle",
        {
            "Bob Brown_77_assignsubmission_file_9_assignsubmission_file_elbo.ipynb": NEW,
            "Eve_9_assignsubmission_poll_/Bob Brown_77_assignsubmission_file_/elbo.ipynb": NEW,
            "Cat Coe_78_assignsubmission_file_elbo.ipynb": OLD,
        },
    )
    assert (status, there) == (2, {"78": OLD})
    assert sum("is not named as by Moodle" in line for line in lines) == 2
    people = {f"{who}_{who}_{who}_{i}": NEW for i, who in enumerate("xyz")}
    status, _, there = run("ilias", {f"Problem_Set_1/{who}/elbo.ipynb": NEW for who in people})
    assert (status, set(there)) == (0, {"78", *"xyz"})
    files = {f"A_Problem_Set_1/{who}/elbo.ipynb": OLD for who in people}
    status, lines, there = run("ilias", files, "--assignment", "elbo")
    assert (status, set(there)) == (2, {"78", *"xyz"})
    assert sum("is not named as by Ilias" in line for line in lines) == 3


def test_another_number_is_another_person(run, course):
    """Of the same name, in this archive or in the next one."""
    assert run("canvas", {"doejo_1_5_elbo.ipynb": OLD})[2] == {"doejo": OLD}
    status, lines, there = run("canvas", {"doejo_2_6_elbo.ipynb": NEW})
    assert (status, there) == (2, {"doejo": OLD})
    assert "is of another person" in lines[1]
    assert run("canvas", {"doejo_1_7_elbo.ipynb": NEW})[2] == {"doejo": NEW}
    (course / "students.csv").write_text(CLASS)
    status, lines, there = run("canvas", {"brownbob_9999_1_elbo.ipynb": NEW, "ashalice_5_1_elbo.ipynb": NEW})
    assert (status, set(there)) == (2, {"doejo", "ashalice"})
    assert "brownbob_9999_1_elbo.ipynb belongs to nobody" in lines[1]
    (course / "students.csv").write_text("id\na/b\n")
    assert run("canvas", {"ab_1_1_elbo.ipynb": NEW})[:2] == (
        1,
        ["aecourse: students.csv, row 2: the id a/b cannot be used: it holds a slash, as the path of several "
         "folders does."],
    )  # fmt: skip


def test_two_people_of_one_name_are_not_one(run):
    status, lines, there = run(
        "canvas",
        {"ashalice_1_2_elbo.ipynb": OLD, "ashalice_3_4_elbo.ipynb": NEW, "coejane_5_6_elbo.ipynb": NEW},
    )
    assert (status, there) == (2, {"coejane": NEW})
    assert "are of several people (1, 3) who would all be ashalice" in lines[1]
    start = "Set_1"
    status, lines, there = run(
        "blackboard", {f"{start}_{who}_doe_attempt_2026-11-30-12-00-00_elbo.ipynb": OLD for who in "ab"}
    )
    assert "of several people" in lines[1]
    assert there == {"coejane": NEW}


def test_a_group_is_filed_under_one_of_it(run, course):
    (course / "groups.csv").write_text("group,student\nRed Team,ash\nRed Team,brown\n")
    status, _, there = run("canvas", {"redteam_1_2_elbo.ipynb": NEW})
    assert (status, there) == (0, {"ash": NEW})


# ---- which file counts


def test_what_cannot_be_told_is_named(run):
    status, lines, there = run(
        "canvas",
        {
            "a_1_1_first.ipynb": OLD,
            "a_1_2_second.ipynb": NEW,
            "b_2_3_vae.ipynb": OLD,
            "c_3_4_essay.pdf": b"%PDF",
            "d_4_5_elbo.ipynb": OLD,
            "e_5_6_elbo.ipynb.txt": NEW,
            "notes.txt": b"x",
            "__MACOSX/._d_4_5_elbo.ipynb": b"x",
            ".DS_Store": b"x",
        },
    )
    assert (status, there) == (2, {"d": OLD, "e": NEW})
    assert lines[1:] == [
        "notes.txt is not named as by Canvas.",
        "a: which of a_1_1_first.ipynb, a_1_2_second.ipynb is meant cannot be told.",
        "b: b_2_3_vae.ipynb is for another assignment.",
        "c: no notebook among c_3_4_essay.pdf.",
        "c_3_4_essay.pdf is no notebook.",
    ]


def zipped(files) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        for path, data in files.items():
            packed.writestr(path, data)
    return content.getvalue()


def test_a_zip_in_the_archive_is_its_owners_whatever_it_is_called(run):
    inner = zipped({"work/elbo.ipynb": NEW, "data.csv": b"x"})
    evil = zipped({"../../../ashalice/elbo/elbo.ipynb": OLD})
    status, _, there = run(
        "canvas",
        {
            "ashalice_1_2_elbo.ipynb": OLD,
            "brownbob_3_4_all.zip": inner,
            "coejane_5_6_ashalice_1_9_elbo.zip": zipped({"ashalice_1_9_elbo.ipynb": NEW}),
            "poedan_7_8_elbo.zip": evil,
        },
    )
    assert (status, there) == (0, {"ashalice": OLD, "brownbob": NEW, "coejane": NEW, "poedan": OLD})


def test_of_two_files_of_one_name_neither_is_taken(run):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "Duplicate name"
        for name, data in (("a_1_2", OLD), ("a_1_2", NEW), ("b_3_4", OLD), ("b_3_4", OLD)):
            packed.writestr(f"{name}_elbo.ipynb", data)
    status, lines, there = run("canvas", content.getvalue())
    assert (status, there) == (2, {"b": OLD})
    assert "a: which of a_1_2_elbo.ipynb, a_1_2_elbo.ipynb is newer cannot be told." in lines


def test_nothing_is_overwritten_by_what_is_older_or_came_another_way(run, course):
    run("canvas", {"a_1_5_elbo.ipynb": OLD, "b_2_5_elbo.ipynb": OLD, "c_3_5_elbo.ipynb": OLD})
    (course / "submitted" / "c" / "elbo" / "elbo.ipynb").write_bytes(b"by hand")
    files = {"a_1_4_elbo.ipynb": NEW, "b_2_6_elbo.ipynb": NEW, "c_3_6_elbo.ipynb": NEW}
    before = {path: path.read_bytes() for path in course.rglob("*") if path.is_file()}
    status, lines, there = run("canvas", files, "--dry-run")
    assert (status, lines[0]) == (2, "elbo: 1 would be filed, 0 there already.")
    assert {path: path.read_bytes() for path in course.rglob("*") if path.is_file()} == before
    status, lines, there = run("canvas", files)
    assert (status, there) == (2, {"a": OLD, "b": NEW, "c": b"by hand"})
    assert "is newer" in lines[1]
    assert "came another way. Move it away first" in lines[2]
    assert run("canvas", {"b_2_6_elbo.ipynb": NEW})[1][0] == "elbo: 0 filed, 1 there already."


# ---- archives that mean harm, or are broken


def link(path):
    info = zipfile.ZipInfo(path, (2026, 11, 30, 12, 0, 0))
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


def test_an_archive_cannot_write_elsewhere_or_speak_to_the_terminal(run, course, tmp_path):
    status, lines, there = run(
        "canvas",
        {
            "ok_1_2_elbo.ipynb": OLD,
            "../../evil_1_3_elbo.ipynb": NEW,
            "/tmp/evil_1_4_elbo.ipynb": NEW,
            "C:\\evil_1_5_elbo.ipynb": NEW,
            ".._1_6_elbo.ipynb": NEW,
            ".hidden_1_7_elbo.ipynb": NEW,
            "red\x1b[31m\u202e_1_8_elbo.ipynb": NEW,
            f"{'x' * 210}_1_9_elbo.ipynb": NEW,
            link("linked_2_3_elbo.ipynb"): b"/etc/passwd",
        },
    )
    assert (status, there) == (2, {"ok": OLD})
    assert sum("leads out of the archive" in line for line in lines) == 3
    assert sum("whose name" in line for line in lines) == 4
    assert "linked: linked_2_3_elbo.ipynb is a link." in lines
    assert all(line.isprintable() for line in lines)
    assert os.listdir(course / "submitted") == ["ok"]


def test_links_in_the_course_are_not_followed(run, course, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (course / "submitted" / "b").mkdir(parents=True)
    (course / "submitted" / "a").symlink_to(tmp_path / "elsewhere")
    (course / "submitted" / "b" / "elbo").symlink_to(tmp_path / "elsewhere")
    (course / "submitted" / "c").write_text("a file")
    status, lines, there = run("canvas", {f"{who}_{i}_1_elbo.ipynb": NEW for i, who in enumerate("abcd")})
    assert (status, there) == (2, {"d": NEW})
    assert sum("was not filed" in line and "is a link" in line for line in lines) == 2
    assert sum("cannot be written" in line for line in lines) == 1
    assert not list((tmp_path / "elsewhere").iterdir())


def test_bombs_and_damage_cost_nobody_else_anything(run, monkeypatch):
    monkeypatch.setattr(collect, "LARGEST", 10**6)
    monkeypatch.setattr(collect, "MOST_BYTES", 3 * 10**6)
    bomb = zipped({"elbo.ipynb": bytes(2 * 10**6)})
    content = bytearray(
        zipped(
            {
                "a_1_1_elbo.ipynb": OLD,
                "b_2_2_elbo.ipynb": bytes(2 * 10**6),
                "c_3_3_elbo.zip": bomb,
                "d_4_4_elbo.zip": b"no zip",
                "e_5_5_elbo.ipynb": os.urandom(1000),
                "f_6_6_elbo.ipynb": NEW,
            }
        )
    )
    with zipfile.ZipFile(io.BytesIO(content)) as packed:
        place = packed.getinfo("e_5_5_elbo.ipynb").header_offset + 200
        content[packed.getinfo("f_6_6_elbo.ipynb").header_offset + 6] |= 1  # encrypted, says the local header
    content[place] ^= 255
    start = content.rindex(b"f_6_6_elbo.ipynb") - 46
    content[start + 8] |= 1  # and the directory
    status, lines, there = run("canvas", bytes(content))
    assert (status, there) == (2, {"a": OLD})
    for words in (
        "b: b_2_2_elbo.ipynb is larger than 0 MB.",
        "c: c_3_3_elbo.zip is larger than 0 MB.",
        "d: d_4_4_elbo.zip is damaged (File is not a zip file).",
        "e: e_5_5_elbo.ipynb is damaged (Bad CRC-32",
        "f: f_6_6_elbo.ipynb is encrypted.",
    ):
        assert any(words in line for line in lines), words


@pytest.mark.parametrize("packing", [zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_DEFLATED, 99])
def test_damage_of_any_packing_costs_nobody_else_anything(run, packing):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", packing if packing != 99 else 0) as packed:
        packed.writestr("a_1_1_elbo.ipynb", os.urandom(100) * 20)
        packed.writestr("b_2_2_elbo.ipynb", NEW, zipfile.ZIP_STORED)
        place = packed.getinfo("a_1_1_elbo.ipynb").header_offset + 30 + len("a_1_1_elbo.ipynb")
    data = bytearray(content.getvalue())
    data[place + 4 : place + 60] = bytes([255]) * 56  # of LZMA its properties
    if packing == 99:  # of another program's
        for start, at in ((data.index(b"PK\3\4"), 8), (data.index(b"PK\1\2"), 10)):
            data[start + at] = 99
    status, lines, there = run("canvas", bytes(data))
    assert (status, there) == (2, {"b": NEW})
    assert "a: a_1_1_elbo.ipynb is damaged (" in lines[1]


def test_what_one_student_hands_in_has_a_limit(run, monkeypatch):
    """Of files in a zip, and of notebooks in all; and nobody is passed over without a word."""
    monkeypatch.setattr(collect, "MOST_HELD", 5000)
    monkeypatch.setattr(collect, "MOST_INSIDE", 30)
    files = {f"a_1_{i}_elbo-{i}.ipynb": b"x" * 1000 + bytes([i]) for i in range(6)}
    files["b_2_9_all.zip"] = zipped({f"{i}.txt": b"" for i in range(31)} | {"elbo.ipynb": NEW})
    files["c_3_9_all.zip"] = zipped({f"{i}/elbo.ipynb": bytes(3000) for i in range(2)})
    files["d_4_9_elbo.ipynb"] = NEW
    status, lines, there = run("canvas", files)
    assert (status, there) == (2, {"d": NEW})
    for words in ("a: handed in more than 0 MB of notebooks.", "b_2_9_all.zip holds more than 30 files"):
        assert any(words in line for line in lines), words
    assert any(line.startswith("c: c_3_9_all.zip") for line in lines)
    monkeypatch.setattr(collect, "MOST_MEMBERS", 10)
    files = {f"__MACOSX/._{i}": b"" for i in range(9)} | {f"{who}_1_1_elbo.ipynb": NEW for who in "ef"}
    status, lines, there = run("canvas", files)
    assert (status, set(there)) == (2, {"d", "e"})
    assert "Only the first 10 files were looked at." in lines


@pytest.mark.parametrize("content", [b"", b"PK\3\4", b"<html>", None])
def test_what_is_no_archive_is_one_line(run, content, tmp_path):
    if content is None:
        content = zipped({"a_1_2_elbo.ipynb": OLD})[:-30]
    status, lines, there = run("canvas", content)
    assert (status, there) == (1, {})
    assert len(lines) == 1
    assert "is no zip archive that can be read" in lines[0]


def test_the_assignment_is_that_of_most_names_or_asked_for(run, tmp_path):
    files = {
        "a_1_2_elbo.ipynb": OLD,
        "b_3_4_elbo.ipynb": OLD,
        "c_5_6_vae.ipynb": NEW,
        "d_7_8_mine.ipynb": NEW,
    }
    status, lines, there = run("canvas", files)
    assert set(there) == {"a", "b", "d"}
    assert "c: c_5_6_vae.ipynb is for another assignment." in lines
    status, lines, _ = run("canvas", {"a_1_2_mine.ipynb": OLD})
    assert (status, len(lines)) == (1, 1)
    assert "name it, with --assignment NAME" in lines[0]
    status, lines, _ = run("canvas", {"a_1_2_mine.ipynb": OLD}, "--assignment", "gan")
    assert (status, lines) == (1, ["aecourse: There is no assignment gan. There are: elbo, vae."])
    assert run("canvas", {"a_1_2_mine.ipynb": OLD}, "--assignment", "vae", name="vae")[2] == {"a": OLD}
