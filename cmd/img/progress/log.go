package progress

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
)

const (
	maxKept = 1 << 20 // bytes of one step's log held in memory
	maxLine = 64 << 10
)

// A lines splits a stream of output into lines. A lone carriage return ends a line too, so that what a progress bar
// drew over stays readable; a line longer than maxLine is given in pieces.
type lines struct {
	rest []byte
	cr   bool // the last piece ended with a carriage return; a newline that follows belongs to it
}

func (l *lines) feed(p []byte, line func(string)) {
	for len(p) > 0 {
		if l.cr && p[0] == '\n' {
			p = p[1:]
		}
		l.cr = false
		i := bytes.IndexAny(p, "\r\n")
		if i < 0 {
			l.keep(p, line)
			return
		}
		l.keep(p[:i], line)
		line(string(l.rest))
		l.rest, l.cr = l.rest[:0], p[i] == '\r'
		p = p[i+1:]
	}
}

func (l *lines) keep(p []byte, line func(string)) {
	for len(l.rest)+len(p) > maxLine {
		n := maxLine - len(l.rest)
		line(string(append(l.rest, p[:n]...)))
		l.rest, p = l.rest[:0], p[n:]
	}
	l.rest = append(l.rest, p...)
}

// flush gives the last line if no newline ended it.
func (l *lines) flush(line func(string)) {
	if len(l.rest) > 0 {
		line(string(l.rest))
		l.rest = nil
	}
}

// A kept is a step's log, held until the step ends well. What exceeds maxKept goes to a file, or else the oldest part
// is given up and counted.
type kept struct {
	dir  func() (string, error) // where files may be made; nil for nowhere
	buf  []byte
	file *os.File
	gone int64
}

func (k *kept) Write(p []byte) (int, error) {
	if k.file != nil {
		if _, err := k.file.Write(p); err == nil {
			return len(p), nil
		}
		k.gone += int64(len(p)) // the disk is full: the build's own error will say so
		return len(p), nil
	}
	k.buf = append(k.buf, p...)
	if len(k.buf) > maxKept && !k.spill() {
		cut := len(k.buf) - maxKept/2
		k.gone += int64(cut)
		k.buf = append([]byte(nil), k.buf[cut:]...)
	}
	return len(p), nil
}

func (k *kept) spill() bool {
	if k.dir == nil {
		return false
	}
	dir, err := k.dir()
	if err != nil {
		k.dir = nil
		return false
	}
	f, err := os.CreateTemp(dir, "log-")
	if err != nil {
		k.dir = nil
		return false
	}
	if _, err := f.Write(k.buf); err != nil {
		f.Close()
		os.Remove(f.Name())
		k.dir = nil
		return false
	}
	k.file, k.buf = f, nil
	return true
}

// each gives the log line by line.
func (k *kept) each(line func(string)) {
	var l lines
	if k.gone > 0 && k.file == nil {
		line(fmt.Sprintf("(%d bytes of earlier output are not kept in memory)", k.gone))
	}
	var r io.Reader = bytes.NewReader(k.buf)
	if k.file != nil {
		if _, err := k.file.Seek(0, io.SeekStart); err != nil {
			line("(the log cannot be read back: " + err.Error() + ")")
			return
		}
		r = bufio.NewReader(k.file)
	}
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		l.feed(buf[:n], line)
		if err != nil {
			break
		}
	}
	l.flush(line)
	if k.gone > 0 && k.file != nil {
		line(fmt.Sprintf("(%d bytes of later output could not be written to %s)", k.gone, k.file.Name()))
	}
}

// drop forgets the log and its file.
func (k *kept) drop() {
	if k.file != nil {
		k.file.Close()
		os.Remove(k.file.Name())
	}
	*k = kept{dir: k.dir}
}
