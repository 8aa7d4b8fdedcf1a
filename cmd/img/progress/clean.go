package progress

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// Clean makes text from outside safe for a terminal: what would move the cursor, change colours, or reorder what
// people read is shown visibly instead. Tab and newline stay.
//
//	ESC -> ^[   BEL -> ^G   0x9b -> \x9b   U+009B -> \u009b   U+202E -> \u202e
func Clean(s string) string {
	if isClean(s) {
		return s
	}
	var b strings.Builder
	b.Grow(len(s) + 16)
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			fmt.Fprintf(&b, `\x%02x`, s[i])
		case r == 0x7f:
			b.WriteString("^?")
		case r < 0x20 && hidden(r):
			b.WriteByte('^')
			b.WriteByte(byte(r) + '@')
		case hidden(r):
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			b.WriteString(s[i : i+n])
		}
		i += n
	}
	return b.String()
}

// CleanJSON makes a JSON text safe for a terminal without a change of what it says: the strings in it get more escapes.
func CleanJSON(text string) string { return Clean(strings.ReplaceAll(text, "\x7f", `\u007f`)) }

// isClean is the common case without an allocation.
func isClean(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c >= 0x20 && c < 0x7f || c == '\t' || c == '\n' {
			continue
		}
		if c < utf8.RuneSelf {
			return false
		}
		return utf8.ValidString(s[i:]) && strings.IndexFunc(s[i:], hidden) < 0
	}
	return true
}

// hidden reports whether a terminal acts on a rune instead of showing it: C0 but tab and newline, DEL, C1, line and
// paragraph separators, and the bidi controls of Unicode TR9.
func hidden(r rune) bool {
	switch {
	case r == '\t' || r == '\n':
		return false
	case r < 0x20, r >= 0x7f && r < 0xa0:
		return true
	case r == 0x061c, r == 0x200e, r == 0x200f, r >= 0x2028 && r <= 0x202e, r >= 0x2066 && r <= 0x2069:
		return true
	}
	return false
}
