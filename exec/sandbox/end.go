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

// end asks all processes of a PID namespace to go, and kills its init when the grace is over. The first process of a namespace
// ignores signals it has no handler for, so where no process listens, waiting would be for nothing.
func end(init int, grace time.Duration, p *libcontainer.Process, done <-chan struct{}) {
	if grace == 0 {
		grace = defaultGrace
	}
	if terminate(init) {
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-done:
			return
		case <-timer.C:
		}
	}
	// The kernel kills the rest of the namespace with its init. An error means that it is gone.
	_ = p.Signal(unix.SIGKILL)
}

// terminate sends SIGTERM to every process in init's PID namespace, and tells whether one of them has a handler for it.
func terminate(init int) (heard bool) {
	namespace, err := pidNamespace(init)
	if err != nil {
		return false
	}
	procs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return false
	}
	for _, proc := range procs {
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			continue
		}
		heard = terminateIn(namespace, pid) || heard
	}
	return heard
}

func terminateIn(namespace string, pid int) (heard bool) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	// Looked at after the descriptor was got: from here on the number means no other process.
	if ns, err := pidNamespace(pid); err != nil || ns != namespace {
		return false
	}
	heard = catches(pid, unix.SIGTERM)
	return unix.PidfdSendSignal(fd, unix.SIGTERM, nil, 0) == nil && heard
}

func pidNamespace(pid int) (string, error) {
	return os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/pid")
}

// catches reads the line "SigCgt:\t0000000000004002" of a process's status: bit n-1 is signal n.
func catches(pid int, sig unix.Signal) bool {
	bits, err := strconv.ParseUint(statusLine(pid, "SigCgt:"), 16, 64)
	return err == nil && bits&(1<<(sig-1)) != 0
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
