package sandbox

import (
	"os"
	"path"
	"path/filepath"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

// maxHeld bounds the descriptors that keep recorded inodes alive.
const maxHeld = 4096

// Owners is what the supervisor of a OneID step recorded: the owners and devices that the step asked for.
//
// Keys are inode numbers as the step's root shows them. Overlay shows a file of a lower layer with that layer's number, also when it has
// been copied up, as long as it is remembered; who looks into the upper directory finds another. So an owner is found by path, too.
//
// Regular files and directories carry their owner, unless it is 0:0, and what device they stand for as attributes: attr.Owner, attr.Device.
// Owners has what cannot carry one: symbolic links, fifos, sockets; and all devices.
type Owners struct {
	mu      sync.Mutex
	ids     map[uint64]ids
	devices map[uint64]device
	held    map[uint64]int
	// paths are names that recorded inodes have at the end, relative to the root.
	paths map[string]uint64
}

type ids struct{ uid, gid uint32 }

type device struct {
	kind         byte
	major, minor uint32
}

func newOwners() *Owners {
	return &Owners{ids: map[uint64]ids{}, devices: map[uint64]device{}, held: map[uint64]int{}, paths: map[string]uint64{}}
}

// Owner returns the recorded owner of what is at a path (relative to the root, clean), or else of an inode.
func (o *Owners) Owner(path string, ino uint64) (uid, gid uint32, ok bool) {
	if o == nil {
		return 0, 0, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if shown, ok := o.paths[path]; ok {
		ino = shown
	}
	v, ok := o.ids[ino]
	return v.uid, v.gid, ok
}

// of is the recorded owner of an inode as the root shows it.
func (o *Owners) of(ino uint64) (ids, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	v, ok := o.ids[ino]
	return v, ok
}

// Device returns the recorded device of an inode: kind 'c' or 'b'.
func (o *Owners) Device(ino uint64) (kind byte, major, minor uint32, ok bool) {
	if o == nil {
		return 0, 0, 0, false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	v, ok := o.devices[ino]
	return v.kind, v.major, v.minor, ok
}

func (o *Owners) setOwner(fd int, ino uint64, v ids) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ids[ino] = v // root as well: an earlier layer may have the file with another owner
	o.hold(fd, ino)
}

func (o *Owners) setDevice(fd int, ino uint64, v device) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.devices[ino] = v
	o.hold(fd, ino)
}

// hold keeps the inode alive: the number of a removed file would soon belong to another.
func (o *Owners) hold(fd int, ino uint64) {
	if _, ok := o.held[ino]; ok || len(o.held) >= maxHeld {
		return
	}
	if dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0); err == nil {
		o.held[ino] = dup
	}
}

// settle ends the recording in a root: inodes without a name are forgotten, and nothing keeps the root busy any more.
func (o *Owners) settle(root string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for ino, fd := range o.held {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil || st.Nlink == 0 {
			delete(o.ids, ino)
			delete(o.devices, ino)
		} else if name, ok := nameIn(root, fd, &st); ok {
			o.paths[name] = ino
		}
		unix.Close(fd)
	}
	clear(o.held)
}

// nameIn returns the path that an open file has in a root; false if the name by which it was opened is gone, though it may have others.
func nameIn(root string, fd int, st *unix.Stat_t) (string, bool) {
	// The kernel's name begins at the mount, which was the step's root.
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil || !path.IsAbs(name) {
		return "", false
	}
	var there unix.Stat_t
	if err := unix.Lstat(filepath.Join(root, name), &there); err != nil || there.Ino != st.Ino || there.Dev != st.Dev {
		return "", false
	}
	return name[1:], true
}
