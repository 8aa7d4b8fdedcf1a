package dockerfile

// Characters that look like others, and files that are no text.

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"img/dag"
)

// file explains an error of the file as a whole.
func (c *complaint) file() {
	if strings.HasPrefix(c.said, "target stage ") && c.e.Hint == "" && c.b != nil {
		var names []string
		for _, name := range c.b.stageNames {
			if name != "" && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		switch {
		case len(names) == 0:
			c.hint("no stage has a name: FROM image AS name gives one")
		case len(names) == 1:
			c.hint("the only named stage is %s", names[0])
		case len(names) <= 8:
			c.hint("the stages are %s", strings.Join(names, ", "))
		}
	}
}

// strange are characters that look like others, and what they are taken for.
var strange = map[rune][2]string{
	'\u00a0': {"no-break space", "a blank"}, '\u2007': {"figure space", "a blank"}, '\u202f': {"narrow no-break space", "a blank"},
	'\u3000': {"full-width space", "a blank"}, '\u2002': {"en space", "a blank"}, '\u2003': {"em space", "a blank"}, '\u2009': {"thin space", "a blank"},
	'\u200b': {"zero-width space", "nothing"}, '\u200c': {"zero-width non-joiner", "nothing"}, '\u200d': {"zero-width joiner", "nothing"},
	'\u2060': {"word joiner", "nothing"}, '\ufeff': {"byte-order mark", "nothing"}, '\u00ad': {"soft hyphen", "nothing"},
	'\u201c': {"left double quotation mark", `"`}, '\u201d': {"right double quotation mark", `"`}, '\u201e': {"low double quotation mark", `"`},
	'\u2018': {"left single quotation mark", "'"}, '\u2019': {"right single quotation mark", "'"}, '\u00b4': {"acute accent", "'"},
	'\u2028': {"line separator", "a new line"}, '\u2029': {"paragraph separator", "a new line"}, '\u0085': {"next line", "a new line"},
}

// lookAlike tells of a character in the guilty word, or the whole instruction, that looks like another.
func (c *complaint) lookAlike() string {
	in := c.word
	if in == (span{}) {
		in = span{0, len(c.t.joined)}
	}
	return lookAlikeIn(c.t, in)
}

func lookAlikeIn(t *text, in span) string {
	if hint := dashHint(t.of(in)); hint != "" {
		return hint
	}
	at, what := strangeIn(t.of(in))
	if what == "" {
		return ""
	}
	return t.pos(in.from+at).String() + " has " + what
}

// LookAlikeHint tells of a character in a text that looks like one with a meaning, "" if there is none.
func LookAlikeHint(s string) string {
	if hint := dashHint(s); hint != "" {
		return hint
	}
	if _, what := strangeIn(s); what != "" {
		return "there is " + what
	}
	return ""
}

// strangeIn finds a character that looks like another: where it is, and what to say about it.
func strangeIn(s string) (at int, what string) {
	for i, r := range s {
		if r < utf8.RuneSelf {
			continue
		}
		is, ok := strange[r]
		if !ok && r >= '\uff01' && r <= '\uff5e' {
			is, ok = [2]string{"full-width " + string(r-'\uff01'+'!'), string(r - '\uff01' + '!')}, true
		}
		if name := dashes[r]; name != "" && i > 0 && s[i-1] == ' ' {
			is, ok = [2]string{name, "-"}, true
		}
		if ok {
			return i, fmt.Sprintf("%s %s (U+%04X), where %s belongs", article(is[0]), is[0], r, is[1])
		}
	}
	return 0, ""
}

// notText explains a file that can be no Dockerfile, "" if it can. Only a file that is wrong anyway is asked: BuildKit reads NULs in
// comments, say.
func (f *File) notText(src []byte) error {
	e := &Error{Pos: dag.Pos{File: f.name}, explained: true}
	switch head := string(src[:min(len(src), 4)]); {
	case strings.HasPrefix(head, "\xff\xfe"), strings.HasPrefix(head, "\xfe\xff"), wide(src):
		e.Err, e.Hint = errors.New("the file is UTF-16; a Dockerfile is UTF-8"), "iconv -f UTF-16 -t UTF-8 converts it"
		return e
	case strings.HasPrefix(head, "\x7fELF"), strings.HasPrefix(head, "\x1f\x8b"), strings.HasPrefix(head, "PK\x03\x04"):
		e.Err, e.Hint = errors.New("the file is a program or an archive, not a Dockerfile"), "-f names the Dockerfile, the last argument the directory of the build context"
		return e
	}
	for n, line := range f.lines {
		if i := strings.IndexByte(line, 0); i >= 0 {
			e.Pos, e.Err = f.place(n+1, i), errors.New("the file is not text: it has a NUL byte here")
			return e
		}
		if len(line) >= maxPhysical {
			e.Pos = dag.Pos{File: f.name, Line: n + 1, End: n + 1, Col: 1}
			e.Err = fmt.Errorf("dockerfile line greater than max allowed size of %d", maxPhysical-1)
			e.Hint = fmt.Sprintf("it has %d bytes; a line that ends in %c is continued by the next", len(line), f.escape)
			return e
		}
	}
	return nil
}

// maxPhysical is where BuildKit's parser stops reading a line, in bytes.
const maxPhysical = 64 << 10

// wide reports whether a file looks like UTF-16 without a mark: every other byte of its beginning is NUL.
func wide(src []byte) bool {
	n := min(len(src), 16) &^ 1
	even, odd := 0, 0
	for i := 0; i < n; i += 2 {
		if src[i] == 0 {
			even++
		}
		if src[i+1] == 0 {
			odd++
		}
	}
	return n > 0 && (even == n/2 || odd == n/2)
}
