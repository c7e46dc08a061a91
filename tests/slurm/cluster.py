"""A real Slurm cluster on this machine: munge, MariaDB, slurmdbd, slurmctld and four slurmd.

It lives in namespaces of its own (``make test-slurm``): /etc/slurm, the network and the process
numbers are private, so that it meets no Slurm of the machine's, and the kernel ends whatever its
own orderly end leaves.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

NODES = ("n1", "n2", "n3", "n4")
GPUS_PER_NODE = 2
# What the nodes claim; with config_overrides Slurm does not hold it against the machine.
CPUS, MEMORY_MB = 16, 64_000
# Jobs of the urgent partition take the nodes of the other's, which wait and start again.
ACCOUNT, PARTITION, URGENT = "lab", "gpu", "urgent"
# Its time limit is below every job's.
BRIEF = "brief"
CONF = Path("/etc/slurm")
COMMANDS = (
    "ip",
    "munged",
    "mariadbd",
    "mariadb-install-db",
    "slurmdbd",
    "slurmctld",
    "slurmd",
    "sacctmgr",
    "sbatch",
)
# A requeued job waits until the credential of its first try has expired; Slurm's default is 120.
CREDENTIAL_S = 10
START_S = 60.0
END_S = 15.0


class Cluster:
    """The daemons, each a child of this process, and their configuration.

    Args:
        folder: an empty folder for their configuration, state and logs.

    Raises:
        RuntimeError: with the daemon's last lines, if one does not come up.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.daemons: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: list[IO[bytes]] = []
        self.slurmdbd_port, self.slurmctld_port, self.slurmd_port = 6819, 6817, 17001
        self.starts = 0

    def start(self) -> None:
        """Bring everything up, in the order in which one needs the other."""
        raise_loopback()
        self._configure()
        self._start_munge()
        self._start_database()
        self._start("slurmdbd", "slurmdbd", "-D")
        self._until(
            "slurmdbd", lambda: answers("sacctmgr", "-i", "add", "cluster", "test"), "sacctmgr"
        )
        run("sacctmgr", "-i", "add", "account", ACCOUNT, "cluster=test")
        run("sacctmgr", "-i", "add", "user", "root", f"account={ACCOUNT}", "cluster=test")
        self._start_slurm()

    @contextlib.contextmanager
    def configured(self, *changes: tuple[str, str], gres: bool = True) -> Iterator[None]:
        """Slurm started again with another slurm.conf inside, and with its own after.

        Args:
            changes: text of slurm.conf, and what takes its place.
            gres: whether nodes have GPUs as Slurm knows them.
        """
        if not gres:
            changes += ("GresTypes=gpu", ""), (f"Gres=gpu:{GPUS_PER_NODE}", "")
            changes += (("AccountingStorageTRES=gres/gpu", ""),)
        try:
            self._restart_slurm(changes, gres=gres)
            yield
        finally:
            self._restart_slurm()

    def _restart_slurm(self, changes: Sequence[tuple[str, str]] = (), *, gres: bool = True) -> None:
        for name in ("slurmctld", *(f"slurmd-{node}" for node in NODES)):
            self.end(name)
        conf = self._slurm_conf()
        for before, after in changes:
            assert before in conf, before
            conf = conf.replace(before, after)
        (CONF / "slurm.conf").write_text(conf)
        (CONF / "gres.conf").write_text(self._gres_conf() if gres else "")
        self._start_slurm()

    def _start_slurm(self) -> None:
        """Start its daemons, which know of no earlier job."""
        self._start("slurmctld", "slurmctld", "-D", "-c")
        for node in NODES:
            self.start_node(node)
        self._until("slurmctld", lambda: len(nodes_in("idle")) == len(NODES), "idle nodes")

    def start_node(self, node: str) -> None:
        """Start the slurmd of one node."""
        self._start(f"slurmd-{node}", "slurmd", "-D", "-N", node)

    def end(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End one daemon by its process id, and wait until it is gone."""
        daemon = self.daemons.pop(name)
        daemon.send_signal(number)
        try:
            daemon.wait(END_S)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def stop(self) -> None:
        """End the jobs, then every daemon, the last started first."""
        if "slurmctld" in self.daemons:
            with contextlib.suppress(RuntimeError):
                run("scancel", "--user=root")
        for name in reversed(list(self.daemons)):
            self.end(name)
        for log in self._logs:
            log.close()
        subprocess.run(["umount", str(CONF)], check=False)

    def _start(self, name: str, *command: str) -> None:
        log = (self.folder / f"{name}.log").open("ab")
        self._logs.append(log)
        self.daemons[name] = subprocess.Popen(command, stdout=log, stderr=log)

    def _until(self, name: str, there: object, what: str) -> None:
        assert callable(there)
        deadline = time.monotonic() + START_S
        while not there():
            log = (self.folder / f"{name}.log").read_text(errors="replace")
            if self.daemons[name].poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{name}: no {what}; its log ends\n{log[-3000:]}")
            time.sleep(0.1)

    def _start_munge(self) -> None:
        key = self.folder / "munge/munge.key"
        key.parent.mkdir(mode=0o700)
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o600)
        # Its socket must be reachable by all: not inside the folder of the key.
        self._start(
            "munged",
            *("munged", "--foreground", f"--key-file={key}"),
            *(f"--socket={self.folder / 'munge.socket'}", "--num-threads=2"),
            *(f"--pid-file={key.with_name('pid')}", f"--seed-file={key.with_name('seed')}"),
        )
        self._until("munged", (self.folder / "munge.socket").exists, "socket")

    def _start_database(self) -> None:
        data = self.folder / "database"
        common = ["--no-defaults", f"--datadir={data}", "--user=root"]
        run(
            "mariadb-install-db",
            *common,
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
        )
        self._start(
            "mariadbd",
            *("mariadbd", *common, f"--socket={self.folder / 'database.socket'}"),
            *("--bind-address=127.0.0.1", "--port=3306", "--skip-name-resolve"),
            # Nothing here outlives the tests, so nothing waits for the disk.
            *("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M"),
        )
        self._until("mariadbd", lambda: listens(3306), "port")

    def _configure(self) -> None:
        conf = self.folder / "conf"
        devices = self.folder / "devices"
        for folder in (conf, devices, *(self.folder / f"state/{n}" for n in (*NODES, "ctld"))):
            folder.mkdir(parents=True)
        for index in range(GPUS_PER_NODE):
            # Slurm wants device files; /dev/null's numbers are as good as a GPU's to it.
            os.mknod(devices / f"nvidia{index}", 0o600 | 0o020000, os.makedev(1, 3))
        (conf / "slurm.conf").write_text(self._slurm_conf())
        (conf / "gres.conf").write_text(self._gres_conf())
        slurmdbd = conf / "slurmdbd.conf"
        slurmdbd.write_text(self._slurmdbd_conf())
        slurmdbd.chmod(0o600)
        run("mount", "--bind", str(conf), str(CONF))

    def _gres_conf(self) -> str:
        files = f"{self.folder}/devices/nvidia[0-{GPUS_PER_NODE - 1}]"
        return f"NodeName=n[1-{len(NODES)}] Name=gpu File={files}\n"

    def _slurm_conf(self) -> str:
        last = len(NODES)
        self.starts += 1
        ports = f"[{self.slurmd_port}-{self.slurmd_port + last - 1}]"
        return f"""\
ClusterName=test
# No number of an earlier start, which accounting knows, is given again.
FirstJobId={1000 * self.starts}
SlurmctldHost=localhost
SlurmctldPort={self.slurmctld_port}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket,cred_expire={CREDENTIAL_S}
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={self.slurmdbd_port}
AccountingStoragePass={self.folder}/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
AccountingStorageEnforce=limits
JobAcctGatherType=jobacct_gather/none
EnforcePartLimits=ALL
JobRequeue=1
SlurmdParameters=config_overrides
SlurmdPort={self.slurmd_port}
ReturnToService=2
MinJobAge=3600
KillWait=20
MessageTimeout=60
SlurmdTimeout=20
InactiveLimit=0
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,bf_interval=1
StateSaveLocation={self.folder}/state/ctld
SlurmdSpoolDir={self.folder}/state/%n
SlurmctldPidFile={self.folder}/state/slurmctld.pid
SlurmdPidFile={self.folder}/state/%n.pid
SlurmctldLogFile={self.folder}/slurmctld.log
SlurmdLogFile={self.folder}/slurmd-%n.log
NodeName=n[1-{last}] NodeHostname=localhost NodeAddr=127.0.1.[1-{last}] Port={ports} \
CPUs={CPUS} RealMemory={MEMORY_MB} Gres=gpu:{GPUS_PER_NODE} State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName={PARTITION} Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName={URGENT} Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
PartitionName={BRIEF} Nodes=ALL MaxTime=1 State=UP PriorityTier=1
"""

    def _slurmdbd_conf(self) -> str:
        return f"""\
AuthType=auth/munge
AuthInfo=socket={self.folder}/munge.socket
DbdHost=localhost
DbdPort={self.slurmdbd_port}
SlurmUser=root
LogFile={self.folder}/slurmdbd.log
PidFile={self.folder}/state/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=3306
StorageUser=root
StorageLoc=slurm_acct_db
"""


def why_not_here() -> str:
    """Why no cluster can be brought up here; empty if one can."""
    if os.environ.get("SHARDMARK_PRIVATE_NAMESPACES") != "1":
        return "a real Slurm cluster needs namespaces of its own: make test-slurm"
    missing = [command for command in COMMANDS if shutil.which(command) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    return ""


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster that is up inside and gone after."""
    cluster = Cluster(folder)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def run(*command: str, **options: object) -> str:
    """A command's output.

    Raises:
        RuntimeError: with all it printed, if it fails.
    """
    done = subprocess.run(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )  # type: ignore[call-overload]
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.returncode}\n{done.stdout}")
    return str(done.stdout)


def answers(*command: str) -> bool:
    """Whether a command succeeds."""
    return subprocess.run(command, capture_output=True).returncode == 0


def listens(port: int) -> bool:
    """Whether something accepts connections on a port of the loopback."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def nodes_in(state: str) -> list[str]:
    """Names of the nodes in a state."""
    sinfo = subprocess.run(
        ["sinfo", f"--partition={PARTITION}", "--noheader", "--Node", "--format=%N %t"],
        capture_output=True,
        text=True,
    )
    return [line.split()[0] for line in sinfo.stdout.splitlines() if line.split()[1] == state]


def raise_loopback() -> None:
    """Bring up ``lo``, which is down in a new network namespace.

    With no address but 127.0.0.1, getaddrinfo's AI_ADDRCONFIG, which Slurm sets, resolves nothing.
    """
    run("ip", "link", "set", "lo", "up")
    run("ip", "address", "add", "127.0.1.1/8", "dev", "lo")
