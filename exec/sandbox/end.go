package sandbox

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/opencontainers/runc/libcontainer"
	"golang.org/x/sys/unix"
)

// listenEvery is how often end looks whether anybody still has a handler for SIGTERM.
const listenEvery = 100 * time.Millisecond

// end asks all processes of a PID namespace to go, and kills its init when the grace is over. The first process of a namespace
// ignores signals it has no handler for, so once no process listens, waiting would be for nothing. It looks again and again: at
// first, init may still be libcontainer's, which has handlers as all Go programs.
func end(init int, grace time.Duration, p *libcontainer.Process, done <-chan struct{}) {
	if grace == 0 {
		grace = defaultGrace
	}
	deadline := time.After(grace)
	tick := time.NewTicker(listenEvery)
	defer tick.Stop()
	for heard := visit(init, terminate); heard; heard = visit(init, listens) {
		select {
		case <-done:
			return
		case <-deadline:
			_ = p.Signal(unix.SIGKILL)
			return
		case <-tick.C:
		}
	}
	// The kernel kills the rest of the namespace with its init. An error means that it is gone.
	_ = p.Signal(unix.SIGKILL)
}

// terminate sends SIGTERM to a process, and tells whether it has a handler for it.
func terminate(pid, pidfd int) bool {
	heard := listens(pid, pidfd)
	return unix.PidfdSendSignal(pidfd, unix.SIGTERM, nil, 0) == nil && heard
}

// visit calls f for every process in init's PID namespace, and tells whether one call said yes.
func visit(init int, f func(pid, pidfd int) bool) (yes bool) {
	namespace, err := pidNamespace(init)
	if err != nil {
		return false
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return false
	}
	for _, proc := range procs {
		if pid, err := strconv.Atoi(filepath.Base(proc)); err == nil {
			yes = visitOne(namespace, pid, f) || yes
		}
	}
	return yes
}

func visitOne(namespace string, pid int, f func(pid, pidfd int) bool) bool {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// Looked at after the descriptor was got: from here on the number means no other process.
	if ns, err := pidNamespace(pid); err != nil || ns != namespace {
		return false
	}
	return f(pid, fd)
}

func pidNamespace(pid int) (string, error) {
	return os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid")
}

// listens reads the line "SigCgt:\t0000000000004002" of a process's status: bit n-1 is signal n.
func listens(pid, _ int) bool {
	bits, err := strconv.ParseUint(statusLine(pid, "SigCgt:"), 16, 64)
	return err == nil && bits&(1<<(unix.SIGTERM-1)) != 0
}

// statusLine returns the value of a line of /proc/<pid>/status; empty when there is none.
func statusLine(pid int, name string) string {
	text, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return ""
	}
	return valueOf(string(text), name)
}

// valueOf finds a line by its name, which includes the colon.
func valueOf(status, name string) string {
	for line := range strings.Lines(status) {
		if v, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}
