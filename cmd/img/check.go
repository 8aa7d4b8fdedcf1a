package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/alecthomas/kong"
	"github.com/tonistiigi/go-csvvalue"

	"img/cmd/img/findings"
	"img/cmd/img/progress"
	"img/dag/dockerfile"
	"img/registry/image"
)

// A checkMode is --check's value: alone it asks for a check in place of the build; "error" builds, and makes warnings errors.
type checkMode string

const (
	checkOnly  = "only"
	checkError = "error"
)

// Decode implements kong.MapperValue.
func (m *checkMode) Decode(ctx *kong.DecodeContext) error {
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		*m = checkOnly
		return nil
	}
	v := fmt.Sprint(ctx.Scan.Pop().Value)
	if yes, err := strconv.ParseBool(v); err == nil {
		*m = map[bool]checkMode{true: checkOnly, false: ""}[yes]
		return nil
	}
	if v != checkError {
		return fmt.Errorf("must be true, false or error but is %q", v)
	}
	*m = checkError
	return nil
}

// IsBool makes the value optional.
func (checkMode) IsBool() bool { return true }

// What --call can ask for.
const (
	callBuild   = "build"
	callCheck   = "check"
	callOutline = "outline"
	callTargets = "targets"
)

// A call is --call=NAME[,format=F][,ignorestatus=B]: what is to be done in place of a build.
type call struct {
	Name, Format string
	// IgnoreStatus makes findings no failure.
	IgnoreStatus bool
}

// parseCall reads --call; the zero call is a build. BuildKit's own name of check is lint.
func parseCall(text string) (c call, err error) {
	if text == "" {
		return call{}, nil
	}
	fields, err := csvvalue.Fields(text, nil)
	if err != nil {
		return call{}, err
	}
	c.Format = findings.Text
	for i, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		switch {
		case !ok && i == 0:
			c.Name = f
		case key == "format":
			c.Format = value
		case key == "ignorestatus":
			if c.IgnoreStatus, err = strconv.ParseBool(value); err != nil {
				return call{}, fmt.Errorf("ignorestatus must be true or false but is %q", value)
			}
		default:
			return call{}, fmt.Errorf("unknown field %q", f)
		}
	}
	return c.check()
}

func (c call) check() (call, error) {
	formats := []string{findings.Text, findings.JSON}
	switch c.Name {
	case callBuild, "":
		return call{}, nil
	case callCheck, "lint":
		c.Name, formats = callCheck, findings.Formats
	case callOutline, callTargets:
	case "subrequests.describe":
		return call{}, errors.New("there is no front end to describe: img has build, check, outline and targets")
	default:
		return call{}, fmt.Errorf("%q is not known: there are build, check, outline and targets", c.Name)
	}
	if !slices.Contains(formats, c.Format) {
		return call{}, fmt.Errorf("%s has the formats %s, not %q", c.Name, strings.Join(formats, ", "), c.Format)
	}
	return c, nil
}

// calls settles --check, --call and --strict.
func (c *BuildCmd) calls(r *buildRequest, _ *Globals) (err error) {
	if r.Call, err = parseCall(c.Call); err != nil {
		return usagef("--call %s: %w", c.Call, err)
	}
	r.Strict = c.Strict || c.Check == checkError
	if c.Check != checkOnly {
		return nil
	}
	if c.Call != "" && r.Call.Name != callCheck {
		return usagef("--check and --call=%s exclude each other", c.Call)
	}
	if r.Call.Name == "" {
		r.Call = call{Name: callCheck, Format: findings.Text}
	}
	return nil
}

// said is an error that has been said already; only its exit code is left.
type said struct{ code int }

func (said) Error() string { return "said already" }

// called does what --call asks for. Nothing runs, and nothing is fetched but configurations of bases.
func (b *build) called(ctx context.Context, readErr error) error {
	if b.r.Call.Name == callCheck {
		return b.check(ctx, readErr)
	}
	if readErr != nil {
		return readErr
	}
	o := b.options(ctx, b.r.Platforms[0])
	var out bytes.Buffer
	if b.r.Call.Name == callTargets {
		list, err := b.file.Targets()
		if err != nil {
			return err
		}
		if err := findings.WriteTargets(&out, b.r.Call.Format, list, b.source); err != nil {
			return err
		}
		return b.g.print(out.Bytes(), b.r.Call.Format)
	}
	outline, err := b.file.Outline(o, b.maybeBase(ctx))
	if err != nil {
		return err
	}
	if err := findings.WriteOutline(&out, b.r.Call.Format, outline, b.source); err != nil {
		return err
	}
	return b.g.print(out.Bytes(), b.r.Call.Format)
}

// print writes a result that may hold what an input said.
func (g *Globals) print(out []byte, format string) error {
	text := string(out)
	if format == findings.Text || format == findings.GitHub {
		text = progress.Clean(text)
	} else {
		text = progress.CleanJSON(text)
	}
	_, err := fmt.Fprint(g.stdout, text)
	return err
}

// check is --check. A Dockerfile that cannot be read is one of the findings.
func (b *build) check(ctx context.Context, readErr error) error {
	found := &dockerfile.Findings{Err: readErr}
	var bad *dockerfile.Error
	switch {
	case readErr == nil:
		found = dockerfile.Check(b.file, b.options(ctx, b.r.Platforms[0]), b.maybeBase(ctx))
	case !errors.As(readErr, &bad) || bad.Pos.File != b.name:
		return readErr
	}
	file := findings.File{Name: b.name, Source: b.source, Warnings: found.Warnings, Err: found.Err}
	return b.g.report([]findings.File{file}, b.r.Call)
}

// report writes findings, and is the error that they are.
func (g *Globals) report(files []findings.File, c call) error {
	var out bytes.Buffer
	if err := findings.Write(&out, c.Format, files, findings.Options{Excerpt: excerpt}); err != nil {
		return err
	}
	if err := g.print(out.Bytes(), c.Format); err != nil {
		return err
	}
	code := exitOK
	for _, f := range files {
		var v *dockerfile.Violation
		switch {
		case f.Err == nil && len(f.Warnings) == 0:
		case f.Err == nil || errors.As(f.Err, &v):
			if f.Err != nil {
				sayError(g, f.Err)
			}
			if code == exitOK && (!c.IgnoreStatus || f.Err != nil) {
				code = exitFindings
			}
		default:
			sayError(g, f.Err)
			code = exitUsage
		}
	}
	if code == exitOK {
		return nil
	}
	return said{code}
}

// maybeBase finds bases for what can do without them. A registry that does not know the image makes it an error, as in a build; one
// that does not answer, or may not be asked, does not.
func (b *build) maybeBase(ctx context.Context) func(dockerfile.BaseRef) (*image.Image, error) {
	if b.bases == nil {
		b.bases = b.newBases()
	}
	var mu sync.Mutex
	return func(ref dockerfile.BaseRef) (*image.Image, error) {
		img, err := b.bases.resolve(ctx, &mu, ref)
		switch {
		case err == nil:
			return img, nil
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case errors.Is(err, image.ErrNotFound) && b.r.Pull != pullNever:
			return nil, b.baseError(ctx, ref, err)
		}
		notef(b.g.stderr, "%s: the base %s is not known, so checks of what it sets are left out: %v", ref.Pos, ref.Ref, err)
		return nil, dockerfile.ErrUnknownBase
	}
}
