package exec

import (
	"fmt"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// Only what says that there is no overlay makes a build use copies.
func TestLacksOverlay(t *testing.T) {
	for err, want := range map[error]bool{
		unix.EPERM: true, unix.EINVAL: true, unix.ENODEV: true, unix.EROFS: true, unix.EOPNOTSUPP: true,
		unix.ENOENT: false, unix.ENOSPC: false, unix.EIO: false, unix.ENOMEM: false,
	} {
		if got := lacksOverlay(fmt.Errorf("mount: %w", err)); got != want {
			t.Errorf("%v: %v, want %v", err, got, want)
		}
	}
}

// The probe's directory is locked like a stage: whoever sweeps finds it held.
func TestProbeDir(t *testing.T) {
	dir := t.TempDir()
	held, err := probeDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	other, err := os.Open(held.Name())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("lock: %v", err)
	}
	held.Close()
	if err := unix.Flock(int(other.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("lock, when it is free: %v", err)
	}
}
