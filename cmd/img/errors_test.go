package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/rogpeppe/go-internal/txtar"

	"img/dag"
)

// testdata/errors shows what people read when a Dockerfile, an ignore file or what they name is wrong.
//
// A case is a txtar file AREA_WHAT.txtar whose comment, lines that begin with "#", says what is wrong; a second line "# needs: …"
// is as in scripts. The files are
//
//	setup        lines for sh -e, run in context/ before the build, for what is not a plain file
//	flags        more arguments of img build, one a line; "$CASE" is the directory of the case
//	Dockerfile   what is built; a case without one builds what is in context/
//	context/…    the build context
//	any other…   files beside the context
//	output       the exit code, as "exit 2", and all of the standard error, with #N for the numbers of steps
//
// A name that ends in " (escaped)" has the bytes \r, \0, \xff and \u00a0 written like this, \{70000x} for many of one letter, and \c for
// nothing, where the file does not end in a new line. Every build names an image and a directory that exist already: neither may change,
// nor the context, and nothing may be left in the state.
const errorCases = "../../testdata/errors"

// victim is the image that failing builds must leave alone.
const victim = "victim"

func TestErrors(t *testing.T) {
	files, err := filepath.Glob(errorCases + "/*.txtar")
	if err != nil || len(files) < 120 {
		t.Fatalf("%d cases, %v", len(files), err)
	}
	l := newLanguage(t)
	if err := os.WriteFile(filepath.Join(l.side, "victim.Dockerfile"), []byte("FROM users\nLABEL victim=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if out, err := l.command("img", "build", "-q", "-t", victim, "-f", "victim.Dockerfile", "tmp").CombinedOutput(); err != nil {
		t.Fatalf("build the victim: %v\n%s", err, out)
	}
	before := l.victim(t)
	t.Run("case", func(t *testing.T) {
		for _, f := range files {
			t.Run(scriptName(f), func(t *testing.T) {
				if why := l.lacks(t, f); why != "" {
					t.Skip(why)
				}
				t.Parallel()
				l.fails(t, f)
			})
		}
	})
	if after := l.victim(t); after != before {
		t.Errorf("a failed build changed the image: %s, was %s", after, before)
	}
	if left := unfinished(t, l.baseState()); len(left) > 0 {
		t.Errorf("left in the state:\n%s", strings.Join(left, "\n"))
	}
}

// victim is the digest that the name has.
func (l *language) victim(t *testing.T) string {
	t.Helper()
	out, err := l.command("img", "ls", "--no-trunc", "--format", "{{.Name}} {{.Digest}}").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(victim)) {
		t.Fatalf("img ls: %v\n%s", err, out)
	}
	return string(out)
}

// unfinished lists what in a state belongs to nobody once no build runs.
func unfinished(t *testing.T, state string) (left []string) {
	t.Helper()
	for _, pattern := range []string{"snapshot/*/stage-*", "snapshot/*/trash-*", "tmp/*", "cache/keys/locks/*", "registry/.tmp/*"} {
		found, err := filepath.Glob(filepath.Join(state, filepath.FromSlash(pattern)))
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, found...)
	}
	return left
}

// fails runs one case.
func (l *language) fails(t *testing.T, file string) {
	a, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := &languageCase{l, file, filepath.Join(l.side, "cases", scriptName(file)), unescaped(a)}
	if err := c.prepare(); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(c.dir, "out")
	if err := errors.Join(os.Mkdir(out, 0o755), os.WriteFile(filepath.Join(out, "kept"), []byte("kept\n"), 0o644)); err != nil {
		t.Fatal(err)
	}
	before := listing(t, c.dir)
	got := c.failure(t)
	if after := listing(t, c.dir); after != before {
		t.Errorf("the build changed files:\n%s", diff.Diff("before", []byte(before), "after", []byte(after)))
	}
	if n := strings.Count(got, "img: error: "); n != 1 {
		t.Errorf("%d errors, want 1", n)
	}
	want, _ := c.section("output")
	switch {
	case *update:
		setSection(a, "output", got)
		if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
			t.Fatal(err)
		}
	case got != want:
		t.Errorf("output\n%s", diff.Diff("expected", []byte(want), "got", []byte(got)))
	}
}

func setSection(a *txtar.Archive, name, text string) {
	for i, f := range a.Files {
		if f.Name == name {
			a.Files[i].Data = []byte(text)
			return
		}
	}
	a.Files = append(a.Files, txtar.File{Name: name, Data: []byte(text)})
}

// failure runs img build in the case's directory; it returns the exit code and what was said, with paths of the run replaced.
func (c *languageCase) failure(t *testing.T) string {
	args := []string{"build", "--offline", "--progress=quiet", "-t", victim, "-o", "type=local,dest=out"}
	if c.expects("Dockerfile") {
		args = append(args, "-f", "Dockerfile")
	}
	flags, _ := c.section("flags")
	for f := range strings.Lines(flags) {
		args = append(args, strings.ReplaceAll(strings.TrimSuffix(f, "\n"), "$CASE", c.dir))
	}
	cmd := c.command("img", append(args, "context")...)
	defer time.AfterFunc(2*time.Minute, func() { cmd.Process.Kill() }).Stop()
	cmd.Dir = c.dir
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if stdout.Len() > 0 {
		t.Errorf("standard output: %q", stdout.String())
	}
	text := strings.ReplaceAll(stderr.String(), c.dir, "$CASE")
	text = stepNumber.ReplaceAllString(text, "#N ") // stages run side by side
	return fmt.Sprintf("exit %d\n%s", cmd.ProcessState.ExitCode(), strings.ReplaceAll(text, c.side, "$SIDE"))
}

var stepNumber = regexp.MustCompile(`(?m)^#\d+ `)

// unescaped is an archive with the bytes of its escaped files, and ".dockerignore (escaped)" without the mark.
func unescaped(a *txtar.Archive) *txtar.Archive {
	out := &txtar.Archive{Comment: a.Comment}
	for _, f := range a.Files {
		if name, ok := strings.CutSuffix(f.Name, " (escaped)"); ok {
			f = txtar.File{Name: name, Data: unescape(f.Data)}
		}
		out.Files = append(out.Files, f)
	}
	return out
}

var escaped = regexp.MustCompile(`\\(r|t|0|c\n|x[0-9a-f]{2}|u[0-9a-f]{4}|\{\d+.\})`)

func unescape(text []byte) []byte {
	return escaped.ReplaceAllFunc(text, func(m []byte) []byte {
		switch m[1] {
		case 'r':
			return []byte("\r")
		case 't':
			return []byte("\t")
		case '0':
			return []byte{0}
		case 'c':
			return nil
		case '{':
			n, _ := strconv.Atoi(string(m[2 : len(m)-2]))
			return bytes.Repeat(m[len(m)-2:len(m)-1], n)
		}
		n, _ := strconv.ParseUint(string(m[2:]), 16, 32)
		if m[1] == 'x' {
			return []byte{byte(n)}
		}
		return utf8.AppendRune(nil, rune(n))
	})
}

// listing is what is below a directory, with times.
func listing(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // a directory that the test itself may not read
		}
		info, err := d.Info()
		if err == nil {
			fmt.Fprintln(&b, strings.TrimPrefix(p, dir), info.Mode(), info.Size(), info.ModTime().UnixNano())
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// An excerpt marks the guilty lines and puts the caret below the column, whatever stands before it.
func TestExcerpt(t *testing.T) {
	for _, c := range []struct {
		name, text string
		pos        dag.Pos
		want       string
	}{
		{"first line", "FROM a\nRUN b\nRUN c\nRUN d\n", dag.Pos{Line: 1, Col: 6}, "   1 | >>> FROM a\n     |          ^\n   2 |     RUN b\n   3 |     RUN c\n"},
		{"whole lines", "FROM a\nRUN b \\\n  c\n", dag.Pos{Line: 2, End: 3}, "   1 |     FROM a\n   2 | >>> RUN b \\\n   3 | >>>   c\n"},
		{"tab", "\tRUN\tb\n", dag.Pos{Line: 1, Col: 6}, "   1 | >>> \tRUN\tb\n     |     \t   \t^\n"},
		{"wide", "RUN 日本 x\n", dag.Pos{Line: 1, Col: 8}, "   1 | >>> RUN 日本 x\n     |              ^\n"},
		{"control", "RUN \x1b[31m x\n", dag.Pos{Line: 1, Col: 11}, "   1 | >>> RUN ^[[31m x\n     |                ^\n"},
		{"not UTF-8", "RUN \xff x\n", dag.Pos{Line: 1, Col: 7}, "   1 | >>> RUN \\xff x\n     |              ^\n"},
		{"byte-order mark", "\ufeffRUN x\n", dag.Pos{Line: 1, Col: 5}, "   1 | >>> RUN x\n     |         ^\n"},
		{"end of line", "RUN x\r\n", dag.Pos{Line: 1, Col: 6}, "   1 | >>> RUN x\n     |          ^\n"},
		{"long", "RUN " + strings.Repeat("a", 300) + " x " + strings.Repeat("b", 300), dag.Pos{Line: 1, Col: 306},
			"   1 | >>> …" + strings.Repeat("a", 59) + " x " + strings.Repeat("b", 56) + "…\n     |     " + strings.Repeat(" ", 61) + "^\n"},
		{"many lines", strings.Repeat("x\n", 100), dag.Pos{Line: 2, End: 99}, "   1 |     x\n   2 | >>> x\n" + lines(3, 21) + "     | >>> ... 77 more lines\n  99 | >>> x\n 100 |     x\n"},
	} {
		c.pos.File = "f"
		want := fmt.Sprintf("f:%d\n%s%s%s", c.pos.Line, excerptRule, c.want, excerptRule)
		if got := excerpt(c.pos, []byte(c.text)); got != want {
			t.Errorf("%s:\n%s", c.name, diff.Diff("expected", []byte(want), "got", []byte(got)))
		}
	}
	for _, pos := range []dag.Pos{{}, {Line: 9}, {Line: -1}} {
		if got := excerpt(pos, []byte("x\n")); got != "" {
			t.Errorf("%v: %s", pos, got)
		}
	}
}

func lines(from, to int) string {
	var b strings.Builder
	for n := from; n <= to; n++ {
		fmt.Fprintf(&b, "%4d | >>> x\n", n)
	}
	return b.String()
}

// Any bytes and any place give an excerpt that a terminal shows as it is.
func FuzzExcerpt(f *testing.F) {
	f.Add([]byte("FROM a\n\tRUN \x1b[0m日\xff\r\n\x00"), 2, 2, 7)
	f.Add([]byte("\ufeff"), 1, 0, 1)
	f.Add(bytes.Repeat([]byte("\u3000x"), 400), 1, 1, 300)
	f.Fuzz(func(t *testing.T, text []byte, line, end, col int) {
		got := excerpt(dag.Pos{File: "f", Line: line, End: end, Col: col}, text)
		for _, r := range got {
			if r == utf8.RuneError && !bytes.ContainsRune(text, r) || r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
				t.Fatalf("%q has %U", got, r)
			}
		}
		if len(got) > 64*len(text)+64*excerptWidth*(excerptLines+8) {
			t.Fatalf("%d bytes of %d", len(got), len(text))
		}
	})
}
