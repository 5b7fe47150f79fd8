#!/usr/bin/env bash
# Boot this machine's Debian once more as a container, with a systemd of its own: its files are an overlay whose changes are
# in memory, its processes, network and control groups are its own, and nothing of it outlives it.
#
#   unshare --mount boot.sh FOLDER    an empty folder; FOLDER/pid will hold the process id of its systemd, FOLDER/up what changed
set -euo pipefail
top=$1 name=volgate-${1##*/}

outside() {
    mount -t tmpfs -o mode=0755 tmpfs "$top"
    mkdir "$top"/{up,work,root,cgroup,cgroup2}
    mount -t cgroup2 cgroup2 "$top/cgroup2"
    ! grep -q name=systemd: /proc/self/cgroup || mount -t cgroup -o none,name=systemd cgroup "$top/cgroup"
    mkdir -p "$top"/cgroup{,2}/"$name"
    (
        for hierarchy in "$top"/cgroup{,2}; do
            [ ! -e "$hierarchy/$name/cgroup.procs" ] || echo "$BASHPID" >"$hierarchy/$name/cgroup.procs"
        done
        exec setpriv --pdeathsig KILL unshare --mount --pid --net --uts --ipc --cgroup --fork --kill-child bash "$0" "$top" inside
    ) || true # it ends by being killed
    find "$top"/cgroup{,2}/"$name" -depth -type d -exec rmdir {} +
}

inside() {
    read -r pid _ </proc/self/stat # as it is outside, where this /proc belongs
    mount -t overlay -o "lowerdir=/,upperdir=$top/up,workdir=$top/work" overlay "$top/root"
    cd "$top/root"
    mount -t proc proc proc
    mount -t sysfs -o ro sysfs sys
    if mountpoint -q "$top/cgroup"; then
        mount -t tmpfs -o mode=0755 tmpfs sys/fs/cgroup
        mkdir sys/fs/cgroup/{systemd,unified}
        mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
        mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
    else
        mount -t cgroup2 cgroup2 sys/fs/cgroup
    fi
    mount -t tmpfs -o mode=0755 tmpfs dev
    mkdir dev/{pts,shm}
    cp -a /dev/{null,zero,full,random,urandom,tty} dev
    mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
    ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd
    mount -t tmpfs -o mode=0755 tmpfs run
    mount -t tmpfs -o mode=1777 tmpfs tmp
    printf '[Unit]\nDescription=Nothing but what tests start\nDefaultDependencies=no\n' >run/lab.target
    mkdir -p run/systemd/system
    mv run/lab.target run/systemd/system
    echo "$pid" >"$top/pid"
    exec chroot . /usr/bin/env -i container=lab PATH=/usr/sbin:/usr/bin:/sbin:/bin \
        /lib/systemd/systemd --system --unit=lab.target --log-target=console --show-status=no
}

"${2:-outside}"
