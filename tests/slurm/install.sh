#!/bin/sh
# Installs what the tests' Slurm cluster is made of, or says what is missing.
set -eu

complain() { echo "shardmark: make test-slurm: $*" >&2; exit 1; }

[ "$(uname -s)" = Linux ] || complain "needs Linux"
[ "$(id -u)" = 0 ] || complain "needs root, for daemons and namespaces of their own"
command -v unshare > /dev/null || complain "unshare is missing (util-linux)"
unshare --mount --net --pid --fork true || complain "this machine lets root make no namespaces"

missing=
for command in ip munged mariadbd mariadb-install-db slurmdbd slurmctld slurmd sacctmgr sbatch; do
  command -v "$command" > /dev/null || missing="$missing $command"
done
[ -n "$missing" ] || exit 0
command -v apt-get > /dev/null || complain "missing:$missing"

echo "installing Slurm, munge and MariaDB, for the tests"
# A package's services are not started while this file is there and says so (Debian policy, 9.3.3).
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
  trap 'rm -f "$policy"' EXIT
  printf '#!/bin/sh\nexit 101\n' > "$policy"
  chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
{
  apt-get update -q
  apt-get install -y -q --no-install-recommends \
    iproute2 slurm-wlm slurmdbd munge mariadb-server
} > "$log" 2>&1 || { tail -n 20 "$log" >&2; complain "apt-get failed (above)"; }
rm -f "$log"
