package main

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/alecthomas/kong"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/tonistiigi/go-csvvalue"
	"golang.org/x/term"

	"img/cmd/img/progress"
	"img/dag"
	"img/dag/dockerfile"
	"img/exec/cdi"
	"img/exec/sshagent"
)

// BuildCmd is `img build`.
type BuildCmd struct {
	Path string `arg:"" name:"path" optional:"" help:"Build context: a directory, the URL of a git repository, of a tar or of a Dockerfile, or - for a tar or a Dockerfile on standard input."`

	File         []string `short:"f" sep:"none" group:"Input" placeholder:"FILE" help:"Dockerfile (default: PATH/Dockerfile): a path, in a fetched context one inside it, a URL, or - for standard input."`
	FromPlan     string   `group:"Input" placeholder:"FILE" help:"Build an instruction stream (--print json) in place of a Dockerfile; - is standard input. PATH is optional."`
	Target       string   `group:"Input" placeholder:"STAGE" help:"Stage to build."`
	BuildArg     []string `sep:"none" group:"Input" placeholder:"K[=V]" help:"Set a build argument; without =V from the environment."`
	BuildContext []string `sep:"none" group:"Input" placeholder:"NAME=VALUE" help:"Name another context: a directory, a URL of a git repository or a file, docker-image://REF, oci-layout://DIR[:TAG|@DIGEST]."`
	Ignorefile   string   `group:"Input" placeholder:"FILE" help:"Ignore file in place of .dockerignore; of a fetched context it may be one inside it."`
	Platform     []string `group:"Input" placeholder:"OS/ARCH" help:"Platforms to build for, with commas or repeated; local is this machine's (default: $$DOCKER_DEFAULT_PLATFORM, local)."`
	Pull         pullMode `group:"Input" placeholder:"WHEN" help:"Ask registries for base images: always, missing (default), newer, never."`
	Offline      bool     `group:"Input" help:"Use no network for sources."`

	Tag              []string `short:"t" sep:"none" group:"Result" placeholder:"NAME" help:"Name the image."`
	Output           []string `short:"o" sep:"none" group:"Result" placeholder:"SPEC" help:"Write the result: DIR, -, or type=local|tar|oci|docker|image|cacheonly,dest=..."`
	Push             bool     `group:"Result" help:"Push the image under its names."`
	InsecureRegistry bool     `group:"Result" help:"Accept registries with unknown certificates, or without TLS."`
	Label            []string `sep:"none" group:"Result" placeholder:"K=V" help:"Set a label."`
	Annotation       []string `sep:"none" group:"Result" placeholder:"[WHERE:]K=V" help:"Set an annotation; WHERE is manifest (default), index, manifest-descriptor or index-descriptor, with commas, each also as PLACE[OS/ARCH]."`
	InheritLabels    *bool    `group:"Result" help:"Take over the labels of base images (default: true)."`
	Unsetlabel       []string `group:"Result" placeholder:"NAME" help:"Leave a label out of the image."`
	Unsetenv         []string `group:"Result" placeholder:"NAME" help:"Leave an environment variable out of the image."`
	OmitHistory      bool     `group:"Result" help:"Leave the history out of the image."`
	Squash           bool     `group:"Result" help:"Put all layers of this build into one, on top of the base's."`
	SquashAll        bool     `group:"Result" help:"Put all layers into one, those of the base too."`
	Iidfile          string   `group:"Result" placeholder:"FILE" help:"Write the image's id to a file."`
	MetadataFile     string   `group:"Result" placeholder:"FILE" help:"Write what was built to a file, as JSON."`
	Quiet            bool     `short:"q" group:"Result" help:"Print only the image's id."`
	Compression      string   `group:"Result" placeholder:"KIND" help:"Layer compression: gzip (default), zstd, uncompressed."`
	Format           string   `group:"Result" placeholder:"KIND" help:"Media types: oci (default) or docker."`
	Timestamp        string   `group:"Result" placeholder:"SECONDS" help:"The same as --source-date-epoch."`
	SourceDateEpoch  string   `group:"Result" placeholder:"SECONDS" help:"Time in place of the clock, seconds since 1970 (default: $$SOURCE_DATE_EPOCH)."`
	RewriteTimestamp *bool    `group:"Result" help:"With an epoch, bound the times in layers by it (default: true)."`

	NoCache       bool     `group:"Cache" help:"Run every step."`
	NoCacheFilter []string `group:"Cache" placeholder:"STAGE" help:"Run every step of a stage."`

	Secret     []string `sep:"none" group:"RUN" placeholder:"SPEC" help:"Secret for RUN --mount=type=secret: id=ID[,src=FILE|,env=VAR][,type=file|env]."`
	SSH        []string `sep:"none" name:"ssh" group:"RUN" placeholder:"SPEC" help:"Agent for RUN --mount=type=ssh: default, ID, or ID=SOCKET|KEY[,KEY]."`
	Network    string   `group:"RUN" placeholder:"MODE" help:"Network of RUN: default, host, none."`
	AddHost    []string `sep:"none" group:"RUN" placeholder:"NAME:IP" help:"Add a line to RUN's /etc/hosts."`
	Allow      []string `sep:"none" group:"RUN" placeholder:"NAME" help:"Grant an entitlement: security.insecure, device[=NAME] (network.host needs none)."`
	Device     []string `sep:"none" group:"RUN" placeholder:"DEVICE" help:"Give every RUN a device: a CDI name, or a node as HOST[:PATH[:rwm]]."`
	CDISpecDir []string `name:"cdi-spec-dir" group:"RUN" placeholder:"DIR" help:"Where CDI specifications are (default: /etc/cdi, /var/run/cdi, /etc/buildkit/cdi)."`
	Isolation  string   `group:"RUN" placeholder:"TIER" help:"Sandbox tier: auto."`
	Jobs       int      `group:"RUN" placeholder:"N" help:"How many steps run at once (default: all that are ready)."`

	Progress  string    `group:"Looking" placeholder:"MODE" help:"auto, tty, plain or quiet."`
	NoConsole bool      `group:"Looking" help:"The same as --progress=plain."`
	Check     checkMode `group:"Looking" help:"Check the Dockerfile and build nothing; --check=error builds, and makes warnings errors."`
	Call      string    `group:"Looking" placeholder:"NAME" help:"Do this in place of a build: check, outline, targets; format=json|sarif|github after a comma."`
	Strict    bool      `group:"Looking" help:"Make every warning an error."`
	Explain   bool      `group:"Looking" help:"Say of each step that runs why it is not cached."`
	Print     string    `group:"Looking" placeholder:"FORM" help:"Print the plan instead of building: plan is for people, json an instruction stream for --from-plan."`

	ignoredFlags
	unservedFlags
}

// ignoredFlags are accepted for scripts and do nothing.
type ignoredFlags struct {
	Rm                  *bool  `hidden:""`
	ForceRm             *bool  `hidden:""`
	Layers              *bool  `hidden:""`
	Compress            *bool  `hidden:""`
	DisableContentTrust *bool  `hidden:""`
	Builder             string `hidden:""`
}

// unservedFlags are known, and refused by name with the reason in unserved.
type unservedFlags struct {
	Attest       []string `sep:"none" hidden:""`
	BuildArgFile []string `sep:"none" hidden:""`
	CacheFrom    []string `sep:"none" hidden:""`
	CacheTo      []string `sep:"none" hidden:""`
	CacheTTL     string   `hidden:"" name:"cache-ttl"`
	CapAdd       []string `sep:"none" hidden:""`
	CapDrop      []string `sep:"none" hidden:""`
	CgroupParent string   `hidden:""`
	CPUPeriod    string   `hidden:"" name:"cpu-period"`
	CPUQuota     string   `hidden:"" name:"cpu-quota"`
	CPUShares    string   `hidden:"" short:"c" name:"cpu-shares"`
	CpusetCpus   string   `hidden:"" name:"cpuset-cpus"`
	CpusetMems   string   `hidden:"" name:"cpuset-mems"`
	DNS          []string `sep:"none" hidden:"" name:"dns"`
	DNSOption    []string `sep:"none" hidden:"" name:"dns-option"`
	DNSSearch    []string `sep:"none" hidden:"" name:"dns-search"`
	Load         bool     `hidden:""`
	LogFile      string   `hidden:""`
	Memory       string   `short:"m" hidden:""`
	MemorySwap   string   `hidden:""`
	OnFail       string   `hidden:""`
	Policy       []string `sep:"none" hidden:""`
	Provenance   string   `hidden:""`
	Qemu         string   `hidden:""`
	Resource     []string `sep:"none" hidden:""`
	Sbom         string   `hidden:""`
	SecurityOpt  []string `sep:"none" hidden:""`
	ShmSize      string   `hidden:""`
	Trace        string   `hidden:""`
	Ulimit       []string `sep:"none" hidden:""`
	Volume       []string `short:"v" sep:"none" hidden:""`
}

// unserved says why an option is refused. Values that ask for what happens anyway are in harmless.
var unserved = map[string]string{
	"attest":         "no attestations are made",
	"build-arg-file": "argument files are not read yet; use --build-arg",
	"cache-from":     "caches cannot be imported yet",
	"cache-to":       "caches cannot be exported yet",
	"cache-ttl":      "cache records do not age; use img prune",
	"cap-add":        "capabilities of RUN cannot be changed",
	"cap-drop":       "capabilities of RUN cannot be changed",
	"cgroup-parent":  "RUN steps are not put into cgroups",
	"cpu-period":     "RUN steps are not put into cgroups",
	"cpu-quota":      "RUN steps are not put into cgroups",
	"cpu-shares":     "RUN steps are not put into cgroups",
	"cpuset-cpus":    "RUN steps are not put into cgroups",
	"cpuset-mems":    "RUN steps are not put into cgroups",
	"dns":            "RUN uses the host's resolver",
	"dns-option":     "RUN uses the host's resolver",
	"dns-search":     "RUN uses the host's resolver",
	"load":           "there is no daemon to load into; use -o type=docker,dest=FILE and docker load",
	"log-file":       "logs go to standard error; redirect that",
	"memory":         "RUN steps are not put into cgroups",
	"memory-swap":    "RUN steps are not put into cgroups",
	"on-fail":        "failed steps cannot be kept yet",
	"policy":         "source policies are not read",
	"provenance":     "no provenance is made",
	"qemu":           "steps run for this machine's platform alone",
	"resource":       "RUN steps are not put into cgroups",
	"sbom":           "no SBOM is made",
	"security-opt":   "RUN's sandbox has no options",
	"shm-size":       "/dev/shm has 64 MiB",
	"trace":          "traces cannot be written yet",
	"ulimit":         "limits of RUN cannot be changed",
	"volume":         "directories cannot be mounted into RUN; use RUN --mount=type=bind",
}

// harmless are values of unserved options that ask for what happens anyway.
var harmless = map[string][]string{
	"provenance": {"false"},
	"sbom":       {"false"},
}

// refuseUnserved finds the first option that is given and not served.
func (u *unservedFlags) refuse() error {
	v := reflect.ValueOf(u).Elem()
	for i := range v.NumField() {
		field := v.Type().Field(i)
		name := field.Tag.Get("name")
		if name == "" {
			name = kebab(field.Name)
		}
		value := v.Field(i)
		if value.IsZero() || value.Kind() == reflect.String && slices.Contains(harmless[name], value.String()) {
			continue
		}
		return usagef("--%s is not served: %s", name, unserved[name])
	}
	return nil
}

// kebab makes an option's name of a field's, as kong does: BuildArgFile is build-arg-file.
func kebab(field string) string {
	var b strings.Builder
	for i, r := range field {
		if r >= 'A' && r <= 'Z' {
			if i > 0 {
				b.WriteByte('-')
			}
			r += 'a' - 'A'
		}
		b.WriteRune(r)
	}
	return b.String()
}

// Pull modes.
const (
	pullMissing = "missing"
	pullAlways  = "always"
	pullNewer   = "newer"
	pullNever   = "never"
)

// A pullMode is --pull's value: alone it means always.
type pullMode string

// Decode implements kong.MapperValue.
func (p *pullMode) Decode(ctx *kong.DecodeContext) error {
	if ctx.Scan.Peek().Type != kong.FlagValueToken {
		*p = pullAlways
		return nil
	}
	switch v := fmt.Sprint(ctx.Scan.Pop().Value); v {
	case "true", "1", "yes", pullAlways:
		*p = pullAlways
	case "false", "0", "no", pullMissing, "ifmissing":
		*p = pullMissing
	case pullNewer, "ifnewer":
		*p = pullNewer
	case pullNever:
		*p = pullNever
	default:
		return fmt.Errorf("must be always, missing, newer or never but got %q", v)
	}
	return nil
}

// IsBool makes the value optional.
func (pullMode) IsBool() bool { return true }

// Output types.
const (
	outLocal     = "local"
	outTar       = "tar"
	outOCI       = "oci"
	outDocker    = "docker"
	outImage     = "image"
	outCacheOnly = "cacheonly"
)

// An Output is one -o.
type Output struct {
	Type string
	// Dest is a path; "-" is standard output.
	Dest string
	// Attrs are the others, by name: name, push, tar, compression ...
	Attrs map[string]string
}

// A Secret is one --secret: Env names an environment variable, else Src a file.
type Secret struct {
	ID, Src, Env string
}

// A buildRequest is what the options of a build mean.
type buildRequest struct {
	// Context is where the build context is, of a kind that has files; File is "" for the default, "-" for standard input, or an http(s) URL.
	Context NamedContext
	File    string
	// Tags are full references.
	Tags         []string
	Outputs      []Output
	BuildArgs    map[string]string
	Labels       map[string]string
	Annotations  dockerfile.Annotations
	Contexts     map[string]NamedContext
	Secrets      map[string]Secret
	Hosts        []dag.Host
	NoCacheStage []string
	// Platforms are what is built for, each once, and Host is this machine; normalised: "linux/amd64". Indexed asks for an index, which
	// several platforms always get. Implied says that nobody named a platform.
	Platforms        []string
	Host             string
	Indexed, Implied bool
	// Pull is one of the pull* modes.
	Pull string
	// Network is "", "none" or "host", as dag.Run has it.
	Network string
	// Compression is "" unless asked for. Docker asks for Docker's media types.
	Compression  string
	Docker       bool
	Epoch        *int64
	RewriteTimes bool
	// Progress is a mode of package progress.
	Progress string
	Push     bool
	// Insecure accepts registries without TLS.
	Insecure bool
	// Call is what to do in place of a build; the zero call builds.
	Call call
	// Strict makes warnings errors.
	Strict bool
	// Insecurely allows RUN --security=insecure.
	Insecurely bool
	// Agents are the ssh agents of --ssh, by id.
	Agents map[string]*sshagent.Agent
	// Devices are those of --device, for every RUN: names of CDI, and nodes of the host as they were written, which Nodes has.
	Devices []dag.Device
	Nodes   map[string]cdi.Node
	// Grants are the devices that steps may have; CDIDirs is where they are described, if not in the usual places.
	Grants  cdi.Grants
	CDIDirs []string
}

// request checks the options and says what they mean. It reads the environment and nothing else.
func (c *BuildCmd) request(g *Globals) (*buildRequest, error) {
	if err := c.unservedFlags.refuse(); err != nil {
		return nil, err
	}
	if c.ignoredFlags != (ignoredFlags{}) {
		g.debugf("--rm, --force-rm, --layers, --compress, --disable-content-trust and --builder do nothing")
	}
	r := &buildRequest{Push: c.Push, Insecure: c.InsecureRegistry, NoCacheStage: c.NoCacheFilter}
	for _, step := range []func(*buildRequest, *Globals) error{
		c.input, c.result, c.times, c.sandbox, c.looking, c.calls,
	} {
		if err := step(r, g); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (c *BuildCmd) input(r *buildRequest, g *Globals) (err error) {
	if c.FromPlan != "" {
		if err := c.checkFromPlan(); err != nil {
			return err
		}
	}
	switch {
	case c.Path == "" && c.FromPlan == "":
		return withHint(exitUsage, fmt.Errorf("a build context is missing"), "img build [OPTIONS] PATH, often: img build .")
	case len(c.File) > 1:
		return usagef("-f: one Dockerfile alone can be built, %d are given", len(c.File))
	}
	r.Context = mainContext(c.Path)
	if len(c.File) == 1 {
		r.File = c.File[0]
	}
	if r.Context.Kind == streamContext && r.File == "-" {
		return usagef("standard input cannot be both the context and the Dockerfile")
	}
	if r.BuildArgs, err = c.buildArgs(g.getenv); err != nil {
		return err
	}
	if r.Contexts, err = parseContexts(c.BuildContext, g); err != nil {
		return err
	}
	if err := c.platforms(r, g.getenv); err != nil {
		return err
	}
	r.Pull = string(c.Pull)
	if r.Pull == "" {
		r.Pull = pullMissing
	}
	if c.Offline {
		if r.Pull == pullAlways || r.Pull == pullNewer {
			return usagef("--offline and --pull=%s exclude each other", r.Pull)
		}
		r.Pull = pullNever
	}
	return nil
}

// buildArgs gives the arguments. One without a value is the environment's, and not given if that has none. As with
// buildx, SOURCE_DATE_EPOCH is passed on.
func (c *BuildCmd) buildArgs(getenv func(string) string) (map[string]string, error) {
	args := map[string]string{}
	for _, a := range c.BuildArg {
		name, value, ok := strings.Cut(a, "=")
		if name == "" {
			return nil, usagef("--build-arg %q has no name", a)
		}
		if !ok {
			if value = getenv(name); value == "" {
				continue
			}
		}
		args[name] = value
	}
	return args, nil
}

// platforms settles what is built for: --platform, else $DOCKER_DEFAULT_PLATFORM as buildx has it, else this machine.
func (c *BuildCmd) platforms(r *buildRequest, getenv func(string) string) (err error) {
	r.Host = hostPlatform()
	option, list := "--platform", c.Platform
	if v := getenv("DOCKER_DEFAULT_PLATFORM"); len(list) == 0 && v != "" && c.FromPlan == "" {
		option, list = "DOCKER_DEFAULT_PLATFORM", strings.Split(v, ",")
	}
	for _, s := range list {
		p := r.Host
		if s != "local" && s != "" {
			parsed, err := platforms.Parse(s)
			if err != nil {
				return usagef("%s %s: %w", option, s, err)
			}
			p = platforms.FormatAll(platforms.Normalize(parsed))
		}
		if !slices.Contains(r.Platforms, p) {
			r.Platforms = append(r.Platforms, p)
		}
	}
	if len(r.Platforms) == 0 {
		r.Platforms, r.Implied = []string{r.Host}, true
	}
	r.Indexed = len(r.Platforms) > 1
	const name = "BUILDKIT_MULTI_PLATFORM"
	if v := r.BuildArgs[name]; v != "" {
		indexed, err := strconv.ParseBool(v)
		if err != nil {
			return usagef("--build-arg %s must be true or false but is %q", name, v)
		}
		if !indexed && r.Indexed {
			return usagef("--build-arg %s=%s and %d platforms exclude each other", name, v, len(r.Platforms))
		}
		r.Indexed = indexed
	}
	return nil
}

// hostPlatform is this machine's. What a processor can do beyond its architecture's base line is not the platform of an image.
func hostPlatform() string {
	host := platforms.Platform{OS: runtime.GOOS, Architecture: runtime.GOARCH}
	if host.Architecture == "arm" {
		host.Variant = platforms.DefaultSpec().Variant
	}
	return platforms.Format(platforms.Normalize(host))
}

func (c *BuildCmd) result(r *buildRequest, g *Globals) (err error) {
	if r.Tags, err = fullReferences("-t", c.Tag); err != nil {
		return err
	}
	if r.Outputs, err = parseOutputs(c.Output); err != nil {
		return err
	}
	if err := checkStdout(r.Outputs, g); err != nil {
		return err
	}
	if c.FromPlan != "" {
		if err := checkPlannedAttrs(r.Outputs); err != nil {
			return err
		}
	}
	if err := checkSeveral(r); err != nil {
		return err
	}
	if err := c.checkDests(r.Outputs); err != nil {
		return err
	}
	if c.Push && len(r.Tags) == 0 && !slices.ContainsFunc(r.Outputs, func(o Output) bool { return o.Attrs["name"] != "" }) {
		return usagef("--push needs a name: -t NAME")
	}
	if r.Labels, err = parseLabels(c.Label); err != nil {
		return err
	}
	if r.Annotations, err = parseAnnotations(c.Annotation); err != nil {
		return err
	}
	if err := checkAnnotations(r, c.Format); err != nil {
		return err
	}
	if r.Compression, err = compression("--compression", c.Compression); err != nil {
		return err
	}
	switch c.Format {
	case "", "oci":
	case "docker":
		r.Docker = true
	default:
		return usagef("--format must be oci or docker but is %q", c.Format)
	}
	return nil
}

// checkSeveral refuses outputs that cannot hold several platforms.
func checkSeveral(r *buildRequest) error {
	for _, o := range r.Outputs {
		split, err := strconv.ParseBool(o.Attrs["platform-split"])
		switch {
		case r.Indexed && o.Type == outDocker:
			return withHint(exitUsage, fmt.Errorf("-o type=docker: docker exporter does not currently support exporting manifest lists"),
				"use -o type=oci, or build one platform: --platform %s", r.Platforms[0])
		case len(r.Platforms) > 1 && o.Type == outTar && err == nil && !split:
			return withHint(exitUsage, fmt.Errorf("-o type=tar: several platforms cannot share one root of a tar"),
				"leave platform-split=false out: each platform then gets a directory of its own")
		}
	}
	return nil
}

func compression(option, value string) (string, error) {
	switch value {
	case "", dag.Gzip, dag.Zstd, dag.Uncompressed:
		return value, nil
	}
	return "", usagef("%s must be gzip, zstd or uncompressed but is %q", option, value)
}

func parseLabels(list []string) (map[string]string, error) {
	out := map[string]string{}
	for _, l := range list {
		k, v, _ := strings.Cut(l, "=")
		if k == "" {
			return nil, usagef("--label %q has no name", l)
		}
		out[k] = v
	}
	return out, nil
}

// annotationPlace is a place of an annotation, with a platform or without.
var annotationPlace = regexp.MustCompile(`^([a-z-]+)(?:\[([A-Za-z0-9_/-]+)\])?$`)

// parseAnnotations reads [PLACE[[PLATFORM]][,PLACE...]:]KEY=VALUE, as buildx has it.
func parseAnnotations(list []string) (dockerfile.Annotations, error) {
	var out dockerfile.Annotations
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		places, name, placed := strings.Cut(key, ":")
		if !placed {
			places, name = dockerfile.ManifestAnnotation, key
		}
		if !ok || name == "" {
			return nil, usagef("--annotation %q: the form is [WHERE:]KEY=VALUE", s)
		}
		for place := range strings.SplitSeq(places, ",") {
			a, err := parsePlace(place)
			if err != nil {
				return nil, usagef("--annotation %q: %w", s, err)
			}
			a.Key, a.Value = name, value
			out = append(out, a)
		}
	}
	return out, nil
}

func parsePlace(text string) (a dockerfile.Annotation, err error) {
	m := annotationPlace.FindStringSubmatch(text)
	if m == nil {
		return a, fmt.Errorf("%q is no place: a platform may follow it in brackets", text)
	}
	switch a.Place = m[1]; a.Place {
	case dockerfile.ManifestAnnotation, dockerfile.IndexAnnotation, dockerfile.ManifestDescriptorAnnotation, dockerfile.IndexDescriptorAnnotation:
	default:
		return a, fmt.Errorf("unknown annotation type %q: there are manifest, index, manifest-descriptor and index-descriptor", a.Place)
	}
	if m[2] != "" {
		p, err := platforms.Parse(m[2])
		if err != nil {
			return a, err
		}
		a.Platform = platforms.FormatAll(platforms.Normalize(p))
	}
	return a, nil
}

// checkAnnotations refuses those that no document would have.
func checkAnnotations(r *buildRequest, format string) error {
	switch {
	case len(r.Annotations) > 0 && format == "docker":
		return usagef("--annotation and --format docker exclude each other: Docker's manifests have no annotations")
	case r.Annotations.Index() && !r.Indexed:
		return withHint(exitUsage, fmt.Errorf("--annotation: index annotations not supported for single platform export"),
			"build several platforms, or use --build-arg BUILDKIT_MULTI_PLATFORM=1")
	}
	return nil
}

// fullReferences makes names whole: registry, repository and tag.
func fullReferences(option string, names []string) ([]string, error) {
	var out []string
	for _, n := range names {
		ref, err := fullReference(n)
		if err != nil {
			return nil, usagef("%s %q: %w", option, n, err)
		}
		if _, ok := ref.(reference.Digested); ok {
			return nil, usagef("%s %q: a digest cannot be given as a name", option, n)
		}
		if !slices.Contains(out, ref.String()) {
			out = append(out, ref.String())
		}
	}
	return out, nil
}

func fullReference(name string) (reference.Named, error) {
	ref, err := reference.ParseNormalizedNamed(name)
	if err != nil {
		return nil, err
	}
	return reference.TagNameOnly(ref), nil
}

// outputAttrs are the attributes that an output of each type takes besides type and dest.
var outputAttrs = map[string][]string{
	outLocal:     {"platform-split"},
	outTar:       {"platform-split"},
	outOCI:       {"tar", "name", "compression", "oci-mediatypes", "rewrite-timestamp", "source-date-epoch"},
	outDocker:    {"tar", "name", "compression", "oci-mediatypes", "rewrite-timestamp", "source-date-epoch"},
	outImage:     {"name", "push", "registry.insecure", "compression", "oci-mediatypes", "unpack", "rewrite-timestamp", "source-date-epoch"},
	outCacheOnly: {},
}

func parseOutputs(list []string) ([]Output, error) {
	var out []Output
	for _, s := range list {
		o, err := parseOutput(s)
		if err != nil {
			return nil, usagef("-o %s: %w", s, err)
		}
		out = append(out, o)
	}
	return out, nil
}

// parseOutput reads one -o: a bare path is type=local, - is a tar on standard output.
func parseOutput(s string) (Output, error) {
	fields, err := csvvalue.Fields(s, nil)
	if err != nil {
		return Output{}, err
	}
	if len(fields) == 1 && fields[0] == s && !strings.HasPrefix(s, "type=") {
		if s == "-" {
			return Output{Type: outTar, Dest: "-"}, nil
		}
		return Output{Type: outLocal, Dest: s}, nil
	}
	o := Output{Attrs: map[string]string{}}
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return Output{}, fmt.Errorf("%q is not of the form KEY=VALUE", f)
		}
		switch key = strings.ToLower(strings.TrimSpace(key)); key {
		case "type":
			o.Type = value
		case "dest":
			o.Dest = value
		default:
			o.Attrs[key] = value
		}
	}
	return o, o.check()
}

func (o *Output) check() error {
	if o.Type == "registry" {
		o.Type, o.Attrs["push"] = outImage, "true"
	}
	known, ok := outputAttrs[o.Type]
	switch {
	case o.Type == "":
		return fmt.Errorf("type= is missing")
	case !ok:
		return fmt.Errorf("type %q is not served; there are local, tar, oci, docker, image, registry and cacheonly", o.Type)
	case o.Dest != "" && (o.Type == outImage || o.Type == outCacheOnly):
		return fmt.Errorf("type=%s takes no dest", o.Type)
	case o.Dest == "" && o.Type == outLocal:
		return fmt.Errorf("type=local needs dest=DIR")
	case o.Dest == "-" && o.Type == outLocal:
		return fmt.Errorf("type=local needs a directory; type=tar goes to standard output")
	}
	for name, value := range o.Attrs {
		if !slices.Contains(known, name) {
			return fmt.Errorf("type=%s has no attribute %q that is served", o.Type, name)
		}
		if err := checkAttr(name, value); err != nil {
			return err
		}
	}
	if o.Dest == "" && o.Type != outImage && o.Type != outCacheOnly {
		o.Dest = "-"
	}
	if o.Dest == "-" && o.directory() {
		return fmt.Errorf("tar=false needs dest=DIR")
	}
	return nil
}

// directory reports whether an archive type is to be a directory.
func (o *Output) directory() bool {
	tar, err := strconv.ParseBool(o.Attrs["tar"])
	return err == nil && !tar
}

func checkAttr(name, value string) error {
	switch name {
	case "compression":
		_, err := compression(name, value)
		return err
	case "name":
		for n := range strings.SplitSeq(value, ",") {
			if _, err := fullReference(n); err != nil {
				return fmt.Errorf("name %q: %w", n, err)
			}
		}
		return nil
	case "source-date-epoch":
		_, err := strconv.ParseInt(value, 10, 64)
		return err
	}
	if _, err := strconv.ParseBool(value); err != nil {
		return fmt.Errorf("%s must be true or false but is %q", name, value)
	}
	return nil
}

// checkStdout refuses two results on standard output, and a binary one on a terminal.
func checkStdout(outputs []Output, g *Globals) error {
	n := 0
	for _, o := range outputs {
		if o.Dest == "-" {
			n++
		}
	}
	if n > 1 {
		return usagef("-o: %d results cannot share standard output", n)
	}
	if n == 1 && isTerminal(g.stdout) {
		return withHint(exitUsage, fmt.Errorf("-o: a tar is not written to a terminal"), "redirect standard output, or add dest=FILE")
	}
	return nil
}

func isTerminal(w any) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// times settles the epoch: --timestamp and --source-date-epoch before the environment.
func (c *BuildCmd) times(r *buildRequest, g *Globals) error {
	option, text := "--source-date-epoch", c.SourceDateEpoch
	if c.Timestamp != "" {
		if text != "" && text != c.Timestamp {
			return usagef("--timestamp and --source-date-epoch differ")
		}
		option, text = "--timestamp", c.Timestamp
	}
	if text == "" {
		option, text = "SOURCE_DATE_EPOCH", g.getenv("SOURCE_DATE_EPOCH")
	}
	r.RewriteTimes = c.RewriteTimestamp == nil || *c.RewriteTimestamp
	if text == "" {
		return nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	const lastSecond = 253402300799 // of the year 9999: JSON has no later time (RFC 3339)
	if err != nil || n < 0 || n > lastSecond {
		return usagef("%s must be seconds since 1970 but is %q", option, text)
	}
	r.Epoch = &n
	if _, ok := r.BuildArgs["SOURCE_DATE_EPOCH"]; !ok {
		r.BuildArgs["SOURCE_DATE_EPOCH"] = text
	}
	return nil
}

func (c *BuildCmd) sandbox(r *buildRequest, g *Globals) (err error) {
	switch c.Network {
	case "", "default":
	case "none", "host":
		r.Network = c.Network
	case "private":
		return usagef("--network private is not served: no network helper is built in; there are default, host and none")
	default:
		return usagef("--network must be default, host or none but is %q", c.Network)
	}
	switch c.Isolation {
	case "", "auto", "default":
	case "rootful":
		return usagef("--isolation rootful is not served: container root is never the host's root")
	default:
		return usagef("--isolation %s is not served: the sandbox is the strongest this host allows (auto)", c.Isolation)
	}
	if err := r.allow(c.Allow); err != nil {
		return err
	}
	if err := r.parseDevices(c.Device); err != nil {
		return err
	}
	r.CDIDirs = c.CDISpecDir
	if c.Jobs < 0 {
		return usagef("--jobs must not be negative")
	}
	if r.Hosts, err = parseHosts(c.AddHost); err != nil {
		return err
	}
	if r.Agents, err = parseAgents(c.SSH, g.getenv); err != nil {
		return err
	}
	r.Secrets, err = parseSecrets(c.Secret, g.getenv)
	return err
}

// parseHosts reads NAME:IP and NAME=IP; an IPv6 address may stand in brackets.
func parseHosts(list []string) ([]dag.Host, error) {
	var out []dag.Host
	for _, s := range list {
		name, ip, ok := strings.Cut(s, "=")
		if !ok {
			name, ip, ok = strings.Cut(s, ":")
		}
		if !ok || name == "" || strings.ContainsAny(name, " \t\n#") {
			return nil, usagef("--add-host %q: the form is NAME:IP", s)
		}
		if ip == "host-gateway" {
			ip = "127.0.0.1" // RUN shares the host's network
		}
		addr, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(ip, "["), "]"))
		if err != nil {
			return nil, usagef("--add-host %q: %q is no IP address", s, ip)
		}
		out = append(out, dag.Host{Name: name, IP: addr.String()})
	}
	return out, nil
}

func parseSecrets(list []string, getenv func(string) string) (map[string]Secret, error) {
	out := map[string]Secret{}
	for _, s := range list {
		secret, err := parseSecret(s)
		if err != nil {
			// The value is not repeated: people put secrets where names belong.
			return nil, usagef("--secret: %w", err)
		}
		if err := secret.there(getenv); err != nil {
			return nil, err
		}
		out[secret.ID] = secret
	}
	return out, nil
}

// parseSecret reads id=ID[,src=FILE|,env=VAR][,type=file|env]. With neither src nor env, the environment variable of
// that name is taken if there is one, else the file; both fields are set then, and Env goes first.
func parseSecret(s string) (Secret, error) {
	fields, err := csvvalue.Fields(s, nil)
	if err != nil {
		return Secret{}, err
	}
	var out Secret
	kind := ""
	for _, f := range fields {
		key, value, ok := strings.Cut(f, "=")
		if !ok {
			return Secret{}, fmt.Errorf("a field is not of the form KEY=VALUE")
		}
		switch strings.ToLower(key) {
		case "id":
			out.ID = value
		case "src", "source":
			out.Src = value
		case "env":
			out.Env = value
		case "type":
			kind = value
		default:
			return Secret{}, fmt.Errorf("unknown field %q", key)
		}
	}
	return out.settle(kind)
}

func (s Secret) settle(kind string) (Secret, error) {
	if s.ID == "" {
		return s, fmt.Errorf("id= is missing")
	}
	switch kind {
	case "env":
		if s.Env == "" { // as buildx has it, src may name the variable
			s.Env, s.Src = s.Src, ""
		}
		if s.Env == "" {
			s.Env = s.ID
		}
	case "file":
		if s.Src == "" {
			s.Src = s.ID
		}
	case "":
		if s.Src == "" && s.Env == "" {
			s.Src, s.Env = s.ID, s.ID
		}
	default:
		return s, fmt.Errorf("type must be file or env but is %q", kind)
	}
	return s, nil
}

// there looks early for the file, which a step may want only after an hour.
func (s Secret) there(getenv func(string) string) error {
	if s.Src == "" || s.Env != "" && getenv(s.Env) != "" {
		return nil
	}
	_, err := os.Stat(s.Src)
	if err != nil && s.Env != "" {
		return withHint(exitUsage, fmt.Errorf("--secret id=%s: there is neither a variable nor a file of that name", s.ID), "--secret id=%s,src=FILE names the file, env=NAME the variable", s.ID)
	}
	if err != nil {
		return usagef("--secret id=%s: %s: %w", s.ID, s.Src, rootCause(err))
	}
	return nil
}

// maxSecret is BuildKit's limit for one secret, in bytes.
const maxSecret = 500 << 10

// read gives the secret's value.
func (s Secret) read(getenv func(string) string) ([]byte, error) {
	if s.Env != "" {
		if v := getenv(s.Env); v != "" || s.Src == "" {
			return []byte(v), nil
		}
	}
	info, err := os.Stat(s.Src)
	if err != nil {
		return nil, withCode(exitSource, fmt.Errorf("secret %s: %w", s.ID, err))
	}
	if info.Mode()&fs.ModeType == 0 && info.Size() > maxSecret {
		return nil, withCode(exitSource, fmt.Errorf("secret %s: %s has %d bytes, more than %d", s.ID, s.Src, info.Size(), maxSecret))
	}
	data, err := os.ReadFile(s.Src)
	if err != nil {
		return nil, withCode(exitSource, fmt.Errorf("secret %s: %w", s.ID, err))
	}
	return data, nil
}

// Forms of --print.
const (
	planForm = "plan"
	jsonForm = "json"
)

func (c *BuildCmd) looking(r *buildRequest, _ *Globals) error {
	switch c.Print {
	case "", planForm, jsonForm:
	default:
		return usagef("--print must be plan or json but is %q", c.Print)
	}
	switch {
	case c.Progress == "" || c.Progress == progress.Auto:
		r.Progress = progress.Auto
		if c.NoConsole {
			r.Progress = progress.Plain
		}
	case slices.Contains([]string{progress.TTY, progress.Plain, progress.Quiet}, c.Progress):
		r.Progress = c.Progress
	case c.Progress == "none":
		r.Progress = progress.Quiet
	case c.Progress == "rawjson", c.Progress == "grouped":
		return usagef("--progress %s is not served: there are auto, tty, plain and quiet", c.Progress)
	default:
		return usagef("--progress must be auto, tty, plain or quiet but is %q", c.Progress)
	}
	if c.Quiet {
		r.Progress = progress.Quiet
	}
	return nil
}
