package cache

// A Hash collects a key's text: one labelled line per thing that can change the result, every value quoted
// (strconv.Quote), so that no two different lists give one text. The text is kept.
//
//	run "sh" "-c" "make"
//	env "PATH=/bin" "A=1"
type Hash struct{}

// Line adds a line. Values are strings, integers, bools, byte slices (as their SHA-256), pointers to these (nil is
// written as -), and slices of these.
func (h *Hash) Line(label string, values ...any) { panic("unwritten") }

// Key returns the digest of the text so far.
func (h *Hash) Key() Key { panic("unwritten") }

// Text returns the lines so far.
func (h *Hash) Text() string { panic("unwritten") }

// Explain returns the first line in which two key texts differ, as "was" and "now" ("" where a side ends).
func Explain(old, new string) (was, now string) { panic("unwritten") }
