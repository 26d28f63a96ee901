"""Runs every command on the tiny example and keeps what it left: python tests/behaviour.py -h.

``record FILE`` writes what each command line printed, and the sha256 of each file that it wrote
(JSON and JSON lines without times, environment and paths). ``compare FILE`` runs the same lines
again and prints what differs. So a change that is to keep behaviour can show that it did; what it
changes on purpose shows too.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: sums differ with threads

ROOT = Path(__file__).parents[1]
TIMES = {"timing", "environment", "images_per_second", "elapsed_s", "wall_s", "seconds", "version"}

LINES = """
finetune base.st --data images/greek --recipe r.yaml -o donor.st --metrics donor.json
train-qat base.st --data images/greek --recipe r.yaml --bits 2 -o donor_qat.st
finetune base.st --data images/digits --recipe r.yaml -o receiver.st
train-qat base.st --data images/digits --recipe r.yaml --bits 2 -o own_qat.st
finetune base.st --data images/digits --recipe r.yaml -o planned.st --dry-run
extract donor.st donor_qat.st -o rho.st --metrics extract.json
moments donor.st --data images/greek --samples 32 -o moments.st --metrics moments.json
moments donor.st --data images/greek --rank 8 -o moments_rank.st
extract donor.st donor_qat.st --moments moments.st -o rho_m.st
extract receiver.st own_qat.st -o rho_own.st
combine rho_m.st rho_own.st -o mean.st --metrics mean.json
combine rho_m.st rho_own.st --rule ties -o ties.st
combine rho_m.st rho_own.st --rule dare -o dare.st
combine rho_m.st rho_own.st --fit --receiver receiver.st --proxy images/greek -o fitted.st
patch receiver.st rho.st --lambda 1 -o patched.st --metrics patch.json
patch receiver.st rho.st --lambda 0 -o same.st
patch receiver.st rho.st --lambda 1 -o planned.st --dry-run
patch receiver.st rho.st --lambda auto --proxy images/greek -o auto.st
quantize receiver.st --bits 2 -o w2.st --metrics quantize.json
quantize receiver.st --bits 3 --scale mse -o w3mse.st
quantize receiver.st --bits 3 --scale mse-full --group-size 64 -o w3g.st
quantize receiver.st --bits 4 --scale hqq --asymmetric --scale-dtype float16 -o w4a.st
quantize receiver.st --bits 2 --granularity tensor --fake -o fake.st
quantize receiver.st --bits 3 -o w3/
quantize receiver.st --bits 2 --method gptq --scale mse-full --calib images/greek -o gptq.st
quantize receiver.st --bits 2 --method gptq --target float --calib images/greek -o gptqf.st
quantize receiver.st --bits 2 --method awq --calib noise --bias-correction -o awq.st
quantize receiver.st --bits 2 --method gptq --moments rho_m.st --bias-correction -o gptqm.st
quantize receiver.st --bits 2 --anchor rho.st --refine 4 --proxy images/greek -o refined.st
quantize receiver.st --bits 2 --compare --data images/digits --split val --metrics grids.json
quantize receiver.st --bits 3 -o planned.st --dry-run
export w3g.st -o w3g.onnx --metrics export.json
export w3g.st -o timm/ --to timm
eval receiver.st --data images/digits -o fp_eval.json
eval w2.st --data images/digits -o w2_eval.json
eval w3/ --data images/digits --split val
eval w4a.st --data images/digits -o w4a_eval.json
sweep-lambda receiver.st rho.st --data images/digits --bits 2 --lambdas 0:1:0.5 -o sweep.json
sweep-lambda receiver.st rho.st rho_own.st --objective agreement --proxy images/greek \
--data images/digits --bits 2 --lambdas 0:1:0.5 -o agree.json
patch receiver.st rho.st --lambda sweep.json -o best.st
transfer grid.yaml --bits 2 --lambdas 0,1 --nulls random,shuffle -o grid.jsonl
transfer grid.yaml --bits 2 --lambdas 0,1 --nulls random,shuffle -o grid.jsonl --resume
transfer grid.yaml --bits 2 --lambdas 0,1 --proxy images/greek -o agreed.jsonl
transfer grid.yaml --bits 2 --lambdas 0,1 -o planned.jsonl --dry-run
advise receiver.st --bits 2 --rho rho_m.st --proxy images/greek --proxy-samples 64 --refine 4 \
--data images/digits -o advised.st --metrics advise.json
inspect receiver.st
inspect rho_m.st
inspect w3/
inspect w4a.st --json
inspect moments.st
inspect best.st --lineage
inspect patched.st --verify
inspect receiver.st patched.st
plot grid.jsonl -o heatmap.svg
plot grid.jsonl --figure curve --receiver digits -o curve.svg
plot grid.jsonl --figure plane -o plane.svg
plot sweep.json -o sweep.svg
plot w2_eval.json -o bars.svg
plot quantize.json -o layers.svg
report grid.jsonl sweep.json agree.json fp_eval.json quantize.json -o report.html
extract donor_qat.st donor.st -o x.st
patch receiver.st donor.st -o x.st
quantize receiver.st --bits 3 --group-size 24 -o x.st
quantize w2.st --bits 3 -o x.st
eval donor.st --data images/digits
eval receiver.st --data images/digits --split tset
finetune vit_tiny_patch16_225 --data images/greek -o x.st
quantize receiver.st --bits 2 -o w2.st
advise receiver.st --bits 2 --proxy nowhere
""".replace("\\\n", "")

GRID = """
receivers:
  digits: {model: receiver.st, data: images/digits, qat: own_qat.st}
donors:
  greek: {rho: rho.st, model: donor.st}
  own: rho_own.st
base: base.st
"""


def prepare(folder: Path) -> None:
    """The base, the images, a recipe of one epoch and a grid file, in a folder."""
    tiny = ROOT / "examples" / "tiny"
    command = [sys.executable, tiny / "images.py", folder / "images", "--tasks", "digits", "greek"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    shutil.copy(tiny / "base.st", folder)
    recipe = re.sub(r"epochs: \d+", "epochs: 1", (tiny / "recipe.yaml").read_text())
    (folder / "r.yaml").write_text(recipe)
    (folder / "grid.yaml").write_text(GRID)


def without_times(value: Any) -> Any:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def kept(path: Path) -> Any:
    """What is kept of a file: JSON itself, else the sha256 of its bytes."""
    if path.suffix in {".json", ".jsonl"}:
        with contextlib.suppress(json.JSONDecodeError):
            texts = [path.read_text()] if path.suffix == ".json" else path.read_text().splitlines()
            return without_times([json.loads(text) for text in texts])
    return hashlib.sha256(path.read_bytes()).hexdigest()


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its inode and time."""
    listed = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path.stat() for path in listed}
    return {
        name: (stat.st_ino, stat.st_mtime_ns)
        for name, stat in names.items()
        if not name.startswith("images/")
    }


def scrubbed(text: str) -> list[str]:
    """What was printed, without speeds and times."""
    text = re.sub(r"images/s: [\d,.]+|\"(peak_rss_bytes|wall_s)\": [\d.]+", "#", text)
    return re.sub(r"\b[\d.]+ (s|min|h)\b", "# s", text).splitlines()


def record() -> dict[str, Any]:
    """Runs all lines and returns what each left."""
    from qvec_cli.cli.app import run

    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        prepare(folder)
        for line in filter(None, LINES.splitlines()):
            before = files(folder)
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                code = run(shlex.split(line))
            new = {name: kept(folder / name) for name, at in files(folder).items()
                   if before.get(name) != at}  # fmt: skip
            print(code, line, file=sys.stderr, flush=True)
            texts = {"stdout": scrubbed(out.getvalue()), "stderr": scrubbed(err.getvalue())}
            results[line] = {"code": code, **texts, "files": new}
    return results


def differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """A line for each thing that differs, and the lines of texts and JSON that do."""
    lines: list[str] = []
    for command in dict.fromkeys([*old, *new]):
        if command not in old or command not in new:
            lines.append(f"{command}: only in the {'old' if command in old else 'new'} run")
        elif old[command] != new[command]:
            texts = (json.dumps(run[command], indent=1, sort_keys=True) for run in (old, new))
            before, after = (text.splitlines() for text in texts)
            lines += [
                command,
                *(f"    {line}" for line in difflib.unified_diff(before, after, n=0)),
            ]
    return lines


def main() -> int:
    """0 where nothing differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("verb", choices=["record", "compare"])
    parser.add_argument("file", type=Path)
    asked = parser.parse_args()
    results = json.loads(json.dumps(record()))
    if asked.verb == "record":
        asked.file.write_text(json.dumps(results, indent=1, sort_keys=True))
        return 0
    lines = differences(json.loads(asked.file.read_text()), results)
    print(*(lines or ["nothing differs"]), sep="\n")
    return int(bool(lines))


if __name__ == "__main__":
    sys.exit(main())
