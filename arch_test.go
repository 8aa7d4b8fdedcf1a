// Package img_test keeps ARCHITECTURE.md true.
package img_test

import (
	"errors"
	"go/build"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestImports compares the import table with the source: every package has its row, and imports those of ours that
// the row names, neither more nor fewer.
func TestImports(t *testing.T) {
	table := importTable(t)
	source := imports(t)
	for _, p := range slices.Sorted(maps.Keys(source)) {
		row, ok := table[p]
		if !ok {
			t.Errorf("%s has no row", p)
			continue
		}
		if !slices.Equal(row, source[p]) {
			t.Errorf("%s imports\n%s\nand its row names\n%s", p, strings.Join(source[p], ", "), strings.Join(row, ", "))
		}
	}
	for p := range table {
		if _, ok := source[p]; !ok {
			t.Errorf("the row %s has no package", p)
		}
	}
}

// TestFiles looks for the files that the map names.
func TestFiles(t *testing.T) {
	for _, name := range regexp.MustCompile(`[a-z_]+(/[a-z_]+)+\.go\b`).FindAllString(architecture(t), -1) {
		if _, err := os.Stat(name); err != nil {
			t.Errorf("ARCHITECTURE.md names %s: %v", name, err)
		}
	}
}

func architecture(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("ARCHITECTURE.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// importTable reads the table whose third column is "imports of ours".
func importTable(t *testing.T) map[string][]string {
	t.Helper()
	_, text, ok := strings.Cut(architecture(t), "| imports of ours |")
	if !ok {
		t.Fatal(`ARCHITECTURE.md has no table with a column "imports of ours"`)
	}
	rows := map[string][]string{}
	for i, line := range strings.Split(text, "\n") {
		if i < 2 { // the rest of the heading, and the rule
			continue
		}
		cells := strings.Split(line, "|")
		if len(cells) < 5 {
			break
		}
		names := []string{}
		if c := strings.TrimSpace(cells[3]); c != "–" {
			names = strings.Split(c, ", ")
		}
		slices.Sort(names)
		rows[strings.Trim(cells[1], " `")] = names
	}
	return rows
}

// imports reads the import lines of the source. It does not ask the go command, which would need every module.
func imports(t *testing.T) map[string][]string {
	t.Helper()
	ctx := build.Default
	ctx.BuildTags = []string{"netgo", "osusergo", "seccomp"}
	ctx.CgoEnabled = true
	found := map[string][]string{}
	err := filepath.WalkDir(".", func(dir string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() {
			return err
		}
		if d.Name() == "testdata" || d.Name() == "examples" || len(d.Name()) > 1 && strings.HasPrefix(d.Name(), ".") {
			return fs.SkipDir
		}
		p, err := ctx.ImportDir(dir, 0)
		if none := (*build.NoGoError)(nil); errors.As(err, &none) || err == nil && len(p.GoFiles)+len(p.CgoFiles) == 0 {
			return nil
		}
		if err != nil {
			return err
		}
		ours := []string{}
		for _, name := range p.Imports {
			if name, ok := strings.CutPrefix(name, "img/"); ok {
				ours = append(ours, name)
			}
		}
		slices.Sort(ours)
		found[filepath.ToSlash(dir)] = ours
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestChecksAreDocumented: docs/checks.md has a row for every rule of our own.
func TestChecksAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("docs/checks.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range []string{"dag/dockerfile/traps.go", "exec/warn.go", "cmd/img/contexts.go"} {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range regexp.MustCompile(`(?:\trule\w+ += |\.find\()"(\w+)"`).FindAllStringSubmatch(string(src), -1) {
			n++
			if !strings.Contains(string(doc), "\n| "+m[1]+" |") {
				t.Errorf("docs/checks.md has no row for %s", m[1])
			}
		}
	}
	if n < 19 {
		t.Errorf("only %d rules found", n)
	}
}
