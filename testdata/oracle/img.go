package main

import (
	"bytes"
	"cmp"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/types"

	"img/dag"
	"img/dag/dockerfile"
	"img/registry/image"
)

// img is our side.
func img(c testcase) (o outcome, err error) {
	f, err := dockerfile.Parse("Dockerfile", []byte(c.source))
	if err != nil {
		return o, err
	}
	p, err := dockerfile.Lower(f, dockerfile.Options{Platform: c.platform, BuildPlatform: buildPlatform, Image: true,
		BuildArgs: c.args, Target: c.target, Labels: c.labels, Hostname: c.hostname, Insecure: true},
		func(r dockerfile.BaseRef) (*image.Image, error) {
			raw, err := c.config(r.Ref, r.Platform)
			if err != nil {
				return nil, err
			}
			return fakeImage(raw)
		})
	if err != nil {
		return o, err
	}
	for _, w := range p.Warnings {
		if !w.Own {
			o.warning(w.Pos.Line, w.Rule, w.Text)
		}
	}
	if err := o.image(p.Targets[0].Config); err != nil {
		return o, err
	}
	for _, id := range needed(p.Graph, p.Targets[0]) {
		if err := o.vertex(p.Graph, p.Graph.Vertex(id)); err != nil {
			return o, err
		}
	}
	return o, nil
}

func fakeImage(raw []byte) (*image.Image, error) {
	c, err := v1.ParseConfigFile(bytes.NewReader(raw))
	if err != nil {
		return nil, err
	}
	out := &image.Image{RawConfig: raw, Config: c}
	for _, d := range c.RootFS.DiffIDs {
		out.Layers = append(out.Layers, image.Layer{DiffID: d, Descriptor: v1.Descriptor{Digest: d, Size: 1, MediaType: types.OCILayer}})
	}
	return out, nil
}

// needed are the vertices that the target's files need, for what else stands in a graph is never made.
func needed(g *dag.Graph, t dag.Target) (out []dag.ID) {
	if t.Files == dag.Empty {
		return nil
	}
	out = []dag.ID{t.Files}
	for i := 0; i < len(out); i++ {
		for _, id := range g.Vertex(out[i]).Inputs {
			if !slices.Contains(out, id) {
				out = append(out, id)
			}
		}
	}
	return out
}

func (o *outcome) vertex(g *dag.Graph, v *dag.Vertex) error {
	switch op := v.Op.(type) {
	case *dag.Image:
		p, err := platforms.Parse(v.Platform)
		if err != nil {
			return err
		}
		o.base(op.Ref, p)
	case *dag.Run:
		o.ourRun(g, v, op)
	case *dag.Mkdir:
		o.directory(op.Path, ourOwner(op.User))
	case *dag.Copy:
		o.ourCopy(g, v, op)
	case *dag.Merge:
		o.add("merge")
	}
	return nil
}

func (o *outcome) ourRun(g *dag.Graph, v *dag.Vertex, op *dag.Run) {
	r := run{args: op.Args, env: op.Env, dir: op.Dir, user: op.User, network: cmp.Or(op.Network, "unset"), sandbox: cmp.Or(op.Security, "sandbox")}
	if op.Network == "default" {
		r.network = "unset"
	}
	if op.Hostname != "buildkitsandbox" { // BuildKit's executor adds this one
		r.host = op.Hostname
	}
	for _, m := range op.Mounts {
		r.mounts = append(r.mounts, ourMount(g, v, m)...)
	}
	for _, d := range op.Devices {
		r.mounts = append(r.mounts, device(d.Name, !d.Required))
	}
	o.run(r)
}

func ourMount(g *dag.Graph, v *dag.Vertex, m dag.Mount) (out []string) {
	switch m.Type {
	case "bind":
		return []string{mount("bind", m.Target, "%s", bindDetail(ourOrigin(g, v, m.From), m.Source, m.ReadOnly))}
	case "cache":
		return []string{mount("cache", m.Target, "%s", cacheDetail(m.ID, cmp.Or(m.Sharing, "shared"), m.ReadOnly))}
	case "tmpfs":
		return []string{mount("tmpfs", m.Target, "size=%d", m.Size)}
	}
	if m.Env != "" {
		out = append(out, secretEnv(m.Env, m.ID, !m.Required))
	}
	if m.Target != "" || m.Env == "" {
		mode := uint32(0o400)
		if m.Type == "ssh" {
			mode = 0o600
		}
		out = append(out, mount(m.Type, m.Target, "%s", secretDetail(m.ID, number(m.UID, 0), number(m.GID, 0), number(m.Mode, mode), !m.Required)))
	}
	return out
}

func number(n *uint32, otherwise uint32) uint32 {
	if n == nil {
		return otherwise
	}
	return *n
}

// ourOrigin is where the files of a source come from: a context's name, a reference, a URL, "git", "scratch" or "stage".
func ourOrigin(g *dag.Graph, v *dag.Vertex, s dag.Source) string {
	if s.Context != "" {
		return s.Context
	}
	if s.Input == dag.Scratch {
		return "scratch"
	}
	switch op := g.Vertex(v.Inputs[s.Input]).Op.(type) {
	case *dag.Image:
		return shortRef(op.Ref)
	case *dag.HTTP:
		return op.URL
	case *dag.Git:
		return "git"
	}
	return "stage"
}

func (o *outcome) ourCopy(g *dag.Graph, v *dag.Vertex, op *dag.Copy) {
	c := copied{dest: op.Dest, mode: op.Chmod, exclude: op.Exclude, owner: ourOwner(op.Chown)}
	for _, s := range op.Sources {
		c.from, c.unpack = ourOrigin(g, v, s.From), s.Unpack
		for _, c.source = range s.Paths {
			switch {
			case c.from == "git":
				c.source = "/" // BuildKit's source begins at the subdirectory, our step goes there
			case op.Parents: // the pivot is nothing but a mark
				c.source = strings.Replace(c.source, "/./", "/", 1)
			}
			o.copied(c)
		}
	}
	c.from, c.unpack = "heredoc", false
	for _, h := range op.Files {
		o.heredoc(h.Name, h.Data)
		c.source = h.Name
		o.copied(c)
	}
}

// ourOwner reads an owner as exec does: root is 0, and so is nothing beside a colon.
func ourOwner(text string) string {
	if text == "" {
		return ""
	}
	ids := strings.Split(text, ":")
	for i, id := range ids {
		if id == "" || id == "root" {
			ids[i] = "0"
		}
	}
	return strings.Join(ids, ":")
}
