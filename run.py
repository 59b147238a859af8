"""From a fresh clone, in one command: python3 run.py course | tests | lab | site

  course   run every notebook in the fast profile and write pages to read (course --profile full: the published sizes)
  tests    run the project's own tests
  lab      open the notebooks in JupyterLab
  site     make the site: course, guides and library as pages, in output/site

What follows the command is passed on (course --help, tests -k merge); paths in it start at this file's folder.
On first use .venv is made beside this file and the course installed into it, whatever environment is active; it is
installed again only when the dependencies in pyproject.toml, the place of this folder or .venv's Python change.
"""

# Standard library only, and nothing that Python 3.6 cannot parse: an old Python must get as far as being told so.
import errno
import hashlib
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
PYTHON = VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
LOG, STAMP = VENV / "install.log", VENV / "installed.txt"
COMMANDS = {
    "course": ["apgd_teach", "run"],
    # In two processes; tests/conftest.py says which tests go together. After them "-n 0" is one process.
    "tests": ["pytest", "-n", "2", "--no-loadscope-reorder"],
    "lab": ["apgd_teach", "lab"],
    "site": ["sphinx", "-W", "--keep-going", "-q", "-d", "output/doctrees", "-c", "docs", ".", "output/site"],
}
NO_ROOM = re.compile(r"No space left on device|not enough space|Disk quota exceeded|\[Errno 28\]")
NO_ANSWER = re.compile(
    r"NewConnection|ConnectionError|Connect(ion)?Timeout|ReadTimeout|ProxyError|SSLError|Max retries"
)
PROGRESS = re.compile(r"^ *((?:Collecting|Downloading|Building|Installing) .*)", re.MULTILINE)
ERROR = re.compile(r"^ *((?:ERROR|[Ee]rror|\w+Error): (?![a-z]+(?:-[a-z]+)+$).+)", re.MULTILINE)


def room_needed(dependencies: str, system: str, indexes: str) -> float:
    """GB of free disk that an install takes at its height. On Linux, PyTorch's ordinary build brings CUDA along."""
    if "torch" not in dependencies:
        return 0.1
    return 9.0 if system == "Linux" and "/cpu" not in indexes else 2.5


def explain(words: str) -> str:
    """One sentence on why an install failed and what to do, from what pip or Python said."""
    missing = re.findall(r"No matching distribution found for (\S+)", words)
    if NO_ROOM.search(words):
        return f"The disk is full: make room here or in {tempfile.gettempdir()} (TMPDIR moves it) and try again."
    if re.search(r"ensurepip is not\s+available|No module named '?(venv|ensurepip)", words):
        return "This Python cannot make environments: install its venv part (Debian: python3-venv) and try again."
    # An index that answers has every package but PyTorch for any machine: having none means that it did not answer.
    if NO_ANSWER.search(words) or ("versions: none" in words and missing and "torch" not in missing[-1]):
        return (
            f"The package index did not answer when asked for {missing[-1] if missing else 'a package'}: check the "
            "connection, or set HTTPS_PROXY (a proxy), PIP_INDEX_URL (a mirror), or PIP_NO_INDEX=1 and "
            "PIP_FIND_LINKS=FOLDER (wheels on disk), and try again."
        )
    if missing and "torch" in missing[-1] and (platform.system(), platform.machine()) == ("Darwin", "x86_64"):
        return "PyTorch is no longer made for Macs with Intel processors: use another machine, or Colab."
    if missing:
        machine = f"Python {platform.python_version()} on {platform.system()} {platform.machine()}"
        return f"The package index has no {missing[-1]} for {machine}: delete .venv and try again with another Python."
    if re.search(r"\[Errno (1|13|30)\]|PermissionError|Read-only file system", words):
        return "This folder cannot be written: copy it to one of your own and try again there."
    said = ERROR.findall(words) or words.strip().splitlines() or ["pip said nothing"]
    return f"The install failed: {said[-1].strip()[:200]}"


def environment_python() -> str:
    """The version of .venv's Python in its own words; "" when there is none that works and has pip."""
    ask = [str(PYTHON), "-c", "import sys, pip; print(sys.version.split()[0])"]
    try:
        return subprocess.run(ask, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout.decode().strip()
    except OSError:
        return ""


def read(path: Path) -> str:
    """A file's text, "" where there is none."""
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def lock(file: IO[str]) -> None:
    """Wait while another run.py installs. The lock is the operating system's, so it goes when its process does."""
    told = False
    while True:
        try:
            if sys.platform == "win32":
                import msvcrt

                file.seek(1 << 30)  # past the end: others may go on reading the text
                return msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
            import fcntl

            return fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                return  # a file system without locks: go on without
        if not told:
            print("Another run.py is installing; waiting for it.", flush=True)
        told = True
        time.sleep(0.5)


def prepare() -> None:
    """Make .venv whole: nothing to do when its stamp is right, else install."""
    marked = re.search("# dependencies: begin(.*)# dependencies: end", read(ROOT / "pyproject.toml"), re.DOTALL)
    if marked is None:
        sys.exit("pyproject.toml beside run.py is not whole: clone the repository again.")
    wanted = marked.group(1)
    place = f"{str(ROOT)!a}\n"
    start = hashlib.sha256(wanted.encode()).hexdigest() + "\n" + place
    if read(STAMP) == start + environment_python():
        return
    with (ROOT / "pyproject.toml").open("r+", encoding="utf-8") as project:  # for its lock; nothing is written
        lock(project)
        if read(STAMP) == start + environment_python():
            return  # the one that was waited for did it
        indexes = os.environ.get("PIP_INDEX_URL", "") + os.environ.get("PIP_EXTRA_INDEX_URL", "")
        need = room_needed(wanted, platform.system(), indexes)
        there = sum(file.lstat().st_size for file in VENV.rglob("*"))
        free = (shutil.disk_usage(str(ROOT)).free + there) / 1e9
        if free < need:
            less = " (2.5 with PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu)" if need == 9 else ""
            sys.exit(
                f"The install takes {need:g} GB{less} and {free:.1f} GB of disk are free: make room and try again."
            )
        print(f"Installing the course into .venv: minutes, and up to {need:g} GB of disk, the first time.", flush=True)
        if place not in (read(STAMP) or place) or not environment_python():
            make = [sys.executable, "-m", "venv", "--clear", str(VENV)]
            made = subprocess.run(make, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if made.returncode:
                full = shutil.disk_usage(str(ROOT)).free < 30e6  # venv keeps to itself what its pip complained of
                sys.exit(explain("No space left on device" if full else made.stdout.decode(errors="replace")))
        if STAMP.is_file():
            STAMP.unlink()
        install()
        STAMP.write_text(start + environment_python(), encoding="utf-8")


def end(pip: "subprocess.Popen[bytes]") -> None:
    """End pip and the processes that it started, and let them tidy up after themselves."""
    try:
        if os.name != "nt":  # there they were told by the same Ctrl-C
            os.killpg(pip.pid, signal.SIGINT)
        pip.wait(10)
    except subprocess.TimeoutExpired:
        os.killpg(pip.pid, signal.SIGKILL) if os.name != "nt" else pip.kill()
        pip.wait()


def install() -> None:
    """Install the course into .venv, with one line of progress; pip's own words go to the log."""
    command = [str(PYTHON), "-m", "pip", "install", "--no-input", "--progress-bar=off", "--editable", ".[test]"]
    settings = dict(os.environ, PIP_USER="0", PIP_DISABLE_PIP_VERSION_CHECK="1", PYTHONUTF8="1")
    began, shown, screen = time.time(), 0.0, sys.stdout.isatty()
    with LOG.open("wb") as log:
        pip = subprocess.Popen(
            command,
            cwd=str(ROOT),
            env=settings,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=os.name != "nt",
        )
        try:
            while pip.poll() is None:
                time.sleep(0.2)
                if time.time() - shown >= (0.5 if screen else 30):  # a file of output wants few lines
                    shown = time.time()
                    line = f"{shown - began:4.0f} s  {(PROGRESS.findall(read(LOG)) or ['starting'])[-1]}"
                    print(f"\r{line[:78]:78}" if screen else line[:78], end="" if screen else "\n", flush=True)
        finally:
            if pip.poll() is None:
                end(pip)
            if screen:
                print(flush=True)
    if pip.returncode:
        sys.exit(f"{explain(read(LOG))} (pip's own words: {LOG.relative_to(ROOT)})")


def main(arguments: list) -> None:
    """Prepare .venv and hand over to it."""
    if sys.version_info < (3, 10):
        this = platform.python_version()
        sys.exit(
            f"The course needs Python 3.10 or newer and this is {this}: name a newer one, as in python3.12 run.py."
        )
    if not arguments or arguments[0] not in COMMANDS:
        if arguments and arguments[0] not in ("-h", "--help"):
            print(f"There is no command '{arguments[0]}'; use course, tests, lab or site.\n", file=sys.stderr)
        print(__doc__.strip(), file=sys.stdout if arguments[:1] in (["-h"], ["--help"]) else sys.stderr)
        sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    for name in ("SIGTERM", "SIGHUP"):  # as Ctrl-C: pip has to be ended too
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)
    try:
        prepare()
    except KeyboardInterrupt:
        print("Stopped; the next call begins the install again.", file=sys.stderr)
        sys.exit(130)
    except OSError as error:
        sys.exit(explain(f"{type(error).__name__}: {error}"))
    os.chdir(str(ROOT))
    command = [str(PYTHON), "-m", *COMMANDS[arguments[0]], *arguments[1:]]
    if os.name != "nt":
        os.execv(command[0], command)  # the course in this process's place: signals and exit code are its own
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the child, which says so itself
    sys.exit(subprocess.call(command))


if __name__ == "__main__":
    main(sys.argv[1:])
