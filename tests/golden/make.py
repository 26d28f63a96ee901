"""Writes one small file of each kind, and what qvec says of them: python make.py FOLDER.

``first/`` beside this script was written so by the last commit before the clean-up of the code,
4819f27, with its package on PYTHONPATH: ``git worktree add OLD 4819f27; PYTHONPATH=OLD python
tests/golden/make.py tests/golden/first``. ``said.jsonl`` there keeps what that code said of each
file. A new version of a format gets a new folder; these files stay as they are, for qvec reads
every file that it has ever written.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: sums differ with threads

NETWORK = "vit_tiny_patch16_224 --img-size 8 --model-arg patch_size=4 --model-arg embed_dim=8 \
--model-arg depth=1 --model-arg num_heads=2"
FAST = "--no-aug --lr 3e-2 --warmup-steps 2 --batch-size 8 --device cpu"

WRITTEN = f"""
finetune {NETWORK} --data bars -o base.st {FAST} --epochs 10
finetune base.st --data bars -o donor.st {FAST} --epochs 10 --metrics finetune.json
train-qat base.st --data bars -o donor_qat.st {FAST} --epochs 10 --bits 3 --metrics train-qat.json
finetune base.st --data spots -o receiver.st {FAST} --epochs 8
train-qat base.st --data spots -o own_qat.st {FAST} --epochs 8 --bits 3
extract donor.st donor_qat.st -o rho.st --metrics extract.json
extract receiver.st own_qat.st -o rho_own.st
moments donor.st --data bars -o moments.st --metrics moments.json
moments donor.st --data bars --rank 2 -o moments_rank.st
extract donor.st donor_qat.st --moments moments.st -o rho_m.st
combine rho.st rho_own.st --rule ties -o combined.st --metrics combine.json
patch receiver.st rho.st --lambda 0.75 -o patched.st --metrics patch.json
quantize patched.st --bits 3 -o packed.st --metrics quantize.json
quantize receiver.st --bits 4 --group-size 4 --asymmetric --scale-dtype float16 -o groups.st
quantize receiver.st --bits 2 --scale mse --fake -o fake.st
quantize receiver.st --bits 3 -o packed/
export packed.st --to timm -o timm/ --metrics export.json
quantize receiver.st --bits 2 --compare --data spots --metrics compare.json
eval receiver.st --data spots -o eval.json
sweep-lambda receiver.st rho.st --data spots --bits 3 --lambdas 0:1:0.5 -o sweep.json
sweep-lambda receiver.st rho.st rho_own.st --objective agreement --proxy bars --bits 3 \
--lambdas 0:1:0.5 -o agree.json
transfer grid.yaml --bits 3 --lambdas 0,1 --nulls random -o grid.jsonl
advise receiver.st --bits 3 --rho rho_m.st --proxy bars --proxy-samples 18 --refine 4 -o best.st \
--metrics advise.json
""".replace("\\\n", "")
"""The command lines that write the files."""

TRAINED = f"finetune base.st --data spots {FAST} --epochs 12"

READ = f"""
inspect donor.st --json
inspect donor_qat.st --json
inspect rho.st --json
inspect rho_m.st --json
inspect combined.st --json
inspect moments.st --json
inspect moments_rank.st --json
inspect patched.st --lineage --json
inspect patched.st --verify --json
inspect packed.st --json
inspect groups.st --json
inspect fake.st --json
inspect packed/ --json
inspect timm/model.safetensors --json
inspect receiver.st patched.st --json
eval donor.st --data bars --json
eval donor_qat.st --data bars --json
eval receiver.st --data spots --split val --json
eval patched.st --data spots --json
eval packed.st --data spots --json
eval groups.st --data spots --json
eval fake.st --data spots --json
eval packed/ --data spots --json
extract donor.st donor_qat.st --moments moments_rank.st -o new_rho.st --json
combine rho_m.st rho_own.st -o new_mean.st --json
patch receiver.st combined.st --lambda 0.5 -o new_patched.st --json
patch receiver.st rho.st --lambda sweep.json -o new_best.st --json
patch receiver.st rho_own.st --lambda agree.json -o new_agreed.st --json
quantize patched.st --bits 2 --scale mse --cross-grid -o new_w2.st --json
quantize receiver.st --bits 3 --symmetric --method gptq --moments moments.st -o new_whole.st --json
quantize receiver.st --bits 3 --symmetric --method gptq --moments moments_rank.st -o new_r.st --json
quantize receiver.st --bits 3 --symmetric --method gptq --moments rho_m.st -o new_carried.st --json
sweep-lambda receiver.st rho_m.st --data spots --bits 3 --lambdas 0,0.5 -o new_sweep.json --json
transfer grid.yaml --bits 3 --lambdas 0,1 --nulls random -o cut.jsonl --resume --json
{TRAINED} -o cut.st --resume --json
plot grid.jsonl -o new_heatmap.svg --json
plot grid.jsonl --figure curve --receiver spots -o new_curve.svg --json
plot sweep.json -o new_sweep.svg --json
plot agree.json -o new_agree.svg --json
plot quantize.json -o new_layers.svg --json
report grid.jsonl sweep.json agree.json eval.json quantize.json -o new_report.html --json
"""
"""The command lines whose answers are kept; they read what the others wrote."""

GRID = """
receivers:
  spots: {model: receiver.st, data: spots, qat: own_qat.st}
donors:
  bars: {rho: rho.st, model: donor.st}
  own: rho_own.st
base: base.st
"""

RUNS = {"timing", "environment", "images_per_second", "wall_s", "seconds", "version", "elapsed_s"}


def draw(folder: Path, *, across: bool) -> None:
    """Two classes of images of 8 x 8 pixels: a bright bar at the one or the other end."""
    from PIL import Image

    for split, count in (("train", 20), ("test", 10)):
        for place, name in enumerate(("near", "far")):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                level = 40 + 5 * (number + 7 * len(split)) % 90
                image = Image.new("RGB", (8, 8), (level, level // 2, 30))
                start = 5 * place + number % 2
                box = (start, 0, start + 2, 8) if across else (0, start, 8, start + 2)
                image.paste((170 - level // 2, 190, 200 - level), box)
                image.save(folder / split / name / f"{number:02d}.png")


def run(line: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command line, in this process."""
    from qvec_cli.cli.app import run as qvec

    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = qvec(shlex.split(line))
    return code, out.getvalue(), err.getvalue()


def must(line: str) -> str:
    """Stdout of a command line that ends well."""
    code, out, err = run(line)
    assert code == 0, f"{line}\n{err}"
    return out


def write_all() -> None:
    """Every file, in the working folder."""
    draw(Path("bars"), across=True)
    draw(Path("spots"), across=False)
    Path("grid.yaml").write_text(GRID)
    for line in filter(None, WRITTEN.splitlines()):
        must(line)
    whole = Path("grid.jsonl").read_bytes()
    Path("cut.jsonl.state").write_bytes(whole[: len(whole) * 2 // 3])
    cut_off(TRAINED + " -o cut.st", Path("cut.st.state"))


def cut_off(line: str, state: Path) -> None:
    """Starts a training and kills it as soon as it has saved its state."""
    command = [sys.executable, "-m", "qvec_cli", *shlex.split(line)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not state.exists():
        time.sleep(0.001)
    process.kill()
    process.wait()
    assert state.exists()
    assert not Path("cut.st").exists()


def answers() -> dict[str, Any]:
    """What each line of READ says, and the tensors of the files that it writes."""
    said = {}
    for line in filter(None, READ.splitlines()):
        out = must(line)
        words = shlex.split(line)
        path = Path(words[words.index("-o") + 1]) if "-o" in words else None
        said[line] = {
            "said": without_times(json.loads(out)),
            "tensors": tensors(path) if path and path.suffix == ".st" else None,
        }
    return said


def without_times(value: Any) -> Any:
    """A JSON value without what differs from run to run."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in RUNS}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def tensors(path: Path) -> dict[str, list[Any]]:
    """Type, shape and content of each tensor: integers by a digest, floats by three sums."""
    import numpy as np
    from safetensors.numpy import load_file

    return {name: [str(array.dtype), list(array.shape), *_content(np, array)]
            for name, array in sorted(load_file(path).items())}  # fmt: skip


def _content(np: Any, array: Any) -> list[Any]:
    if array.dtype.kind != "f":
        return [hashlib.sha256(array.tobytes()).hexdigest()[:16]]
    flat = array.astype(np.float64).reshape(-1)
    ramp = np.arange(1, flat.size + 1) / max(flat.size, 1)
    return [float(flat.sum()), float(np.abs(flat).sum()), float(flat @ ramp)]


if __name__ == "__main__":
    target = Path(sys.argv[1]).resolve()
    target.mkdir(parents=True)
    with contextlib.chdir(target):
        write_all()
    import shutil
    import tempfile

    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        shutil.copytree(target, name, dirs_exist_ok=True)
        said = answers()
    lines = [json.dumps({line: said[line]}, separators=(",", ":"), sort_keys=True) for line in said]
    (target / "said.jsonl").write_text("\n".join(lines) + "\n")
