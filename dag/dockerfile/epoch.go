package dockerfile

import (
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"img/dag"
)

// epochName is the build argument that gives a build its time (reproducible-builds.org, SOURCE_DATE_EPOCH).
const epochName = "SOURCE_DATE_EPOCH"

// resolveEpoch finds the time of the build: the option, else SOURCE_DATE_EPOCH as build argument or global ARG. What it finds, seconds,
// takes the argument's place; where there is no time, the argument is unset.
func (b *build) resolveEpoch(stages []instructions.Stage) (err error) {
	value, isArg := b.args[epochName]
	global, isGlobal := b.global.Get(epochName)
	if !isArg {
		value = global
	}
	if b.epoch = b.o.Epoch; b.epoch == nil {
		if b.epoch, err = b.epochOf(value, stages); err != nil {
			return err
		}
	}
	if b.epoch == nil {
		delete(b.args, epochName)
		b.global.unset(epochName)
		return nil
	}
	b.args[epochName] = strconv.FormatInt(*b.epoch, 10)
	if isGlobal {
		b.global.set(epochName, b.args[epochName])
	}
	return nil
}

// epochOf reads a value: seconds, "context", a named context, or a stage that fetches one thing. nil means that there is no time.
func (b *build) epochOf(value string, stages []instructions.Stage) (*int64, error) {
	if value == "" {
		return nil, nil
	}
	if n, err := strconv.ParseInt(value, 10, 64); err == nil {
		return &n, nil
	}
	if value == dag.MainContext {
		return b.contextTime(value)
	}
	if key, c, ok := b.context(value, b.buildPlatform); ok {
		if c.Image != "" || c.Layout != "" {
			return nil, nil // an image has no time of its own
		}
		return b.contextTime(key)
	}
	var names []string
	for _, st := range stages {
		if st.Name != "" && strings.EqualFold(st.Name, value) {
			return b.stageTime(st)
		}
		names = append(names, st.Name)
	}
	e := &Error{Pos: dag.Pos{File: b.f.name}, Err: fmt.Errorf("invalid %s: %s", epochName, value), Hint: didYouMean(nearest(value, names))}
	if e.Hint == "" {
		e.Hint = `give seconds since 1970, "context", or the name of a build context or of a stage`
	}
	return nil, e
}

func (b *build) contextTime(name string) (*int64, error) {
	if b.o.ContextTime == nil {
		return nil, nil
	}
	t, err := b.o.ContextTime(name)
	if err != nil {
		return nil, b.f.fail(dag.Pos{}, fmt.Errorf("%s of the context %q: %w", epochName, name, err))
	}
	return t, nil
}

// stageTime is the time of what a stage fetches. The stage may have nothing but ARGs and one ADD of one remote source.
func (b *build) stageTime(st instructions.Stage) (*int64, error) {
	pos := b.f.at(st.Location)
	t, err := b.remoteTime(st)
	if err != nil {
		return nil, b.f.located(err, pos)
	}
	return t, nil
}

// errNotOneSource is the rule for stages that give a build its time.
var errNotOneSource = errors.New(epochName + " stage must contain exactly one remote ADD")

func (b *build) remoteTime(st instructions.Stage) (*int64, error) {
	env := b.global.with(nil)
	env.unset(epochName)
	base, err := b.plainWord(st.BaseName, env)
	if err != nil {
		return nil, err
	}
	if base != scratch {
		return nil, errors.New(epochName + " stage must use FROM scratch")
	}
	var add *instructions.AddCommand
	for _, c := range st.Commands {
		switch c := c.(type) {
		case *instructions.ArgCommand:
			if err := b.plainArgs(c, env); err != nil {
				return nil, err
			}
		case *instructions.AddCommand:
			if add != nil || len(c.SourceContents) != 0 || len(c.SourcePaths) != 1 {
				return nil, b.f.fail(b.f.at(c.Location()), errNotOneSource)
			}
			copied := *c // the build's own instruction is expanded when its stage is lowered
			copied.SourcePaths = append([]string(nil), c.SourcePaths...)
			if err := copied.Expand(func(word string) (string, error) { return b.plainWord(word, env) }); err != nil {
				return nil, err
			}
			add = &copied
		default:
			return nil, b.f.fail(b.f.at(c.Location()), fmt.Errorf("%s stage may hold ARG and ADD alone, not %s", epochName, c.Name()))
		}
	}
	if add == nil {
		return nil, errNotOneSource
	}
	return b.addTime(add)
}

// plainArgs sets arguments as a stage does, without any image.
func (b *build) plainArgs(c *instructions.ArgCommand, env *environment) error {
	for _, a := range c.Args {
		value, ok := b.args[a.Key]
		if !ok && a.Value != nil {
			var err error
			if value, err = b.plainWord(*a.Value, env); err != nil {
				return err
			}
			ok = true
		}
		if ok {
			env.set(a.Key, value)
		}
	}
	return nil
}

// addTime asks for the time of an ADD's source.
func (b *build) addTime(add *instructions.AddCommand) (*int64, error) {
	op, err := sourceOp(add)
	var t *int64
	if err == nil && b.o.SourceTime != nil {
		t, err = b.o.SourceTime(op)
	}
	if err != nil {
		return nil, b.f.fail(b.f.word(b.f.at(add.Location()), add.SourcePaths[0]), err)
	}
	return t, nil
}

// sourceOp is what an ADD of one remote source fetches.
func sourceOp(add *instructions.AddCommand) (dag.Op, error) {
	src := add.SourcePaths[0]
	g, err := parseGit(src, false)
	switch {
	case err != nil:
		return nil, err
	case g != nil:
		return gitOp(add, g)
	case isURL(src):
		return urlOp(add, src)
	}
	return nil, errors.New(epochName + " stage source must be a single HTTP(S) or Git ADD")
}
