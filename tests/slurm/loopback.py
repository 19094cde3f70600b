"""A whole Slurm on this machine's loopback interface: controller, one node, authentication, in a folder of its own.

``python tests/slurm/loopback.py COMMAND...`` runs a command beside it; without a command it says whether it could.
It needs Debian's slurmctld, slurmd, slurm-client and munge, no root, no service and no file outside its folder.
"""

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo", "setpriv")
PACKAGES = "slurmctld slurmd slurm-client munge util-linux"
CONFIGURATION = """
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller_port}
SlurmdPort={node_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
KillWait=3
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SlurmdParameters=config_overrides
NodeName=loop NodeHostname={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=16000 State=UNKNOWN
PartitionName=main Nodes=loop Default=YES MaxTime=INFINITE State=UP
"""


def _find(program):
    return shutil.which(program, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def missing():
    """Why Slurm cannot be started here; empty where it can."""
    absent = [program for program in PROGRAMS if _find(program) is None]
    return f"Slurm is not installed ({', '.join(absent)} not found): apt-get install {PACKAGES}" if absent else ""


def _free_ports(n):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class LoopbackSlurm:
    """Slurm with one node of `cpus` cores; `environment` makes its commands talk to it."""

    def __init__(self, cpus=2):
        self.folder = Path(tempfile.mkdtemp(prefix="nafld-slurm-", dir="/tmp"))  # a socket's path must be short
        self.folder.chmod(0o711)  # munge refuses a socket that others could not reach
        self.processes = []
        for name in ("state", "spool"):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(1024))
        controller_port, node_port = _free_ports(2)
        text = CONFIGURATION.format(
            folder=self.folder,
            host=socket.gethostname().split(".")[0],
            user=pwd.getpwuid(os.getuid()).pw_name,
            controller_port=controller_port,
            node_port=node_port,
            cpus=cpus,
        )
        (self.folder / "slurm.conf").write_text(text)
        self.environment = {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def start(self):
        """Start the daemons and wait until the node is idle."""
        files = {name: self.folder / f"munge{end}" for name, end in
                 {"key-file": ".key", "socket": ".socket", "pid-file": ".pid", "log-file": ".log", "seed-file": ".seed"}
                 .items()}  # fmt: skip
        self._spawn("munged", "--foreground", "--num-threads=4", *(f"--{k}={path}" for k, path in files.items()))
        self._wait(lambda: files["socket"].exists(), "munged made no socket")
        self._spawn("slurmctld", "-D")
        self._spawn("slurmd", "-D")
        self._wait(lambda: self("sinfo", "-h", "-o", "%T", check=False).strip() == "idle", "the node is not idle")
        return self

    def __call__(self, program, *arguments, check=True):
        """Run one of Slurm's commands; its output."""
        command = [_find(program), *map(str, arguments)]
        return subprocess.run(command, env=self._env(), capture_output=True, text=True, check=check, timeout=60).stdout

    def stop(self):
        """End every job and daemon, and remove the folder."""
        with contextlib.suppress(subprocess.SubprocessError, RuntimeError):
            self("scancel", "--full", "--signal=KILL", *self("squeue", "-h", "-o", "%A").split())
            self._wait(lambda: not self("squeue", "-h", "-o", "%A").split(), "jobs are left", seconds=10)
        for process in reversed(self.processes):
            process.terminate()
        for process in reversed(self.processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _env(self):
        return {**os.environ, **self.environment}

    def _spawn(self, program, *arguments):
        with open(self.folder / f"{program}.out", "wb") as out:
            # a test run that is killed takes its daemons with it
            command = [_find("setpriv"), "--pdeathsig", "TERM", "--", _find(program), *arguments]
            self.processes.append(
                subprocess.Popen(command, env=self._env(), stdout=out, stderr=out, start_new_session=True)
            )

    def _wait(self, condition, fault, seconds=30):
        until = time.monotonic() + seconds
        while not condition():
            ended = [process.args[0] for process in self.processes if process.poll() is not None]
            if ended or time.monotonic() > until:
                logs = "\n".join(f"{p.name}: {p.read_text()[-1500:]}" for p in sorted(self.folder.glob("*.out")))
                raise RuntimeError(f"{fault}, ended: {ended}\n{logs}")
            time.sleep(0.1)


@contextlib.contextmanager
def loopback(cpus=2):
    """A running Slurm for the length of a with statement."""
    slurm = LoopbackSlurm(cpus)
    try:
        yield slurm.start()
    finally:
        slurm.stop()


def main(command):
    fault = missing()
    if fault or not command:
        print(fault or "Slurm can be started here")
        return 1 if fault else 0
    with loopback() as slurm:
        return subprocess.run(command, env={**os.environ, **slurm.environment}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
