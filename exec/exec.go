// Package exec carries out single vertices: what each reads (Key) and does (Exec), one file per kind of op.
//
// It runs in both processes of a build. The Executor lives in the first one, which keeps the caller's identity: it computes
// keys, opens contexts, blobs and secrets. Whatever needs the build's ids (steps, unpacking, packing, deleting) is a call
// to the inner process, where Serve answers. The package knows neither order nor progress nor flags.
package exec

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"sync"

	"img/cache"
	"img/dag"
	"img/engine"
	"img/exec/cdi"
	"img/exec/fetch"
	"img/exec/sshagent"
	"img/registry/image"
	"img/registry/layout"
	"img/snapshot"
	"img/userns"
)

// Options of New. State, Snapshots and Layout are needed; the rest may be zero.
type Options struct {
	// State is where the state directory's files are reached, Real its own path, free of links, where mounts are made of it; "" is State.
	State, Real string
	// Mapping is the id mapping that the inner process is to have; Snapshots is opened with its label.
	Mapping   userns.Mapping
	Snapshots *snapshot.Store
	Layout    *layout.Store
	// Driver is snapshot.Overlay, snapshot.Copies or "" for the best that works.
	Driver string
	// Boot is the boot id of this run of the machine.
	Boot string
	// Contexts are the local build contexts by name.
	Contexts map[string]*Context
	// Base is where layers of base images come from that the local store does not have.
	Base image.Fetcher
	// Fetch reaches URLs and git repositories; nil if no vertex needs one.
	Fetch *fetch.Client
	// Secret returns a secret's content by id; ok is false when the caller gave none of that id.
	Secret func(id string) (data []byte, ok bool, err error)
	// Agents are the ssh agents that steps may ask, by id.
	Agents map[string]*sshagent.Agent
	// Devices are what the names of devices that steps ask for stand for; one that is not there has none.
	Devices map[string][]*cdi.Device
	// ResolvConf is the content of the steps' /etc/resolv.conf.
	ResolvConf []byte
	// Note is told, once each, what is weaker than it could be.
	Note func(string)
	// Stderr is where the inner process's own messages go (crashes).
	Stderr *os.File
}

// An Executor implements engine.Executor.
type Executor struct {
	o     Options
	start flight

	mu       sync.Mutex
	proc     *process
	closed   bool
	unpacked map[snapshot.Name]*flight
	bases    map[snapshot.Name]*dag.Image
	// temps delete directories that go with the executor.
	temps []func() error
	// plans are what Key found out and Exec needs again, by op.
	plans sync.Map
	// held are the directories of the cache mounts that Acquire locked, by op and volume.
	held sync.Map
}

// New makes an Executor. Nothing is started until a vertex needs the inner process.
func New(o Options) *Executor {
	if o.Real == "" {
		o.Real = o.State
	}
	if o.Note == nil {
		o.Note = func(string) {}
	}
	for _, c := range o.Contexts {
		c.hide(o.Real)
	}
	return &Executor{o: o, unpacked: map[snapshot.Name]*flight{}, bases: map[snapshot.Name]*dag.Image{}}
}

// Tier is the sandbox tier that steps of this build run under (design §6).
func (x *Executor) Tier() int {
	if x.o.Mapping.Single() {
		return 2
	}
	return 1
}

// Versions of what each kind of step does. A number is raised whenever a result may differ from the one that an older img made.
var semantics = map[string]int{"image": 1, "run": 3, "copy": 5, "http": 1, "git": 1, "mkdir": 2, "merge": 1, "pack": 2, "manifest": 2, "index": 1}

// Key implements engine.Executor.
func (x *Executor) Key(ctx context.Context, v *dag.Vertex, in []cache.Output, h *cache.Hash) error {
	h.Line(v.Op.Kind(), semantics[v.Op.Kind()])
	h.Line("platform", v.Platform)
	switch op := v.Op.(type) {
	case *dag.Image:
		x.rememberBase(op)
		imageKey(h, op)
		return nil
	case *dag.Run:
		return x.runKey(ctx, h, op, in)
	case *dag.Copy:
		return x.copyKey(ctx, h, op, in)
	case *dag.HTTP:
		return x.httpKey(ctx, h, op)
	case *dag.Git:
		return x.gitKey(ctx, h, op)
	case *dag.Mkdir:
		mkdirKey(h, op, in)
		return nil
	case *dag.Merge:
		mergeKey(h, op, in)
		return nil
	case *dag.Pack:
		packKey(h, op, in)
		return nil
	case *dag.Manifest:
		return manifestKey(h, op, in)
	case *dag.Index:
		return indexKey(h, op, in)
	}
	return fmt.Errorf("unknown kind of step %q", v.Op.Kind())
}

// Usable implements engine.Executor: files must be there in this build's mapping, blobs in the store.
func (x *Executor) Usable(ctx context.Context, v *dag.Vertex, r cache.Record) bool {
	switch op := v.Op.(type) {
	case *dag.Image:
		return x.haveBase(ctx, op)
	case *dag.Pack:
		return x.havePacked(ctx, r.Output)
	case *dag.Manifest:
		return x.haveManifest(ctx, r.Output)
	case *dag.Index:
		return x.haveIndex(ctx, r.Output)
	}
	// A record of a weaker sandbox stands only where this build could do no better.
	n := snapshot.Name(r.Output)
	if r.Tier > x.Tier() || !x.o.Snapshots.Has(n) {
		return false
	}
	x.o.Snapshots.Touch(n)
	return true
}

// Exec implements engine.Executor.
func (x *Executor) Exec(ctx context.Context, v *dag.Vertex, in []cache.Output, log io.Writer) (engine.Result, error) {
	var out cache.Output
	var warnings []cache.Warning
	var err error
	switch op := v.Op.(type) {
	case *dag.Image:
		out, err = x.image(ctx, op)
	case *dag.Run:
		out, warnings, err = x.run(ctx, op, v.Platform, in, log)
		return engine.Result{Output: out, Tier: x.Tier(), Warnings: warnings}, err
	case *dag.Copy:
		out, warnings, err = x.copy(ctx, op, in)
	case *dag.HTTP:
		out, err = x.http(ctx, op)
	case *dag.Git:
		out, err = x.git(ctx, op)
	case *dag.Mkdir:
		out, warnings, err = x.mkdir(ctx, op, in)
	case *dag.Merge:
		out, warnings, err = x.merge(ctx, op, in)
	case *dag.Pack:
		out, err = x.pack(ctx, op, in)
	case *dag.Manifest:
		out, err = x.manifest(ctx, op, in)
	case *dag.Index:
		out, err = x.index(ctx, op, in)
	default:
		err = fmt.Errorf("unknown kind of step %q", v.Op.Kind())
	}
	return engine.Result{Output: out, Warnings: warnings}, err
}

// name returns the snapshot that a Ref stands for; the empty Name for Scratch.
func name(r dag.Ref, in []cache.Output) snapshot.Name {
	if r == dag.Scratch {
		return ""
	}
	return snapshot.Name(in[r])
}

// decode reads an output that is a JSON value.
func decode[T any](out cache.Output) (T, error) {
	var v T
	err := json.Unmarshal([]byte(out), &v)
	return v, err
}

func encode(v any) (cache.Output, error) {
	b, err := json.Marshal(v)
	return cache.Output(b), err
}
