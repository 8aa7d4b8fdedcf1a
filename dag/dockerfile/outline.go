package dockerfile

import (
	"cmp"
	"slices"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"img/dag"
	"img/registry/image"
)

// An Outline says what can be given to the build of a target (docker build --call=outline).
type Outline struct {
	// Name is the target's, "" if it has none. Description is the comment above its FROM.
	Name, Description string
	Args              []OutlineArg
	Secrets           []OutlineMount
	SSH               []OutlineMount
	Caches            []OutlineMount
}

// An OutlineArg is an ARG that the target, or what it is made from, uses. Value is the default, or the build argument.
type OutlineArg struct {
	Name, Description, Value string
	Pos                      dag.Pos
	// global: the stage takes the value of the ARG before FROM, which is the one to show.
	global bool
}

// An OutlineMount is a secret, an ssh agent or a cache that a RUN mounts.
type OutlineMount struct {
	Name     string
	Required bool
	Pos      dag.Pos
}

// Outline lists what the target uses, in the order of the file. Bases need not be known.
func (f *File) Outline(o Options, base func(BaseRef) (*image.Image, error)) (*Outline, error) {
	l, err := f.checked(o, base)
	if err != nil {
		return nil, err
	}
	g := &outlining{l: l, globals: l.outlineGlobals(), seen: map[string]bool{}, out: &Outline{
		Name: l.target.source.Name, Description: l.target.source.DocComment,
	}}
	g.target()
	slices.SortStableFunc(g.out.Args, func(x, y OutlineArg) int { return cmp.Compare(x.Pos.Line, y.Pos.Line) })
	for _, list := range [][]OutlineMount{g.out.Secrets, g.out.SSH, g.out.Caches} {
		slices.SortStableFunc(list, func(x, y OutlineMount) int { return cmp.Compare(x.Pos.Line, y.Pos.Line) })
	}
	return g.out, nil
}

// A globalArg is an ARG before the first FROM, with the others that its default needs.
type globalArg struct {
	OutlineArg
	needs []string
}

func (b *build) outlineGlobals() map[string]globalArg {
	out := map[string]globalArg{}
	e := b.platformArgs()
	for _, c := range b.globals {
		for _, a := range c.Args {
			g := globalArg{OutlineArg: OutlineArg{Name: a.Key, Description: a.DocComment, Pos: b.f.at(c.Location())}}
			value, given := b.args[a.Key]
			if !given && a.Value != nil {
				word, err := b.fromWord(*a.Value, e)
				if err != nil {
					continue // the same error has ended the lowering
				}
				value, given = word.Result, true
				for name := range word.Matched {
					if name == a.Key { // ARG A=${A}b: what the A before needs
						g.needs = append(g.needs, out[name].needs...)
						continue
					}
					g.needs = append(g.needs, name)
				}
			}
			if given {
				e.set(a.Key, value)
				g.Value = value
			}
			out[a.Key] = g
		}
	}
	return out
}

// outlining collects a target's outline. The first of a name is shown.
type outlining struct {
	l       *lowering
	globals map[string]globalArg
	seen    map[string]bool
	out     *Outline
}

// target visits the target and what it needs, nearest first.
func (g *outlining) target() {
	visited := make([]bool, len(g.l.stages))
	for work := []*stage{g.l.target}; len(work) > 0; {
		s := work[0]
		work = work[1:]
		if visited[s.index] {
			continue
		}
		visited[s.index] = true
		g.args(s)
		for _, c := range s.commands {
			if run, ok := c.Command.(*instructions.RunCommand); ok {
				g.mounts(run)
			}
		}
		if s.base != nil {
			work = append(work, s.base)
		}
		for _, n := range s.needs() {
			work = append(work, n.stage)
		}
	}
}

func (g *outlining) args(s *stage) {
	own := map[string]OutlineArg{}
	var used []string
	if !s.replaced {
		used = slices.Clone(s.fromArgs)
	}
	for _, a := range s.ownArgs {
		if !a.global {
			own[a.Name] = a
		}
		used = append(used, a.Name)
	}
	for visited := map[string]bool{}; len(used) > 0; {
		name := used[0]
		used = used[1:]
		a, ok := own[name]
		if !ok {
			global, declared := g.globals[name]
			if !declared {
				continue
			}
			a = global.OutlineArg
		}
		if visited[name] {
			continue
		}
		visited[name] = true
		if !ok {
			used = append(used, g.globals[name].needs...)
		}
		if !g.seen["arg "+name] {
			g.seen["arg "+name] = true
			g.out.Args = append(g.out.Args, a)
		}
	}
}

func (g *outlining) mounts(run *instructions.RunCommand) {
	pos := g.l.f.at(run.Location())
	for _, m := range instructions.GetMounts(run) {
		id := m.CacheID
		var list *[]OutlineMount
		switch m.Type {
		case instructions.MountTypeSecret:
			list, id = &g.out.Secrets, secretID(m)
		case instructions.MountTypeSSH:
			list, id = &g.out.SSH, cmp.Or(id, "default")
		case instructions.MountTypeCache:
			list, id = &g.out.Caches, cmp.Or(id, m.Target)
		default:
			continue
		}
		if key := string(m.Type) + " " + id; !g.seen[key] {
			g.seen[key] = true
			*list = append(*list, OutlineMount{Name: id, Required: m.Required, Pos: pos})
		}
	}
}

// A TargetInfo is a stage as docker build --call=targets lists it.
type TargetInfo struct {
	Name, Description string
	// Base and Platform are as written.
	Base, Platform string
	// Default: it is built if no target is named.
	Default bool
	Pos     dag.Pos
}

// Targets lists the stages.
func (f *File) Targets() ([]TargetInfo, error) {
	stages, _, err := f.read(silent())
	if err != nil {
		return nil, err
	}
	var out []TargetInfo
	for i, s := range stages {
		out = append(out, TargetInfo{Name: s.Name, Description: s.DocComment, Base: s.BaseName, Platform: s.Platform,
			Default: i == len(stages)-1, Pos: f.at(s.Location)})
	}
	return out, nil
}
