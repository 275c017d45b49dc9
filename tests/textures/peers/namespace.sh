#!/bin/sh
# Inside fresh network, mount and host-name namespaces: waits for its end of the cable, starts D-Bus and
# avahi on a private /run, then becomes the command.
# Arguments: address, host name, interface, command...
address=$1; host=$2; interface=$3; shift 3
mount -t tmpfs tmpfs /run && mkdir -p /run/dbus && hostname "$host" || exit 90
ip link set lo up
tries=0
until ip link show "$interface" >/dev/null 2>&1; do
  tries=$((tries + 1)); [ $tries -gt 200 ] && exit 91
  sleep 0.05
done
ip addr add "$address/24" dev "$interface" && ip link set "$interface" up || exit 92
ip route add 224.0.0.0/4 dev "$interface"
dbus-daemon --system --fork --nopidfile >&2 || exit 93
avahi-daemon --daemonize --no-chroot --no-rlimits >&2 || exit 94
exec "$@"
