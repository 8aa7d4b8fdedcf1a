package exec

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"img/cache"
	"img/dag"
	"img/exec/cdi"
	"img/exec/sandbox"
	"img/userns"
)

// deviceKey: which devices the step asks for, and what it gets of each. One that is not there and not required is skipped; whether it is
// there counts.
func (x *Executor) deviceKey(h *cache.Hash, op *dag.Run) error {
	for _, d := range op.Devices {
		found := x.o.Devices[d.Name]
		if len(found) == 0 && d.Required {
			return &MissingError{Err: fmt.Errorf("required device %q is not registered", d.Name), Remedy: "`RUN --device=NAME` without required skips it"}
		}
		edits, err := json.Marshal(cdi.Merge(found))
		if err != nil {
			return err
		}
		h.Line("device", d.Name, d.Required, len(found), edits)
	}
	return nil
}

// A deviceArgs is what a step's devices come to, on the wire.
type deviceArgs struct {
	Env    []string
	Groups []uint32
	Shown  []shownHost
}

// A shownHost is a node, file or directory of the host that a step sees. From is where the inner process has it.
type shownHost struct {
	From, Target string
	IsDir        bool
	Writable     bool
	Node         bool
}

// deviceArgs puts together what the devices of a step need, and looks whether the step will be able to use their nodes.
func (x *Executor) deviceArgs(op *dag.Run) (deviceArgs, error) {
	var devices []*cdi.Device
	for _, d := range op.Devices {
		devices = append(devices, x.o.Devices[d.Name]...)
	}
	edits := cdi.Merge(devices)
	a := deviceArgs{Env: edits.Env, Groups: edits.AdditionalGIDs}
	for _, n := range edits.DeviceNodes {
		if err := x.usable(n); err != nil {
			return a, err
		}
		a.Shown = append(a.Shown, shownHost{From: x.hostPaths()[n.Host()], Target: path.Clean(n.Path), Node: true})
	}
	for _, m := range edits.Mounts {
		info, err := os.Stat(m.HostPath)
		if err != nil {
			return a, fmt.Errorf("device: mount at %s: %w", m.ContainerPath, err)
		}
		a.Shown = append(a.Shown, shownHost{From: x.hostPaths()[m.HostPath], Target: path.Clean(m.ContainerPath), IsDir: info.IsDir(),
			Writable: slices.Contains(m.Options, "rw")})
	}
	return a, nil
}

// usable looks whether the build's ids may open a node. The bind mount shows it with its owner and mode; nobody in a user namespace can
// make another.
func (x *Executor) usable(n cdi.Node) error {
	var st unix.Stat_t
	if err := unix.Stat(n.Host(), &st); err != nil {
		return &os.PathError{Op: "device: stat", Path: n.Host(), Err: err}
	}
	if kind := st.Mode & unix.S_IFMT; kind != unix.S_IFCHR && kind != unix.S_IFBLK {
		return fmt.Errorf("device: %s is no device node", n.Host())
	}
	need := uint32(0)
	for _, p := range n.Permissions {
		need |= map[rune]uint32{'r': 4, 'w': 2}[p]
	}
	if n.Permissions == "" {
		need = 4 | 2
	}
	m := x.o.Mapping
	if st.Mode&need == need || holds(m.UIDs, st.Uid) && (st.Mode>>6)&need == need || holds(m.GIDs, st.Gid) && (st.Mode>>3)&need == need {
		return nil
	}
	return &userns.Error{
		Err:    fmt.Errorf("device: %s (mode %04o, owner %d:%d) cannot be opened by the build's ids", n.Host(), st.Mode&0o7777, st.Uid, st.Gid),
		Remedy: fmt.Sprintf("chmod o+rw %s, or a udev rule that does it", n.Host()),
	}
}

// holds reports whether a host id is one of a mapping's.
func holds(ranges []userns.Range, id uint32) bool {
	return slices.ContainsFunc(ranges, func(r userns.Range) bool { return id >= r.Host && id-r.Host < r.Count })
}

// hostPaths are the paths of the host that devices of this build need, with the place that each has in the inner process.
func (x *Executor) hostPaths() map[string]string {
	out := map[string]string{}
	add := func(p string) {
		if _, ok := out[p]; !ok {
			out[p] = fmt.Sprintf("device/%d", len(out))
		}
	}
	for _, name := range sortedKeys(x.o.Devices) {
		edits := cdi.Merge(x.o.Devices[name])
		for _, n := range edits.DeviceNodes {
			add(n.Host())
		}
		for _, m := range edits.Mounts {
			add(m.HostPath)
		}
	}
	return out
}

// shareHost opens what devices need for the inner process. What is not there is left out: the step that wants it says so.
func (x *Executor) shareHost() (dirs []sharedDir, files []*os.File, err error) {
	paths := x.hostPaths()
	for _, p := range sortedKeys(paths) {
		real, err := filepath.EvalSymlinks(p)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		d := sharedDir{At: paths[p], Path: real}
		var f *os.File
		if err == nil {
			f, err = x.share(&d, 0)
		}
		if err != nil {
			closeAll(files)
			return nil, nil, fmt.Errorf("device: %w", err)
		}
		dirs, files = append(dirs, d), append(files, f)
	}
	return dirs, files, nil
}

// devices shows the step what its devices need. Files of the host are read-only unless their specification says rw by name.
func (s *step) devices(a deviceArgs) error {
	s.env = append(s.env, a.Env...)
	for _, d := range a.Shown {
		from := "/" + d.From
		if err := s.point(d.Target, d.IsDir, from); err != nil {
			return err
		}
		s.mounts = append(s.mounts, sandbox.Mount{
			Type: "bind", Source: from, Target: d.Target, ReadOnly: !d.Node && !d.Writable, NoDev: !d.Node, NoSuid: true,
		})
	}
	for _, g := range a.Groups {
		// A group that the build does not have cannot be given.
		if g != 0 && g < s.w.setup.IDs {
			s.groups = append(s.groups, g)
		}
	}
	return nil
}
