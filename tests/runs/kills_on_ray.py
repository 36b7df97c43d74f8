"""`kills.py` on a cluster of Ray's: three machines, of which two work, all of them on this one.

    python tests/runs/kills_on_ray.py --kills 100 [--real] [--seed 0]

Whom: the process that was started, alone or with its group; the process of a cell; that of Ray's which has made it; a
machine, by its raylet, in whose place another comes. Now and then the cluster is begun by the run itself.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.runs import kills

SMALL = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
# By themselves Ray's processes are so nice (15) that beside two others which are busy they hardly run.
EVEN = {"RAY_worker_niceness": "0"}


def cluster(machines: int, **settings):
    """One that begins with so many machines of a core, beside its head, which has none.

    It is shut down when its process ends.
    """
    os.environ.update(RAY_USAGE_STATS_ENABLED="0", **EVEN)
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **SMALL})
    for _ in range(machines):
        made.add_node(num_cpus=1, **SMALL, **settings)
    return made


def servants(mark: str) -> list[int]:
    """The processes of Ray's that have made those in which cells run."""
    found = []
    for process in kills.workers(mark):
        try:
            parent = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1]
            if Path(f"/proc/{parent}/cmdline").read_bytes().startswith(b"ray::"):
                found.append(int(parent))
        except OSError:
            continue
    return found


def command(process: int) -> bytes:
    """Its command line; nothing of one that has ended."""
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes()
    except OSError:
        return b""


class RayKiller(kills.Killer):
    """Kills boards on a cluster."""

    whom = ("parent", "group", "worker", "servant", "machine")

    def __init__(self, folder: Path, made, *, real: bool, seed: int, here: float = 0.1) -> None:
        self._cluster = made
        self._machines = [node for node in made.list_all_nodes() if not node.head]
        self._here = here
        super().__init__(folder, real=real, seed=seed)

    def _options(self) -> tuple[str, str]:
        return "--ray", "local" if self.random.random() < self._here else self._cluster.address

    def _said(self, options: tuple[str, str]) -> str:
        return "a cluster that it begins" if options[1] == "local" else "a cluster"

    def _kill(self, process, whom: str) -> str:
        if whom in ("servant", "machine"):
            how = self.random.choice((signal.SIGTERM, signal.SIGKILL))
            deadline = time.monotonic() + 20
            while not (found := servants(self._mark)) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(self.random.uniform(0.0, self._seconds))
            if process.poll() is not None or not found:
                return ""
            try:
                if whom == "servant":
                    os.kill(self.random.choice(found), how)
                else:
                    self._replace(self.random.choice(self._machines), how)
            except ProcessLookupError:
                return ""
            return how.name
        return super()._kill(process, whom)

    def _left(self) -> list[int]:
        """But for Ray's own, whose time is up when all boards have been killed."""
        ours = (process for process in kills.marked(self._mark) if b"/site-packages/ray/" not in command(process))
        return [process for process in ours if not command(process).startswith(b"ray::")]

    def see_that_ray_has_ended(self) -> None:
        """Of clusters that were begun by runs."""
        deadline = time.monotonic() + 60
        while left := kills.marked(self._mark):
            if time.monotonic() > deadline:
                self._say(f"processes of Ray's are left: {list(map(command, left))}")
                return
            time.sleep(0.5)

    def _replace(self, machine, how: signal.Signals) -> None:
        self._machines.remove(machine)
        self._cluster.remove_node(machine, allow_graceful=how == signal.SIGTERM)
        self._machines.append(self._cluster.add_node(num_cpus=1, **SMALL))


def main() -> int:
    options = kills.parser(__doc__).parse_args()
    made = cluster(2)
    try:
        with tempfile.TemporaryDirectory() as folder:
            killer = RayKiller(Path(folder), made, real=options.real, seed=options.seed)
            code = kills.kill(killer, options.kills)
            killer.see_that_ray_has_ended()
            return 1 if killer.wrong else code
    finally:
        made.shutdown()


if __name__ == "__main__":
    sys.exit(main())
