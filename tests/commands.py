"""The commands of README.md and CONTRIBUTING.md, as these pages state them and as a shell takes them."""

import re
import subprocess

from project import PROJECT

PAGES = ("README.md", "CONTRIBUTING.md")
TEXT = {name: (PROJECT / name).read_text(encoding="utf-8") for name in PAGES}
PYTHON, UV, CHECK = ".venv/bin/python", ".venv/bin/uv", ".ci/run"
PROGRAMS = ("make", PYTHON, UV, CHECK, "python", "pip", "uv", "nafld")
PLACES = {"<name>": "smoke", "<run>": "smoke"}


def blocks(page):
    return re.findall(r"^```sh\n(.*?)^```$", TEXT[page], re.MULTILINE | re.DOTALL)


def commands():
    """Page, command and the assignments before it, of every block and of inline code."""
    found = []
    for page in PAGES:
        for block in blocks(page):
            setting = ""
            for line in block.splitlines():
                if re.match(r"\w+=", line):
                    setting += f"{line}\n"
                elif line.strip() and not line.startswith("#"):
                    found.append((page, line, setting))
        prose = re.sub(r"^```.*?^```$", "", TEXT[page], flags=re.MULTILINE | re.DOTALL)
        inline = [code for code in re.findall(r"`([^`\n]+)`", prose) if code.split()[0] in PROGRAMS and " " in code]
        found += [(page, code, "") for code in dict.fromkeys(inline)]
    return found


COMMANDS = commands()
# what names no setting is run by tests/notebooks/test_notebooks.py, for the session's small run
SMALL = [line for _, line, _ in COMMANDS if re.fullmatch(r"make (all|\d\d_\w+)( PROFILE=<name>)?\s*(#.*)?", line)]


def words(line, setting=""):
    """The words of a command as a shell makes them, comments and quotes gone, variables filled in."""
    for place, name in PLACES.items():
        line = line.replace(place, name)
    program = line.split()[0]
    script = f'{setting}say() {{ printf "%s\\0" "$@"; }}\nsay {line}'
    told = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True).stdout
    found = told.split("\0")[:-1]
    assert found[0] == program
    return found
