// Package progress shows the events of a build as they happen.
//
// It decides how things look, never what they mean: words for errors come from cmd/img. Everything that an input said
// passes Clean; only the package's own colours are colours. Memory is bounded: the log of a step beyond 1 MiB goes to
// a file, or its oldest part is given up and that is said.
package progress

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"img/dag"
	"img/engine"
)

// Modes of New.
const (
	Auto  = "auto"
	TTY   = "tty"
	Plain = "plain"
	Quiet = "quiet"
)

// Options of New. The zero value works.
type Options struct {
	// Getenv reads NO_COLOR, CLICOLOR_FORCE, TERM, COLUMNS, BUILDKIT_PROGRESS, BUILDKIT_TTY_LOG_LINES and CI; nil
	// means os.Getenv.
	Getenv func(string) string
	// Size returns the terminal's columns and rows; nil asks the writer if it is a terminal.
	Size func() (columns, rows int)
	// Now is the clock; nil means time.Now. With a clock of its own a display does not redraw by itself.
	Now func() time.Time
	// LogDir gives the directory where the logs of steps that print much are kept until the step ends; it is asked when the first does.
	// nil keeps only their ends.
	LogDir func() (string, error)
	// Shown is how many steps an earlier display of the same build has shown: numbers go on from there.
	Shown int
	// Platforms shows the platform of each step: where it is not this machine's alone.
	Platforms bool
}

// A Display shows the events of one build. Its methods may be called from several goroutines.
type Display struct {
	mu    sync.Mutex
	view  view
	steps map[dag.ID]*step
	count int
	o     Options

	stop chan struct{}
	done sync.WaitGroup
}

// A view is one way of showing. begin, log, note and end are called for a step in that order.
type view interface {
	begin(s *step)
	log(s *step, at time.Time, p []byte)
	note(s *step, text string) // s is nil for remarks about the build
	end(s *step)
	tick(now time.Time)
	close()
}

// A step is a vertex that has begun.
type step struct {
	n          int
	title      string
	start, end time.Time
	state      engine.State
	err        error
	lines      lines
	kept       kept
	tail       []string // last lines, for the live window
}

// New makes a display on w, usually standard error. Mode is Auto, TTY, Plain or Quiet; Auto is TTY on a terminal that
// can do it and outside CI, else Plain, unless BUILDKIT_PROGRESS names another. An unknown mode is Plain.
func New(mode string, w io.Writer, o Options) *Display {
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	own := o.Now != nil
	if !own {
		o.Now = time.Now
	}
	f, _ := w.(*os.File)
	terminal := f != nil && term.IsTerminal(int(f.Fd())) || o.Size != nil
	if o.Size == nil {
		o.Size = func() (int, int) { return terminalSize(f, o.Getenv) }
	}
	d := &Display{steps: map[dag.ID]*step{}, o: o, count: o.Shown}
	colour := colours(terminal, o.Getenv)
	switch choose(mode, terminal, o.Getenv) {
	case TTY:
		d.view = &ttyView{w: w, size: o.Size, colour: colour, now: o.Now, logLines: logLines(o.Getenv)}
		if !own {
			d.redraw()
		}
	case Quiet:
		d.view = &quietView{w: w}
	default:
		d.view = &plainView{w: w, colour: colour}
	}
	return d
}

// choose settles the mode.
func choose(mode string, terminal bool, getenv func(string) string) string {
	if mode == "" || mode == Auto {
		mode = getenv("BUILDKIT_PROGRESS")
	}
	switch {
	case mode == TTY && !terminal:
		return Plain // a file with cursor movements helps nobody
	case mode != "" && mode != Auto:
		return mode
	case terminal && getenv("TERM") != "dumb" && getenv("CI") != "true":
		return TTY
	}
	return Plain
}

// colours follows no-color.org and bixense.com/clicolors.
func colours(terminal bool, getenv func(string) string) bool {
	if getenv("NO_COLOR") != "" {
		return false
	}
	if v := getenv("CLICOLOR_FORCE"); v != "" && v != "0" {
		return true
	}
	return terminal && getenv("TERM") != "dumb"
}

func logLines(getenv func(string) string) int {
	if n, err := strconv.Atoi(getenv("BUILDKIT_TTY_LOG_LINES")); err == nil && n >= 0 {
		return n
	}
	return 6
}

func terminalSize(f *os.File, getenv func(string) string) (int, int) {
	columns, rows := 80, 24
	if f != nil {
		if c, r, err := term.GetSize(int(f.Fd())); err == nil && c > 0 && r > 0 {
			columns, rows = c, r
		}
	}
	if n, err := strconv.Atoi(getenv("COLUMNS")); err == nil && n > 0 {
		columns = n
	}
	return columns, rows
}

// redraw keeps the clocks of running steps going.
func (d *Display) redraw() {
	d.stop = make(chan struct{})
	d.done.Go(func() {
		t := time.NewTicker(100 * time.Millisecond)
		defer t.Stop()
		for {
			select {
			case <-d.stop:
				return
			case now := <-t.C:
				d.mu.Lock()
				d.view.tick(now)
				d.mu.Unlock()
			}
		}
	})
}

// Observe shows an event; it is the Observe of engine.Options.
func (d *Display) Observe(e engine.Event) {
	if e.State == engine.Waiting || e.State == engine.Ready && e.Note == "" {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.steps[e.Vertex.ID]
	if s == nil {
		if e.State == engine.Canceled {
			return // it never began
		}
		s = d.begin(e)
	}
	switch {
	case e.Log != nil:
		d.view.log(s, e.Time, e.Log)
	case e.Note != "":
		d.view.note(s, e.Note)
	}
	if e.State > engine.Running && s.state <= engine.Running {
		s.state, s.end, s.err = e.State, e.Time, e.Err
		d.view.end(s)
		s.kept.drop()
	}
	d.view.tick(d.o.Now())
}

func (d *Display) begin(e engine.Event) *step {
	d.count++
	s := &step{n: d.count, title: title(e.Vertex, d.o.Platforms), start: e.Time, kept: kept{dir: d.o.LogDir}}
	d.steps[e.Vertex.ID] = s
	d.view.begin(s)
	return s
}

// Note shows a remark about the build as a whole, such as a fall-back with its reason and cost.
func (d *Display) Note(text string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.view.note(nil, text)
}

// Close shows what is still to be shown and gives the terminal back. Closing twice does nothing.
func (d *Display) Close() {
	if d.stop != nil {
		close(d.stop)
		d.done.Wait()
		d.stop = nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.view.close()
	for _, s := range d.steps {
		s.kept.drop()
	}
}

// title is a vertex as people know it: "[build 2/4] RUN make"; with its platform "[linux/arm64 build 2/4] RUN make".
func title(v *dag.Vertex, platform bool) string {
	stage := v.Stage
	if _, err := strconv.Atoi(stage); err == nil {
		stage = "stage-" + stage
	}
	if platform && v.Platform != "" {
		stage = strings.TrimSpace(v.Platform + " " + stage)
	}
	where := ""
	switch {
	case v.Step > 0 && stage != "":
		where = fmt.Sprintf("[%s %d/%d] ", stage, v.Step, v.Steps)
	case v.Step > 0:
		where = fmt.Sprintf("[%d/%d] ", v.Step, v.Steps)
	case stage != "":
		where = "[" + stage + "] "
	}
	return oneLine(where + v.Name)
}

// oneLine shows a text on one line.
func oneLine(s string) string {
	b := []byte(Clean(s))
	for i, c := range b {
		if c == '\n' || c == '\t' {
			b[i] = ' '
		}
	}
	return string(b)
}

func seconds(d time.Duration) string { return fmt.Sprintf("%.1fs", max(d, 0).Seconds()) }
