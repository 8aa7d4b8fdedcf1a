package dockerfile

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/rogpeppe/go-internal/txtar"

	"img/dag"
)

// Any text gives a plan whose inputs stand before what uses them, or an Error with the file's name.
func FuzzParse(f *testing.F) {
	seed(f, "Dockerfile")
	f.Fuzz(func(t *testing.T, src string) {
		file, err := Parse("Dockerfile", []byte(src))
		if err != nil {
			isError(t, err)
			return
		}
		o := Options{Platform: "linux/amd64", Image: true, BuildArgs: map[string]string{"A": "b"}}
		if _, err := file.Refs(o); err != nil {
			isError(t, err)
		}
		p, err := Lower(file, o, bases(t, &txtar.Archive{}))
		if err != nil {
			isError(t, err)
			return
		}
		for id, v := range p.Graph.Vertices {
			for _, in := range v.Inputs {
				if in < 0 || int(in) >= id {
					t.Fatalf("vertex %d has the input %d:\n%s", id, in, p)
				}
			}
		}
		if p.Targets[0].Manifest == dag.Empty || !strings.Contains(p.String(), "platform ") {
			t.Fatalf("no image:\n%s", p)
		}
	})
}

func isError(t *testing.T, err error) {
	var e *Error
	if !errors.As(err, &e) || e.Pos.File != "Dockerfile" {
		t.Fatalf("%T without a place: %v", err, err)
	}
}

// A pruned directory has nothing in it that is not ignored.
func FuzzIgnore(f *testing.F) {
	seed(f, "ignore")
	f.Fuzz(func(t *testing.T, src string) {
		g, err := ParseIgnore(".dockerignore", []byte(src))
		if err != nil {
			var e *Error
			if !errors.As(err, &e) || e.Pos.File != ".dockerignore" {
				t.Fatalf("%T without a place: %v", err, err)
			}
			return
		}
		for _, dir := range []string{"a", "a/b", "x", "x.go", ".git"} {
			for _, name := range []string{"a", "b", "b/c", "x.go", "c/d/e"} {
				ignored, line := g.Match(dir + "/" + name)
				if ignored != (line > 0) {
					t.Fatalf("%s/%s: ignored=%v by line %d", dir, name, ignored, line)
				}
				if g.Prune(dir) && !ignored {
					t.Fatalf("%s is pruned, but %s/%s is not ignored: %q", dir, dir, name, g.Patterns())
				}
			}
		}
	})
}

// seed adds the files of that name in all cases.
func seed(f *testing.F, name string) {
	archives, err := filepath.Glob(filepath.Join(cases, "*.txtar"))
	if err != nil || len(archives) == 0 {
		f.Fatalf("no cases: %v", err)
	}
	for _, path := range archives {
		raw, err := os.ReadFile(path)
		if err != nil {
			f.Fatal(err)
		}
		if src, ok := file(txtar.Parse(raw), name); ok {
			f.Add(src)
		}
	}
}

// Expansion ends, within the size that was foreseen, whatever the word, the value and the escape are.
func FuzzExpand(f *testing.F) {
	for _, word := range []string{
		"$a", "${a}", "${a:-$b}", "${a:+'$b'}", `${a#"*"}`, "${a##x*}", "${a%%?}", "${a//b/$0$1${b}}", `${a/\//\}}`, "${a:?no}", "${:#a}", "$@$*$#$0$12", "\\$a`$b", "${a//?/${b//?/$a}}",
		"'$a'\"$b\"", "<<a ${b", "${a/b", "${a/b/c", "$", "${", "\xff$a\x00",
	} {
		f.Add(word, "value of a", "b*", false)
		f.Add(word, "", "$a}", true)
	}
	f.Fuzz(func(t *testing.T, word, a, b string, backtick bool) {
		file := &File{name: "Dockerfile", escape: '\\'}
		if backtick {
			file.escape = '`'
		}
		build := &build{f: file, lex: shell.NewLex(file.escape)}
		env := newEnvironment(0)
		env.set("a", a)
		env.set("b", b)
		heredoc, name := shell.NewLex('\\'), shell.NewLex(file.escape)
		heredoc.SkipProcessQuotes = true
		name.RawQuotes, name.SkipUnsetEnv = true, true
		for _, lex := range []*shell.Lex{build.lex, heredoc, name} {
			z := sizer{word: string([]rune(word)), env: env, escape: file.escape, plainQuotes: lex == heredoc, lengths: map[string]int{}}
			size := z.until(0)
			out, _, err := build.process(lex, word, env, maxExpanded)
			if err == nil && len(out) > size {
				t.Fatalf("%q becomes %q, %d bytes, not at most %d", word, out, len(out), size)
			}
		}
	})
}

// FuzzFix: what is fixed needs no more fixing, can be read, and builds the same.
func FuzzFix(f *testing.F) {
	for _, src := range []string{
		"from scratch as A\nenv a \"b c\" d\\ e\nexpose 80/TCP 1:2\n", "FROM --platform=$TARGETPLATFORM \\\n\n a AS B\nRUN <<E\n\nx\nE\n",
		"# escape=`\nFROM scratch\nENV a b `\n\n c\n", "FROM scratch\r\nLABEL a  b\r\nWORKDIR x/../y\r\n", "\ufeffFROM scratch\nEnv é ü ö\n",
		"FROM scratch\nENV a =b\nENV c 'd\ne", "ARG A=1\nfrom scratch\nONBUILD env a b\nCMD [ \"a\" ]",
	} {
		f.Add(src)
	}
	f.Fuzz(func(t *testing.T, src string) {
		if len(src) > 1<<14 {
			return
		}
		fixKeepsTheImage(t, "fuzz", src, bases(t, &txtar.Archive{}))
	})
}

// Whatever an error says, and wherever it is said to be, it is explained at a place that the file has.
func FuzzExplain(f *testing.F) {
	for _, said := range []string{
		"unknown instruction: X", "unknown flag: --x", "unexpected key 'x' in 'x=1'", "unexpected key 'size' for mount type 'bind'",
		"Syntax error - can't find = in \"b\". Must be of the form: name=value", "unterminated heredoc", "invalid containerPort: x",
		"FROM requires either one or three arguments", "when using JSON array syntax, arrays must be comprised of strings only",
		"SHELL requires the arguments to be in JSON form", `failed to process "${x:?y}": x: y`, `onbuild trigger "RUN x": boom`,
		`failed to parse stage name "a:b:c": invalid reference format`, "COPY requires at least two arguments", "time: invalid duration \"5\"",
	} {
		f.Add("# escape=`\nFROM a AS b\nONBUILD RUN x\nRUN --mount=type=cache,size=1 --x \\\n # c\n x <<E\n$x\nE\nSHELL ['a', 1]\n", said, 4, 5, 0)
		f.Add("\ufeffFROM a:${x:?y}\nENV a=b c \u00a0\nCOPY [\"a\", 1] --from=$x <<E\n", said, 1, 9, 3)
	}
	f.Fuzz(func(t *testing.T, src, said string, line, end, col int) {
		file, err := Parse("Dockerfile", []byte(src))
		if err != nil {
			file = &File{name: "Dockerfile", lines: strings.Split(src, "\n"), escape: '\\'}
		}
		e := &Error{Pos: dag.Pos{File: "Dockerfile", Line: line, End: end, Col: col}, Err: errors.New(said)}
		file.Explain(Options{Platform: "linux/amd64"}, e)
		if e.Pos.Col < 0 && e.Pos.Col != col || e.Err == nil {
			t.Fatalf("%+v", e)
		}
	})
}
