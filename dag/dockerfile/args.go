package dockerfile

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"

	"img/dag"
)

// An environment is what variables stand for at a point of a Dockerfile: ENV and ARG in one list, in the order of their last setting.
// This order is also that of a RUN's environment.
type environment struct {
	vars []variable
}

type variable struct{ key, value string }

// Get and Keys make it a shell.EnvGetter.
func (e *environment) Get(key string) (string, bool) {
	for _, v := range e.vars {
		if v.key == key {
			return v.value, true
		}
	}
	return "", false
}

func (e *environment) Keys() []string {
	keys := make([]string, len(e.vars))
	for i, v := range e.vars {
		keys[i] = v.key
	}
	return keys
}

func (e *environment) set(key, value string) {
	e.unset(key)
	e.vars = append(e.vars, variable{key, value})
}

func (e *environment) unset(key string) {
	e.vars = slices.DeleteFunc(e.vars, func(v variable) bool { return v.key == key })
}

// with returns a copy in which an image's ENV is set on top, as at the start of a stage.
func (e *environment) with(env []string) *environment {
	last := make(map[string]int, len(env))
	for i, kv := range env {
		key, _, _ := strings.Cut(kv, "=")
		last[key] = i
	}
	out := &environment{vars: make([]variable, 0, len(e.vars)+len(env)+4)}
	for _, v := range e.vars {
		if _, ok := last[v.key]; !ok {
			out.vars = append(out.vars, v)
		}
	}
	for i, kv := range env {
		if key, value, _ := strings.Cut(kv, "="); last[key] == i {
			out.vars = append(out.vars, variable{key, value})
		}
	}
	return out
}

// list returns the environment as a process gets it: "K=V".
func (e *environment) list() []string {
	out := make([]string, len(e.vars))
	for i, v := range e.vars {
		out[i] = v.key + "=" + v.value
	}
	return out
}

// proxyNames are usable by RUN without a declaration, in both cases.
var proxyNames = []string{"HTTP_PROXY", "HTTPS_PROXY", "FTP_PROXY", "NO_PROXY", "ALL_PROXY"}

// proxies returns the proxy variables of a RUN, each in both cases; a build argument goes before the caller's own.
func proxies(o Options) []string {
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
	e := &environment{vars: []variable{
		{"BUILDPLATFORM", platforms.Format(h)}, {"BUILDOS", h.OS}, {"BUILDOSVERSION", h.OSVersion},
		{"BUILDARCH", h.Architecture}, {"BUILDVARIANT", h.Variant},
		{"TARGETPLATFORM", platforms.FormatAll(t)}, {"TARGETOS", t.OS}, {"TARGETOSVERSION", t.OSVersion},
		{"TARGETARCH", t.Architecture}, {"TARGETVARIANT", t.Variant}, {"TARGETSTAGE", target},
	}}
	for i, v := range e.vars {
		if override, ok := b.args[v.key]; ok {
			e.vars[i].value = override
		}
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
				word, err := b.lex.ProcessWordWithMatches(*a.Value, e)
				if err == nil {
					err = checkExpanded(word.Result)
				}
				if err != nil {
					return nil, b.f.located(err, b.f.at(c.Location()))
				}
				value, ok = word.Result, true
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
	text := "ARG"
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
		text += " " + a.Key
		if a.Value != nil {
			text += "=" + *a.Value
			l.hidesEnv(s, a, c)
			if !scanArgs[a.Key] {
				s.env.set(a.Key, *a.Value)
			}
		}
		s.declare(a.Key, a.ValueString())
		s.ownArgs = append(s.ownArgs, OutlineArg{Name: a.Key, Description: a.DocComment, Value: a.ValueString(), Pos: l.f.at(c.Location()),
			global: inherits && a.Value != nil})
	}
	s.remember(text, false)
	return nil
}

func (l *lowering) hidesEnv(s *stage, a instructions.KeyValuePairOptional, c instructions.Command) {
	for _, kv := range s.config.Env {
		if key, value, _ := strings.Cut(kv, "="); key == a.Key && value != *a.Value {
			l.warn(s.lint, ruleArgHidesEnv, l.f.at(c.Location()),
				fmt.Sprintf("ARG %s hides the ENV of that name from the steps that follow, while the image keeps %q", key, kv))
		}
	}
}

// An argument is an ARG in effect.
type argument struct{ key, value string }

// declare puts an argument into effect. One that is declared again keeps its place. The list may be shared with the base's, so it is
// never changed in place.
func (s *stage) declare(key, value string) {
	i := slices.IndexFunc(s.args, func(a argument) bool { return a.key == key })
	switch {
	case i < 0:
		s.args = append(s.args, argument{key, value})
	case s.args[i].value != value:
		s.args = slices.Clone(s.args)
		s.args[i].value = value
	}
}

// buildArgText is the "|2 a=1 b=2 " before a RUN in the history: the arguments in effect, with the values that the step sees.
func buildArgText(args []argument, env *environment) string {
	if len(args) == 0 {
		return ""
	}
	values := make(map[string]string, len(env.vars))
	for _, v := range env.vars {
		values[v.key] = v.value
	}
	var text strings.Builder
	fmt.Fprintf(&text, "|%d ", len(args))
	for _, a := range args {
		value, ok := values[a.key]
		if !ok {
			value = a.value
		}
		text.WriteString(a.key + "=" + value + " ")
	}
	return text.String()
}

// maxExpanded is how long a word may become, in bytes: more than any argument or variable that Linux hands to a process.
const maxExpanded = 1 << 20

// expandable refuses a word whose expansion could only be too long: a few lines that double a variable would fill the memory.
func (e *environment) expandable(word string) error {
	n, longest := strings.Count(word, "$"), 0
	if n < 64 {
		return nil // of values that are no longer themselves
	}
	for _, v := range e.vars {
		longest = max(longest, len(v.value))
	}
	if longest > maxExpanded/64 && n*longest > 64*maxExpanded {
		return fmt.Errorf("%d variables of up to %d bytes expand to more than %d MiB", n, longest, maxExpanded>>20)
	}
	return nil
}

func checkExpanded(out string) error {
	if len(out) > maxExpanded {
		return fmt.Errorf("a word expands to %d bytes, more than %d MiB", len(out), maxExpanded>>20)
	}
	return nil
}

// expandWord expands the variables of one word and warns of unknown ones.
func (l *lowering) expandWord(s *stage, c instructions.Command, word string) (string, error) {
	if err := s.env.expandable(word); err != nil {
		return "", err
	}
	out, unmatched, err := l.lex.ProcessWord(word, s.env)
	l.undefined(s, c, unmatched)
	l.replacementTrap(s, c, word)
	if err == nil {
		err = checkExpanded(out)
	}
	return out, err
}

func (l *lowering) undefined(s *stage, c instructions.Command, unmatched map[string]struct{}) {
	if s.unknown {
		return
	}
	for _, name := range slices.Sorted(maps.Keys(unmatched)) {
		known := slices.ContainsFunc(s.args, func(a argument) bool { return a.key == name })
		if known || scanArgs[name] {
			continue
		}
		text := linter.RuleUndefinedVar.Format(name, nearest(name, s.env.Keys()))
		s.lint.Run(&linter.RuleUndefinedVar, c.Location(), text)
	}
}
