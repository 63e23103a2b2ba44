"""Runs a command and measures its whole process tree from outside, in the same way for every loader."""

import json
import os
import signal
import subprocess
import threading
import time

TICK = os.sysconf("SC_CLK_TCK")
PERIOD = 0.05  # seconds between two samples
SHARE = 0.05  # maximum share of one core for measuring memory


class Tree:
    """A process and its descendants: their CPU time, including ended ones, and their memory."""

    def __init__(self, root):
        self.root, self.cpu, self.alive = root, {}, [root]

    def find(self):
        """Finds the current processes of the tree in one walk over all processes."""
        children = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if (stat := self.stat(pid)) is not None:
                children.setdefault(int(stat[1]), []).append(int(pid))
        self.alive = [self.root]
        for pid in self.alive:
            self.alive.extend(children.get(pid, ()))

    @staticmethod
    def stat(pid):
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:
                return file.read().rpartition(b") ")[2].split()
        except OSError:
            return None

    def cpu_seconds(self):
        for pid in self.alive:
            if (stat := self.stat(pid)) is not None:
                self.cpu[pid] = (int(stat[11]) + int(stat[12])) / TICK
        return sum(self.cpu.values())

    def memory(self):
        """Pss, and what of it is anonymous or shared memory (and not a mapped file), in MiB."""
        pss = own = 0
        for pid in self.alive:
            try:
                with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
                    fields = {line.split()[0]: int(line.split()[1]) for line in file.readlines()[1:]}
            except (OSError, IndexError):
                continue
            pss += fields.get(b"Pss:", 0)
            own += fields.get(b"Pss_Anon:", 0) + fields.get(b"Pss_Shmem:", 0)
        return pss / 1024, own / 1024


def run(command, env=None, timeout=600, has_window=True):
    """The measures of one run, or `{"error": why}`. The run's last JSON line marks the end of its measured window."""
    started = time.monotonic()
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env, start_new_session=True, text=True
    ) as process:
        tree, lines, errors = Tree(process.pid), [], []
        lock = threading.Lock()  # two threads look at the tree

        def cpu():
            with lock:
                return tree.cpu_seconds()

        def read():
            for line in process.stdout:
                if line.startswith("{"):
                    lines.append((time.monotonic(), cpu(), json.loads(line)))

        threads = [
            threading.Thread(target=read, daemon=True),
            threading.Thread(target=lambda: errors.extend(process.stderr), daemon=True),
        ]
        for thread in threads:
            thread.start()
        samples, peak, walked, looking, next_look = [(started, 0.0)], (0.0, 0.0), 0.0, 0.0, 0.0
        timed_out, looks = False, 0
        while True:
            # Its end is seen without reaping it, so that its resource use can be asked for.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                break
            now = time.monotonic()
            if now - started > timeout:
                timed_out = True
                break
            if now - walked > 0.25:
                with lock:
                    tree.find()
                walked = now
            samples.append((time.monotonic(), cpu()))
            if now >= next_look:
                before = time.thread_time()
                peak = tuple(map(max, peak, tree.memory()))  # the two peaks need not fall together
                took = time.thread_time() - before
                looking, looks, next_look = looking + took, looks + 1, now + max(PERIOD, took / SHARE)
            time.sleep(PERIOD if now - started > 0.5 else 0.02)
        try:
            os.killpg(process.pid, signal.SIGKILL)  # what a run has left behind, or a run that hangs
        except OSError:
            pass
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - started
        for thread in threads:
            thread.join(5)
    if timed_out:
        return {"error": f"took more than {timeout} s"}
    if process.returncode or not lines:
        return {"error": (errors[-1].strip() if errors else f"exit code {process.returncode}")[:200]}

    ended, cpu_at_end, report = lines[-1]
    if not has_window:
        return report
    began = ended - report["seconds"]
    first = report.get("first_batch_s", lines[0][0] - started)
    window_cpu = cpu_at_end - interpolate(samples, began)
    return {
        "images": report["images"],
        "seconds": report["seconds"],
        "images_per_s": report["images"] / report["seconds"],
        "window_cpu_s": window_cpu,
        "images_per_cpu_s": report["images"] / window_cpu,
        "first_batch_s": first,
        "peak_pss_mib": peak[0],
        "peak_own_mib": peak[1],
        "wall_s": wall,
        # Of the tree: what was waited for, or what was seen of it where that is more.
        "cpu_s": max(usage.ru_utime + usage.ru_stime, sum(tree.cpu.values())),
        "looking_s": looking,
        "looks": looks,
    }


def interpolate(samples, when):
    for (t0, cpu0), (t1, cpu1) in zip(samples, samples[1:]):
        if t0 <= when <= t1:
            return cpu0 + (cpu1 - cpu0) * (when - t0) / (t1 - t0)
    return samples[-1][1]
