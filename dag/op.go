package dag

// An Op is what a vertex does. The set is closed: Image, Run, Copy, HTTP, Git, Mkdir, Merge, Pack, Manifest, Index.
//
// Every exported field of an op is part of the vertex's cache key, unless it carries the tag `key:"-"`; a test in
// package exec changes each field and looks. By their JSON names the fields are in the instruction stream as well (streamcodec.go), so a
// new one needs its rule in check.go, and a line in docs/instruction-stream.md and its schema.
type Op interface {
	// Kind is the op's name in keys, streams and plans: "run".
	Kind() string
	op()
}

// Image is the file system of a base image.
type Image struct {
	// ChainID names the file system (image-spec, config.md, "Layer ChainID"). It alone counts in keys.
	ChainID string `json:"chainID"`
	// Ref is the name the Dockerfile gives the image.
	Ref string `json:"ref" key:"-"`
	// Layers are the image's layers, base first.
	Layers []Layer `json:"layers" key:"-"`
	// Source says where a plan's reader finds the image: "registry", or the name of an oci-layout context. Steps look in the local
	// store first, and then where lowering found the image.
	Source string `json:"source,omitempty" key:"-"`
}

// A Layer is a packed layer: what it holds and where its bytes are.
type Layer struct {
	// DiffID is the digest of the uncompressed tar.
	DiffID string `json:"diffID"`
	// Digest, Size and MediaType are the blob's descriptor.
	Digest    string   `json:"digest"`
	Size      int64    `json:"size"`
	MediaType string   `json:"mediaType"`
	URLs      []string `json:"urls,omitempty"`
}

// Run runs a process on a root file system and keeps what it changed.
type Run struct {
	Base Ref `json:"base"`
	// Args is the whole argument vector, shell included.
	Args []string `json:"args" stream:"-"`
	// Env is the whole environment, "K=V", in order.
	Env []string `json:"env,omitempty" stream:"-"`
	// ProxyEnv is the caller's proxy variables: in the environment, never in the key.
	ProxyEnv []string `json:"-" key:"-"`
	// Dir is the working directory, absolute. It is made when missing.
	Dir string `json:"dir"`
	// User is USER's text, "" for root.
	User     string `json:"user,omitempty"`
	Hostname string `json:"hostname,omitempty"`
	// Network is "" (default), "none", "host" or "private".
	Network string `json:"network,omitempty"`
	// Security is "" (sandbox) or "insecure".
	Security string  `json:"security,omitempty"`
	Mounts   []Mount `json:"mounts,omitempty"`
	// Devices are what the step asks for by CDI's names; what they stand for counts in the key, too.
	Devices []Device `json:"devices,omitempty"`
	// Hosts are added host names; the addresses do not count in the key.
	Hosts []Host `json:"hosts,omitempty"`
	// Script is the body of a RUN heredoc that begins with "#!", shown at ScriptPath, read-only, mode 0755.
	Script     []byte `json:"script,omitempty"`
	ScriptPath string `json:"scriptPath,omitempty"`
}

// Insecure is the security of a RUN that keeps its privileges.
const Insecure = "insecure"

// ScriptDir is where the body of a heredoc that begins with "#!" is shown.
const ScriptDir = "/dev/pipes/"

// A Device is one RUN --device, or one of all steps: "vendor.com/class=name" or what else CDI's names may be.
type Device struct {
	Name string `json:"name"`
	// Required: without the device the step fails; else it runs without.
	Required bool `json:"required,omitempty"`
}

// A Host is a line of /etc/hosts.
type Host struct {
	Name string `json:"name"`
	IP   string `json:"ip" key:"-"`
}

// Mount types of RUN --mount.
const (
	MountBind   = "bind"
	MountCache  = "cache"
	MountTmpfs  = "tmpfs"
	MountSecret = "secret"
	MountSSH    = "ssh"
)

// Cache mount sharing modes.
const (
	SharingShared  = "shared"
	SharingPrivate = "private"
	SharingLocked  = "locked"
)

// A Mount is one RUN --mount.
type Mount struct {
	Type string `json:"type"`
	// Target is absolute, inside the root.
	Target string `json:"target,omitempty"`
	// From is what a bind (or a cache's first content) shows; Scratch with an empty Context is nothing.
	From Source `json:"from" stream:"scratch"`
	// Source is the path that is shown, absolute: in From, or in the cache.
	Source string `json:"source,omitempty"`
	// ReadOnly: bind mounts are read-only unless rw was given; writes to a rw bind are thrown away.
	ReadOnly bool `json:"readOnly,omitempty"`
	// ID is the cache's, secret's or agent's id.
	ID      string `json:"id,omitempty"`
	Sharing string `json:"sharing,omitempty"`
	// Size limits a tmpfs, in bytes; 0 means half of the memory.
	Size     int64   `json:"size,omitempty"`
	Required bool    `json:"required,omitempty"`
	Env      string  `json:"env,omitempty"`
	Mode     *uint32 `json:"mode,omitempty"`
	UID      *uint32 `json:"uid,omitempty"`
	GID      *uint32 `json:"gid,omitempty"`
}

// A Source is where files come from: a build context by name, or else an input.
type Source struct {
	// Context is the name of a local context ("context" for the build context). Empty: the files of Input.
	Context string `json:"context,omitempty"`
	Input   Ref    `json:"input" stream:"scratch"`
}

// MainContext is the name of the build context among the named ones.
const MainContext = "context"

// Copy copies files into a root: COPY and ADD.
type Copy struct {
	Base Ref `json:"base"`
	// Sources are copied in their order; of two that have a file of one name, the later one stays.
	Sources []CopySource `json:"sources,omitempty"`
	// Files are heredocs: they become files next to the copied ones, and come last.
	Files []InlineFile `json:"files,omitempty"`
	// Dest is absolute. A trailing slash means a directory.
	Dest string `json:"dest"`
	// Chown is "user[:group]" as written, "" keeps the source's owner (0:0 for contexts).
	Chown string `json:"chown,omitempty"`
	// Chmod is octal or symbolic text, "" keeps the source's mode.
	Chmod   string   `json:"chmod,omitempty"`
	Exclude []string `json:"exclude,omitempty"`
	Parents bool     `json:"parents,omitempty"`
}

// A CopySource is one place that a Copy takes files from.
type CopySource struct {
	From Source `json:"from" stream:"scratch"`
	// Paths are the files as the Dockerfile gives them after expansion, patterns included; relative to From's root.
	Paths []string `json:"paths"`
	// Literal says that Paths are names, in which no character stands for others.
	Literal bool `json:"literal,omitempty"`
	// Unpack extracts archives, as ADD does with local ones.
	Unpack bool `json:"unpack,omitempty"`
	// Times says that the files' times count: what is copied differs when they do.
	Times bool `json:"times,omitempty"`
}

// An InlineFile is a heredoc of COPY or ADD.
type InlineFile struct {
	Name string `json:"name"`
	Data []byte `json:"data"`
}

// HTTP is a file from the web, as the only file of a file system: mode 0600, owner 0:0, its time the server's or 1970.
type HTTP struct {
	// URL counts by what is there.
	URL string `json:"url"`
	// Name is what the file is called.
	Name string `json:"file"`
	// Checksum is the digest that the file must have, "" for any: "sha256:…".
	Checksum string `json:"checksum,omitempty"`
}

// GitTree is the directory that a Git makes: a file system's root has no time of its own, a repository's root has.
const GitTree = "tree"

// Git is what a revision of a git repository holds, in the directory GitTree: modes 0644 and 0755, owner 0:0.
type Git struct {
	// Remote is the repository's address as git takes it: a URL (http, https, ssh, git) or user@host:path.
	Remote string `json:"remote"`
	// Ref is a branch, a tag, a full name of either or a commit; "" is the remote's default branch.
	Ref string `json:"ref,omitempty"`
	// Subdir is the directory of the repository that alone is taken, relative and clean; "" is all.
	Subdir string `json:"subdir,omitempty"`
	// Checksum is how the name of the commit, or of the tag's object, must begin; hexadecimal.
	Checksum string `json:"checksum,omitempty"`
	// KeepGitDir keeps a .git directory, in which the commit is checked out. It needs an empty Subdir to have an effect.
	KeepGitDir     bool `json:"keepGitDir,omitempty"`
	SkipSubmodules bool `json:"skipSubmodules,omitempty"`
	// MTime is "" (files have the time of their checkout) or "commit".
	MTime string `json:"mtime,omitempty"`
	// FetchByCommit takes the full Checksum (or Ref) for the commit without asking the remote what Ref is.
	FetchByCommit bool `json:"fetchByCommit,omitempty"`
}

// IsCommit reports whether a revision is the whole name of a commit, by SHA-1 or SHA-256.
func IsCommit(revision string) bool {
	return (len(revision) == 40 || len(revision) == 64) && isHex(revision)
}

// Mkdir makes a directory and its missing parents, mode 0755: WORKDIR.
type Mkdir struct {
	Base Ref    `json:"base"`
	Path string `json:"path"`
	// User owns what is made, by name or id, looked up in the root; "" is root.
	User string `json:"user,omitempty"`
}

// Merge lays the changes of a step that began with nothing over another file system: the second half of COPY --link, whose first half is a
// Copy onto Scratch that knows nothing of the base. Links of the base are not followed, its directories get the metadata of the step's,
// and anything else of the step replaces what is there.
type Merge struct {
	Base Ref `json:"base"`
	// Changes is a step whose base is Scratch.
	Changes Ref `json:"changes"`
}

// Compressions of a Pack.
const (
	Uncompressed = "uncompressed"
	Gzip         = "gzip"
	Zstd         = "zstd"
)

// Pack makes a layer blob of the changes that one step made, or several together.
type Pack struct {
	// Of is the step whose changes are packed: a Run, Copy or Mkdir.
	Of Ref `json:"of"`
	// Squash packs what all steps from Above to Of made: Above is the vertex that the first of them was made on, Scratch for all there is.
	Squash bool `json:"squash,omitempty"`
	Above  Ref  `json:"above" stream:"scratch"`
	// FromContexts are, of the steps of a Squash, those with FromContext.
	FromContexts []Ref  `json:"fromContexts,omitempty"`
	Compression  string `json:"compression"`
	// Docker makes Docker's media types instead of the OCI ones.
	Docker bool `json:"docker,omitempty"`
	// Epoch, if given, bounds the times in the layer: entries of a context get it, all others are clamped to it.
	Epoch *int64 `json:"epoch,omitempty"`
	// FromContext says that the step takes all its entries from a build context, as far as Epoch goes.
	FromContext bool `json:"fromContext,omitempty"`
}

// Manifest makes an image's configuration and manifest of layers.
type Manifest struct {
	// Config is the image's configuration as canonical JSON, without rootfs. History entries of steps with a layer
	// and no time, and "created", get theirs here.
	Config []byte `json:"config" stream:"json"`
	// BaseHistory is how many of Config's history entries are the base image's, which are never changed.
	BaseHistory int `json:"baseHistory,omitempty"`
	// BaseLayers come first; they are blobs already.
	BaseLayers []Layer `json:"baseLayers,omitempty"`
	// Packs are inputs that are Pack vertices, in layer order.
	Packs []Ref `json:"packs,omitempty"`
	// States are, beside Packs, the file systems with those layers, where they are not what was packed but a Merge; Scratch for the
	// others. They tell nothing about the image, but which files belong to its layers. Nil where no layer has a Merge.
	States []Ref `json:"states,omitempty" key:"-"`
	// Docker makes Docker's media types.
	Docker bool   `json:"docker,omitempty"`
	Epoch  *int64 `json:"epoch,omitempty"`
	// OmitHistory: the image has no history at all. Else layers without an entry get one.
	OmitHistory bool `json:"omitHistory,omitempty"`
	// Annotations of the manifest; Descriptor those of what names it: an entry of an index.
	Annotations map[string]string `json:"annotations,omitempty"`
	Descriptor  map[string]string `json:"descriptor,omitempty"`
}

// Index makes an image index of the images of several platforms.
type Index struct {
	Images []IndexImage `json:"images"`
	// Docker makes a manifest list with Docker's media type.
	Docker bool `json:"docker,omitempty"`
	// Annotations of the index; Descriptor those of what names it: an entry of an archive's index.json.
	Annotations map[string]string `json:"annotations,omitempty"`
	Descriptor  map[string]string `json:"descriptor,omitempty"`
}

// An IndexImage is an entry of an Index.
type IndexImage struct {
	// Manifest is an input that is a Manifest vertex.
	Manifest Ref `json:"manifest"`
	// Platform is the entry's, normalised: "linux/arm64", "linux/arm/v7", "windows(10.0.1)/amd64".
	Platform string `json:"platform"`
}

func (*Image) Kind() string    { return "image" }
func (*Run) Kind() string      { return "run" }
func (*Copy) Kind() string     { return "copy" }
func (*HTTP) Kind() string     { return "http" }
func (*Git) Kind() string      { return "git" }
func (*Mkdir) Kind() string    { return "mkdir" }
func (*Merge) Kind() string    { return "merge" }
func (*Pack) Kind() string     { return "pack" }
func (*Manifest) Kind() string { return "manifest" }
func (*Index) Kind() string    { return "index" }

func (*Image) op()    {}
func (*Run) op()      {}
func (*Copy) op()     {}
func (*HTTP) op()     {}
func (*Git) op()      {}
func (*Mkdir) op()    {}
func (*Merge) op()    {}
func (*Pack) op()     {}
func (*Manifest) op() {}
func (*Index) op()    {}
