package layer

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"img/snapshot"
)

// Settle completes what Apply noted, given the settled file system below (nil for the first layer):
//
//   - an implicit directory takes the lower directory's attributes. Where the lower layers have a link (lib -> usr/lib),
//     what lies below moves to where the link leads, as if it had been unpacked on top of them;
//   - a hard link into a lower layer becomes a copy of the file with both names;
//   - what an opaque directory hides becomes Removed entries;
//   - whiteouts of what is not there go: overlay would list them.
//
// open reads a file of the lower file system. Settling is deterministic; where moved files meet others, the moved win.
func (a *Applied) Settle(ctx context.Context, dir *os.File, lower Lower, open func(path string) (*os.File, error), o ApplyOptions) error {
	if lower == nil {
		lower = nothing{}
	}
	s := &settler{
		unpacker: newUnpacker(dir, o, nil),
		ctx:      ctx, a: a, lower: lower, openLower: open,
		copies: map[string]string{},
	}
	s.touched = map[string]bool{}
	defer s.close()
	for _, step := range []func() error{s.follow, s.links, s.inherit, s.uncover, s.prune} {
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := step(); err != nil {
			return err
		}
	}
	return s.finishAll(a, s.touched)
}

// A settler changes a by steps. Each either edits entries in place, or loads them into the journal and reduces it again.
type settler struct {
	*unpacker
	ctx       context.Context
	a         *Applied
	lower     Lower
	openLower func(path string) (*os.File, error)
	copies    map[string]string // lower path of a link's target -> its copy in this layer
}

// waiting is where directories wait while what is in them moves. No entry can have such a name.
const waiting = metaPrefix + "moving"

// follow moves what lies below implicit directories that are links in the lower layers. What has moved can lie below
// another one.
func (s *settler) follow() error {
	for range maxLinks {
		ways, err := s.ways()
		if err != nil || len(ways) == 0 {
			return err
		}
		if err := s.moveAll(ways); err != nil {
			return err
		}
	}
	return fmt.Errorf("move what lies below links of lower layers: %w", unix.ELOOP)
}

// A way leads from an implicit directory to where the lower layers' link at its path leads.
type way struct{ from, to string }

// ways are the topmost ones, sorted.
func (s *settler) ways() ([]way, error) {
	var out []way
	for _, p := range s.a.Implicit {
		// A directory that hides what is below it has taken the link's place.
		if len(out) > 0 && below(p, out[len(out)-1].from) || s.hider(p) != "" || has(s.a.Opaque, p) {
			continue
		}
		e, ok, err := s.lower.Lookup(p)
		if err != nil {
			return nil, err
		}
		switch {
		case !ok || e.Type == snapshot.Dir:
		case e.Type == snapshot.Symlink:
			to, err := s.resolve(p)
			if err != nil {
				return nil, fmt.Errorf("directory %.300q is a link in a lower layer: %w", p, err)
			}
			out = append(out, way{p, to})
		default:
			return nil, fmt.Errorf("directory %.300q is a file in a lower layer: %w", p, unix.ENOTDIR)
		}
	}
	return out, nil
}

// hider is the directory above p that hides the lower layers there, or "".
func (s *settler) hider(p string) string {
	for p != "." && len(s.a.Opaque) > 0 {
		if p, _ = split(p); has(s.a.Opaque, p) {
			return p
		}
	}
	return ""
}

// resolve follows all links of a path in the layer on top of the lower layers. Where nothing is, the rest is taken as it
// is written.
func (s *settler) resolve(name string) (string, error) {
	at, links := ".", 0
	for todo := name; todo != ""; {
		var c string
		c, todo, _ = strings.Cut(todo, "/")
		switch c {
		case "", ".":
			continue
		case "..":
			at, _ = split(at)
			continue
		}
		target, err := s.linkAt(join(at, c))
		if err != nil {
			return "", err
		}
		if target == "" {
			at = join(at, c)
		} else if todo = target + "/" + todo; target[0] == '/' {
			at = "."
		}
		if target != "" {
			links++
		}
		if links > maxLinks || len(at) > maxPath {
			return "", fmt.Errorf("resolve %.300q: %w", name, unix.ELOOP)
		}
	}
	return at, nil
}

// linkAt returns the target if there is a link. An implicit directory hides no link: it is there because nothing was known
// of the link.
func (s *settler) linkAt(p string) (string, error) {
	e, ok := s.own(p)
	if !ok || has(s.a.Implicit, p) {
		var err error
		if e, ok, err = s.lower.Lookup(p); err != nil {
			return "", err
		}
	}
	if ok && e.Type == snapshot.Symlink {
		return e.Link, nil
	}
	return "", nil
}

// own finds an entry of the layer.
func (s *settler) own(p string) (snapshot.Entry, bool) {
	if i, ok := find(s.a.Entries, p); ok {
		return s.a.Entries[i], true
	}
	return snapshot.Entry{}, false
}

// moveAll takes the directories out of the layer and puts what was in them back at the new paths.
func (s *settler) moveAll(ways []way) error {
	if err := s.setAside(ways); err != nil {
		return err
	}
	all := load(s.a)
	s.journal = &journal{}
	var moving []int
	for i, n := range all.notes {
		if _, ok := wayOf(ways, all.entries[i].Path); ok {
			moving = append(moving, i)
		} else if err := s.put(all.entries[i], n); err != nil {
			return err
		}
	}
	for _, i := range moving {
		e := all.entries[i]
		w, _ := wayOf(ways, e.Path)
		if err := s.move(e, all.notes[i], ways[w], w); err != nil {
			return fmt.Errorf("move %.300q to %.300q: %w", e.Path, ways[w].to, err)
		}
	}
	s.forget()
	if err := snapshot.RemoveAt(s.root, waiting); err != nil {
		return fmt.Errorf("remove moved directories: %w", err)
	}
	*s.a = *s.reduce()
	return nil
}

// wayOf finds the way that a path goes.
func wayOf(ways []way, p string) (int, bool) {
	i, ok := slices.BinarySearchFunc(ways, p, func(w way, p string) int { return snapshot.Compare(w.from, p) })
	if ok {
		return i, true
	}
	return i - 1, i > 0 && below(p, ways[i-1].from)
}

// setAside renames the directories to waiting/0, waiting/1 and so on.
func (s *settler) setAside(ways []way) error {
	s.forget()
	if err := unix.Mkdirat(s.root, waiting, 0o700); err != nil {
		return fmt.Errorf("move directories: %w", err)
	}
	for i, w := range ways {
		dir, base := split(w.from)
		at, err := s.open(dir)
		if err == nil {
			err = unix.Renameat(at.fd, base, s.root, fmt.Sprintf("%s/%d", waiting, i))
		}
		if err != nil {
			return fmt.Errorf("move directory %.300q: %w", w.from, err)
		}
		s.touch(dir)
	}
	return nil
}

// move puts one entry at its new path, over what is there.
func (s *settler) move(e snapshot.Entry, n note, w way, i int) error {
	old := strings.TrimPrefix(e.Path[len(w.from):], "/")
	if n.implicit || old == "" {
		return nil // made again where something lies below it
	}
	e.Path = path.Join(w.to, old)
	if n.mark {
		at, err := s.open(e.Path)
		if err != nil {
			return err
		}
		return s.hide(at.path)
	}
	dir, base := split(e.Path)
	at, err := s.open(dir)
	if err != nil {
		return err
	}
	e.Path = join(at.path, base)
	switch e.Type {
	case snapshot.Removed:
		return s.whiteout(at, base)
	case snapshot.Dir:
		n.opaque, err = s.mkdir(at, base)
	default:
		from, oldBase := split(fmt.Sprintf("%s/%d/%s", waiting, i, old))
		err = s.rename(from, oldBase, at, base)
	}
	if err != nil {
		return err
	}
	return s.put(e, n)
}

func (s *settler) rename(from, old string, at place, base string) error {
	src, err := openDir(s.root, from, unix.O_PATH)
	if err != nil {
		return err
	}
	defer unix.Close(src)
	return s.place(at, base, func() error { return unix.Renameat(src, old, at.fd, base) })
}

// links gives every hard link into a lower layer its file.
func (s *settler) links() error {
	links := s.a.Links
	if len(links) == 0 {
		return nil
	}
	s.a.Links = nil
	s.journal = load(s.a)
	for _, l := range links {
		if err := s.ctx.Err(); err != nil {
			return context.Cause(s.ctx)
		}
		if err := s.link(l); err != nil {
			return fmt.Errorf("hard link %.300q to %.300q: %w", l.Path, l.Target, err)
		}
	}
	*s.a = *s.reduce()
	return nil
}

func (s *settler) link(l Link) error {
	dir, base := split(l.Target)
	dir, err := s.resolve(dir)
	if err != nil {
		return err
	}
	target := join(dir, base)
	if to, ok := s.copies[target]; ok {
		return s.name(to, l.Path)
	}
	// The target can be here after all: it was unpacked below a lower layer's link.
	e, ok := s.own(target)
	if ok && e.Type != snapshot.Dir && e.Type != snapshot.Removed {
		return s.name(target, l.Path)
	}
	if e, ok, err = s.lower.Lookup(target); err != nil {
		return err
	}
	if !ok {
		return errors.New("the target is neither in the layer, before the link, nor in a lower one")
	}
	if e.Type == snapshot.Dir {
		return errors.New("the target is a directory")
	}
	return s.copyUp(e, target, l.Path)
}

// copyUp copies a lower file into the layer, under its own name too: the two names have to stay one file.
func (s *settler) copyUp(e snapshot.Entry, target, p string) error {
	e.Path, e.HardLink, e.TimeSet = p, "", false
	vacant, err := s.vacant(target)
	if err != nil {
		return err
	}
	if vacant {
		e.Path = target
	}
	dir, base := split(e.Path)
	at, err := s.open(dir)
	if err != nil {
		return err
	}
	if err := s.copy(at, base, &e, target); err != nil {
		return err
	}
	s.copies[target] = e.Path
	if err := s.put(e, note{}); err != nil || e.Path == p {
		return err
	}
	return s.name(e.Path, p)
}

// vacant reports whether the lower file shows through the layer.
func (s *settler) vacant(p string) (bool, error) {
	if s.hider(p) != "" {
		return false, nil
	}
	for up, _ := split(p); up != "."; up, _ = split(up) {
		if e, ok := s.own(up); ok && e.Type != snapshot.Dir {
			return false, nil
		}
	}
	dir, base := split(p)
	at, err := s.lookup(dir, false)
	if errors.Is(err, unix.ENOENT) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	defer unix.Close(at.fd)
	var st unix.Stat_t
	err = unix.Fstatat(at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if err == unix.ENOENT {
		return true, nil
	}
	return false, err
}

// copy makes a lower file in this layer.
func (s *settler) copy(at place, base string, e *snapshot.Entry, lower string) error {
	if e.Type != snapshot.File {
		return s.create(at, base, e, nil)
	}
	f, err := s.openLower(lower)
	if err != nil {
		return fmt.Errorf("open in lower layer: %w", err)
	}
	defer f.Close()
	want := e.Digest
	if err := s.create(at, base, e, &ctxReader{ctx: s.ctx, r: f}); err != nil {
		return err
	}
	if want != "" && e.Digest != want {
		return fmt.Errorf("lower layer: %w: its digest is %s, recorded %s", ErrChanged, e.Digest, want)
	}
	return nil
}

// name gives a file of the layer another name.
func (s *settler) name(file, p string) error {
	fromDir, fromBase := split(file)
	from, err := s.lookup(fromDir, false)
	if err != nil {
		return err
	}
	defer unix.Close(from.fd)
	dir, base := split(p)
	at, err := s.open(dir)
	if err != nil {
		return err
	}
	// What is there is the empty file that held the place.
	if err := unix.Unlinkat(at.fd, base, 0); err != nil {
		return err
	}
	if err := unix.Linkat(from.fd, fromBase, at.fd, base, 0); err != nil {
		return err
	}
	s.touch(at.path)
	return s.put(snapshot.Entry{Path: p, Type: snapshot.File}, note{link: file})
}

// inherit gives implicit directories the lower directories' attributes.
func (s *settler) inherit() error {
	for _, p := range s.a.Implicit {
		if s.hider(p) != "" {
			continue
		}
		low, ok, err := s.lower.Lookup(p)
		if err != nil {
			return err
		}
		if i, there := find(s.a.Entries, p); ok && there && low.Type == snapshot.Dir {
			e := &s.a.Entries[i]
			e.Mode, e.UID, e.GID, e.MTime, e.Xattrs = low.Mode, low.UID, low.GID, low.MTime, low.Xattrs
			s.touch(p)
		}
	}
	return nil
}

// uncover says as Removed entries what opaque directories hide.
func (s *settler) uncover() error {
	if len(s.a.Opaque) == 0 {
		return nil
	}
	s.journal = load(s.a)
	last := ""
	for _, d := range s.a.Opaque {
		if last != "" && below(d, last) {
			continue // done with the one above
		}
		last = d
		if err := s.uncoverDir(d, d == "."); err != nil {
			return fmt.Errorf("opaque directory %.300q: %w", d, err)
		}
	}
	*s.a = *s.reduce()
	return nil
}

// uncoverDir does so for one directory and those below it that both have. Overlay knows no opaque root, so the root's
// whiteouts are made on disk and its directories made opaque.
func (s *settler) uncoverDir(d string, root bool) error {
	if low, ok, err := s.lower.Lookup(d); err != nil || !root && (!ok || low.Type != snapshot.Dir) {
		return err
	}
	children, err := s.lower.ReadDir(d)
	if err != nil {
		return err
	}
	for _, c := range children {
		p := join(d, path.Base(c.Path))
		e, ok := s.own(p)
		switch {
		case !ok && root:
			err = s.whiteout(place{s.root, "."}, p)
		case !ok:
			err = s.put(snapshot.Entry{Path: p, Type: snapshot.Removed}, note{})
		case e.Type == snapshot.Dir && c.Type == snapshot.Dir:
			if root {
				err = s.hide(p)
			}
			if err == nil {
				err = s.uncoverDir(p, false)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// prune drops removals of what is not there, and whiteouts from opaque directories: overlay lists whiteouts where it has
// nothing to merge.
func (s *settler) prune() error {
	kept := s.a.Entries[:0]
	for _, e := range s.a.Entries {
		if e.Type != snapshot.Removed {
			kept = append(kept, e)
			continue
		}
		_, ok, err := s.lower.Lookup(e.Path)
		if err != nil {
			return err
		}
		if h := s.hider(e.Path); !ok || h != "" && h != "." {
			if err := s.unlink(e.Path); err != nil {
				return fmt.Errorf("drop whiteout of %.300q: %w", e.Path, err)
			}
		}
		if ok {
			kept = append(kept, e)
		}
	}
	clear(s.a.Entries[len(kept):])
	s.a.Entries = kept
	return nil
}

// unlink drops a whiteout from disk, if it is there.
func (s *settler) unlink(p string) error {
	dir, base := split(p)
	at, err := s.lookup(dir, false)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(at.fd)
	if err := unix.Unlinkat(at.fd, base, 0); err != nil && err != unix.ENOENT {
		return err
	}
	s.touch(at.path)
	return nil
}
