# Sourced by the checks that run containers: podman in namespaces of their own, which end with
# the check, so that ports are free and nothing is left behind. It needs root.

umask 077 # the user of the image has to be able to read the binary all the same
cd "$(dirname "$0")/../.."

# build installs podman and makes the image as README.md says, in a directory of its own. The
# environment names another system, as on a developer's machine that builds for several.
build() { # packages...
	packages=(podman buildah crun containernetworking-plugins iptables iproute2 jq curl "$@")
	dpkg -s "${packages[@]}" >/dev/null 2>&1 || {
		apt-get update -q
		DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "${packages[@]}"
	}
	dir=$(mktemp -d)
	trap '[ $? = 0 ] || cat "$dir/log"; rm -rf "$dir"' EXIT
	chmod 755 "$dir"
	GOOS=darwin make image DOCKER="buildah --storage-driver vfs --root $dir/storage --runroot $dir/run" >"$dir/log" 2>&1
}

# enter runs this script again in namespaces, with the argument "inside" and the directory.
enter() {
	timeout -s KILL 180 unshare --mount --net --pid --cgroup --fork --kill-child --mount-proc "$0" inside "$dir"
}

# prepare makes the namespaces ready for podman. crun refuses the mixture of control groups that
# some machines have, and containers here need none.
prepare() { # directory
	dir=$1
	ip link set lo up
	umount -R /sys/fs/cgroup
	mount -t cgroup2 cgroup2 /sys/fs/cgroup
	for private in /run /var/lib /etc/cni/net.d; do
		mount -t tmpfs tmpfs "$private"
	done
	mkdir /run/lock
	export CONTAINERS_CONF=$dir/containers.conf
	printf '%s\n' '[containers]' 'cgroups = "disabled"' 'log_driver = "k8s-file"' \
		'[engine]' 'cgroup_manager = "cgroupfs"' 'events_logger = "file"' >"$CONTAINERS_CONF"
	podman="podman --storage-driver vfs --root $dir/storage --runroot $dir/run"
}

# podman runs podman. It does not say that there is no systemd to time health checks.
podman() {
	command $podman "$@" 2> >(grep -v 'systemd connection' >&2)
}
