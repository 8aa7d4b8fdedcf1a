package dockerfile

import (
	"cmp"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"img/dag"
)

// defaultHostname is the host name RUN sees unless asked otherwise, BuildKit's.
const defaultHostname = "buildkitsandbox"

func (l *lowering) run(s *stage, c command, i *instructions.RunCommand) error {
	v := &dag.Vertex{}
	in := inputs{v}
	op := &dag.Run{Base: in.ref(s.files), Env: s.env.list(), ProxyEnv: l.proxy, Dir: "/", User: s.config.User,
		Hostname: l.hostname(), Network: l.network(i), Hosts: l.o.Hosts}
	v.Op = op
	if s.config.WorkingDir != "" {
		op.Dir = s.config.WorkingDir
	}
	op.Devices = slices.Clone(l.o.Devices)
	for _, d := range instructions.GetDevices(i) {
		op.Devices = append(op.Devices, dag.Device{Name: d.Name, Required: d.Required})
	}
	if instructions.GetSecurity(i) == instructions.SecurityInsecure {
		if !l.o.Insecure {
			return errors.New("RUN --security=insecure is not allowed: security.insecure is not granted (--allow security.insecure)")
		}
		op.Security = instructions.SecurityInsecure
	}
	name := i.String()
	if err := l.spend(16 * len(op.Env)); err != nil { // texts are shared
		return err
	}
	args, err := runArgs(op, i)
	if err != nil {
		return err
	}
	if len(i.Files) > 0 && parser.MustParseHeredoc(i.CmdLine[0]) != nil {
		name += " (" + firstLine(i.Files[0].Data) + ")"
	}
	op.Args = args
	if i.PrependShell {
		op.Args = s.config.withShell(s.meta.OS, args)
	}
	if len(op.Args) == 0 {
		return errors.New("arguments are required")
	}
	if err := l.mounts(s, c, i, op, in); err != nil {
		return err
	}
	past := "RUN " + s.args.text(s.env) + strings.Join(op.Args, " ") + built
	l.step(s, c, v, l.runName(s, i, name))
	s.remember(past, true)
	return nil
}

// runArgs returns the command, without shell. Heredocs: one alone is the script itself, or a file if it begins with "#!"; all others
// are put together again for the shell to read.
func runArgs(op *dag.Run, i *instructions.RunCommand) ([]string, error) {
	if len(i.Files) == 0 {
		return i.CmdLine, nil
	}
	if len(i.CmdLine) != 1 || !i.PrependShell {
		return nil, fmt.Errorf("parsing produced an invalid run command: %v", i.CmdLine)
	}
	if parser.MustParseHeredoc(i.CmdLine[0]) == nil {
		text := i.CmdLine[0]
		for _, f := range i.Files {
			text += "\n" + f.Data + f.Name
		}
		return []string{text}, nil
	}
	f := i.Files[0]
	data := f.Data
	if f.Chomp {
		data = parser.ChompHeredocContent(data)
	}
	if !strings.HasPrefix(data, "#!") {
		return []string{data}, nil
	}
	if err := dag.CheckFileName(f.Name); err != nil {
		return nil, err
	}
	op.Script, op.ScriptPath = []byte(data), dag.ScriptDir+f.Name
	return []string{op.ScriptPath}, nil
}

func firstLine(text string) string {
	line, _, more := strings.Cut(strings.TrimSpace(text), "\n")
	line = strings.TrimSuffix(line, "\r")
	if more {
		line += "..."
	}
	return line
}

// ParseDevice reads a device as RUN --device has it: [name=]NAME[,required[=BOOL]].
func ParseDevice(s string) (dag.Device, error) {
	d, err := instructions.ParseDevice(s)
	if err != nil {
		return dag.Device{}, err
	}
	return dag.Device{Name: d.Name, Required: d.Required}, nil
}

func (l *lowering) hostname() string {
	if l.o.Hostname != "" {
		return l.o.Hostname
	}
	if h := l.args["BUILDKIT_SANDBOX_HOSTNAME"]; h != "" {
		return h
	}
	return defaultHostname
}

// network is the instruction's choice, else the build's; the default is "".
func (l *lowering) network(i *instructions.RunCommand) string {
	n := instructions.GetNetwork(i)
	if n == instructions.NetworkDefault {
		n = l.o.Network
	}
	if n == instructions.NetworkDefault {
		return ""
	}
	return n
}

// runName is the instruction as people see it: known variables expanded, unknown ones left to the shell, secrets masked.
func (l *lowering) runName(s *stage, i *instructions.RunCommand, name string) string {
	env := s.env.with(nil)
	for _, m := range instructions.GetMounts(i) {
		if m.Type == instructions.MountTypeSecret && m.Env != nil {
			env.set(*m.Env, "****")
		}
	}
	lex := shell.NewLex(l.f.escape)
	lex.RawQuotes, lex.SkipUnsetEnv = true, true
	return l.expandName(lex, name, env)
}

// mounts lowers RUN --mount, parents before what is mounted below them.
func (l *lowering) mounts(s *stage, c command, i *instructions.RunCommand, op *dag.Run, in inputs) error {
	agents := 0
	for n, m := range instructions.GetMounts(i) {
		out := dag.Mount{Type: string(m.Type), Target: m.Target, From: dag.Source{Input: dag.Scratch}, ReadOnly: m.ReadOnly,
			Required: m.Required, Mode: narrow(m.Mode), UID: narrow(m.UID), GID: narrow(m.GID)}
		var err error
		switch m.Type {
		case instructions.MountTypeSecret:
			secretMount(&out, m)
		case instructions.MountTypeSSH:
			err = agentMount(&out, m, &agents, op)
		case instructions.MountTypeTmpfs:
			out.Size = m.SizeLimit
			err = l.placeMount(s, &out, m)
		default:
			var from origin
			if n < len(c.from) {
				from = c.from[n]
			}
			err = l.fileMount(s, c, &out, m, from, in)
		}
		if err != nil {
			return err
		}
		if out.Target != "" && !path.IsAbs(out.Target) {
			out.Target = path.Join("/", s.config.WorkingDir, out.Target)
		}
		op.Mounts = append(op.Mounts, out)
	}
	slices.SortStableFunc(op.Mounts, func(a, b dag.Mount) int { return strings.Compare(a.Target, b.Target) })
	return nil
}

func narrow(n *uint64) *uint32 {
	if n == nil {
		return nil
	}
	v := uint32(*n)
	return &v
}

// secretID is the name under which a secret is asked for.
func secretID(m *instructions.Mount) string {
	if id := cmp.Or(m.Source, m.CacheID); id != "" {
		return id
	}
	return path.Base(m.Target)
}

func secretMount(out *dag.Mount, m *instructions.Mount) {
	out.ReadOnly = false
	out.ID = secretID(m)
	if m.Env != nil {
		out.Env = *m.Env
		if out.Env == "" {
			out.Env = out.ID
		}
	} else if m.Target == "" {
		out.Target = "/run/secrets/" + path.Base(out.ID)
	}
}

func agentMount(out *dag.Mount, m *instructions.Mount, agents *int, op *dag.Run) error {
	if m.Source != "" {
		return errors.New("ssh does not support source")
	}
	out.ReadOnly = false
	if out.ID = m.CacheID; out.ID == "" {
		out.ID = "default"
	}
	if out.Target == "" {
		out.Target = fmt.Sprintf("/run/buildkit/ssh_agent.%d", *agents)
	}
	set := slices.ContainsFunc(op.Env, func(kv string) bool { return strings.HasPrefix(kv, "SSH_AUTH_SOCK=") })
	if *agents == 0 && !set {
		op.Env = append(op.Env, "SSH_AUTH_SOCK="+out.Target)
	}
	*agents++
	return nil
}

// fileMount lowers bind and cache mounts. A bind without from shows the build context, a cache without from begins empty.
func (l *lowering) fileMount(s *stage, c command, out *dag.Mount, m *instructions.Mount, from origin, in inputs) (err error) {
	if from.stage != nil && !from.stage.lowered {
		return fmt.Errorf("cannot mount from stage %q to %q, stage needs to be defined before current command", m.From, m.Target)
	}
	out.Source = path.Join("/", m.Source)
	seeded := m.From != ""
	if m.Type == instructions.MountTypeCache {
		seeded = l.cacheMount(out, m)
	}
	if seeded {
		if out.From, err = l.source(s, from, &c, in); err != nil {
			return err
		}
	} else if m.Type == instructions.MountTypeBind {
		out.From.Context = dag.MainContext
	}
	return l.placeMount(s, out, m)
}

// cacheMount reports whether a cache begins with what its from has. A mode or an owner makes it an empty directory instead, unless a source
// is given: that is a path in the cache, and has its own.
func (l *lowering) cacheMount(out *dag.Mount, m *instructions.Mount) (seeded bool) {
	if out.ID = m.CacheID; out.ID == "" {
		out.ID = path.Clean(m.Target)
	}
	if ns := l.args["BUILDKIT_CACHE_MOUNT_NS"]; ns != "" {
		out.ID = ns + "/" + out.ID
	}
	if out.Sharing = string(m.CacheSharing); out.Sharing == "" {
		out.Sharing = dag.SharingShared
	}
	if out.Source != "/" {
		out.Mode, out.UID, out.GID = nil, nil, nil
	}
	return m.From != "" && out.Mode == nil && out.UID == nil && out.GID == nil
}

func (l *lowering) placeMount(s *stage, out *dag.Mount, m *instructions.Mount) error {
	out.Target = path.Clean(path.Join("/", s.config.WorkingDir, m.Target))
	if path.IsAbs(m.Target) {
		out.Target = path.Clean(m.Target)
	}
	if out.Target == "/" {
		return fmt.Errorf("invalid mount target %q", out.Target)
	}
	return nil
}
