package dockerfile

import (
	"errors"
	"fmt"
	"net/url"
	"path"
	"strconv"
	"strings"
	"unicode"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"

	"img/dag"
)

// mainContext is the build context as a source.
var mainContext = dag.Source{Context: dag.MainContext, Input: dag.Scratch}

func (l *lowering) copy(s *stage, c command, i *instructions.CopyCommand) error {
	v := &dag.Vertex{}
	in := inputs{v}
	op := &dag.Copy{Base: in.ref(copyBase(s, i.Link, i.Chmod)), Chown: i.Chown, Chmod: i.Chmod, Exclude: i.ExcludePatterns, Parents: i.Parents}
	v.Op = op
	local := mainContext
	if len(c.from) > 0 {
		from := c.from[0]
		if from.stage != nil && !from.stage.lowered {
			return &Error{Pos: l.f.word(l.f.at(c.Location()), i.From),
				Err: fmt.Errorf("cannot copy from stage %q, it needs to be defined before current stage %q", i.From, s.label())}
		}
		var err error
		if local, err = l.source(s, from, &c, in); err != nil {
			return err
		}
	}
	for _, src := range i.SourcePaths {
		g, err := parseGit(src, false)
		switch {
		case err != nil:
			return err
		case g != nil:
			return errors.New("source can't be a git ref for COPY")
		case isURL(src):
			return errors.New("source can't be a URL for COPY")
		}
	}
	if len(i.SourcePaths) > 0 {
		op.Sources = []dag.CopySource{{From: local, Paths: i.SourcePaths}}
	}
	if len(c.from) == 0 {
		l.excluded(s, c, i.SourcePaths, "Copy")
	}
	return l.files(s, c, v, op, i.SourcesAndDest, copyWords{"COPY", i.String(), i.Link})
}

// copyBase is what a copy is made onto: with --link nothing. --chmod turns --link off, as BuildKit does.
func copyBase(s *stage, link bool, chmod string) dag.ID {
	if link && chmod == "" {
		return dag.Empty
	}
	return s.files
}

func (l *lowering) add(s *stage, c command, i *instructions.AddCommand) error {
	v := &dag.Vertex{}
	in := inputs{v}
	op := &dag.Copy{Base: in.ref(copyBase(s, i.Link, i.Chmod)), Chown: i.Chown, Chmod: i.Chmod, Exclude: i.ExcludePatterns}
	v.Op = op
	for _, src := range i.SourcePaths {
		from, err := l.addSource(s, c, i, in, src)
		if err != nil {
			return &Error{Pos: l.f.word(l.f.at(c.Location()), src), Err: err}
		}
		last := len(op.Sources) - 1
		if last >= 0 && from.From == mainContext && op.Sources[last].From == mainContext {
			op.Sources[last].Paths = append(op.Sources[last].Paths, from.Paths...)
			continue
		}
		op.Sources = append(op.Sources, from)
	}
	for _, from := range op.Sources {
		if from.From == mainContext {
			l.excluded(s, c, from.Paths, "Add")
		}
	}
	if err := checkChecksum(i); err != nil {
		return err
	}
	return l.files(s, c, v, op, i.SourcesAndDest, copyWords{"ADD", i.String(), i.Link})
}

// addSource is one source of an ADD: files of the context, a URL or a repository.
func (l *lowering) addSource(s *stage, c command, i *instructions.AddCommand, in inputs, src string) (dag.CopySource, error) {
	g, err := parseGit(src, false)
	switch {
	case err != nil:
		return dag.CopySource{}, err
	case g != nil:
		return l.addGit(s, c, i, in, g)
	case isURL(src):
		return l.addURL(s, c, i, in, src)
	}
	return dag.CopySource{From: mainContext, Paths: []string{src}, Unpack: i.Unpack == nil || *i.Unpack}, nil
}

// addURL adds the vertex of a URL. What comes from the web is not unpacked, unless that is asked for.
func (l *lowering) addURL(s *stage, c command, i *instructions.AddCommand, in inputs, src string) (dag.CopySource, error) {
	op, err := urlOp(i, src)
	if err != nil {
		return dag.CopySource{}, err
	}
	id := l.fetch(s, c, op, *op, src)
	return dag.CopySource{From: dag.Source{Input: in.ref(id)}, Paths: []string{op.Name}, Literal: true, Unpack: i.Unpack != nil && *i.Unpack}, nil
}

func urlOp(i *instructions.AddCommand, src string) (*dag.HTTP, error) {
	return &dag.HTTP{URL: src, Name: urlName(src), Checksum: i.Checksum}, dag.CheckDigest(i.Checksum)
}

// addGit adds the vertex of a repository.
func (l *lowering) addGit(s *stage, c command, i *instructions.AddCommand, in inputs, g *gitSource) (dag.CopySource, error) {
	op, err := gitOp(i, g)
	if err != nil {
		return dag.CopySource{}, err
	}
	id := l.fetch(s, c, op, *op, op.Remote)
	return dag.CopySource{From: dag.Source{Input: in.ref(id)}, Paths: []string{dag.GitTree}, Literal: true, Times: op.MTime != ""}, nil
}

// gitOp is a repository with the options of an ADD. These and the address's must agree.
func gitOp(i *instructions.AddCommand, g *gitSource) (*dag.Git, error) {
	switch {
	case i.KeepGitDir != nil && g.keep != nil && *i.KeepGitDir != *g.keep:
		return nil, errors.New("inconsistent keep-git-dir configuration")
	case i.KeepGitDir != nil:
		g.KeepGitDir = *i.KeepGitDir
	}
	switch {
	case i.Checksum != "" && g.Checksum != "" && i.Checksum != g.Checksum:
		return nil, fmt.Errorf("checksum mismatch %q != %q", i.Checksum, g.Checksum)
	case i.Checksum != "":
		g.Checksum = i.Checksum
	}
	_, err := g.Check()
	return &g.Git, err
}

// fetch returns the vertex of something from the web, the same for all who name it alike. It is no step of a stage, nor for a platform.
func (l *lowering) fetch(s *stage, c command, op dag.Op, same any, src string) dag.ID {
	if id, ok := l.fetched[same]; ok {
		return id
	}
	id := l.graph.Add(&dag.Vertex{Op: op, Pos: l.f.at(c.Location()), Name: "fetch " + redact(src), Stage: s.label()})
	l.fetched[same] = id
	return id
}

// urlName is what a file from the web is called: the last part of the URL's path.
func urlName(src string) string {
	const unnamed = "__unnamed__"
	u, err := url.Parse(src)
	if err != nil {
		return unnamed
	}
	name := path.Base(strings.TrimSpace(path.Base(u.Path)))
	switch {
	case name == "." || name == "/":
		return unnamed
	case name == ".." || strings.ContainsFunc(name, unicode.IsControl):
		return "download"
	}
	return name
}

// redact is an address without what only its owner should see: user, password, query.
func redact(src string) string {
	u, err := url.Parse(src)
	if err != nil || u.Host == "" {
		src, _, _ = strings.Cut(src, "?")
		return src
	}
	u.User, u.RawQuery, u.Fragment, u.RawFragment = nil, "", "", ""
	return u.String()
}

// checkChecksum refuses --checksum where it could not say whose sum it is.
func checkChecksum(i *instructions.AddCommand) error {
	if i.Checksum == "" {
		return nil
	}
	if len(i.SourcePaths) != 1 {
		return errors.New("checksum can't be specified for multiple sources")
	}
	if g, err := parseGit(i.SourcePaths[0], false); err == nil && g == nil && !isURL(i.SourcePaths[0]) {
		return errors.New("checksum requires HTTP(S) or Git sources")
	}
	return nil
}

// copyWords are an instruction's keyword and text, and whether it has --link.
type copyWords struct {
	keyword, text string
	link          bool
}

// files lowers what COPY and ADD have in common.
func (l *lowering) files(s *stage, c command, v *dag.Vertex, op *dag.Copy, paths instructions.SourcesAndDest, w copyWords) error {
	if err := dag.CheckMode(op.Chmod); err != nil {
		return err
	}
	op.Dest = joinDest(s.config.WorkingDir, paths.DestPath)
	for _, h := range paths.SourceContents {
		if err := dag.CheckFileName(h.Path); err != nil {
			return err
		}
		op.Files = append(op.Files, dag.InlineFile{Name: h.Path, Data: []byte(h.Data)})
	}
	if len(op.Sources) == 0 { // heredocs alone: nothing is read
		v.Inputs = v.Inputs[:min(len(v.Inputs), int(op.Base)+1)]
	}
	l.copyTraps(s, c, op, paths.SourcePaths, w)
	if err := l.ownerNames(c, op); err != nil {
		return err
	}
	base := s.files
	l.step(s, c, v, l.expandName(l.lex, w.text, s.env))
	if op.Base == dag.Scratch && base != dag.Empty {
		l.merge(s, v, base)
	}
	s.remember(copyText(w.keyword, op, paths), true)
	return nil
}

// merge lays a step that was made onto nothing over the base. The step itself is the layer.
func (l *lowering) merge(s *stage, step *dag.Vertex, base dag.ID) {
	v := &dag.Vertex{Name: "LINK " + step.Name, Pos: step.Pos, Stage: step.Stage, Platform: step.Platform, Skip: step.Skip}
	in := inputs{v}
	v.Op = &dag.Merge{Base: in.ref(base), Changes: in.ref(step.ID)}
	s.files = l.graph.Add(v)
	s.layers.state = s.files
}

// ownerNames refuses names in --chown where there is no root to look them up in: BuildKit fails then, too, by "invalid user index: -1".
func (l *lowering) ownerNames(c command, op *dag.Copy) error {
	if op.Base != dag.Scratch {
		return nil
	}
	for part := range strings.SplitSeq(op.Chown, ":") {
		if _, err := strconv.ParseUint(part, 10, 32); part == "" || part == "root" || err == nil {
			continue
		}
		return &Error{Pos: l.f.word(l.f.at(c.Location()), "--chown"),
			Err:  fmt.Errorf("invalid user index: there is no /etc/passwd to find %q in: scratch, and --link, copy onto an empty root (--chown=%s)", part, op.Chown),
			Hint: "give the ids as numbers: --chown=UID:GID"}
	}
	return nil
}

// copyText is the history's form: "COPY [--parents] [--chown=] [--chmod=] src... [<<word] dest # buildkit".
func copyText(keyword string, op *dag.Copy, paths instructions.SourcesAndDest) string {
	words := []string{keyword}
	if op.Parents {
		words = append(words, "--parents")
	}
	if op.Chown != "" {
		words = append(words, "--chown="+op.Chown)
	}
	if op.Chmod != "" {
		words = append(words, "--chmod="+op.Chmod)
	}
	words = append(words, paths.SourcePaths...)
	for _, h := range paths.SourceContents {
		words = append(words, "<<"+h.Path)
	}
	return strings.Join(append(words, paths.DestPath), " ") + built
}

// joinDest makes a destination absolute. One that ends in "/" or "/." , and "." itself, is a directory and ends in a slash.
func joinDest(dir, dest string) string {
	isDir := dest == "" || dest == "." || strings.HasSuffix(dest, "/") || strings.HasSuffix(dest, "/.")
	if !path.IsAbs(dest) {
		dest = path.Join("/", dir, dest)
	}
	dest = path.Clean(dest)
	if isDir && dest != "/" {
		dest += "/"
	}
	return dest
}

func isURL(src string) bool {
	return strings.HasPrefix(src, "http://") || strings.HasPrefix(src, "https://")
}
