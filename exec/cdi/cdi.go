// Package cdi reads specifications of the Container Device Interface: files of the host that say what a container needs to use a device.
//
// It finds devices by name and says what they ask for. It does not know steps, nor how any of it is done.
package cdi

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Dirs are where specifications are, later ones going before earlier ones: those of CDI, and BuildKit's own.
var Dirs = []string{"/etc/cdi", "/var/run/cdi", "/etc/buildkit/cdi"}

// Limits of what is read: files of a directory, and bytes of each.
const (
	maxFiles = 10_000
	maxSpec  = 4 << 20
)

// Annotations of BuildKit's: a name that stands for several devices, and that a build may use a device without being allowed to.
const (
	annotationClass     = "org.mobyproject.buildkit.device.class"
	annotationAutoAllow = "org.mobyproject.buildkit.device.autoallow"
)

// A Device is what is known of one device.
type Device struct {
	// Name is the qualified one: "vendor.com/class=name".
	Name        string
	Annotations map[string]string
	// Edits are the device's own, Common those of all devices of its specification.
	Edits  Edits
	Common *Edits
	// File is the specification.
	File string
}

// Edits are what a container needs.
type Edits struct {
	// Env is "K=V".
	Env            []string        `json:"env,omitempty"`
	DeviceNodes    []Node          `json:"deviceNodes,omitempty"`
	NetDevices     json.RawMessage `json:"netDevices,omitempty"`
	Hooks          []Hook          `json:"hooks,omitempty"`
	Mounts         []Mount         `json:"mounts,omitempty"`
	IntelRdt       json.RawMessage `json:"intelRdt,omitempty"`
	AdditionalGIDs []uint32        `json:"additionalGids,omitempty"`
}

// A Node is a device node. HostPath is where it is on the host, if not at Path.
type Node struct {
	Path        string  `json:"path"`
	HostPath    string  `json:"hostPath,omitempty"`
	Type        string  `json:"type,omitempty"`
	Major       int64   `json:"major,omitempty"`
	Minor       int64   `json:"minor,omitempty"`
	FileMode    *uint32 `json:"fileMode,omitempty"`
	Permissions string  `json:"permissions,omitempty"`
	UID         *uint32 `json:"uid,omitempty"`
	GID         *uint32 `json:"gid,omitempty"`
}

// Host is the node's path on the host.
func (n Node) Host() string { return cmp.Or(n.HostPath, n.Path) }

// A Mount is a file or directory of the host that is shown.
type Mount struct {
	HostPath      string   `json:"hostPath"`
	ContainerPath string   `json:"containerPath"`
	Options       []string `json:"options,omitempty"`
	Type          string   `json:"type,omitempty"`
}

// A Hook is a program of the host that is to run.
type Hook struct {
	HookName string   `json:"hookName"`
	Path     string   `json:"path"`
	Args     []string `json:"args,omitempty"`
	Env      []string `json:"env,omitempty"`
	Timeout  *int     `json:"timeout,omitempty"`
}

type spec struct {
	Version     string            `json:"cdiVersion"`
	Kind        string            `json:"kind"`
	Annotations map[string]string `json:"annotations,omitempty"`
	Devices     []struct {
		Name        string            `json:"name"`
		Annotations map[string]string `json:"annotations,omitempty"`
		Edits       Edits             `json:"containerEdits"`
	} `json:"devices"`
	Edits Edits `json:"containerEdits"`
}

// A Registry is the devices that the specifications of some directories describe.
type Registry struct {
	devices map[string]*Device
	names   []string // sorted
	// Broken are the specifications that cannot be used, and why.
	Broken []error
}

// Load reads the specifications of directories, which need not exist. A file that cannot be used is noted, and stops nothing.
func Load(dirs ...string) *Registry {
	r := &Registry{devices: map[string]*Device{}}
	for _, dir := range dirs {
		r.loadDir(dir)
	}
	for n := range r.devices {
		r.names = append(r.names, n)
	}
	slices.Sort(r.names)
	return r
}

// loadDir adds a directory's devices. Two files of it that describe one device make it unusable; an earlier directory's is replaced.
func (r *Registry) loadDir(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		r.Broken = append(r.Broken, err)
	}
	here := map[string]string{}
	for _, e := range entries[:min(len(entries), maxFiles)] {
		ext := filepath.Ext(e.Name())
		if e.IsDir() || ext != ".json" && ext != ".yaml" {
			continue
		}
		file := filepath.Join(dir, e.Name())
		devices, err := readFile(file)
		if err != nil {
			r.Broken = append(r.Broken, fmt.Errorf("%s: %w", file, err))
			continue
		}
		for _, d := range devices {
			if first, twice := here[d.Name]; twice {
				r.Broken = append(r.Broken, fmt.Errorf("%s: %s is described by %s as well", file, d.Name, first))
				delete(r.devices, d.Name)
				continue
			}
			here[d.Name] = file
			r.devices[d.Name] = d
		}
	}
}

func readFile(file string) ([]*Device, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return nil, errors.Join(err, errors.New("no regular file"))
	}
	text, err := io.ReadAll(io.LimitReader(f, maxSpec+1))
	if err != nil {
		return nil, errors.Unwrap(err)
	}
	devices, err := parse(text, filepath.Ext(file) == ".yaml")
	for _, d := range devices {
		d.File = file
	}
	return devices, err
}

// parse reads a specification. A field that is not known may be a need that is not met, so it is an error.
func parse(text []byte, isYAML bool) ([]*Device, error) {
	if len(text) > maxSpec {
		return nil, fmt.Errorf("more than %d MiB", maxSpec>>20)
	}
	if isYAML {
		var err error
		if text, err = toJSON(text); err != nil {
			return nil, err
		}
	}
	var s spec
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return nil, fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, errors.New("more follows the specification")
	}
	return s.devices()
}

// toJSON is a YAML document as JSON.
func toJSON(text []byte) ([]byte, error) {
	d := yaml.NewDecoder(bytes.NewReader(text))
	var n yaml.Node
	if err := d.Decode(&n); err == io.EOF {
		return nil, errors.New("it is empty")
	} else if err != nil {
		return nil, fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(new(yaml.Node)); err != io.EOF {
		return nil, errors.New("more than one document")
	}
	if line := aliasIn(&n); line > 0 {
		return nil, fmt.Errorf("line %d: an alias: few bytes could stand for very many", line)
	}
	var v any
	if err := n.Decode(&v); err != nil {
		return nil, fmt.Errorf("%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	return json.Marshal(v)
}

// aliasIn returns the line of an alias, 0 if there is none.
func aliasIn(n *yaml.Node) int {
	if n.Kind == yaml.AliasNode {
		return n.Line
	}
	for _, c := range n.Content {
		if line := aliasIn(c); line > 0 {
			return line
		}
	}
	return 0
}

var (
	kindForm    = regexp.MustCompile(`^[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_-]*[A-Za-z0-9])?$`)
	nameForm    = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?$`)
	versionForm = regexp.MustCompile(`^(0\.[3-9]|1\.[0-9]+)\.[0-9]+$`)
)

func (s *spec) devices() ([]*Device, error) {
	switch {
	case !versionForm.MatchString(s.Version):
		return nil, fmt.Errorf("cdiVersion %q is not known", s.Version)
	case !kindForm.MatchString(s.Kind):
		return nil, fmt.Errorf("kind %q is not of the form VENDOR/CLASS", s.Kind)
	}
	if err := s.Edits.check(); err != nil {
		return nil, err
	}
	var out []*Device
	for _, d := range s.Devices {
		if !nameForm.MatchString(d.Name) {
			return nil, fmt.Errorf("device name %q is not valid", d.Name)
		}
		if err := d.Edits.check(); err != nil {
			return nil, fmt.Errorf("device %s: %w", d.Name, err)
		}
		all := map[string]string{}
		for _, list := range []map[string]string{s.Annotations, d.Annotations} {
			for k, v := range list {
				all[k] = v
			}
		}
		out = append(out, &Device{Name: s.Kind + "=" + d.Name, Annotations: all, Edits: d.Edits, Common: &s.Edits})
	}
	return out, nil
}

func (e *Edits) check() error {
	for _, kv := range e.Env {
		if k, _, ok := strings.Cut(kv, "="); !ok || k == "" || strings.ContainsRune(kv, 0) {
			return fmt.Errorf("env %q is not of the form NAME=VALUE", kv)
		}
	}
	for _, n := range e.DeviceNodes {
		if err := errors.Join(checkPath("path", n.Path), checkPath("hostPath", n.Host())); err != nil {
			return fmt.Errorf("device node: %w", err)
		}
		if strings.Trim(n.Permissions, "rwm") != "" {
			return fmt.Errorf("device node %s: permissions %q are not letters of rwm", n.Path, n.Permissions)
		}
	}
	for _, m := range e.Mounts {
		if err := errors.Join(checkPath("hostPath", m.HostPath), checkPath("containerPath", m.ContainerPath)); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
	}
	return nil
}

func checkPath(field, p string) error {
	if !path.IsAbs(p) || path.Clean(p) == "/" || strings.ContainsRune(p, 0) {
		return fmt.Errorf("%s %q is no absolute path", field, p)
	}
	return nil
}

// Find returns the devices that a name stands for: one by its qualified name, all of a kind ("vendor.com/class=*"), the first of a kind
// ("vendor.com/class"), or else those whose class annotation it is.
func (r *Registry) Find(name string) []*Device {
	kind, device, _ := strings.Cut(name, "=")
	var out []*Device
	for _, n := range r.names {
		ofKind := kindForm.MatchString(kind) && strings.HasPrefix(n, kind+"=")
		switch {
		case n == name, ofKind && device == "*", ofKind && device == "" && len(out) == 0:
			out = append(out, r.devices[n])
		}
	}
	if len(out) > 0 {
		return out
	}
	for _, n := range r.names {
		if d := r.devices[n]; name != "" && d.Annotations[annotationClass] == name {
			out = append(out, d)
		}
	}
	return out
}

// Names lists the devices, sorted.
func (r *Registry) Names() []string { return r.names }

// Grants are the devices that a build may use.
type Grants struct {
	All bool
	// names maps what is allowed, or asked for, to what is meant by it: itself, or the device of which it is an alias.
	names map[string]string
}

// Add reads NAME[,alias=ALIAS], the value of the entitlement "device". With an alias, what the Dockerfile calls ALIAS is the device NAME.
func (g *Grants) Add(s string) error {
	fields := strings.Split(s, ",")
	name, as := fields[0], fields[0]
	for _, f := range fields[1:] {
		k, v, ok := strings.Cut(f, "=")
		if !ok || k != "alias" || v == "" {
			return fmt.Errorf("unknown device config key %q", f)
		}
		as = v
	}
	if name == "" {
		return errors.New("a device's name is missing")
	}
	if g.names == nil {
		g.names = map[string]string{}
	}
	g.names[as] = name
	return nil
}

// A DeniedError names devices that a build asks for and was not allowed to use.
type DeniedError struct{ Names []string }

func (e *DeniedError) Error() string {
	if len(e.Names) == 1 {
		return fmt.Sprintf("device %s is requested by the build but not allowed", e.Names[0])
	}
	return fmt.Sprintf("devices %s are requested by the build but not allowed", strings.Join(e.Names, ", "))
}

// Allowed is Find, and sees to it that the devices may be used: because they are granted, or their specification says so.
func (r *Registry) Allowed(name string, g Grants) ([]*Device, error) {
	found := r.Find(cmp.Or(g.names[name], name))
	granted := map[*Device]bool{}
	for _, n := range g.names {
		for _, d := range r.Find(n) {
			granted[d] = true
		}
	}
	var denied []string
	for _, d := range found {
		auto, err := strconv.ParseBool(d.Annotations[annotationAutoAllow])
		if !g.All && !granted[d] && (!auto || err != nil) {
			denied = append(denied, d.Name)
		}
	}
	if len(denied) > 0 {
		return nil, &DeniedError{denied}
	}
	return found, nil
}

// Merge puts together what several devices need, those of one specification that are common once.
func Merge(devices []*Device) Edits {
	var out Edits
	add := func(e *Edits) {
		out.Env = append(out.Env, e.Env...)
		out.DeviceNodes = append(out.DeviceNodes, e.DeviceNodes...)
		out.Mounts = append(out.Mounts, e.Mounts...)
		out.AdditionalGIDs = append(out.AdditionalGIDs, e.AdditionalGIDs...)
	}
	done := map[*Edits]bool{}
	seen := map[*Device]bool{}
	for _, d := range devices {
		if seen[d] {
			continue
		}
		seen[d] = true
		if d.Common != nil && !done[d.Common] {
			done[d.Common] = true
			add(d.Common)
		}
		add(&d.Edits)
	}
	return out
}

// Unserved names what a device needs and builds do not do: a hook is a program that would run outside of every sandbox, with the
// builder's rights.
func (d *Device) Unserved() error {
	for _, e := range []*Edits{d.Common, &d.Edits} {
		switch {
		case e == nil:
		case len(e.Hooks) > 0:
			return fmt.Errorf("device %s: its %s hook would run %s on the host, which no build does (%s)", d.Name, e.Hooks[0].HookName, e.Hooks[0].Path, d.File)
		case len(e.NetDevices) > 0 && string(e.NetDevices) != "null":
			return fmt.Errorf("device %s: network devices cannot be moved into a step (%s)", d.Name, d.File)
		case len(e.IntelRdt) > 0 && string(e.IntelRdt) != "null":
			return fmt.Errorf("device %s: steps are in no resource class (intelRdt in %s)", d.Name, d.File)
		default:
			if err := e.mountable(); err != nil {
				return fmt.Errorf("device %s: %w (%s)", d.Name, err, d.File)
			}
		}
	}
	return nil
}

// mountOptions are those that are understood; all that are not about reading and writing say what is done anyway.
var mountOptions = []string{"ro", "rw", "bind", "rbind", "private", "rprivate", "slave", "rslave", "nosuid", "nodev", "noexec"}

func (e *Edits) mountable() error {
	for _, m := range e.Mounts {
		if m.Type != "" && m.Type != "bind" && m.Type != "none" {
			return fmt.Errorf("mount at %s is of type %q; only files of the host are shown", m.ContainerPath, m.Type)
		}
		for _, o := range m.Options {
			if !slices.Contains(mountOptions, o) {
				return fmt.Errorf("mount at %s has the option %q, which is not understood", m.ContainerPath, o)
			}
		}
	}
	return nil
}
