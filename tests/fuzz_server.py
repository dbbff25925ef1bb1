"""Asks a server what its own documentation allows, and what it does not, and sends it damaged images.

    pip install schemathesis
    PYTHONPATH=tests python tests/fuzz_server.py --seconds 300

It serves the smallest exported model, without a token and with one, and lets schemathesis send requests that it makes
from `/openapi.json`. That fails if an answer is a 5xx, has a status, a type or a content that is not documented, or if
a request without the token is answered. One of its checks is left out, whether every documented request is accepted:
bytes at random are no image, and any text may be the name of a class. Because of that, whole images with a few changed
bytes follow, as bodies and in forms; each must get objects, or be refused in JSON.
"""

from __future__ import annotations

import argparse
import io
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from rtdetrv4.serving import Limits, Network, Service
from rtdetrv4.serving.access import Access
from rtdetrv4.serving.model import KINDS
from running_server import Client, form, running, write_color_model

TOKEN = "a-token-of-some-length"
LEFT_OUT = "positive_data_acceptance"
LIMITS = Limits(body_s=2, timeout_s=5)
SETTINGS = """[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "408", "413", "415", "422", "429", "431"]
"""
"""Of schemathesis, whose own list has not all ways to refuse something."""


def ask_by_schema(client: Client, token: str | None, seconds: int, folder: Path) -> bool:
    """Let schemathesis ask, and return whether it is content."""
    (folder / "schemathesis.toml").write_text(SETTINGS)
    program = shutil.which("schemathesis", path=str(Path(sys.executable).parent)) or "schemathesis"
    command = [program, "run", f"http://127.0.0.1:{client.port}/openapi.json", "--checks", "all"]
    command += ["--exclude-checks", LEFT_OUT, "--max-time", str(seconds), "--seed", "0", "--no-color"]
    if token is not None:
        command += ["--header", f"Authorization: Bearer {token}"]
    return subprocess.run(command, cwd=folder).returncode == 0


def send_damaged_images(client: Client, seconds: int) -> bool:
    """Send images with changed bytes, and return whether every answer was a proper one."""
    choose = random.Random(0)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    files: list[bytes] = []
    for kind in KINDS:
        buffer = io.BytesIO()
        try:
            Image.fromarray(pixels).save(buffer, kind)
        except KeyError:  # this Pillow does not write it
            continue
        files.append(buffer.getvalue())
    statuses: Counter[int] = Counter()
    wrong = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        body, kind = damaged(choose.choice(files), choose), "application/octet-stream"
        if choose.random() < 0.5:
            body, kind = form([("image", body)] * choose.randint(1, 3))
            if choose.random() < 0.3:
                body = damaged(body, choose)
        query = choose.choice(("", "slice=32", "format=image", "format=png"))
        answer = client.ask("POST", f"/predict?{query}", body, {"Content-Type": kind})
        statuses[answer.status] += 1
        if answer.status not in (200, 400, 413, 422) or (answer.status != 200 and not answer.error["what"]):
            wrong += 1
            print(f"status {answer.status}: {answer.body[:200]!r} for {body[:60]!r}…")
    print(f"damaged images: {dict(sorted(statuses.items()))}, {wrong} wrong", flush=True)
    return not wrong


def damaged(data: bytes, choose: random.Random) -> bytes:
    """The data with a few bytes changed, cut out or repeated."""
    changed = bytearray(data)
    for _ in range(choose.randint(1, 6)):
        place = choose.randrange(len(changed))
        how = choose.random()
        if how < 0.6:
            changed[place] = choose.choice((0, 255, changed[place] ^ (1 << choose.randrange(8)), choose.randrange(256)))
        elif how < 0.8:
            del changed[place : place + choose.choice((1, 4, 100))]
        else:
            changed[place:place] = changed[place : place + choose.choice((1, 4, 100))]
        if not changed:
            return b"x"
    return bytes(changed)


def main() -> int:
    """Fuzz a server without a token, and one with."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=120, help="for each of three parts (default: %(default)s)")
    seconds = parser.parse_args().seconds
    is_well = True
    with tempfile.TemporaryDirectory() as folder:
        network = Network.of_file(write_color_model(Path(folder) / "color.onnx"), max_batch=4)
        for access in (Access(), Access(token=TOKEN, hosts=None)):
            with running(Service({"color": network, "other": network}, limits=LIMITS), access) as client:
                is_well &= ask_by_schema(client, access.token, seconds, Path(folder))
                if access.token is None:
                    is_well &= send_damaged_images(client, seconds)
                is_well &= client.get("/health").status == 200
    print("all is well" if is_well else "something is wrong, see above")
    return not is_well


if __name__ == "__main__":
    sys.exit(main())
