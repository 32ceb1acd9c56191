"""When something was handed in, and what being late costs."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

TIMESTAMP = "timestamp.txt"  # what nbgrader's exchange leaves beside a notebook


@dataclass(frozen=True)
class Due:
    """Until when, and what is taken off after that.

    Attributes:
        date: with its time zone, as ISO 8601 has it.
        grace: minutes after it that cost nothing.
        per_day: percent of the points reached, for each day begun since the date.
    """

    date: str
    grace: float = 0.0
    per_day: float = 0.0

    @classmethod
    def of(cls, date: str, grace: float = 0.0, per_day: float = 0.0) -> "Due":
        """From what an instructor types: a date alone is its end, and local time where no zone is given.

        Raises:
            ValueError: it is no date, or a number makes no sense.
        """
        try:
            when = datetime.fromisoformat(date.strip())
        except ValueError:
            raise ValueError(
                f"--due is {date!r} but must be a date, as 2026-11-30 or 2026-11-30T18:00."
            ) from None
        if len(date.strip()) <= 10:
            when += timedelta(days=1, seconds=-1)
        if not (math.isfinite(grace) and grace >= 0):
            raise ValueError(f"--grace is {grace:g} but must be a number of minutes, 0 or more.")
        if not 0 <= per_day <= 100:
            raise ValueError(f"--per-day is {per_day:g} but must be a percentage, from 0 to 100.")
        return cls(when.astimezone().isoformat(), grace, per_day)

    @property
    def when(self) -> datetime:
        return datetime.fromisoformat(self.date)


@dataclass(frozen=True)
class Late:
    """What there is to say of the time of a submission.

    Attributes:
        days: begun since it was due.
        share: of the points reached that is taken off.
        words: a sentence about it, for student and instructor.
        human: whether somebody must decide, because the platform says that it is late and not how much.
    """

    days: int = 0
    share: float = 0.0
    words: str = ""
    human: bool = False


def handed_in(notebook: Path | None, record: Path) -> tuple[datetime | None, bool]:
    """When a notebook was handed in, as far as that is known, and whether the platform calls it late.

    The platform's time, else that of the file.

    Args:
        record: what `collect` has written about the notebook, where no student can.
    """
    if notebook is None:
        return None, False
    try:
        about = json.loads(record.read_text(encoding="utf-8"))
        if about["sha256"] == hashlib.sha256(notebook.read_bytes()).hexdigest():
            time = about["time"] and datetime.fromisoformat(about["time"]).astimezone(timezone.utc)
            return time, about["late"] is True
    except (OSError, ValueError, TypeError, KeyError):
        pass
    try:
        words = (notebook.parent / TIMESTAMP).read_text(encoding="utf-8").strip()
        from nbgrader.utils import parse_utc

        return parse_utc(words).replace(tzinfo=timezone.utc), False
    except (OSError, ValueError, OverflowError, ImportError):
        pass
    try:
        return datetime.fromtimestamp(notebook.lstat().st_mtime, timezone.utc), False
    except (OSError, ValueError, OverflowError):
        return None, False


def lateness(due: Due | None, time: datetime | None, late: bool) -> Late:
    """What being handed in at this time means."""
    if due is None:
        return Late()
    if time is None:
        if not late:
            return Late()
        words = "The learning platform marks it as late, and does not say by how much. Nothing was taken off."
        return Late(words=words, human=True)
    over = (time - due.when).total_seconds()
    if over <= 60 * due.grace:
        return Late()
    days = math.ceil(over / 86_400)
    share = min(1.0, days * due.per_day / 100)
    words = f"Handed in {_duration(over)} late, on {time.astimezone(due.when.tzinfo):%Y-%m-%d at %H:%M}."
    if share:
        words += f" {100 * share:g} % of the points are taken off."
    return Late(days, share, words)


def _duration(seconds: float) -> str:
    minutes = max(1, math.ceil(seconds / 60))
    days, hours, minutes = minutes // 1440, minutes % 1440 // 60, minutes % 60
    parts = [(days, "day"), (hours, "hour"), (minutes if not days else 0, "minute")]
    words = [f"{number} {unit}{'s' if number > 1 else ''}" for number, unit in parts if number]
    return " and ".join(words)


def kept(path: Path) -> Due | None:
    """The due date that a file has; none if there is none, or something else."""
    try:
        return Due(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def text(due: Due) -> str:
    return json.dumps(asdict(due))
