package exec

import (
	"fmt"
	"strconv"
	"strings"
)

// A modeChange is --chmod: nothing, octal digits, or symbolic clauses as chmod(1) has them ("u+x,go=r").
type modeChange struct {
	octal   bool
	mode    uint32
	clauses []modeClause
}

type modeClause struct {
	who  uint32 // bits of the classes meant: 0o700, 0o070, 0o007 with their set-id and sticky bits
	op   byte
	perm string
}

// parseMode reads --chmod's value.
func parseMode(s string) (modeChange, error) {
	if s == "" {
		return modeChange{}, nil
	}
	if n, err := strconv.ParseUint(s, 8, 32); err == nil {
		if n > 0o7777 {
			return modeChange{}, fmt.Errorf("--chmod=%s: the highest mode is 7777", s)
		}
		return modeChange{octal: true, mode: uint32(n)}, nil
	}
	var m modeChange
	for text := range strings.SplitSeq(s, ",") {
		c, err := parseClauses(text)
		if err != nil {
			return m, fmt.Errorf("--chmod=%s: %w", s, err)
		}
		m.clauses = append(m.clauses, c...)
	}
	return m, nil
}

func parseClauses(text string) ([]modeClause, error) {
	i := strings.IndexAny(text, "+-=")
	if i < 0 {
		return nil, fmt.Errorf("%q is neither octal nor symbolic", text)
	}
	var who uint32
	for _, c := range text[:i] {
		switch c {
		case 'u':
			who |= 0o4700
		case 'g':
			who |= 0o2070
		case 'o':
			who |= 0o1007
		case 'a':
			who |= 0o7777
		default:
			return nil, fmt.Errorf("unknown class %q", c)
		}
	}
	if i == 0 {
		who = 0o7777
	}
	var out []modeClause
	for rest := text[i:]; rest != ""; {
		op := rest[0]
		end := strings.IndexAny(rest[1:], "+-=")
		perm := rest[1:]
		if end >= 0 {
			perm = rest[1 : 1+end]
		}
		if strings.Trim(perm, "rwxXst") != "" && !(len(perm) == 1 && strings.Contains("ugo", perm)) {
			return nil, fmt.Errorf("unknown permission %q", perm)
		}
		out = append(out, modeClause{who, op, perm})
		rest = rest[1+len(perm):]
	}
	return out, nil
}

// parents is the mode of directories that a copy makes on its way: an octal mode counts, a symbolic one does not.
func (m modeChange) parents() uint32 {
	if m.octal {
		return m.mode
	}
	return 0o755
}

func (m modeChange) apply(mode uint32, dir bool) uint32 {
	if m.octal {
		return m.mode
	}
	for _, c := range m.clauses {
		mode = c.apply(mode, dir)
	}
	return mode
}

func (c modeClause) apply(mode uint32, dir bool) uint32 {
	bits := c.bits(mode, dir) & c.who
	switch c.op {
	case '+':
		return mode | bits
	case '-':
		return mode &^ bits
	}
	keep := ^c.who
	if dir {
		keep |= 0o6000 // chmod(1): a directory's set-id bits go only when named
	}
	return mode&keep | bits
}

// bits spreads a permission over all classes; the clause's classes select from it.
func (c modeClause) bits(mode uint32, dir bool) uint32 {
	var b uint32
	for _, p := range c.perm {
		switch p {
		case 'r':
			b |= 0o444
		case 'w':
			b |= 0o222
		case 'x':
			b |= 0o111
		case 'X':
			if dir || mode&0o111 != 0 {
				b |= 0o111
			}
		case 's':
			b |= 0o6000
		case 't':
			b |= 0o1000
		case 'u':
			b |= mode >> 6 & 7 * 0o111
		case 'g':
			b |= mode >> 3 & 7 * 0o111
		case 'o':
			b |= mode & 7 * 0o111
		}
	}
	return b
}
