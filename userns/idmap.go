package userns

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

// holdWord makes this program keep a user namespace alive until its standard input ends.
const holdWord = "userns-hold"

func hold() {
	_, _ = io.Copy(io.Discard, os.Stdin)
	os.Exit(0)
}

// IDMap makes a user namespace for an idmapped mount (mount_setattr(2), MOUNT_ATTR_IDMAP): a Range's Container is an id as the file
// system has it, Host the id that it is shown as outside of any namespace. It needs CAP_SETUID and CAP_SETGID.
func IDMap(uids, gids []Range) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer w.Close()
	cmd := exec.Command("/proc/self/exe")
	cmd.Args = []string{"img", holdWord, "on"}
	cmd.Env, cmd.Stdin = []string{}, r
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: syscall.CLONE_NEWUSER, UidMappings: sysMap(uids), GidMappings: sysMap(gids), GidMappingsEnableSetgroups: true,
	}
	err = cmd.Start()
	r.Close()
	if err != nil {
		return nil, fmt.Errorf("make a user namespace for an idmapped mount: %w", err)
	}
	defer cmd.Wait()
	defer w.Close() // before Wait
	return os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
}

// OwnerFirst returns the ranges of an IDMap that shows the files of one id as those of the mapping's root, and all others (below the
// mapping's size) in the order they have: what the owner of a directory has in it is root's inside, as if the owner had entered the
// namespace. block is the mapping's first range.
func OwnerFirst(owner uint32, block Range) []Range {
	n := block.Count
	var out []Range
	add := func(from, to, count uint32) {
		if count > 0 {
			out = append(out, Range{Container: from, Host: block.Host + to, Count: count})
		}
	}
	switch {
	case owner == 0:
		add(0, 0, n)
	case owner < n:
		add(owner, 0, 1)
		add(0, owner, 1)
		add(1, 1, owner-1)
		add(owner+1, owner+1, n-owner-1)
	case n == 1:
		add(owner, 0, 1)
	default: // outside of the block: root's own files take the last place
		add(owner, 0, 1)
		add(0, n-1, 1)
		add(1, 1, n-2)
	}
	return out
}
