package snapshot

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"os"
	"strconv"
	"strings"
)

// A Type is what kind of file an entry is.
type Type byte

const (
	Dir     Type = 'd'
	File    Type = 'f'
	Symlink Type = 'l'
	Char    Type = 'c'
	Block   Type = 'b'
	Fifo    Type = 'p'
	// Removed says that the parent's entry, and what is below it, is gone.
	Removed Type = 'x'
)

// An Entry is one line of a tree: a path and what is there now.
type Entry struct {
	// Path is relative to the root, slash-separated, clean; "." is the root itself.
	Path string
	Type Type
	// Mode is the permission bits with set-id and sticky: 07777.
	Mode uint32
	// UID and GID are the intended owners, as the image has them.
	UID, GID     uint32
	Major, Minor uint32
	// Size is a File's, in bytes.
	Size int64
	// MTime is in nanoseconds since 1970.
	MTime int64
	// TimeSet says that the step set the time, so that it counts in the name.
	TimeSet bool
	// Link is a symlink's target.
	Link string
	// HardLink is the path of the first entry, in order, of this change set that is the same file (of a View: of
	// the whole file system); "" for that first one and for files with one name. All other columns are filled for every name.
	HardLink string
	// Xattrs that count, sorted by name: user.* (less overlay's and ours), security.capability without its root id, POSIX ACLs.
	Xattrs []Xattr
	// Digest is the SHA-256 of a File's content, in hex.
	Digest string
}

// An Xattr is an extended attribute.
type Xattr struct {
	Name  string
	Value []byte
}

// ErrDamaged is what reading a tree file reports that is cut, changed, or of a newer format.
var ErrDamaged = errors.New("tree file is damaged")

// The tree file is text:
//
//	img tree 1
//	PATH TYPE MODE UID GID MAJOR MINOR SIZE MTIME TIMESET LINK HARDLINK DIGEST [XATTR=VALUE]...
//	...
//	end 000000000002 1a2b3c4d
//
// Lines are sorted by Compare on the path, each path once. MODE is octal, TIMESET "t" or "-". In PATH, LINK, HARDLINK,
// XATTR and VALUE the bytes up to space, "\", "=" and DEL are written \hh; the empty string is "-", the string "-" is \2d.
// The last line, of fixed width, has the number of entries and the CRC-32C of all bytes before it.
const (
	treeHeader  = "img tree 1\n"
	treeTrailer = "end %012d %08x\n"
	trailerLen  = 3 + 1 + 12 + 1 + 8 + 1
	// maxLine bounds what a reader holds for one entry. XFS allows attributes of 64 KiB each; ext4 about 4 KiB in all.
	maxLine = 8 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Compare orders paths as a sorted walk meets them: component by component, "." first, a directory before what is below it
// and everything below it before its next sibling.
func Compare(a, b string) int {
	if a == "." {
		a = ""
	}
	if b == "." {
		b = ""
	}
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return int(rank(a[i])) - int(rank(b[i]))
		}
	}
	return len(a) - len(b)
}

// rank puts the slash before every byte that a name can have.
func rank(c byte) byte {
	if c == '/' {
		return 0
	}
	return c
}

// below reports whether path is inside the directory dir.
func below(path, dir string) bool {
	if dir == "." {
		return path != "."
	}
	return len(path) > len(dir) && path[len(dir)] == '/' && path[:len(dir)] == dir
}

// join names a child of a directory.
func join(dir, name string) string {
	if dir == "." {
		return name
	}
	return dir + "/" + name
}

// clean reports whether a path is in the form that trees use.
func clean(path string) bool {
	if path == "." {
		return true
	}
	for rest, more := path, true; more; {
		var c string
		c, rest, more = strings.Cut(rest, "/")
		if c == "" || c == "." || c == ".." || strings.IndexByte(c, 0) >= 0 {
			return false
		}
	}
	return true
}

// A TreeWriter writes a tree file.
type TreeWriter struct {
	w     *bufio.Writer
	crc   uint32
	count int
	last  string
	line  []byte
}

// NewTreeWriter begins a tree file. Close ends it; without that the file counts as damaged.
func NewTreeWriter(w io.Writer) *TreeWriter {
	t := &TreeWriter{w: bufio.NewWriterSize(w, 32<<10)}
	t.write([]byte(treeHeader))
	return t
}

// WriteEntry adds an entry, which must come after the one before by Compare.
func (t *TreeWriter) WriteEntry(e Entry) error {
	if !clean(e.Path) {
		return fmt.Errorf("write tree: bad path %q", e.Path)
	}
	if t.count > 0 && Compare(t.last, e.Path) >= 0 {
		return fmt.Errorf("write tree: %q does not come after %q", e.Path, t.last)
	}
	t.line = appendLine(t.line[:0], &e)
	if len(t.line) > maxLine {
		return fmt.Errorf("write tree: attributes of %q are too large", e.Path)
	}
	t.count++
	t.last = e.Path
	return t.write(t.line)
}

func (t *TreeWriter) write(p []byte) error {
	t.crc = crc32.Update(t.crc, castagnoli, p)
	_, err := t.w.Write(p)
	return err
}

// Close writes the last line. It does not close the underlying writer.
func (t *TreeWriter) Close() error {
	fmt.Fprintf(t.w, treeTrailer, t.count, t.crc)
	return t.w.Flush()
}

// appendLine is an entry as a line of the file.
func appendLine(b []byte, e *Entry) []byte {
	b = appendColumns(b, e, strconv.FormatInt(e.MTime, 10))
	return append(b, '\n')
}

// appendNameLine is an entry as it counts in the snapshot's name: a time only where the step set it, in whole seconds.
func appendNameLine(b []byte, e *Entry) []byte {
	mtime := "-"
	if e.TimeSet {
		mtime = strconv.FormatInt(floorSeconds(e.MTime), 10)
	}
	b = appendColumns(b, e, mtime)
	return append(b, '\n')
}

func floorSeconds(ns int64) int64 {
	s := ns / 1e9
	if ns%1e9 < 0 {
		s--
	}
	return s
}

func appendColumns(b []byte, e *Entry, mtime string) []byte {
	b = appendText(b, e.Path)
	b = append(b, ' ', byte(e.Type), ' ')
	b = strconv.AppendUint(b, uint64(e.Mode), 8)
	for _, n := range [...]uint32{e.UID, e.GID, e.Major, e.Minor} {
		b = strconv.AppendUint(append(b, ' '), uint64(n), 10)
	}
	b = strconv.AppendInt(append(b, ' '), e.Size, 10)
	b = append(append(b, ' '), mtime...)
	if e.TimeSet {
		b = append(b, " t"...)
	} else {
		b = append(b, " -"...)
	}
	for _, s := range [...]string{e.Link, e.HardLink, e.Digest} {
		b = appendText(append(b, ' '), s)
	}
	for _, x := range e.Xattrs {
		b = appendText(append(b, ' '), x.Name)
		b = appendText(append(b, '='), string(x.Value))
	}
	return b
}

const hexDigits = "0123456789abcdef"

func escaped(c byte) bool { return c <= ' ' || c == '\\' || c == '=' || c == 0x7f }

func appendText(b []byte, s string) []byte {
	switch s {
	case "":
		return append(b, '-')
	case "-":
		return append(b, `\2d`...)
	}
	for i := range len(s) {
		if c := s[i]; escaped(c) {
			b = append(b, '\\', hexDigits[c>>4], hexDigits[c&15])
		} else {
			b = append(b, c)
		}
	}
	return b
}

// text decodes a column.
func text(p []byte) (string, error) {
	if len(p) == 1 && p[0] == '-' {
		return "", nil
	}
	if len(p) == 0 {
		return "", ErrDamaged
	}
	if bytes.IndexByte(p, '\\') < 0 {
		return string(p), nil
	}
	out := make([]byte, 0, len(p))
	for i := 0; i < len(p); i++ {
		if p[i] != '\\' {
			out = append(out, p[i])
			continue
		}
		if i+2 >= len(p) {
			return "", ErrDamaged
		}
		n, err := strconv.ParseUint(string(p[i+1:i+3]), 16, 8)
		if err != nil {
			return "", ErrDamaged
		}
		out = append(out, byte(n))
		i += 2
	}
	return string(out), nil
}

// linePath decodes the first column alone.
func linePath(line []byte) (string, error) {
	i := bytes.IndexByte(line, ' ')
	if i < 0 {
		return "", ErrDamaged
	}
	return text(line[:i])
}

// A columns reader takes one column after another and remembers the first error.
type columns struct {
	rest []byte
	bad  bool
}

func (c *columns) next() []byte {
	col, rest, ok := bytes.Cut(c.rest, []byte{' '})
	if !ok {
		rest = nil
	}
	if len(col) == 0 {
		c.bad = true
	}
	c.rest = rest
	return col
}

func (c *columns) text() string {
	s, err := text(c.next())
	c.bad = c.bad || err != nil
	return s
}

func (c *columns) uint(base int) uint32 {
	n, err := strconv.ParseUint(string(c.next()), base, 32)
	c.bad = c.bad || err != nil
	return uint32(n)
}

func (c *columns) int() int64 {
	n, err := strconv.ParseInt(string(c.next()), 10, 64)
	c.bad = c.bad || err != nil
	return n
}

func (c *columns) xattr() Xattr {
	name, value, _ := bytes.Cut(c.next(), []byte{'='})
	n, err1 := text(name)
	v, err2 := text(value)
	c.bad = c.bad || err1 != nil || err2 != nil
	return Xattr{Name: n, Value: []byte(v)}
}

// parseLine decodes a line without its newline.
func parseLine(line []byte) (Entry, error) {
	c := columns{rest: line}
	var e Entry
	e.Path = c.text()
	t := c.next()
	e.Mode = c.uint(8)
	e.UID, e.GID, e.Major, e.Minor = c.uint(10), c.uint(10), c.uint(10), c.uint(10)
	e.Size, e.MTime = c.int(), c.int()
	e.TimeSet = string(c.next()) == "t"
	e.Link, e.HardLink, e.Digest = c.text(), c.text(), c.text()
	for c.rest != nil && !c.bad {
		e.Xattrs = append(e.Xattrs, c.xattr())
	}
	if c.bad || len(t) != 1 || !clean(e.Path) || !validType(Type(t[0])) {
		return Entry{}, ErrDamaged
	}
	e.Type = Type(t[0])
	return e, nil
}

func validType(t Type) bool {
	switch t {
	case Dir, File, Symlink, Char, Block, Fifo, Removed:
		return true
	}
	return false
}

// A Tree is one snapshot's change set, read from its file without holding it in memory. It is for one goroutine.
type Tree struct {
	r     io.ReaderAt
	close func() error
	// start and end bound the lines of the entries; count is how many there are.
	start, end int64
	count      int
	win        window
}

// smallTree is the size up to which a tree is read at once, which spares its descriptor and the reads of a search.
const smallTree = 16 << 10

// OpenTree reads the tree file of that size. It checks the first and the last line; Verify checks the rest.
func OpenTree(r io.ReaderAt, size int64) (*Tree, error) {
	t := &Tree{r: r, close: func() error { return nil }, start: int64(len(treeHeader)), end: size - trailerLen}
	if t.end < t.start {
		return nil, ErrDamaged
	}
	var head [len(treeHeader)]byte
	if _, err := r.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("read tree: %w", err)
	}
	count, _, err := t.trailer()
	if err != nil {
		return nil, err
	}
	if string(head[:]) != treeHeader {
		return nil, ErrDamaged
	}
	t.count = count
	t.win = window{r: r, end: t.end}
	return t, nil
}

func (t *Tree) trailer() (count int, crc uint32, err error) {
	var b [trailerLen]byte
	if n, err := t.r.ReadAt(b[:], t.end); n < len(b) {
		return 0, 0, fmt.Errorf("read tree: %w", err)
	}
	if _, err := fmt.Sscanf(string(b[:]), "end %d %x\n", &count, &crc); err != nil {
		return 0, 0, ErrDamaged
	}
	if string(b[:]) != fmt.Sprintf(treeTrailer, count, crc) || count < 0 {
		return 0, 0, ErrDamaged
	}
	return count, crc, nil
}

// openTreeFile opens a tree by its path.
func openTreeFile(path string) (*Tree, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if fi.Size() > smallTree {
		t, err := OpenTree(f, fi.Size())
		if err != nil {
			f.Close()
			return nil, err
		}
		t.close = f.Close
		return t, nil
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, smallTree))
	if err != nil {
		return nil, err
	}
	return OpenTree(bytes.NewReader(b), int64(len(b)))
}

// Verify reads the whole file and compares its checksum.
func (t *Tree) Verify() error {
	_, want, err := t.trailer()
	if err != nil {
		return err
	}
	h := crc32.New(castagnoli)
	if _, err := io.Copy(h, io.NewSectionReader(t.r, 0, t.end)); err != nil {
		return fmt.Errorf("read tree: %w", err)
	}
	if h.Sum32() != want {
		return ErrDamaged
	}
	return nil
}

// Len is the number of entries.
func (t *Tree) Len() int { return t.count }

// Close releases the file.
func (t *Tree) Close() error { return t.close() }

// Each calls f for every entry in order until f returns an error, which it returns.
func (t *Tree) Each(f func(Entry) error) error {
	c := t.cursor(t.start, t.end)
	for {
		e, ok, err := c.next()
		if err != nil || !ok {
			return err
		}
		if err := f(e); err != nil {
			return err
		}
	}
}

// Lookup finds a path by binary search.
func (t *Tree) Lookup(path string) (Entry, bool, error) {
	e, _, ok, err := t.find(path, span{t.start, t.end})
	return e, ok, err
}

// A span is a range of whole lines of a tree file.
type span struct{ lo, hi int64 }

func (s span) empty() bool { return s.lo >= s.hi }

// find looks for a path among the lines of in. The span that comes back is what is below the path, within in.
func (t *Tree) find(path string, in span) (Entry, span, bool, error) {
	at, err := t.search(in, func(p string) bool { return Compare(p, path) >= 0 })
	if err != nil {
		return Entry{}, span{}, false, err
	}
	var e Entry
	found := false
	children := span{at, at}
	if at < in.hi {
		line, err := t.win.line(at)
		if err != nil {
			return Entry{}, span{}, false, err
		}
		p, err := linePath(line)
		if err != nil {
			return Entry{}, span{}, false, err
		}
		switch {
		case p == path:
			if e, err = parseLine(line); err != nil {
				return Entry{}, span{}, false, err
			}
			found = true
			children.lo = at + int64(len(line)) + 1
		case !below(p, path):
			return Entry{}, span{at, at}, false, nil
		}
	}
	children.hi, err = t.search(span{children.lo, in.hi}, func(p string) bool { return !below(p, path) })
	return e, children, found, err
}

// search returns where the first line of in begins whose path satisfies after, which holds for all lines behind it; in.hi if none does.
func (t *Tree) search(in span, after func(path string) bool) (int64, error) {
	// A directory's first child usually lies directly behind it: look there before halving.
	lo, hi := in.lo, in.hi
	for first := true; lo < hi; first = false {
		at := lo
		if !first {
			var err error
			if at, err = t.win.lineStart(lo, lo+(hi-lo)/2); err != nil {
				return 0, err
			}
		}
		line, err := t.win.line(at)
		if err != nil {
			return 0, err
		}
		p, err := linePath(line)
		if err != nil {
			return 0, err
		}
		if after(p) {
			hi = at
		} else {
			lo = at + int64(len(line)) + 1
		}
	}
	return lo, nil
}

// A window is the part of a tree file that was read last.
type window struct {
	r   io.ReaderAt
	end int64
	off int64
	buf []byte
}

const windowSize = 4 << 10

// load makes the bytes from off on present, at least n of them or all up to the end.
func (w *window) load(off int64, n int) error {
	if off < 0 || off > w.end {
		return ErrDamaged
	}
	n = int(min(int64(max(n, windowSize)), w.end-off))
	if cap(w.buf) < n || cap(w.buf) > 16*windowSize && n <= windowSize {
		w.buf = make([]byte, n)
	}
	w.buf = w.buf[:n]
	w.off = off
	if k, err := w.r.ReadAt(w.buf, off); k < n {
		w.buf = w.buf[:0]
		if err == nil || err == io.EOF {
			err = ErrDamaged
		}
		return fmt.Errorf("read tree: %w", err)
	}
	return nil
}

// line returns the line that begins at off, without its newline; it is good until the next call.
func (w *window) line(off int64) ([]byte, error) {
	if off >= w.off && off < w.off+int64(len(w.buf)) {
		rest := w.buf[off-w.off:]
		if i := bytes.IndexByte(rest, '\n'); i >= 0 {
			return rest[:i], nil
		}
	}
	for n := windowSize; ; n *= 4 {
		if err := w.load(off, n); err != nil {
			return nil, err
		}
		if i := bytes.IndexByte(w.buf, '\n'); i >= 0 {
			return w.buf[:i], nil
		}
		if n >= maxLine || off+int64(n) >= w.end {
			return nil, ErrDamaged
		}
	}
}

// lineStart returns where the line that holds the byte at off begins, not before lo (which is a beginning).
func (w *window) lineStart(lo, off int64) (int64, error) {
	for n := int64(windowSize / 2); ; n *= 4 {
		from := max(lo, off-n)
		if from < w.off || off > w.off+int64(len(w.buf)) {
			// Half before, half behind: the line itself is likely wanted next.
			if err := w.load(from, int(off-from)+windowSize/2); err != nil {
				return 0, err
			}
		}
		if i := bytes.LastIndexByte(w.buf[from-w.off:off-w.off], '\n'); i >= 0 {
			return from + int64(i) + 1, nil
		}
		if from == lo {
			return lo, nil
		}
		if n > maxLine {
			return 0, ErrDamaged
		}
	}
}

// A cursor reads entries one after another.
type cursor struct {
	r *bufio.Reader
}

func (t *Tree) cursor(lo, hi int64) *cursor {
	size := int(min(hi-lo, 16<<10))
	return &cursor{r: bufio.NewReaderSize(io.NewSectionReader(t.r, lo, hi-lo), max(size, 16))}
}

// next returns the next entry, false at the end.
func (c *cursor) next() (Entry, bool, error) {
	line, err := c.r.ReadSlice('\n')
	var long []byte
	for errors.Is(err, bufio.ErrBufferFull) && len(long) <= maxLine {
		long = append(long, line...)
		line, err = c.r.ReadSlice('\n')
	}
	if len(long) > 0 {
		line = append(long, line...)
	}
	switch {
	case err == io.EOF && len(line) == 0:
		return Entry{}, false, nil
	case err == io.EOF, errors.Is(err, bufio.ErrBufferFull):
		return Entry{}, false, ErrDamaged
	case err != nil:
		return Entry{}, false, fmt.Errorf("read tree: %w", err)
	}
	e, err := parseLine(line[:len(line)-1])
	return e, err == nil, err
}
