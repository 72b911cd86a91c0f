package link

// MachineID returns what tells this machine from all others (machine-id(5)), or
// "" if it has none. Who knows it can compute what is derived from it.
func MachineID() (string, error) {
	return machineID("/etc/machine-id", "/var/lib/dbus/machine-id")
}
