package exec

import (
	"fmt"
	"strconv"
	"strings"
)

// A modeChange is --chmod: nothing, octal digits, or symbolic clauses ("u+x,go=r") as BuildKit understands them, which are BSD's: a
// directory's set-id bits are bits like others, the sticky bit belongs to every class but others alone, and X asks the mode before all
// clauses.
type modeChange struct {
	octal   bool
	mode    uint32
	clauses []modeClause
}

// A modeClause is one operator with what is on either side of it.
type modeClause struct {
	// who is the bits of the classes named, 0 if none is: set-id bits belong to their class, the sticky bit to none.
	who uint32
	op  byte
	// perm is letters of rwxXst, and of ugo for the permissions of a class.
	perm string
}

const (
	setIDs    = 0o6000
	sticky    = 0o1000
	otherBits = 0o007
	// classBits are what a clause without a class changes.
	classBits = 0o6777
)

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
			who |= otherBits
		case 'a':
			who |= classBits
		default:
			return nil, fmt.Errorf("unknown class %q", c)
		}
	}
	var out []modeClause
	for rest := text[i:]; rest != ""; {
		op := rest[0]
		end := strings.IndexAny(rest[1:], "+-=")
		perm := rest[1:]
		if end >= 0 {
			perm = rest[1 : 1+end]
		}
		if strings.Trim(perm, "rwxXstugo") != "" {
			return nil, fmt.Errorf("unknown permission %q", perm)
		}
		out = append(out, modeClause{who, op, perm})
		rest = rest[1+len(perm):]
	}
	return out, nil
}

// parents is the mode of directories that a copy makes on its way: of an octal mode the permissions count (BuildKit drops the
// set-id and sticky bits there), a symbolic one does not.
func (m modeChange) parents() uint32 {
	if m.octal {
		return m.mode & 0o777
	}
	return 0o755
}

func (m modeChange) apply(mode uint32, dir bool) uint32 {
	if m.octal {
		return m.mode
	}
	someX := dir || mode&0o111 != 0
	for _, c := range m.clauses {
		mode = c.apply(mode, someX)
	}
	return mode
}

// apply changes a mode; someX says whether X is x.
func (c modeClause) apply(mode uint32, someX bool) uint32 {
	who, bits := c.who, uint32(0)
	onlyOthers := c.who != 0 && c.who&^otherBits == 0
	assigned := false // what "=" clears is cleared once, unless more is said after the permissions of a class
	for _, p := range c.perm {
		switch p {
		case 'r':
			bits |= 0o444
		case 'w':
			bits |= 0o222
		case 'x':
			bits |= 0o111
		case 'X':
			if someX || c.op == '-' {
				bits |= 0o111
			}
		case 's':
			if !onlyOthers {
				bits |= setIDs
			}
		case 't':
			if !onlyOthers {
				// Without a class this leaves it the only bit that is meant.
				who |= sticky
				bits |= sticky
			}
		default:
			if bits != 0 {
				mode = c.change(mode, who, bits)
			}
			mode, bits, assigned = c.copy(mode, who, p), 0, true
		}
	}
	if bits != 0 || c.op == '=' && !assigned {
		mode = c.change(mode, who, bits)
	}
	return mode
}

func (c modeClause) change(mode, who, bits uint32) uint32 {
	meant := who
	if who == 0 {
		meant = classBits
	}
	switch c.op {
	case '+':
		return mode | bits&meant
	case '-':
		return mode &^ (bits & meant)
	}
	return mode&^meant | bits&meant
}

// copy changes the permissions of the clause's classes by those that the class from has.
func (c modeClause) copy(mode, who uint32, from rune) uint32 {
	shift := map[rune]uint{'u': 6, 'g': 3, 'o': 0}[from]
	have := mode >> shift & 7 * 0o111
	if who == 0 {
		who = classBits
	}
	who &= 0o777
	switch c.op {
	case '+':
		return mode | have&who
	case '-':
		return mode &^ (have & who)
	}
	return mode&^who | have&who
}
