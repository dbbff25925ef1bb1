"""How many requests `rtdetrv4 serve` answers, and what it does when there are four times as many.

    python benchmarks/server.py weights.onnx --data my_data

Two servers of the same model, processes of their own: one for throughput, one as it starts by default. In turn, 16
clients ask the first one at once, one client asks it, and one client asks the second. A client sends a validation image
as it lies on the disk, waits for the answer, and sends the next. The result is the time per request of the 16 clients,
divided by that of the faster of both single ones; clients and servers share the machine.

Then requests come at four times the rate that the 16 clients reached, whether or not others have been answered, for
five minutes. Every answer must be a result or a 429. Memory is the median of the last fifth of that time, divided by
that of the second fifth; the first is left out, because buffers grow to what they need. Afterwards the server must be
ready, and as fast for one client as one that has just been started, in turn.

Without a model and data, a network with random weights is asked about drawn shapes. Expected: 8 minutes.
"""

from __future__ import annotations

import http.client
import itertools
import logging
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
from _deployed import case_of
from _measure import Results, Timing, arguments

CLIENTS = 16
TARGET = 0.667
"""1.5 times as many requests in the same time."""
OVERLOAD = 4
SENDERS = 160
"""Threads that send in overload; more than the server keeps waiting, so that refused requests are soon followed by
others."""
TIMEOUT_S = 60
MAX_GROWTH, MAX_SLOWER = 1.02, 1.2
HEADERS = {"Content-Type": "image/jpeg"}


class Asked(NamedTuple):
    """What came of requests."""

    seconds: float
    """From the first request to the last answer."""
    latencies_s: list[float]
    """Of those that got a result."""
    statuses: Counter[str]
    """All answers, by status or, where there was none, by the name of the error."""

    @property
    def per_request_s(self) -> float:
        """Time per result, with all clients together."""
        return self.seconds / max(len(self.latencies_s), 1)

    @property
    def facts(self) -> dict[str, float]:
        """What to write to the results."""
        latencies = np.array(self.latencies_s or [np.nan]) * 1000
        return {
            "requests_per_s": round(1 / self.per_request_s, 2),
            "p50_ms": round(float(np.percentile(latencies, 50)), 1),
            "p99_ms": round(float(np.percentile(latencies, 99)), 1),
            **{f"answers_{status}": count for status, count in sorted(self.statuses.items())},
        }


class ServerProcess:
    """`rtdetrv4 serve` in a process of its own.

    Args:
        model: an exported file.
        options: of the command line.
    """

    def __init__(self, model: Path, *options: str) -> None:
        program = str(Path(sys.executable).with_name("rtdetrv4"))
        command = [program] if Path(program).exists() else [sys.executable, "-m", "rtdetrv4.cli"]
        self._process = subprocess.Popen(
            [*command, "serve", str(model), "--port", "0", *options], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if found := re.search(r"^Serving at http://127.0.0.1:(\d+)", line):
                self.port = int(found[1])
                break
        else:
            raise RuntimeError("the server did not start")

    def resident_mib(self) -> float:
        """Memory of the process and of those that it started."""
        process = psutil.Process(self._process.pid)
        return sum(each.memory_info().rss for each in (process, *process.children(recursive=True))) / 2**20

    def is_ready(self) -> bool:
        """Whether it says that requests may come."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=TIMEOUT_S)
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait()


class Client:
    """Sends images over one connection, and notes what comes of them."""

    def __init__(self, port: int, images: Sequence[bytes]) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=TIMEOUT_S)
        self._images = itertools.cycle(images)
        self.latencies_s: list[float] = []
        self.statuses: Counter[str] = Counter()

    def ask(self) -> None:
        """Send one image and wait for the answer."""
        start = time.perf_counter()
        try:
            self._connection.request("POST", "/predict", next(self._images), HEADERS)
            response = self._connection.getresponse()
            response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self.statuses[type(error).__name__] += 1
            return
        self.statuses[str(response.status)] += 1
        if response.status == 200:
            self.latencies_s.append(time.perf_counter() - start)

    def close(self) -> None:
        """End the connection."""
        self._connection.close()


def clients_of(port: int, images: Sequence[bytes], count: int) -> list[Client]:
    """Clients that begin with different images."""
    return [Client(port, [*images[number:], *images[:number]]) for number in (n % len(images) for n in range(count))]


def run_all(clients: Sequence[Client], works: Sequence[threading.Thread], start: float) -> Asked:
    """Run threads, and gather what their clients noted."""
    for work in works:
        work.start()
    for work in works:
        work.join()
    seconds = time.perf_counter() - start
    for client in clients:
        client.close()
    latencies = [latency for client in clients for latency in client.latencies_s]
    return Asked(seconds, latencies, sum((client.statuses for client in clients), Counter()))


def ask_in_turn(port: int, images: Sequence[bytes], count: int, seconds: float) -> Asked:
    """Let some clients ask, each as soon as it has the answer to its last request."""
    clients = clients_of(port, images, count)
    start = time.perf_counter()

    def work(client: Client) -> None:
        while time.perf_counter() - start < seconds:
            client.ask()

    return run_all(clients, [threading.Thread(target=work, args=(client,)) for client in clients], start)


def ask_at_rate(port: int, images: Sequence[bytes], rate: float, seconds: float) -> Asked:
    """Send requests at a rate, whether or not earlier ones have been answered."""
    clients = clients_of(port, images, SENDERS)
    numbers = itertools.count()
    lock = threading.Lock()
    start = time.perf_counter()

    def work(client: Client) -> None:
        while True:
            with lock:
                due = start + next(numbers) / rate
            if due - start > seconds or time.perf_counter() - start > seconds:
                return
            time.sleep(max(due - time.perf_counter(), 0))
            client.ask()

    return run_all(clients, [threading.Thread(target=work, args=(client,)) for client in clients], start)


class Memory:
    """Watches the memory of a server."""

    def __init__(self, server: ServerProcess, every_s: float) -> None:
        self.mib: list[float] = []
        self._server = server
        self._every_s = every_s
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def close(self) -> None:
        """Stop watching."""
        self._is_over.set()
        self._thread.join()

    def fifth(self, number: int) -> float:
        """Median of a fifth of the time, counted from 0."""
        size = max(len(self.mib) // 5, 1)
        return statistics.median(self.mib[number * size :][:size] or self.mib[-1:])

    def _watch(self) -> None:
        while not self._is_over.wait(self._every_s):
            self.mib.append(self._server.resident_mib())


def timing(rounds: Sequence[Asked]) -> Timing:
    """Time per request."""
    values = [each.per_request_s for each in rounds]
    return Timing(statistics.median(values), min(values), max(values), len(values))


def joined(rounds: Sequence[Asked]) -> Asked:
    """All rounds as one."""
    latencies = [latency for each in rounds for latency in each.latencies_s]
    return Asked(sum(each.seconds for each in rounds), latencies, sum((each.statuses for each in rounds), Counter()))


def main() -> None:
    """Ask the servers."""
    parser = arguments(__doc__, repeats=5)
    parser.add_argument("model", nargs="?", type=Path, help="file of Detector.export; default: random weights")
    parser.add_argument("--data", type=Path, help="data set with the classes of the model")
    parser.add_argument("--round", type=float, default=10, help="seconds of a round (default: %(default)s)")
    parser.add_argument("--overload", type=float, default=300, help="seconds of overload (default: %(default)s)")
    parser.add_argument("--serve", default="", help="further options of the server for throughput: '--threads 2'")
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    repeats, round_s, overload_s = (1, 1, 5) if args.quick else (args.repeats, args.round, args.overload)
    results = Results("server", args)
    with tempfile.TemporaryDirectory() as name:
        case = case_of(args.model, args.data, Path(name), quick=args.quick)
        images = [(case.val.image_dir / record.info.file_name).read_bytes() for record in case.val.records]
        for_throughput = ("--hint", "throughput", *args.serve.split())
        processes: list[ServerProcess] = []
        try:
            processes.append(usual := ServerProcess(case.path))
            processes.append(server := ServerProcess(case.path, *for_throughput))
            many, one, one_usual = [], [], []
            for rounds in range(repeats + 1):
                measured = (
                    ask_in_turn(server.port, images, CLIENTS, round_s),
                    ask_in_turn(server.port, images, 1, round_s),
                    ask_in_turn(usual.port, images, 1, round_s),
                )
                if rounds:  # the first one warms up
                    for list_, each in zip((many, one, one_usual), measured, strict=True):
                        list_.append(each)
            singles = (timing(one), timing(one_usual))
            fastest = min(singles, key=lambda each: each.median)
            results.add(
                f"server, {CLIENTS} clients, time per request",
                timing(many).median / fastest.median,
                TARGET,
                clients_s=timing(many),
                one_client_s=singles[0],
                one_client_of_default_server_s=singles[1],
                clients=joined(many).facts,
                one_client=joined(one).facts,
                one_client_of_default_server=joined(one_usual).facts,
            )
            memory = Memory(server, overload_s / 100)
            over = ask_at_rate(server.port, images, OVERLOAD / timing(many).median, overload_s)
            memory.close()
            total = sum(over.statuses.values())
            proper = over.statuses["200"] + over.statuses["429"]
            title = f"server under {OVERLOAD} × its capacity"
            results.add(
                f"{title}, answers that are no result and no 429",
                (total - proper) / total,
                0,
                requests_per_s_asked=round(OVERLOAD / timing(many).median, 1),
                requests_per_s_sent=round(total / overload_s, 1),
                seconds=overload_s,
                answers=over.facts,
            )
            results.add(
                f"{title}, memory",
                memory.fifth(4) / memory.fifth(1),
                MAX_GROWTH,
                mib={f"fifth {number + 1}": round(memory.fifth(number), 1) for number in range(5)},
                most_mib=round(max(memory.mib), 1),
            )
            is_ready = server.is_ready()
            processes.append(fresh := ServerProcess(case.path, *for_throughput))
            after, of_fresh = [], []
            for rounds in range(repeats + 1):
                for list_, process in ((after, server), (of_fresh, fresh)):
                    asked = ask_in_turn(process.port, images, 1, round_s)
                    if rounds:
                        list_.append(asked)
            results.add(
                f"server after {OVERLOAD} × its capacity, time of a request",
                timing(after).median / timing(of_fresh).median if is_ready else float("inf"),
                MAX_SLOWER,
                is_ready=is_ready,
                after_s=timing(after),
                just_started_s=timing(of_fresh),
                after=joined(after).facts,
                just_started=joined(of_fresh).facts,
            )
        finally:
            for process in processes:
                process.close()
    results.note(model=case.metadata.model, image_size=case.metadata.image_size, images=len(images))
    results.save()


if __name__ == "__main__":
    main()
