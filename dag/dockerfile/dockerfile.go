// Package dockerfile reads Dockerfiles and lowers them to a graph, as BuildKit's code has the language.
//
// Everything here is a function of its arguments: no file is read, no network asked, nothing runs. What the language needs from
// outside (base images' configurations) comes through a func.
package dockerfile

import "img/dag"

// An Error is a mistake in a Dockerfile, with its place.
type Error struct {
	Pos dag.Pos
	Err error
	// With says what the variables in the guilty word stand for, and why: "with V=1.2 from --build-arg; B is not set".
	With string
	// Hint is one remedy, if we know one: `did you mean "build"?`
	Hint string
	// explained: File.explain has seen it.
	explained bool
}

func (e *Error) Error() string { return e.Pos.String() + ": " + e.Err.Error() }
func (e *Error) Unwrap() error { return e.Err }

// A Warning is a trap or lint finding that does not stop a build.
type Warning struct {
	Pos  dag.Pos
	Rule string
	// Text is about this place; Description about the rule, the same for all places, "" for rules of our own.
	Text        string
	Description string
	// URL explains the rule; rules of our own have none.
	URL string
	// Own: BuildKit knows no such rule, so "# check=error=true" does not make it an error.
	Own bool
}

// A Context is a named build context (--build-context name=value).
type Context struct {
	// Local: the files are a directory, known to the executor under the context's name.
	Local bool
	// Image is a reference that replaces the name ("docker-image://..." without the scheme).
	Image string
	// Layout is an "oci-layout" context: the executor's source of that name.
	Layout string
}

// Options of Refs and Lower.
type Options struct {
	Target    string
	BuildArgs map[string]string
	Labels    map[string]string
	// Annotations of the manifest. Those of an index are Merge's.
	Annotations Annotations
	// Platform is the target's, BuildPlatform the host's, normalised: "linux/amd64".
	Platform, BuildPlatform string
	// PlatformImplied: nobody asked for Platform, it is the default. An image made from one of another platform stays one of that.
	PlatformImplied bool
	// Contexts by lower-case name, or "name::platform" for one platform alone; the build context itself is not in it.
	Contexts map[string]Context
	// Ignore is the ignore file of the build context, nil for none: CopyIgnoredFile looks at it.
	Ignore *Ignore `json:"-"`
	// Found are warnings of the caller's about what surrounds the Dockerfile; check directives apply to them as to all others.
	Found []Warning
	// ProxyArgs are the caller's proxy variables, usable without declaration.
	ProxyArgs map[string]string
	NoCache   bool
	// NoCacheStages are stages whose steps run although records exist.
	NoCacheStages []string
	// Network is the default of RUN.
	Network  string
	Hosts    []dag.Host
	Hostname string
	// Devices are those of every RUN, before its own.
	Devices []dag.Device
	// Insecure allows RUN --security=insecure.
	Insecure bool
	// Compression of packed layers; "" means gzip. Docker chooses Docker's media types.
	Compression string
	Docker      bool
	// Epoch is SOURCE_DATE_EPOCH, nil when not given. RewriteTimes clamps times in layers to it.
	Epoch        *int64
	RewriteTimes bool
	// ContextTime tells the time of a context in seconds since 1970, for SOURCE_DATE_EPOCH=context or a context's name: a git
	// context's commit, an HTTP context's Last-Modified or newest file; nil for one without a time. The name is dag.MainContext or a
	// key of Contexts. SourceTime does the same for a remote source of ADD. Both may be asked the same more than once; without them
	// there is no time.
	ContextTime func(name string) (*int64, error) `json:"-"`
	SourceTime  func(dag.Op) (*int64, error)      `json:"-"`
	// AllStages takes every stage, not only those that the target needs: what a check without a target looks at.
	AllStages bool
	// Squash puts all layers of the build into one, SquashAll those of the base as well.
	Squash, SquashAll bool
	// OmitHistory leaves the history out, NoInheritedLabels the labels of bases.
	OmitHistory, NoInheritedLabels bool
	// UnsetEnv and UnsetLabels are names that the image does not keep, wherever they come from; Labels come after.
	UnsetEnv, UnsetLabels []string
	// Image says whether an image is wanted (Pack and Manifest vertices); without, only files.
	Image bool
}

// A BaseRef is an image that a build needs to know before it can be lowered.
type BaseRef struct {
	// Ref as written after expansion; Platform normalised.
	Ref, Platform string
	// Layout is the executor's source for an oci-layout context, else "".
	Layout string
	Pos    dag.Pos
}

// A Plan is a lowered Dockerfile. Lower makes one target, Merge many.
type Plan struct {
	dag.Plan
	Warnings []Warning

	// texts are for Blame.
	texts map[dag.ID]stepText
}
