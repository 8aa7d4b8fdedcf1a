package dockerfile

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/shell"

	"img/dag"
)

// mainContext is the build context as a source.
var mainContext = dag.Source{Context: dag.MainContext, Input: dag.Scratch}

func (l *lowering) copy(s *stage, c command, i *instructions.CopyCommand) error {
	v := &dag.Vertex{}
	in := inputs{v}
	op := &dag.Copy{Base: in.ref(s.files), Chown: i.Chown, Chmod: i.Chmod, Exclude: i.ExcludePatterns, Parents: i.Parents, Link: i.Link}
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
		switch {
		case isGit(src):
			return errors.New("source can't be a git ref for COPY")
		case isURL(src):
			return errors.New("source can't be a URL for COPY")
		}
	}
	if len(i.SourcePaths) > 0 {
		op.Sources = []dag.CopySource{{From: local, Paths: i.SourcePaths}}
	}
	return l.files(s, c, v, op, i.SourcesAndDest, "COPY", i.String())
}

func (l *lowering) add(s *stage, c command, i *instructions.AddCommand) error {
	v := &dag.Vertex{}
	in := inputs{v}
	op := &dag.Copy{Base: in.ref(s.files), Chown: i.Chown, Chmod: i.Chmod, Exclude: i.ExcludePatterns, Link: i.Link}
	v.Op = op
	if err := l.remote(c, i); err != nil {
		return err
	}
	if len(i.SourcePaths) > 0 {
		op.Sources = []dag.CopySource{{From: mainContext, Paths: i.SourcePaths, Unpack: i.Unpack == nil || *i.Unpack}}
	}
	return l.files(s, c, v, op, i.SourcesAndDest, "ADD", i.String())
}

// remote refuses what ADD does not fetch yet, and options that are for such sources alone.
func (l *lowering) remote(c command, i *instructions.AddCommand) error {
	for _, src := range i.SourcePaths {
		kind := "a URL"
		switch {
		case isGit(src):
			kind = "a git repository"
		case !isURL(src):
			continue
		}
		return &Error{Pos: l.f.word(l.f.at(c.Location()), src), Err: fmt.Errorf("ADD of %s is not there yet: %s", kind, src),
			Hint: "download it in a RUN step"}
	}
	switch {
	case i.Checksum == "":
		return nil
	case len(i.SourcePaths) != 1:
		return errors.New("checksum can't be specified for multiple sources")
	}
	return errors.New("checksum requires HTTP(S) or Git sources")
}

// files lowers what COPY and ADD have in common.
func (l *lowering) files(s *stage, c command, v *dag.Vertex, op *dag.Copy, paths instructions.SourcesAndDest, keyword, text string) error {
	if err := checkMode(op.Chmod); err != nil {
		return err
	}
	op.Dest = joinDest(s.config.WorkingDir, paths.DestPath)
	for _, h := range paths.SourceContents {
		if err := fileName(h.Path); err != nil {
			return err
		}
		op.Files = append(op.Files, dag.InlineFile{Name: h.Path, Data: []byte(h.Data)})
	}
	if len(op.Sources) == 0 { // heredocs alone: nothing is read
		v.Inputs = v.Inputs[:min(len(v.Inputs), int(op.Base)+1)]
	}
	l.copyTraps(s, c, op, paths.SourcePaths, keyword)
	if op.Chmod != "" {
		op.Link = false // as BuildKit does
	}
	l.step(s, c, v, expandName(l.lex, text, s.env))
	s.remember(copyText(keyword, op, paths), true)
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

// copyTraps warns of what BuildKit does without a word.
func (l *lowering) copyTraps(s *stage, c command, op *dag.Copy, paths []string, keyword string) {
	pos := l.f.at(c.Location())
	if op.Link && op.Chmod != "" {
		l.warn(s.lint, ruleLinkIgnored, pos, keyword+" --link has no effect together with --chmod")
	}
	for _, src := range paths {
		if name := lookAlike(src); name != "" {
			l.warn(s.lint, ruleLookAlikeDash, pos, fmt.Sprintf("The source %q begins with an %s, not with the -- of an option", src, name))
		}
	}
	pattern := len(paths) == 1 && strings.ContainsAny(paths[0], "*?[")
	if several := len(paths)+len(op.Files) > 1; (several || pattern) && !strings.HasSuffix(op.Dest, "/") && !op.Parents {
		l.warn(s.lint, ruleDestinationNoSlash, pos, fmt.Sprintf(
			"Several files may be copied to %q, which does not end in a slash: if it is no directory yet, they overwrite each other", op.Dest))
	}
}

// expandHeredoc expands the body of a heredoc, in which quotes mean nothing.
func (l *lowering) expandHeredoc(s *stage, c instructions.Command, body string) (string, error) {
	lex := shell.NewLex('\\')
	lex.SkipProcessQuotes = true
	out, unmatched, err := lex.ProcessWord(body, s.env)
	l.undefined(s, c, unmatched)
	return out, err
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

var symbolicMode = regexp.MustCompile(`^[ugoa]*([-+=]([rwxXst]*|[ugo]))+(,[ugoa]*([-+=]([rwxXst]*|[ugo]))+)*$`)

func checkMode(mode string) error {
	if mode == "" {
		return nil
	}
	n, err := strconv.ParseUint(mode, 8, 32)
	if err == nil && n <= 0o7777 || err != nil && symbolicMode.MatchString(mode) {
		return nil
	}
	return fmt.Errorf("invalid chmod parameter: '%v'. it should be octal string and between 0 and 07777", mode)
}

func isURL(src string) bool {
	return strings.HasPrefix(src, "http://") || strings.HasPrefix(src, "https://")
}

// scpForm is git's "user@host:path".
var scpForm = regexp.MustCompile(`^[a-zA-Z0-9_.-]+@[a-zA-Z0-9.-]+:`)

func isGit(src string) bool {
	if isURL(src) {
		repo, _, _ := strings.Cut(src, "#")
		repo, _, _ = strings.Cut(repo, "?")
		return strings.HasSuffix(repo, ".git")
	}
	return strings.HasPrefix(src, "git://") || strings.HasPrefix(src, "ssh://") || scpForm.MatchString(src)
}
