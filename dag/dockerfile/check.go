package dockerfile

import (
	"errors"

	"img/registry/image"
)

// ErrUnknownBase is what the base func of Check answers for an image that cannot be had now. Checks that need its configuration are
// then left out; for Lower it is an error like any other.
var ErrUnknownBase = errors.New("base image not known")

// Findings are what Check finds.
type Findings struct {
	Warnings []Warning
	// Err is why the file cannot be built, nil if it can: an *Error, or with "# check=error=true" a *Violation in one.
	Err error
	// Unknown are the bases that could not be had.
	Unknown []BaseRef
}

// Check finds what Lower would warn of, and why it would fail. Without a target all stages are looked at, those too that a build does
// not need. What comes before an error is found in any case.
func Check(f *File, o Options, base func(BaseRef) (*image.Image, error)) *Findings {
	l, err := f.checked(o, base)
	if l == nil {
		return &Findings{Err: err}
	}
	if err == nil {
		err = f.explain(l.build, l.violation())
	}
	found := &Findings{Warnings: l.sortedWarnings(), Err: err}
	for _, s := range l.stages {
		if s.unknown && s.base == nil {
			found.Unknown = append(found.Unknown, l.baseRef(s, s.outside, nil))
		}
	}
	return found
}

// checked lowers as far as that is possible; bases need not be known. The error may come with a lowering, or without.
func (f *File) checked(o Options, base func(BaseRef) (*image.Image, error)) (*lowering, error) {
	o.AllStages = o.AllStages || o.Target == ""
	b, err := f.prepare(o)
	if b == nil {
		return nil, err
	}
	l := newLowering(b, base)
	l.unknown = map[BaseRef]bool{}
	if err == nil {
		err = f.explain(b, l.lower())
	}
	return l, err
}
