package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"path"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/client/llb"
	"github.com/moby/buildkit/client/llb/sourceresolver"
	"github.com/moby/buildkit/frontend/dockerfile/dockerfile2llb"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerui"
	"github.com/moby/buildkit/solver/pb"
	digest "github.com/opencontainers/go-digest"
	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

var capabilities = pb.Caps.CapSet(pb.Caps.All())

// buildkit is the side that is right by definition.
func buildkit(c testcase) (o outcome, err error) {
	p, err := platforms.Parse(c.platform)
	if err != nil {
		return o, err
	}
	files := llb.Local("context")
	res, err := dockerfile2llb.Dockerfile2LLB(context.Background(), []byte(c.source), dockerfile2llb.ConvertOpt{
		Config: frontendConfig(c), MainContext: &files, TargetPlatform: &p, MetaResolver: resolver{c}, LLBCaps: &capabilities,
		Warn: func(rule, _, _, text string, at []parser.Range) {
			line := 0
			if len(at) > 0 {
				line = at[0].Start.Line
			}
			o.warning(line, rule, text)
		},
	})
	if err != nil {
		return o, err
	}
	raw, err := json.Marshal(res.Image)
	if err != nil {
		return o, err
	}
	if err := o.image(raw); err != nil {
		return o, err
	}
	def, err := res.State.Marshal(context.Background(), llb.WithCaps(capabilities))
	if err != nil {
		return o, err
	}
	return o, o.definition(def)
}

// frontendConfig is what BuildKit's front end makes of build arguments before it lowers.
func frontendConfig(c testcase) dockerui.Config {
	return dockerui.Config{
		BuildArgs: maps.Clone(c.args), // lowering sets SOURCE_DATE_EPOCH in it
		Target:    c.target, Labels: c.labels,
		BuildPlatforms:   []v1.Platform{platforms.MustParse(buildPlatform)},
		CacheIDNamespace: c.args["BUILDKIT_CACHE_MOUNT_NS"],
		Hostname:         cmp.Or(c.args["BUILDKIT_SANDBOX_HOSTNAME"], c.hostname),
	}
}

// A resolver is the registry that BuildKit sees.
type resolver struct{ c testcase }

func (r resolver) ResolveImageConfig(_ context.Context, ref string, opt sourceresolver.Opt) (string, digest.Digest, []byte, error) {
	platform := buildPlatform
	if opt.ImageOpt != nil && opt.ImageOpt.Platform != nil {
		platform = platforms.FormatAll(platforms.Normalize(*opt.ImageOpt.Platform))
	}
	raw, err := r.c.config(ref, platform)
	return ref, "", raw, err
}

// operations are those of a definition by digest.
type operations map[string]*pb.Op

func (o *outcome) definition(def *llb.Definition) error {
	ops := operations{}
	for _, raw := range def.Def {
		op := &pb.Op{}
		if err := op.Unmarshal(raw); err != nil {
			return fmt.Errorf("read BuildKit's definition: %w", err)
		}
		ops[digest.FromBytes(raw).String()] = op
	}
	for _, op := range ops {
		o.operation(ops, op)
	}
	return nil
}

func (o *outcome) operation(ops operations, op *pb.Op) {
	switch x := op.Op.(type) {
	case *pb.Op_Exec:
		o.theirRun(ops, op, x.Exec)
	case *pb.Op_File:
		for _, a := range x.File.Actions {
			o.action(ops, op, a)
		}
	case *pb.Op_Source:
		if strings.HasPrefix(x.Source.Identifier, "docker-image://") {
			p := op.GetPlatform()
			o.base(x.Source.Identifier, platforms.Platform{OS: p.GetOS(), Architecture: p.GetArchitecture(), Variant: p.GetVariant(), OSVersion: p.GetOSVersion()})
		}
	case *pb.Op_Merge:
		o.add("merge")
	}
}

func (o *outcome) theirRun(ops operations, op *pb.Op, x *pb.ExecOp) {
	m := x.Meta
	r := run{args: m.Args, env: m.Env, dir: m.Cwd, user: m.User, host: m.Hostname, network: x.Network.String(), sandbox: x.Security.String()}
	for _, mnt := range x.Mounts {
		if mnt.Dest != "/" && !strings.HasPrefix(mnt.Dest, "/dev/pipes") {
			r.mounts = append(r.mounts, theirMount(ops, op, m.Cwd, mnt))
		}
	}
	for _, e := range x.Secretenv {
		r.mounts = append(r.mounts, secretEnv(e.Name, e.ID, e.Optional))
	}
	for _, d := range x.CdiDevices {
		r.mounts = append(r.mounts, device(d.Name, d.Optional))
	}
	o.run(r)
}

func theirMount(ops operations, op *pb.Op, dir string, m *pb.Mount) string {
	target, kind := m.Dest, m.MountType.String()
	if !path.IsAbs(target) {
		target = path.Join(dir, target) // as BuildKit's executor does
	}
	switch m.MountType {
	case pb.MountType_BIND:
		from := "scratch"
		if m.Input >= 0 {
			from = ops.origin(op.Inputs[m.Input])
		}
		return mount(kind, target, "%s", bindDetail(from, m.Selector, m.Readonly))
	case pb.MountType_CACHE:
		return mount(kind, target, "%s", cacheDetail(strings.TrimPrefix(m.CacheOpt.ID, "/"), m.CacheOpt.Sharing.String(), m.Readonly))
	case pb.MountType_SECRET:
		s := m.SecretOpt
		return mount(kind, target, "%s", secretDetail(s.ID, s.Uid, s.Gid, s.Mode, s.Optional))
	case pb.MountType_SSH:
		s := m.SSHOpt
		return mount(kind, target, "%s", secretDetail(cmp.Or(s.ID, "default"), s.Uid, s.Gid, s.Mode, s.Optional))
	}
	return mount(kind, target, "size=%d", m.GetTmpfsOpt().GetSize())
}

// origin is ourOrigin's counterpart.
func (ops operations) origin(in *pb.Input) string {
	s := ops[in.Digest].GetSource()
	switch {
	case s == nil:
		return "stage"
	case strings.HasPrefix(s.Identifier, "git://"):
		return "git"
	}
	return strings.TrimPrefix(shortRef(s.Identifier), "local://")
}

func (o *outcome) action(ops operations, op *pb.Op, a *pb.FileAction) {
	if m := a.GetMkdir(); m != nil && m.MakeParents { // without, it is what a mount stands on
		o.directory(m.Path, theirOwner(m.Owner))
	}
	if m := a.GetMkfile(); m != nil && m.Mode == 0o644 {
		o.heredoc(m.Path, m.Data)
	}
	if c := a.GetCopy(); c != nil {
		from := "stage"
		if int(a.SecondaryInput) < len(op.Inputs) {
			from = ops.origin(op.Inputs[a.SecondaryInput])
		}
		o.theirCopy(from, c)
	}
}

func (o *outcome) theirCopy(from string, x *pb.FileActionCopy) {
	c := copied{from: from, source: x.Src, dest: strings.TrimSuffix(x.Dest, "."), owner: theirOwner(x.Owner), mode: x.ModeStr,
		unpack: x.AttemptUnpackDockerCompatibility, exclude: x.ExcludePatterns}
	if c.mode == "" && x.Mode >= 0 {
		c.mode = fmt.Sprintf("%o", x.Mode)
	}
	if !x.AllowWildcard && from == "stage" { // a name that was just made of a body
		c.from = "heredoc"
	}
	if len(x.IncludePatterns) > 0 { // --parents
		c.source = path.Join(x.Src, x.IncludePatterns[0])
	}
	o.copied(c)
}

func theirOwner(o *pb.ChownOpt) string {
	return strings.TrimSuffix(theirUser(o.GetUser())+":"+theirUser(o.GetGroup()), ":")
}

func theirUser(u *pb.UserOpt) string {
	switch x := u.GetUser().(type) {
	case *pb.UserOpt_ByName:
		return x.ByName.Name
	case *pb.UserOpt_ByID:
		return fmt.Sprint(x.ByID)
	}
	return ""
}
