package dockerfile

import (
	"path"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"img/dag"
)

// Guilty names the part of a step that an error is about. The zero value is the whole step.
type Guilty struct {
	// Source is a path that the step takes files from, as it is after expansion.
	Source string
	// Mount is the target of a RUN --mount; with Source, that mount's source is meant.
	Mount string
	// Secret is the id of a RUN --mount=type=secret.
	Secret string
	// Option is "--chown".
	Option string
	// Dest is the destination of COPY or ADD.
	Dest bool
}

// A stepText is what of an instruction is kept for errors of its step.
type stepText struct {
	build   *build
	stage   *stage
	pos     dag.Pos
	trigger bool
	// sources are COPY's, after expansion; targets and mounted RUN's mounts.
	sources          []string
	targets, mounted []string
	// values are those of the variables in the instruction.
	values map[string]string
}

// keepText remembers an instruction that may fail for one of its words.
func (l *lowering) keepText(s *stage, c command, id dag.ID) {
	t := stepText{build: l.build, stage: s, pos: l.f.at(c.Location()), trigger: c.trigger}
	switch i := c.Command.(type) {
	case *instructions.CopyCommand:
		t.sources = i.SourcePaths
	case *instructions.AddCommand:
		t.sources = i.SourcePaths
	case *instructions.RunCommand:
		mounts := instructions.GetMounts(i)
		if len(mounts) == 0 {
			return
		}
		for _, m := range mounts {
			t.targets, t.mounted = append(t.targets, m.Target), append(t.mounted, m.Source)
		}
	case *instructions.WorkdirCommand:
	default:
		return
	}
	for _, name := range variables(l.f.textAt(t.pos.Line, t.pos.End).joined) {
		if v, ok := s.env.Get(name); ok {
			if t.values == nil {
				t.values = map[string]string{}
			}
			t.values[name] = v
		}
	}
	if l.texts == nil {
		l.texts = map[dag.ID]stepText{}
	}
	l.texts[id] = t
}

// Blame is an error about a part of a step, with its place and what the variables there stand for. Its Hint is about these; what else
// may help the caller knows.
func (p *Plan) Blame(v *dag.Vertex, g Guilty, err error) *Error {
	e := &Error{Pos: v.Pos, Err: err, explained: true}
	t, ok := p.texts[v.ID]
	if !ok {
		return e
	}
	text := t.build.f.textAt(t.pos.Line, t.pos.End)
	if t.trigger {
		e.Pos = t.build.f.base(t.pos)
		return e
	}
	s, ok := t.find(text, g)
	if !ok {
		e.Pos = text.whole()
		return e
	}
	value := func(name string) (string, bool) { v, ok := t.values[name]; return v, ok }
	names := variables(text.of(s))
	e.Pos, e.With = text.pos(s.from), t.build.explainVariables(t.stage, t.pos.Line, names, value)
	for _, name := range names {
		if _, set := t.values[name]; !set && e.Hint == "" {
			e.Hint = t.build.scopeHint(t.stage, t.pos.Line, name)
		}
	}
	return e
}

func (t stepText) find(text *text, g Guilty) (span, bool) {
	switch {
	case g.Option != "":
		return text.flag(g.Option)
	case g.Secret != "":
		for _, fields := range text.mounts() {
			for _, f := range fields {
				if (f.key == "id" || f.key == "source" || f.key == "src") && f.value == g.Secret {
					return f.span, true
				}
			}
		}
		return text.flag("--mount")
	case g.Mount != "":
		keys := []string{"target", "dst", "destination"}
		if g.Source != "" {
			keys = []string{"source", "src"}
		}
		for i, target := range t.targets {
			if target != "" && (target == g.Mount || strings.HasSuffix(g.Mount, path.Join("/", target))) {
				return text.mountField(i, keys...)
			}
		}
		return text.flag("--mount")
	case g.Source != "" && len(t.mounted) > 0:
		for i, source := range t.mounted {
			if sameFile(source, g.Source) {
				return text.mountField(i, "source", "src")
			}
		}
	case g.Source != "":
		files := text.files()
		for i, source := range t.sources {
			if i < len(files)-1 && (sameFile(source, g.Source) || len(t.sources) == 1) {
				return files[i], true
			}
		}
	case g.Dest:
		if files := text.files(); len(files) > 0 {
			return files[len(files)-1], true
		}
	}
	return span{}, false
}

// sameFile reports whether a source, perhaps a pattern, is meant by a path.
func sameFile(source, file string) bool {
	source, _, _ = strings.Cut(source, "/./")
	source, file = path.Clean("/"+source), path.Clean("/"+file)
	ok, _ := path.Match(source, file)
	return ok || source == file
}

// mountField is a field of the n-th RUN --mount; the whole option if it has none of these keys.
func (t *text) mountField(n int, keys ...string) (span, bool) {
	mounts := t.mounts()
	if n >= len(mounts) {
		return span{}, false
	}
	for _, f := range mounts[n] {
		for _, key := range keys {
			if f.key == key {
				return f.span, true
			}
		}
	}
	return mounts[n][0].span, true
}

// files are the sources and the destination of COPY and ADD, without heredocs; in a JSON array with their quotes.
func (t *text) files() (out []span) {
	if array := t.array(); array != (span{}) {
		inner := strings.TrimRight(t.of(array), " \t]")
		for _, s := range csv(inner) {
			from := array.from + s.from
			from += len(t.joined[from:array.from+s.to]) - len(strings.TrimLeft(t.joined[from:array.from+s.to], " \t["))
			out = append(out, span{from, array.from + s.to})
		}
		return out
	}
	_, args := t.arguments()
	for _, s := range args {
		if parser.MustParseHeredoc(t.of(s)) == nil {
			out = append(out, s)
		}
	}
	return out
}
