package dag

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rules of what lowering makes, for plans that come from elsewhere: a plan that passes is one that a Dockerfile could have given, so that
// engine and executor need no second look. They are told per field, since a stream's reader wants the place.

// A checker takes the vertices of a plan one by one. What it sees may hold ids in place of Refs, which it puts right.
type checker struct {
	plan     *Plan
	contexts map[string]bool
	// layered are the layers' file systems of each Manifest, packed the Packs that one of them has.
	layered map[ID]span
	packed  map[ID]bool
	packs   []ID
}

// A span is the file systems below and with an image's own layers; unknown if it has none.
type span struct {
	below, with ID
	unknown     bool
}

func newChecker() *checker {
	return &checker{plan: &Plan{Graph: &Graph{}, Index: Empty}, contexts: map[string]bool{}, layered: map[ID]span{}, packed: map[ID]bool{}}
}

// op is a vertex' op; nil for none.
func (p *Plan) op(id ID) Op {
	if id < 0 || int(id) >= len(p.Graph.Vertices) {
		return nil
	}
	return p.Graph.Vertex(id).Op
}

// vertex checks a vertex and adds it to the plan.
func (c *checker) vertex(v *Vertex) error {
	next := ID(len(c.plan.Graph.Vertices))
	switch {
	case next == maxStreamVertices:
		return fmt.Errorf("a plan has at most %d steps", maxStreamVertices)
	case v.ID != next:
		return at("id", "it is %d; ids count the steps from 0, so this is %d", v.ID, next)
	}
	if err := c.inputs(v); err != nil {
		return err
	}
	if err := checkAbout(v); err != nil {
		return err
	}
	if err := c.contextsOf(v); err != nil {
		return err
	}
	if err := c.checkOp(v); err != nil {
		return err
	}
	c.plan.Graph.Add(v)
	return nil
}

// inputs checks that the inputs are there, and makes the Refs of the op's ids. Each input must be somebody's.
func (c *checker) inputs(v *Vertex) error {
	index := make(map[ID]Ref, len(v.Inputs))
	for i, id := range v.Inputs {
		p := fmt.Sprintf("inputs[%d]", i)
		if id < 0 || id >= v.ID {
			return at(p, "%d is no step before this one", id)
		}
		if _, twice := index[id]; twice {
			return at(p, "%d is there twice", id)
		}
		index[id] = Ref(i)
	}
	used := make([]bool, len(v.Inputs))
	err := eachRef(reflect.ValueOf(v.Op).Elem(), "", func(p string, r *Ref) error {
		if *r == Scratch {
			return nil
		}
		i, ok := index[ID(*r)]
		if !ok {
			return at(p, "%d is not among the inputs", *r)
		}
		used[i], *r = true, i
		return nil
	})
	if i := slices.Index(used, false); err == nil && i >= 0 {
		return at(fmt.Sprintf("inputs[%d]", i), "no field of the step has it")
	}
	return err
}

// eachRef goes over the Refs in a struct, with their paths.
func eachRef(v reflect.Value, prefix string, do func(path string, r *Ref) error) error {
	if r, ok := v.Addr().Interface().(*Ref); ok {
		return do(prefix, r)
	}
	switch {
	case v.Kind() == reflect.Struct:
		for _, f := range streamFields(v.Type()) {
			if err := eachRef(v.Field(f.index), strings.TrimPrefix(prefix+"."+f.name, "."), do); err != nil {
				return err
			}
		}
	case v.Kind() == reflect.Slice && (v.Type().Elem().Kind() == reflect.Struct || v.Type().Elem() == reflect.TypeFor[Ref]()):
		for i := range v.Len() {
			if err := eachRef(v.Index(i), fmt.Sprintf("%s[%d]", prefix, i), do); err != nil {
				return err
			}
		}
	}
	return nil
}

// checkAbout checks what is said of a step beside its op.
func checkAbout(v *Vertex) error {
	anywhere := false // things from the web are for no platform, an index is for several
	switch v.Op.(type) {
	case *HTTP, *Git, *Index:
		anywhere = true
	}
	switch {
	case v.Name == "":
		return at("name", "it is empty: people see the step by it")
	case v.Steps < 0:
		return at("total", "%d is negative", v.Steps)
	case v.Step < 0 || v.Step > v.Steps:
		return at("number", "%d is not between 0 and %d", v.Step, v.Steps)
	case v.Pos.Line < 0 || v.Pos.End < 0 || v.Pos.Col < 0:
		return at("pos", "lines and columns are counted from 1")
	case v.Pos.File == "" && v.Pos != (Pos{}):
		return at("pos", "a line without a file")
	case anywhere && v.Platform != "":
		return at("platform", "a step %s is for none", strings.ToUpper(v.Op.Kind()))
	case anywhere:
		return nil
	}
	return checkPlatform("platform", v.Platform)
}

var (
	platformForm = regexp.MustCompile(`^[a-z0-9]+(\([^()]*\))?/([a-z0-9_]+)(/[a-z0-9._-]+)?$`)
	// plainArch is the normalised name of architectures that have others.
	plainArch = map[string]string{"x86_64": "amd64", "aarch64": "arm64", "i386": "386", "i486": "386", "i586": "386", "i686": "386", "armhf": "arm/v7", "armel": "arm/v6"}
)

func checkPlatform(p, platform string) error {
	m := platformForm.FindStringSubmatch(platform)
	if m == nil {
		return at(p, "%q is no platform; want the form linux/amd64 or linux/arm/v7", platform)
	}
	if plain := plainArch[m[2]]; plain != "" {
		return at(p, "%q is not normalised; write linux/%s", platform, plain)
	}
	return nil
}

// contextsOf checks that the header names the contexts that a step takes files from.
func (c *checker) contextsOf(v *Vertex) error {
	source := func(p string, s Source) error {
		switch {
		case s.Context == "":
			return nil
		case s.Input != Scratch:
			return at(p, "files come from the context %q or from input, not from both", s.Context)
		case !c.contexts[s.Context]:
			return at(p+".context", "%q is not among the contexts of the PLAN", s.Context)
		}
		return nil
	}
	switch op := v.Op.(type) {
	case *Copy:
		for i, s := range op.Sources {
			if err := source(fmt.Sprintf("sources[%d].from", i), s.From); err != nil {
				return err
			}
		}
	case *Run:
		for i, m := range op.Mounts {
			if err := source(fmt.Sprintf("mounts[%d].from", i), m.From); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *checker) checkOp(v *Vertex) error {
	switch op := v.Op.(type) {
	case *Image:
		return checkImage(op)
	case *Run:
		return c.run(v, op)
	case *Copy:
		return c.copy(v, op)
	case *HTTP:
		return checkHTTP(op)
	case *Git:
		if field, err := op.Check(); err != nil {
			return at(field, "%w", err)
		}
		return nil
	case *Mkdir:
		if err := c.root(v, "base", op.Base); err != nil {
			return err
		}
		return checkAbsolute("path", op.Path)
	case *Merge:
		return c.merge(v, op)
	case *Pack:
		return c.pack(v, op)
	case *Manifest:
		return c.manifest(v, op)
	case *Index:
		return c.index(v, op)
	}
	return at("step", "unknown step %q", v.Op.Kind())
}

// deref is the vertex that a Ref points to.
func deref(v *Vertex, r Ref) ID {
	if r == Scratch {
		return Empty
	}
	return v.Inputs[r]
}

// files checks that a Ref is a file system.
func (c *checker) files(v *Vertex, p string, r Ref) error {
	switch op := c.plan.op(deref(v, r)).(type) {
	case *Pack, *Manifest, *Index:
		return at(p, "%d is a %s, which has no files", deref(v, r), strings.ToUpper(op.Kind()))
	}
	return nil
}

// root checks that a Ref is a file system that steps can go on with.
func (c *checker) root(v *Vertex, p string, r Ref) error {
	switch op := c.plan.op(deref(v, r)).(type) {
	case *HTTP, *Git:
		return at(p, "%d is a %s: COPY takes its files", deref(v, r), strings.ToUpper(op.Kind()))
	}
	return c.files(v, p, r)
}

// checkAbsolute checks a path in a root that is written in one way only.
func checkAbsolute(p, value string) error {
	if !path.IsAbs(value) {
		return at(p, "%q is not absolute", value)
	}
	if path.Clean(value) != value {
		return at(p, "%q is written %q", value, path.Clean(value))
	}
	return nil
}

func checkImage(op *Image) error {
	switch {
	case op.Ref == "":
		return at("ref", "it is empty")
	case op.Source == "":
		return at("source", `it is empty: want "registry" or the name of an oci-layout context`)
	case len(op.Layers) == 0:
		return at("layers", "there are none; an image without is the empty file system, -1")
	}
	if err := checkLayers("layers", op.Layers); err != nil {
		return err
	}
	// The ChainID names the files in the store: a wrong one would show them to others.
	if chain := chainID(op.Layers); op.ChainID != chain {
		return at("chainID", "the layers have the ChainID %s", chain)
	}
	return nil
}

func isLayerDigest(digest string) bool {
	digits, ok := strings.CutPrefix(digest, "sha256:")
	return ok && len(digits) == digestSizes["sha256"] && isHex(digits)
}

func isHex(digits string) bool { return strings.Trim(digits, "0123456789abcdef") == "" }

func checkLayers(p string, layers []Layer) error {
	for i, l := range layers {
		at := func(field, format string, args ...any) error {
			return at(fmt.Sprintf("%s[%d].%s", p, i, field), format, args...)
		}
		switch {
		case !isLayerDigest(l.DiffID):
			return at("diffID", "%q is no sha256 digest", l.DiffID)
		case !isLayerDigest(l.Digest):
			return at("digest", "%q is no sha256 digest", l.Digest)
		case l.Size < 0:
			return at("size", "%d is negative", l.Size)
		case l.MediaType == "":
			return at("mediaType", "it is empty")
		}
		for _, u := range l.URLs {
			if !webURL(u) {
				return at("urls", "%q is no http or https URL", u)
			}
		}
	}
	return nil
}

// chainID is that of layers (image-spec, config.md, "Layer ChainID").
func chainID(layers []Layer) string {
	chain := ""
	for i, l := range layers {
		if chain == "" {
			chain = l.DiffID
			continue
		}
		chain = fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(chain+" "+layers[i].DiffID)))
	}
	return chain
}

func webURL(s string) bool {
	u, err := url.Parse(s)
	return err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != ""
}

func (c *checker) run(v *Vertex, op *Run) error {
	switch {
	case len(op.Args) == 0:
		return at("command", "arguments are required")
	case !path.IsAbs(op.Dir):
		return at("dir", "%q is not absolute", op.Dir)
	case !slices.Contains([]string{"", "none", "host", "private"}, op.Network):
		return at("network", "it is none, host or private but is %q; the default has no such field", op.Network)
	case op.Security != "" && op.Security != Insecure:
		return at("security", "it is insecure but is %q; the sandbox has no such field", op.Security)
	case (op.ScriptPath == "") != (len(op.Script) == 0):
		return at("script", "script and scriptPath go together")
	case op.ScriptPath != "" && (path.Dir(op.ScriptPath)+"/" != ScriptDir || CheckFileName(path.Base(op.ScriptPath)) != nil || path.Clean(op.ScriptPath) != op.ScriptPath):
		return at("scriptPath", "%q is no file in %s", op.ScriptPath, ScriptDir)
	}
	if err := c.root(v, "base", op.Base); err != nil {
		return err
	}
	for i, h := range op.Hosts {
		p := fmt.Sprintf("hosts[%d]", i)
		if h.Name == "" || strings.ContainsAny(h.Name, " \t\n#") {
			return at(p+".name", "%q is no host name", h.Name)
		}
		if _, err := netip.ParseAddr(h.IP); err != nil {
			return at(p+".ip", "%q is no IP address", h.IP)
		}
	}
	for i, d := range op.Devices {
		if d.Name == "" {
			return at(fmt.Sprintf("devices[%d].name", i), "it is empty")
		}
	}
	for i, m := range op.Mounts {
		if err := c.mount(v, fmt.Sprintf("mounts[%d]", i), m); err != nil {
			return err
		}
	}
	return nil
}

// mountFields are what a mount of each type may have beside type and target.
var mountFields = map[string]string{
	MountBind:   "from source readOnly",
	MountCache:  "from source readOnly id sharing mode uid gid",
	MountTmpfs:  "size readOnly",
	MountSecret: "id required env mode uid gid",
	MountSSH:    "id required mode uid gid",
}

func (c *checker) mount(v *Vertex, p string, m Mount) error {
	known, ok := mountFields[m.Type]
	if !ok {
		return at(p+".type", "unknown type of mount %q", m.Type)
	}
	fields := reflect.ValueOf(m)
	for _, f := range streamFields(fields.Type()) {
		if value := fields.Field(f.index); !f.empty(value) && f.name != "type" && f.name != "target" && !slices.Contains(strings.Fields(known), f.name) {
			return at(p+"."+f.name, "a %s mount has none", m.Type)
		}
	}
	has := func(field string) bool { return slices.Contains(strings.Fields(known), field) }
	switch {
	case m.Target == "" && m.Env == "":
		return at(p+".target", "it is empty")
	case m.Target != "" && !path.IsAbs(m.Target):
		return at(p+".target", "%q is not absolute", m.Target)
	case path.Clean(m.Target) == "/" && !has("required"):
		return at(p+".target", "invalid mount target %q", m.Target)
	case has("id") && m.ID == "":
		return at(p+".id", "it is empty")
	case has("sharing") && !slices.Contains([]string{SharingShared, SharingPrivate, SharingLocked}, m.Sharing):
		return at(p+".sharing", "it is shared, private or locked but is %q", m.Sharing)
	case m.Size < 0:
		return at(p+".size", "%d is negative", m.Size)
	}
	if has("source") {
		if err := checkAbsolute(p+".source", m.Source); err != nil {
			return err
		}
	}
	if m.From.Context != "" || m.From.Input == Scratch {
		return nil
	}
	return c.root(v, p+".from.input", m.From.Input)
}

func (c *checker) copy(v *Vertex, op *Copy) error {
	if len(op.Sources)+len(op.Files) == 0 {
		return at("sources", "nothing is copied: there are neither sources nor files")
	}
	if err := c.root(v, "base", op.Base); err != nil {
		return err
	}
	for i, s := range op.Sources {
		p := fmt.Sprintf("sources[%d]", i)
		if len(s.Paths) == 0 {
			return at(p+".paths", "there are none")
		}
		if s.From.Context == "" {
			if err := c.files(v, p+".from.input", s.From.Input); err != nil {
				return err
			}
		}
	}
	for i, f := range op.Files {
		if err := CheckFileName(f.Name); err != nil {
			return at(fmt.Sprintf("files[%d].name", i), "%w", err)
		}
	}
	if err := CheckMode(op.Chmod); err != nil {
		return at("chmod", "%w", err)
	}
	if dest := strings.TrimSuffix(op.Dest, "/"); dest != "" {
		return checkAbsolute("dest", dest)
	}
	return checkAbsolute("dest", op.Dest)
}

func checkHTTP(op *HTTP) error {
	if !webURL(op.URL) {
		return at("url", "%q is no http or https URL", op.URL)
	}
	if err := CheckFileName(op.Name); err != nil || op.Name == "" {
		return at("file", "%q is no file name", op.Name)
	}
	if err := CheckDigest(op.Checksum); err != nil {
		return at("checksum", "%w", err)
	}
	return nil
}

// merge checks both halves of COPY --link.
func (c *checker) merge(v *Vertex, op *Merge) error {
	if err := c.root(v, "base", op.Base); err != nil {
		return err
	}
	if op.Base == Scratch {
		return at("base", "there is nothing to lay changes over")
	}
	if changes, ok := c.plan.op(deref(v, op.Changes)).(*Copy); !ok || changes.Base != Scratch {
		return at("changes", "it must be a COPY whose base is -1")
	}
	return nil
}

func checkCompression(p, value string) error {
	if !slices.Contains([]string{Uncompressed, Gzip, Zstd}, value) {
		return at(p, "it is gzip, zstd or uncompressed but is %q", value)
	}
	return nil
}

// minEpoch and maxEpoch are the first second of the year 0 and the last of 9999: JSON has no other times (RFC 3339).
const (
	minEpoch = -62167219200
	maxEpoch = 253402300799
)

func checkEpoch(epoch *int64) error {
	if epoch != nil && (*epoch < minEpoch || *epoch > maxEpoch) {
		return at("epoch", "%d is not between %d and %d seconds since 1970", *epoch, int64(minEpoch), int64(maxEpoch))
	}
	return nil
}

func (c *checker) pack(v *Vertex, op *Pack) error {
	if err := errors.Join(checkCompression("compression", op.Compression), checkEpoch(op.Epoch)); err != nil {
		return err
	}
	of := c.plan.op(deref(v, op.Of))
	switch of.(type) {
	case *Run, *Copy, *Mkdir:
	case *Merge, *Image:
		if !op.Squash {
			return at("of", "%d is a %s; the layer of a MERGE is that of its changes, an IMAGE has its own", deref(v, op.Of), strings.ToUpper(of.Kind()))
		}
	default:
		return at("of", "%d makes no changes that could be a layer", deref(v, op.Of))
	}
	switch {
	case !op.Squash && op.Above != Scratch:
		return at("above", "only a squash has it")
	case !op.Squash && len(op.FromContexts) > 0:
		return at("fromContexts", "only a squash has them")
	case op.Squash && op.FromContext:
		return at("fromContext", "a squash has fromContexts")
	case op.FromContext && !isCopy(of):
		return at("fromContext", "the step is no COPY")
	}
	c.packs = append(c.packs, v.ID)
	return nil
}

func isCopy(op Op) bool { _, ok := op.(*Copy); return ok }

// below is the file system that a step was made on; ok is false for what is made on none.
func (c *checker) below(id ID) (ID, bool) {
	if id == Empty {
		return Empty, false
	}
	v := c.plan.Graph.Vertex(id)
	switch op := v.Op.(type) {
	case *Run:
		return deref(v, op.Base), true
	case *Copy:
		return deref(v, op.Base), true
	case *Mkdir:
		return deref(v, op.Base), true
	case *Merge:
		return deref(v, op.Base), true
	}
	return Empty, false
}

// manifest checks that an image's layers lie on each other: the store takes their file systems for those of the image.
func (c *checker) manifest(v *Vertex, op *Manifest) error {
	if len(c.layered) == maxStreamTargets {
		return at("step", "a plan has at most %d images", maxStreamTargets)
	}
	if err := errors.Join(checkEpoch(op.Epoch), checkLayers("baseLayers", op.BaseLayers)); err != nil {
		return err
	}
	entries, err := checkConfig("config", op.Config)
	if err != nil {
		return err
	}
	if op.BaseHistory < 0 || op.BaseHistory > entries {
		return at("baseHistory", "%d is not between 0 and the %d entries of the history", op.BaseHistory, entries)
	}
	if len(op.States) != 0 && len(op.States) != len(op.Packs) {
		return at("states", "there are %d of %d packs", len(op.States), len(op.Packs))
	}
	s := span{unknown: true}
	for i := range op.Packs {
		if s, err = c.layer(v, op, i, s); err != nil {
			return err
		}
	}
	c.layered[v.ID] = s
	if s.unknown {
		return nil
	}
	return c.baseLayers("baseLayers", op, s.below)
}

// layer checks that one layer lies on those before it.
func (c *checker) layer(v *Vertex, op *Manifest, i int, before span) (span, error) {
	p, id := fmt.Sprintf("packs[%d]", i), deref(v, op.Packs[i])
	pack, ok := c.plan.op(id).(*Pack)
	if !ok {
		return before, at(p, "%d is no PACK", id)
	}
	c.packed[id] = true
	of := deref(c.plan.Graph.Vertex(id), pack.Of)
	if pack.Squash {
		return c.squashed(op, p, id, of)
	}
	below, _ := c.below(of)
	with := of
	if len(op.States) > 0 && op.States[i] != Scratch {
		with = deref(v, op.States[i])
		vertex := c.plan.Graph.Vertex(with)
		merge, ok := vertex.Op.(*Merge)
		if !ok || deref(vertex, merge.Changes) != of {
			return before, at(fmt.Sprintf("states[%d]", i), "%d is no MERGE of the step that is packed", with)
		}
		below = deref(vertex, merge.Base)
	}
	if before.unknown {
		return span{below: below, with: with}, nil
	}
	if below != before.with {
		return before, at(p, "the layer's step is made on %d, and the layers before it are those of %d", below, before.with)
	}
	return span{below: before.below, with: with}, nil
}

// squashed checks that the one layer holds all steps from a file system below.
func (c *checker) squashed(op *Manifest, p string, id, of ID) (span, error) {
	v := c.plan.Graph.Vertex(id)
	pack := v.Op.(*Pack)
	if len(op.Packs) > 1 || len(op.States) > 0 {
		return span{}, at(p, "a squash is an image's only layer of its own")
	}
	above := deref(v, pack.Above)
	steps := map[ID]bool{}
	for s := of; s != above; {
		steps[s] = true
		next, ok := c.below(s)
		if !ok && above == Empty {
			break
		}
		if !ok {
			return span{}, at(p, "the steps of the squash do not begin on %d", above)
		}
		s = next
	}
	for _, r := range pack.FromContexts {
		if !steps[deref(v, r)] {
			return span{}, at(p, "%d is no step of the squash", deref(v, r))
		}
	}
	return span{below: above, with: of}, nil
}

// baseLayers checks that the layers that an image has of its base are the layers of the file system below its own.
func (c *checker) baseLayers(p string, op *Manifest, below ID) error {
	var layers []Layer
	if base, ok := c.plan.op(below).(*Image); ok {
		layers = base.Layers
	} else if below != Empty {
		return at(p, "the layers lie on %d, which is neither an IMAGE nor -1", below)
	}
	same := slices.EqualFunc(layers, op.BaseLayers, func(a, b Layer) bool { return reflect.DeepEqual(a, b) })
	if !same {
		return at(p, "they are not those of %d, on which the layers lie", below)
	}
	return nil
}

func (c *checker) index(v *Vertex, op *Index) error {
	if len(op.Images) == 0 {
		return at("images", "there are none")
	}
	for i, m := range op.Images {
		p := fmt.Sprintf("images[%d]", i)
		if _, ok := c.plan.op(deref(v, m.Manifest)).(*Manifest); !ok {
			return at(p+".manifest", "%d is no MANIFEST", deref(v, m.Manifest))
		}
		if err := checkPlatform(p+".platform", m.Platform); err != nil {
			return err
		}
	}
	return nil
}

// outcome checks the targets, once all vertices are there.
func (c *checker) outcome() error {
	p := c.plan
	if len(p.Targets) == 0 {
		return at("targets", "there are none")
	}
	images, platforms := map[ID]bool{}, map[string]bool{}
	for i, t := range p.Targets {
		path := fmt.Sprintf("targets[%d]", i)
		if platforms[t.Platform] {
			return at(path+".platform", "%q is there twice", t.Platform)
		}
		platforms[t.Platform] = true
		if err := c.target(path, t); err != nil {
			return err
		}
		if images[t.Manifest] = true; (t.Manifest == Empty) != (p.Targets[0].Manifest == Empty) {
			return at(path+".manifest", "either all targets have an image or none")
		}
	}
	for id := range c.layered {
		if !images[id] {
			return at("targets", "the MANIFEST %d is no target's", id)
		}
	}
	for _, id := range c.packs {
		if !c.packed[id] {
			return at("targets", "the PACK %d is no image's", id)
		}
	}
	return c.indexed()
}

func (c *checker) target(path string, t Target) error {
	if err := checkPlatform(path+".platform", t.Platform); err != nil {
		return err
	}
	switch c.plan.op(t.Files).(type) {
	case *Image, *Run, *Copy, *Mkdir, *Merge:
	default:
		if t.Files != Empty {
			return at(path+".files", "%d is no step with files", t.Files)
		}
	}
	if t.Manifest == Empty {
		_, err := checkConfig(path+".config", t.Config)
		return err
	}
	op, ok := c.plan.op(t.Manifest).(*Manifest)
	if !ok {
		return at(path+".manifest", "%d is no MANIFEST", t.Manifest)
	}
	if !slices.Equal(t.Config, op.Config) {
		return at(path+".config", "it is not the configuration of the MANIFEST")
	}
	s := c.layered[t.Manifest]
	if s.unknown {
		return c.baseLayers(path+".files", op, t.Files)
	}
	if s.with != t.Files {
		return at(path+".files", "it is %d, and the layers of the MANIFEST are those of %d", t.Files, s.with)
	}
	return nil
}

// indexed checks that an index has the images of all targets.
func (c *checker) indexed() error {
	p := c.plan
	for _, v := range p.Graph.Vertices {
		if _, ok := v.Op.(*Index); ok && v.ID != p.Index {
			return at("index", "the INDEX %d is not the plan's", v.ID)
		}
	}
	if p.Index == Empty {
		if len(p.Targets) > 1 && p.Targets[0].Manifest != Empty {
			return at("index", "images for several platforms need one")
		}
		return nil
	}
	op, ok := p.op(p.Index).(*Index)
	if !ok {
		return at("index", "%d is no INDEX", p.Index)
	}
	v := p.Graph.Vertex(p.Index)
	if !slices.EqualFunc(op.Images, p.Targets, func(m IndexImage, t Target) bool {
		return deref(v, m.Manifest) == t.Manifest && m.Platform == t.Platform
	}) {
		return at("index", "its images are not those of the targets")
	}
	return nil
}

// A configDocument is what an image's configuration may hold here: what lowering writes (image-spec, config.md, and Docker's additions),
// without rootfs, which comes with the layers.
type configDocument struct {
	Author       string   `json:"author,omitempty"`
	Architecture string   `json:"architecture"`
	Variant      string   `json:"variant,omitempty"`
	OS           string   `json:"os"`
	OSVersion    string   `json:"os.version,omitempty"`
	OSFeatures   []string `json:"os.features,omitempty"`
	Config       struct {
		User         string              `json:"User,omitempty"`
		ExposedPorts map[string]struct{} `json:"ExposedPorts,omitempty"`
		Env          []string            `json:"Env,omitempty"`
		Entrypoint   []string            `json:"Entrypoint,omitempty"`
		Cmd          []string            `json:"Cmd,omitempty"`
		Volumes      map[string]struct{} `json:"Volumes,omitempty"`
		WorkingDir   string              `json:"WorkingDir,omitempty"`
		Labels       map[string]string   `json:"Labels,omitempty"`
		StopSignal   string              `json:"StopSignal,omitempty"`
		ArgsEscaped  bool                `json:"ArgsEscaped,omitempty"`
		Healthcheck  struct {
			Test          []string `json:"Test,omitempty"`
			Interval      int64    `json:"Interval,omitempty"`
			Timeout       int64    `json:"Timeout,omitempty"`
			StartPeriod   int64    `json:"StartPeriod,omitempty"`
			StartInterval int64    `json:"StartInterval,omitempty"`
			Retries       int64    `json:"Retries,omitempty"`
		} `json:"Healthcheck,omitempty"`
		OnBuild []string `json:"OnBuild,omitempty"`
		Shell   []string `json:"Shell,omitempty"`
	} `json:"config,omitempty"`
	History []configHistory `json:"history,omitempty"`
}

type configHistory struct {
	Created    string `json:"created,omitempty"`
	CreatedBy  string `json:"created_by,omitempty"`
	Author     string `json:"author,omitempty"`
	Comment    string `json:"comment,omitempty"`
	EmptyLayer bool   `json:"empty_layer,omitempty"`
}

// checkConfig checks a configuration and returns how many entries its history has.
func checkConfig(p string, raw []byte) (entries int, err error) {
	var c configDocument
	spent := 0
	d := decoder{src: raw, spent: &spent}
	if err := d.line("a configuration", reflect.ValueOf(&c).Elem()); err != nil {
		var f *fieldError
		if errors.As(err, &f) {
			f.path, f.offset = strings.TrimSuffix(p+"."+f.path, "."), -1
		}
		return 0, err
	}
	for i, h := range c.History {
		if _, err := time.Parse(time.RFC3339, h.Created); h.Created != "" && err != nil {
			return 0, at(fmt.Sprintf("%s.history[%d].created", p, i), "%q is no time as RFC 3339 has it", h.Created)
		}
	}
	return len(c.History), nil
}

// CheckFileName checks that a heredoc's name can be a file in the directory it goes to.
func CheckFileName(name string) error {
	if name == "." || name == ".." || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("the heredoc name %q is no file name", name)
	}
	return nil
}

// digestSizes are the hexadecimal digits of a digest by the algorithms that img knows (image-spec, descriptor.md, "Digests").
var digestSizes = map[string]int{"sha256": 64, "sha384": 96, "sha512": 128}

// CheckDigest checks the checksum of an HTTP; "" is none.
func CheckDigest(sum string) error {
	algorithm, digits, ok := strings.Cut(sum, ":")
	size, known := digestSizes[algorithm]
	switch {
	case sum == "" || known && len(digits) == size && isHex(digits):
		return nil
	case ok && !known:
		return fmt.Errorf("unsupported digest algorithm %q in checksum %s", algorithm, sum)
	}
	return fmt.Errorf("invalid checksum digest format %q: want sha256: and 64 hexadecimal digits", sum)
}

var symbolicMode = regexp.MustCompile(`^[ugoa]*([-+=][rwxXstugo]*)+(,[ugoa]*([-+=][rwxXstugo]*)+)*$`)

// CheckMode checks the Chmod of a Copy.
func CheckMode(mode string) error {
	if mode == "" {
		return nil
	}
	n, err := strconv.ParseUint(mode, 8, 32)
	if err == nil && n <= 0o7777 || err != nil && symbolicMode.MatchString(mode) {
		return nil
	}
	return fmt.Errorf("invalid chmod parameter: '%v'. it should be octal string and between 0 and 07777", mode)
}

var (
	// commitPrefix is a commit, or how one begins.
	commitPrefix = regexp.MustCompile(`^[a-fA-F0-9]+$`)
	// scpRemote is git's short form of ssh.
	scpRemote = regexp.MustCompile(`^[a-zA-Z0-9_-]+@([a-zA-Z0-9.-]+):([^?#]*)$`)
)

// Check looks at what a Git says, and tells the field that is wrong: nothing that git, or ssh below it, could take for an option, a pattern or another scheme.
func (g *Git) Check() (field string, err error) {
	if err := checkRemote(g.Remote); err != nil {
		return "remote", err
	}
	if err := checkRef(g.Ref); err != nil {
		return "ref", err
	}
	switch {
	case g.Subdir != strings.TrimPrefix(path.Join("/", g.Subdir), "/"):
		return "subdir", fmt.Errorf("%q is not relative and clean", g.Subdir)
	case g.MTime != "" && g.MTime != "commit":
		return "mtime", fmt.Errorf("it is commit but is %q; times of the checkout have no such field", g.MTime)
	case g.Checksum != "" && !commitPrefix.MatchString(g.Checksum):
		return "checksum", fmt.Errorf("invalid checksum %s for Git URL, expected hex commit hash", g.Checksum)
	case g.Checksum != "" && IsCommit(g.Ref) && !strings.HasPrefix(g.Ref, g.Checksum):
		return "checksum", fmt.Errorf("expected checksum to match %s, got %s", g.Checksum, g.Ref)
	case !g.FetchByCommit || IsCommit(g.Ref):
		return "", nil
	case g.Checksum == "":
		return "fetchByCommit", errors.New("fetch-by-commit requires a checksum or a commit SHA ref")
	case !IsCommit(g.Checksum):
		return "checksum", fmt.Errorf("fetch-by-commit requires a full commit SHA checksum, got %q", g.Checksum)
	}
	return "", nil
}

func checkRemote(remote string) error {
	host, dir := "", ""
	if m := scpRemote.FindStringSubmatch(remote); m != nil {
		host, dir = m[1], m[2]
	} else if u, err := url.Parse(remote); err == nil && slices.Contains([]string{"http", "https", "git", "ssh"}, u.Scheme) && u.RawQuery+u.Fragment == "" {
		host, dir = u.Hostname(), u.Path
	}
	control := func(r rune) bool { return r < ' ' || r == 0x7f }
	if host == "" || strings.HasPrefix(host, "-") || strings.HasPrefix(dir, "-") || strings.ContainsFunc(remote, control) {
		return fmt.Errorf("invalid git address %q", remote)
	}
	return nil
}

// checkRef refuses what can be no name of a revision (git-check-ref-format(1)), above all what git could take for an option or a pattern.
func checkRef(ref string) error {
	bad := strings.HasPrefix(ref, "-") || strings.HasPrefix(ref, "/") || strings.HasSuffix(ref, "/") || strings.HasSuffix(ref, ".lock") ||
		strings.HasSuffix(ref, ".") || ref == "@" || strings.ContainsAny(ref, " ~^:?*[\\")
	for _, pair := range []string{"..", "//", "@{", "/."} {
		bad = bad || strings.Contains(ref, pair)
	}
	for _, r := range ref {
		bad = bad || r < ' ' || r == 0x7f
	}
	if bad {
		return fmt.Errorf("invalid git ref %q", ref)
	}
	return nil
}
