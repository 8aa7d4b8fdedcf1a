package progress

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"
	"unicode/utf8"

	"img/dag"
	"img/engine"
)

var update = flag.Bool("update", false, "rewrite what is expected")

// A script is a build: two steps of a stage, one from the cache, one that fails while another runs.
var script = []struct {
	at     int // milliseconds
	vertex int
	state  engine.State
	log    string
	err    string
	note   string
}{
	{0, 0, engine.Waiting, "", "", ""},
	{0, 0, engine.Running, "", "", ""},
	{400, 0, engine.Done, "", "", ""},
	{400, 1, engine.Cached, "", "", ""},
	{400, 2, engine.Running, "", "", ""},
	{450, 3, engine.Ready, "", "", "waiting for another build that makes this step"},
	{500, 3, engine.Running, "", "", ""},
	{523, 2, engine.Running, "cc -o app main.c\nhalf a ", "", ""},
	{600, 3, engine.Running, "progress 10%\rprogress 100%\r\n", "", ""},
	{700, 2, engine.Running, "line\n\x1b[31mred\x1b[0m \u202eevil\n", "", ""},
	{900, 2, engine.Running, "no newline", "", ""},
	{1600, 2, engine.Failed, "", "exit code: 2", ""},
	{1610, 3, engine.Canceled, "", "", ""},
	{1610, 4, engine.Canceled, "", "", ""},
}

var vertices = []*dag.Vertex{
	{ID: 0, Name: "FROM debian", Stage: "build", Step: 1, Steps: 4},
	{ID: 1, Name: "RUN apt-get update", Stage: "build", Step: 2, Steps: 4},
	{ID: 2, Name: "RUN make", Stage: "build", Step: 3, Steps: 4},
	{ID: 3, Name: "RUN sleep 10 && echo a name that is much longer than the window of the terminal is wide", Stage: "1", Step: 2, Steps: 2},
	{ID: 4, Name: "pack"},
}

func play(mode string, env map[string]string) string {
	var out bytes.Buffer
	start := time.Unix(1000, 0)
	now := start
	d := New(mode, &out, Options{
		Getenv: func(k string) string { return env[k] },
		Size:   func() (int, int) { return 60, 8 },
		Now:    func() time.Time { return now },
	})
	d.Note("files are copied: no overlay\x07 here")
	for _, l := range script {
		now = start.Add(time.Duration(l.at) * time.Millisecond)
		e := engine.Event{Vertex: vertices[l.vertex], State: l.state, Time: now, Note: l.note}
		if l.log != "" {
			e.Log = []byte(l.log)
		}
		if l.err != "" {
			e.Err = errors.New(l.err)
		}
		d.Observe(e)
	}
	d.Close()
	d.Close()
	return out.String()
}

func TestTranscripts(t *testing.T) { // testdata/*.golden; escapes of ours are written as \e
	for name, env := range map[string]map[string]string{
		Plain: {}, TTY: {"NO_COLOR": "1"}, Quiet: {}, "tty-colour": {"BUILDKIT_TTY_LOG_LINES": "2"},
	} {
		t.Run(name, func(t *testing.T) {
			mode, _, _ := strings.Cut(name, "-")
			if mode == Plain {
				env["NO_COLOR"] = "1"
			}
			got := strings.ReplaceAll(play(mode, env), "\x1b", `\e`)
			path := filepath.Join("testdata", name+".golden")
			if *update {
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// The window never has more lines than the terminal, and none is wider.
func TestWindowFits(t *testing.T) {
	for _, size := range [][2]int{{60, 8}, {20, 3}, {10, 2}, {1, 1}, {200, 50}} {
		v := &ttyView{w: new(bytes.Buffer), size: func() (int, int) { return size[0], size[1] }, logLines: 6}
		for range 5 {
			s := &step{title: strings.Repeat("wide 宽 ", 30)}
			v.begin(s)
			v.log(s, time.Time{}, []byte(strings.Repeat("line "+strings.Repeat("x", 90)+"\n", 20)))
		}
		lines := v.window(time.Time{})
		if len(lines) > size[1]-1 {
			t.Errorf("%v: %d lines", size, len(lines))
		}
		for _, l := range lines {
			if n := utf8.RuneCountInString(l); size[0] >= 20 && n >= size[0] {
				t.Errorf("%v: %d columns: %q", size, n, l)
			}
		}
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		mode     string
		terminal bool
		env      string
		want     string
	}{
		{"", true, "", TTY},
		{Auto, false, "", Plain},
		{Auto, true, "CI=true", Plain},
		{Auto, true, "TERM=dumb", Plain},
		{Auto, true, "BUILDKIT_PROGRESS=plain", Plain},
		{Auto, false, "BUILDKIT_PROGRESS=quiet", Quiet},
		{Auto, true, "BUILDKIT_PROGRESS=auto", TTY},
		{TTY, true, "CI=true", TTY},
		{TTY, false, "", Plain},
		{Plain, true, "BUILDKIT_PROGRESS=tty", Plain},
	} {
		k, v, _ := strings.Cut(c.env, "=")
		getenv := func(name string) string {
			if name == k {
				return v
			}
			return ""
		}
		if got := choose(c.mode, c.terminal, getenv); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
}

// The log of a failed step is whole when it can go to a file, and its loss is said when it cannot.
func TestKeptLog(t *testing.T) {
	line := strings.Repeat("x", 99) + "\n"
	for _, dir := range []string{t.TempDir(), ""} {
		k := kept{}
		if dir != "" {
			k.dir = func() (string, error) { return dir, nil }
		}
		for range 3 * maxKept / len(line) {
			k.Write([]byte(line))
			if len(k.buf) > maxKept {
				t.Fatal("memory is not bounded")
			}
		}
		n, said := 0, false
		k.each(func(l string) {
			n++
			said = said || strings.Contains(l, "not kept")
		})
		if whole := n == 3*maxKept/len(line); whole != (dir != "") || said == whole {
			t.Errorf("dir %q: %d lines, said %v", dir, n, said)
		}
		k.drop()
		if left, _ := os.ReadDir(dir); dir != "" && len(left) > 0 {
			t.Errorf("%d files left", len(left))
		}
	}
}

func TestLines(t *testing.T) {
	for in, want := range map[string]string{
		"a\nb":       "a|b",
		"a\r\nb\r\n": "a|b",
		"1%\r2%\r\n": "1%|2%",
		"\n\n":       "|",
		"":           "",
	} {
		for _, size := range []int{1, 2, 100} {
			var l lines
			var got []string
			add := func(s string) { got = append(got, s) }
			for p := []byte(in); len(p) > 0; {
				n := min(size, len(p))
				l.feed(p[:n], add)
				p = p[n:]
			}
			l.flush(add)
			if strings.Join(got, "|") != want {
				t.Errorf("%q by %d: %q", in, size, got)
			}
		}
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"plain\ttext\n":      "plain\ttext\n",
		"grüße 宽":            "grüße 宽",
		"\x1b[2J":            "^[[2J",
		"\a\r\x00\x7f":       "^G^M^@^?",
		"\u009b31m":          `\u009b31m`,
		"\x9b31m":            `\x9b31m`,
		"a\u202eb\u2066":     `a\u202eb\u2066`,
		"ok \xff\xfe broken": `ok \xff\xfe broken`,
	} {
		if got := Clean(in); got != want {
			t.Errorf("Clean(%q) = %q, want %q", in, got, want)
		}
	}
}

// JSON is escaped only as far as it must be; with more it says the same.
func TestCleanJSON(t *testing.T) {
	for _, said := range []string{"plain", "\x1b[2J\a\x00", "a\x7fb^?", "\u009b31m\u0085", "a\u202eb\u2066", "<\u2028>", "é宽\t\n"} {
		data, err := json.Marshal(said)
		if err != nil {
			t.Fatal(err)
		}
		text := CleanJSON(string(data))
		if strings.ContainsFunc(text, hidden) {
			t.Errorf("%q leaves %q", said, text)
		}
		var got string
		if err := json.Unmarshal([]byte(text), &got); err != nil || got != said {
			t.Errorf("%q became %q, %v", said, got, err)
		}
	}
}

func FuzzTerm(f *testing.F) {
	for _, s := range []string{"", "a\n", "\x1b]0;title\a", "\u202e\u009b", "\xc2\x9b", "\xff", "\xe2\x80"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got := Clean(s)
		if !utf8.ValidString(got) {
			t.Fatalf("%q is not UTF-8", got)
		}
		for _, r := range got {
			if r != '\t' && r != '\n' && (unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)) {
				t.Fatalf("%q has %U", got, r)
			}
		}
		if Clean(got) != got {
			t.Fatalf("%q changes again", got)
		}
	})
}
