package dockerfile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"img/dag"
)

// An environment is what variables stand for at a point of a Dockerfile: ENV and ARG in one list, in the order of their last setting.
// This order is also that of a RUN's environment.
type environment struct {
	vars []variable // those that are not at their key's place have been set again or unset
	at   map[string]int
}

type variable struct{ key, text string } // text is "key=value"

func (v variable) value() string { return v.text[len(v.key)+1:] }

func newEnvironment(n int) *environment {
	return &environment{vars: make([]variable, 0, n), at: make(map[string]int, n)}
}

// Get and Keys make it a shell.EnvGetter.
func (e *environment) Get(key string) (string, bool) {
	i, ok := e.at[key]
	if !ok {
		return "", false
	}
	return e.vars[i].value(), true
}

func (e *environment) Keys() []string {
	keys := make([]string, 0, len(e.at))
	for v := range e.all {
		keys = append(keys, v.key)
	}
	return keys
}

// all goes over what is set, in order.
func (e *environment) all(yield func(variable) bool) {
	for i, v := range e.vars {
		if at, ok := e.at[v.key]; ok && at == i && !yield(v) {
			return
		}
	}
}

func (e *environment) set(key, value string) {
	if len(e.vars) > 2*len(e.at)+16 {
		*e = *e.with(nil) // leave out what is gone
	}
	if e.at == nil {
		e.at = map[string]int{}
	}
	e.at[key] = len(e.vars)
	e.vars = append(e.vars, variable{key, key + "=" + value})
}

func (e *environment) unset(key string) { delete(e.at, key) }

// with returns a copy in which an image's ENV is set on top, as at the start of a stage.
func (e *environment) with(env []string) *environment {
	out := newEnvironment(len(e.at) + len(env))
	for v := range e.all {
		out.at[v.key] = len(out.vars)
		out.vars = append(out.vars, v)
	}
	for _, kv := range env {
		key, value, _ := strings.Cut(kv, "=")
		out.set(key, value)
	}
	return out
}

// list returns the environment as a process gets it: "K=V".
func (e *environment) list() []string {
	out := make([]string, 0, len(e.at))
	for v := range e.all {
		out = append(out, v.text)
	}
	return out
}

// proxyNames are usable by RUN without a declaration, in both cases.
var proxyNames = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

// ProxyEnv returns the proxy variables of a RUN, each in both cases; a build argument goes before the caller's own.
func ProxyEnv(o Options) []string {
	var out []string
	for _, name := range proxyNames {
		v, ok := foldGet(o.BuildArgs, name)
		if !ok {
			v, _ = foldGet(o.ProxyArgs, name)
		}
		if v != "" {
			out = append(out, name+"="+v, strings.ToLower(name)+"="+v)
		}
	}
	return out
}

// foldGet returns the value of a key, whatever its case; of several the last in order counts, as in BuildKit.
func foldGet(m map[string]string, key string) (value string, ok bool) {
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if strings.EqualFold(k, key) {
			value, ok = m[k], true
		}
	}
	return value, ok
}

// behaviourArgs steer the builder, not the build; nobody declares them.
const behaviourArgs = "BUILDKIT_"

// scanArgs are declared like others, but are not part of an environment.
var scanArgs = map[string]bool{"BUILDKIT_SBOM_SCAN_CONTEXT": true, "BUILDKIT_SBOM_SCAN_STAGE": true}

// platformArgs returns the predefined arguments of the global scope.
func (b *build) platformArgs() *environment {
	target := b.o.Target
	if target == "" {
		target = b.stageNames[len(b.stageNames)-1]
	}
	if target == "" {
		target = "default"
	}
	t, h := b.platform, b.buildPlatform
	e := newEnvironment(16)
	for _, v := range [][2]string{
		{"BUILDPLATFORM", platforms.Format(h)}, {"BUILDOS", h.OS}, {"BUILDOSVERSION", h.OSVersion},
		{"BUILDARCH", h.Architecture}, {"BUILDVARIANT", h.Variant},
		{"TARGETPLATFORM", platforms.FormatAll(t)}, {"TARGETOS", t.OS}, {"TARGETOSVERSION", t.OSVersion},
		{"TARGETARCH", t.Architecture}, {"TARGETVARIANT", t.Variant}, {"TARGETSTAGE", target},
	} {
		if override, ok := b.args[v[0]]; ok {
			v[1] = override
		}
		e.set(v[0], v[1])
	}
	return e
}

// globalArgs returns the global scope after the ARGs before the first FROM: build argument, else default.
func (b *build) globalArgs(cmds []instructions.ArgCommand, args map[string]string) (*environment, error) {
	e := b.platformArgs()
	for _, c := range cmds {
		for _, a := range c.Args {
			value, ok := args[a.Key]
			if !ok && a.Value != nil {
				word, err := b.plainWord(*a.Value, e)
				if err != nil {
					return nil, b.f.located(err, b.f.at(c.Location()))
				}
				value, ok = word, true
			}
			if ok {
				e.set(a.Key, value)
			}
		}
	}
	return e, nil
}

// undeclared warns of build arguments that no ARG asks for: BuildKit ignores them, so a typing error goes unseen.
func (b *build) undeclared(declared map[string]bool) {
	predefined := b.platformArgs()
	names := slices.Sorted(maps.Keys(declared))
	for _, key := range slices.Sorted(maps.Keys(b.o.BuildArgs)) {
		_, platform := predefined.Get(key)
		if declared[key] || platform || key == epochName || strings.HasPrefix(key, behaviourArgs) ||
			slices.ContainsFunc(proxyNames, func(p string) bool { return strings.EqualFold(p, key) }) {
			continue
		}
		text := fmt.Sprintf("Build argument %q is not declared by any ARG and has no effect", key)
		b.warn(b.lint, ruleUndeclaredBuildArg, dag.Pos{}, suggest(text, nearest(key, names)))
	}
}

func suggest(text, word string) string {
	if word == "" {
		return text
	}
	return fmt.Sprintf("%s (did you mean %s?)", text, word)
}

// arg is ARG in a stage. Value: build argument, else own default, else the global scope's, else unset.
// What is set here wins over an earlier ENV until the stage ends, though the image keeps ENV's.
func (l *lowering) arg(s *stage, c *instructions.ArgCommand) error {
	text := strings.Builder{}
	text.WriteString("ARG")
	for _, a := range c.Args {
		l.noSecret(s, "ARG", a.Key, c)
		l.declared[a.Key] = true
		inherits := a.Value == nil
		switch v, given := l.args[a.Key]; {
		case given:
			a.Value, inherits = &v, false
		case a.Value != nil:
			v, err := l.expandWord(s, c, *a.Value)
			if err != nil {
				return err
			}
			a.Value = &v
		default:
			if v, ok := l.global.Get(a.Key); ok {
				a.Value = &v
			}
		}
		text.WriteString(" " + a.Key)
		if a.Value != nil {
			text.WriteString("=" + *a.Value)
			l.hidesEnv(s, a, c)
			if !scanArgs[a.Key] {
				s.env.set(a.Key, *a.Value)
			}
		}
		s.args.declare(a.Key, a.ValueString())
		s.ownArgs = append(s.ownArgs, OutlineArg{Name: a.Key, Description: a.DocComment, Value: a.ValueString(), Pos: l.f.at(c.Location()),
			global: inherits && a.Value != nil})
	}
	s.remember(text.String(), false)
	return nil
}

func (l *lowering) hidesEnv(s *stage, a instructions.KeyValuePairOptional, c instructions.Command) {
	i, ok := s.envAt[a.Key]
	if !ok || s.config.Env[i] == a.String() {
		return
	}
	l.warn(s.lint, ruleArgHidesEnv, l.f.at(c.Location()),
		fmt.Sprintf("ARG %s hides the ENV of that name from the steps that follow, while the image keeps %q", a.Key, s.config.Env[i]))
}

// arguments are the ARGs in effect, in the order of their first declaration.
type arguments struct {
	list []argument
	at   map[string]int
}

type argument struct{ key, value string }

func (a *arguments) has(key string) bool { _, ok := a.at[key]; return ok }

// declare puts an argument into effect. One that is declared again keeps its place.
func (a *arguments) declare(key, value string) {
	if i, ok := a.at[key]; ok {
		a.list[i].value = value
		return
	}
	if a.at == nil {
		a.at = map[string]int{}
	}
	a.at[key] = len(a.list)
	a.list = append(a.list, argument{key, value})
}

func (a *arguments) clone() arguments {
	return arguments{list: slices.Clone(a.list), at: maps.Clone(a.at)}
}

// text is the "|2 a=1 b=2 " before a RUN in the history: the arguments in effect, with the values that the step sees.
func (a *arguments) text(env *environment) string {
	if len(a.list) == 0 {
		return ""
	}
	var text strings.Builder
	fmt.Fprintf(&text, "|%d ", len(a.list))
	for _, arg := range a.list {
		value, ok := env.Get(arg.key)
		if !ok {
			value = arg.value
		}
		text.WriteString(arg.key + "=" + value + " ")
	}
	return text.String()
}
