"""Install the course from this folder, without a network.

    python3 install.py [FOLDER]     # where the course is to go; without it apgd_teach in your home folder

(On Windows: py install.py.) What is on the stick is checked against its hashes first. A course that is in FOLDER
already is kept as it is, with all that was written into it.
"""

# Standard library only: nothing is installed yet.
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

STICK = Path(__file__).resolve().parent


def check() -> None:
    """Every file is what SHA256SUMS says; a sentence where one is not."""
    listed = (STICK / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    for line in listed:
        wanted, _, name = line.partition("  ")
        found = hashlib.sha256()
        try:
            with (STICK / name).open("rb") as file:
                for block in iter(lambda: file.read(1 << 20), b""):
                    found.update(block)
        except OSError as error:
            sys.exit(f"{name} on the stick cannot be read ({error.strerror}): copy the stick anew.")
        if found.hexdigest() != wanted:
            sys.exit(f"{name} on the stick is not what was put there: copy the stick anew.")


def fits() -> None:
    """The stick has wheels for this machine and this Python; a sentence where it has not."""
    made_for = json.loads((STICK / "stick.json").read_text(encoding="utf-8"))
    here = f"{platform.system()}-{platform.machine()}".lower()
    python = ".".join(platform.python_version_tuple()[:2])
    if not made_for["platforms"]:
        return
    if here not in made_for["platforms"]:
        sys.exit("The stick was made for {}, and this is {}.".format(" and ".join(made_for["platforms"]), here))
    if python not in made_for["pythons"]:
        sys.exit(
            "The stick has packages for Python {} and this is {}: use that Python, as in python{} install.py.".format(
                " and ".join(made_for["pythons"]), python, made_for["pythons"][0]
            )
        )


def place(course: Path) -> None:
    """The course's files in their folder, all or none."""
    if (course / "run.py").is_file():
        print(f"{course} has a course already, which stays as it is.")
        return
    if course.exists() and (not course.is_dir() or any(course.iterdir())):
        sys.exit(f"{course} is there already and is no course: name another folder.")
    course.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=str(course.parent), prefix=".apgd_teach-") as folder:
        shutil.copytree(str(STICK / "course"), str(Path(folder, "course")))
        if course.exists():
            course.rmdir()
        Path(folder, "course").rename(course)


def install(course: Path) -> None:
    """What run.py does, with the stick's wheels in the place of an index."""
    offline = dict(os.environ, PIP_NO_INDEX="1", PIP_FIND_LINKS=str(STICK / "wheels"))
    only = "import run, sys\ntry: run.prepare()\nexcept KeyboardInterrupt: sys.exit(130)"
    done = subprocess.call([sys.executable, "-c", only], cwd=str(course), env=offline)
    if done:
        sys.exit(f"The course is in {course} but was not installed.")


def networks(course: Path) -> None:
    """The trained networks into the cache, those that are not there."""
    if not (STICK / "networks").is_dir():
        return
    python = course / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    ask = [str(python), "-c", "from apgd_teach.files import own_folder; print(own_folder())"]
    cache = Path(subprocess.run(ask, stdout=subprocess.PIPE, check=True).stdout.decode().strip())
    for path in (STICK / "networks").rglob("*"):
        there = cache / path.relative_to(STICK / "networks")
        if path.is_file() and not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            part = there.with_name(f".{there.name}.part")
            shutil.copy(str(path), str(part))
            part.replace(there)


def main() -> None:
    course = Path(sys.argv[1] if sys.argv[1:] else Path.home() / "apgd_teach").expanduser().resolve()
    try:
        fits()
        print("Looking at the files on the stick …", flush=True)
        check()
        place(course)
        install(course)
        networks(course)
    except KeyboardInterrupt:
        sys.exit("Stopped; the same call goes on.")
    except OSError as error:
        sys.exit("{}: {}.".format(error.filename or "The install", error.strerror))
    print("\nReady. In {}:\n  {} run.py lab".format(course, "py" if os.name == "nt" else "python3"))


if __name__ == "__main__":
    main()
