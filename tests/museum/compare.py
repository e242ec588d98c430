"""Write `docs/results/museum.md`: what worldsim, an older worldsim, robovet and lerobot-doctor say of every dataset of the museum.

`python tests/museum/compare.py COMMIT ROBOVET_VENV LEROBOT_DOCTOR_VENV`, from the checkout, in worldsim's environment. The others
live in environments of their own: `python -m venv V; V/bin/pip install 'robovet[video]'`, or `lerobot-doctor`. What they say of a
sound dataset of the same format, too, is left out.
"""

import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

HERE = Path(__file__).resolve()
ROOT = HERE.parents[2]
sys.path[:0] = [str(ROOT), str(HERE.parents[1])]

from museum.cases import Case, cases  # noqa: E402 - the path comes first
from museum.visit import GOOD, Seen, judge  # noqa: E402

# Sound datasets by the first number of their version and whether they have videos.
SOUND = {(True, True): ["videos"], (True, False): ["pictures"]}
SOUND |= {(False, True): ["lerobot_2_0", "lerobot_2_1"], (False, False): ["lerobot_2_1_pictures"]}
FOUND = (*GOOD, "another error", "another warning", "refused in other words")
Said = dict[str, str]  # what a tool says, and how severe that is


def main(commit: str, robovet: Path, lerobot_doctor: Path) -> None:
    """Build the museum, ask everybody, write the page."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truths = {case.name: case.build(folder / "museum" / case.name) for case in cases()}
        old = folder / "old"
        old.mkdir()
        archive = subprocess.run(["git", "-C", str(ROOT), "archive", commit], check=True, capture_output=True).stdout
        subprocess.run(["tar", "-x", "-C", str(old)], input=archive, check=True)
        seen = {column: looked(folder, code) for column, code in (("before", old), ("now", ROOT))}
        verdicts = {
            column: {case.name: judge(case.expected, truths[case.name], by[case.name]) for case in cases()}
            for column, by in seen.items()
        }
        for column, ask, venv in (("robovet", ask_robovet, robovet), ("lerobot-doctor", ask_lerobot_doctor, lerobot_doctor)):
            roots = {case.name: recording(folder / "museum" / case.name) for case in cases()}
            said = {name: ask(venv, root) for name, root in roots.items()}
            verdicts[column] = {case.name: judge_tool(case, said, roots[case.name]) for case in cases()}
    versions = {"robovet": version(robovet, "robovet"), "lerobot-doctor": version(lerobot_doctor, "lerobot-doctor")}
    page(commit, versions, verdicts)


def recording(root: Path) -> Path:
    """Where LeRobot's files of a case lie: a folder that adopts them is worldsim's alone."""
    return root / "recording" if (root / "spec.yaml").is_file() else root


def looked(folder: Path, code: Path) -> dict[str, Seen]:
    """What the worldsim of a checkout says of each dataset."""
    out = folder / "seen"
    command = [sys.executable, "-W", "ignore", str(HERE.with_name("visit.py")), str(folder / "museum"), str(out)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(code)})
    return {name: Seen(**said) for name, said in pickle.loads(out.read_bytes()).items()}


def ask_robovet(venv: Path, root: Path) -> Said | None:
    """Ids of the checks of `robovet doctor` that do not pass, and flags of `robovet score`; None if it breaks down."""
    with tempfile.TemporaryDirectory() as name:
        found, scores = Path(name) / "found.json", Path(name) / "scores.csv"
        doctor = run(venv / "bin/robovet", "doctor", root, "--json", found)
        score = run(venv / "bin/robovet", "score", root, "--csv", scores)
        if "Traceback" in doctor.stderr + score.stderr:
            return None
        if not found.is_file():
            return {"not a dataset": "FAIL"}
        results = json.loads(found.read_text())["results"]
        flags = re.findall(r"[a-z]+_[a-z_]+", scores.read_text().partition("\n")[2]) if scores.is_file() else []
    return {r["check_id"]: r["severity"] for r in results if r["severity"] != "PASS"} | {f"score: {flag}": "INFO" for flag in flags}


def ask_lerobot_doctor(venv: Path, root: Path) -> Said | None:
    """Messages of `lerobot-doctor check` that do not pass, without their numbers; None if it breaks down."""
    done = run(venv / "bin/lerobot-doctor", "check", root, "--json")
    if "Traceback" in done.stderr:
        return None
    if "{" not in done.stdout:
        return {"not a dataset": "FAIL"}
    checks = json.loads(done.stdout[done.stdout.index("{") :])["checks"]
    messages = [message for check in checks for message in check["messages"] if message["severity"] != "PASS"]
    return {re.sub(r"\d+(\.\d+)?", "N", message["message"]): message["severity"] for message in messages}


def run(*command: object) -> subprocess.CompletedProcess[str]:
    """A command of another tool, whatever it ends in."""
    return subprocess.run([*map(str, command)], capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def judge_tool(case: Case, said: dict[str, Said | None], root: Path) -> str:
    """A verdict on another tool, by what it says of this dataset and of none of the sound ones of its format."""
    if (mine := said[case.name]) is None:
        return "traceback"
    info = (root / "meta/info.json").read_text() if (root / "meta/info.json").is_file() else ""
    alike = SOUND['"v2.' not in info, '"dtype": "video"' in info]
    habits = {key for name in alike for key in said[name] or {}}
    new = {key: severity for key, severity in mine.items() if key not in habits}
    words = ", ".join(sorted(new))
    words = f"{words[:57]}..." if len(words) > 60 else words
    if case.expected != "fine":
        return f"found ({words})" if new else "silent"
    return "fine" if {*new.values()} <= {"INFO"} else f"false alarm ({words})"


def version(venv: Path, package: str) -> str:
    """Of a package in an environment."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([str(venv / "bin/python"), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def total(column: str, verdicts: dict[str, str], sound: bool) -> str:
    """One row of the table of totals."""
    counts = Counter(
        "right" if verdict in FOUND or verdict.startswith("found") else re.sub(r" \(.*", "", verdict)
        for verdict in (verdicts[case.name] for case in cases() if (case.expected == "fine") == sound)
    )
    others = ", ".join(f"{number} {word}" for word, number in counts.most_common() if word != "right")
    return f"{counts['right']} of {counts.total()}" + (f"; {others}" if others else "")


def page(commit: str, versions: dict[str, str], verdicts: dict[str, dict[str, str]]) -> None:
    """`docs/results/museum.md`."""
    names = {"before": f"worldsim {commit}", "now": "worldsim", **{name: f"{name} {number}" for name, number in versions.items()}}
    lines = ["| | faulty ones that it finds | sound ones that it leaves in peace |", "| --- | --- | --- |"]
    lines += [f"| {names[column]} | {total(column, by, False)} | {total(column, by, True)} |" for column, by in verdicts.items()]
    head = HERE.with_name("museum.md").read_text()
    rows = ["| case | what is wrong or unusual | source | expected | " + " | ".join(names.values()) + " |", "| --- " * 8 + "|"]
    for case in cases():
        found = " | ".join(by[case.name].replace("|", "/") for by in verdicts.values())
        rows.append(f"| {case.name} | {case.wrong} | {case.source} | {case.expected} | {found} |")
    text = head.format(
        number=len(cases()),
        sound=sum(c.expected == "fine" for c in cases()),
        commit=commit,
        totals="\n".join(lines),
        table="\n".join(rows),
    )
    (ROOT / "docs/results/museum.md").write_text(text)
    print("\n".join(lines))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
