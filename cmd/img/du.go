package main

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"img/cache"
	"img/exec/fetch"
	"img/registry/image"
	"img/registry/layout"
	"img/snapshot"
	"img/userns"
)

// An insider does what can be done only inside the user namespace of builds, whose ids own snapshots and cache
// mounts. store.go starts one.
type insider interface {
	// removeInside deletes snapshots (by name, children first), cache mounts ("mount/" and the path below
	// exec/mounts), and whatever unfinished snapshots nobody works on.
	removeInside(ctx context.Context, names []string) error
	// exportFiles writes the files of an image, given by full name or digest, into a directory, which is made if
	// missing; they belong to the caller.
	exportFiles(ctx context.Context, name, platform, dest string) error
	Close() error
}

// Kinds of records, for --filter type=.
const (
	kindBlob     = "blob"
	kindSnapshot = "snapshot"
	kindMount    = "exec.cachemount"
	kindRecord   = "record"
	kindContext  = "source.local"
	kindHTTP     = "source.http"
	kindGit      = "source.git"
	kindLeftover = "leftover"
)

// mountPrefix marks cache mounts among the names for removeInside.
const mountPrefix = "mount/"

// A usage is one thing that takes room in the state directory. Size is in bytes.
type usage struct {
	ID          string
	Type        string
	Parent      string `json:",omitempty"`
	Description string
	Size        int64
	Reclaimable bool
	Mutable     bool
	// InUse: an image's name needs it.
	InUse    bool
	LastUsed time.Time
	// foreign: it belongs to another mapping's ids and cannot be removed from here.
	foreign bool
	// keys are the cache records that it stands for: they are shown together.
	keys []cache.Key
}

// A disk is what the state directory holds, and what needs it.
type disk struct {
	dir   string
	blobs *layout.Store
	keys  *cache.Store
	// label is this process's mapping; snapshots of others cannot be removed from here.
	label string
	snaps *snapshot.Store

	keptBlobs map[v1.Hash]string // to the name that needs the blob
	keptSnaps map[snapshot.Name]string
	records   []cache.Record
	steps     map[string]string // digest in a record's output to what made it
}

// openDisk opens the state directory for looking.
func openDisk(ctx context.Context, g *Globals) (*disk, error) {
	dir, err := g.stateDir()
	if err != nil {
		return nil, err
	}
	m, err := userns.Choose()
	if err != nil {
		m = userns.One()
	}
	d := &disk{dir: dir, label: m.Label(), keptBlobs: map[v1.Hash]string{}, keptSnaps: map[snapshot.Name]string{}, steps: map[string]string{}}
	if d.blobs, err = layout.Open(filepath.Join(dir, "registry")); err != nil {
		return nil, err
	}
	if d.keys, err = cache.Open(filepath.Join(dir, "cache", "keys")); err != nil {
		return nil, err
	}
	if d.snaps, err = snapshot.Open(filepath.Join(dir, "snapshot"), snapshot.Options{Map: d.label, IDs: m.IDs()}); err != nil {
		return nil, err
	}
	if err := d.mark(ctx); err != nil {
		return nil, err
	}
	return d, d.readRecords()
}

// mark finds what names need: blobs, and the snapshots of their layers.
func (d *disk) mark(ctx context.Context) error {
	tags, err := d.blobs.List(ctx)
	if err != nil {
		return err
	}
	for _, t := range tags {
		why := "image " + t.Ref
		if from := t.Descriptor.Annotations[layout.PulledFrom]; from != "" {
			why = "pulled from " + from
		}
		hashes, err := d.blobs.Reachable(ctx, t.Descriptor)
		if err != nil {
			return fmt.Errorf("image %s: %w", t.Ref, err)
		}
		for _, h := range hashes {
			d.keptBlobs[h] = why
			d.markLayers(ctx, h, why)
		}
	}
	return nil
}

// markLayers keeps the snapshots of an image's layers, if the blob is a manifest.
func (d *disk) markLayers(ctx context.Context, h v1.Hash, why string) {
	found, err := d.blobs.Resolve(ctx, h.String())
	if err != nil || found.MediaType.IsIndex() {
		return
	}
	img, err := image.Load(ctx, d.blobs, found, image.Platform{})
	if err != nil {
		return
	}
	for _, chain := range image.ChainIDs(img.Layers) {
		name := d.snaps.Resolve(snapshot.Name(chain.String()))
		for name != "" && d.keptSnaps[name] == "" {
			d.keptSnaps[name] = why
			parent, err := d.snaps.Parent(name)
			if err != nil {
				break
			}
			name = parent
		}
	}
}

var digests = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

func (d *disk) readRecords() error {
	return d.keys.Each(func(r cache.Record) bool {
		d.records = append(d.records, cache.Record{Key: r.Key, Output: r.Output, Step: r.Step, Made: r.Made})
		for _, digest := range digests.FindAllString(string(r.Output), -1) {
			// A layer's record names the snapshot it was packed from, too; the step that made that says more.
			if d.steps[digest] == "" || digest == string(r.Output) {
				d.steps[digest] = stepWords(r.Step)
			}
		}
		return true
	})
}

// stepWords is a record's step as people know it: engine.Step puts stage and platform before the name.
func stepWords(step string) string {
	words := strings.SplitN(step, " ", 3)
	return words[len(words)-1]
}

// usages lists what is there, kind by kind, each sorted by id.
func (d *disk) usages() ([]usage, error) {
	var out []usage
	for _, list := range []func() ([]usage, error){d.blobUsages, d.snapshotUsages, d.mounts, d.contexts, d.fetched, d.leftovers} {
		some, err := list()
		if err != nil {
			return nil, err
		}
		slices.SortFunc(some, func(a, b usage) int { return cmp.Compare(a.ID, b.ID) })
		out = append(out, some...)
	}
	return append(out, d.recordUsages(out)...), nil
}

func (d *disk) blobUsages() (out []usage, err error) {
	err = d.blobs.Blobs(func(h v1.Hash, size int64, used time.Time) error {
		why, kept := d.keptBlobs[h]
		if !kept {
			why = cmp.Or(d.steps[h.String()], "unnamed image content")
		}
		out = append(out, usage{ID: h.String(), Type: kindBlob, Description: why, Size: size, Reclaimable: !kept, InUse: kept, LastUsed: used})
		return nil
	})
	return out, err
}

func (d *disk) snapshotUsages() ([]usage, error) {
	infos, err := d.snaps.List()
	if err != nil {
		return nil, err
	}
	var out []usage
	for _, s := range infos {
		why, kept := d.keptSnaps[s.Name]
		u := usage{ID: string(s.Name), Type: kindSnapshot, Parent: string(s.Parent), Size: s.Bytes, LastUsed: time.Unix(s.Used, 0)}
		u.foreign = s.Map != d.label
		u.InUse, u.Reclaimable = kept, !kept && !u.foreign
		u.Description = cmp.Or(d.steps[string(s.Name)], why, "files of a step")
		if u.foreign {
			u.Description += " (ids of mapping " + s.Map + ")"
		}
		out = append(out, u)
	}
	return out, nil
}

// contexts lists what is remembered about the files of build contexts: cache/files/<hash of the directory's name>.
func (d *disk) contexts() ([]usage, error) {
	return d.entries("cache/files", "", usage{Type: kindContext, Description: "digests of a context's files", Reclaimable: true})
}

// fetched lists what came from URLs and git repositories.
func (d *disk) fetched() (out []usage, err error) {
	list, err := fetch.List(filepath.Join(d.dir, fetchDir))
	for _, k := range list {
		u := usage{ID: fetchDir + "/" + k.Name, LastUsed: k.Used, Reclaimable: true, Description: k.Address}
		switch k.Kind {
		case fetch.KindGit:
			u.Type, u.Mutable, u.Description = kindGit, true, "git repository "+k.Address
		case fetch.KindTemp:
			u.Type, u.Mutable, u.Description = kindLeftover, true, "download that was killed, or runs"
		default:
			u.Type = kindHTTP
		}
		u.Size, _ = treeSize(filepath.Join(d.dir, u.ID))
		out = append(out, u)
	}
	return out, err
}

// leftovers lists what killed processes left. Contexts from standard input are ours to remove; unfinished snapshots
// belong to the mapping's ids.
func (d *disk) leftovers() ([]usage, error) {
	out, err := d.entries("tmp", "", usage{Type: kindLeftover, Description: "context of a build that was killed, or runs", Reclaimable: true, Mutable: true})
	if err != nil {
		return nil, err
	}
	maps, err := os.ReadDir(filepath.Join(d.dir, "snapshot"))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	for _, m := range maps {
		for prefix, what := range map[string]string{"stage-": "step that was killed, or runs", "trash-": "snapshot being deleted"} {
			some, err := d.entries("snapshot/"+m.Name(), prefix, usage{Type: kindLeftover, Description: what, Mutable: true, Reclaimable: m.Name() == d.label})
			if err != nil {
				return nil, err
			}
			out = append(out, some...)
		}
	}
	return out, nil
}

// entries makes a usage like u of each entry of a directory whose name begins so; its path is the id.
func (d *disk) entries(dir, prefix string, u usage) ([]usage, error) {
	list, err := os.ReadDir(filepath.Join(d.dir, dir))
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var out []usage
	for _, e := range list {
		if strings.HasPrefix(e.Name(), prefix) {
			u.ID = dir + "/" + e.Name()
			u.Size, u.LastUsed = treeSize(filepath.Join(d.dir, u.ID))
			out = append(out, u)
		}
	}
	return out, nil
}

// mounts lists cache mounts: exec/mounts/<map>/<hash of the id>. What other ids hide from us is not counted.
func (d *disk) mounts() ([]usage, error) {
	root := filepath.Join(d.dir, "exec", "mounts")
	maps, err := os.ReadDir(root)
	if err != nil && !os.IsNotExist(err) {
		return nil, err
	}
	var out []usage
	for _, m := range maps {
		list, _ := os.ReadDir(filepath.Join(root, m.Name()))
		for _, e := range list {
			if !e.IsDir() {
				continue
			}
			at := filepath.Join(root, m.Name(), e.Name())
			u := usage{ID: mountPrefix + m.Name() + "/" + e.Name(), Type: kindMount, Description: "cache mount", Mutable: true}
			u.Size, u.LastUsed = treeSize(at)
			u.Reclaimable = m.Name() == d.label
			if id, err := os.ReadFile(filepath.Join(at, "id")); err == nil {
				u.Description += " " + string(id)
			}
			out = append(out, u)
		}
	}
	return out, nil
}

// treeSize is what a tree takes on disk, and when its top changed last.
func treeSize(dir string) (int64, time.Time) {
	var size int64
	var changed time.Time
	filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // another id's directory
		}
		info, err := e.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			size += st.Blocks * 512
		}
		if info.ModTime().After(changed) {
			changed = info.ModTime()
		}
		return nil
	})
	return size, changed
}

// recordUsages shows the cache's records in two lines: those that lead to something an image needs, and the others.
func (d *disk) recordUsages(list []usage) []usage {
	needed := map[string]bool{}
	for _, u := range list {
		if u.InUse {
			needed[u.ID] = true
		}
	}
	kept := usage{ID: "records/needed", Type: kindRecord, Description: "cache records of images", InUse: true}
	free := usage{ID: "records/unneeded", Type: kindRecord, Description: "cache records of steps no image needs", Reclaimable: true}
	for _, r := range d.records {
		u := &free
		if slices.ContainsFunc(digests.FindAllString(string(r.Output), -1), func(s string) bool { return needed[s] }) {
			u = &kept
		}
		u.keys = append(u.keys, r.Key)
		u.Size += recordSize(d.dir, r.Key)
		if r.Made.After(u.LastUsed) {
			u.LastUsed = r.Made
		}
	}
	return slices.DeleteFunc([]usage{kept, free}, func(u usage) bool { return len(u.keys) == 0 })
}

// recordSize is the size of a record's file (cache/keys/ab/<key>).
func recordSize(dir string, k cache.Key) int64 {
	if len(k) < 2 {
		return 0
	}
	info, err := os.Stat(filepath.Join(dir, "cache", "keys", string(k[:2]), string(k)))
	if err != nil {
		return 0
	}
	return info.Size()
}

// usageFilters are the filters of `du` and `prune`.
var usageFilters = []string{"id", "parent", "description", "type", "inuse", "mutable", "immutable", "shared", "private", "until"}

// selects reports whether the filters want a record. Nothing is shared between users of one state but by name.
func selects(f filters, u usage, now time.Time) (bool, error) {
	for _, limit := range f["until"] {
		t, err := olderThan(limit, now)
		if err != nil {
			return false, err
		}
		if u.LastUsed.After(t) {
			return false, nil
		}
	}
	return f.part("id", u.ID) && f.part("parent", u.Parent) && f.part("description", u.Description) &&
		f.part("type", u.Type) && f.flag("inuse", u.InUse) && f.flag("mutable", u.Mutable) &&
		f.flag("immutable", !u.Mutable) && f.flag("shared", false) && f.flag("private", true), nil
}

// olderThan reads a duration ("24h", "7d") or a time.
func olderThan(s string, now time.Time) (time.Time, error) {
	if days, ok := strings.CutSuffix(s, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil {
			return now.AddDate(0, 0, -n), nil
		}
	}
	if d, err := time.ParseDuration(s); err == nil {
		return now.Add(-d), nil
	}
	for _, form := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02"} {
		if t, err := time.ParseInLocation(form, s, time.Local); err == nil {
			return t, nil
		}
	}
	if n, err := strconv.ParseInt(s, 10, 64); err == nil {
		return time.Unix(n, 0), nil
	}
	return time.Time{}, usagef("until=%s: neither a duration nor a time", s)
}

// DuCmd is `img du`.
type DuCmd struct {
	Filter  []string `short:"f" sep:"none" placeholder:"NAME=VALUE" help:"Filter by id, parent, description, type, inuse, mutable, immutable, until."`
	Format  string   `placeholder:"FORMAT" help:"table (default), json or a Go template."`
	NoTrunc bool     `help:"Do not shorten ids and descriptions."`
	Verbose bool     `help:"One block per record, as with -d."`
}

// Run shows what the state directory holds.
func (c *DuCmd) Run(ctx context.Context, g *Globals) error {
	f, err := parseFilters(c.Filter, usageFilters...)
	if err != nil {
		return err
	}
	d, err := openDisk(ctx, g)
	if err != nil {
		return err
	}
	all, err := d.usages()
	if err != nil {
		return err
	}
	var list []usage
	for _, u := range all {
		ok, err := selects(f, u, time.Now())
		if err != nil {
			return err
		}
		if ok {
			list = append(list, u)
		}
	}
	if err := printUsages(g, list, c.Format, c.NoTrunc, c.Verbose || g.Debug); err != nil {
		return err
	}
	if len(c.Filter) > 0 || c.Format != "" && c.Format != "table" {
		return nil
	}
	reclaimable, total := sum(list)
	fmt.Fprintf(g.stdout, "Reclaimable:\t%s\nTotal:\t\t%s\n", humanSize(reclaimable), humanSize(total))
	return nil
}

func sum(list []usage) (reclaimable, total int64) {
	for _, u := range list {
		total += u.Size
		if u.Reclaimable {
			reclaimable += u.Size
		}
	}
	return reclaimable, total
}

func printUsages(g *Globals, list []usage, format string, whole, blocks bool) error {
	if blocks && format == "" {
		for _, u := range list {
			printBlock(g, u)
		}
		return nil
	}
	t := table{Columns: []string{"ID", "RECLAIMABLE", "SIZE", "DESCRIPTION"}}
	for _, u := range list {
		id := u.ID
		if u.Mutable {
			id += "*"
		}
		t.add(u, id, strconv.FormatBool(u.Reclaimable), humanSize(u.Size), shorten(u.Description, 50, whole))
	}
	return t.print(g.stdout, format)
}

// printBlock is the original's long form.
func printBlock(g *Globals, u usage) {
	line := func(name, value string) { fmt.Fprintf(g.stdout, "%-14s%s\n", name+":", cellText(value)) }
	line("ID", u.ID)
	if u.Parent != "" {
		line("Parent", u.Parent)
	}
	line("Type", u.Type)
	line("Mutable", strconv.FormatBool(u.Mutable))
	line("Reclaimable", strconv.FormatBool(u.Reclaimable))
	line("Size", humanSize(u.Size))
	line("Description", u.Description)
	if u.LastUsed.Unix() > 0 {
		line("Last used", ago(u.LastUsed, time.Now()))
	}
	fmt.Fprintln(g.stdout)
}

// PruneCmd is `img prune`.
type PruneCmd struct {
	All         bool     `short:"a" help:"Also the unpacked files of named images; they are unpacked again when needed."`
	Filter      []string `sep:"none" placeholder:"NAME=VALUE" help:"As for du; until=24h keeps what was used later."`
	KeepStorage string   `placeholder:"BYTES" help:"Stop when the state directory is this small (512MB, 10GB)."`
	Force       bool     `short:"f" help:"Accepted for scripts; prune never asks."`
	NoTrunc     bool     `help:"Do not shorten descriptions."`
}

// Run removes what `img du` calls reclaimable. Builds hold it off, and it holds off builds.
func (c *PruneCmd) Run(ctx context.Context, g *Globals) error {
	f, err := parseFilters(c.Filter, usageFilters...)
	if err != nil {
		return err
	}
	keep, err := parseBytes(c.KeepStorage)
	if err != nil {
		return usagef("--keep-storage %s: %w", c.KeepStorage, err)
	}
	dir, err := g.stateDir()
	if err != nil {
		return err
	}
	unlock, err := lockState(ctx, dir, true, func() { notef(g.stderr, "waiting for running builds to end") })
	if err != nil {
		return err
	}
	defer unlock()
	d, err := openDisk(ctx, g)
	if err != nil {
		return err
	}
	if c.All {
		d.keptSnaps = map[snapshot.Name]string{}
	}
	all, err := d.usages()
	if err != nil {
		return err
	}
	list, err := choose(all, f, keep, time.Now())
	if err != nil {
		return err
	}
	if err := d.remove(ctx, g, list); err != nil {
		return fmt.Errorf("prune: %w", err)
	}
	if err := printUsages(g, list, "", c.NoTrunc, g.Debug); err != nil {
		return err
	}
	_, freed := sum(list)
	_, total := sum(all)
	fmt.Fprintf(g.stdout, "Reclaimed:\t%s\nTotal:\t\t%s\n", humanSize(freed), humanSize(total-freed))
	return nil
}

// choose picks what goes: reclaimable, wanted by the filters, least recently used first until no more than keep bytes
// are left. A snapshot stays while one that is built upon it stays.
func choose(all []usage, f filters, keep int64, now time.Time) ([]usage, error) {
	_, left := sum(all)
	sorted := slices.Clone(all)
	slices.SortStableFunc(sorted, func(a, b usage) int { return a.LastUsed.Compare(b.LastUsed) })
	// Snapshots of other mappings have the same names as ours, and nothing of ours is built upon them.
	ours := slices.DeleteFunc(sorted, func(u usage) bool { return u.foreign })
	chosen := map[string]bool{}
	for _, u := range ours {
		ok, err := selects(f, u, now)
		if err != nil {
			return nil, err
		}
		if ok && u.Reclaimable && left > keep {
			chosen[u.ID] = true
			left -= u.Size
		}
	}
	spareParents(ours, chosen)
	return childrenFirst(slices.DeleteFunc(ours, func(u usage) bool { return !chosen[u.ID] })), nil
}

// spareParents takes back the choice of snapshots that others which stay are built upon.
func spareParents(all []usage, chosen map[string]bool) {
	parent := map[string]string{}
	for _, u := range all {
		if u.Type == kindSnapshot {
			parent[u.ID] = u.Parent
		}
	}
	for id := range parent {
		if chosen[id] {
			continue
		}
		for p := parent[id]; p != "" && chosen[p]; p = parent[p] {
			delete(chosen, p)
		}
	}
}

// childrenFirst orders snapshots so that none goes before what is built upon it: by depth, deepest first.
func childrenFirst(list []usage) []usage {
	parent := map[string]string{}
	for _, u := range list {
		parent[u.ID] = u.Parent
	}
	depth := func(u usage) int {
		n := 0
		for p, ok := u.Parent, true; ok && p != "" && n <= len(list); n++ {
			p, ok = parent[p]
		}
		return n
	}
	slices.SortStableFunc(list, func(a, b usage) int { return cmp.Compare(depth(b), depth(a)) })
	return list
}

// remove deletes the chosen: records before what they name, manifests before nothing in particular (nothing reachable
// is chosen), files of other ids by an insider.
func (d *disk) remove(ctx context.Context, g *Globals, list []usage) error {
	var inside []string
	for _, u := range list {
		for _, k := range u.keys {
			if err := d.keys.Remove(k); err != nil {
				return err
			}
		}
		if u.Type == kindSnapshot || u.Type == kindMount || u.unfinished() {
			inside = append(inside, u.ID)
		}
	}
	if err := removeInside(ctx, g, inside); err != nil {
		return err
	}
	for _, u := range list {
		if err := d.removeOurs(u); err != nil {
			return err
		}
	}
	return nil
}

// removeOurs deletes what belongs to the caller.
func (d *disk) removeOurs(u usage) error {
	if name, ok := strings.CutPrefix(u.ID, fetchDir+"/"); ok {
		return fetch.Remove(filepath.Join(d.dir, fetchDir), name)
	}
	switch u.Type {
	case kindBlob:
		h, err := v1.NewHash(u.ID)
		if err != nil {
			return err
		}
		return d.blobs.Delete(h)
	case kindContext, kindLeftover:
		if u.unfinished() {
			return nil // gone with what was removed inside
		}
		return os.RemoveAll(filepath.Join(d.dir, u.ID))
	}
	return nil
}

// removeInside has an insider remove names, if there are any.
func removeInside(ctx context.Context, g *Globals, names []string) error {
	if len(names) == 0 {
		return nil
	}
	in, err := openInsider(ctx, g)
	if err != nil {
		return err
	}
	defer in.Close()
	return in.removeInside(ctx, names)
}

// unfinished says that u is below snapshot/, but no snapshot.
func (u usage) unfinished() bool {
	return u.Type == kindLeftover && strings.HasPrefix(u.ID, "snapshot/")
}

// parseBytes reads "512MB", "10GiB", "1g" or plain bytes; all units are powers of 1024 as Docker has them for storage.
func parseBytes(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	number := strings.TrimRight(strings.ToLower(s), "bi")
	shift := 0
	if i := strings.IndexAny(number, "kmgtp"); i >= 0 && i == len(number)-1 {
		shift = 10 * (strings.IndexByte("kmgtp", number[i]) + 1)
		number = number[:i]
	}
	n, err := strconv.ParseFloat(number, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("not a number of bytes")
	}
	return int64(n * float64(int64(1)<<shift)), nil
}
