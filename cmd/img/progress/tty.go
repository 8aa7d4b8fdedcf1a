package progress

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/mattn/go-runewidth"

	"img/engine"
)

// ttyView keeps finished steps in the scrollback and, below them, a window that is drawn over: each running step with
// its last lines. The window never has more lines than the terminal, or drawing over it would fail.
//
//	=> [build 1/4] FROM debian                     0.4s      scrollback
//	=> CACHED [build 2/4] RUN apt-get update
//	=> [build 3/4] RUN make                        3.1s      window
//	=> => # cc -o app main.c
//
// A step that fails leaves its whole log in the scrollback.
type ttyView struct {
	w        io.Writer
	size     func() (int, int)
	now      func() time.Time
	colour   bool
	logLines int

	running []*step
	drawn   int // lines of the window on the screen
	last    time.Time
	hidden  bool // the cursor is
	out     bytes.Buffer
}

func (v *ttyView) begin(s *step) { v.running = append(v.running, s) }

func (v *ttyView) log(s *step, _ time.Time, p []byte) {
	s.kept.Write(p)
	s.lines.feed(p, func(line string) { v.remember(s, line) })
}

func (v *ttyView) remember(s *step, line string) {
	if len(s.tail) >= v.logLines {
		s.tail = slices.Delete(s.tail, 0, len(s.tail)-v.logLines+1)
	}
	if v.logLines > 0 {
		s.tail = append(s.tail, line[:min(len(line), 4096)]) // no window is wider
	}
}

func (v *ttyView) note(s *step, text string) {
	v.erase()
	if s == nil {
		fmt.Fprintf(&v.out, "img: note: %s\n", oneLine(text))
	} else {
		fmt.Fprintf(&v.out, " => %s: %s\n", s.title, oneLine(text))
	}
	v.draw(v.now())
}

func (v *ttyView) end(s *step) {
	v.erase()
	v.running = slices.DeleteFunc(v.running, func(r *step) bool { return r == s })
	took := seconds(s.end.Sub(s.start))
	switch s.state {
	case engine.Cached:
		fmt.Fprintf(&v.out, " => %s %s\n", paint(v.colour, "2", "CACHED"), s.title)
	case engine.Canceled:
		fmt.Fprintf(&v.out, " => CANCELED %s\n", s.title)
	case engine.Failed:
		fmt.Fprintf(&v.out, " => %s %s  %s\n", paint(v.colour, "31", "ERROR"), s.title, took)
		v.wholeLog(s)
	default:
		columns, _ := v.size()
		pad := max(columns-1-len(" => ")-runewidth.StringWidth(s.title)-len(took), 2)
		fmt.Fprintf(&v.out, " => %s%*s%s\n", s.title, pad, "", took)
	}
	v.draw(s.end)
}

func (v *ttyView) wholeLog(s *step) {
	fmt.Fprintln(&v.out, "------")
	fmt.Fprintf(&v.out, " > %s:\n", s.title)
	s.kept.each(func(line string) {
		fmt.Fprintln(&v.out, Clean(line))
		if v.out.Len() > maxKept {
			v.flush()
		}
	})
	fmt.Fprintln(&v.out, "------")
}

// tick draws the window anew, at most every 50 ms.
func (v *ttyView) tick(now time.Time) {
	if d := now.Sub(v.last); d >= 0 && d < 50*time.Millisecond {
		return
	}
	v.erase()
	v.draw(now)
}

func (v *ttyView) close() {
	v.erase()
	v.running = nil
	if v.hidden {
		v.out.WriteString("\x1b[?25h")
		v.hidden = false
	}
	v.flush()
}

// erase removes the window, so that what follows lands in the scrollback.
func (v *ttyView) erase() {
	if v.drawn > 0 {
		fmt.Fprintf(&v.out, "\x1b[%dA\x1b[J", v.drawn)
		v.drawn = 0
	}
}

func (v *ttyView) draw(now time.Time) {
	v.last = now
	if len(v.running) > 0 && !v.hidden {
		v.out.WriteString("\x1b[?25l")
		v.hidden = true
	}
	for _, line := range v.window(now) {
		v.out.WriteString(line)
		v.out.WriteByte('\n')
		v.drawn++
	}
	v.flush()
}

// flush writes in one piece, so that the window does not flicker.
func (v *ttyView) flush() {
	v.w.Write(v.out.Bytes())
	v.out.Reset()
}

// window is the lines to draw: steps first, then as many of their last lines as there is room for.
func (v *ttyView) window(now time.Time) []string {
	columns, rows := v.size()
	room := rows - 1
	steps := v.running
	if len(steps) > room {
		steps = steps[:max(room, 0)]
	}
	room -= len(steps)
	var out []string
	for i, s := range steps {
		took := seconds(now.Sub(s.start))
		width := columns - 1 - len(" => ") - len(took) - 1
		out = append(out, fmt.Sprintf(" => %s %s", runewidth.FillRight(cut(s.title, width), max(width, 0)), took))
		share := min(len(s.tail), room/(len(steps)-i))
		room -= share
		for _, line := range s.tail[len(s.tail)-share:] {
			out = append(out, paint(v.colour, "2", cut(" => => # "+oneLine(line), columns-1)))
		}
	}
	return out
}

// cut shortens a line of the window to a width in cells.
func cut(s string, width int) string {
	if width < 1 {
		return ""
	}
	return runewidth.Truncate(s, width, "…")
}
