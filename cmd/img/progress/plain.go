package progress

import (
	"fmt"
	"io"
	"strings"
	"time"

	"img/engine"
)

// plainView prints every line once, with the number of its step; nothing is clipped.
//
//	#5 [build 2/4] RUN make
//	#5 0.123 cc -o app main.c
//	#5 DONE 1.2s
type plainView struct {
	w      io.Writer
	colour bool
	last   *step
}

// block separates the lines of different steps by an empty line.
func (v *plainView) block(s *step) {
	if v.last != nil && v.last != s {
		fmt.Fprintln(v.w)
	}
	v.last = s
}

func (v *plainView) begin(s *step) {
	v.block(s)
	fmt.Fprintf(v.w, "#%d %s\n", s.n, s.title)
}

func (v *plainView) log(s *step, at time.Time, p []byte) {
	s.lines.feed(p, func(line string) { v.line(s, at, line) })
}

func (v *plainView) line(s *step, at time.Time, line string) {
	v.block(s)
	fmt.Fprintf(v.w, "#%d %.3f %s\n", s.n, max(at.Sub(s.start), 0).Seconds(), Clean(line))
}

func (v *plainView) note(s *step, text string) {
	if s == nil {
		fmt.Fprintf(v.w, "img: note: %s\n", oneLine(text))
		return
	}
	v.block(s)
	fmt.Fprintf(v.w, "#%d %s\n", s.n, oneLine(text))
}

func (v *plainView) end(s *step) {
	s.lines.flush(func(line string) { v.line(s, s.end, line) })
	v.block(s)
	fmt.Fprintf(v.w, "#%d %s\n", s.n, outcome(s, v.colour))
}

func (v *plainView) tick(time.Time) {}

func (v *plainView) close() {}

// outcome is how a step ended.
func outcome(s *step, colour bool) string {
	switch s.state {
	case engine.Cached:
		return paint(colour, "2", "CACHED")
	case engine.Failed:
		text := "step failed"
		if s.err != nil {
			text = s.err.Error()
		}
		return paint(colour, "31", "ERROR:") + " " + strings.TrimRight(Clean(text), "\n")
	case engine.Canceled:
		return "CANCELED"
	}
	return "DONE " + seconds(s.end.Sub(s.start))
}

// paint wraps text in an SGR colour.
func paint(colour bool, sgr, text string) string {
	if !colour {
		return text
	}
	return "\x1b[" + sgr + "m" + text + "\x1b[0m"
}

// quietView prints nothing but the log of a step that failed.
type quietView struct{ w io.Writer }

func (v *quietView) begin(*step)                        {}
func (v *quietView) log(s *step, _ time.Time, p []byte) { s.kept.Write(p) }
func (v *quietView) note(*step, string)                 {}
func (v *quietView) tick(time.Time)                     {}
func (v *quietView) close()                             {}
func (v *quietView) end(s *step) {
	if s.state != engine.Failed {
		return
	}
	fmt.Fprintf(v.w, "#%d %s\n", s.n, s.title)
	s.kept.each(func(line string) { fmt.Fprintln(v.w, Clean(line)) })
}
